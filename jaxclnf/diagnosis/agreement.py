"""Whether the solver's numbers are those of F, and if not, why."""

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxclnf.diagnosis.findings import Finding, Kind
from jaxclnf.diagnosis.suspects import (
    Evidence,
    explain_gradient,
    explain_mean_shifts,
    spread_slots,
)
from jaxclnf.diagnosis.trace import PhaseTrace
from jaxclnf.shape.pdm import NUM_RIGID

_LOOSE = {"float32": 2e-3, "float64": 1e-6}
"""Differences of pixels, relative to the size of the mean shifts, that are rounding."""
_FALL = 16
"""Units of rounding of F's summands that F may fall by."""


def judge_agreement(trace: PhaseTrace) -> list[Finding]:
    """Compares what the solver said with what is true.

    Args:
        trace: The valid slots of a phase, as NumPy arrays.

    Returns:
        Findings about the shape, the mean shifts, the gradient and the objective, each
        with the mix-up that explains it, if one does.

    Example:
        >>> from jaxclnf.diagnosis.trace import trace_phase
        >>> options = NURLMSOptions(solver="em", max_steps=4)
        >>> trace = trace_phase(pdm, responses, params, options)
        >>> judge_agreement(jax.tree.map(np.asarray, trace))
        []
    """
    loose, eps = _LOOSE[str(trace.shape.dtype)], np.finfo(trace.shape.dtype).eps
    trace = jax.tree.map(
        _doubled, trace
    )  # so that squares of far places do not overflow
    truth = trace.truth
    apart = np.abs(trace.shape - truth.shape).max()
    if apart > loose * max(1.0, float(np.abs(truth.shape).max()) / 1000):
        return [
            Finding(
                Kind.WRONG_SHAPE,
                f"the solver's landmarks are up to {apart:.3g} px away from the "
                "projection of its own parameters",
                {"difference": float(apart)},
            )
        ]
    # Slot by slot, or a shape that runs away would excuse everything before.
    shifts = np.asarray(truth.mean_shifts)
    limits = loose * np.maximum(np.sqrt(np.mean(shifts**2, axis=(1, 2))), 0.1)
    findings = _judge_shifts(trace, limits, loose)
    findings += _judge_gradient(trace, limits * np.sqrt(shifts.shape[1]))
    if not findings and trace.options.solver != "openface":
        findings += _judge_objective(trace, float(eps))
    return findings


def _doubled(leaf: object) -> object:
    array = np.asarray(leaf)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else leaf


def _judge_shifts(
    trace: PhaseTrace, limits: np.ndarray, tolerance: float
) -> list[Finding]:
    truth = trace.truth
    used = trace.responses.visibility & (trace.responses.maps > 0).any(axis=(1, 2))
    difference = np.linalg.norm(trace.mean_shifts - truth.mean_shifts, axis=-1)
    wrong = difference > limits[:, None]
    # In float32 a position between two cells of the table may round to either.
    allowed = 0.05 if trace.options.solver == "openface" else 0
    if wrong[:, used].mean() <= allowed and not wrong[:, ~used].any():
        return []
    landmarks = np.flatnonzero(wrong.any(axis=0))
    slots = spread_slots(len(trace.status))
    responses = trace.responses
    reason = explain_mean_shifts(
        Evidence(
            maps=np.asarray(responses.maps, np.float64)[used],
            ref_from_img=np.asarray(responses.ref_from_img, np.float64),
            img_from_ref=np.asarray(responses.img_from_ref, np.float64),
            base_shape=np.asarray(responses.base_shape, np.float64)[used],
            shapes=np.asarray(truth.shape, np.float64)[slots][:, used],
            previous_shapes=np.asarray(truth.shape, np.float64)[
                np.maximum(slots - 1, 0)
            ][:, used],
            start_shape=np.asarray(truth.shape, np.float64)[0, used],
            sigma=float(trace.options.sigma),
            openface=trace.options.solver == "openface",
            found=np.asarray(trace.mean_shifts, np.float64)[slots][:, used],
        ),
        tolerance,
    )
    apart = np.abs(trace.positions - truth.positions).max(axis=(1, 2))
    message = (
        f"the solver's mean shifts are not those of its maps: {len(landmarks)} of "
        f"{used.sum()} landmarks differ, by up to {difference.max():.3g} px"
    )
    if np.any(apart > limits):
        message += f", and their places in the maps by up to {apart.max():.3g} px"
    message += (
        f". Explained exactly by this: {reason}"
        if reason
        else (". None of the usual mix-ups explains them: maps of another shape?")
    )
    return [
        Finding(
            Kind.WRONG_MEAN_SHIFT,
            message,
            {
                "difference": float(difference.max()),
                "landmarks": landmarks.tolist(),
                "cause": reason,
            },
        )
    ]


