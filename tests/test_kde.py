"""The kernel density estimate against plain sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from jaxclnf.solver.kde import (
    _by_pixels,
    _by_rows,
    kde_moments,
    kernel_weights,
    log_kde,
)

TOL = 1e-12  # float64: sums of a hundred terms
FLOAT32_TOL = 5e-6  # px of the map, the same in float32

WINDOW = 9
few_examples = settings(max_examples=20, deadline=None, derandomize=True)

_log_kde = jax.jit(log_kde)
_moments = jax.jit(kde_moments)


def _density(maps, positions, sigma):
    return log_kde(maps, positions, sigma)[0].sum()


_slope = jax.jit(jax.grad(_density, argnums=1))
_bend = jax.jit(
    jax.vmap(
        lambda m, d, s: jax.hessian(lambda x: _density(m[None], x[None], s))(d),
        in_axes=(0, 0, None),
    )
)


def _naive(maps, positions, sigma):
    """Log density, mean shift and covariance of each landmark, in log space."""
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    grid = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    densities, shifts, covariances = [], [], []
    for pixels, d in zip(maps, positions, strict=True):
        exponent = -np.sum((grid - d) ** 2, axis=1) / (2 * sigma**2)
        densities.append(logsumexp(exponent, b=pixels.ravel()))
        with np.errstate(divide="ignore"):
            weights = np.exp(exponent + np.log(pixels.ravel()) - densities[-1])
        mean = weights @ grid
        shifts.append(mean - d)
        covariances.append((weights[:, None] * (grid - mean)).T @ (grid - mean))
    return np.asarray(densities), np.asarray(shifts), np.asarray(covariances)


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Random maps with some zeros; positions inside and outside."""
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (8, WINDOW, WINDOW))
    maps[:4][maps[:4] < 0.8] = 0
    return maps, rng.uniform(-6, WINDOW + 5, (8, 2))


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4.0])
def test_against_plain_sums(problem, sigma):
    maps, positions = problem
    densities, shifts, covariances = _naive(maps, positions, sigma)
    args = jnp.asarray(maps), jnp.asarray(positions), jnp.asarray(sigma)
    found = _log_kde(*args)
    np.testing.assert_allclose(found[0], densities, rtol=TOL, atol=TOL)
    np.testing.assert_allclose(found[1], shifts, rtol=TOL, atol=TOL)
    moments = _moments(*args)
    for both, alone in zip(moments[:2], found, strict=True):
        np.testing.assert_allclose(both, alone, rtol=TOL, atol=TOL)
    np.testing.assert_allclose(moments[2], covariances, rtol=1e-9, atol=TOL)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_row_by_row_and_pixel_by_pixel(problem, dtype):
    """The fast way says itself where it does not do; both ways agree where it does."""
    maps, positions = (x.astype(dtype) for x in problem)
    sigma = jnp.asarray(1.5, dtype)
    tol = 1e-12 if dtype == np.float64 else 1e-5
    fast, is_exact = jax.jit(_by_rows, static_argnums=3)(maps, positions, sigma, True)
    slow = jax.jit(_by_pixels, static_argnums=3)(maps, positions, sigma, True)
    assert is_exact
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
    lonely = np.zeros_like(maps)
    lonely[:, -1, -1] = 1
    far = np.full_like(positions, -400)
    _, is_exact = jax.jit(_by_rows, static_argnums=3)(lonely, far, sigma, True)
    assert not is_exact
    faces = [jnp.asarray(np.stack(x)) for x in ([maps, lonely], [positions, far])]
    both = jax.vmap(_moments, in_axes=(0, 0, None))(*faces, sigma)
    for k, row in enumerate(zip(*faces, strict=True)):
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=tol, atol=tol),
            both,
            _moments(*row, sigma),
        )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("distance", [1e2, 1e4])
