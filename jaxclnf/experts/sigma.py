"""Sigma, the covariance that couples the pixels of a CCNF response map.

    Sigma = inv(2 (sum_k alpha_k I + sum_j beta_j S_j))

The neighbour matrices S_j of a window look the same in a mirror, left to right and top
to bottom, and so does Sigma: maps that are even or odd in either direction stay so. In
the basis of such maps Sigma falls apart into four blocks, with a third of the numbers
that a product has to read.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.by_platform import by_platform
from jaxclnf.experts.types import CCNFExperts


def apply_sigma(
    experts: CCNFExperts, view: Int[Array, ""], field: Float[Array, "n ww"]
) -> Float[Array, "n ww"]:
    """Multiplies each landmark's field by its Sigma.

    Uses the matrices made by `with_sigma` where there are any for this window size;
    otherwise solves for the product, to the same accuracy. A window size that has no
    neighbour matrices has `Sigma = I / (2 sum alpha)`.

    Args:
        experts: The experts of one scale.
        view: Which view's experts to use.
        field: One row per landmark, the window's pixels row by row.

    Returns:
        `Sigma @ field`; zero where there is no expert.

    Example:
        >>> field = jnp.ones((pdm.num_landmarks, 25))  # no neighbour matrices for 5
        >>> smooth = apply_sigma(model.experts[0], jnp.asarray(0), field)
        >>> total = model.experts[0].alpha[0, 0].sum()
        >>> bool(jnp.allclose(smooth[0], 0.5 / total))
        True
    """
    window = math.isqrt(field.shape[1])
    if window in experts.sigma:
        return by_platform(
            experts.sigma[window],
            view,
            field,
            cpu=_product_of_view,
            default=_products_of_all,
        )
    diagonal = 2 * jnp.sum(experts.alpha[view], axis=1)[:, None]
    present = diagonal > 0
    inverse_diagonal = jnp.where(present, 1 / jnp.where(present, diagonal, 1), 0)
    field = inverse_diagonal * field
    if window not in experts.neighbours:
        return field
    neighbours = experts.neighbours[window]
    beta = experts.beta[view] * (2 * inverse_diagonal)
    # All landmarks are solved for as one system, which one bad pixel would spoil.
    sound = jnp.all(jnp.isfinite(field), axis=1, keepdims=True)

    def precision_matrix(x: Float[Array, "n ww"]) -> Float[Array, "n ww"]:
        products = jnp.einsum("cij,nj->nci", neighbours, x, precision="highest")
        return x + jnp.einsum("nc,nci->ni", beta, products, precision="highest")

    # At most 20 iterations reach float32 rounding, and 60 float64, on every published
    # model: the condition number is 8 at worst.
    tolerance = 2 * float(jnp.finfo(field.dtype).eps)
    target = jnp.where(sound, field, 0)
    solution, _ = jax.scipy.sparse.linalg.cg(
        precision_matrix, target, x0=target, tol=tolerance, maxiter=60
    )
    return jnp.where(sound, solution, jnp.nan)


# Taking one view's matrices out of an array of all would copy megabytes for each face.


def _product_of_view(
    sigma: tuple[Float[Array, "n ..."], ...],
    view: Int[Array, ""],
    field: Float[Array, "n ww"],
) -> Float[Array, "n ww"]:
    return lax.switch(view, [partial(_products, one) for one in sigma], field)


def _products_of_all(
    sigma: tuple[Float[Array, "n ..."], ...],
    view: Int[Array, ""],
    field: Float[Array, "n ww"],
) -> Float[Array, "n ww"]:
    """Every view's products, of which one is chosen: for many faces, few bytes."""
    products = [_products(one, field) for one in sigma]
    return lax.select_n(view, *products) if len(products) > 1 else products[0]


def _products(
    sigma: Float[Array, "n ..."], field: Float[Array, "n ww"]
) -> Float[Array, "n ww"]:
    if sigma.ndim == 3:
        return jnp.einsum("nij,nj->ni", sigma, field, precision="highest")
    n, _, q, _ = sigma.shape
    basis = mirror_basis(math.isqrt(field.shape[1])).astype(field.dtype)
    parts = jnp.matmul(field, basis.T, precision="highest").reshape(n, 4, q)
    parts = jnp.einsum("nbij,nbj->nbi", sigma, parts, precision="highest")
    return jnp.matmul(parts.reshape(n, 4 * q), basis, precision="highest")


@lru_cache
def mirror_basis(window: int) -> Float[np.ndarray, "maps ww"]:
    """Maps that are even or odd from left to right and from top to bottom.

    Args:
        window: Side of the maps, odd.

    Returns:
        Four groups of `q = ((window + 1) / 2)^2` maps, one in each row: even in both,
        odd in x, odd in y, odd in both. There are fewer odd ones; zeros fill up. Each
        is orthogonal to the others; its pixels are 1, -1 or 0, so that float32 rounds
        nothing but sums.

    Example:
        >>> basis = mirror_basis(3)
        >>> basis.shape, int(np.linalg.matrix_rank(basis))
        ((16, 9), 9)
    """
    half = (window + 1) // 2
    even, odd = np.zeros((2, half, window))
    for i in range(half - 1):
        even[i, [i, -1 - i]] = 1, 1
        odd[i, [i, -1 - i]] = 1, -1
    even[-1, half - 1] = 1
    along = np.stack([even, odd])
    basis = np.einsum("ayi,bxj->abyxij", along, along)
    basis = basis.reshape(4 * half**2, window**2)
    basis.setflags(write=False)
    return basis


