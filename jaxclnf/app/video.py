"""Frames of a video file, or of a folder of photographs, with their times."""

import dataclasses
import math
import os
import re
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxclnf.app.errors import MediaError
from jaxclnf.app.media import (
    FOLDER_SUFFIXES,
    MAX_SIDE,
    read_image,
)
from jaxclnf.app.streams import decoder_messages, say

_DEFAULT_FPS = 30.0
"""For folders, and for videos that do not say."""

_FEW_MISSING = 0.02
"""Many containers only guess how many frames they hold. A video that ends sooner by no
more than this share, and without a complaint of the decoder, is whole."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture of a video."""

    number: int
    """Counted from 1."""
    timestamp: float
    """Seconds from the first frame: frames before it over frames per second."""
    bgr: UInt8[np.ndarray, "h w 3"]
    """The picture with channels blue, green, red."""
    grey: UInt8[np.ndarray, "h w"]
    """The picture in grey."""


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that can be read; its frames come from `frames_of`."""

    path: Path
    """The file, or the folder."""
    fps: float
    """Frames per second."""
    num_frames: int
    """How many there should be; 0 if that is not known."""
    images: tuple[Path, ...] = ()
    """The photographs of a folder, in order; none for a file."""


def open_video(path: str | os.PathLike[str], *, fps: float | None = None) -> Video:
    """Looks at a video before anything takes time.

    Args:
        path: A video in any format that OpenCV knows, or a folder, whose .jpg, .jpeg,
            .png and .bmp files are its frames in the order of their names.
        fps: Frames per second; what the file says, or 30, if None.

    Returns:
        The video.

    Raises:
        MediaError: It cannot be read, is no video or has no frames; the message names
            the file.

    Example:
        >>> import tempfile
        >>> from jaxclnf.app.media import write_png
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_png(Path(folder, "1.png"), np.zeros((2, 3, 3), np.uint8))
        ...     video = open_video(folder)
        >>> video.fps, video.num_frames
        (30.0, 1)
    """
    path = Path(path)
    if os.path.isdir(path):
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise MediaError(f"{path}: cannot be read ({error.strerror})") from error
        images = tuple(
            file
            for file in files
            if file.suffix.lower() in FOLDER_SUFFIXES
            and not file.name.startswith(".")
            and not file.is_dir()
        )
        if not images:
            raise MediaError(
                f"{path}: found no frame in this folder; expected files"
                f" {', '.join(FOLDER_SUFFIXES)}"
            )
        _look_at_order(images)
        return Video(path, fps or _DEFAULT_FPS, len(images), images)
    _check_file(path)
    with decoder_messages() as messages:
        capture = cv2.VideoCapture(_name(path))
        is_open = capture.isOpened()
        told = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        capture.release()
    if not is_open:
        reason = f" ({messages[-1]})" if messages else ""
        raise MediaError(
            f"{path}: not a video of a known format, or the beginning of one{reason}"
        )
    usual = told if math.isfinite(told) and told > 0 else _DEFAULT_FPS
    is_known = math.isfinite(count) and count > 0
    return Video(path, fps or usual, int(count) if is_known else 0)


def _look_at_order(frames: Sequence[Path]) -> None:
    """Says so if frames, in the order of their names, are not in that of numbers."""
    numbers = [re.findall(r"\d+", frame.stem)[-1:] for frame in frames]
    for before, after, (one, other) in zip(
        frames, frames[1:], pairwise(numbers), strict=False
    ):
        if one and other and int(one[0]) > int(other[0]):
            say(
                f"jaxclnf: {before.parent}: frames follow each other by name,"
                f" {before.name} before {after.name}: expected numbers of one length"
            )
            return


def frames_of(video: Video) -> Generator[Frame, None, None]:
    """Reads the frames one by one.

    Args:
        video: From `open_video`.

    Yields:
        The frames.

    Raises:
        MediaError: There is no frame, or, once those before were read, one that is
            damaged or of another size, or the file ends too soon.

    Example:
        >>> import tempfile
        >>> from jaxclnf.app.media import write_png
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.png"):
        ...         write_png(Path(folder, name), np.zeros((2, 3, 3), np.uint8))
        ...     [frame.timestamp for frame in frames_of(open_video(folder, fps=10.0))]
        [0.0, 0.1]
    """
    pictures = _photographs(video) if video.images else _decoded(video)
    size, number = None, 0
    for number, bgr in enumerate(pictures, start=1):
        shape = bgr.shape[:2]
        if max(shape) > MAX_SIDE:
            raise MediaError(
                f"{video.path}: frames of {shape[1]} x {shape[0]} pixels; at most"
                f" {MAX_SIDE} a side are used"
            )
        if size not in (None, shape):
            place = f"{video.path}, frame {number}"
            if video.images:
                place = f"{video.images[number - 1]}, frame {number}"
            raise MediaError(
                f"{place}: found {shape[1]} x {shape[0]} pixels; expected"
                f" {size[1]} x {size[0]} as in the first"
            )
        size = shape
        grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
        yield Frame(number, (number - 1) / video.fps, bgr, grey)
    if number == 0:
        raise MediaError(f"{video.path}: the video has no frame that can be read")


def _name(path: Path) -> str:
    """The name to open a file by: FFmpeg takes a bare `a:b.mp4` for a protocol."""
    return os.path.abspath(path)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise MediaError(f"{path}: is not a regular file")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise MediaError(f"{path}: the file is empty")


def _photographs(video: Video) -> Iterator[np.ndarray]:
    for image in video.images:
        yield read_image(image)[0]


def _decoded(video: Video) -> Iterator[np.ndarray]:
    with decoder_messages():  # said once already, when the video was looked at
        capture = cv2.VideoCapture(_name(video.path))
    count, complaint, first_complaint = 0, "", ""
    try:
        while True:
            # The decoder conceals what is broken, and says so on the error stream.
            with decoder_messages() as messages:
                is_read, bgr = capture.read()
            if messages:
                complaint = messages[-1]
                first_complaint = first_complaint or f"{complaint}, frame {count + 1}"
            elif is_read:
                complaint = ""
            if not is_read:
                break
            count += 1
            yield bgr
    finally:
        capture.release()
    missing = video.num_frames - count
    told = f" of {video.num_frames}" if video.num_frames else ""
    damaged = f"{video.path}: damaged or cut off; read {count}{told} frames,"
    if count and (complaint or missing > max(2, _FEW_MISSING * video.num_frames)):
        reason = f" ({complaint})" if complaint else ""
        raise MediaError(f"{damaged} the last may be broken{reason}")
    if count and missing > 0 and first_complaint:
        raise MediaError(
            f"{damaged} from the first damage on their numbers may be too low"
            f" ({first_complaint})"
        )
