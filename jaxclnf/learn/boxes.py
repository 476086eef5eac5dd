"""Where landmarks are in the squares of the face detector: learnt from labels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from jaxclnf.detect.haar import face_squares
from jaxclnf.fitting.model import BoxCalibration
from jaxclnf.learn.faces import LabelledFaces, tight_box

FARTHEST_CENTRE = 0.4
"""A square whose centre is farther from that of a face's landmarks, in width or height
of their box, does not frame that face."""

SIZE_LIMITS = (0.6, 2.2)
"""So large is a square that frames a face, over the larger side of its box."""

MIN_MATCHED = 5
"""Fewest faces from which a calibration is learnt."""

_SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class CalibratedBoxes(NamedTuple):
    """What was learnt about the detector's squares."""

    calibration: BoxCalibration
    """The numbers that `detect_faces` takes."""
    share: float
    """Share of the faces that a square frames."""
    spread: Float64[np.ndarray, " 4"]
    """Standard deviation, estimated robustly, of what remains: centre x and y as
    fractions of the square, logarithms of width and height."""


def calibrate_boxes(
    raw_boxes: Float[np.ndarray, "f 4"], landmark_boxes: Float[np.ndarray, "f 4"]
) -> CalibratedBoxes:
    """Learns how boxes around landmarks follow from the detector's squares.

    Centre and size, as fractions of the square, are medians over the faces whose square
    frames them; other squares are false detections and have no say.

    Args:
        raw_boxes: A square `(x, y, width, height)` of each face, see
            `squares_of_faces`; NaN where there is none.
        landmark_boxes: The tight boxes of the landmarks, in the same pixels.

    Returns:
        The calibration, the share of faces with a square, and the remaining spread.

    Raises:
        ValueError: Fewer than `MIN_MATCHED` faces have a square.

    Example:
        >>> boxes = np.array([[10.0, 20.0, 90.0, 80.0]] * 5)
        >>> squares = np.array([[0.0, 0.0, 100.0, 100.0]] * 5)
        >>> calibrate_boxes(squares, boxes).calibration
        BoxCalibration(shift=(0.1, 0.2), size=(0.9, 0.8))
    """
    raw, boxes = np.asarray(raw_boxes, float), np.asarray(landmark_boxes, float)
    matched = frames_face(raw, boxes)
    if matched.sum() < MIN_MATCHED:
        raise ValueError(
            f"found {matched.sum()} of {len(matched)} faces with a square of the face"
            f" detector, expected at least {MIN_MATCHED}, or no calibration"
        )
    raw, boxes = raw[matched], boxes[matched]
    side = raw[:, 2:]
    centre = (boxes[:, :2] + boxes[:, 2:] / 2 - raw[:, :2]) / side
    log_size = np.log(boxes[:, 2:] / side)
    # The centre, not the corner: the corner's error has a part of the size's.
    parts = np.concatenate([centre, log_size], axis=1)
    middle = np.median(parts, axis=0)
    spread = _SIGMA_OF_MAD * np.median(np.abs(parts - middle), axis=0)
    # Four digits are far below the spread, and are what people like to read.
    size = np.round(np.exp(middle[2:]), 4)
    shift = np.round(middle[:2] - size / 2, 4)
    calibration = BoxCalibration(
        shift=(float(shift[0]), float(shift[1])), size=(float(size[0]), float(size[1]))
    )
    return CalibratedBoxes(calibration, float(matched.mean()), spread)


def frames_face(
    squares: Float[np.ndarray, "*b 4"], boxes: Float[np.ndarray, "*c 4"]
) -> np.ndarray:
    """Tells squares around faces from false detections.

    Args:
        squares: Squares of the detector, `(x, y, width, height)`; may be NaN.
        boxes: A tight box of landmarks for each, or one for all.

    Returns:
        Whether each square frames that face: its centre is near the landmarks' and its
        size is plausible.

    Example:
        >>> box = np.array([10.0, 20.0, 90.0, 80.0])
        >>> frames_face(np.array([[0.0, 0, 100, 100], [70, 0, 100, 100]]), box)
        array([ True, False])
    """
    apart = np.abs(_centres(squares) - _centres(boxes))
    near = (apart < FARTHEST_CENTRE * boxes[..., 2:]).all(axis=-1)
    size = squares[..., 2:].max(axis=-1) / boxes[..., 2:].max(axis=-1)
    return near & (size > SIZE_LIMITS[0]) & (size < SIZE_LIMITS[1])


def squares_of_faces(
    faces: LabelledFaces, *, min_size: int = 50
) -> tuple[Float64[np.ndarray, "f 4"], Float64[np.ndarray, "f 4"]]:
    """Runs the face detector on labelled faces.

    Args:
        faces: Faces.
        min_size: Side of the smallest square the detector looks at, pixels.

    Returns:
        For each face the square that frames it, NaN if there is none and the nearest
        if there are several, and the tight box of its known labels; what
        `calibrate_boxes` takes.

    Raises:
        ValueError: A picture is not grey or not uint8, or `min_size` is not positive.
        FileNotFoundError: This installation of OpenCV has no cascade files.

    Example:
        >>> points = np.array([[[5.0, 5.0], [60.0, 70.0]]])
        >>> blank = np.zeros((80, 70), np.uint8)
        >>> one = LabelledFaces(("a",), (blank,), points, np.zeros((1, 2)))
        >>> squares_of_faces(one)
        (array([[nan, nan, nan, nan]]), array([[ 5.,  5., 55., 65.]]))
    """
    known = np.isfinite(faces.spread)
    pairs = zip(faces.landmarks, known, strict=True)
    boxes = np.stack([tight_box(labels[usable]) for labels, usable in pairs])
    squares = np.full_like(boxes, np.nan)
    for i, (image, box) in enumerate(zip(faces.images, boxes, strict=True)):
        found = face_squares(image, min_size=min_size)
        found = found[frames_face(found, box)]
        if len(found):
            apart = np.linalg.norm(_centres(found) - _centres(box), axis=1)
            squares[i] = found[apart.argmin()]
    return squares, boxes


def box_off(
    rng: np.random.Generator,
    landmarks: Float[np.ndarray, "n 2"],
    shift: float,
    growth: float,
) -> Float64[np.ndarray, " 4"]:
    """A box that is not quite around a face, as those of a detector.

    Args:
        rng: Draws the errors.
        landmarks: Landmarks of the face, pixels.
        shift: Standard deviation of the box's shift along each axis, as a fraction of
            its size there.
        growth: Standard deviation of its logarithmic size.

    Returns:
        `(x, y, width, height)`.

    Example:
        >>> corners = np.asarray([[10.0, 20.0], [40.0, 70.0]])
        >>> box_off(np.random.default_rng(0), corners, 0.0, 0.0).tolist()
        [10.0, 20.0, 30.0, 50.0]
    """
    low, size = landmarks.min(axis=0), np.ptp(landmarks, axis=0)
    centre = low + size / 2 + shift * rng.normal(size=2) * size
    wanted = size * np.exp(growth * rng.normal())
    return np.concatenate([centre - wanted / 2, wanted])


def _centres(boxes: np.ndarray) -> np.ndarray:
    return boxes[..., :2] + boxes[..., 2:] / 2
