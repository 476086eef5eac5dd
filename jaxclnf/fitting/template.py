"""Where a face went since the last frame, from its grey values alone.

A small picture of the face, cut out of the last good frame, is looked for around the
face's last place; the best match gives a shift of the whole face. All arrays have fixed
sizes, so that it compiles once: unused rows and columns are zero.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Num

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import bounding_box

_SIDE = 96
"""Longest side of a template. At `_SCALE` that is a box of 32 cm, more than a face."""

_SCALE = 0.3
"""Size of a face in its template, pixels per millimetre; smaller ones stay as they
are."""


@pytree_dataclass
class Template:
    """A small picture of a face."""

    pixels: Float[Array, "*b t t"]
    """Grey values, from the top left corner; what is not used is 0."""
    size: Int[Array, "*b 2"]
    """Width and height of what is used; 0 where there is no picture."""


def no_template(dtype: jnp.dtype, *, room: bool) -> Template:
    """A template without a picture.

    Args:
        dtype: Of the pixels.
        room: Whether there is room for one to come (static).

    Returns:
        The template.

    Example:
        >>> no_template(jnp.zeros(()).dtype, room=False).pixels.shape
        (0, 0)
    """
    side = _SIDE if room else 0
    return Template(pixels=jnp.zeros((side, side), dtype), size=jnp.zeros(2, jnp.int32))


def cut_template(
    image: Num[Array, "h w"], landmarks: Float[Array, "n 2"], scale: Float[Array, ""]
) -> Template:
    """Cuts the box around a face out of a frame.

    Args:
        image: Grey values.
        landmarks: The face, pixels.
        scale: Its size, pixels per millimetre.

    Returns:
        The picture at 0.3 pixels per millimetre, or as it is where that is larger.

    Mirrors:
        UpdateTemplate.

    Example:
        >>> found = cut_template(jnp.asarray(image), landmarks, params.scale)
        >>> found.pixels.shape, bool((found.size > 30).all())
        ((96, 96), True)
    """
    low, high = _box(image, landmarks)
    zoom = jnp.minimum(1, _SCALE / scale)
    size = jnp.clip(jnp.round((high - low) * zoom), 0, _SIDE).astype(jnp.int32)
    pixels = _sampled(image, low, zoom, size, _SIDE)
    return Template(pixels=pixels, size=jnp.where(jnp.isfinite(zoom), size, 0))


def template_shift(
    image: Num[Array, "h w"],
    template: Template,
    landmarks: Float[Array, "n 2"],
    scale: Float[Array, ""],
) -> Float[Array, " 2"]:
    """How far a face has moved.

    The picture is compared, by normalised cross-correlation about the means, with every
    place of a region twice as wide and high as the face's last box.

    Args:
        image: Grey values of the new frame.
        template: The picture of the face, with room for one.
        landmarks: Where the face was last, pixels.
        scale: Its size there, pixels per millimetre.

    Returns:
        Shift in x and y, image pixels; 0 where there is no picture or no region, or no
        place in it that is like the picture, as in a dark frame.

    Mirrors:
        CorrectGlobalParametersVideo. Pixels beyond the frame are left out of the region
        here too.

    Example:
        >>> template = cut_template(jnp.asarray(image), landmarks, params.scale)
        >>> moved = jnp.roll(jnp.asarray(image), (-7, 11), (0, 1))
        >>> shift = template_shift(moved, template, landmarks, params.scale)
        >>> bool(jnp.abs(shift - jnp.asarray([11.0, -7.0])).max() < 2.5)
        True
    """
    zoom = jnp.minimum(1, _SCALE / scale)
    low, high = _box(image, landmarks)
    margin = (high - low) / 2
    limit = jnp.asarray(image.shape[::-1]).astype(low.dtype)
    first = jnp.clip(jnp.floor(low - margin), 0, limit)
    last = jnp.clip(jnp.ceil(high + margin), 0, limit)
    size = jnp.clip(jnp.round((last - first) * zoom), 0, 2 * _SIDE).astype(jnp.int32)
    region = _sampled(image, first, zoom, size, 2 * _SIDE)
    scores = _correlation(region, template)
    offsets = jnp.arange(_SIDE + 1, dtype=jnp.int32)
    inside_x = offsets <= size[0] - template.size[0]
    inside_y = offsets <= size[1] - template.size[1]
    scores = jnp.where(inside_y[:, None] & inside_x[None], scores, -jnp.inf)
    row, column = jnp.unravel_index(jnp.argmax(scores), scores.shape)
    place = jnp.stack([column, row]).astype(low.dtype)
    known = jnp.all(template.size > 0) & (jnp.max(scores) > 0)
    return jnp.where(known, first + place / zoom - low, 0)


def _box(image: Array, landmarks: Array) -> tuple[Array, Array]:
    """Corners of the box around a face, whole pixels of the image."""
    x, y, width, height = bounding_box(landmarks)
    limit = jnp.asarray(image.shape[::-1]).astype(landmarks.dtype)
    low = jnp.clip(jnp.floor(jnp.stack([x, y])), 0, limit)
    high = jnp.clip(jnp.ceil(jnp.stack([x + width, y + height])), 0, limit)
    return low, high


def _sampled(image: Array, low: Array, zoom: Array, size: Array, side: int) -> Array:
    """The image from `low` on, zoomed; zero beyond `size`."""
    steps = jnp.arange(side, dtype=jnp.int32)
    places = (steps.astype(low.dtype) + 0.5)[:, None] / zoom - 0.5 + low[None]
    x, y = jnp.meshgrid(places[:, 0], places[:, 1])
    grey = map_coordinates(image.astype(low.dtype), [y, x], 1, mode="nearest")
    used = (steps < size[1])[:, None] & (steps < size[0])[None]
    return jnp.where(used & jnp.isfinite(zoom), grey, 0)


def _correlation(region: Array, template: Template) -> Array:
    """Normalised cross-correlation of a template at every place of a region."""
    steps = jnp.arange(template.pixels.shape[0], dtype=jnp.int32)
    used = (steps < template.size[1])[:, None] & (steps < template.size[0])[None]
    mask = used.astype(region.dtype)
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.sum(template.pixels * mask) / count
    pattern = (template.pixels - mean) * mask
    region = region - mean  # smaller numbers, less rounding
    sums = _slid(region, mask)
    squares = _slid(region**2, mask)
    spread = jnp.maximum(squares - sums**2 / count, 0)
    size = jnp.sqrt(spread * jnp.sum(pattern**2))
    # Places without contrast say nothing, nor what rounding leaves of them.
    rounding = 1e3 * jnp.finfo(spread.dtype).eps * squares
    flat = (size <= 1e-6 * count) | (spread <= rounding)
    return jnp.where(flat, 0, _slid(region, pattern) / jnp.where(flat, 1, size))


def _slid(region: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        region[None, None], kernel[None, None], (1, 1), "VALID", precision="highest"
    )[0, 0]
