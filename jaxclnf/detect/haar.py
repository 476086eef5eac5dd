"""Face boxes from OpenCV's Haar cascade, in the model's convention."""

import contextlib
import functools
import threading
from pathlib import Path

import cv2
import cv2.data
import numpy as np
from jaxtyping import Float64

from jaxclnf.experts.area import check_array
from jaxclnf.fitting.model import BoxCalibration

CASCADE_NAME = "haarcascade_frontalface_alt.xml"
"""The cascade that OpenFace uses; it comes with OpenCV."""

_SCALE_STEP, _MIN_NEIGHBOURS = 1.2, 2
_MOST_PIXELS_KEPT = 1 << 22
"""Of a picture after which the cascade stays loaded."""

OPENFACE_CALIBRATION = BoxCalibration(shift=(0.0578, 0.2166), size=(0.8924, 0.8676))
"""OpenFace's numbers: the cascade frames a face from the hairline to below the mouth,
and these turn that square into a box around the landmarks."""


def detect_faces(
    image: np.ndarray,
    *,
    calibration: BoxCalibration | None = None,
    min_size: int = 50,
) -> Float64[np.ndarray, "b 4"]:
    """Finds upright, frontal faces.

    Args:
        image: A grey picture `[row, column]`, uint8.
        calibration: Where the landmarks are in the cascade's squares, as a model has it
            in `box_calibration`; OpenFace's numbers if None.
        min_size: Side of the smallest square the cascade looks at, pixels.

    Returns:
        One `(x, y, width, height)` per face in pixels, tight around the 68 landmarks
        (left outline to right outline, brows to chin); the largest first. No rows
        where no face is found.

    Raises:
        TypeError: The picture is no array.
        ValueError: The picture is not grey or not uint8, or `min_size` is not
            positive.
        FileNotFoundError: This installation of OpenCV has no cascade files.

    Mirrors:
        LandmarkDetector::DetectFaces and its correction of the cascade's boxes.

    Example:
        >>> detect_faces(np.zeros((80, 60), np.uint8)).shape
        (0, 4)
    """
    return boxes_from_haar(face_squares(image, min_size=min_size), calibration)


def boxes_from_haar(
    raw: np.ndarray, calibration: BoxCalibration | None = None
) -> Float64[np.ndarray, "b 4"]:
    """Turns the cascade's squares into boxes around the landmarks.

    Args:
        raw: One `(x, y, width, height)` per face, as the cascade gives them.
        calibration: Where the landmarks are in them; OpenFace's numbers if None.

    Returns:
        Corrected boxes, the largest first; equally large ones by their corner.

    Raises:
        TypeError: The calibration is none.

    Example:
        >>> boxes_from_haar(np.array([[100, 50, 200, 200]])).tolist()
        [[111.56, 93.32, 178.48, 173.52]]
    """
    calibration = calibration or OPENFACE_CALIBRATION
    if not isinstance(calibration, BoxCalibration):
        raise TypeError(
            f"calibration is a {type(calibration).__name__}; expected a"
            " BoxCalibration, such as model.box_calibration"
        )
    shift, shrink = calibration.shift, calibration.size
    raw = np.asarray(raw, np.float64).reshape(-1, 4)
    corner, size = raw[:, :2], raw[:, 2:]
    boxes = np.concatenate([corner + shift * size, shrink * size], axis=1)
    order = np.lexsort((boxes[:, 1], boxes[:, 0], -size.prod(axis=1)))
    return boxes[order]


def face_squares(
    image: np.ndarray, *, min_size: int = 50
) -> Float64[np.ndarray, "b 4"]:
    """Finds faces as the cascade frames them, before any correction.

    Args:
        image: A grey picture `[row, column]`, uint8.
        min_size: Side of the smallest square the cascade looks at, pixels.

    Returns:
        One `(x, y, side, side)` per face in pixels, in the cascade's order. No rows
        where no face is found.

    Raises:
        TypeError: The picture is no array.
        ValueError: The picture is not grey or not uint8, or `min_size` is not
            positive.
        FileNotFoundError: This installation of OpenCV has no cascade files.

    Example:
        >>> face_squares(np.zeros((80, 60), np.uint8)).shape
        (0, 4)
    """
    check_array(image)
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(
            "face detection needs a grey uint8 picture [row, column], not "
            f"{image.dtype} of shape {image.shape}"
        )
    if not (min_size >= 1 and min_size == int(min_size)):
        raise ValueError(
            f"min_size must be a positive whole number of pixels, not {min_size}"
        )
    if min_size > min(image.shape):
        return np.empty((0, 4))
    path = Path(cv2.data.haarcascades, CASCADE_NAME)
    # It takes 5 bytes for each pixel that it looks at, and never gives them back.
    kept = image.size <= _MOST_PIXELS_KEPT
    load = _cascade if kept else _cascade.__wrapped__
    found = load(path, threading.get_ident()).detectMultiScale(
        np.ascontiguousarray(image),
        scaleFactor=_SCALE_STEP,
        minNeighbors=_MIN_NEIGHBOURS,
        minSize=(min_size, min_size),
    )
    return np.asarray(found, np.float64).reshape(-1, 4)


@functools.lru_cache(maxsize=4)
def _cascade(path: Path, thread: int) -> cv2.CascadeClassifier:
    """The cascade: one for each thread, as it keeps the image that it looks at."""
    del thread
    cascade = None
    if path.is_file():
        with contextlib.suppress(cv2.error, SystemError):
            cascade = cv2.CascadeClassifier(str(path))
    if cascade is None or cascade.empty():
        raise FileNotFoundError(
            f"OpenCV's face cascade is missing or damaged: {path}. Reinstall "
            "opencv-python-headless (4.10 or later, below 5), or give boxes yourself."
        )
    return cascade
