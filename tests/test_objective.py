"""Gradient and curvatures of F against automatic differentiation and plain NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.shape.pdm import jacobian, project, retract
from jaxclnf.solver.evidence import (
    evaluate,
    has_evidence,
    landmark_positions,
    landmark_weights,
    mean_shifts,
)
from jaxclnf.solver.objective import (
    curvature,
    em_curvature,
    gradient,
    objective,
    objective_terms,
)
from jaxclnf.solver.options import NURLMSOptions
from tests import synthetic

TOL = 1e-12  # float64, relative to the largest entry of a row


_objective = jax.jit(objective)
_gradient = jax.jit(gradient, static_argnames="rigid")
_curvature = jax.jit(curvature, static_argnames="rigid")
_em_curvature = jax.jit(em_curvature, static_argnames="rigid")
_shifts = jax.jit(mean_shifts)


def _climbed(pdm, responses, params, options, delta):
    return objective(pdm, responses, retract(params, delta), options)


_automatic_gradient = jax.jit(jax.grad(_climbed, argnums=4))
_automatic_hessian = jax.jit(jax.hessian(_climbed, argnums=4))


def _options(**changes) -> NURLMSOptions:
    """Always arrays, so that all cases share one compilation."""
    numbers = {"sigma": 1.5, "reg_factor": 25.0, "weight_factor": 0.0} | changes
    arrays = {name: jnp.asarray(x) for name, x in numbers.items()}
    return dataclasses.replace(NURLMSOptions(), **arrays)


CASES = {
    "plain": {},
    "weights": {"weight_factor": 2.5},
    "no prior": {"reg_factor": 0.0},
    "wide, strong prior": {"sigma": 3.0, "reg_factor": 200.0},
}


@pytest.fixture(params=CASES)
def options(request: pytest.FixtureRequest) -> NURLMSOptions:
    return _options(**CASES[request.param])


@pytest.fixture(scope="module", params=["all seen", "some hidden or empty"])
def responses(request: pytest.FixtureRequest, example: dict):
    responses = example["responses"]
    if request.param == "all seen":
        return responses
    return dataclasses.replace(
        responses,
        maps=responses.maps.at[4].set(0),
        visibility=responses.visibility.at[1].set(False).at[10].set(False),
    )


@pytest.fixture(scope="module")
def params(example: dict):
    """Away from the base shape, turned, and some landmarks beyond their windows."""
    return synthetic.make_params(
        example["pdm"],
        scale=1.2,
        euler=(0.3, -0.5, 0.1),
        translation=(131.0, 117.0),
        modes=1.3,
    )


def _close(found, expected) -> None:
    expected = np.asarray(expected)
    atol = TOL * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_objective_against_numpy(example, responses, params, options):
    pdm = example["pdm"]
    shape = np.asarray(project(pdm, params))
    a = np.asarray(responses.ref_from_img)
    moved = (shape - np.asarray(responses.base_shape)) @ a.T + 3
    np.testing.assert_allclose(
        landmark_positions(responses, jnp.asarray(shape)), moved, rtol=0, atol=1e-12
    )
    rows, columns = np.mgrid[:7, :7]
    sigma, factor = float(options.sigma), float(options.weight_factor)
    total = 0.0
    for i, (x, y) in enumerate(moved):
        kernel = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        density = np.sum(np.asarray(responses.maps[i]) * kernel)
        weight = factor * float(responses.confidence[i]) if factor else 1.0
        if bool(responses.visibility[i]) and density > 0:
            total += weight / np.linalg.det(a) * sigma**2 * np.log(density)
    prior = np.sum(np.asarray(params.params_local**2 / pdm.eigen_values))
    total -= float(options.reg_factor) / 2 * prior
    found = _objective(pdm, responses, params, options)
    np.testing.assert_allclose(found, total, rtol=1e-12)


@pytest.mark.parametrize("rigid", [True, False])
def test_gradient_is_the_automatic_one(example, responses, params, options, rigid):
    args = example["pdm"], responses, params, options
    automatic = _automatic_gradient(*args, jnp.zeros(10))
    found = _gradient(*args, rigid=rigid)
    _close(found, automatic[:6] if rigid else automatic)


@pytest.mark.parametrize("rigid", [True, False])
def test_curvature_is_the_automatic_one(example, responses, params, options, rigid):
    args = example["pdm"], responses, params, options
    automatic = -_automatic_hessian(*args, jnp.zeros(10))
    found = _curvature(*args, rigid=rigid)
    _close(found, automatic[:6, :6] if rigid else automatic)


@pytest.mark.parametrize("rigid", [True, False])
def test_em_curvature_is_the_normal_matrix(example, responses, params, options, rigid):
    pdm = example["pdm"]
    columns = np.asarray(jacobian(pdm, params)).reshape(24, -1)
    weights = np.repeat(landmark_weights(responses, options), 2)
    precision = np.concatenate(
        [np.zeros(6), float(options.reg_factor) / np.asarray(pdm.eigen_values)]
    )
    expected = columns.T @ np.diag(weights) @ columns + np.diag(precision)
    found = _em_curvature(pdm, responses, params, options, rigid=rigid)
    _close(found, expected[:6, :6] if rigid else expected)


def test_weights(example, responses):
    used = np.asarray(has_evidence(responses))
    np.testing.assert_array_equal(landmark_weights(responses, _options()), used * 1.0)
    weighted = landmark_weights(responses, _options(weight_factor=2.5))
    expected = 2.5 * np.asarray(responses.confidence) * used
    np.testing.assert_array_equal(weighted, expected)


def test_hidden_and_empty_landmarks_say_nothing(example, responses, params, options):
    silent = ~np.asarray(has_evidence(responses))
    evidence = evaluate(example["pdm"], responses, params, options)
    np.testing.assert_array_equal(evidence.mean_shifts[silent], 0)
    assert np.all(np.asarray(evidence.log_densities)[silent] == -np.inf)
    assert np.all(np.isfinite(np.asarray(evidence.log_densities)[~silent]))
    terms = objective_terms(example["pdm"], responses, params, evidence, options)
    np.testing.assert_array_equal(terms[:12][silent], 0)
    np.testing.assert_allclose(
        terms.sum(), _objective(example["pdm"], responses, params, options), rtol=TOL
    )


def test_mean_shifts_are_in_the_image_frame(example, params):
    """All weight on one pixel: the landmark is told to go exactly there."""
    pdm, responses = example["pdm"], example["responses"]
    maps = jnp.zeros_like(responses.maps).at[:, 5, 1].set(1.0)
    spiked = dataclasses.replace(responses, maps=maps)
    shifts = _shifts(pdm, spiked, params, _options())
    target = np.asarray(responses.base_shape) + np.asarray(
        responses.img_from_ref
    ) @ np.asarray([1.0 - 3, 5.0 - 3])
    reached = np.asarray(project(pdm, params) + shifts)
    np.testing.assert_allclose(reached, target, rtol=0, atol=1e-10)


def test_scaled_maps_change_no_derivative(example, responses, params, options):
    scaled = dataclasses.replace(responses, maps=1e-3 * responses.maps)
    args = params, options
    _close(
        _gradient(example["pdm"], scaled, *args),
        _gradient(example["pdm"], responses, *args),
    )


def test_prior_alone(example, params):
    """With nothing to see, F is the prior."""
    pdm = example["pdm"]
    blind = jax.tree.map(jnp.zeros_like, example["responses"].visibility)
    responses = dataclasses.replace(example["responses"], visibility=blind)
    args = pdm, responses, params, _options()
    ratio = params.params_local / pdm.eigen_values
    expected = -25 / 2 * jnp.sum(params.params_local * ratio)
    np.testing.assert_allclose(_objective(*args), expected, rtol=TOL)
    slope = jnp.concatenate([jnp.zeros(6), -25 * ratio])
    np.testing.assert_allclose(_gradient(*args), slope, rtol=TOL)
    bend = np.diag(np.concatenate([np.zeros(6), 25 / np.asarray(pdm.eigen_values)]))
    np.testing.assert_allclose(_curvature(*args), bend, rtol=0, atol=TOL)
