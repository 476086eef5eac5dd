"""The maximum of a concave quadratic in a box, against SciPy and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxclnf.solver.box import maximise_in_box, solve

TOL = 1e-8  # the value, relative; condition numbers go up to 1e4
FLOAT32_TOL = 1e-4

DIM = 6
NUM_PROBLEMS = 300

_maximise = jax.jit(maximise_in_box)
_maximise_many = jax.jit(jax.vmap(maximise_in_box))
_solve = jax.jit(solve)
_forward = jax.jit(lambda x, d: jax.jvp(maximise_in_box, x, d))
_reverse = jax.jit(
    lambda weights, *x: jax.grad(
        lambda *y: jnp.sum(weights * maximise_in_box(*y)), argnums=(0, 1, 2, 3)
    )(*x)
)


def _value(matrix, vector, x) -> float:
    return float(vector @ x - x @ matrix @ x / 2)


def _brute_force(matrix, vector, lower, upper) -> np.ndarray:
    """Tries every active set; the best feasible point of all of them is the answer."""
    best, best_value = np.zeros_like(vector), 0.0
    choices = [
        [np.nan] + [bound for bound in {low, high} if np.isfinite(bound)]
        for low, high in zip(lower, upper, strict=True)
    ]
    for fixed in itertools.product(*choices):
        x = np.asarray(fixed)
        free = np.isnan(x)
        if free.any():
            pull = vector[free] - matrix[np.ix_(free, ~free)] @ x[~free]
            x[free] = np.linalg.solve(matrix[np.ix_(free, free)], pull)
        if np.all((x >= lower - 1e-12) & (x <= upper + 1e-12)):
            value = _value(matrix, vector, x)
            if value > best_value:
                best, best_value = x, value
    return best


def _problem(seed: int, dim: int = DIM, unbounded: int = 2) -> tuple[np.ndarray, ...]:
    """Correlated unknowns; some starts on a bound, some bounds never reached."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim + 1))
    matrix = root @ root.T + 0.02 * np.eye(dim)
    scale = 10 ** rng.uniform(-1, 1, dim)
    matrix = matrix * scale[:, None] * scale
    target = rng.normal(0, 2, dim) / scale
    lower = -rng.uniform(0, 2, dim) / scale
    upper = rng.uniform(0, 2, dim) / scale
    lower[rng.uniform(size=dim) < 0.2] = 0
    upper[(rng.uniform(size=dim) < 0.2) & (lower < 0)] = 0
    lower[:unbounded], upper[:unbounded] = -np.inf, np.inf
    return matrix, matrix @ target, lower, upper


@pytest.fixture(scope="module")
def problems() -> list[np.ndarray]:
    rows = [_problem(seed) for seed in range(NUM_PROBLEMS)]
    return [np.stack(x) for x in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def optima(problems) -> np.ndarray:
    return np.stack([_brute_force(*row) for row in zip(*problems, strict=True)])


def _shortfall(problems, found, optima) -> np.ndarray:
    """How much of the best gain over the start was missed, for each problem."""
    shares = []
    for matrix, vector, _, _, x, best in zip(*problems, found, optima, strict=True):
        gain = _value(matrix, vector, best)
        shares.append((gain - _value(matrix, vector, np.asarray(x, float))) / gain)
    return np.asarray(shares)


def test_random_problems_against_every_active_set(problems, optima):
    found = np.asarray(_maximise_many(*map(jnp.asarray, problems)))
    lower, upper = problems[2:]
    assert np.all((found >= lower) & (found <= upper))
    shortfall = _shortfall(problems, found, optima)
    assert shortfall.max() < TOL, f"problems {np.nonzero(shortfall > TOL)[0]}"


def test_vmap_is_a_loop(problems):
    many = _maximise_many(*map(jnp.asarray, problems))
    for i in range(20):
        alone = _maximise(*(jnp.asarray(x[i]) for x in problems))
        np.testing.assert_allclose(many[i], alone, rtol=1e-9, atol=1e-12)


def test_float32(problems, optima):
    low = [jnp.asarray(x, jnp.float32) for x in problems]
    found = _maximise_many(*low)
    assert found.dtype == jnp.float32
    assert np.all((found >= low[2]) & (found <= low[3]))
    assert _shortfall(problems, found, optima).max() < FLOAT32_TOL


@pytest.mark.parametrize("seed", range(3))
def test_size_of_a_real_model_against_scipy(seed):
    """34 modes with bounds and a pose without, as in the published models."""
    matrix, vector, lower, upper = _problem(100 + seed, dim=40, unbounded=6)
    root = np.linalg.cholesky(matrix).T
    best = scipy.optimize.lsq_linear(
        root,
        np.linalg.solve(root.T, vector),
        (np.where(lower == upper, lower - 1e-12, lower), upper),
        method="bvls",
        tol=1e-14,
        max_iter=1000,
    )
    x = np.asarray(_maximise(*map(jnp.asarray, (matrix, vector, lower, upper))))
    gain = _value(matrix, vector, best.x)
    assert _value(matrix, vector, x) > gain - 1e-6 * abs(gain)


def test_without_an_active_bound_it_is_the_solution():
    matrix, vector, _, _ = _problem(1)
    infinite = jnp.full(DIM, jnp.inf)
    x = _maximise(jnp.asarray(matrix), jnp.asarray(vector), -infinite, infinite)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, vector), rtol=1e-9)
    np.testing.assert_array_equal(x, _solve(jnp.asarray(matrix), jnp.asarray(vector)))


