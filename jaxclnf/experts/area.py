"""Areas of interest: the grey values around each landmark, in the reference frame.

Only here, and in `fitting/warp.py`, points `(x, y)` turn into indices `[row, column]`.
Pixel centres are at integer coordinates and everything outside the image is 0, so
padding an image with zeros on the right or at the bottom changes nothing.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jaxclnf.materialised import materialised_integers

Sampling = Literal["exact", "fixed_point"]
"""`"exact"` is smooth between pixels; `"fixed_point"` is OpenFace's 1/32 px grid."""

GreyImage = Num[Array | np.ndarray, "height width"]
"""Grey values of any type, `[row, column]`."""

_POSITION_BITS = 10  # OpenCV's warps keep positions in 1/1024 px ...
_FRACTION_BITS = 5  # ... and interpolate on a grid of 1/32 px.


def check_array(
    image: Any, name: str = "image", expected: str = "an array of grey values"
) -> None:
    """Refuses what is no array.

    Args:
        image: What was given as an image.
        name: What to call it.
        expected: What it should be.

    Raises:
        TypeError: It has no shape or no type of its entries.

    Example:
        >>> check_array(np.zeros((2, 2)))
    """
    if hasattr(image, "shape") and hasattr(image, "dtype"):
        return
    if image is None:
        raise TypeError(
            f"{name} is None; expected {expected} (cv2.imread gives None where there"
            " is no file, or none that it can read)"
        )
    raise TypeError(f"{name} is a {type(image).__name__}; expected {expected}")


def check_image(image: Any, name: str = "image") -> None:
    """Refuses what is not an image of grey values.

    Args:
        image: What was given as an image.
        name: What to call it.

    Raises:
        TypeError: It is no array, or none of real numbers.
        ValueError: It is not two-dimensional or empty.

    Example:
        >>> check_image(np.zeros((2, 2)))
    """
    check_array(image, name)
    if np.ma.isMaskedArray(image):
        raise TypeError(f"{name} is a masked array; expected one without a mask")
    if len(image.shape) != 2 or 0 in image.shape:
        raise ValueError(
            f"{name} has shape {image.shape}; expected grey values (height, width)"
        )
    kind = np.dtype(image.dtype).kind
    if kind not in "fiub" and not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"{name} is of type {image.dtype}; expected real numbers")


def areas_of_interest(
    image: GreyImage,
    centers: Float[Array, "n 2"],
    img_from_ref: Float[Array, "2 2"],
    size: int,
    *,
    sampling: Sampling = "exact",
    origin: Int[Array, " 2"] | None = None,
) -> Float[Array, "n size size"]:
    """Samples a square of the reference frame around each landmark.

    Args:
        image: Grey values of any type; the result has the type of `centers`.
        centers: Landmarks, image pixels relative to `origin`.
        img_from_ref: Scale times rotation from the reference frame to the image.
        size: Side of the square, reference pixels.
        sampling: `"exact"` interpolates bilinearly at the true position;
            `"fixed_point"` rounds positions as OpenCV's `warpAffine` does.
        origin: Whole pixels `(x, y)` to add to `centers`. Keeping `centers` small and
            this apart saves float32 digits in large photographs. Default: none.

    Returns:
        Grey values `[landmark, row, column]`; 0 where the image does not reach.

    Raises:
        TypeError: The image is no array of real numbers.
        ValueError: `sampling` is neither of the two, or the image is not
            two-dimensional or empty.

    Example:
        >>> ramp = jnp.arange(25.0).reshape(5, 5)
        >>> areas_of_interest(ramp, jnp.asarray([[2.5, 2.0]]), jnp.eye(2), 1).item()
        12.5
    """
    check_image(image)
    if sampling == "exact":
        columns, rows, right, down = _exact_positions(centers, img_from_ref, size)
    elif sampling == "fixed_point":
        columns, rows, right, down = _fixed_point_positions(centers, img_from_ref, size)
    else:
        raise ValueError(f"sampling is {sampling!r}; expected 'exact' or 'fixed_point'")
    if origin is not None:
        columns, rows = columns + origin[0], rows + origin[1]
    height, width = image.shape
    pixels = jnp.asarray(image).reshape(-1)

    def grey(row: Array, column: Array) -> Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.where(inside, pixels[index].astype(centers.dtype), 0)

    upper = (1 - right) * grey(rows, columns) + right * grey(rows, columns + 1)
    lower = (1 - right) * grey(rows + 1, columns) + right * grey(rows + 1, columns + 1)
    return (1 - down) * upper + down * lower