def with_sigma(
    experts: CCNFExperts, window_sizes: Sequence[int], *, whole: bool = False
) -> CCNFExperts:
    """Experts that hold their Sigma for some window sizes.

    Its blocks take `v n (w + 1)^4` bytes in float32 (10 MB for 7 views, 68 landmarks
    and a window of 11) and spare about half of the time of a response map.

    Args:
        experts: The experts of one scale.
        window_sizes: Window sizes; those without neighbour matrices need no Sigma.
        whole: Whether to keep Sigma whole, `4 v n w^4` bytes. OpenFace multiplies it
            so, and the same product rounds more like it. Neighbour matrices that differ
            from their mirror images have no blocks: their Sigma is kept whole anyway.

    Returns:
        Experts whose `sigma` holds these sizes and no others.

    Example:
        >>> experts = with_sigma(model.experts[0], (7,))
        >>> experts.sigma[7][0].shape[1:]
        (4, 16, 16)
    """
    alpha = np.asarray(experts.alpha, np.float64).sum(axis=-1)
    beta = np.asarray(experts.beta, np.float64)
    sigma = {}
    for window in window_sizes:
        if window not in experts.neighbours:
            continue
        neighbours = np.asarray(experts.neighbours[window], np.float64)
        blocks = None if whole else _neighbour_blocks(neighbours)
        views = [
            _inverses(a, b, neighbours)
            if blocks is None
            else _inverses(a, b, blocks) / _squared_lengths(window)
            for a, b in zip(alpha, beta, strict=True)
        ]
        dtype = experts.alpha.dtype
        sigma[window] = tuple(jax.device_put(one.astype(dtype)) for one in views)
    return dataclasses.replace(experts, sigma=sigma)


def _inverses(
    alpha: Float[np.ndarray, " n"],
    beta: Float[np.ndarray, "n c"],
    neighbours: Float[np.ndarray, "c *b s s"],
) -> Float[np.ndarray, "n *b s s"]:
    """`inv(2 (alpha I + sum_j beta_j S_j))`; zero where there is no expert."""
    found = np.zeros((len(alpha), *neighbours.shape[1:]))
    present = np.flatnonzero(alpha > 0)
    own = alpha[present].reshape(-1, *[1] * (neighbours.ndim - 1))
    coupled = np.tensordot(beta[present], neighbours, axes=1)
    found[present] = np.linalg.inv(2 * (own * np.eye(coupled.shape[-1]) + coupled))
    return found


def _neighbour_blocks(
    neighbours: Float[np.ndarray, "c ww ww"],
) -> Float[np.ndarray, "c 4 q q"] | None:
    """Neighbour matrices between even and odd maps of unit length; None: none such."""
    c, pixels, _ = neighbours.shape
    window = math.isqrt(pixels)
    by_pixel = neighbours.reshape(c, window, window, window, window)
    for mirrored in (by_pixel[:, ::-1, :, ::-1], by_pixel[:, :, ::-1, :, ::-1]):
        if not np.array_equal(mirrored, by_pixel):
            return None
    basis = mirror_basis(window).reshape(4, -1, pixels)
    between = basis @ neighbours[:, None] @ basis.swapaxes(1, 2)
    return between / _squared_lengths(window)


def _squared_lengths(window: int) -> Float[np.ndarray, "4 q q"]:
    """Products of the lengths of any two maps of a group; 1 for the zeros."""
    lengths = np.maximum(np.linalg.norm(mirror_basis(window), axis=1), 1).reshape(4, -1)
    return lengths[:, :, None] * lengths[:, None, :]


def sigma_matrices(
    experts: CCNFExperts, view: int, window: int
) -> Float[np.ndarray, "n ww ww"]:
    """Sigma itself, of every landmark; for those who look at it.

    Args:
        experts: Experts made by `with_sigma`.
        view: Which view's experts.
        window: A window size for which they were prepared.

    Returns:
        One matrix per landmark, float64; zero where there is no expert.

    Raises:
        ValueError: They were not prepared for this window.

    Example:
        >>> experts = with_sigma(model.experts[0], (7,))
        >>> sigma_matrices(experts, 0, 7).shape[1:]
        (49, 49)
    """
    if window not in experts.sigma:
        raise ValueError(
            f"window is {window}; expected one of those prepared, "
            f"{sorted(experts.sigma)}"
        )
    sigma = np.asarray(experts.sigma[window][view], np.float64)
    if sigma.ndim == 3:
        return sigma
    basis = mirror_basis(window)
    products = sigma @ basis.reshape(4, -1, window**2)
    return basis.T @ products.reshape(len(sigma), len(basis), window**2)
