"""What the way of a shape says, whatever solver made it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from jaxclnf.diagnosis.findings import Finding, Kind

_FEW = 8
"""Accepted steps below which no trend is read."""
_TAIL = 24
"""Accepted steps, at most, that count as the end of the way."""
_MANY = 20
"""Steps from which on a linear decay that has not ended is called slow."""
_STEADY = 0.99
"""Ratio of successive steps above which they do not shrink."""
_LONGEST_PERIOD = 10
_NOISE = 1e-6
"""Steps, in units of `shape_tol`, that count as none; in float32 more do."""


class Way(NamedTuple):
    """The accepted states of one phase, as NumPy arrays."""

    shapes: Float[np.ndarray, "k n 2"]
    """Landmarks, image pixels."""
    slots: np.ndarray
    """Slot of each in the trace."""
    num_slots: int
    """Slots of the trace, those of rejected steps included."""
    said: float
    """How far the solver says its last step moved the shape, pixels."""
    shape_tol: float
    """Step below which the phase ends, pixels."""
    solver: str
    """Name of the solver."""

    @property
    def moves(self) -> Float[np.ndarray, " k"]:
        """Length of each step, pixels."""
        change = np.diff(self.shapes, axis=0)
        return np.sqrt(np.sum(change**2, axis=(1, 2)))


def way_from(
    shapes: Array | np.ndarray,
    moved: Bool[np.ndarray, " t"],
    said: float,
    shape_tol: float,
    solver: str,
) -> Way:
    """The way of a phase without its rejected steps.

    Args:
        shapes: Landmarks of every valid slot.
        moved: Whether the slot's parameters differ from those before.
        said: How far the solver says its last step moved the shape, pixels.
        shape_tol: Step below which the phase ends, pixels.
        solver: Name of the solver.

    Returns:
        The start and every state that differs from the one before by more than noise.

    Example:
        >>> shapes = np.arange(6.0).reshape(3, 1, 2)
        >>> way_from(shapes, np.array([0, 1, 0], bool), 1.0, 0.005,
        ...     "em").slots.tolist()
        [0, 1]
    """
    resolution = np.finfo(shapes.dtype).eps * np.abs(shapes).max()
    least = max(_NOISE * shape_tol, float(resolution) * np.sqrt(shapes[0].size))
    shapes = np.asarray(shapes, np.float64)
    lengths = np.sqrt(np.sum(np.diff(shapes, axis=0) ** 2, axis=(1, 2)))
    keep = moved & np.append(True, lengths > least)
    keep[0] = True
    slots = np.flatnonzero(keep)
    return Way(shapes[slots], slots, len(moved), said, shape_tol, solver)


def rate_of(moves: np.ndarray) -> float:
    """Ratio of successive step lengths, by a line through their logarithms.

    Args:
        moves: Step lengths, two at least.

    Returns:
        The ratio: below 1 where steps shrink; 0 if one is 0.

    Example:
        >>> round(rate_of(np.array([8.0, 4.0, 2.0, 1.0])), 6)
        0.5
    """
    if np.any(moves <= 0):
        return 0.0
    return float(np.exp(np.polyfit(np.arange(len(moves)), np.log(moves), 1)[0]))


def judge_open_end(way: Way) -> Finding:
    """Why a phase that reached its step limit is not at its end.

    Args:
        way: The way, all of its numbers finite.

    Returns:
        One finding: no step accepted, constant step, growing steps, oscillation, no end
        in sight, at rest, slow linear convergence, or cut off by the limit.

    Example:
        >>> shapes = np.cumsum(np.ones((30, 1, 2)), axis=0)
        >>> way = way_from(shapes, np.ones(30, bool), 1.41, 0.005, "em")
        >>> judge_open_end(way).kind.value
        'constant step'
    """
    half = way.num_slots // 2
    refused = way.num_slots - half - int(np.sum(way.slots >= half))
    if refused >= max(_FEW, (way.num_slots - half) / 2):
        return Finding(
            Kind.STALLED,
            f"{refused} of the last {way.num_slots - half} steps were refused, because "
            "F as the solver computes it would have fallen along them. The last one "
            f"accepted was step {way.slots[-1]}",
            {"refused": refused, "last_accepted": int(way.slots[-1])},
        )
    moves = way.moves
    if len(moves) < _FEW:
        last = f"{moves[-1]:.3g}" if len(moves) else "none"
        return Finding(
            Kind.CUT_OFF,
            f"{way.num_slots - 1} steps, the last of {last} px, are too few to judge",
            {"steps": way.num_slots - 1},
        )
    tail = moves[-min(_TAIL, max(_FEW, len(moves) // 2)) :]
    rate = rate_of(tail)
    if rate <= _STEADY and tail[-1] < 0.9 * tail[0]:
        return _shrinking(way, tail, rate)
    return _steady(way, tail, rate)


def _shrinking(way: Way, tail: np.ndarray, rate: float) -> Finding:
    steps, last = way.num_slots - 1, float(tail[-1])
    if last < way.shape_tol:
        return Finding(
            Kind.AT_REST,
            f"the last of {steps} steps moved the shape by {last:.3g} px, which is "
            f"below {way.shape_tol:.3g} px, but "
            + (
                f"the solver counts {way.said:.3g} px: its stop test does not see what "
                "bounds cut off"
                if way.said >= way.shape_tol
                else "the solver's stop test asks for more than a short step"
            ),
            {"last_step": last, "said": way.said},
        )
    missing = max(1, _steps_to(way.shape_tol, last, rate))
    kind = Kind.SLOW
    if way.solver == "openface" or steps < _MANY:
        kind = Kind.CUT_OFF
    return Finding(
        kind,
        f"after {steps} steps each is {rate:.3f} times as long as the one before, the "
        f"last {last:.3g} px; at this rate about {missing} more reach "
        f"{way.shape_tol:.3g} px",
        {"rate": rate, "last_step": last, "steps_missing": missing},
    )


def _steps_to(goal: float, last: float, rate: float) -> int:
    # A tolerance of 0 is never reached: count to the smallest number there is.
    goal = max(goal, float(np.finfo(float).tiny))
    return int(np.ceil(np.log(goal / last) / np.log(rate))) if rate > 0 else 1


def _steady(way: Way, tail: np.ndarray, rate: float) -> Finding:
    change = np.diff(way.shapes, axis=0).reshape(len(way.shapes) - 1, -1)[-len(tail) :]
    unit = change / np.maximum(tail[:, None], 1e-300)
    cosine = float(np.mean(np.sum(unit[1:] * unit[:-1], axis=1)))
    mean, spread = float(tail.mean()), float(tail.std() / tail.mean())
    numbers = {"step": mean, "cosine": cosine, "rate": rate}
    period = _period(way.shapes[-len(tail) - 1 :], mean)
    if period:
        most = np.argsort(-np.abs(unit[-1]).reshape(-1, 2).sum(axis=1))[:3].tolist()
        return Finding(
            Kind.OSCILLATION,
            f"the shape comes back every {period} steps of {mean:.3g} px; landmarks "
            f"{', '.join(map(str, most))} move most",
            numbers | {"period": period, "landmarks": most},
        )
    if cosine < -0.3:
        return Finding(
            Kind.OSCILLATION,
            f"steps of {mean:.3g} px go back and forth (mean cosine of successive "
            f"steps {cosine:.2f}) without shrinking",
            numbers | {"period": 2},
        )
    if rate > 1.01 and tail[-1] > 1.2 * tail[0]:
        return Finding(
            Kind.DIVERGENCE,
            f"each step is {rate:.3f} times as long as the one before, the last "
            f"{tail[-1]:.3g} px",
            numbers,
        )
    if spread < 0.2:
        where = "in the same direction" if cosine > 0.5 else "in varying directions"
        return Finding(
            Kind.CONSTANT_STEP,
            f"every step moves the shape by {mean:.3g} px, {where}; it does not shrink",
            numbers | {"spread": spread},
        )
    return Finding(
        Kind.WANDERING,
        f"the last {len(tail)} steps are between {tail.min():.3g} and {tail.max():.3g} "
        "px long and do not shrink",
        numbers | {"spread": spread},
    )


def _period(shapes: np.ndarray, step: float) -> int | None:
    """The shortest period with which the shape returns, if it does."""
    for period in range(2, min(_LONGEST_PERIOD, len(shapes) // 2) + 1):
        apart = shapes[period:] - shapes[:-period]
        if np.sqrt(np.sum(apart**2, axis=(1, 2))).max() < 0.1 * step:
            return period
    return None
