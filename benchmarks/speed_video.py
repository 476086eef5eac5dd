"""Speed of following one face through a video, for `speed.py`."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

import jaxclnf
from jaxclnf.app.ahead import made_ahead
from jaxclnf.app.media import read_image
from jaxclnf.app.overlay import DrawnFace, OverlayWriter, draw_tracked
from jaxclnf.app.video import Frame, frames_of, open_video

NUM_FRAMES = 120
SIZE = 640, 480
"""Width and height, those of the reference figures."""

OPTIONS = {
    "openface": jaxclnf.TrackOptions.openface(),
    "converged": jaxclnf.TrackOptions(),
}


def made_up_frames(photograph: Path, box: np.ndarray) -> list[np.ndarray]:
    """A photograph seen by an unsteady camera, the face in the middle.

    Args:
        photograph: The photograph.
        box: `(x, y, width, height)` of the face.

    Returns:
        Frames with channels blue, green, red.
    """
    bgr = read_image(photograph)[0]
    center = box[:2] + box[2:] / 2
    frames = []
    for time_ in np.linspace(0, 4 * np.pi, NUM_FRAMES):
        angle, zoom = 4 * np.sin(time_), 1.4 + 0.1 * np.cos(0.7 * time_)
        matrix = cv2.getRotationMatrix2D(tuple(map(float, center)), angle, zoom)
        drift = 25 * np.array([np.sin(1.3 * time_), np.cos(time_)])
        matrix[:, 2] += np.array(SIZE) / 2 - center + drift
        frames.append(cv2.warpAffine(bgr, matrix, SIZE))
    return frames


def tracking(
    model: jaxclnf.CLNFModel, photograph: Path, box: np.ndarray
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Frames per second, from frames in memory and from file to file.

    Args:
        model: The model.
        photograph: What the frames show.
        box: The face in it, which takes the place of a detector.

    Yields:
        A name for each dialect, parts not fitted, and what measures it: frames per
        second without and with decoding, drawing and encoding, and the share of frames
        whose fits succeeded.
    """
    pictures = made_up_frames(photograph, box)
    first = np.concatenate([np.array(SIZE) / 2 - 0.7 * box[2:], 1.4 * box[2:]])
    first = (first + [0, 25, 0, 0]).astype(np.float32)
    for name, options in OPTIONS.items():
        without = {
            kind: dataclasses.replace(getattr(options, kind), use_parts=False)
            for kind in ("first", "follow")
        }
        options = dataclasses.replace(options, **without)
        whole = name == "openface"
        yield f"{name}, video", partial(_track, model, options, whole, pictures, first)


def _track(
    model: jaxclnf.CLNFModel,
    options: jaxclnf.TrackOptions,
    whole_sigma: bool,
    pictures: list[np.ndarray],
    first: np.ndarray,
) -> dict:
    prepared = model.prepared(*options.window_sizes, whole_sigma=whole_sigma)

    def follow(
        frame: Frame, state: jaxclnf.TrackerState
    ) -> tuple[jaxclnf.TrackerState, jaxclnf.FitResult]:
        return jaxclnf.track_frame(prepared, frame.grey, state, options, lambda: first)

    start = jaxclnf.start_tracking(prepared, options)
    with tempfile.TemporaryDirectory() as folder:
        source, drawn = Path(folder) / "source.avi", Path(folder) / "drawn.avi"
        with OverlayWriter(source, 30.0) as writer:
            for picture in pictures:
                writer.write(picture)
        frames = list(frames_of(open_video(source)))
        _in_memory(frames, start, follow)
        alone, succeeded = _in_memory(frames, start, follow)
        whole = _from_file_to_file(source, drawn, start, follow)
    return {
        "fps": round(alone, 1),
        "fps_with_files": round(whole, 1),
        "succeeded": succeeded,
    }


def _in_memory(
    frames: list[Frame], state: jaxclnf.TrackerState, follow: Callable
) -> tuple[float, float]:
    begin, good = time.perf_counter(), []
    for frame in frames:
        state, result = follow(frame, state)
        good.append(bool(result.success))
    return len(frames) / (time.perf_counter() - begin), float(np.mean(good))


def _from_file_to_file(
    source: Path, drawn: Path, state: jaxclnf.TrackerState, follow: Callable
) -> float:
    def followed(
        state: jaxclnf.TrackerState,
    ) -> Generator[tuple[Frame, jaxclnf.FitResult], None, None]:
        for frame in made_ahead(frames_of(open_video(source))):
            state, result = follow(frame, state)
            yield frame, result

    begin = time.perf_counter()
    with OverlayWriter(drawn, 30.0) as writer:
        for frame, result in made_ahead(followed(state)):
            landmarks = np.asarray(result.landmarks)
            face = DrawnFace(0, landmarks, bool(result.success))
            writer.write(draw_tracked(frame.bgr, [face]))
    return NUM_FRAMES / (time.perf_counter() - begin)
