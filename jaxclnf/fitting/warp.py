"""The face taken out of its outline: a warp of the image, triangle by triangle.

As in `experts/area.py`, points are `(x, y)`, image arrays `[row, column]`, and pixel
centres are at integer coordinates.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.materialised import materialised
from jaxclnf.pytree import pytree_dataclass

_FRACTIONS = 32
"""OpenCV interpolates on a grid of 1/32 px."""

_MARGIN = 3
"""Pixels that the region of interest reaches beyond the landmarks."""


@pytree_dataclass
class FaceWarp:
    """Piecewise affine maps from a small picture of the face to the image, per view.

    The picture shows the mean face. Where a pixel lies in its triangle of landmarks
    stays the same when the triangle moves, which tells where in the image to look.
    """

    corner: Float[Array, "v 2"]
    """Position `(x, y)` of the picture's first pixel in the frame of the mean face."""
    triangles: Int[Array, "v t 3"]
    """Landmarks at the corners of each triangle."""
    alpha: Float[Array, "v t 3"]
    """`a = alpha . (1, x, y)` is how far the point `(x, y)` of the mean face is along
    the triangle's first side, from the first corner to the second."""
    beta: Float[Array, "v t 3"]
    """The same along the second side, from the first corner to the third."""
    triangle_of_pixel: Int[Array, "v h w"]
    """The triangle that each pixel lies in; -1: none, the pixel is not used."""


def region_of_interest(
    landmarks: Float[Array, "n 2"], image_size: Int[Array, " 2"]
) -> tuple[Int[Array, " 2"], Int[Array, " 2"]]:
    """The whole pixels around the landmarks that are looked at.

    Args:
        landmarks: Landmarks, finite, image pixels.
        image_size: Height and width.

    Returns:
        First pixel `(x, y)`, and the one behind the last: three pixels around the
        landmarks, cut off at the image. Outside the image the region is empty.

    Mirrors:
        The region of interest in DetectionValidator::Check, whose last row and column
        of the image never belong to it.

    Example:
        >>> corners = jnp.asarray([[1.5, 20.0], [30.9, 40.0]])
        >>> low, high = region_of_interest(corners, jnp.asarray([100, 32]))
        >>> low.tolist(), high.tolist()
        ([0, 17], [31, 43])
    """
    last = image_size[::-1].astype(jnp.int32) - 1
    # Far beyond any image; larger numbers would not fit the integers.
    limit = 1 << 24
    low = jnp.clip(landmarks.min(axis=0) - _MARGIN, -limit, limit).astype(jnp.int32)
    high = jnp.clip(landmarks.max(axis=0) + _MARGIN, -limit, limit).astype(jnp.int32)
    return jnp.clip(low, 0, last), jnp.clip(high, 0, last)


def reach_of_warp(landmarks: Float[Array, "n 2"]) -> Float[Array, " 4"]:
    """The part of the image that `warp_face` may look at.

    Args:
        landmarks: Landmarks, image pixels.

    Returns:
        `(left, top, right, bottom)`, image pixels, both ends included.

    Example:
        >>> reach_of_warp(jnp.asarray([[5.0, 20.0], [9.0, 10.0]])).tolist()
        [1.0, 6.0, 13.0, 24.0]
    """
    margin = _MARGIN + 1  # Interpolation looks one pixel further.
    low, high = landmarks.min(axis=0) - margin, landmarks.max(axis=0) + margin
    return jnp.concatenate([low, high])


