"""CCNF patch experts: neurons, and the covariance Sigma that couples a window's pixels.

    f   = sum_k 2 alpha_k sigmoid(norm_weight_k <weights_k, patch> + bias_k)
    map = Sigma f,   Sigma = inv(2 (sum_k alpha_k I + sum_j beta_j S_j))

minus its minimum where that is negative. The S_j are the neighbour matrices of the
window (Baltrusaitis, Robinson, Morency: Constrained local neural fields for robust
facial landmark detection in the wild, ICCVW 2013).
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.experts.types import CCNFExperts
from jaxclnf.experts.windows import normalised_correlation

_LEAST_ALPHA = 1e-4
"""Neurons with less weight are left out, as in the reference."""


def ccnf_responses(
    experts: CCNFExperts, view: Int[Array, ""], areas: Float[Array, "n a a"]
) -> Float[Array, "n w w"]:
    """Response maps of one view's experts.

    Args:
        experts: The experts of one scale.
        view: Which view's experts to use.
        areas: Area of interest around each landmark.

    Returns:
        Alignment scores, not negative; zero where the view has no expert. Gain and
        offset of the grey values do not matter.

    Mirrors:
        CCNF_patch_expert::ResponseOpenBlas.

    Example:
        >>> areas = jnp.zeros((pdm.num_landmarks, 17, 17))
        >>> ccnf_responses(model.experts[0], jnp.asarray(0), areas).shape[1:]
        (7, 7)
    """
    n = areas.shape[0]
    field = neuron_sum(experts, view, areas)
    smooth = apply_sigma(experts, view, field)
    smooth = smooth - jnp.minimum(smooth.min(axis=1, keepdims=True), 0)
    visible = experts.visibility[view][:, None]
    window = math.isqrt(field.shape[1])
    return jnp.where(visible, smooth, 0).reshape(n, window, window)


def neuron_sum(
    experts: CCNFExperts, view: Int[Array, ""], areas: Float[Array, "n a a"]
) -> Float[Array, "n ww"]:
    """The field before Sigma couples its pixels: the neurons, added up.

    Args:
        experts: The experts of one scale.
        view: Which view's experts to use.
        areas: Area of interest around each landmark.

    Returns:
        Sum over neurons at each position, row by row.

    Mirrors:
        CCNF_neuron::ResponseOpenBlas, summed.

    Example:
        >>> areas = jnp.zeros((pdm.num_landmarks, 17, 17))
        >>> neuron_sum(model.experts[0], jnp.asarray(0), areas).shape[1:]
        (49,)
    """
    linear = normalised_correlation(areas, experts.weights[view])
    gain, bias, alpha = (
        x[view][:, :, None] for x in (experts.norm_weights, experts.bias, experts.alpha)
    )
    alpha = jnp.where(alpha > _LEAST_ALPHA, alpha, 0)
    # Neuron by neuron: XLA's loop for CPU takes six times longer over the sum of an
    # array of all.
    neurons = [
        2 * alpha[:, i] * jax.nn.sigmoid(gain[:, i] * linear[:, i] + bias[:, i])
        for i in range(linear.shape[1])
    ]
    return sum(neurons[1:], start=neurons[0])


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
        return lax.platform_dependent(
            view,
            field,
            cpu=partial(_product_of_view, experts.sigma[window]),
            default=partial(_products_of_all, experts.sigma[window]),
        )
    diagonal = 2 * jnp.sum(experts.alpha[view], axis=1)[:, None]
    present = diagonal > 0
    inverse_diagonal = jnp.where(present, 1 / jnp.where(present, diagonal, 1), 0)
    field = inverse_diagonal * field
    if window not in experts.neighbours:
        return field
    neighbours = experts.neighbours[window]
    beta = experts.beta[view] * (2 * inverse_diagonal)

    def precision_matrix(x: Float[Array, "n ww"]) -> Float[Array, "n ww"]:
        products = jnp.einsum("cij,nj->nci", neighbours, x, precision="highest")
        return x + jnp.einsum("nc,nci->ni", beta, products, precision="highest")

    # At most 20 iterations reach float32 rounding, and 60 float64, on every published
    # model: the condition number is 8 at worst.
    tolerance = 2 * float(jnp.finfo(field.dtype).eps)
    solution, _ = jax.scipy.sparse.linalg.cg(
        precision_matrix, field, x0=field, tol=tolerance, maxiter=60
    )
    return solution


# Taking one view's matrices out of an array of all would copy megabytes for each face.


def _product_of_view(
    sigma: tuple[Float[Array, "n ww ww"], ...],
    view: Int[Array, ""],
    field: Float[Array, "n ww"],
) -> Float[Array, "n ww"]:
    return lax.switch(view, [partial(_products, one) for one in sigma], field)


def _products_of_all(
    sigma: tuple[Float[Array, "n ww ww"], ...],
    view: Int[Array, ""],
    field: Float[Array, "n ww"],
) -> Float[Array, "n ww"]:
    """Every view's products, of which one is chosen: for many faces, few bytes."""
    products = [_products(one, field) for one in sigma]
    return lax.select_n(view, *products) if len(products) > 1 else products[0]


def _products(
    sigma: Float[Array, "n ww ww"], field: Float[Array, "n ww"]
) -> Float[Array, "n ww"]:
    return jnp.einsum("nij,nj->ni", sigma, field, precision="highest")


def with_sigma(experts: CCNFExperts, window_sizes: Sequence[int]) -> CCNFExperts:
    """Experts that hold their Sigma matrices for some window sizes.

    Each takes `4 v n w^4` bytes in float32 (28 MB for 7 views, 68 landmarks and a
    window of 11) and spares about half of the time of a response map.

    Args:
        experts: The experts of one scale.
        window_sizes: Window sizes; those without neighbour matrices need no Sigma.

    Returns:
        Experts whose `sigma` holds these sizes and no others.

    Example:
        >>> experts = with_sigma(model.experts[0], (7,))
        >>> experts.sigma[7][0].shape[1:]
        (49, 49)
    """
    alpha = np.asarray(experts.alpha, np.float64).sum(axis=-1)
    beta = np.asarray(experts.beta, np.float64)
    present = alpha > 0
    sigma = {}
    for window in window_sizes:
        if window not in experts.neighbours:
            continue
        neighbours = np.asarray(experts.neighbours[window], np.float64)
        side = neighbours.shape[-1]
        views = []
        for view in range(alpha.shape[0]):
            index = np.nonzero(present[view])[0]
            precision_matrix = 2 * (
                alpha[view, index, None, None] * np.eye(side)
                + np.einsum("nc,cij->nij", beta[view, index], neighbours)
            )
            matrices = np.zeros((alpha.shape[1], side, side), experts.alpha.dtype)
            matrices[index] = np.linalg.inv(precision_matrix)
            views.append(jnp.asarray(matrices))
        sigma[window] = tuple(views)
    return dataclasses.replace(experts, sigma=sigma)
