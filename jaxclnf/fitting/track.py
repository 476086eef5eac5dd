"""Following a face from frame to frame: fits, and the rules of `track_state` on them.

`track_frame` asks the detector only when it must; `track_step` is one compiled
function, to which a box is handed in any case.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Num

from jaxclnf.experts.area import GreyImage, check_image
from jaxclnf.fitting.canvas import on_canvas
from jaxclnf.fitting.face import fit_face, last_scale, unfitted_face
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.given import (
    as_box,
    as_model,
    boxes_to_track,
    check_not_traced,
    check_tracking,
)
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.parts import unfitted_part
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.same_face import box_of
from jaxclnf.fitting.template import cut_template, template_shift
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import (
    Followed,
    TrackerState,
    advance,
    chosen,
    finish_followed,
    without_detector,
)
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.tracing import is_traced, traced_once


def follow_face(
    model: CLNFModel, image: GreyImage, state: TrackerState, options: TrackOptions
) -> FitResult:
    """Fits from the last frame's parameters.

    Args:
        model: The model.
        image: Grey values of the new frame.
        state: The state after the last frame.
        options: The options.

    Returns:
        The fit, with `options.follow` after a success and `options.first`, from that
        one start, after a failure; `Status.BAD_START` and NaN without a face to follow.

    Raises:
        TypeError: As `track_frame`.
        ValueError: As `track_frame`.

    Example:
        >>> state = start_tracking(model, TrackOptions())
        >>> Status(int(follow_face(model, image, state, TrackOptions()).status)).name
        'BAD_START'
    """
    return followed_face(model, image, state, options).result


def followed_face(
    model: CLNFModel, image: GreyImage, state: TrackerState, options: TrackOptions
) -> Followed:
    """`follow_face` and `without_detector` in one program: one call for most frames.

    Args:
        model: As for `follow_face`.
        image: As for `follow_face`.
        state: As for `follow_face`.
        options: As for `follow_face`.

    Returns:
        The fit, and what the frame is if no detector looks at it.

    Raises:
        TypeError: As `track_frame`.
        ValueError: As `track_frame`.

    Example:
        >>> state = start_tracking(model, TrackOptions())
        >>> bool(followed_face(model, image, state, TrackOptions()).asks)
        True
    """
    model = as_model(model)
    check_image(image)
    check_tracking(model, state, options)
    if is_traced():
        followed = lax.cond(
            state.initialised,
            lambda: lax.cond(
                state.success,
                lambda params: _fit_from(model, image, params, options.follow, options),
                lambda params: _fit_from(
                    model, image, params, _large(options), options
                ),
                _shifted(image, state, options),
            ),
            lambda: _no_face(model, options),
        )
        return without_detector(state, followed, options)
    if not state.initialised:
        return without_detector(state, _no_face(model, options), options)
    params = _shifted(image, state, options)
    size = np.asarray(image.shape, np.int32)
    canvas = on_canvas(np.asarray(image), params.scale.dtype)
    return _follow(model, canvas, size, params, state, options, large=not state.success)


def restart_face(
    model: CLNFModel,
    image: GreyImage,
    box: Num[Array | np.ndarray, " 4"],
    options: TrackOptions,
) -> FitResult:
    """Fits from a detector's box.

    Args:
        model: The model.
        image: Grey values of the frame.
        box: `(x, y, width, height)` tight around the landmarks, pixels.
        options: The options.

    Returns:
        The fit, with `options.first`.

    Raises:
        TypeError: As `fit`.
        ValueError: As `fit`, or the box is not `(4,)`.

    Example:
        >>> options = TrackOptions(first=FitOptions(window_sizes=(7,)))
        >>> bool(restart_face(model, image, box, options).success)
        True
    """
    result = fit(model, image, as_box(box), options=options.first)
    return _with_room(model, result, options.first, options)


def track_frame(
    model: CLNFModel,
    image: GreyImage,
    state: TrackerState,
    options: TrackOptions,
    detect: Callable[[], np.ndarray | None],
    *,
    detect_near: Callable[[np.ndarray], np.ndarray | None] | None = None,
) -> tuple[TrackerState, FitResult]:
    """Follows a face into the next frame; the detector is asked only when needed.

    Args:
        model: The model; `model.prepared(*options.window_sizes)` makes it faster.
        image: Grey values of the frame.
        state: The state after the last frame, at first that of `start_tracking`.
        options: The options.
        detect: Looks at this frame for a face: `(x, y, width, height)` tight around
            the landmarks, or None; or several in rows, as from `detect_faces`. See
            `boxes_to_track` for which of them is taken: of a new face the first where a
            fit is successful, of one that is followed the one on it.
        detect_near: Looks for the face near a box, such as `jaxclnf.detect_near`:
            asked instead of `detect` for a face that is followed well.

    Returns:
        The new state, and the frame's result, `Status.BAD_START` and NaN where there is
        no face. Its `success` says whether the frame counts as good.

    Raises:
        TypeError: As `fit`; or something is no `TrackerState`, no `TrackOptions` or no
            function; or JAX is tracing.
        ValueError: As `fit`; the state is of several faces, of another model or has no
            room for a template; or the box is not `(4,)`.

    Mirrors:
        LandmarkDetector::DetectLandmarksInVideo.

    Example:
        >>> small = FitOptions(window_sizes=(7,))
        >>> options = TrackOptions(first=small, follow=small)
        >>> state = start_tracking(model, options)
        >>> for _ in range(2):
        ...     state, result = track_frame(
        ...         model, image, state, options, lambda: np.asarray(box)
        ...     )
        >>> bool(result.success), int(state.failures_in_a_row)
        (True, -1)
    """
    near = detect if detect_near is None else detect_near
    for name, given in (("detect", detect), ("detect_near", near)):
        if not callable(given):
            kind = type(given).__name__
            raise TypeError(f"{name} is a {kind}; expected a function that gives a box")
    check_not_traced("track_frame", "track_step")
    others = state.not_alone

    def look(followed: FitResult) -> list[np.ndarray]:
        nonlocal others
        if detect_near is not None and followed.success:
            found = detect_near(box_of(followed.landmarks))
        else:
            found = detect()
            others = jnp.asarray(found is not None and len(np.atleast_2d(found)) > 1)
        return boxes_to_track(found, followed, state, options)

    after, result = advance(
        state,
        options,
        follow=lambda state: followed_face(model, image, state, options),
        detect=look,
        restart=lambda box: restart_face(model, image, box, options),
    )
    if not after.frames_followed:  # begun in this frame
        after = dataclasses.replace(after, not_alone=others)
    return with_template(image, after, result, options), result


@jax.jit
def track_step(
    model: CLNFModel,
    image: GreyImage,
    state: TrackerState,
    options: TrackOptions,
    box: Num[Array | np.ndarray, " 4"] | None = None,
) -> tuple[TrackerState, FitResult]:
    """`track_frame` as one compiled function, which `jax.vmap` makes follow many faces.

    Args:
        model: The model.
        image: Grey values of the frame.
        state: The state after the last frame.
        options: The options.
        box: What a detector finds in this frame, NaN if that is nothing. It is used
            only where `track_frame` would have asked. None: there is no detector.

    Returns:
        As `track_frame`.

    Raises:
        TypeError: As `track_frame`.
        ValueError: As `track_frame`.

    Example:
        >>> small = FitOptions(window_sizes=(7,))
        >>> options = TrackOptions(first=small, follow=small)
        >>> state = start_tracking(model, options)
        >>> state, result = track_step(model, image, state, options, box)
        >>> bool(result.success)
        True
    """
    followed = followed_face(model, image, state, options)
    again, found = None, jnp.zeros((), bool)
    if box is not None:
        there = as_box(box)
        found = followed.asks & jnp.all(jnp.isfinite(there))
        again = lax.cond(
            found,
            lambda: restart_face(model, image, there, options),
            lambda: _no_face(model, options),
        )
    state, result = finish_followed(state, followed, again, options, found=found)
    return with_template(image, state, result, options), result


def with_template(
    image: GreyImage, state: TrackerState, result: FitResult, options: TrackOptions
) -> TrackerState:
    """The state with a new picture of the face, after a good frame.

    Args:
        image: Grey values of the frame.
        state: The state from `finish_frame`.
        result: The result from `finish_frame`.
        options: The options; without `use_template` nothing is done.

    Returns:
        The state.

    Example:
        >>> options = TrackOptions(
        ...     first=FitOptions(window_sizes=(7,)), use_template=True
        ... )
        >>> state = start_tracking(model, options)
        >>> again = restart_face(model, image, box, options)
        >>> state, result = finish_frame(state, again, again, options)
        >>> with_template(image, state, result, options).template.size.shape
        (2,)
    """
    if not options.use_template:
        return state
    template = _cut(jnp.asarray(image), state.landmarks, state.params.scale)
    template = chosen(result.success, template, state.template)
    return dataclasses.replace(state, template=template)


@traced_once("large")
def _follow(
    model: CLNFModel,
    image: Array,
    image_size: Array,
    params: PDMParams,
    state: TrackerState,
    options: TrackOptions,
    large: bool,
) -> Followed:
    fit_options = _large(options) if large else options.follow
    starts = jax.tree.map(lambda x: x[None], params)
    result, _ = fit_face(model, image, image_size, starts, fit_options)
    result = _with_room(model, result, fit_options, options)
    return without_detector(state, result, options)


def _large(options: TrackOptions) -> FitOptions:
    """How a face is followed after a failure."""
    return dataclasses.replace(options.first, starts=1)


def _fit_from(
    model: CLNFModel,
    image: GreyImage,
    params: PDMParams,
    fit_options: FitOptions,
    options: TrackOptions,
) -> FitResult:
    result = fit(model, image, params=params, options=fit_options)
    return _with_room(model, result, fit_options, options)


_cut = jax.jit(cut_template)
_shift = jax.jit(template_shift)


def _shifted(image: Any, state: TrackerState, options: TrackOptions) -> PDMParams:
    """The last parameters, moved to where the face's picture is found."""
    params = state.params
    if not options.use_template:
        return params
    shift = _shift(jnp.asarray(image), state.template, state.landmarks, params.scale)
    return dataclasses.replace(params, translation=params.translation + shift)


