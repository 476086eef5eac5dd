"""Whether landmarks lie on a face: by what is seen there and how the experts respond.

The experts respond less in pictures that are blurred or noisy, wherever the landmarks
are; a network that looks at the warped face can learn that such a face is one too. In
good pictures the responses are what tells more. Both together are right more often
than either.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.fitting.likelihood import LikelihoodValidator, likelihood_score
from jaxclnf.fitting.validate import Validator, validator_outputs
from jaxclnf.pytree import pytree_dataclass


@pytree_dataclass
class JointValidator:
    """A validator that looks at the warped face and at the log-likelihood of its fit.

    With the network's output `s` and the level `m` of `response_level` at scale `k`,
    the certainty is `sigmoid(network_weights[k] * s + weights[k] * m + biases[k])`,
    the last two numbers being those of `likelihood`.
    """

    network: Validator
    """Its network has one output, which is large on a face."""
    network_weights: Float[Array, " s"]
    """What that output is multiplied with, at each scale of the model."""
    likelihood: LikelihoodValidator
    """What becomes of the level."""


def validate_jointly(
    validator: JointValidator,
    scale_index: int,
    image: GreyImage,
    landmarks: Float[Array, "n 2"],
    euler: Float[Array, " 3"],
    level: Float[Array, ""],
    image_size: Int[Array, " 2"] | None = None,
) -> Float[Array, ""]:
    """How certain it is that landmarks lie on a face.

    Args:
        validator: The validator.
        scale_index: The last scale of the fit.
        image: As for `validate`.
        landmarks: As for `validate`.
        euler: As for `validate`.
        level: What `response_level` says of the fit.
        image_size: As for `validate`.

    Returns:
        The certainty, between 0 and 1; 0 where there is nothing to judge, as for
        `validate`, or the level is not finite.

    Raises:
        ValueError: The validator has no such scale.

    Example:
        >>> from jaxclnf.fitting.validate import FullyConnected
        >>> from jaxclnf.fitting.warp import FaceWarp
        >>> corner = FaceWarp(
        ...     corner=jnp.zeros((1, 2)),
        ...     triangles=jnp.asarray([[[0, 1, 2]]]),
        ...     alpha=jnp.asarray([[[0.0, 1.0, 0.0]]]),
        ...     beta=jnp.asarray([[[0.0, 0.0, 1.0]]]),
        ...     triangle_of_pixel=jnp.asarray([[[0, 0]]]),
        ... )
        >>> sums = FullyConnected(
        ...     weights=jnp.asarray([[[1.0], [2.0]]]), bias=jnp.zeros((1, 1))
        ... )
        >>> network = Validator(
        ...     view_centers=jnp.zeros((1, 3)), warp=corner, mean=jnp.zeros((1, 1, 2)),
        ...     std=jnp.ones((1, 1, 2)), layers=(sums,),
        ... )
        >>> responses = LikelihoodValidator(weights=jnp.ones(1), biases=jnp.zeros(1))
        >>> both = JointValidator(
        ...     network=network, network_weights=jnp.ones(1), likelihood=responses
        ... )
        >>> points = jnp.asarray([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
        >>> ramp = jnp.tile(jnp.arange(9.0), (9, 1))  # pixels -1 and 1: output 1
        >>> minus_one = jnp.asarray(-1.0)
        >>> float(validate_jointly(both, 0, ramp, points, jnp.zeros(3), minus_one))
        0.5
    """
    (output,) = validator_outputs(
        validator.network, image, landmarks, euler, image_size
    )
    known = jnp.isfinite(output) & jnp.isfinite(level)
    # As in `validator_outputs`: no NaN on the way of derivatives.
    output, level = jnp.where(known, output, 0), jnp.where(known, level, 0)
    score = likelihood_score(validator.likelihood, scale_index, level)
    score = score + validator.network_weights[scale_index] * output
    return jnp.where(known, jax.nn.sigmoid(score), 0)
