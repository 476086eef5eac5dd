"""Newton's step: the damped solve, where phases end, and what the certificate says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxclnf.shape.pdm import mode_bounds
from jaxclnf.solver.certificate import certify, relative_curvature
from jaxclnf.solver.evidence import mean_shifts
from jaxclnf.solver.loop import (
    nu_rlms,
    nu_rlms_init,
    nu_rlms_step,
    nu_rlms_with_trace,
)
from jaxclnf.solver.newton import damped_step, newton_step
from jaxclnf.solver.objective import objective
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.status import Status
from tests import synthetic

FREE = np.full(5, np.inf)
TINY = 1e-9  # px: the shape at rest in float64

_damped = jax.jit(damped_step)
_certify = jax.jit(certify, static_argnames="rigid")


def _options(solver: str = "newton", **changes) -> NURLMSOptions:
    """Always arrays, so that all cases of a solver share one compilation."""
    numbers = {"reg_factor": 25.0, "shape_tol": TINY, "n_sigmas": 3.0} | changes
    return NURLMSOptions(
        solver=solver,  # pyright: ignore[reportArgumentType]
        max_steps=60 if solver == "newton" else 2000,
        **{name: jnp.asarray(x) for name, x in numbers.items()},
    )


@pytest.fixture(scope="module")
def problem(example: dict) -> tuple:
    return example["pdm"], example["responses"], example["params"]


def _matrices(seed: int, values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with these eigenvalues relative to a random metric, and the metric."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(np.cov(rng.normal(size=(5, 20))) + 0.1 * np.eye(5))
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    curved = root @ turn @ np.diag(values) @ turn.T @ root.T
    return (curved + curved.T) / 2, root @ root.T


def _solve(curved, normal, slope, lower, upper, radius, last=0.0):
    args = (curved, normal, slope, lower, upper, radius, last)
    return _damped(*map(jnp.asarray, args))


def test_within_the_radius_nothing_is_added():
    curved, normal = _matrices(0, [0.1, 0.2, 0.5, 0.8, 1.0])
    slope = np.arange(1.0, 6.0)
    step, damping = _solve(curved, normal, slope, -FREE, FREE, 1e6)
    assert damping == 0
    np.testing.assert_allclose(step, np.linalg.solve(curved, slope), rtol=1e-10)


@pytest.mark.parametrize("radius", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("smallest", [0.2, 0.0, -0.7])
@pytest.mark.parametrize("last", [0.0, 1e-6, 1e6])
def test_the_radius_holds(radius, smallest, last):
    """And is made use of, whatever the damping of the step before."""
    curved, normal = _matrices(1, [smallest, 0.2, 0.5, 0.8, 1.0])
    slope = 10 * np.random.default_rng(2).normal(size=5)
    found = _solve(curved, normal, slope, -FREE, FREE, radius, last)
    step, damping = map(np.asarray, found)
    assert 0.75 * radius <= np.sqrt(step @ normal @ step) <= 1.2 * radius
    assert damping > max(0, -smallest)
    damped = curved + damping * normal
    np.testing.assert_allclose(damped @ step, slope, rtol=1e-9)
    assert slope @ step > 0  # uphill


def test_the_box_holds():
    curved, normal = _matrices(3, [0.3, 0.4, 0.5, 0.8, 1.0])
    slope = np.array([4.0, -3.0, 2.0, 5.0, -1.0])
    free = np.linalg.solve(curved, slope)
    upper = np.where(free > 0, free / 3, np.inf)
    step, damping = map(np.asarray, _solve(curved, normal, slope, -FREE, upper, 1e6))
    assert damping == 0 and np.all(step <= upper) and np.any(step == upper)
    push = slope - curved @ step
    assert np.all(push[step == upper] > 0)
    np.testing.assert_allclose(push[step < upper], 0, atol=1e-9)


def test_a_metric_that_is_singular_gives_no_step():
    zero = np.zeros((5, 5))
    step, _ = _solve(zero, zero, np.ones(5), -FREE, FREE, 1.0)
    assert np.isnan(step).all()


@pytest.mark.parametrize("smallest", [0.3, -0.4])
def test_the_damped_step_has_derivatives(smallest):
    """At the damping that was found, both forward and in reverse."""
    curved, normal = _matrices(4, [smallest, 0.4, 0.5, 0.8, 1.0])
    slope = np.arange(1.0, 6.0)
    box = jnp.asarray(-FREE), jnp.asarray(FREE), jnp.asarray(2.0)
    _, damping = _solve(curved, normal, slope, *box)
    last = jnp.asarray(0.0)

    def step(curved, slope):
        return damped_step(curved, jnp.asarray(normal), slope, *box, last)[0]

    def solved(curved, slope):
        return jnp.linalg.solve(curved + damping * normal, slope)

    args = jnp.asarray(curved), jnp.asarray(slope)
    for transform in (jax.jacfwd, jax.jacrev):
        found = jax.jit(transform(step, (0, 1)))(*args)
        expected = jax.jit(transform(solved, (0, 1)))(*args)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-8, atol=1e-10)
        # Of a symmetric matrix: entries above and below the diagonal move together.
        for a, b in zip(found[0], expected[0], strict=True):
            np.testing.assert_allclose(a + a.T, b + b.T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rigid", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_sigmas", [3.0, 0.25])
def test_newton_ends_where_em_does(problem, n_sigmas, rigid):
    changes = {"n_sigmas": n_sigmas, "reg_factor": 1.0}
    newton = nu_rlms(*problem, _options(**changes), rigid=rigid)
    em = nu_rlms(*problem, _options("em", **changes), rigid=rigid)
    assert newton.status == em.status == Status.CONVERGED
    assert 2 * int(newton.num_steps) < int(em.num_steps)
    np.testing.assert_allclose(newton.evidence.shape, em.evidence.shape, atol=1e-6)
    np.testing.assert_allclose(newton.objective, em.objective, rtol=1e-9)
    bounds = np.asarray(mode_bounds(problem[0], n_sigmas))
    local = np.abs(np.asarray(newton.params.params_local))
    if not rigid:
        assert np.all(local <= bounds) and np.any(local == bounds) == (n_sigmas < 1)


def test_the_end_is_approached_quadratically(problem):
    last, states, valid = nu_rlms_with_trace(*problem, _options())
    assert last.status == Status.CONVERGED
    moves = np.asarray(states.shape_delta)[np.asarray(valid)][1:]
    # From a step of less than a pixel to less than a billionth in three more.
    small = np.flatnonzero(moves < 1.0)
    assert len(small) <= 5 and moves[-1] < TINY
    ends = moves[small]
    assert np.all(ends[1:-1] < ends[:-2] ** 1.7)


def test_accepted_steps_raise_the_objective(problem):
    pdm, responses, params = problem
    far = dataclasses.replace(
        params, scale=1.3 * params.scale, translation=params.translation + 9.0
    )
    last, states, valid = nu_rlms_with_trace(pdm, responses, far, _options())
    assert last.status == Status.CONVERGED
    values = np.asarray(states.objective)[np.asarray(valid)]
    assert np.all(np.diff(values) >= -1e-12 * np.abs(values[0]))


@pytest.mark.parametrize("rigid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_certificate_is_where_the_next_step_would_go(problem, rigid):
    pdm, responses, _ = problem
    options = _options(shape_tol=0.5)
    end = nu_rlms(*problem, options, rigid=rigid)
    assert end.status == Status.CONVERGED
    found = _certify(pdm, responses, end, options, rigid=rigid)
    assert found.smallest_curvature > 0 and found.num_active_bounds == 0
    after = nu_rlms_step(pdm, responses, end, options, rigid=rigid)
    assert after.trust is not None and after.trust.damping == 0
    moves = after.evidence.shape - end.evidence.shape
    farthest = np.linalg.norm(moves, axis=1).max()
    assert 1e-9 < farthest < 0.1
    np.testing.assert_allclose(found.newton_distance, farthest, rtol=1e-2)


def test_a_small_em_step_is_not_a_small_distance(problem):
    pdm, responses, _ = problem
    options = _options("em", shape_tol=0.005)
    end = nu_rlms(*problem, options)
    best = nu_rlms(*problem, _options())
    found = _certify(pdm, responses, end, options)
    left = np.linalg.norm(end.evidence.shape - best.evidence.shape, axis=1).max()
    np.testing.assert_allclose(found.newton_distance, left, rtol=0.05)
    norm = np.linalg.norm(end.evidence.shape - best.evidence.shape)
    assert norm > end.shape_delta


def test_active_bounds_are_counted(problem):
    pdm, responses, _ = problem
    options = _options(n_sigmas=0.25, reg_factor=1.0)
    end = nu_rlms(*problem, options)
    found = _certify(pdm, responses, end, options)
    local = np.abs(np.asarray(end.params.params_local))
    at_bound = np.sum(local == np.asarray(mode_bounds(pdm, 0.25)))
    assert int(found.num_active_bounds) == at_bound > 0
    assert found.newton_distance < 1e-6


@pytest.mark.parametrize("smallest", [0.2, -3.0])
def test_relative_curvature_is_the_smallest_generalised_eigenvalue(smallest):
    curved, normal = _matrices(5, [smallest, 0.2, 0.5, 0.8, 1.0])
    none = jnp.zeros(5, bool)
    find = jax.jit(relative_curvature)
    found, inverse = find(jnp.asarray(curved), jnp.asarray(normal), none)
    np.testing.assert_allclose(found, smallest, rtol=1e-9)
    exact = np.linalg.inv(curved) if smallest > 0 else np.full((5, 5), np.nan)
    np.testing.assert_allclose(inverse, exact, rtol=1e-9)
    kept = [0, 1, 3]
    part = np.ix_(kept, kept)
    expected = scipy.linalg.eigh(curved[part], normal[part], eigvals_only=True)[0]
    blocked = none.at[jnp.asarray([2, 4])].set(True)
    found, inverse = find(jnp.asarray(curved), jnp.asarray(normal), blocked)
    np.testing.assert_allclose(found, expected, rtol=7e-4)
    if expected > 0:
        np.testing.assert_allclose(inverse[part], np.linalg.inv(curved[part]))
        assert not np.any(inverse[jnp.asarray([2, 4])])


def test_float32_ends_where_float64_does(problem):
    best = nu_rlms(*problem, _options())
    names = synthetic.example(np.float32)
    options = NURLMSOptions(max_steps=60)
    end = nu_rlms(names["pdm"], names["responses"], names["params"], options)
    assert end.status == Status.CONVERGED
    assert {x.dtype for x in jax.tree.leaves(end)} == {
        jnp.dtype(t) for t in ("float32", "int32")
    }
    np.testing.assert_allclose(end.evidence.shape, best.evidence.shape, atol=1e-3)


def test_a_state_of_another_solver_is_refused(problem):
    pdm, responses, params = problem
    state = nu_rlms_init(pdm, responses, params, _options("em"))
    with pytest.raises(ValueError, match="the state has no trust region"):
        newton_step(pdm, responses, state, _options())


def test_only_the_parameters_of_a_state_are_certified(problem):
    pdm, responses, params = problem
    made, other = _options(), _options(sigma=0.5, reg_factor=1.0)
    state = nu_rlms(pdm, responses, params, made)
    again = nu_rlms_init(pdm, responses, state.params, other)
    found, expected = (_certify(pdm, responses, s, other) for s in (state, again))
    np.testing.assert_allclose(found.newton_distance, expected.newton_distance)
    assert float(found.newton_distance) > 0.1
    pose = _certify(pdm, responses, state, made, rigid=True)
    begun = nu_rlms_init(pdm, responses, state.params, made, rigid=True)
    expected = _certify(pdm, responses, begun, made, rigid=True)
    np.testing.assert_allclose(pose.newton_distance, expected.newton_distance)


def test_a_state_of_newton_is_none_of_the_others(problem):
    pdm, responses, params = problem
    state = nu_rlms_init(pdm, responses, params, _options())
    for solver in ("em", "openface"):
        with pytest.raises(ValueError, match=f"of newton; start it with {solver}"):
            nu_rlms_step(pdm, responses, state, _options(solver))


def test_phases_refuse_what_they_cannot_do(problem):
    pdm, responses, params = problem
    with pytest.raises(ValueError, match="solver is 'foo'; expected one of newton, em"):
        nu_rlms_init(pdm, responses, params, _options("foo"))
    with pytest.raises(ValueError, match="max_steps is 2.5; expected a whole number"):
        NURLMSOptions(max_steps=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="max_steps is 0; expected 1 or more"):
        NURLMSOptions(max_steps=0)


def test_gradients_and_axes_have_the_form_of_options(problem):
    """And none of the ranges that options have."""
    options = NURLMSOptions(sigma=1.5)
    gradient = jax.grad(lambda o: objective(*problem, o))(options)
    down = jax.tree.map(lambda x: -0.1 * x, jax.device_get(gradient))
    assert down.sigma < 0 and down.max_steps == options.max_steps
    axes = dataclasses.replace(options, sigma=1.0)
    axes = jax.tree.map_with_path(lambda path, _: path[0].name == "sigma", axes)
    assert [axes.sigma, axes.reg_factor] == [True, False]
    # pyright takes what JAX gives back for options.
    axes = jax.tree.map(lambda is_sigma: 0 if is_sigma else None, axes)
    three = dataclasses.replace(options, sigma=jnp.arange(1.0, 4.0))
    values = jax.vmap(lambda o: objective(*problem, o), (axes,))(three)
    assert values.shape == (3,) and len(set(values.tolist())) == 3


def test_parameters_of_another_precision_take_that_of_the_model(problem):
    pdm, responses, params = problem
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    state = nu_rlms_init(pdm, responses, single, _options())
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype(np.float64)}


@pytest.mark.slow
def test_a_map_that_is_not_finite_stops_no_other(problem):
    pdm, responses, params = problem
    maps = responses.maps.at[0].set(jnp.nan)
    responses = dataclasses.replace(responses, maps=maps)
    for solver in ("newton", "em", "openface"):
        options = dataclasses.replace(_options(solver), max_steps=3)
        shifts = mean_shifts(pdm, responses, params, options)
        assert shifts[0].tolist() == [0.0, 0.0] and bool(jnp.isfinite(shifts).all())
        state = nu_rlms(pdm, responses, params, options)
        assert bool(jnp.isfinite(state.evidence.shape).all())
        assert Status(int(state.status)) is not Status.NONFINITE
