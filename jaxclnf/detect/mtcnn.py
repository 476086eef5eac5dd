"""Face boxes from a cascade of three convolutional networks (MTCNN).

Zhang, Zhang, Li and Qiao, "Joint face detection and alignment using multitask cascaded
convolutional networks", IEEE Signal Processing Letters 23 (2016).
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from jaxclnf.detect.mtcnn_network import (
    MTCNN,
    ONET_SIDE,
    PNET_SIDE,
    PNET_STRIDE,
    RNET_SIDE,
    Layer,
    apply_network,
)
from jaxclnf.experts.area import check_array

# From the last network's box to the one around the landmarks: corner and size.
_BOX_SHIFT, _BOX_SIZE = (-0.0075, 0.2459), (1.0323, 0.7751)

_PYRAMID_FACTOR = 0.709
_THRESHOLDS = (0.6, 0.7, 0.7)

# Limits to the memory that one application of a network takes, a few ten megabytes.
_BAND_PIXELS = 1 << 17
_BATCH_PIXELS = 1 << 16


def detect_faces_mtcnn(
    networks: MTCNN, image: np.ndarray, *, min_size: int = 60
) -> tuple[Float64[np.ndarray, "b 4"], Float64[np.ndarray, " b"]]:
    """Finds faces, turned and covered ones too.

    Args:
        networks: The three networks, from `load_mtcnn`.
        image: A colour picture `[row, column, channel]` with its channels in the order
            blue, green, red, or a grey one `[row, column]`; uint8.
        min_size: Side of the smallest square that is looked at, pixels, at least 12.
            Faces may be half as large.

    Returns:
        Two arrays, the most certain face first; no rows where no face is found.

        - One `(x, y, width, height)` per face in pixels, tight around the 68 landmarks
          (left outline to right outline, brows to chin). It may reach beyond the
          picture.
        - How sure the last network is, from 0.7 to 1.

    Raises:
        TypeError: The picture is no array.
        ValueError: The picture is neither grey nor of three channels, or not uint8, or
            `min_size` is too small.

    Mirrors:
        FaceDetectorMTCNN::DetectFaces and its correction of the boxes.

    Example:
        >>> from jaxclnf.detect.mtcnn_network import Dense
        >>> no_face = np.array([1, 0, 0, 0, 0, 0], np.float32)
        >>> blind = (Dense(weights=np.zeros((3, 6), np.float32), bias=no_face),)
        >>> networks = MTCNN(pnet=blind, rnet=blind, onet=blind)
        >>> boxes, confidences = detect_faces_mtcnn(networks, np.zeros((80, 60), "u1"))
        >>> boxes.shape, confidences.shape
        ((0, 4), (0,))
    """
    _check(image, min_size)
    if image.ndim == 2:
        image = np.broadcast_to(image[..., None], (*image.shape, 3))
    boxes = _squares(_proposals(networks.pnet, image, min_size))
    boxes, scores, offsets = _judge(
        networks.rnet, image, boxes, RNET_SIDE, _THRESHOLDS[1]
    )
    keep = suppress(boxes, scores, 0.7)
    boxes = _squares(_corrected(boxes[keep], offsets[keep]))
    boxes, scores, offsets = _judge(
        networks.onet, image, boxes, ONET_SIDE, _THRESHOLDS[2]
    )
    # The patch had one more row and column than the box, and so it is corrected.
    boxes[:, 2:] += 1
    boxes = _corrected(boxes, offsets)
    keep = suppress(boxes, scores, 0.7, of_smaller=True)
    return boxes_from_mtcnn(boxes[keep]), scores[keep]


def boxes_from_mtcnn(raw: np.ndarray) -> Float64[np.ndarray, "b 4"]:
    """Turns the last network's boxes into boxes around the landmarks.

    Args:
        raw: One `(x, y, width, height)` per face.

    Returns:
        Corrected boxes, in the same order.

    Example:
        >>> boxes_from_mtcnn(np.array([[100, 50, 100, 200]])).round(2).tolist()
        [[99.25, 99.18, 103.23, 155.02]]
    """
    raw = np.asarray(raw, np.float64).reshape(-1, 4)
    corner, size = raw[:, :2], raw[:, 2:]
    corner = corner + np.array(_BOX_SHIFT) * size
    return np.concatenate([corner, np.array(_BOX_SIZE) * size], axis=1)


def suppress(
    boxes: Float[np.ndarray, "b 4"],
    scores: Float[np.ndarray, " b"],
    threshold: float,
    *,
    of_smaller: bool = False,
) -> Int[np.ndarray, " kept"]:
    """Which boxes remain when those that overlap a better one are left out.

    Args:
        boxes: One `(x, y, width, height)` each; they are rounded to whole pixels.
        scores: How good each is.
        threshold: Largest overlap allowed: the common area as a fraction.
        of_smaller: Take it as a fraction of the smaller box, not of both together.

    Returns:
        Indices of the boxes that remain, the best first; the earlier one first where
        scores are equal.

    Example:
        >>> boxes = np.array([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 0, 10, 10]])
        >>> suppress(boxes, np.array([0.7, 0.9, 0.8]), 0.5).tolist()
        [1, 2]
    """
    low = np.rint(boxes[:, :2])
    size = np.rint(boxes[:, 2:])
    high, area = low + size, size.prod(axis=1)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        common = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        common = np.maximum(common, 0).prod(axis=1)
        whole = (
            np.minimum(area[best], area[left])
            if of_smaller
            else area[best] + area[left] - common
        )
        left = left[common <= threshold * whole]
    return np.array(kept, np.intp)


def _check(image: np.ndarray, min_size: int) -> None:
    check_array(image)
    is_grey_or_colour = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not is_grey_or_colour or image.dtype != np.uint8:
        raise ValueError(
            "face detection needs a uint8 picture, [row, column] or [row, column, 3],"
            f" not {image.dtype} of shape {image.shape}"
        )
    if min_size < PNET_SIDE:
        raise ValueError(
            f"min_size must be at least {PNET_SIDE} pixels, not {min_size}"
        )


# The first network: boxes from the whole picture, at every size.


def _proposals(
    pnet: Sequence[Layer], image: np.ndarray, min_size: int
) -> Float64[np.ndarray, "b 4"]:
    boxes, scores, offsets = [np.empty((0, 4))], [np.empty(0)], [np.empty((0, 4))]
    for scale, level in _pyramid(image, min_size):
        outputs = _slide(pnet, level)
        probabilities, found = _faces(outputs, _THRESHOLDS[0])
        row, column = np.nonzero(found)
        corner = PNET_STRIDE * np.stack([column, row], axis=1) + 1
        # In the whole picture, from the first pixel of the square to the last.
        first = np.trunc(corner / scale)
        last = np.trunc((corner + PNET_SIDE - 1) / scale)
        found_boxes = np.concatenate([first, last - first], axis=1)
        keep = suppress(found_boxes, probabilities[found], 0.5)
        boxes.append(found_boxes[keep])
        scores.append(probabilities[found][keep])
        offsets.append(outputs[found][keep, 2:6].astype(np.float64))
    of_all = np.concatenate(boxes)
    keep = suppress(of_all, np.concatenate(scores), 0.7)
    return _corrected(of_all[keep], np.concatenate(offsets)[keep])


def _pyramid(
    image: np.ndarray, min_size: int
) -> Iterator[tuple[float, Float32[np.ndarray, "height width 3"]]]:
    """The picture ever smaller, until the shorter side is what the network sees."""
    height, width = image.shape[:2]
    if min(height, width) < min_size:
        return
    num_scales = 1 + math.floor(
        math.log(min_size / min(height, width)) / math.log(_PYRAMID_FACTOR)
    )
    scales = [PNET_SIDE / min_size * _PYRAMID_FACTOR**i for i in range(num_scales)]
    levels = [
        np.empty((math.ceil(height * scale), math.ceil(width * scale), 3), np.float32)
        for scale in scales
    ]
    # One channel at a time as float32, which is four times as large as the uint8.
    for channel in range(3):
        plane = image[..., channel].astype(np.float32)
        for level in levels:
            level[..., 2 - channel] = cv2.resize(plane, level.shape[1::-1])
    for scale, level in zip(scales, levels, strict=True):
        yield scale, _normalised(level)


def _slide(
    pnet: Sequence[Layer], level: Float32[np.ndarray, "height width 3"]
) -> Float32[np.ndarray, "rows columns outputs"]:
    """The first network's outputs at all its positions, computed in bands of rows."""
    height, width, _ = level.shape
    rows = max(_BAND_PIXELS // (PNET_STRIDE * width), 1)
    band = PNET_STRIDE * (rows - 1) + PNET_SIDE
    # The last square may lack one row: the pooling layer fills it in.
    starts = range(0, height - PNET_SIDE + PNET_STRIDE, PNET_STRIDE * rows)
    bands = [apply_network(pnet, level[None, y : y + band])[0] for y in starts]
    return np.concatenate(bands)


# The other two: one verdict for each square of the picture.


def _judge(
    network: Sequence[Layer],
    image: np.ndarray,
    boxes: Float64[np.ndarray, "b 4"],
    side: int,
    threshold: float,
) -> tuple[
    Float64[np.ndarray, "k 4"], Float64[np.ndarray, " k"], Float64[np.ndarray, "k 4"]
]:
    """The boxes that a network takes for faces, its scores and its corrections."""
    scores, offsets, kept = [np.empty(0)], [np.empty((0, 4))], [np.empty((0, 4))]
    batch = max(_BATCH_PIXELS // side**2, 1)
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        patches = _normalised(_patches(image, some, side))
        outputs = apply_network(network, patches).reshape(len(some), -1)
        probabilities, found = _faces(outputs, threshold)
        kept.append(some[found])
        scores.append(probabilities[found])
        offsets.append(outputs[found, 2:6].astype(np.float64))
    return np.concatenate(kept), np.concatenate(scores), np.concatenate(offsets)


def _patches(
    image: np.ndarray, boxes: Float64[np.ndarray, "b 4"], side: int
) -> Float32[np.ndarray, "b side side 3"]:
    """Squares of the picture, red first, at a new size; black beyond its border.

    As `cv2.resize` would do it, but from eight-bit pixels and without the square at its
    full size. A square has one more row and column than its box, before the first.
    """
    size = boxes[:, 2:3] + 1
    within = (np.arange(side) + 0.5) * (size / side) - 0.5
    low = np.floor(within)
    fraction = (within - low).astype(np.float32)
    result = np.zeros((len(boxes), side, side, 3), np.float32)
    for down in (0, 1):
        rows, in_rows = _pixels(boxes[:, 1:2], low + down, size, image.shape[0])
        weight_down = (fraction if down else 1 - fraction) * in_rows
        for across in (0, 1):
            columns, inside = _pixels(boxes[:, :1], low + across, size, image.shape[1])
            weight = (fraction if across else 1 - fraction) * inside
            pixels = image[rows[:, :, None], columns[:, None, :], ::-1]
            weights = weight_down[:, :, None] * weight[:, None, :]
            result += weights[..., None] * pixels.astype(np.float32)
    return result


def _pixels(
    start: Float64[np.ndarray, "b 1"],
    within: Float64[np.ndarray, "b side"],
    size: Float64[np.ndarray, "b 1"],
    limit: int,
) -> tuple[Int[np.ndarray, "b side"], Bool[np.ndarray, "b side"]]:
    """Rows or columns of the picture, and whether they are within it."""
    place = start - 1 + np.clip(within, 0, size - 1)
    inside = (place >= 0) & (place < limit)
    return np.clip(place, 0, limit - 1).astype(np.intp), inside


# What all have in common.


def _normalised(level: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    return (level - np.float32(127.5)) * np.float32(1 / 128)


def _faces(
    outputs: Float32[np.ndarray, "*positions outputs"], threshold: float
) -> tuple[Float64[np.ndarray, "*positions"], Bool[np.ndarray, "*positions"]]:
    """Probability of a face at each position, and where there is one."""
    outputs = outputs[..., :6].astype(np.float64)
    usable = np.isfinite(outputs).all(axis=-1)
    against = np.full(usable.shape, np.inf)
    np.subtract(outputs[..., 0], outputs[..., 1], out=against, where=usable)
    probabilities = np.exp(-np.logaddexp(0, against))
    return probabilities, probabilities >= threshold


def _corrected(
    boxes: Float64[np.ndarray, "b 4"], offsets: Float64[np.ndarray, "b 4"]
) -> Float64[np.ndarray, "b 4"]:
    """The boxes with their edges moved by fractions of their size."""
    corner, size = boxes[:, :2], boxes[:, 2:]
    first = corner + offsets[:, :2] * size
    last = corner + size + offsets[:, 2:] * size
    return np.concatenate([first, last - first], axis=1)


def _squares(boxes: Float64[np.ndarray, "b 4"]) -> Float64[np.ndarray, "kept 4"]:
    """Squares of whole pixels with the same centres; none for a box without pixels."""
    corner, size = boxes[:, :2], boxes[:, 2:]
    side = size.max(axis=1, keepdims=True)
    square = np.trunc(np.concatenate([corner + (size - side) / 2, side, side], axis=1))
    return square[square[:, 2] >= 1]
