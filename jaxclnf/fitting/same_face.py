"""Whether two boxes lie on one face."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SAME_FACE = 0.5
"""Share of the smaller of two boxes from which on they are of one face."""


def box_of(
    landmarks: Float[Array | np.ndarray, "n 2"],
) -> Float[np.ndarray, " 4"]:
    """The box around a face that is known.

    Args:
        landmarks: Its landmarks, pixels; NaN if there is none.

    Returns:
        `(x, y, width, height)`, pixels; NaN where there is no face.

    Example:
        >>> box_of(np.array([[1.0, 2.0], [4.0, 8.0]])).tolist()
        [1.0, 2.0, 3.0, 6.0]
    """
    points = np.asarray(landmarks, np.float64)
    low = points.min(axis=0)
    return np.concatenate([low, points.max(axis=0) - low])


def overlap(
    one: Float[Array | np.ndarray, " 4"], other: Float[Array | np.ndarray, " 4"]
) -> Any:
    """How much two boxes cover each other.

    Args:
        one: `(x, y, width, height)`.
        other: Another box.

    Returns:
        The common area over that of the smaller box, an array of JAX if `one` is one;
        0 for boxes that are not finite or have no area.

    Example:
        >>> one, other = np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 4.0, 4.0]])
        >>> float(overlap(one, other))
        0.5
    """
    xp = jnp if isinstance(one, jax.Array) else np
    low = xp.maximum(one[:2], other[:2])
    high = xp.minimum(one[:2] + one[2:], other[:2] + other[2:])
    smaller = xp.minimum(xp.prod(one[2:]), xp.prod(other[2:]))
    known = xp.all(xp.isfinite(one)) & xp.all(xp.isfinite(other)) & (smaller > 0)
    common = xp.prod(xp.maximum(high - low, 0))
    return xp.where(known, common, 0) / xp.where(known, smaller, 1)


def box_on(
    place: Float[np.ndarray, " 4"], boxes: Sequence[np.ndarray] | np.ndarray
) -> tuple[int | None, float]:
    """Which of several boxes lies on a face.

    Args:
        place: The box around the face.
        boxes: What a detector found, one per row.

    Returns:
        The place of the box that covers the face most, None if none touches it; and
        the `overlap`.

    Example:
        >>> far, near = np.array([90.0, 90.0, 9.0, 9.0]), np.array([3.0, 0.0, 9.0, 9.0])
        >>> box_on(np.array([0.0, 0.0, 9.0, 9.0]), [far, near])[0]
        1
    """
    shares = [(float(overlap(place, box)), -i) for i, box in enumerate(boxes)]
    share, i = max(shares, default=(0.0, 0))
    return (-i, share) if share > 0 else (None, 0.0)
