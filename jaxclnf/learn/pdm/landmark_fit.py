"""Pose and mode weights of many faces from their labelled landmarks."""

import dataclasses
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.learn.pdm.shapes import named
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, jacobian, project, retract

CHUNK = 256
"""Faces that are fitted at a time."""
FEWEST_LANDMARKS = 4
"""A face needs so many known landmarks, or its pose is not determined."""
_AT_REST = 1e-6
"""The search stops when a step promises to lower the cost by less."""
_FRONTAL = 0.02
"""How much the first guess of a pose leans towards the front."""


def fit_landmarks(
    pdm: PDM,
    landmarks: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    *,
    noise: Float[np.ndarray, " n"] | None = None,
    max_steps: int = 50,
) -> PDMParams:
    """The most probable pose and mode weights of every face, from its landmarks alone.

    Maximises the posterior probability of landmarks that scatter about the model's
    projection with variance `spread^2 + (scale * noise)^2`, by Gauss-Newton.

    Args:
        pdm: The shape model.
        landmarks: Labels, pixels; values whose spread is infinite do not matter.
        spread: Standard deviation of each label in each direction, pixels; infinite
            for a label that is unknown.
        noise: What the model's modes do not explain of each landmark, millimetres; see
            `LandmarkShapes.noise`. Zero if not given.
        max_steps: Step limit.

    Returns:
        Parameters with a leading axis for the faces.

    Raises:
        ValueError: The arrays do not fit together, a known label is not finite, or a
            face has too few known labels.

    Example:
        >>> points = np.asarray(project(pdm, params))[None]
        >>> found = fit_landmarks(pdm, points, np.full((1, 12), 0.1))
        >>> bool(np.abs(np.asarray(found.scale) - params.scale) < 0.01)
        True
    """
    check_landmarks(landmarks, spread, pdm.num_landmarks)
    if noise is None:
        noise = np.zeros(pdm.num_landmarks)
    points, centre = centred(landmarks, spread)
    start = first_poses(pdm, points, spread)
    found = fit_from(pdm, points, spread, noise, start, max_steps)
    # The weights depend on the scale, which is known better now.
    found = fit_from(pdm, points, spread, noise, found, max_steps)
    return shifted(found, centre)


def check_landmarks(
    landmarks: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    num_landmarks: int | None = None,
) -> None:
    """Refuses labels that cannot be fitted.

    Args:
        landmarks: Labels, pixels.
        spread: Standard deviation of each, pixels; infinite if unknown.
        num_landmarks: How many landmarks the shape model has, if there is one.

    Raises:
        ValueError: The arrays do not fit together, a known label is not finite, or a
            face has too few known labels. The message names the faces.

    Example:
        >>> check_landmarks(np.zeros((2, 5, 2)), np.ones((2, 5)))
    """
    shape = landmarks.shape
    if len(shape) != 3 or shape[-1] != 2 or not shape[0]:
        raise ValueError(f"landmarks is {shape}; expected (f, n, 2), f at least 1")
    if spread.shape != shape[:2]:
        raise ValueError(f"spread is {spread.shape}, but landmarks is {shape}")
    if num_landmarks is not None and shape[1] != num_landmarks:
        raise ValueError(f"{shape[1]} labels a face, but {num_landmarks} landmarks")
    complain("spread is not positive", ~np.all(spread > 0, axis=1))
    known = np.isfinite(spread)
    bad = known & ~np.all(np.isfinite(landmarks), axis=-1)
    complain("a known label is not finite", bad.any(axis=1))
    few = known.sum(axis=1) < FEWEST_LANDMARKS
    complain(f"fewer than {FEWEST_LANDMARKS} known labels", few)


def complain(what: str, bad: Bool[np.ndarray, " f"]) -> None:
    """Raises an error that names the faces it is about, if there are any.

    Args:
        what: The complaint.
        bad: Which faces it is about.

    Raises:
        ValueError: It is about some.

    Example:
        >>> complain("too small", np.asarray([False]))
    """
    if bad.any():
        raise ValueError(f"{what}: {named(np.flatnonzero(bad))}")


