"""Similarity transforms between two 2D shapes."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def align_shapes(
    source: Float[Array, "n 2"],
    target: Float[Array, "n 2"],
    visible: Bool[Array, " n"] | None = None,
) -> Float[Array, "2 2"]:
    """Scale times rotation that carries `source` onto `target`, both about their means.

    The rotation is the least-squares one. The scale is the ratio of the two RMS sizes,
    not the least-squares scale, so that the transform from `target` to `source` is
    exactly the inverse.

    Args:
        source: Points, any unit.
        target: The corresponding points.
        visible: Points to use; all if not given. Values of others do not matter.

    Returns:
        `A` with `target - mean(target) ~ (source - mean(source)) @ A.T`.

    Mirrors:
        Utilities::AlignShapesWithScale.

    Example:
        >>> square = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> turned = 2 * square @ jnp.asarray([[0.0, 1.0], [-1.0, 0.0]]) + 5
        >>> turn = jnp.asarray([[0.0, -2.0], [2.0, 0.0]])
        >>> bool(jnp.allclose(align_shapes(square, turned), turn, atol=1e-6))
        True
    """
    if visible is None:
        weights = jnp.ones_like(source[:, :1])
    else:
        weights = visible[:, None].astype(source.dtype)
        source = jnp.where(visible[:, None], source, 0)
        target = jnp.where(visible[:, None], target, 0)
    count = weights.sum()
    source = (source - (weights * source).sum(0, keepdims=True) / count) * weights
    target = (target - (weights * target).sum(0, keepdims=True) / count) * weights
    scale = jnp.sqrt(jnp.sum(target**2) / jnp.sum(source**2))
    cosine = jnp.sum(source * target)
    sine = jnp.sum(source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0])
    norm = jnp.sqrt(cosine**2 + sine**2)
    return similarity_matrix(scale * cosine / norm, scale * sine / norm)


def similarity_matrix(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, "2 2"]:
    """The matrix `[[a, -b], [b, a]]`: scale `hypot(a, b)`, angle `arctan2(b, a)`.

    Args:
        a: Scale times cosine.
        b: Scale times sine.

    Returns:
        The matrix.

    Example:
        >>> similarity_matrix(jnp.asarray(0.0), jnp.asarray(1.0)).tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    return jnp.stack([jnp.stack([a, -b]), jnp.stack([b, a])])


def inverse_similarity(matrix: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    """The inverse of a scale times a rotation.

    Args:
        matrix: `[[a, -b], [b, a]]`.

    Returns:
        Its inverse.

    Example:
        >>> inverse_similarity(2 * jnp.eye(2)).tolist()
        [[0.5, 0.0], [-0.0, 0.5]]
    """
    a, b = matrix[0, 0], matrix[1, 0]
    squared = a**2 + b**2
    return similarity_matrix(a / squared, -b / squared)
