"""`diagnose`: from a trace to a report in words."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array

from jaxclnf.diagnosis.agreement import judge_agreement, judge_ascent
from jaxclnf.diagnosis.findings import Diagnosis, Finding, Kind
from jaxclnf.diagnosis.motion import judge_open_end, way_from
from jaxclnf.diagnosis.trace import PhaseTrace
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitTrace
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status

AnyArray = Array | np.ndarray

_ENDS = {
    Status.NOTHING_VISIBLE: Kind.NOTHING_VISIBLE,
    Status.BAD_START: Kind.BAD_START,
    Status.FACE_TOO_SMALL: Kind.TOO_SMALL,
    Status.NONFINITE: Kind.NONFINITE,
}
_STATIONARY = 10
"""Scaled gradient, in units of `shape_tol`, that is left where a phase converged."""
_BENT = -1e-3
"""Relative curvature below which F bends upwards."""
_DISAGREE = {Kind.WRONG_MEAN_SHIFT, Kind.WRONG_GRADIENT, Kind.WRONG_OBJECTIVE}
_CHANGES = 3
"""How often one mode must reach or leave its bound to count as cycling."""


def diagnose(
    trace: PhaseTrace | FitTrace, *, options: FitOptions | None = None
) -> Diagnosis:
    """Says in words how an optimisation went and what is wrong with it.

    What a `FitTrace` does not hold (maps, model) is not looked at: only the way of the
    shape, F as the solver had it, and the statuses. A `PhaseTrace` also tells whether
    the solver's mean shifts, gradient and objective are those of F, and which mix-up
    explains them if they are not.

    Args:
        trace: From `trace_phase`, or from `fit_with_trace`; of one face.
        options: Options of the fit a `FitTrace` is of; `FitOptions()` if not given.

    Returns:
        The findings, the most severe first; `print` it.

    Raises:
        TypeError: It is no trace.
        ValueError: The trace is of several faces.

    Example:
        >>> from jaxclnf.diagnosis.trace import trace_phase
        >>> options = NURLMSOptions(solver="em", max_steps=40)
        >>> trace = trace_phase(pdm, responses, params, options)
        >>> print(diagnose(trace))
        no problem
        - converged: after 14 steps, the last of 0.00469 px
    """
    if isinstance(trace, PhaseTrace):
        if trace.valid.ndim != 1:
            raise ValueError(
                f"the trace's `valid` has shape {trace.valid.shape}; expected one "
                "axis, the slots of one phase: take one face out of the batch"
            )
        findings = _judge_phase(jax.tree.map(np.asarray, trace))
    elif isinstance(trace, FitTrace):
        if trace.valid.ndim != 3:
            raise ValueError(
                f"the trace's `valid` has shape {trace.valid.shape}; expected "
                "(scales, 2, slots): take one face out of the batch"
            )
        findings = _judge_fit(jax.tree.map(np.asarray, trace), options or FitOptions())
    else:
        raise TypeError(
            f"trace is a {type(trace).__name__}; expected a PhaseTrace or a FitTrace"
        )
    return Diagnosis(tuple(sorted(findings, key=lambda x: x.kind.severity)))


def _judge_fit(trace: FitTrace, options: FitOptions) -> list[Finding]:
    findings = []
    for scale, valid_phases in enumerate(trace.valid):
        for phase, valid in enumerate(valid_phases):
            if not valid.any():  # a scale that was skipped
                continue
            count = int(valid.sum())
            states = jax.tree.map(
                lambda x, s=scale, p=phase, k=count: x[s, p, :k], trace.states
            )
            here = _judge_states(states, float(options.shape_tol), options.solver)
            name = "rigid" if phase == 0 else "non-rigid"
            where = f"scale {scale}, {name}"
            findings += [dataclasses.replace(x, where=where) for x in here]
            if int(states.status[-1]) in _ENDS:
                return findings  # nothing was run afterwards
    return findings


def _judge_states(states: NURLMSState, shape_tol: float, solver: str) -> list[Finding]:
    """What the states of one phase say without the maps."""
    failure = _failure(states.status, states.evidence.shape, states.objective)
    if failure:
        return [failure]
    said = float(states.shape_delta[-1])
    way = way_from(states.evidence.shape, moved_slots(states), said, shape_tol, solver)
    findings = judge_ascent(
        states.objective[way.slots],
        float(np.abs(states.objective).max()),
        way.slots,
        solver,
    )
    if states.status[-1] == Status.CONVERGED:
        return [*findings, _converged(states.shape_delta)]
    return [*findings, judge_open_end(way)]


def moved_slots(states: NURLMSState | PhaseTrace) -> np.ndarray:
    """Which slots hold other parameters than the one before.

    Args:
        states: States or a trace with a leading axis of slots.

    Returns:
        A mask, False in slot 0.

    Example:
        >>> _, states, _ = nu_rlms_with_trace(
        ...     pdm, responses, params, NURLMSOptions(solver="em", max_steps=2)
        ... )
        >>> moved_slots(states).tolist()
        [False, True, True]
    """
    moved = np.zeros(states.status.shape[0], bool)
    for leaf in jax.tree.leaves(states.params):
        flat = np.asarray(leaf).reshape(len(moved), -1)
        moved[1:] |= np.any(flat[1:] != flat[:-1], axis=1)
    return moved


def _failure(status: AnyArray, shape: AnyArray, objective: AnyArray) -> Finding | None:
    last = Status(int(status[-1]))
    if last in _ENDS:
        return Finding(
            _ENDS[last],
            f"{last.message}, at step {len(status) - 1}",
            {"step": len(status) - 1},
        )
    finite = np.isfinite(shape).all(axis=(1, 2)) & np.isfinite(objective)
    if not finite.all():
        first = int(np.argmin(finite))
        return Finding(
            Kind.NONFINITE,
            f"landmarks or F are not finite from step {first} on, but the status is "
            f"{last.name}",
            {"step": first},
        )
    return None


def _converged(shape_delta: AnyArray) -> Finding:
    steps, last = len(shape_delta) - 1, float(shape_delta[-1])
    return Finding(
        Kind.CONVERGED,
        f"after {steps} steps, the last of {last:.3g} px",
        {"steps": steps, "last_step": last},
    )


def _judge_phase(trace: PhaseTrace) -> list[Finding]:
    count = int(trace.valid.sum())
    trace = _first_slots(trace, count)
    failure = _failure(trace.status, trace.shape, trace.objective)
    if failure:
        finite = _finite_slots(trace)
        if failure.kind != Kind.NONFINITE or finite == 0:
            return [failure]
        return [failure, *judge_agreement(_first_slots(trace, finite))]
    options = trace.options
    way = way_from(
        trace.shape,
        moved_slots(trace),
        float(trace.shape_delta[-1]),
        float(options.shape_tol),
        options.solver,
    )
    truth = trace.truth
    findings = judge_agreement(trace)
    size = float(np.abs(truth.terms).sum(axis=1).max())
    falls = judge_ascent(truth.terms[way.slots], size, way.slots, options.solver)
    findings += [*falls, *_bounds(trace), *_drift(trace)]
    converged = trace.status[-1] == Status.CONVERGED
    if not converged:
        findings += [_with_hint(judge_open_end(way), findings)]
    # OpenFace clips modes after the step, which leaves a gradient at bounds.
    clipped = options.solver == "openface" and trace.at_bound[-1].any()
    left = float(truth.gradient_norm[-1])
    if converged and not clipped and left > _STATIONARY * float(options.shape_tol):
        findings.append(
            Finding(
                Kind.FALSE_CONVERGENCE,
                f"the steps ended after {count - 1}, but F still slopes there: the "
                f"gradient alone would move one direction by {left:.3g} px",
                {"steps": count - 1, "gradient_norm": left},
            )
        )
    elif converged:
        findings.append(_converged(trace.shape_delta))
    bend = float(truth.smallest_curvature[-1])
    if bend < _BENT and (converged or count > 20):
        findings.append(
            Finding(
                Kind.INDEFINITE,
                f"F bends upwards at the end: its smallest curvature there is "
                f"{bend:.3g} of the EM metric's, so it is no maximum",
                {"smallest_curvature": bend},
            )
        )
    return findings


def _finite_slots(trace: PhaseTrace) -> int:
    """How many slots there are before anything is not finite."""
    kept = (
        trace.shape,
        trace.mean_shifts,
        trace.objective,
        trace.gradient,
        trace.truth,
    )
    finite = np.ones(len(trace.status), bool)
    for leaf in jax.tree.leaves(kept):
        finite &= np.isfinite(leaf).reshape(len(finite), -1).all(axis=1)
    return int(np.argmin(np.append(finite, False)))


def _with_hint(end: Finding, others: list[Finding]) -> Finding:
    if end.kind != Kind.STALLED or any(x.kind in _DISAGREE for x in others):
        return end
    hint = (
        ". Its right-hand side is the gradient of F all the same: look at the step "
        "made of it, and at how the solver computes F where the step leads"
    )
    return dataclasses.replace(end, message=end.message + hint)


def _first_slots(trace: PhaseTrace, count: int) -> PhaseTrace:
    def cut(field: str) -> object:
        return jax.tree.map(lambda x: x[:count], getattr(trace, field))

    with_slots = (
        "params shape positions mean_shifts objective gradient gradient_norm "
        "shape_delta step at_bound status valid truth"
    )
    return dataclasses.replace(trace, **{x: cut(x) for x in with_slots.split()})


def _bounds(trace: PhaseTrace) -> list[Finding]:
    if trace.rigid or len(trace.status) == 1:
        return []
    findings = []
    bounds = float(trace.options.n_sigmas) * np.sqrt(trace.pdm.eigen_values)
    local = np.abs(trace.params.params_local[1:])
    beyond = local > bounds * (1 + 1e-5) + 1e-12
    if beyond.any():
        modes = np.flatnonzero(beyond.any(axis=0)).tolist()
        worst = float(np.max(local / np.sqrt(trace.pdm.eigen_values)))
        findings.append(
            Finding(
                Kind.BOUND_IGNORED,
                f"modes {_list(modes)} go beyond their bounds, up to {worst:.3g} "
                f"standard deviations where {float(trace.options.n_sigmas):.3g} are "
                "allowed",
                {"modes": modes, "largest": worst},
            )
        )
    late = trace.at_bound[len(trace.at_bound) // 2 :]
    changes = np.sum(np.diff(late, axis=0) != 0, axis=0)
    if trace.status[-1] != Status.CONVERGED and changes.max(initial=0) >= _CHANGES:
        modes = np.flatnonzero(changes >= _CHANGES).tolist()
        findings.append(
            Finding(
                Kind.BOUND_CYCLING,
                f"in the second half of the steps modes {_list(modes)} reach or leave "
                f"their bounds up to {changes.max()} times",
                {"modes": modes, "changes": int(changes.max())},
            )
        )
    return findings


def _drift(trace: PhaseTrace) -> list[Finding]:
    """More than half of the landmarks beyond the edges of their maps."""
    positions, w = trace.truth.positions, trace.window_size
    outside = np.maximum(-0.5 - positions, positions - (w - 0.5)).max(axis=-1)
    used = trace.responses.visibility
    far = (outside > float(trace.options.sigma)) & used[None, :]
    if far[-1].sum() <= used.sum() / 2 or far[0].sum() >= far[-1].sum():
        return []
    return [
        Finding(
            Kind.DRIFT,
            f"{far[-1].sum()} of {used.sum()} landmarks ended beyond the edges of "
            f"their {w} x {w} maps, up to {outside[-1][used].max():.3g} px of the map; "
            f"at the start {far[0].sum()}",
            {"landmarks": np.flatnonzero(far[-1]).tolist()},
        )
    ]


def _list(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown + (", ..." if len(numbers) > 6 else "")
