"""Parameters from a face box, and from given landmarks."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.linalg import solve_positive
from jaxclnf.shape.pdm import (
    NUM_RIGID,
    PDM,
    PDMParams,
    jacobian,
    project,
    retract,
    shape_3d,
)

_REST = 1e-4
"""The converged estimate stops when a step moves all landmarks together by less, px."""


def params_from_box(
    pdm: PDM,
    box: Float[Array, " 4"],
    rotation: Float[Array, "3 3"] | None = None,
    params_local: Float[Array, " m"] | None = None,
) -> PDMParams:
    """The pose at which a shape fills a box.

    Args:
        pdm: The shape model.
        box: `(x, y, width, height)` tight around the landmarks, pixels.
        rotation: Rotation matrix of the face; frontal if not given.
        params_local: Weights of the modes; zero if not given.

    Returns:
        Parameters whose scale is the mean of the two sides' ratios, centred in the box.

    Raises:
        ValueError: The box has not four numbers.

    Mirrors:
        PDM::CalcParams, from a bounding box.

    Example:
        >>> start = params_from_box(pdm, jnp.asarray([10.0, 20.0, 100.0, 100.0]))
        >>> x, y, width, height = bounding_box(project(pdm, start))
        >>> bool(jnp.allclose(jnp.stack([x + width / 2, y + height / 2]),
        ...     jnp.asarray([60.0, 70.0]), atol=1e-3))
        True
    """
    dtype = pdm.mean_shape.dtype
    box = jnp.asarray(box, dtype)
    if box.shape != (4,):
        raise ValueError(f"box has shape {box.shape}; expected (x, y, width, height)")
    if rotation is None:
        rotation = jnp.eye(3, dtype=dtype)
    if params_local is None:
        params_local = jnp.zeros(pdm.num_modes, dtype)
    turned = jnp.matmul(shape_3d(pdm, params_local), rotation.T, precision="highest")
    low, high = turned[:, :2].min(axis=0), turned[:, :2].max(axis=0)
    scale = jnp.mean(box[2:] / (high - low))
    return PDMParams(
        scale=scale,
        rotation=rotation,
        translation=box[:2] + box[2:] / 2 - scale * (low + high) / 2,
        params_local=params_local,
    )


class _Target(NamedTuple):
    landmarks: Float[Array, "n 2"]
    weight: Float[Array, "n 1"]


class _Search(NamedTuple):
    params: PDMParams
    error: Float[Array, ""]
    num_bad: Int[Array, ""]
    num_steps: Int[Array, ""]
    done: Bool[Array, ""]


@partial(jax.jit, static_argnames=("dialect", "max_steps"))
def params_from_landmarks(
    pdm: PDM,
    landmarks: Float[Array, "n 2"],
    *,
    visible: Bool[Array, " n"] | None = None,
    rotation: Float[Array, "3 3"] | None = None,
    dialect: Literal["converged", "openface"] = "converged",
    max_steps: int = 1000,
) -> PDMParams:
    """Parameters whose projection comes nearest to given landmarks.

    Minimises `sum |x_i(p) - landmark_i|^2 + sum_j q_j^2 / E_j` over the visible
    landmarks by Gauss-Newton, that is with a prior of 1 px^2.

    Args:
        pdm: The shape model.
        landmarks: Points, pixels; values of invisible ones do not matter.
        visible: Which landmarks to use; all if not given. With fewer than two the
            result is NaN.
        rotation: Where to start; frontal if not given.
        dialect: `"converged"` goes on until the landmarks rest, with steps halved
            where they do not help; `"openface"` takes the reference's three-quarter
            steps and its stop: the third time that an error, taken with the new pose
            but the old modes, exceeds 0.999 of the one before.
        max_steps: Step limit.

    Returns:
        The parameters; modes are not limited.

    Raises:
        ValueError: The dialect is neither of the two, or the landmarks are not as many
            as the model's.

    Mirrors:
        PDM::CalcParams, from landmarks.

    Example:
        >>> found = params_from_landmarks(pdm, project(pdm, params))
        >>> bool(jnp.allclose(project(pdm, found), project(pdm, params), atol=0.1))
        True
    """
    if dialect not in ("converged", "openface"):
        raise ValueError(f"dialect is {dialect!r}; expected 'converged' or 'openface'")
    if landmarks.shape != (pdm.num_landmarks, 2):
        raise ValueError(
            f"landmarks have shape {landmarks.shape}; expected {(pdm.num_landmarks, 2)}"
        )
    dtype = pdm.mean_shape.dtype
    landmarks = jnp.asarray(landmarks, dtype)
    if visible is None:
        visible = jnp.ones(landmarks.shape[0], bool)
    rotation = jnp.eye(3, dtype=dtype) if rotation is None else rotation.astype(dtype)
    seen = visible[:, None]
    landmarks = jnp.where(seen, landmarks, 0)
    low, high = _extent(landmarks, seen)
    centre = (low + high) / 2
    # Away from the face's own place float32 would lose digits.
    target = _Target(
        jnp.where(seen, landmarks - centre[None, :], 0), seen.astype(dtype)
    )
    turned = jnp.matmul(pdm.mean_shape, rotation.T, precision="highest")
    model_low, model_high = _extent(turned[:, :2], seen)
    start = PDMParams(
        scale=jnp.mean((high - low) / (model_high - model_low)),
        rotation=rotation,
        translation=jnp.zeros_like(centre),
        params_local=jnp.zeros_like(pdm.eigen_values),
    )
    if dialect == "converged":
        step, error = _converged_step, _cost(pdm, target, start)
    else:
        step, error = _openface_step, _distance(pdm, target, start)
    zero = jnp.zeros((), jnp.int32)
    end = lax.while_loop(
        lambda s: ~s.done & (s.num_steps < max_steps),
        lambda s: step(pdm, target, s),
        _Search(start, error, zero, zero, jnp.zeros((), bool)),
    )
    return dataclasses.replace(end.params, translation=end.params.translation + centre)


def _openface_step(pdm: PDM, target: _Target, state: _Search) -> _Search:
    params = retract(state.params, 0.75 * _gauss_newton(pdm, target, state.params))
    old_modes = dataclasses.replace(params, params_local=state.params.params_local)
    error = _distance(pdm, target, old_modes)
    # Written so that a NaN counts, and ends the search.
    no_better = ~(error <= 0.999 * state.error)
    num_bad = state.num_bad + no_better.astype(jnp.int32)
    return _Search(params, error, num_bad, state.num_steps + 1, num_bad >= 3)


def _converged_step(pdm: PDM, target: _Target, state: _Search) -> _Search:
    halvings = state.num_bad.astype(state.error.dtype)
    step = 0.5**halvings * _gauss_newton(pdm, target, state.params)
    columns = target.weight[:, :, None] * jacobian(pdm, state.params)
    moved = jnp.einsum("nad,d->na", columns, step, precision="highest")
    params = retract(state.params, step)
    error = _cost(pdm, target, params)
    rounding = 8 * jnp.finfo(error.dtype).eps
    bad = ~(error <= state.error * (1 + rounding))
    return _Search(
        jax.tree.map(lambda a, b: jnp.where(bad, a, b), state.params, params),
        jnp.where(bad, state.error, error),
        jnp.where(bad, state.num_bad + 1, 0),
        state.num_steps + 1,
        # A NaN ends the search too.
        ~(jnp.sum(moved**2) >= _REST**2),
    )


def _gauss_newton(pdm: PDM, target: _Target, params: PDMParams) -> Float[Array, " d"]:
    columns = target.weight[:, :, None] * jacobian(pdm, params)
    columns = columns.reshape(-1, columns.shape[-1])
    pose = jnp.zeros(NUM_RIGID, columns.dtype)
    precision = jnp.concatenate([pose, 1 / pdm.eigen_values])
    position = jnp.concatenate([pose, params.params_local])
    normal = jnp.matmul(columns.T, columns, precision="highest") + jnp.diag(precision)
    misses = _misses(pdm, target, params).reshape(-1)
    slope = jnp.matmul(columns.T, misses, precision="highest") - precision * position
    return solve_positive(normal, slope)


def _misses(pdm: PDM, target: _Target, params: PDMParams) -> Float[Array, "n 2"]:
    return target.weight * (target.landmarks - project(pdm, params))


def _distance(pdm: PDM, target: _Target, params: PDMParams) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(_misses(pdm, target, params) ** 2))


def _cost(pdm: PDM, target: _Target, params: PDMParams) -> Float[Array, ""]:
    prior = jnp.sum(params.params_local**2 / pdm.eigen_values)
    return jnp.sum(_misses(pdm, target, params) ** 2) + prior


def _extent(
    points: Float[Array, "n 2"], seen: Bool[Array, "n 1"]
) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
    low = jnp.min(jnp.where(seen, points, jnp.inf), axis=0)
    return low, jnp.max(jnp.where(seen, points, -jnp.inf), axis=0)
