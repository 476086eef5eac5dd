"""Following any number of faces: which track is which face, with numbers that stay.

Each face has a `TrackerState` of its own. Every few frames, and when a face is lost, a
detector looks at the frame; a box that lies on no followed face begins a new one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.same_face import SAME_FACE, box_of, box_on, overlap
from jaxclnf.fitting.track import followed_face, restart_face, with_template
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import (
    Followed,
    TrackerState,
    finish_followed,
    finish_frame,
    start_tracking,
)

_TOUCHES = 0.1
"""Share of the smaller of two boxes from which on a face that was lost may be there."""


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
    detect_near: Callable[[np.ndarray], np.ndarray]
    """Looks near a box; one box per row."""
    remember: Callable[[TrackerState, FitResult], TrackerState]
    """Keeps what the next frame needs of the pixels."""


def frame_work(
    model: CLNFModel,
    grey: np.ndarray,
    options: TrackOptions,
    detect: Callable[[], np.ndarray],
    detect_near: Callable[[np.ndarray], np.ndarray],
) -> FrameWork:
    """The work on a frame, with a model.

    Args:
        model: The model.
        grey: Grey values of the frame.
        options: How faces are fitted.
        detect: Looks for all faces in this frame.
        detect_near: Looks for faces near a box.

    Returns:
        The work.

    Example:
        >>> nobody = lambda *near: np.empty((0, 4))
        >>> frame_work(model, image, TrackOptions(), nobody, nobody).detect().shape
        (0, 4)
    """
    dtype = model.pdm.mean_shape.dtype
    return FrameWork(
        start=lambda: start_tracking(model, options),
        follow=lambda state: followed_face(model, grey, state, options),
        restart=lambda box: restart_face(model, grey, box.astype(dtype), options),
        detect=detect,
        detect_near=detect_near,
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
    every `recheck_every` frames: the likelier of a new fit and the followed one stays;
    if nothing else is to be looked for, the detector looks near these faces only.
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
        >>> nobody = lambda *near: np.empty((0, 4))
        >>> work = frame_work(model, image, TrackOptions(), nobody, nobody)
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
    boxes: list[np.ndarray] = []
    lost = [not one.result.success for one in followed]
    asks = [bool(one.asks) or gone for one, gone in zip(followed, lost, strict=True)]
    if wait <= 0 or any(lost):
        boxes, wait = list(work.detect()), options.detect_every
    else:
        places = [box_of(t.state.landmarks) for t in before]
        near = zip(asks, places, strict=True)
        boxes = [box for asked, at in near if asked for box in _near(work, at)]
    taken = _taken(before, asks, boxes)
    kept = []
    for i, (old, one, track) in enumerate(
        zip(faces.tracks, followed, before, strict=True)
    ):
        restarted = work.restart(boxes[taken[i]]) if i in taken else None
        state, result = finish_followed(old.state, one, restarted, track_options)
        if int(state.failures_in_a_row) < options.max_failures and state.initialised:
            kept.append(Track(track.face_id, work.remember(state, result), result))
    free = [box for k, box in enumerate(boxes) if k not in taken.values()]
    for box in new_boxes(free, [box_of(t.state.landmarks) for t in kept]):
        fitted = work.restart(box)
        if fitted.success:
            state, result = finish_frame(work.start(), fitted, fitted, track_options)
            new.append(Track(next_id + len(new), work.remember(state, result), result))
    tracks = [*kept, *new]
    ended = doubles(
        [box_of(t.state.landmarks) for t in tracks],
        [_trust(t) for t in tracks],
    )
    return ManyFaces(
        tracks=tuple(t for i, t in enumerate(tracks) if i not in ended),
        next_id=next_id + len(new),
        frames_to_detection=wait - 1,
    )


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
    return [b for b in boxes if all(overlap(b, t) < SAME_FACE for t in tracked)]


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
        if all(overlap(boxes[i], boxes[k]) < SAME_FACE for k in stay):
            stay.append(i)
    return set(range(len(boxes))) - set(stay)


def _near(work: FrameWork, place: np.ndarray) -> list[np.ndarray]:
    """The box that lies on a face, found by looking near it."""
    boxes = work.detect_near(place)
    chosen, _ = box_on(place, boxes)
    return [] if chosen is None else [boxes[chosen]]


def _taken(
    tracks: Sequence[Track], asks: Sequence[bool], boxes: Sequence[np.ndarray]
) -> dict[int, int]:
    """Which box each face is on, of those that ask for one, by their places."""
    places = [box_of(t.state.landmarks) for t in tracks]
    pairs = []
    for i, track in enumerate(tracks):
        # One that was lost has moved; one that is followed is not to jump to another.
        least = SAME_FACE if track.result.success else _TOUCHES
        good = [
            place
            for other, place in zip(tracks, places, strict=True)
            if other.result.success and other is not track
        ]
        for k, box in enumerate(boxes):
            share = float(overlap(places[i], box))
            is_free = all(overlap(box, place) < SAME_FACE for place in good)
            if asks[i] and is_free and share >= least:
                pairs.append((-share, i, k))
    taken: dict[int, int] = {}
    for _, i, k in sorted(pairs):  # those that lie on each other most come first
        if i not in taken and k not in taken.values():
            taken[i] = k
    return taken


def _trust(track: Track) -> tuple[bool, float]:
    certainty = float(track.state.certainty)
    return bool(track.result.success), 0.0 if np.isnan(certainty) else certainty