def centred(
    landmarks: Float[np.ndarray, "f n 2"], spread: Float[np.ndarray, "f n"]
) -> tuple[Float[np.ndarray, "f n 2"], Float[np.ndarray, "f 2"]]:
    """Labels about their mean, since float32 loses digits far away from zero.

    Args:
        landmarks: Labels, pixels.
        spread: Infinite for unknown ones.

    Returns:
        The centred labels, zero where unknown, and the centres.

    Example:
        >>> points = np.asarray([[[1.0, 2.0], [3.0, 4.0]]])
        >>> centred(points, np.ones((1, 2)))[1].tolist()
        [[2.0, 3.0]]
    """
    known = np.isfinite(spread)[..., None]
    count = known.sum(axis=1)
    centre = np.where(known, landmarks, 0).sum(axis=1) / count
    return np.where(known, landmarks - centre[:, None], 0), centre


def shifted(params: PDMParams, centre: Float[np.ndarray, "f 2"]) -> PDMParams:
    """Parameters of faces that are moved in their pictures.

    Args:
        params: Parameters with a leading axis.
        centre: How far, pixels.

    Returns:
        The moved parameters.

    Example:
        >>> many = jax.tree.map(lambda x: x[None], params)
        >>> shifted(many, np.asarray([[1.0, 2.0]])).translation.shape
        (1, 2)
    """
    translation = params.translation + jnp.asarray(centre, params.translation.dtype)
    return dataclasses.replace(params, translation=translation)


def first_poses(
    pdm: PDM,
    points: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
) -> PDMParams:
    """A first guess of every face's pose: the best affine camera, made a rotation.

    Args:
        pdm: The shape model, of which the mean shape is used.
        points: Labels about their mean, pixels.
        spread: Standard deviation of each, pixels; infinite if unknown.

    Returns:
        Poses without modes, with a leading axis.

    Example:
        >>> points = np.asarray(project(pdm, params))[None] - [[[128.0, 121.0]]]
        >>> guess = first_poses(pdm, points, np.ones((1, 12)))
        >>> bool(abs(guess.scale[0] - params.scale) < 0.1)
        True
    """
    mean = np.asarray(pdm.mean_shape, np.float64)
    weight = np.isfinite(spread).astype(np.float64)
    weight = weight / weight.sum(axis=1, keepdims=True)
    middle = weight @ mean
    offsets = mean - middle[:, None]
    normal = np.einsum("fn,fna,fnb->fab", weight, offsets, offsets)
    lean = _FRONTAL * np.trace(normal, axis1=1, axis2=2)
    normal[:, [0, 1, 2], [0, 1, 2]] += lean[:, None] * [1e-3, 1e-3, 1.0]
    mixed = np.einsum("fn,fna,fnb->fab", weight, offsets, points)
    camera = np.linalg.solve(normal, mixed).swapaxes(1, 2)
    u, sizes, vt = np.linalg.svd(camera, full_matrices=False)
    rows = u @ vt
    rotation = np.concatenate([rows, np.cross(rows[:, :1], rows[:, 1:])], axis=1)
    scale = sizes.mean(axis=1)
    shift = np.einsum("fn,fna->fa", weight, points)
    shift = shift - scale[:, None] * np.einsum("fab,fb->fa", rows, middle)
    dtype = pdm.mean_shape.dtype
    return PDMParams(
        scale=jnp.asarray(scale, dtype),
        rotation=jnp.asarray(rotation, dtype),
        translation=jnp.asarray(shift, dtype),
        params_local=jnp.zeros((len(points), pdm.num_modes), dtype),
    )


