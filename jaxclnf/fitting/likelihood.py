"""Whether landmarks lie on a face: by how well the model's own experts respond there.

A CCNF's responses are not divided by their sum, so their height says something: over
faces it is high at the landmarks, and wherever else a fit comes to rest it is low.
Nothing more is computed than the fit itself left behind.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.pytree import pytree_dataclass


@pytree_dataclass
class LikelihoodValidator:
    """A validator that looks at the log-likelihood at the last scale of a fit.

    With the level `m` of `response_level` at scale `k`, the certainty is
    `sigmoid(weights[k] * m + biases[k])`: a logistic regression, learnt from fits that
    are known to lie on a face or not. One entry for each scale of the model. Of a model
    with parts it is the whole face before them that is judged.
    """

    weights: Float[Array, " s"]
    """What the level is multiplied with."""
    biases: Float[Array, " s"]
    """What is added then."""


def response_level(
    log_likelihood: Float[Array, ""],
    sigma: Float[Array, ""] | float,
    window_size: int,
) -> Float[Array, ""]:
    """The logarithm of a mean response: a log-likelihood without its kernel's size.

    A density is a sum of responses under a kernel that is 1 in its middle. It grows
    with the bandwidth and the window. Divided by the kernel's own sum over the window,
    about its centre, it hardly does, so that fits with other options can be judged too.
    What keeps landmarks from the peaks of their maps lowers it: a stiffer prior, a much
    wider kernel.

    Args:
        log_likelihood: Mean of the log kernel densities, see `FitResult`.
        sigma: Bandwidth of the kernel, pixels of the map.
        window_size: Side of the response maps, odd.

    Returns:
        The level.

    Example:
        >>> level = response_level(jnp.asarray(0.0), 1e6, 5)
        >>> round(float(jnp.exp(level)), 6)  # one of 25 pixels
        0.04
    """
    reach = jnp.arange(window_size, dtype=log_likelihood.dtype) - window_size // 2
    return log_likelihood - 2 * jnp.log(jnp.sum(jnp.exp(-0.5 * (reach / sigma) ** 2)))


def validate_likelihood(
    validator: LikelihoodValidator, scale_index: int, level: Float[Array, ""]
) -> Float[Array, ""]:
    """How certain it is that landmarks lie on a face.

    Args:
        validator: The validator.
        scale_index: The last scale of the fit.
        level: What `response_level` says of it.

    Returns:
        The certainty, between 0 and 1; 0 for a level that is not finite.

    Raises:
        ValueError: The validator has no such scale.

    Example:
        >>> even = LikelihoodValidator(weights=jnp.ones(2), biases=jnp.zeros(2))
        >>> float(validate_likelihood(even, 1, jnp.asarray(0.0)))
        0.5
    """
    known = jnp.isfinite(level)
    # Without NaN on the way, of which a derivative would become NaN.
    score = likelihood_score(validator, scale_index, jnp.where(known, level, 0))
    return jnp.where(known, jax.nn.sigmoid(score), 0)


def likelihood_score(
    validator: LikelihoodValidator, scale_index: int, level: Float[Array, ""]
) -> Float[Array, ""]:
    """What a level says for a face, and against it where it is negative.

    Args:
        validator: The validator.
        scale_index: The last scale of the fit.
        level: What `response_level` says of it.

    Returns:
        `weights[scale_index] * level + biases[scale_index]`.

    Raises:
        ValueError: The validator has no such scale.

    Example:
        >>> strict = LikelihoodValidator(weights=jnp.ones(2), biases=jnp.zeros(2) - 3)
        >>> float(likelihood_score(strict, 1, jnp.asarray(1.0)))
        -2.0
    """
    num_scales = len(validator.weights)
    if not 0 <= scale_index < num_scales:
        raise ValueError(
            f"found a validator of {num_scales} scales, expected one that has scale"
            f" {scale_index}"
        )
    return validator.weights[scale_index] * level + validator.biases[scale_index]
