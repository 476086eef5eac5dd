"""Which mix-up explains wrong numbers: every usual suspect is tried on the trace.

A suspect is convicted only if it gives the solver's numbers exactly, at every slot that
is looked at.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclnf.shape.pdm import NUM_RIGID

_MOST_SLOTS = 8


class Evidence(NamedTuple):
    """What the suspects are tried on: some slots of a trace, as float64 arrays."""

    maps: Float[np.ndarray, "n w w"]
    """Response maps of the landmarks that take part."""
    ref_from_img: Float[np.ndarray, "2 2"]
    """Image to reference frame."""
    img_from_ref: Float[np.ndarray, "2 2"]
    """Its inverse."""
    base_shape: Float[np.ndarray, "n 2"]
    """Where the maps were computed."""
    shapes: Float[np.ndarray, "k n 2"]
    """Landmarks at the slots."""
    previous_shapes: Float[np.ndarray, "k n 2"]
    """Landmarks one slot before."""
    start_shape: Float[np.ndarray, "n 2"]
    """Landmarks at the start of the phase."""
    sigma: float
    """Bandwidth of the kernel."""
    openface: bool
    """Whether the kernel is OpenFace's table."""
    found: Float[np.ndarray, "k n 2"]
    """The solver's mean shifts in the image."""


