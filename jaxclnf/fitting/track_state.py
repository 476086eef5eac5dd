"""Following a face from frame to frame: the state, and what becomes of it.

These functions look at no pixels. What fits and a detector found is handed to them:

    after_follow      counts failures, once the face was followed into a frame
    needs_detection   says whether a face detector is to look at this frame
    finish_frame      takes the fit from the detector's box or drops it, ends a lost
                      track
    without_detector  all of that for a frame at which no detector looks
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.same_face import SAME_FACE, overlap
from jaxclnf.fitting.template import Template, no_template
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams, bounding_box

_UNTRACKED_PAUSE = 6
"""An untracked face is looked for in every frame whose number of failures is a multiple
of this many times `TrackOptions.reinit_every`."""


@pytree_dataclass
class TrackerState:
    """What is known of a face after a frame."""

    params: PDMParams
    """Pose and mode weights in the last frame that had any; NaN before the first."""
    landmarks: Float[Array, "*b n 2"]
    """The landmarks that belong to them, pixels."""
    log_likelihood: Float[Array, "*b"]
    """That of their fit."""
    certainty: Float[Array, "*b"]
    """The validator's certainty of the last fit; NaN without one."""
    initialised: Bool[Array, "*b"]
    """Whether there is a face to follow."""
    success: Bool[Array, "*b"]
    """Whether the last fit was to be trusted: then the next begins with small
    windows."""
    failures_in_a_row: Int[Array, "*b"]
    """Failed frames since the last good one, less one."""
    frames_followed: Int[Array, "*b"]
    """Frames since the last fit from a detector's box, see
    `TrackOptions.recheck_every`."""
    not_alone: Bool[Array, "*b"]
    """Whether the detector saw other faces where this one was begun."""
    template: Template
    """Picture of the face in the last good frame, see `TrackOptions.use_template`."""


def start_tracking(model: CLNFModel, options: TrackOptions) -> TrackerState:
    """The state before the first frame.

    Args:
        model: The model.
        options: The options.

    Returns:
        A state without a face.

    Example:
        >>> state = start_tracking(model, TrackOptions())
        >>> bool(state.initialised), int(state.failures_in_a_row)
        (False, -1)
    """
    dtype = model.pdm.mean_shape.dtype
    nan = lambda *shape: jnp.full(shape, jnp.nan, dtype)
    return TrackerState(
        params=PDMParams(
            scale=nan(),
            rotation=jnp.eye(3, dtype=dtype),
            translation=nan(2),
            params_local=jnp.zeros(model.pdm.num_modes, dtype),
        ),
        landmarks=nan(model.pdm.num_landmarks, 2),
        log_likelihood=nan(),
        certainty=nan(),
        initialised=jnp.zeros((), bool),
        success=jnp.zeros((), bool),
        failures_in_a_row=jnp.full((), -1, jnp.int32),
        frames_followed=jnp.zeros((), jnp.int32),
        not_alone=jnp.zeros((), bool),
        template=no_template(dtype, room=options.use_template),
    )


@jax.jit
def after_follow(state: TrackerState, followed: FitResult) -> TrackerState:
    """The state once the last face was followed into a frame.

    Args:
        state: The state before.
        followed: What `follow_face` returned.

    Returns:
        The state with the fit's parameters (unless the start was unusable) and one
        failure more, or none; without a face to follow, the same.

    Mirrors:
        The first part of LandmarkDetector::DetectLandmarksInVideo.

    Example:
        >>> options = TrackOptions()
        >>> state = start_tracking(model, options)
        >>> same = after_follow(state, follow_face(model, image, state, options))
        >>> int(same.failures_in_a_row)
        -1
    """
    failures = jnp.where(followed.success, -1, state.failures_in_a_row + 1)
    after = dataclasses.replace(
        _with_fit(state, followed),
        failures_in_a_row=failures.astype(jnp.int32),
        frames_followed=state.frames_followed + jnp.ones((), jnp.int32),
    )
    return chosen(state.initialised, after, state)


