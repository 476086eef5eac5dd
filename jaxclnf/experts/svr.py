"""SVR patch experts: one linear template per modality, through a logistic function."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.types import SVRExperts
from jaxclnf.experts.windows import normalised_correlation


def svr_responses(
    experts: SVRExperts, view: Int[Array, ""], areas: Float[Array, "n a a"]
) -> Float[Array, "n w w"]:
    """Response maps of one view's experts: the product over modalities.

    Args:
        experts: The experts of one scale.
        view: Which view's experts to use.
        areas: Area of interest around each landmark.

    Returns:
        Alignment scores between 0 and 1; zero where the view has no expert.

    Mirrors:
        Multi_SVR_patch_expert::Response.

    Example:
        >>> ones = jnp.ones((1, 1, 1))
        >>> experts = SVRExperts(
        ...     patch_scaling=jnp.asarray(0.5), view_centers=jnp.zeros((1, 3)),
        ...     visibility=jnp.ones((1, 1), bool), scaling=ones, bias=0 * ones,
        ...     weights=jnp.eye(3)[None, None, None], confidence=ones[0],
        ...     modalities=("grey",))
        >>> area = jnp.zeros((1, 5, 5)).at[0, 1:4, 1:4].set(jnp.eye(3))
        >>> maps = svr_responses(experts, jnp.asarray(0), area)
        >>> bool(maps[0].argmax() == 4)  # the middle of the 3 x 3 window
        True
    """
    weights = experts.weights[view]
    n = weights.shape[0]
    response = jnp.ones((), areas.dtype)
    for k, modality in enumerate(experts.modalities):
        channel = areas if modality == "grey" else squared_gradient(areas)
        template = weights[:, k]
        template = template - template.mean(axis=(1, 2), keepdims=True)
        norm = jnp.sqrt(jnp.sum(template**2, axis=(1, 2), keepdims=True))
        template = template / jnp.where(norm > 0, norm, 1)
        correlation = normalised_correlation(channel, template[:, None])[:, 0]
        gain, bias = experts.scaling[view, :, k, None], experts.bias[view, :, k, None]
        response = response * jax.nn.sigmoid(gain * correlation + bias)
    response = jnp.where(experts.visibility[view][:, None], response, 0)
    window = math.isqrt(response.shape[1])
    return response.reshape(n, window, window)


def squared_gradient(areas: Float[Array, "n a a"]) -> Float[Array, "n a a"]:
    """Squared length of the grey-value gradient, 0 along the border.

    Args:
        areas: Grey values.

    Returns:
        Sum of squares of the two central differences, not halved.

    Mirrors:
        Grad in SVR_patch_expert.

    Example:
        >>> ramp = jnp.broadcast_to(jnp.arange(3.0), (1, 3, 3))
        >>> squared_gradient(ramp)[0].tolist()
        [[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    """
    across = areas[:, 1:-1, 2:] - areas[:, 1:-1, :-2]
    down = areas[:, 2:, 1:-1] - areas[:, :-2, 1:-1]
    return jnp.pad(across**2 + down**2, ((0, 0), (1, 1), (1, 1)))
