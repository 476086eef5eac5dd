"""Looking for a face where one is known to be: a small part of the picture."""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, Float64

NEAR_SIDE = 120.0
"""How many pixels of a face are enough for a detector."""

_MARGIN = 0.5
"""What is looked at around the face, in its sides: what the cascade needs for its
squares, and for a face that is off by that much."""


def detect_near(
    detect: Callable[..., np.ndarray],
    place: Float[np.ndarray, " 4"],
    *images: np.ndarray,
    side: float = NEAR_SIDE,
) -> Float64[np.ndarray, "b 4"]:
    """Finds the faces near a box, in a tenth of the time for the whole picture.

    Args:
        detect: Finds faces in pictures: one `(x, y, width, height)` per row.
        place: The box, pixels.
        images: What `detect` looks at, all of one size `[row, column]`: the part near
            the box is handed to it.
        side: A larger face is shrunk to this many pixels before.

    Returns:
        Boxes in the whole picture; no rows where the box is not in it.

    Example:
        >>> looked_at = []
        >>> def detect(grey):
        ...     looked_at.append(grey.shape)
        ...     return np.array([[60.0, 70.0, 120.0, 110.0]])
        >>> grey = np.zeros((1080, 1920), np.uint8)
        >>> detect_near(detect, np.array([800.0, 300.0, 240.0, 240.0]), grey).tolist()
        [[800.0, 320.0, 240.0, 220.0]]
        >>> looked_at
        [(240, 240)]
    """
    place = np.asarray(place, np.float64)
    height, width = images[0].shape[:2]
    reach = (0.5 + _MARGIN) * place[2:].max()
    centre = place[:2] + place[2:] / 2
    bounds = np.array([centre - reach, centre + reach])
    if not np.isfinite(bounds).all():
        return np.empty((0, 4))
    (left, top), (right, bottom) = bounds.clip(0, [width, height]).astype(int)
    if min(right - left, bottom - top) < 1:
        return np.empty((0, 4))
    parts = [np.ascontiguousarray(i[top:bottom, left:right]) for i in images]
    size = np.array([right - left, bottom - top])
    if place[2:].max() > side:
        to = np.maximum(np.rint(size * side / place[2:].max()), 1).astype(int).tolist()
        parts = [cv2.resize(part, to, interpolation=cv2.INTER_AREA) for part in parts]
    found = np.asarray(detect(*parts), np.float64).reshape(-1, 4)
    rows, columns = parts[0].shape[:2]
    return found * np.tile(size / [columns, rows], 2) + [left, top, 0, 0]