@jax.jit
def needs_detection(state: TrackerState, options: TrackOptions) -> Bool[Array, "*b"]:
    """Whether a face detector is to look at this frame.

    That is so without a face in every `6 reinit_every`-th frame, the first included,
    after a failure to follow in every `reinit_every`-th frame, the first included, and
    while a face is followed well in every `recheck_every`-th.

    Args:
        state: The state from `after_follow`.
        options: The options.

    Returns:
        The answer.

    Mirrors:
        The second part of LandmarkDetector::DetectLandmarksInVideo.

    Example:
        >>> options = TrackOptions()
        >>> bool(needs_detection(start_tracking(model, options), options))
        True
    """
    failures, every = state.failures_in_a_row, options.reinit_every
    unknown = ~state.initialised & ((failures + 1) % (_UNTRACKED_PAUSE * every) == 0)
    lost = state.initialised & ~state.success & (failures % every == 0)
    if not options.rechecks:
        return unknown | lost
    due = state.frames_followed % options.recheck_every == 0
    return unknown | lost | (state.initialised & state.success & due)


@jax.jit
def finish_frame(
    state: TrackerState,
    followed: FitResult,
    restarted: FitResult | None,
    options: TrackOptions,
    *,
    found: Bool[Array, ""] | bool = True,
) -> tuple[TrackerState, FitResult]:
    """The state at the end of a frame.

    | Before     | The detector | The fit from its box | What happens |
    |------------|--------------|----------------------|--------------|
    | no face    | found none   | -                    | one failure more |
    | no face    | found one    | any                  | followed from now on |
    | a face     | was not asked, or found none | -    | lost if failures are more than `max_failures` |
    | a face     | found one    | success              | taken instead; if the face was followed well, only if it is likelier and on the same face |
    | a face     | found one    | failure              | dropped; the frame failed, unless the face was followed well |

    Args:
        state: The state from `after_follow`.
        followed: What `follow_face` returned.
        restarted: What `restart_face` returned; None if it was not called.
        options: The options.
        found: Whether `restarted` counts: the detector was asked and found a face.

    Returns:
        The state, and the frame's result. Its `success` says whether the frame counts
        as good.

    Mirrors:
        The rest of LandmarkDetector::DetectLandmarksInVideo. As there, the certainty
        under the options of `TrackOptions.openface` is that of the last fit made, even
        if it was dropped.

    Example:
        >>> options = TrackOptions(first=FitOptions(window_sizes=(7,)))
        >>> state = start_tracking(model, options)
        >>> followed = follow_face(model, image, state, options)
        >>> again = restart_face(model, image, box, options)
        >>> state, result = finish_frame(state, followed, again, options)
        >>> bool(state.initialised), bool(result.success)
        (True, True)
    """  # noqa: E501 (a table)
    false = jnp.zeros((), bool)
    if restarted is None:
        restarted, usable = followed, false
    else:
        # From a box that is unusable there is nothing to go on.
        usable = jnp.isfinite(restarted.params.scale) & jnp.asarray(found)
    followed_well = state.initialised & state.success
    wanted = restarted.success & (_is_better(restarted, followed) | ~followed_well)
    taken = usable & (wanted | ~state.initialised)
    dropped = usable & ~taken & ~followed_well
    trusted = restarted.success
    if options.trust_first:
        trusted = jnp.ones((), bool)

    lost = ~state.initialised
    failures = state.failures_in_a_row + lost.astype(jnp.int32)
    missed = dataclasses.replace(
        state,
        failures_in_a_row=failures,
        initialised=state.initialised & (failures <= options.max_failures),
    )
    fresh = dataclasses.replace(
        _with_fit(state, restarted),
        initialised=jnp.ones((), bool),
        failures_in_a_row=jnp.full((), -1, jnp.int32),
        frames_followed=jnp.zeros((), jnp.int32),
    )
    back, last_fit = state, followed
    if options.first.solver == "openface":
        back = dataclasses.replace(state, certainty=restarted.certainty)
        last_fit = dataclasses.replace(followed, certainty=restarted.certainty)
    after = chosen(taken, fresh, chosen(dropped, back, missed))
    result = chosen(taken, restarted, chosen(dropped, last_fit, followed))
    success = jnp.where(taken, trusted, ~dropped & followed.success)
    return after, dataclasses.replace(result, success=success)


class Followed(NamedTuple):
    """A face followed into a frame, and what the frame is if no detector looks."""

    result: FitResult
    """The fit from the last frame's parameters."""
    state: TrackerState
    """The state at the end of the frame."""
    asks: Bool[Array, "*b"]
    """Whether a detector is to look, see `needs_detection`."""


