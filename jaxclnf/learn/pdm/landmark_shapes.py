"""A 3D shape model from labelled 2D landmarks alone.

Expectation-maximisation as in Torresani, Hertzmann and Bregler (2008): given the model,
every face gets its pose and the distribution of its mode weights; given those, mean and
modes of each landmark are a linear least-squares problem. After each round the model is
made unique again: modes independent, free of what a pose can do, and largest first.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from jaxclnf.learn.pdm.factorise import rigid_shape
from jaxclnf.learn.pdm.landmark_fit import (
    centred,
    check_landmarks,
    first_poses,
    fit_from,
    shifted,
)
from jaxclnf.learn.pdm.landmark_moments import Moments, label_moments
from jaxclnf.learn.pdm.loadings import (
    DepthRule,
    Loadings,
    depth_rule,
    loadings_of,
    pdm_of,
    symmetric,
    unique,
)
from jaxclnf.learn.pdm.shapes import NUM_FIXED
from jaxclnf.shape.pdm import PDM, PDMParams, project

_FIRST_STEPS = 30
_STEPS = 4
"""Gauss-Newton steps of a face in the first round, and in each later one."""
_FIRST_NOISE = 1.0
_LEAST_NOISE = 0.01
"""Unexplained part of each landmark at the start and at the least, millimetres."""
_HOLD = 1e-3
"""Faces that the last round counts for in x and y."""


@dataclasses.dataclass(frozen=True)
class LandmarkShapes:
    """A shape model learnt from landmarks, and how it fits them."""

    pdm: PDM
    """The model."""
    params: PDMParams
    """Pose and mode weights of every face, with a leading axis."""
    noise: Float64[np.ndarray, " n"]
    """Standard deviation, in each direction, of what the modes do not explain of each
    landmark, millimetres."""
    residuals: Float64[np.ndarray, " r"]
    """RMS distance of the known labels from the projections in each round,
    millimetres."""


def pdm_from_landmarks(
    landmarks: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    *,
    num_modes: int | None = None,
    start: PDM | None = None,
    start_faces: float = 1000.0,
    mirror: Int[np.ndarray, " n"] | None = None,
    num_rounds: int = 30,
    radius: float = 60.0,
    report: Callable[[int, float], None] | None = None,
) -> LandmarkShapes:
    """Learns a shape model from labelled landmarks of many faces.

    Args:
        landmarks: Labels, pixels; values whose spread is infinite do not matter.
        spread: Standard deviation of each label in each direction as far as known,
            pixels; infinite for a label that is unknown.
        num_modes: How many modes; by default as many as `start` has.
        start: Where to start, and what to go by in depth, which faces seen from the
            front hardly tell: the depth of mean and modes is held to what this model
            expects of faces that look like them from the front. If not given, a rigid
            shape is factorised from the landmarks, and modes are held to be flat.
        start_faces: How many faces measured in depth that counts for. The fewer, the
            more the depth comes from faces that are turned.
        mirror: Each landmark's mirror image, see `mirror_index`. If given, every face's
            mirror image counts too and the model is exactly symmetric.
        num_rounds: Rounds of expectation-maximisation.
        radius: Size of the mean shape without `start`: the root-mean-square distance of
            the landmarks from their centre, millimetres. About 60 suits the 68
            landmarks of an adult. With `start` its size and orientation are kept.
        report: Called after each round with the number of rounds done and the RMS
            distance in millimetres.

    Returns:
        The model, and how it fits.

    Raises:
        ValueError: The arrays do not fit together, labels or counts are out of range,
            or, without `start`, the faces turn too little to tell their depth. Messages
            name the faces.

    Example:
        >>> moves = np.random.default_rng(0).normal(0, 5, (60, pdm.num_modes))
        >>> shapes = np.asarray(jax.vmap(shape_3d, (None, 0))(pdm, moves))
        >>> learnt = pdm_from_landmarks(
        ...     shapes[..., :2], np.ones((60, 12)), start=pdm, num_rounds=2)
        >>> bool(learnt.residuals[-1] < 1.0)
        True
    """
    num_landmarks = None if start is None else start.num_landmarks
    check_landmarks(landmarks, spread, num_landmarks)
    num_modes = _checked_counts(
        landmarks, spread, num_modes, start, start_faces, mirror, num_rounds
    )
    num_faces = len(landmarks)
    points, centre = centred(landmarks.astype(np.float64), spread)
    if mirror is not None:
        flipped = points[:, mirror] * np.asarray([-1.0, 1.0])
        points = np.concatenate([points, flipped])
        spread = np.concatenate([spread, spread[:, mirror]])
    if start is None:
        dtype = jax.dtypes.canonicalize_dtype(landmarks.dtype)
        mean = rigid_shape(points, spread, radius)
        model = prior = Loadings(mean, np.zeros((*mean.shape, 0)))
    else:
        dtype = start.mean_shape.dtype
        model = loadings_of(start, num_modes)
        prior = loadings_of(start, start.num_modes)
    pdm = pdm_of(model, dtype)
    noise = np.full(points.shape[1], _FIRST_NOISE)
    params = _from_scratch(pdm, points, spread, noise)
    reference = model.mean
    depth = depth_rule(prior)
    if num_modes > pdm.num_modes:
        extra = _residual_modes(pdm, params, points, spread, num_modes)
        loads = np.concatenate([model.loads, extra], axis=2)
        model = unique(Loadings(model.mean, loads), reference)[0]
        pdm = pdm_of(model, dtype)
        params = _from_scratch(pdm, points, spread, noise)
    residuals = np.zeros(num_rounds)
    for i in range(num_rounds):
        params = fit_from(pdm, points, spread, noise, params, _STEPS)
        moments = label_moments(pdm, points, spread, noise, params)
        residuals[i] = np.sqrt(moments.distance_square)
        model = _maximised(model, depth, moments, noise, start_faces)
        noise = np.maximum(np.sqrt(moments.noise_square), _LEAST_NOISE)
        model, params = _renewed(model, params, moments, pdm, reference)
        pdm = pdm_of(model, dtype)
        if report is not None:
            report(i + 1, float(residuals[i]))
    points, spread = points[:num_faces], spread[:num_faces]
    if mirror is not None:
        noise = (noise + noise[mirror]) / 2
        pdm = pdm_of(symmetric(model, mirror), dtype)
    params = _from_scratch(pdm, points, spread, noise)
    return LandmarkShapes(
        pdm=pdm, params=shifted(params, centre), noise=noise, residuals=residuals
    )


def _checked_counts(
    landmarks: Float[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    num_modes: int | None,
    start: PDM | None,
    start_faces: float,
    mirror: Int[np.ndarray, " n"] | None,
    num_rounds: int,
) -> int:
    num_faces, num_landmarks = spread.shape
    if num_modes is None:
        if start is None:
            raise ValueError("without a start, num_modes must be given")
        num_modes = start.num_modes
    most = min(num_faces - 1, 3 * num_landmarks - NUM_FIXED)
    if not 0 < num_modes <= most:
        raise ValueError(
            f"num_modes: found {num_modes}, expected 1 to {most}: there are {num_faces}"
            f" faces of {num_landmarks} landmarks"
        )
    if not start_faces > 0:
        raise ValueError(f"start_faces is {start_faces}; expected more than 0")
    if num_rounds < 1:
        raise ValueError(f"num_rounds is {num_rounds}; expected at least 1")
    identity = np.arange(num_landmarks)
    if mirror is not None and not (
        mirror.shape == identity.shape
        and np.array_equal(np.sort(mirror), identity)
        and np.array_equal(mirror[mirror], identity)
    ):
        raise ValueError("mirror does not pair the landmarks; see mirror_index")
    never = np.flatnonzero(~np.isfinite(spread).any(axis=0))
    if len(never) and start is None:
        raise ValueError(f"landmarks {never.tolist()} are known in no face")
    return num_modes


def _from_scratch(
    pdm: PDM,
    points: Float64[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    noise: Float64[np.ndarray, " n"],
) -> PDMParams:
    params = first_poses(pdm, points, spread)
    return fit_from(pdm, points, spread, noise, params, _FIRST_STEPS)


def _residual_modes(
    pdm: PDM,
    params: PDMParams,
    points: Float64[np.ndarray, "f n 2"],
    spread: Float[np.ndarray, "f n"],
    num_modes: int,
) -> Float64[np.ndarray, "n 3 k"]:
    projected = np.asarray(jax.vmap(project, in_axes=(None, 0))(pdm, params))
    misses = np.where(np.isfinite(spread)[..., None], points - projected, 0)
    camera = np.asarray(params.rotation)[:, :2]
    camera = camera / np.asarray(params.scale)[:, None, None]
    moves = np.einsum("fna,fab->fnb", misses, camera).reshape(len(points), -1)
    values, vectors = np.linalg.eigh(moves.T @ moves / len(points))
    count = num_modes - pdm.num_modes
    modes = vectors[:, ::-1][:, :count] * np.sqrt(np.maximum(values[::-1][:count], 0))
    return modes.reshape(-1, 3, count)


def _maximised(
    model: Loadings,
    depth: DepthRule,
    moments: Moments,
    noise: Float64[np.ndarray, " n"],
    start_faces: float,
) -> Loadings:
    """Mean and modes that suit the faces best, held to the depths the rule expects."""
    old = np.concatenate([model.mean[..., None], model.loads], axis=2)
    target = old.copy()
    target[:, 2] = depth.expected(old)
    # Faces measured in depth, with no error but the noise; and next to nothing in the
    # other two directions, for landmarks that hardly any face shows.
    faces = np.asarray([_HOLD, _HOLD, start_faces])
    trust = faces / noise[:, None] ** 2
    size = target.shape[2]
    held = np.repeat(trust, size, axis=1)
    normal = moments.normal + held[..., None] * np.eye(3 * size)
    right = moments.mixed + held * target.reshape(held.shape)
    solved = np.linalg.solve(normal, right[..., None]).reshape(target.shape)
    return Loadings(solved[..., 0], solved[..., 1:])


def _renewed(
    model: Loadings,
    params: PDMParams,
    moments: Moments,
    pdm: PDM,
    reference: Float64[np.ndarray, "n 3"],
) -> tuple[Loadings, PDMParams]:
    """Makes the model unique again, and moves the parameters along."""
    centre = moments.mode_mean
    factor = np.linalg.cholesky(moments.mode_square - np.outer(centre, centre))
    model = Loadings(model.mean + model.loads @ centre, model.loads @ factor)
    model, turn, move = unique(model, reference)
    deviations = np.sqrt(np.asarray(pdm.eigen_values, np.float64))
    latent = np.asarray(params.params_local) / deviations
    latent = np.linalg.solve(factor, (latent - centre).T).T @ turn
    local = latent * np.sqrt(np.sum(model.loads**2, axis=(0, 1)))
    scale, old = np.asarray(params.scale), np.asarray(params.rotation)
    shift = scale[:, None] * (old[:, :2] @ move.middle) + np.asarray(params.translation)
    arrays = [scale / move.size, old @ move.rotation.T, shift, local]
    scale, turned, shift, local = (jnp.asarray(x, scale.dtype) for x in arrays)
    return model, PDMParams(
        scale=scale, rotation=turned, translation=shift, params_local=local
    )
