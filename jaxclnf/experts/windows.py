"""Normalised correlation of filters with every support region of an area."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxclnf.by_platform import by_platform
from jaxclnf.materialised import materialised

_TOGETHER = 17
"""Landmarks whose regions are laid out at a time on CPU: 1 MB at window 11, which stays
in the cache between being written and multiplied; twice as many take 8 % longer."""


def normalised_correlation(
    areas: Float[Array, "n a a"], filters: Float[Array, "n k p p"]
) -> Float[Array, "n k ww"]:
    """Correlates filters with each support region made zero-mean and unit-norm.

    Args:
        areas: Grey values around each landmark; gain and offset do not matter.
        filters: Filters of each landmark, `[row, column]`.

    Returns:
        `<filter, region>` for each of the `w * w` positions row by row,
        `w = a - p + 1`; 0 for a region without contrast.

    Example:
        >>> filters = jnp.eye(3)[None, None] - 1 / 3
        >>> areas = jnp.zeros((1, 5, 5)).at[0, 1:4, 1:4].set(jnp.eye(3))
        >>> correlation = normalised_correlation(areas, filters)
        >>> norm = jnp.sqrt(jnp.sum(filters**2))
        >>> bool(jnp.allclose(correlation[0, 0, 4], norm))
        True
    """
    n, a, _ = areas.shape
    _, k, p, _ = filters.shape
    areas = materialised(areas)
    # Any one grey value taken away keeps digits in the sums below.
    areas = areas - areas[:, a // 2, a // 2][:, None, None]
    # With zero-mean filters the regions' own means drop out of the products.
    filters = filters - filters.mean(axis=(2, 3), keepdims=True)
    filters = filters.reshape(n, k, p * p)
    return by_platform(areas, filters, cpu=_in_turn, default=_at_once)


def _at_once(
    areas: Float[Array, "n a a"], filters: Float[Array, "n k pp"]
) -> Float[Array, "n k ww"]:
    n, a, _ = areas.shape
    p = math.isqrt(filters.shape[2])
    w = a - p + 1
    # Columns first, then rows: `2 p` slices instead of `p * p`.
    rows = jnp.stack([areas[:, :, j : j + w] for j in range(p)], axis=1)
    regions = jnp.stack([rows[:, :, i : i + w] for i in range(p)], axis=1)
    regions = regions.reshape(n, p * p, w * w)
    # One more filter gives the regions' means.
    average = jnp.full((n, 1, p * p), 1 / (p * p), filters.dtype)
    filters = jnp.concatenate([filters, average], axis=1)
    products = jnp.matmul(filters, regions, precision="highest")
    # In two passes, so that nothing cancels where contrast is low.
    squares = jnp.sum((regions - products[:, -1:]) ** 2, axis=1)
    return products[:, :-1] * _inverse_root(squares, areas)[:, None]


def _in_turn(
    areas: Float[Array, "n a a"], filters: Float[Array, "n k pp"]
) -> Float[Array, "n k ww"]:
    """A group of landmarks after the other, in the same memory.

    XLA's CPU compiler copies slices at known places one number at a time, and slices at
    places that a loop counts in runs: a sixth of the time. New memory for each group
    would cost as much again, as it is zeroed first; a flat array is zeroed fastest.
    """
    n, a, _ = areas.shape
    p = math.isqrt(filters.shape[2])
    w = a - p + 1
    groups = -(-n // _TOGETHER)
    parts = jax.tree.map(lambda x: _in_groups(x, groups), (areas, filters))
    each = parts[0].shape[1]

    def one_group(memory: tuple, part: tuple) -> tuple[tuple, Array]:
        rows, regions = memory
        areas, filters = part
        rows = _lay_rows(areas, rows)

        def lay(i: Array, regions: Array) -> Array:
            block = lax.dynamic_slice_in_dim(rows, i * w, w * w, axis=2)
            return lax.dynamic_update_slice_in_dim(regions, block, i * p, axis=1)

        regions = _repeat(p, lay, regions.reshape(each, p * p, w * w))
        products = jnp.matmul(filters, regions, precision="highest")
        squares = _squared_norms(rows)
        found = products * _inverse_root(squares, areas)[:, None]
        return (rows, regions.reshape(-1)), found

    memory = (
        jnp.zeros((each, p, a * w), areas.dtype),
        jnp.zeros(each * p * p * w * w, areas.dtype),
    )
    _, found = lax.scan(one_group, memory, parts)
    return found.reshape(-1, *found.shape[2:])[:n]


def _in_groups(x: Array, groups: int) -> Array:
    """Divides the first axis, with zeros at its end where it is too short."""
    each = -(-x.shape[0] // groups)
    missing = groups * each - x.shape[0]
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, each, *x.shape[1:])


def _repeat(times: int, body: Callable[[Array, Array], Array], start: Array) -> Array:
    return lax.fori_loop(np.int32(0), np.int32(times), body, start)


def _lay_rows(
    areas: Float[Array, "n a a"], rows: Float[Array, "n p aw"]
) -> Float[Array, "n p aw"]:
    """Writes the columns `j` to `j + w - 1` of each area to row `j`."""
    n, a, _ = areas.shape
    p = rows.shape[1]
    w = a - p + 1

    def lay(j: Array, rows: Array) -> Array:
        columns = lax.dynamic_slice_in_dim(areas, j, w, axis=2)
        return lax.dynamic_update_slice_in_dim(rows, columns[:, None], j, axis=1)

    return _repeat(p, lay, rows.reshape(n, p, a, w)).reshape(rows.shape)


def inverse_norms(areas: Float[Array, "n a a"], side: int) -> Float[Array, "n w w"]:
    """What makes each support region unit-norm once its mean is taken away.

    Args:
        areas: Grey values around each landmark.
        side: Side of a support region.

    Returns:
        One over the norm of the region's differences from its mean; 0 for a region
        without contrast.

    Example:
        >>> inverse_norms(jnp.asarray([[[0.0, 2.0], [2.0, 0.0]]]), 2).tolist()
        [[[0.5]]]
    """
    n, a, _ = areas.shape
    w = a - side + 1
    rows = _lay_rows(areas, jnp.zeros((n, side, a * w), areas.dtype))
    return _inverse_root(_squared_norms(rows), areas).reshape(n, w, w)


def _inverse_root(
    squares: Float[Array, "n ww"], areas: Float[Array, "n a a"]
) -> Float[Array, "n ww"]:
    # Rounding alone leaves about this much norm in a region of equal pixels.
    largest = jnp.max(jnp.abs(areas), axis=(1, 2))[:, None]
    flat = squares <= (32 * jnp.finfo(areas.dtype).eps * largest) ** 2
    return jnp.where(flat, 0, 1 / jnp.sqrt(jnp.where(flat, 1, squares)))


def _squared_norms(rows: Float[Array, "n p aw"]) -> Float[Array, "n ww"]:
    """Sum of squared differences of each region from its mean.

    From what `_lay_rows` writes. Rows first, then columns, each in two passes: squares
    of a region's differences are its rows' own plus those of the rows' means (Chan,
    Golub, LeVeque 1983), so that nothing cancels where contrast is low.
    """
    n, p, size = rows.shape
    # a w with a = w + p - 1
    w = (math.isqrt((p - 1) ** 2 + 4 * size) - p + 1) // 2
    row_means = _sum_rows(rows) / p
    within = _sum_rows((rows - row_means[:, None]) ** 2)

    def below(x: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, i * w, w * w, axis=1)

    def add_mean(i: Array, so_far: Array) -> Array:
        return so_far + below(row_means, i)

    none = jnp.zeros((n, w * w), rows.dtype)
    means = _repeat(p, add_mean, none) / p

    def add_squares(i: Array, so_far: Array) -> Array:
        between = (below(row_means, i) - means) ** 2
        return so_far + below(within, i) + p * between

    return _repeat(p, add_squares, none)


def _sum_rows(rows: Float[Array, "n p k"]) -> Float[Array, "n k"]:
    """`jnp.sum`, which on CPU JAX 0.12 leaves to a library: five times as long."""
    first, *others = (rows[:, j] for j in range(rows.shape[1]))
    return sum(others, start=first)
