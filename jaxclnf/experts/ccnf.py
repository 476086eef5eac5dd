"""CCNF patch experts: neurons, and the covariance Sigma that couples a window's pixels.

    f   = sum_k 2 alpha_k sigmoid(norm_weight_k <weights_k, patch> + bias_k)
    map = Sigma f,   Sigma = inv(2 (sum_k alpha_k I + sum_j beta_j S_j))

minus its minimum where that is negative. The S_j are the neighbour matrices of the
window (Baltrusaitis, Robinson, Morency: Constrained local neural fields for robust
facial landmark detection in the wild, ICCVW 2013).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.sigma import apply_sigma
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