def spread_slots(num_slots: int) -> np.ndarray:
    """A few slots of a trace, without the start where there is more.

    Args:
        num_slots: Valid slots.

    Returns:
        Their indices.

    Example:
        >>> spread_slots(3).tolist()
        [1, 2]
    """
    if num_slots == 1:
        return np.zeros(1, int)
    # Mostly early ones: far out of the window many mix-ups look the same.
    early = np.arange(1, min(num_slots, 1 + _MOST_SLOTS // 2))
    spread = np.linspace(1, num_slots - 1, _MOST_SLOTS // 2).astype(int)
    return np.unique(np.concatenate([early, spread]))


def explain_mean_shifts(evidence: Evidence, tolerance: float) -> str | None:
    """The mix-up that gives the solver's mean shifts.

    Args:
        evidence: What was seen.
        tolerance: Error allowed, relative to the root mean square of the shifts.

    Returns:
        The simplest one, in words; None if none of them does.

    Example:
        >>> evidence = Evidence(
        ...     np.ones((1, 3, 3)), np.eye(2), np.eye(2), np.zeros((1, 2)),
        ...     np.full((1, 1, 2), 0.5), np.zeros((1, 1, 2)), np.zeros((1, 2)), 1.0,
        ...     False, np.zeros((1, 1, 2)),
        ... )
        >>> explain_mean_shifts(evidence, 1e-6)
        "the offset is measured from the present shape, not from the maps' base shape"
    """
    factor = 0.5 / evidence.sigma**2
    # Where the mix-up hardly matters, nearly right would do: ask for far better.
    true = next(_positions(evidence))[1]
    true = _kde_shift(evidence, true, factor) @ evidence.img_from_ref.T
    mismatch = float(np.sqrt(np.mean((true - evidence.found) ** 2)))
    limits = np.minimum(
        tolerance * np.maximum(_sizes(evidence.found), 1e-3), 0.01 * mismatch
    )
    best: tuple[int, str] | None = None
    for place, positions in _positions(evidence):
        shifts = _kde_shift(evidence, positions, factor)
        for turn, seen in _views(evidence, shifts):
            words = [x for x in (place, turn) if x]
            if not words or (best and best[0] <= len(words)):
                continue
            if np.all(_sizes(seen - evidence.found) < limits):
                best = len(words), " and ".join(words)
    return best[1] if best else _explain_bandwidth(evidence, factor, limits)


def _sizes(vectors: np.ndarray) -> np.ndarray:
    """Root mean square at each slot."""
    return np.sqrt(np.mean(vectors**2, axis=(1, 2)))


def _positions(evidence: Evidence) -> Iterator[tuple[str, np.ndarray]]:
    a, b = evidence.ref_from_img, evidence.img_from_ref
    moved = evidence.shapes - evidence.base_shape
    centre = (evidence.maps.shape[-1] - 1) / 2
    true = moved @ a.T + centre
    yield "", true
    yield "x and y of the offset are swapped", true[..., ::-1]
    yield "img_from_ref instead of ref_from_img takes the offset", moved @ b.T + centre
    yield "the offset is left in image pixels", moved + centre
    yield "ref_from_img turns the offset the wrong way", moved @ a + centre
    from_present = np.full_like(true, centre)
    yield (
        "the offset is measured from the present shape, not from the maps' base shape",
        from_present,
    )
    yield (
        "the offset is measured from the start of the phase, not from the maps' base "
        "shape",
        (evidence.shapes - evidence.start_shape) @ a.T + centre,
    )
    yield (
        "the offset is measured from the shape one step before, not from the maps' "
        "base shape",
        (evidence.shapes - evidence.previous_shapes) @ a.T + centre,
    )
    yield "no base shape is taken off the offset", evidence.shapes @ a.T + centre
    yield "the window's centre is w / 2, not (w - 1) / 2", true + 0.5
    yield "the window's centre is one pixel too far", true + 1
    yield "the window's centre is one pixel too near", true - 1


def _views(evidence: Evidence, shifts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    a, b = evidence.ref_from_img, evidence.img_from_ref
    true = shifts @ b.T
    yield "", true
    yield "ref_from_img instead of img_from_ref takes the mean shift", shifts @ a.T
    yield "the mean shift is left in pixels of the map", shifts
    yield "img_from_ref turns the mean shift the wrong way", shifts @ b
    yield "x and y of the mean shift are swapped", true[..., ::-1]
    yield "x and y of the mean shift in the map are swapped", shifts[..., ::-1] @ b.T
    yield "the mean shift has the wrong sign", -true
    yield from _shuffled(true, "mean shifts")


def _shuffled(vectors: np.ndarray, what: str) -> Iterator[tuple[str, np.ndarray]]:
    k, n, _ = vectors.shape
    yield (
        f"stacked {what} (x...x y...y) are read as interleaved",
        vectors.transpose(0, 2, 1).reshape(k, n, 2),
    )
    yield (
        f"interleaved {what} (xy xy ...) are read as stacked",
        vectors.reshape(k, 2, n).transpose(0, 2, 1),
    )


def _kde_shift(
    evidence: Evidence, positions: np.ndarray, factor: float
) -> Float[np.ndarray, "k n 2"]:
    """Mean shifts in the map under the kernel `exp(-factor |d - u|^2)`."""
    maps = evidence.maps
    w = maps.shape[-1]
    centres = positions
    if evidence.openface:
        positions = np.clip(positions, 0, w - 0.1)
        centres = np.floor(positions * 10 + 0.5) / 10
    grid = np.arange(w)
    squared = (grid - centres[..., 0, None])[..., None, :] ** 2
    squared = squared + (grid - centres[..., 1, None])[..., :, None] ** 2
    with np.errstate(divide="ignore"):
        logs = np.where(maps > 0, np.log(np.maximum(maps, 0)), -np.inf)
    logs = logs - factor * squared
    weights = np.exp(logs - logs.max(axis=(-2, -1), keepdims=True))
    total = weights.sum(axis=(-2, -1))
    column = (weights * grid).sum(axis=(-2, -1)) / total
    row = (weights * grid[:, None]).sum(axis=(-2, -1)) / total
    return np.stack([column, row], axis=-1) - positions


def _explain_bandwidth(
    evidence: Evidence, factor: float, limits: np.ndarray
) -> str | None:
    """Another factor in the kernel's exponent, of either sign, if one fits."""
    positions = next(_positions(evidence))[1]

    def error(candidate: float) -> float:
        seen = _kde_shift(evidence, positions, candidate) @ evidence.img_from_ref.T
        return float(np.max(_sizes(seen - evidence.found) / limits))

    for sign in (1, -1):
        scan = np.linspace(np.log(1e-3), np.log(1e2), 48)
        errors = [error(sign * float(np.exp(x))) for x in scan]
        at = int(np.argmin(errors))
        low, high = scan[max(at - 1, 0)], scan[min(at + 1, len(scan) - 1)]
        for _ in range(40):  # a ternary search between the neighbours of the least
            one, two = low + (high - low) / 3, high - (high - low) / 3
            if error(sign * float(np.exp(one))) < error(sign * float(np.exp(two))):
                high = two
            else:
                low = one
        best = sign * float(np.exp((low + high) / 2))
        if error(best) < 1:
            return (
                f"the kernel is exp(-{factor:.4g} |d - u|^2), but the solver's is "
                f"exp({-best:.4g} |d - u|^2): another bandwidth"
            )
    return None


def explain_gradient(
    found: Float[np.ndarray, "k d"],
    columns: Float[np.ndarray, "k n 2 d"],
    weights: Float[np.ndarray, " n"],
    shifts: Float[np.ndarray, "k n 2"],
    pull: Float[np.ndarray, "k d"],
    euler_rates: Float[np.ndarray, "k 3 3"],
    unit: Float[np.ndarray, "k d"],
    tolerances: Float[np.ndarray, " k"],
) -> str | None:
    """The mix-up that makes the solver's right-hand side of its mean shifts.

    Args:
        found: The solver's right-hand side.
        columns: The Jacobian.
        weights: Weight of each landmark.
        shifts: The solver's mean shifts in the image.
        pull: The prior's pull, `r q / E`, to be taken off; zeros for the pose.
        euler_rates: Derivative of the tangent rotation along Euler angles.
        unit: What to divide each entry by before comparing, `sqrt(H_EM,kk)`.
        tolerances: Error allowed at each slot, pixels.

    Returns:
        The mix-up in words; None if none of the suspects fits.

    Example:
        >>> one = np.ones((1, 7))
        >>> explain_gradient(
        ...     2 * one, np.ones((1, 1, 2, 7)), np.ones(1), np.ones((1, 1, 2)),
        ...     np.eye(7)[6:], np.eye(3)[None], one, np.full(1, 1e-6),
        ... )
        'the prior is missing'
    """

    def product(vectors: np.ndarray, by: np.ndarray = weights) -> np.ndarray:
        return np.einsum("knad,n,kna->kd", columns, by, vectors)

    data = product(shifts)
    true = data - pull
    # Where the mix-up hardly matters, nearly right would do: ask for far better.
    mismatch = float(np.abs((found - true) / unit).max())
    limits = np.minimum(tolerances, 0.01 * mismatch)[:, None]

    def fits(candidate: np.ndarray) -> bool:
        return bool(np.all(np.abs((found - candidate) / unit) < limits))

    if np.any(pull):
        if fits(data):
            return "the prior is missing"
        if fits(data + pull):
            return "the prior has the wrong sign"
        scaled, pulled = (data - found) / unit, pull / unit
        share = float(np.sum(scaled * pulled) / np.sum(pulled**2))
        if fits(data - share * pull):
            return f"the prior counts {share:.4g} times"
    wrong = np.any(np.abs((found - true) / unit) >= limits, axis=0)
    if not wrong.all() and fits(np.where(wrong, -true, true)):
        names = ", ".join(_name(int(k)) for k in np.flatnonzero(wrong))
        return f"the sign of the Jacobian's column is wrong: {names}"
    turned = true.copy()
    turned[:, 1:4] = np.einsum("kab,ka->kb", euler_rates, true[:, 1:4])
    if fits(turned):
        return "the Jacobian's rotation columns are derivatives along Euler angles"
    candidates = [
        ("x and y of the mean shift are swapped", product(shifts[..., ::-1])),
        ("the mean shift has the wrong sign", -data),
        ("landmark weights are left out", product(shifts, np.sign(weights))),
        ("landmark weights are applied twice", product(shifts, weights**2)),
    ]
    candidates += [(name, product(x)) for name, x in _shuffled(shifts, "mean shifts")]
    return next((name for name, x in candidates if fits(x - pull)), None)


def _name(column: int) -> str:
    pose = ("scale", "pitch", "yaw", "roll", "x", "y")
    return pose[column] if column < NUM_RIGID else f"mode {column - NUM_RIGID}"