def _judge_gradient(trace: PhaseTrace, limits: np.ndarray) -> list[Finding]:
    """The right-hand side, given the solver's own mean shifts."""
    truth, options = trace.truth, trace.options
    pull, columns, weights = _ingredients(trace)
    expected = np.einsum("knad,n,kna->kd", columns, weights, trace.mean_shifts) - pull
    diagonal = np.diagonal(truth.metric, axis1=1, axis2=2)
    unit = np.sqrt(np.where(diagonal > 0, diagonal, 1))
    found, shifts = np.asarray(trace.gradient), np.asarray(trace.mean_shifts)
    difference = np.abs((found - expected) / unit)
    if np.all(difference <= limits[:, None]):
        return []
    slots = spread_slots(len(trace.status))
    reason = explain_gradient(
        found[slots],
        columns[slots],
        weights,
        shifts[slots],
        pull[slots],
        _euler_rates(np.asarray(trace.params.rotation)[slots]),
        unit[slots],
        limits[slots],
    )
    angle = _angle(found / unit, np.asarray(truth.gradient) / unit)
    message = (
        f"the solver's right-hand side is not the gradient of F along `retract`: "
        f"{angle:.3g} degrees apart in the mean, {difference.max():.3g} px in one entry"
    )
    message += (
        f". Explained exactly by this: {reason}"
        if reason
        else (". None of the usual mix-ups explains it")
    )
    return [
        Finding(
            Kind.WRONG_GRADIENT,
            message,
            {
                "angle": angle,
                "difference": float(difference.max()),
                "cause": reason,
                "solver": options.solver,
            },
        )
    ]


def _ingredients(trace: PhaseTrace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prior's pull, the Jacobians, and the weights, written out once more."""
    pdm, params, options = trace.pdm, trace.params, trace.options
    size = trace.gradient.shape[-1]
    pull = np.zeros_like(trace.gradient)
    camera, scale = params.rotation[:, :2], params.scale[:, None, None, None]
    shapes = pdm.mean_shape + np.einsum(
        "nbm,km->knb", pdm.princ_comp, params.params_local
    )
    axes = np.eye(3, dtype=shapes.dtype)
    turned = np.stack([np.cross(axis, shapes) for axis in axes], axis=-1)
    k, n, _ = shapes.shape
    parts = [
        np.einsum("kab,knb->kna", camera, shapes)[..., None],
        scale * np.einsum("kab,knbj->knaj", camera, turned),
        np.broadcast_to(np.eye(2, dtype=shapes.dtype), (k, n, 2, 2)),
    ]
    if size > NUM_RIGID:
        parts.append(scale * np.einsum("kab,nbm->knam", camera, pdm.princ_comp))
        pull[:, NUM_RIGID:] = (
            float(options.reg_factor) * params.params_local / pdm.eigen_values
        )
    responses = trace.responses
    weights = np.ones(n, shapes.dtype)
    if float(options.weight_factor) > 0:
        weights = float(options.weight_factor) * responses.confidence
    used = responses.visibility & (responses.maps > 0).any(axis=(1, 2))
    return pull, np.concatenate(parts, axis=-1), np.where(used, weights, 0)


def _euler_rates(rotation: Float[np.ndarray, "k 3 3"]) -> Float[np.ndarray, "k 3 3"]:
    """How the tangent rotation `w` follows pitch, yaw and roll, `R = Rx Ry Rz`."""
    yaw = np.arcsin(np.clip(rotation[:, 0, 2], -1, 1))
    roll = np.arctan2(-rotation[:, 0, 1], rotation[:, 0, 0])
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)
    # The axis of pitch is the first row of R, that of yaw the second one of Rz.
    pitch_axis = rotation[:, 0]
    yaw_axis = np.stack([np.sin(roll), np.cos(roll), zero], axis=-1)
    return np.stack([pitch_axis, yaw_axis, np.stack([zero, zero, one], -1)], axis=-1)


def _angle(one: np.ndarray, two: np.ndarray) -> float:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosine = np.sum(one * two, axis=1) / np.where(norms > 0, norms, 1)
    return float(np.degrees(np.arccos(np.clip(np.mean(cosine), -1, 1))))


def _judge_objective(trace: PhaseTrace, eps: float) -> list[Finding]:
    truth = trace.truth.terms.astype(np.float64)
    change = (truth - truth[0]).sum(axis=1)
    said = (trace.objective - trace.objective[0]).astype(np.float64)
    limit = 8 * eps * np.abs(truth).sum(axis=1).max() * len(truth)
    apart = np.abs(change - said).max()
    if apart <= limit:
        return []
    return [
        Finding(
            Kind.WRONG_OBJECTIVE,
            f"the solver's F gained {said[-1]:.4g} px^2 where F gained "
            f"{change[-1]:.4g}; they differ by up to {apart:.3g}",
            {"difference": float(apart)},
        )
    ]


def judge_ascent(
    objective: Array | np.ndarray, size: float, slots: np.ndarray, solver: str
) -> list[Finding]:
    """Whether F falls along accepted steps.

    Args:
        objective: F at the accepted states, or its summands with a second axis.
        size: Size of what F is summed from, px^2.
        slots: Slot of each state.
        solver: Name of the solver; `openface` does not look at F and may fall.

    Returns:
        One finding or none.

    Example:
        >>> falls = judge_ascent(np.array([3.0, 2.0]), 3.0, np.array([0, 1]), "em")
        >>> falls[0].kind.value
        'objective falls'
    """
    if solver == "openface" or len(objective) < 2:
        return []
    eps = float(np.finfo(objective.dtype).eps)
    change = np.diff(objective.astype(np.float64), axis=0)
    gain = change.reshape(len(change), -1).sum(axis=1)
    falls = gain < -_FALL * eps * float(size)
    if not falls.any():
        return []
    worst = int(np.argmin(gain))
    return [
        Finding(
            Kind.OBJECTIVE_FALLS,
            f"F falls along {falls.sum()} of {len(gain)} accepted steps, most at step "
            f"{slots[worst + 1]}, by {-gain[worst]:.3g} px^2",
            {"falls": int(falls.sum()), "largest": float(-gain[worst])},
        )
    ]