@jax.jit
def without_detector(
    state: TrackerState, followed: FitResult, options: TrackOptions
) -> Followed:
    """All that becomes of a face in a frame at which no detector looks: of most frames.

    Args:
        state: The state after the last frame.
        followed: What `follow_face` returned.
        options: The options.

    Returns:
        What `finish_frame` returns without a fit from a detector's box, and whether to
        ask the detector.

    Example:
        >>> options = TrackOptions()
        >>> state = start_tracking(model, options)
        >>> followed = follow_face(model, image, state, options)
        >>> _, state, asks = without_detector(state, followed, options)
        >>> bool(asks), int(state.failures_in_a_row)
        (True, 0)
    """
    before = after_follow(state, followed)
    after, result = finish_frame(before, followed, None, options)
    return Followed(result, after, needs_detection(before, options))


def advance(
    state: TrackerState,
    options: TrackOptions,
    *,
    follow: Callable[[TrackerState], Followed],
    detect: Callable[[FitResult], Sequence[np.ndarray]],
    restart: Callable[[np.ndarray], FitResult],
) -> tuple[TrackerState, FitResult]:
    """One frame, with fits and a detector of your own.

    Args:
        state: The state after the last frame.
        options: The options.
        follow: Fits from a state, see `without_detector`.
        detect: Looks for the face that was followed like this: boxes to try in turn.
            Called only when needed.
        restart: Fits from a box. The first success counts, without any the first fit.

    Returns:
        As `finish_frame`.

    Example:
        >>> options = TrackOptions()
        >>> state = start_tracking(model, options)
        >>> nothing = follow_face(model, image, state, options)
        >>> state, result = advance(
        ...     state,
        ...     options,
        ...     follow=lambda state: without_detector(state, nothing, options),
        ...     detect=lambda followed: [],
        ...     restart=lambda box: nothing,
        ... )
        >>> int(state.failures_in_a_row), bool(result.success)
        (0, False)
    """
    followed = follow(state)
    restarted = None
    for box in detect(followed.result) if followed.asks else ():
        again = restart(box)
        if restarted is None or again.success:
            restarted = again
        if again.success:
            break
    return finish_followed(state, followed, restarted, options)


def finish_followed(
    state: TrackerState,
    followed: Followed,
    restarted: FitResult | None,
    options: TrackOptions,
    *,
    found: Bool[Array, ""] | bool = True,
) -> tuple[TrackerState, FitResult]:
    """`finish_frame` with what is known from following the face.

    Args:
        state: The state after the last frame.
        followed: The face, followed into this one.
        restarted: As for `finish_frame`.
        options: As for `finish_frame`.
        found: As for `finish_frame`.

    Returns:
        As `finish_frame`.

    Example:
        >>> state, options = start_tracking(model, TrackOptions()), TrackOptions()
        >>> nothing = without_detector(
        ...     state, follow_face(model, image, state, options), options
        ... )
        >>> bool(finish_followed(state, nothing, None, options)[0].initialised)
        False
    """
    if restarted is None:
        return followed.state, followed.result
    before = after_follow(state, followed.result)
    return finish_frame(before, followed.result, restarted, options, found=found)


def chosen(condition: Bool[Array, ""], first: Any, second: Any) -> Any:
    """One of two pytrees of the same structure.

    Args:
        condition: Whether it is the first.
        first: Taken if so.
        second: Taken if not.

    Returns:
        A tree of arrays.

    Example:
        >>> chosen(jnp.asarray(False), {"a": 1.0}, {"a": 2.0})["a"].tolist()
        2.0
    """
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), first, second)


def _is_better(restarted: FitResult, followed: FitResult) -> Bool[Array, ""]:
    """Whether a new fit of a face that is followed well is to be taken instead."""
    new, old = (bounding_box(fit.landmarks) for fit in (restarted, followed))
    same_face = overlap(new, old) >= SAME_FACE  # or a track would jump to another
    return same_face & (restarted.log_likelihood > followed.log_likelihood)


def _with_fit(state: TrackerState, result: FitResult) -> TrackerState:
    """The state with what a fit found; its place only if it has one."""
    placed = dataclasses.replace(
        state,
        params=result.params,
        landmarks=result.landmarks,
        log_likelihood=result.log_likelihood,
    )
    state = chosen(jnp.isfinite(result.params.scale), placed, state)
    return dataclasses.replace(
        state, certainty=result.certainty, success=result.success
    )