def fit_from(
    pdm: PDM,
    points: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    noise: Float[np.ndarray, " n"],
    start: PDMParams,
    max_steps: int,
) -> PDMParams:
    """As `fit_landmarks`, from given parameters and with weights that stay.

    Args:
        pdm: The shape model.
        points: Labels about their mean, pixels.
        spread: Standard deviation of each, pixels; infinite if unknown.
        noise: What the modes do not explain of each landmark, millimetres.
        start: Where to start; its scales decide the weights.
        max_steps: Step limit.

    Returns:
        Parameters with a leading axis.

    Example:
        >>> points = np.asarray(project(pdm, params))[None]
        >>> many = jax.tree.map(lambda x: x[None], params)
        >>> none = np.zeros(12)
        >>> fit_from(pdm, points, np.ones((1, 12)), none, many, 9).scale.shape
        (1,)
    """
    dtype = pdm.mean_shape.dtype
    spread, points, noise = (np.asarray(a, dtype) for a in (spread, points, noise))
    parts = [
        _fit_chunk(pdm, *chunk, noise, max_steps)
        for chunk in chunks((points, spread, start))
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return jax.tree.map(lambda leaf: leaf[: len(points)], joined)


def chunks(tree: tuple) -> list[tuple]:
    """Cuts arrays into chunks of equal length, so that they are compiled for only once.

    Args:
        tree: Arrays with the same leading axis.

    Returns:
        Chunks of `CHUNK` entries; the last one is filled with repetitions of its last
        entry.

    Example:
        >>> [part[0].shape for part in chunks((np.zeros((300, 2)),))]
        [(256, 2), (256, 2)]
    """
    count = len(jax.tree.leaves(tree)[0])
    size = min(CHUNK, count)
    starts = range(0, count, size)
    index = [np.minimum(np.arange(i, i + size), count - 1) for i in starts]
    return [jax.tree.map(itemgetter(i), tree) for i in index]


def label_weights(
    spread: Float[Array, " n"], noise: Float[Array, " n"], scale: Float[Array, ""]
) -> Float[Array, " n"]:
    """The inverse variance of each label of one face.

    Args:
        spread: Standard deviation of each label, pixels; infinite if unknown.
        noise: What the modes do not explain of each landmark, millimetres.
        scale: Pixels per millimetre.

    Returns:
        Weights, zero for unknown labels.

    Example:
        >>> two = jnp.asarray([3.0, jnp.inf])
        >>> label_weights(two, jnp.full(2, 2.0), jnp.asarray(2.0)).tolist()
        [0.04, 0.0]
    """
    known = jnp.isfinite(spread)
    variance = jnp.where(known, spread, 1) ** 2 + (scale * noise) ** 2
    return jnp.where(known, 1 / variance, 0)


class _Search(NamedTuple):
    params: PDMParams
    cost: Float[Array, ""]
    factor: Float[Array, ""]
    num_steps: Int[Array, ""]
    done: Bool[Array, ""]


def _fit_one(
    pdm: PDM,
    points: Float[Array, "n 2"],
    spread: Float[Array, " n"],
    start: PDMParams,
    noise: Float[Array, " n"],
    max_steps: int,
) -> PDMParams:
    weight = label_weights(spread, noise, start.scale)[:, None]
    pose = jnp.zeros(NUM_RIGID, weight.dtype)
    prior = jnp.concatenate([pose, 1 / pdm.eigen_values])

    def cost(params: PDMParams) -> Float[Array, ""]:
        misses = points - project(pdm, params)
        modes = jnp.sum(params.params_local**2 / pdm.eigen_values)
        return jnp.sum(weight * misses**2) + modes

    def step(state: _Search) -> _Search:
        params = state.params
        columns = jacobian(pdm, params)
        weighted = (weight[..., None] * columns).reshape(-1, columns.shape[-1])
        columns = columns.reshape(weighted.shape)
        misses = (points - project(pdm, params)).reshape(-1)
        normal = jnp.matmul(columns.T, weighted, precision="highest") + jnp.diag(prior)
        position = jnp.concatenate([pose, params.params_local])
        slope = jnp.matmul(weighted.T, misses, precision="highest") - prior * position
        # Pixels per radian and per millimetre differ so much that float32 would suffer.
        unit = 1 / jnp.sqrt(jnp.diagonal(normal))
        factors = cho_factor(normal * unit[:, None] * unit[None, :], lower=True)
        delta = unit * cho_solve(factors, unit * slope)
        trial = retract(params, state.factor * delta)
        reached = cost(trial)
        better = reached <= state.cost * (1 + 8 * jnp.finfo(reached.dtype).eps)
        return _Search(
            jax.tree.map(lambda a, b: jnp.where(better, a, b), trial, params),
            jnp.where(better, reached, state.cost),
            jnp.where(better, jnp.ones_like(state.factor), state.factor / 2),
            state.num_steps + 1,
            jnp.sum(slope * delta) < _AT_REST,
        )

    one = jnp.ones((), weight.dtype)
    zero = jnp.zeros((), jnp.int32)
    end = lax.while_loop(
        lambda s: ~s.done & (s.num_steps < max_steps),
        step,
        _Search(start, cost(start), one, zero, jnp.zeros((), bool)),
    )
    return end.params


_fit_chunk = jax.jit(
    jax.vmap(_fit_one, in_axes=(None, 0, 0, 0, None, None)),
    static_argnums=5,
)
