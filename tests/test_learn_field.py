"""The field as a Gaussian against SciPy, plain loops, the experts, and differences."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from jaxclnf.experts.ccnf import ccnf_responses
from jaxclnf.experts.sigma import with_sigma
from jaxclnf.learn.ccnf.experts import ViewFields, assemble_experts
from jaxclnf.learn.ccnf.field import (
    FieldParams,
    evidence_sums,
    field_means,
    log_likelihood,
    precision_matrices,
)
from jaxclnf.learn.ccnf.neighbours import NUM_NEIGHBOURS, neighbour_matrices

TOL = 1e-11  # float64: some thousand roundings of numbers about 1
FLOAT32_TOL = 2e-5  # the same in float32, a condition number of 10

FACES, LANDMARKS, NEURONS, SUPPORT, WINDOW = 4, 3, 2, 5, 7
few_examples = settings(max_examples=10, deadline=None, derandomize=True)

_evidence = jax.jit(evidence_sums)
_means = jax.jit(field_means)
_precision = jax.jit(precision_matrices)
_logs = jax.jit(log_likelihood)
_gradient = jax.jit(jax.grad(lambda *args: jnp.sum(log_likelihood(*args))))
_responses = jax.jit(ccnf_responses)


def make_fields(seed: int = 0, dtype: Any = np.float64) -> FieldParams:
    rng = np.random.default_rng(seed)
    shape = (LANDMARKS, NEURONS)
    arrays = dict(
        filters=rng.normal(0.3, 1, (*shape, SUPPORT, SUPPORT)),
        bias=rng.normal(-1, 1, shape),
        log_alpha=rng.normal(0, 0.5, shape),
        log_beta=rng.normal(-1, 0.5, (LANDMARKS, NUM_NEIGHBOURS)),
    )
    return FieldParams(**{k: jnp.asarray(v, dtype) for k, v in arrays.items()})


def make_areas(seed: int = 1, dtype: Any = np.float64) -> jax.Array:
    rng = np.random.default_rng(seed)
    side = WINDOW + SUPPORT - 1
    return jnp.asarray(rng.uniform(0, 1, (FACES, LANDMARKS, side, side)), dtype)


def make_targets(seed: int = 2, dtype: Any = np.float64) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(0, 1, (FACES, LANDMARKS, WINDOW**2)), dtype)


def make_neighbours(dtype: Any = np.float64) -> jax.Array:
    return jnp.asarray(neighbour_matrices(WINDOW), dtype)


def naive_evidence(params: FieldParams, areas: jax.Array) -> np.ndarray:
    """`2 sum_k a_k h_k`, one support region after the other."""
    sums = np.zeros((FACES, LANDMARKS, WINDOW, WINDOW))
    for f, n, row, column in np.ndindex(*sums.shape):
        region = np.asarray(areas)[f, n, row : row + SUPPORT, column : column + SUPPORT]
        region = region - region.mean()
        norm = np.sqrt(np.sum(region**2))
        for k in range(NEURONS):
            linear = np.sum(np.asarray(params.filters[n, k]) * region) / norm
            alpha = np.exp(float(params.log_alpha[n, k]))
            bias = float(params.bias[n, k])
            sums[f, n, row, column] += 2 * alpha / (1 + np.exp(-linear - bias))
    return sums.reshape(FACES, LANDMARKS, WINDOW**2)


def naive_precision(params: FieldParams) -> np.ndarray:
    """`2 (sum_k a_k I + sum_j beta_j S_j)`."""
    alpha, beta = np.exp(params.log_alpha), np.exp(params.log_beta)
    return np.stack(
        [
            2 * (a.sum() * np.eye(WINDOW**2) + np.tensordot(b, make_neighbours(), 1))
            for a, b in zip(alpha, beta, strict=True)
        ]
    )


# Neighbour matrices.


def test_neighbours_of_four_pixels():
    edges, corners, far = neighbour_matrices(2)
    np.testing.assert_array_equal(
        edges, [[2, -1, -1, 0], [-1, 2, 0, -1], [-1, 0, 2, -1], [0, -1, -1, 2]]
    )
    np.testing.assert_array_equal(
        corners, [[1, 0, 0, -1], [0, 1, -1, 0], [0, -1, 1, 0], [-1, 0, 0, 1]]
    )
    np.testing.assert_array_equal(far, 0)


def test_distant_pixels_of_a_window_of_seven():
    """The corner is coupled to what is 5 or 6 away along an axis, or along both."""
    _, _, far = neighbour_matrices(7)
    row = far[0].reshape(7, 7)
    expected = np.zeros((7, 7))
    expected[np.ix_([0, 5, 6], [0, 5, 6])] = 1
    expected[0, 0] = 8  # as many as it has partners
    np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(far[24], 0)  # nothing is 5 away from the middle


@pytest.mark.parametrize("window", [1, 3, 7, 9])
def test_neighbours_against_sums_over_pairs(window):
    x = np.random.default_rng(window).normal(size=(window, window))
    sums = np.zeros(3)
    pixels = list(itertools.product(range(window), repeat=2))
    for (r, c), (s, d) in itertools.combinations(pixels, 2):
        apart = (abs(r - s), abs(c - d))
        sums[0] += (sum(apart) == 1) * (x[r, c] - x[s, d]) ** 2
        sums[1] += (apart == (1, 1)) * (x[r, c] - x[s, d]) ** 2
        sums[2] += (set(apart) <= {0, 5, 6}) * (x[r, c] + x[s, d]) ** 2
    flat = x.ravel()
    found = [flat @ matrix @ flat for matrix in neighbour_matrices(window)]
    np.testing.assert_allclose(found, sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 7, 8, 11])
def test_neighbours_are_symmetric_and_never_negative(window):
    matrices = neighbour_matrices(window)
    assert matrices.shape == (NUM_NEIGHBOURS, window**2, window**2)
    np.testing.assert_array_equal(matrices, matrices.swapaxes(1, 2))
    np.testing.assert_array_equal(matrices[:2].sum(axis=2), 0)
    assert np.linalg.eigvalsh(matrices).min() > -1e-12


@pytest.mark.parametrize("window", [5, 7, 10])
@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.transpose, np.rot90])
def test_neighbours_do_not_change_when_the_grid_turns(window, turn):
    moved = turn(np.arange(window**2).reshape(window, window)).ravel()
    matrices = neighbour_matrices(window)
    np.testing.assert_array_equal(matrices[:, moved][:, :, moved], matrices)


# The Gaussian.


def test_precision_and_evidence_against_the_formula():
    params, areas = make_fields(), make_areas()
    np.testing.assert_allclose(
        _precision(params, make_neighbours()), naive_precision(params), atol=TOL
    )
    np.testing.assert_allclose(
        _evidence(params, areas), naive_evidence(params, areas), atol=TOL
    )


@pytest.mark.parametrize("seed", range(3))
def test_likelihood_against_scipy(seed):
    params, areas, targets = make_fields(seed), make_areas(seed), make_targets(seed)
    covariances = np.linalg.inv(naive_precision(params))
    means = np.einsum("nij,fnj->fni", covariances, naive_evidence(params, areas))
    np.testing.assert_allclose(
        _means(params, areas, make_neighbours()), means, atol=TOL
    )
    expected = np.stack(
        [
            [
                multivariate_normal.logpdf(targets[f, n], means[f, n], covariances[n])
                for n in range(LANDMARKS)
            ]
            for f in range(FACES)
        ]
    )
    logs = _logs(params, areas, targets, make_neighbours())
    np.testing.assert_allclose(logs, expected / WINDOW**2, atol=TOL)


@pytest.mark.parametrize("prepared", [False, True])
def test_means_are_the_responses_of_the_experts(prepared):
    """Up to a negative minimum, which the experts take away."""
    params, areas = make_fields(), make_areas()
    # Weak neurons and strong distant pixels make some maps negative somewhere.
    params = dataclasses.replace(params, log_beta=params.log_beta.at[0, 2].set(3.0))
    means = np.array(_means(params, areas, make_neighbours()))
    lowest = means.min(axis=2, keepdims=True)
    assert np.any(lowest < 0) and np.any(lowest > 0)
    view = ViewFields(
        (0.0, 0.0, 0.0), params, jnp.ones(LANDMARKS), np.ones(LANDMARKS, bool)
    )
    experts = assemble_experts(0.5, [view], (WINDOW,))
    if prepared:
        experts = with_sigma(experts, (WINDOW,))
    for area, expected in zip(areas, means - np.minimum(lowest, 0), strict=True):
        maps = _responses(experts, jnp.asarray(0, jnp.int32), area)
        np.testing.assert_allclose(
            maps.reshape(expected.shape), expected, rtol=0, atol=1e-10
        )


@few_examples
@given(gain=st.floats(0.05, 20), offset=st.floats(-100, 100))
def test_gain_and_offset_do_not_matter(gain, offset):
    params, areas, neighbours = make_fields(), make_areas(), make_neighbours()
    plain = _means(params, areas, neighbours)
    changed = _means(params, gain * areas + offset, neighbours)
    np.testing.assert_allclose(changed, plain, rtol=0, atol=1e-8)


def test_the_mean_of_a_filter_does_nothing():
    params, areas, neighbours = make_fields(), make_areas(), make_neighbours()
    moved = dataclasses.replace(params, filters=params.filters + 3.0)
    np.testing.assert_allclose(
        _means(moved, areas, neighbours), _means(params, areas, neighbours), atol=TOL
    )


def test_flat_areas_are_finite():
    """No contrast: the neurons say what their offsets say, and can learn from it."""
    params, neighbours = make_fields(), make_neighbours()
    for dtype, grey in itertools.product((np.float64, np.float32), (0.0, 1 / 3)):
        typed = make_fields(dtype=dtype)
        args = (
            jnp.full(make_areas().shape, grey, dtype),
            make_targets(dtype=dtype),
            neighbours.astype(dtype),
        )
        evidence = np.asarray(_evidence(typed, args[0]))
        alpha, bias = np.exp(params.log_alpha), np.asarray(params.bias)
        expected = np.sum(2 * alpha / (1 + np.exp(-bias)), axis=1)[None, :, None]
        np.testing.assert_allclose(
            evidence, np.broadcast_to(expected, evidence.shape), rtol=1e-6
        )
        assert np.all(np.isfinite(_logs(typed, *args)))
        gradient = _gradient(typed, *args)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
        np.testing.assert_array_equal(gradient.filters, 0)


# The inverse and the gradient.


@pytest.mark.parametrize("condition", [10.0, 1e3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 2e-4)])
def test_strong_coupling_keeps_the_mean_accurate(condition, dtype, tolerance):
    """Edges alone have eigenvalues from 0 to nearly 8."""
    beta = (condition - 1) / np.linalg.eigvalsh(neighbour_matrices(WINDOW)[0]).max()
    params = dataclasses.replace(
        make_fields(dtype=dtype),
        log_alpha=jnp.full((LANDMARKS, NEURONS), -np.log(NEURONS), dtype),
        log_beta=jnp.asarray([[np.log(beta), -50, -50]] * LANDMARKS, dtype),
    )
    precision = naive_precision(params)
    np.testing.assert_allclose(np.linalg.cond(precision), condition, rtol=1e-4)
    areas = make_areas(dtype=dtype)
    expected = np.linalg.solve(
        precision[None], naive_evidence(params, areas)[..., None]
    )[..., 0]
    found = _means(params, areas, make_neighbours(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["filters", "bias", "log_alpha", "log_beta"])
def test_gradient_against_differences(name):
    """Along random directions; the step balances rounding and curvature."""
    params, args = make_fields(), (make_areas(), make_targets(), make_neighbours())
    gradient = getattr(_gradient(params, *args), name)
    rng = np.random.default_rng(5)
    value = getattr(params, name)
    step = 1e-5
    for _ in range(3):
        direction = jnp.asarray(rng.normal(size=value.shape))
        ends = [
            float(
                jnp.sum(
                    _logs(
                        dataclasses.replace(
                            params, **{name: value + sign * step * direction}
                        ),
                        *args,
                    )
                )
            )
            for sign in (-1, 1)
        ]
        expected = (ends[1] - ends[0]) / (2 * step)
        found = float(jnp.sum(gradient * direction))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_gradient_is_accurate_under_strong_coupling():
    """At a condition number of a thousand the gradient still is the one of the log."""
    params, args = make_fields(), (make_areas(), make_targets(), make_neighbours())
    strong = params.log_beta.at[:, 0].set(5.0)
    params = dataclasses.replace(params, log_beta=strong)
    assert np.linalg.cond(naive_precision(params)).max() > 300
    found = np.asarray(_gradient(params, *args).log_beta)
    step = 1e-4
    for n, j in np.ndindex(*found.shape):
        ends = [
            dataclasses.replace(params, log_beta=strong.at[n, j].add(sign * step))
            for sign in (-1, 1)
        ]
        low, high = (float(jnp.sum(_logs(end, *args))) for end in ends)
        assert found[n, j] == pytest.approx((high - low) / (2 * step), rel=1e-4)


def test_the_gradient_vanishes_on_average_at_the_truth():
    """Where targets are drawn from the field itself, no direction is better."""
    params, neighbours = make_fields(), make_neighbours()
    areas = make_areas()
    mean = np.asarray(_means(params, areas, neighbours))
    factor = np.linalg.cholesky(np.linalg.inv(naive_precision(params)))
    rng, logs, gradients = np.random.default_rng(6), [], []
    for _ in range(200):
        noise = np.einsum("nij,fnj->fni", factor, rng.normal(size=mean.shape))
        args = (params, areas, jnp.asarray(mean + noise), neighbours)
        logs.append(np.asarray(_logs(*args)))
        gradients.append(_gradient(*args))
    # Minus the entropy per pixel; its estimate varies by 1 / sqrt(2 w^2 faces) = 0.004.
    _, log_det = np.linalg.slogdet(naive_precision(params))
    entropy = 0.5 * (1 + np.log(2 * np.pi)) - 0.5 * log_det / WINDOW**2
    np.testing.assert_allclose(np.mean(logs, axis=(0, 1)), -entropy, atol=0.016)
    for name in ("log_alpha", "log_beta", "bias"):
        average = np.mean([getattr(g, name) for g in gradients], axis=0) / FACES
        assert np.abs(average).max() < 0.02


# Types, and what does not depend on what.


@pytest.mark.slow
def test_float32_against_float64():
    results = {}
    for dtype in (np.float32, np.float64):
        args = (
            make_fields(dtype=dtype),
            make_areas(dtype=dtype),
            make_targets(dtype=dtype),
            make_neighbours(dtype),
        )
        logs, gradient = _logs(*args), _gradient(*args)
        assert logs.dtype == dtype
        assert {x.dtype for x in jax.tree.leaves(gradient)} == {np.dtype(dtype)}
        results[dtype] = [logs, *jax.tree.leaves(gradient)]
    for low, high in zip(*results.values(), strict=True):
        np.testing.assert_allclose(low, high, rtol=1e-3, atol=FLOAT32_TOL)


@pytest.mark.slow
def test_with_and_without_jit():
    args = (make_fields(), make_areas())
    np.testing.assert_allclose(evidence_sums(*args), _evidence(*args), atol=TOL)


@pytest.mark.slow
def test_faces_and_landmarks_do_not_touch_each_other():
    """One face without finite pixels, one landmark without finite numbers."""
    params, areas = make_fields(), make_areas()
    targets, neighbours = make_targets(), make_neighbours()
    plain = np.asarray(_logs(params, areas, targets, neighbours))
    broken = np.asarray(_logs(params, areas.at[1].set(np.nan), targets, neighbours))
    assert np.all(np.isnan(broken[1]))
    np.testing.assert_allclose(broken[[0, 2, 3]], plain[[0, 2, 3]], atol=TOL)
    lost = dataclasses.replace(params, log_alpha=params.log_alpha.at[2].set(np.nan))
    broken = np.asarray(_logs(lost, areas, targets, neighbours))
    assert np.all(np.isnan(broken[:, 2]))
    np.testing.assert_allclose(broken[:, :2], plain[:, :2], atol=TOL)
    alone = jax.tree.map(lambda x: x[1:2], params)
    np.testing.assert_allclose(
        _logs(alone, areas[:, 1:2], targets[:, 1:2], neighbours)[:, 0],
        plain[:, 1],
        atol=TOL,
    )