def test_an_optimal_start_stays_where_it_is():
    """Clipping the free solution would move it."""
    matrix = jnp.asarray([[1.0, 0.9], [0.9, 1.0]])
    vector = jnp.asarray([1.0, 0.9])  # the free solution is (1, 0)
    lower, upper = jnp.asarray([-1.0, 0.0]), jnp.asarray([0.0, jnp.inf])
    free = np.linalg.solve(matrix, vector)
    np.testing.assert_allclose(free, [1, 0], atol=1e-12)
    x = _maximise(matrix, vector, lower, upper)
    np.testing.assert_allclose(x, [0, 0.9], atol=1e-12)
    still = _maximise(matrix, jnp.asarray([1.0, 0.0]), lower, jnp.zeros(2))
    np.testing.assert_array_equal(still, [0, 0])


TIES = {
    "no slope": ([0.0, 0.0], [-1.0, -1.0], [1.0, 1.0]),
    "no slope at a bound": ([0.0, 0.0], [0.0, -1.0], [1.0, 0.0]),
    "just at the bounds": ([3.0, 3.0], [-1.0, -1.0], [1.0, 1.0]),
    "no room": ([1.0, -1.0], [0.0, 0.0], [0.0, 0.0]),
    "no room, no slope": ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    "one way": ([-1.0, 5.0], [0.0, 0.0], [jnp.inf, jnp.inf]),
    "another way": ([5.0, -1.0], [0.0, 0.0], [jnp.inf, jnp.inf]),
    "multiplier zero": ([2.0, 1.0], [-jnp.inf, 0.0], [jnp.inf, jnp.inf]),
}


@pytest.mark.parametrize("name", TIES)
def test_ties(name):
    vector, lower, upper = map(np.asarray, TIES[name])
    matrix = np.asarray([[2.0, 1.0], [1.0, 2.0]])
    x = _maximise(*map(jnp.asarray, (matrix, vector, lower, upper)))
    best = _brute_force(matrix, vector, lower, upper)
    np.testing.assert_allclose(x, best, rtol=0, atol=1e-12)


def test_solve_survives_scales_far_apart_in_float32():
    """A pixel of translation and a radian differ by orders of magnitude."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(DIM, 2 * DIM))
    scale = 10.0 ** np.asarray([-3, 3, 2, 0, -2, 4])
    matrix = (root @ root.T) * scale[:, None] * scale
    expected = rng.normal(size=DIM) / scale
    x = _solve(
        jnp.asarray(matrix, jnp.float32), jnp.asarray(matrix @ expected, jnp.float32)
    )
    np.testing.assert_allclose(np.asarray(x) * scale, expected * scale, atol=1e-4)


def test_solve_of_an_indefinite_matrix_is_nan():
    assert np.isnan(_solve(jnp.diag(jnp.asarray([1.0, -1.0])), jnp.ones(2))).any()


def test_derivatives_both_ways_against_differences(problems):
    """Forward, in reverse, and by central differences, with active bounds."""
    for i in range(3):
        args = [jnp.asarray(x[i]) for x in problems]
        noise = [np.random.default_rng(i).normal(size=x.shape) for x in args]
        noise[0] = (noise[0] + noise[0].T) * np.asarray(args[0])
        noise[2:] = [np.where(np.isfinite(x), 0.1, 0) for x in args[2:]]
        direction = tuple(map(jnp.asarray, noise))
        value, forward = _forward(tuple(args), direction)
        ends = [
            _maximise(*(a + s * d for a, d in zip(args, direction, strict=True)))
            for s in (1e-6, -1e-6)
        ]
        difference = (ends[0] - ends[1]) / 2e-6
        size = float(np.abs(difference).max())
        np.testing.assert_allclose(forward, difference, rtol=0, atol=1e-5 * size)
        slopes = _reverse(jnp.ones(DIM), *args)
        along = sum(float(jnp.sum(a * b)) for a, b in zip(slopes, noise, strict=True))
        np.testing.assert_allclose(along, jnp.sum(forward), rtol=1e-8)
        assert value.shape == (DIM,)
