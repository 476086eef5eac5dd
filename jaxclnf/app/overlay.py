"""Videos with landmarks drawn in."""

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from jaxclnf.app.drawing import DARK, GOOD, LIGHT, PARTS_68, SHIFT, UNCERTAIN
from jaxclnf.app.errors import MediaError
from jaxclnf.app.tables import partial_path

OVERLAY_SUFFIX = ".avi"
"""A container that every build of OpenCV can write, with Motion JPEG in it."""


class DrawnFace(NamedTuple):
    """A face to draw."""

    face_id: int
    """Its number."""
    landmarks: Float[np.ndarray, "n 2"]
    """Landmarks, pixels."""
    success: bool
    """Whether they are to be trusted: green, else amber."""


def draw_tracked(
    bgr: UInt8[np.ndarray, "h w 3"], faces: Sequence[DrawnFace]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws faces over a frame.

    Args:
        bgr: The frame; left as it is.
        faces: The faces. Landmarks that are not finite are left out.

    Returns:
        A new picture of the same size.

    Example:
        >>> face = DrawnFace(0, np.full((1, 2), 30.0), True)
        >>> draw_tracked(np.zeros((40, 40, 3), np.uint8), [face])[30, 30].tolist()
        [245, 245, 245]
    """
    canvas = bgr.copy()
    limit = 4 * max(canvas.shape[:2])
    for face in faces:
        known = np.logical_and(*np.isfinite(face.landmarks).T)
        if not known.any():
            continue
        points = np.clip(face.landmarks, -limit, limit)
        size = float(np.ptp(points[known], axis=0).max())
        thickness = max(1, round(size / 150))
        color = GOOD if face.success else UNCERTAIN
        fixed = np.round(np.where(known[:, None], points, 0) * 2**SHIFT)
        fixed = fixed.astype(np.int32)
        if len(points) == 68 and known.all():
            for ink, extra in ((DARK, 2), (color, 0)):
                for part, closed in PARTS_68.values():
                    line = [fixed[list(part)]]
                    cv2.polylines(
                        canvas,
                        line,
                        closed,
                        ink,
                        thickness + extra,
                        cv2.LINE_AA,
                        SHIFT,
                    )
        for x, y in fixed[known].tolist():
            radius = round(max(1.0, size / 120) * 2**SHIFT)
            cv2.circle(canvas, (x, y), radius, LIGHT, cv2.FILLED, cv2.LINE_AA, SHIFT)
        left, top = np.round(points[known].min(axis=0)).astype(int).tolist()
        place = (left, max(12, top - 6))
        for ink, extra in ((DARK, 2), (color, 0)):
            cv2.putText(
                canvas,
                str(face.face_id),
                place,
                cv2.FONT_HERSHEY_SIMPLEX,
                0.5,
                ink,
                1 + extra,
                cv2.LINE_AA,
            )
    return canvas


class OverlayWriter:
    """Writes a video; to be used in a `with` statement.

    Frames go to a temporary file beside it, which takes its name at the end. Where an
    exception ends it the frames so far go to `partial_path`, and the exception has a
    note that says so.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Begins with nothing; the first frame sets the size."""
        self.path, self.fps = path, fps
        self._partial = path.with_name(
            f".jaxclnf-{uuid.uuid4().hex}.part{OVERLAY_SUFFIX}"
        )
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "OverlayWriter":
        """Returns itself."""
        return self

    def write(self, bgr: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a frame.

        Args:
            bgr: The frame, of the size of the first. Where that is odd the last row or
                column is there twice, as Motion JPEG has even sizes only.

        Raises:
            MediaError: The file cannot be written.
        """
        height, width = bgr.shape[:2]
        if height % 2 or width % 2:
            more = (0, height % 2, 0, width % 2)
            bgr = cv2.copyMakeBorder(bgr, *more, cv2.BORDER_REPLICATE)
            height, width = bgr.shape[:2]
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"MJPG")
            writer = cv2.VideoWriter(
                os.path.abspath(self._partial),  # FFmpeg takes `a:b` for a protocol
                code,
                self.fps,
                (width, height),
            )
            if not writer.isOpened():
                raise MediaError(f"{self.path}: the video cannot be written")
            self._writer = writer
        self._writer.write(bgr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        """Ends the file, and gives it its name if all went well, or that of a part."""
        try:
            if self._writer is not None:
                self._writer.release()
                self._keep(error)
        except OSError as failure:
            raise MediaError(
                f"{self.path}: cannot be written ({failure.strerror})"
            ) from failure
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _keep(self, error: BaseException | None) -> None:
        if error is None:
            if not _is_whole(self._partial):  # OpenCV tells nothing
                raise MediaError(
                    f"{self.path}: cannot be written whole (is the disk full?)"
                )
            os.replace(self._partial, self.path)
            return
        kept = partial_path(self.path)
        with contextlib.suppress(OSError):  # `error` matters more
            if _is_whole(self._partial):
                os.replace(self._partial, kept)
                error.add_note(f"{kept} has the pictures so far")


def _is_whole(path: Path) -> bool:
    """Whether a video is as long as its own RIFF chunks say."""
    place, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < size:
            file.seek(place + 4)
            place += 8 + int.from_bytes(file.read(4), "little")
    return 0 < size == place
