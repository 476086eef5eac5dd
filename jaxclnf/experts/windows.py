"""Normalised correlation of filters with every support region of an area."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

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
    # With zero-mean filters the regions' own means drop out of the products. One more
    # filter gives these means.
    filters = filters - filters.mean(axis=(2, 3), keepdims=True)
    average = jnp.full((n, 1, p * p), 1 / (p * p), filters.dtype)
    filters = jnp.concatenate([filters.reshape(n, k, p * p), average], axis=1)
    return lax.platform_dependent(areas, filters, cpu=_in_turn, default=_at_once)


def _at_once(
    areas: Float[Array, "n a a"], filters: Float[Array, "n k pp"]
) -> Float[Array, "n k-1 ww"]:
    n, a, _ = areas.shape
    p = math.isqrt(filters.shape[2])
    w = a - p + 1
    # Columns first, then rows: `2 p` slices instead of `p * p`.
    rows = jnp.stack([areas[:, :, j : j + w] for j in range(p)], axis=1)
    regions = jnp.stack([rows[:, :, i : i + w] for i in range(p)], axis=1)
    return _correlation(areas, regions.reshape(n, p * p, w * w), filters)


def _in_turn(
    areas: Float[Array, "n a a"], filters: Float[Array, "n k pp"]
) -> Float[Array, "n k-1 ww"]:
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

        def lay_columns(j: Array, rows: Array) -> Array:
            columns = lax.dynamic_slice_in_dim(areas, j, w, axis=2)
            return lax.dynamic_update_slice_in_dim(rows, columns[:, None], j, axis=1)

        def lay_rows(i: Array, regions: Array) -> Array:
            block = lax.dynamic_slice_in_dim(flat, i * w, w * w, axis=2)
            return lax.dynamic_update_slice_in_dim(regions, block, i * p, axis=1)

        rows = _repeat(p, lay_columns, rows)
        flat = rows.reshape(each, p, a * w)
        regions = _repeat(p, lay_rows, regions.reshape(each, p * p, w * w))
        return (rows, regions.reshape(-1)), _correlation(areas, regions, filters)

    memory = (
        jnp.zeros((each, p, a, w), areas.dtype),
        jnp.zeros(each * p * p * w * w, areas.dtype),
    )
    _, found = lax.scan(one_group, memory, parts)
    return found.reshape(-1, *found.shape[2:])[:n]


def _repeat(times: int, body: Callable[[Array, Array], Array], start: Array) -> Array:
    return lax.fori_loop(np.int32(0), np.int32(times), body, start)


def _in_groups(x: Array, groups: int) -> Array:
    """Divides the first axis, with zeros at its end where it is too short."""
    each = -(-x.shape[0] // groups)
    missing = groups * each - x.shape[0]
    x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(groups, each, *x.shape[1:])


def _correlation(
    areas: Float[Array, "n a a"],
    regions: Float[Array, "n pp ww"],
    filters: Float[Array, "n k pp"],
) -> Float[Array, "n k-1 ww"]:
    """The products of unit-norm regions with all filters but the last, their mean."""
    products = jnp.matmul(filters, regions, precision="highest")
    means = products[:, -1:]
    # In two passes, so that nothing cancels where contrast is low.
    squares = jnp.sum((regions - means) ** 2, axis=1)
    return products[:, :-1] * _inverse_root(squares, areas)[:, None]


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
    squares = _squared_norms(areas, side)
    return _inverse_root(squares.reshape(n, -1), areas).reshape(squares.shape)


def _inverse_root(
    squares: Float[Array, "n ww"], areas: Float[Array, "n a a"]
) -> Float[Array, "n ww"]:
    # Rounding alone leaves about this much norm in a region of equal pixels.
    largest = jnp.max(jnp.abs(areas), axis=(1, 2))[:, None]
    flat = squares <= (32 * jnp.finfo(areas.dtype).eps * largest) ** 2
    return jnp.where(flat, 0, 1 / jnp.sqrt(jnp.where(flat, 1, squares)))


def _squared_norms(areas: Float[Array, "n a a"], side: int) -> Float[Array, "n w w"]:
    """Sum of squared differences of each region from its mean.

    Rows first, then columns, each in two passes: squares of a region's differences are
    its rows' own plus those of the rows' means (Chan, Golub, LeVeque 1983), so that
    nothing cancels where contrast is low.
    """
    n, a, _ = areas.shape
    w = a - side + 1
    # Sums of `side` neighbours as products with a band matrix, for the same reason as
    # in `materialised`.
    band = np.sum([np.eye(a, w, -j) for j in range(side)], axis=0, dtype=areas.dtype)
    row_means = jnp.matmul(areas.reshape(n * a, a), band, precision="highest")
    row_means = row_means.reshape(n, a, w) / side
    means = jnp.einsum("nax,ay->nyx", row_means, band, precision="highest") / side
    within_rows = _sum([(areas[:, :, j : j + w] - row_means) ** 2 for j in range(side)])
    within = jnp.einsum("nax,ay->nyx", within_rows, band, precision="highest")
    between = _sum([(row_means[:, i : i + w] - means) ** 2 for i in range(side)])
    return within + side * between


def _sum(terms: list[Array]) -> Array:
    return sum(terms[1:], start=terms[0])
