"""Following any number of faces: which track is which face, with numbers that stay.

Each face has a `TrackerState` of its own. Every few frames, and when a face is lost, a
detector looks at the frame; a box that lies on no followed face begins a new one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.track import followed_face, restart_face, with_template
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import (
    Followed,
    TrackerState,
    finish_followed,
    finish_frame,
    start_tracking,
)

_SAME_FACE = 0.5
"""Share of the smaller of two boxes above which they are of one face."""


@dataclasses.dataclass(frozen=True)
class Track:
    """One face that is followed."""

    face_id: int
    """Its number, from 0 in the order of appearance; never given to another."""
    state: TrackerState
    """Where it is."""
    result: FitResult
    """The last frame's result."""


@dataclasses.dataclass(frozen=True)
class ManyFaces:
    """All faces after a frame."""

    tracks: tuple[Track, ...] = ()
    """The faces that are followed, by number."""
    next_id: int = 0
    """Number of the next new face."""
    frames_to_detection: int = 0
    """Frames that may pass before the detector looks again."""


@dataclasses.dataclass(frozen=True)
class ManyOptions:
    """Options of following many faces."""

    detect_every: int = 10
    """The detector looks at every frame of this many, and where a face was lost or is
    to be compared with a new fit, see `TrackOptions.recheck_every`."""
    max_failures: int = 4
    """A face ends after more failures in a row than this."""


class FrameWork(NamedTuple):
    """What there is to do with the pixels of one frame."""

    start: Callable[[], TrackerState]
    """Makes the state of a new face."""
    follow: Callable[[TrackerState], Followed]
    """Fits from a face's last place."""
    restart: Callable[[np.ndarray], FitResult]
    """Fits from a detector's box."""
    detect: Callable[[], np.ndarray]
    """Looks for all faces; one box per row."""
    remember: Callable[[TrackerState, FitResult], TrackerState]
    """Keeps what the next frame needs of the pixels."""


def frame_work(
    model: CLNFModel,
    grey: np.ndarray,
    options: TrackOptions,
    detect: Callable[[], np.ndarray],
) -> FrameWork:
    """The work on a frame, with a model.

    Args:
        model: The model.
        grey: Grey values of the frame.
        options: How faces are fitted.
        detect: Looks for all faces in this frame.

    Returns:
        The work.

    Example:
        >>> nobody = lambda: np.empty((0, 4))
        >>> frame_work(model, image, TrackOptions(), nobody).detect().shape
        (0, 4)
    """
    dtype = model.pdm.mean_shape.dtype
    return FrameWork(
        start=lambda: start_tracking(model, options),
        follow=lambda state: followed_face(model, grey, state, options),
        restart=lambda box: restart_face(model, grey, box.astype(dtype), options),
        detect=detect,
        remember=lambda state, result: with_template(grey, state, result, options),
    )


def track_faces(
    faces: ManyFaces,
    work: FrameWork,
    track_options: TrackOptions,
    options: ManyOptions = ManyOptions(),  # noqa: B008 (immutable)
) -> ManyFaces:
    """Follows all faces into the next frame.

    Each face is followed. If one failed, or it is time, the detector looks: a box on a
    face that failed is where that one is taken up again, a box on no face begins a new
    one, if the fit there is successful. A box on a face that is followed well is used
    every `recheck_every` frames: the likelier of a new fit and the followed one stays.
    Faces that failed too often end, and so does the less certain of two that came to
    lie on each other.

    Args:
        faces: All faces after the last frame; `ManyFaces()` before the first.
        work: What to do with the frame.
        track_options: How faces are fitted.
        options: When to look, and when to give up.

    Returns:
        All faces after this frame. A face that fails stays until it ends, with
        `result.success` false.

    Example:
        >>> nobody = lambda: np.empty((0, 4))
        >>> work = frame_work(model, image, TrackOptions(), nobody)
        >>> track_faces(ManyFaces(), work, TrackOptions()).frames_to_detection
        9
    """
    followed = [work.follow(track.state) for track in faces.tracks]
    before = [
        Track(track.face_id, one.state, one.result)
        for track, one in zip(faces.tracks, followed, strict=True)
    ]
    wait, next_id = faces.frames_to_detection, faces.next_id
    new: list[Track] = []
    boxes = np.empty((0, 4))
    asks = [bool(one.asks) or not one.result.success for one in followed]
    if wait <= 0 or any(asks):
        boxes, wait = work.detect(), options.detect_every
    kept, free = [], list(boxes)
    for old, one, track, asked in zip(
        faces.tracks, followed, before, asks, strict=True
    ):
        box = None
        if asked:
            box, free = _taken_box(track, free, before)
        restarted = None if box is None else work.restart(box)
        state, result = finish_followed(old.state, one, restarted, track_options)
        if int(state.failures_in_a_row) < options.max_failures and state.initialised:
            kept.append(Track(track.face_id, work.remember(state, result), result))
    for box in new_boxes(free, [box_of(t.state) for t in kept]):
        fitted = work.restart(box)
        if fitted.success:
            state, result = finish_frame(work.start(), fitted, fitted, track_options)
            new.append(Track(next_id + len(new), work.remember(state, result), result))
    tracks = [*kept, *new]
    ended = doubles(
        [box_of(t.state) for t in tracks],
        [_trust(t) for t in tracks],
    )
    return ManyFaces(
        tracks=tuple(t for i, t in enumerate(tracks) if i not in ended),
        next_id=next_id + len(new),
        frames_to_detection=wait - 1,
    )