def _with_room(
    model: CLNFModel,
    result: FitResult,
    fit_options: FitOptions,
    options: TrackOptions,
) -> FitResult:
    """The result with room for all that any of a track may have."""
    scores = _padded(result.start_log_likelihoods, options.first.num_starts)
    parts = dict(result.parts)
    if _uses_parts(options):
        for part in model.parts:
            parts.setdefault(part.name, unfitted_part(part))
    begun = result.pass_params
    if begun is None and _passes_again(options):
        last, ends = last_scale(model, fit_options), result.phase_params
        begun = result.start_params
        if last:
            begun = jax.tree.map(lambda x: x[last - 1, 1], ends)
    return dataclasses.replace(
        result, start_log_likelihoods=scores, parts=parts, pass_params=begun
    )


@partial(jax.jit, static_argnames="count")
def _padded(scores: Array, count: int) -> Array:
    missing = count - scores.shape[0]
    return jnp.pad(scores, (0, missing), constant_values=jnp.nan)


def _no_face(model: CLNFModel, options: TrackOptions) -> FitResult:
    """The result of a frame without a face."""
    return unfitted_face(
        model,
        num_starts=options.first.num_starts,
        with_parts=_uses_parts(options),
        several_passes=_passes_again(options),
    )


def _passes_again(options: TrackOptions) -> bool:
    return max(options.first.max_passes, options.follow.max_passes) > 1


def _uses_parts(options: TrackOptions) -> bool:
    return options.first.use_parts or options.follow.use_parts