def warp_face(
    warp: FaceWarp,
    view: Int[Array, ""],
    image: GreyImage,
    landmarks: Float[Array, "n 2"],
    image_size: Int[Array, " 2"],
) -> Float[Array, "h w"]:
    """Warps the face onto the mean face.

    Args:
        warp: The maps of all views.
        view: Which of them to use.
        image: Grey values of any type; may be padded on the right and at the bottom.
        landmarks: Landmarks, finite, image pixels.
        image_size: Height and width without the padding.

    Returns:
        Grey values in the type of `landmarks`, interpolated bilinearly at positions
        rounded to 1/32 px. Pixels of no triangle are 0, and so is what lies outside the
        region of interest.

    Mirrors:
        PAW::Warp and OpenCV's `remap`.

    Example:
        >>> one = FaceWarp(
        ...     corner=jnp.zeros((1, 2)),
        ...     triangles=jnp.asarray([[[0, 1, 2]]]),
        ...     alpha=jnp.asarray([[[0.0, 0.5, 0.0]]]),  # x / 2
        ...     beta=jnp.asarray([[[0.0, 0.0, 0.5]]]),  # y / 2
        ...     triangle_of_pixel=jnp.asarray([[[0, 0, 0], [0, 0, -1], [0, -1, -1]]]),
        ... )
        >>> ramp = jnp.tile(jnp.arange(20.0), (20, 1))
        >>> points = jnp.asarray([[5.0, 5.0], [9.0, 5.0], [5.0, 9.0]])
        >>> warp_face(one, jnp.asarray(0), ramp, points, jnp.asarray([20, 20]))
        Array([[5., 7., 9.],
               [5., 7., 0.],
               [5., 0., 0.]], dtype=float64)
    """
    low, high = region_of_interest(landmarks, image_size)
    positions, used = _positions(
        warp, view, landmarks - low.astype(landmarks.dtype)[None]
    )
    height, width = image.shape
    # Farther out nothing changes any more, and integers hold what is left.
    limit = 2.0 * max(height, width)
    fixed = jnp.round(_FRACTIONS * jnp.clip(positions, -limit, limit))
    fixed = materialised(fixed).astype(jnp.int32)
    fraction = (fixed % _FRACTIONS).astype(landmarks.dtype) / _FRACTIONS
    whole = fixed // _FRACTIONS
    column, row = whole[0] + low[0], whole[1] + low[1]
    right, down = fraction[0], fraction[1]
    pixels = jnp.asarray(image).reshape(-1)

    def grey(row: Array, column: Array) -> Array:
        inside = (row >= low[1]) & (row < high[1])
        inside &= (column >= low[0]) & (column < high[0])
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.where(inside, pixels[index].astype(landmarks.dtype), 0)

    upper = (1 - right) * grey(row, column) + right * grey(row, column + 1)
    lower = (1 - right) * grey(row + 1, column) + right * grey(row + 1, column + 1)
    return jnp.where(used, (1 - down) * upper + down * lower, 0)


def _positions(
    warp: FaceWarp, view: Int[Array, ""], landmarks: Float[Array, "n 2"]
) -> tuple[Float[Array, "2 h w"], Bool[Array, "h w"]]:
    """Where each pixel comes from, and whether it comes from anywhere."""
    corners = landmarks[warp.triangles[view]]
    first, second, third = corners[:, 0], corners[:, 1], corners[:, 2]
    alpha, beta = warp.alpha[view][:, :, None], warp.beta[view][:, :, None]
    # One affine map per triangle, then per pixel: in float32 the rounding to 1/32 px
    # shows in which order that is computed.
    side, other = second - first, third - first
    constant = first + side * alpha[:, 0] + other * beta[:, 0]
    per_x = side * alpha[:, 1] + other * beta[:, 1]
    per_y = side * alpha[:, 2] + other * beta[:, 2]

    triangle = warp.triangle_of_pixel[view]
    height, width = triangle.shape
    x, y = (
        warp.corner[view, i] + jnp.arange(size, dtype=landmarks.dtype)
        for i, size in enumerate((width, height))
    )
    positions = [
        constant[triangle, i]
        + per_x[triangle, i] * x[None, :]
        + per_y[triangle, i] * y[:, None]
        for i in range(2)
    ]
    return jnp.stack(positions), triangle >= 0