def overlap(one: Float[np.ndarray, " 4"], other: Float[np.ndarray, " 4"]) -> float:
    """How much two boxes cover each other.

    Args:
        one: `(x, y, width, height)`.
        other: Another box.

    Returns:
        The common area over that of the smaller box; 0 for boxes that are not finite or
        have no area.

    Example:
        >>> overlap(np.array([0.0, 0.0, 2.0, 2.0]), np.array([1.0, 0.0, 4.0, 4.0]))
        0.5
    """
    low = np.maximum(one[:2], other[:2])
    high = np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    smaller = min(np.prod(one[2:]), np.prod(other[2:]))
    if not (np.isfinite([*one, *other]).all() and smaller > 0):
        return 0.0
    return float(np.prod(np.maximum(high - low, 0)) / smaller)


def new_boxes(
    boxes: Sequence[np.ndarray], tracked: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The boxes that lie on no followed face.

    Args:
        boxes: What a detector found.
        tracked: Boxes around the landmarks of followed faces.

    Returns:
        Those of `boxes` that cover none of the others by half or more, in order.

    Example:
        >>> one, far = np.array([0.0, 0.0, 9.0, 9.0]), np.array([50.0, 0.0, 9.0, 9.0])
        >>> len(new_boxes([one, far], [one + 1]))
        1
    """
    return [b for b in boxes if all(overlap(b, t) < _SAME_FACE for t in tracked)]


def doubles(boxes: Sequence[np.ndarray], trust: Sequence[tuple]) -> set[int]:
    """Which faces to end because another lies in the same place.

    Args:
        boxes: Boxes around the landmarks of each face, older faces first.
        trust: How far to trust each; of equals the older stays.

    Returns:
        Places of the faces to end.

    Example:
        >>> box = np.array([0.0, 0.0, 9.0, 9.0])
        >>> doubles([box, box + 1, box + 50], [(0.8,), (0.9,), (0.1,)])
        {0}
    """
    order = sorted(range(len(boxes)), key=lambda i: trust[i], reverse=True)
    stay: list[int] = []
    for i in order:  # the most trusted first; `sorted` keeps equals in their order
        if all(overlap(boxes[i], boxes[k]) < _SAME_FACE for k in stay):
            stay.append(i)
    return set(range(len(boxes))) - set(stay)


def box_of(state: TrackerState) -> Float[np.ndarray, " 4"]:
    """The box around a face.

    Args:
        state: The face.

    Returns:
        `(x, y, width, height)`, pixels; NaN where there is no face.

    Example:
        >>> np.isnan(box_of(start_tracking(model, TrackOptions()))).all().item()
        True
    """
    landmarks = np.asarray(state.landmarks, np.float64)
    low = landmarks.min(axis=0)
    return np.concatenate([low, landmarks.max(axis=0) - low])


def _taken_box(
    track: Track, free: list[np.ndarray], others: list[Track]
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The box on which a face is most likely, and the boxes that are left."""
    good = [box_of(t.state) for t in others if t.result.success and t is not track]
    place = box_of(track.state)
    near = [
        (overlap(place, box), i)
        for i, box in enumerate(free)
        if all(overlap(box, one) < _SAME_FACE for one in good)
    ]
    share, best = max(near, default=(0.0, 0))
    # A face that was lost has moved; one that is followed is not to jump to another.
    least = _SAME_FACE if track.result.success else 0.0
    if share <= 0 or share < least:
        return None, free
    return free[best], free[:best] + free[best + 1 :]


def _trust(track: Track) -> tuple[bool, float]:
    certainty = float(track.state.certainty)
    return bool(track.result.success), 0.0 if np.isnan(certainty) else certainty