def reach_of_areas(
    centers: Float[Array, "n 2"], img_from_ref: Float[Array, "2 2"], size: int
) -> Float[Array, " 4"]:
    """The part of the image from which `areas_of_interest` takes grey values.

    Args:
        centers: Landmarks, image pixels.
        img_from_ref: Scale times rotation from the reference frame to the image.
        size: Side of each square, reference pixels.

    Returns:
        `(left, top, right, bottom)`, image pixels, both ends included.

    Example:
        >>> reach_of_areas(jnp.asarray([[10.0, 20.0]]), jnp.eye(2), 5).tolist()
        [7.0, 17.0, 13.0, 23.0]
    """
    half = jnp.sum(jnp.abs(img_from_ref), axis=1) * jnp.asarray((size - 1) / 2)
    half = half.astype(centers.dtype) + 1  # Interpolation looks one pixel further.
    return jnp.concatenate([centers.min(axis=0) - half, centers.max(axis=0) + half])


def join_reach(
    one: Float[Array, "*k 4"], other: Float[Array, "*k 4"]
) -> Float[Array, "*k 4"]:
    """The smallest box around two, NaN counting as nothing.

    Args:
        one: `(left, top, right, bottom)`.
        other: Likewise.

    Returns:
        The box around both.

    Example:
        >>> one, other = jnp.asarray([0.0, 0, 1, 1]), jnp.asarray([-1.0, 2, 0, 3])
        >>> join_reach(one, other).tolist()
        [-1.0, 0.0, 1.0, 3.0]
    """
    low = jnp.fmin(one[..., :2], other[..., :2])
    return jnp.concatenate([low, jnp.fmax(one[..., 2:], other[..., 2:])], axis=-1)


def _exact_positions(
    centers: Float[Array, "n 2"], img_from_ref: Float[Array, "2 2"], size: int
) -> tuple[Array, Array, Array, Array]:
    offsets = jnp.arange(size, dtype=centers.dtype) - (size - 1) / 2
    u, v = offsets[None, None, :], offsets[None, :, None]
    a = img_from_ref
    x = centers[:, 0, None, None] + (a[0, 0] * u + a[0, 1] * v)
    y = centers[:, 1, None, None] + (a[1, 0] * u + a[1, 1] * v)
    left, top = jnp.floor(x), jnp.floor(y)
    return left.astype(jnp.int32), top.astype(jnp.int32), x - left, y - top


def _fixed_point_positions(
    centers: Float[Array, "n 2"], img_from_ref: Float[Array, "2 2"], size: int
) -> tuple[Array, Array, Array, Array]:
    n = centers.shape[0]
    a, b = img_from_ref[0, 0], -img_from_ref[0, 1]
    half = jnp.asarray((size - 1) / 2, centers.dtype)
    # Corner of the area in the image; the landmark lies in its middle.
    corner_x = centers[:, 0] - a * half + b * half
    corner_y = centers[:, 1] - a * half - b * half
    steps = jnp.arange(size, dtype=jnp.int32)
    # Columns and rows are rounded apart and added as integers, as OpenCV does.
    rounded = jnp.concatenate(
        [
            _round_fixed(a, steps)[None],
            _round_fixed(b, steps)[None],
            _round_fixed(-b, steps, corner_x),
            _round_fixed(a, steps, corner_y),
        ]
    )
    rounded = materialised_integers(rounded, centers.dtype)
    along, across = rounded[:2, None, None, :], rounded[2:].reshape(2, n, size, 1)
    fraction = 1 << _FRACTION_BITS
    shift = _POSITION_BITS - _FRACTION_BITS
    x, y = (along + across + (1 << (shift - 1))) >> shift
    return (
        x >> _FRACTION_BITS,
        y >> _FRACTION_BITS,
        (x & (fraction - 1)).astype(centers.dtype) / fraction,
        (y & (fraction - 1)).astype(centers.dtype) / fraction,
    )


def _round_fixed(
    slope: Array, steps: Int[Array, " s"], corner: Float[Array, " n"] | None = None
) -> Int[Array, "..."]:
    """`round(1024 * (slope * steps + corner))` as if in double precision.

    OpenCV computes it in double from float32 numbers. Whole and fractional parts are
    carried apart here, which keeps every digit that float32 products would lose.
    """
    slope = slope * (1 << _POSITION_BITS)
    whole = jnp.floor(slope)
    fraction = (slope - whole) * steps.astype(slope.dtype)
    total = whole.astype(jnp.int32) * steps
    if corner is not None:
        corner = corner * (1 << _POSITION_BITS)
        corner_whole = jnp.floor(corner)
        total = corner_whole.astype(jnp.int32)[:, None] + total[None, :]
        fraction = (corner - corner_whole)[:, None] + fraction[None, :]
    carry = jnp.floor(fraction)
    total, fraction = total + carry.astype(jnp.int32), fraction - carry
    # Half goes to the even neighbour, as with the C function lrint.
    up = (fraction > 0.5) | ((fraction == 0.5) & (total % 2 == 1))
    return total + up.astype(jnp.int32)
