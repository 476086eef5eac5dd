"""Normalised correlation of filters with every support region of an area."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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
    w = a - p + 1
    areas = _materialised(areas)
    # Any one grey value taken away keeps digits in the sums below.
    areas = areas - areas[:, a // 2, a // 2][:, None, None]
    # With zero-mean filters the regions' own means drop out of the products.
    filters = filters - filters.mean(axis=(2, 3), keepdims=True)
    # Unfolding columns alone, with the filters' rows as further filters, moves a sixth
    # of the memory that unfolding whole regions would.
    columns = jnp.stack([areas[:, :, j : j + w] for j in range(p)], axis=1)
    by_row = jnp.matmul(
        filters.reshape(n, k * p, p), columns.reshape(n, p, a * w), precision="highest"
    ).reshape(n, k, p, a, w)
    products = _sum([by_row[:, :, i, i : i + w] for i in range(p)])
    return (products * inverse_norms(areas, p)[:, None]).reshape(n, k, w * w)


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
    squares = _squared_norms(areas, side)
    # Rounding alone leaves about this much norm in a region of equal pixels.
    largest = jnp.max(jnp.abs(areas), axis=(1, 2))[:, None, None]
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
    # in `_materialised`.
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


def _materialised(areas: Float[Array, "n a a"]) -> Float[Array, "n a a"]:
    """The same values, computed once.

    Left alone, XLA's CPU compiler fuses the bilinear sampling into every shifted copy
    and samples each pixel up to 121 times; it removes `optimization_barrier` before it
    fuses (seen in 0.10.1). A matrix product it never fuses, so here is one with the
    identity, which is exact: 5 times faster in all.
    """
    n, a, _ = areas.shape
    identity = np.eye(a, dtype=areas.dtype)
    product = jnp.matmul(areas.reshape(n * a, a), identity, precision="highest")
    return product.reshape(n, a, a)