def test_far_outside_nothing_underflows(problem, dtype, distance):
    maps = problem[0].astype(dtype)
    corners = np.asarray([[1, 1], [-1, 1], [1, 0], [0.3, -1]] * 2)
    positions = (distance * corners).astype(dtype)
    densities, shifts = _log_kde(
        jnp.asarray(maps), jnp.asarray(positions), jnp.asarray(1.5, dtype)
    )
    expected = _naive(maps.astype(float), positions.astype(float), 1.5)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(densities, expected[0], rtol=4 * eps)
    # A rounding of the exponent, k eps, is an error of that much in the weights.
    size = np.abs(expected[0])[:, None] * 8 * eps * WINDOW
    error = np.abs(np.asarray(shifts, float) - expected[1])
    assert np.all(error < np.minimum(size + 1e-4, WINDOW))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_map_of_zeros_says_nothing(dtype):
    maps = jnp.zeros((1, WINDOW, WINDOW), dtype)
    args = maps, jnp.asarray([[1.0, 2.0]], dtype), jnp.asarray(1.5, dtype)
    density, shift = _log_kde(*args)
    assert np.asarray(density) == -np.inf
    np.testing.assert_array_equal(shift, 0)
    np.testing.assert_array_equal(_moments(*args)[2], 0)
    weights, largest = kernel_weights(*args)
    np.testing.assert_array_equal(weights, 0)
    np.testing.assert_array_equal(largest, 0)
    np.testing.assert_array_equal(_slope(*args), 0)


def test_a_map_of_zeros_leaves_its_neighbours_alone(problem):
    maps, positions = problem
    emptied = maps.copy()
    emptied[2] = 0
    sigma = jnp.asarray(1.5)
    before = _log_kde(jnp.asarray(maps), jnp.asarray(positions), sigma)
    after = _log_kde(jnp.asarray(emptied), jnp.asarray(positions), sigma)
    others = np.arange(8) != 2
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a[others], b[others])


@pytest.mark.parametrize("value", [1.0, 1e-30, 1e30])
def test_a_single_pixel_pulls_all_the_way(value):
    maps = np.zeros((1, WINDOW, WINDOW), np.float32)
    maps[0, 7, 2] = value
    position = np.asarray([[30.0, -50.0]], np.float32)
    args = jnp.asarray(maps), jnp.asarray(position), jnp.asarray(1.5, jnp.float32)
    density, shift = _log_kde(*args)
    np.testing.assert_array_equal(shift, [[2 - 30, 7 + 50]])
    expected = np.log(np.float32(value)) - (28**2 + 57**2) / 4.5
    np.testing.assert_allclose(density, expected, rtol=1e-6)
    np.testing.assert_array_equal(_moments(*args)[2], 0)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_the_gradient_is_the_mean_shift(problem, sigma):
    args = tuple(map(jnp.asarray, (*problem, sigma)))
    np.testing.assert_allclose(
        sigma**2 * _slope(*args), _log_kde(*args)[1], rtol=0, atol=TOL
    )


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_the_curvature_is_the_covariance(problem, sigma):
    args = tuple(map(jnp.asarray, (*problem, sigma)))
    expected = (np.asarray(_moments(*args)[2]) / sigma**2 - np.eye(2)) / sigma**2
    np.testing.assert_allclose(_bend(*args), expected, rtol=0, atol=10 * TOL)


@few_examples
@given(exponent=st.floats(-20, 20))
def test_scaling_a_map_adds_a_constant_and_moves_nothing(problem, exponent):
    maps, positions = problem
    factor = 10.0**exponent
    sigma = jnp.asarray(1.5)
    density, shift = _log_kde(jnp.asarray(maps), jnp.asarray(positions), sigma)
    scaled = _log_kde(jnp.asarray(factor * maps), jnp.asarray(positions), sigma)
    np.testing.assert_allclose(scaled[0], density + np.log(factor), rtol=0, atol=1e-11)
    np.testing.assert_allclose(scaled[1], shift, rtol=0, atol=1e-11)


def test_float32_against_float64(problem):
    maps, positions = (x.astype(np.float32) for x in problem)
    densities, shifts, covariances = _naive(
        maps.astype(float), positions.astype(float), 1.5
    )
    args = jnp.asarray(maps), jnp.asarray(positions), jnp.asarray(1.5, jnp.float32)
    density, shift = _log_kde(*args)
    covariance = _moments(*args)[2]
    assert {density.dtype, shift.dtype, covariance.dtype} == {jnp.dtype("float32")}
    np.testing.assert_allclose(density, densities, rtol=1e-6, atol=FLOAT32_TOL)
    np.testing.assert_allclose(shift, shifts, rtol=0, atol=FLOAT32_TOL)
    np.testing.assert_allclose(covariance, covariances, rtol=0, atol=FLOAT32_TOL)
