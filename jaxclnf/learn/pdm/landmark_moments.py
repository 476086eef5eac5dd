"""What many labelled faces tell about mean, modes and noise of a shape model."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Float64

from jaxclnf.learn.pdm.landmark_fit import chunks, label_weights
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, jacobian, project


class Moments(NamedTuple):
    """Sums and means over faces, for a linear model with standard normal weights.

    `s` is three times one plus the number of modes: for each landmark the three
    directions of its mean and of its moves with each mode.
    """

    normal: Float64[np.ndarray, "n s s"]
    """Normal matrix of each landmark's mean and moves."""
    mixed: Float64[np.ndarray, "n s"]
    """Right-hand side for them."""
    mode_mean: Float64[np.ndarray, " m"]
    """Mean of the weights, in standard deviations of the modes."""
    mode_square: Float64[np.ndarray, "m m"]
    """Mean of their products, their uncertainty included."""
    noise_square: Float64[np.ndarray, " n"]
    """Mean square, in each direction, of what the modes do not explain, mm^2."""
    distance_square: Float64[np.ndarray, ""]
    """Mean square distance between label and projection, mm^2."""


def label_moments(
    pdm: PDM,
    points: Float64[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    noise: Float64[np.ndarray, " n"],
    params: PDMParams,
) -> Moments:
    """Moments over faces whose pose and most probable weights are known.

    Args:
        pdm: The shape model that they are fitted with.
        points: Labels about their mean, pixels.
        spread: Standard deviation of each, pixels; infinite if unknown.
        noise: What the modes do not explain of each landmark, millimetres.
        params: Parameters of every face, as `fit_from` gives them.

    Returns:
        The moments. Poses are taken as given, weights as normally distributed.

    Example:
        >>> points = np.asarray(project(pdm, params))[None]
        >>> many = jax.tree.map(lambda x: x[None], params)
        >>> none = np.full(12, 0.1)
        >>> label_moments(pdm, points, np.ones((1, 12)), none, many).normal.shape
        (12, 15, 15)
    """
    dtype = pdm.mean_shape.dtype
    real = np.ones(len(points), dtype)
    parts = []
    for i, chunk in enumerate(chunks((points.astype(dtype), spread, params, real))):
        *arrays, count = chunk
        # The last chunk is filled up with repetitions, which do not count.
        count = count * (i * len(count) + np.arange(len(count)) < len(points))
        part = _chunk_moments(pdm, *arrays, count.astype(dtype), noise.astype(dtype))
        parts.append([np.asarray(x, np.float64) for x in part])
    total = Moments(*(np.sum(leaves, axis=0) for leaves in zip(*parts, strict=True)))
    known = np.maximum(np.isfinite(spread).sum(axis=0), 1)
    return total._replace(
        mode_mean=total.mode_mean / len(points),
        mode_square=total.mode_square / len(points),
        noise_square=total.noise_square / known,
        distance_square=total.distance_square / known.sum(),
    )


@jax.jit
def _chunk_moments(
    pdm: PDM,
    points: Float[Array, "f n 2"],
    spread: Float[Array, "f n"],
    params: PDMParams,
    count: Float[Array, " f"],
    noise: Float[Array, " n"],
) -> tuple[Array, ...]:
    spread = spread.astype(points.dtype)
    faces = jax.vmap(_face_moments, in_axes=(None, 0, 0, 0, None))
    weight, gram, target, first, square, noise_square, distance_square = faces(
        pdm, points, spread, params, noise
    )
    weight = weight * count[:, None]
    blocks = jnp.einsum("fab,fkl->fakbl", gram, square)
    size = blocks.shape[1] * blocks.shape[2]
    product = partial(jnp.einsum, precision="highest")
    normal = product("fn,fx->nx", weight, blocks.reshape(len(count), -1))
    mixed = product("fn,fna,fk->nak", weight, target, first)
    return (
        normal.reshape(-1, size, size),
        mixed.reshape(-1, size),
        product("f,fk->k", count, first[:, 1:]),
        product("f,fkl->kl", count, square[:, 1:, 1:]),
        product("f,fn->n", count, noise_square),
        product("f,f->", count, distance_square),
    )


def _face_moments(
    pdm: PDM,
    points: Float[Array, "n 2"],
    spread: Float[Array, " n"],
    params: PDMParams,
    noise: Float[Array, " n"],
) -> tuple[Array, ...]:
    weight = label_weights(spread, noise, params.scale)
    deviation = jnp.sqrt(pdm.eigen_values)
    columns = jacobian(pdm, params)[..., NUM_RIGID:] * deviation[None, None]
    # The pose is a parameter, so this is the spread of the modes at that pose.
    precision = jnp.einsum(
        "nak,n,nal->kl", columns, weight, columns, precision="highest"
    )
    unit = jnp.eye(len(deviation), dtype=deviation.dtype)
    covariance = cho_solve(cho_factor(precision + unit, lower=True), unit)
    latent = params.params_local / deviation
    first = jnp.concatenate([jnp.ones((1,), latent.dtype), latent])
    square = first[:, None] * first[None, :] + jnp.pad(covariance, ((1, 0), (1, 0)))
    camera = params.scale * params.rotation[:2]
    gram = jnp.matmul(camera.T, camera, precision="highest")
    target = jnp.matmul(points - params.translation[None], camera, precision="highest")
    misses = points - project(pdm, params)
    uncertain = jnp.einsum("nak,kl,nal->n", columns, covariance, columns)
    squared = params.scale**2
    seen = jnp.isfinite(spread)
    found = (jnp.sum(misses**2, axis=1) + uncertain) / 2 / squared
    label = jnp.where(seen, spread, 0) ** 2 / squared
    # What is missed is partly the label's own error, partly the model's.
    share = noise**2 / (noise**2 + label)
    noise_square = jnp.where(seen, share**2 * found + share * label, 0)
    distance = jnp.sum(jnp.where(seen[:, None], misses, 0) ** 2) / squared
    return weight, gram, target, first, square, noise_square, distance
