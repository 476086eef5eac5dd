"""The loop, its traced twin, and a loop in Python: the same states.

Bit for bit with `em`. A step of `newton` is compiled to sums in another order in each
program, so there the last digits may differ.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting.fit import fit, fit_with_trace
from jaxclnf.fitting.options import FitOptions
from jaxclnf.solver.loop import (
    nu_rlms,
    nu_rlms_init,
    nu_rlms_step,
    nu_rlms_with_trace,
    resume,
)
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.steps import STEPS
from jaxclnf.status import Status
from tests import synthetic

MAX_STEPS = 40
NEWTON_TOL = 1e-7  # of quantities of size 1 to 1e3, float64

_resume = jax.jit(resume)


def _stepwise_tol(options: NURLMSOptions) -> float:
    """Between a loop and its steps alone: one program may add in another order."""
    dtype = jnp.asarray(options.shape_tol).dtype
    return 32 * float(jnp.finfo(dtype).eps)  # half of one was seen


def _options(dtype, shape_tol: float = 0.005, solver: str = "em") -> NURLMSOptions:
    return NURLMSOptions(
        solver=solver,  # pyright: ignore[reportArgumentType]
        max_steps=MAX_STEPS,
        shape_tol=jnp.asarray(shape_tol, dtype),
    )


def _same(a, b, tol: float = 0.0) -> None:
    """Every leaf equal, NaN to NaN: to the last bit, or real numbers within `tol`."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if tol and jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(x, y, rtol=tol, atol=tol)
        else:
            np.testing.assert_array_equal(x, y)


@pytest.fixture(
    scope="module",
    params=[pytest.param(np.float64, marks=pytest.mark.slow), np.float32],
    ids=["f64", "f32"],
)
def names(request: pytest.FixtureRequest) -> dict:
    return synthetic.example(request.param)


@pytest.fixture
def rigid(names: dict) -> bool:
    """Rigid phases in float64 and others in float32: each kind once."""
    return names["pdm"].mean_shape.dtype == np.float64


TOLERANCES = {"converges": 0.005, "reaches the limit": 0.0}


@pytest.mark.optimised
@pytest.mark.parametrize("shape_tol", TOLERANCES.values(), ids=TOLERANCES)
def test_the_traced_twin_ends_in_the_same_state(names, rigid, shape_tol):
    problem = names["pdm"], names["responses"], names["params"]
    options = _options(names["pdm"].mean_shape.dtype, shape_tol)
    plain = nu_rlms(*problem, options, rigid=rigid)
    last, states, valid = nu_rlms_with_trace(*problem, options, rigid=rigid)
    expected = Status.CONVERGED if shape_tol else Status.MAX_STEPS
    assert plain.status == expected
    _same(last, plain)

    valid = np.asarray(valid)
    num_steps = int(plain.num_steps)
    assert valid.shape == (MAX_STEPS + 1,)
    np.testing.assert_array_equal(valid, np.arange(MAX_STEPS + 1) <= num_steps)
    np.testing.assert_array_equal(
        states.num_steps, np.minimum(np.arange(MAX_STEPS + 1), num_steps)
    )
    _same(
        jax.tree.map(lambda x: x[0], states),
        nu_rlms_init(*problem, options, rigid=rigid),
    )
    for slot in range(num_steps, MAX_STEPS + 1):
        _same(jax.tree.map(lambda x, k=slot: x[k], states), last)


@pytest.mark.optimised
def test_a_loop_in_python_takes_the_same_steps(names, rigid):
    problem = names["pdm"], names["responses"], names["params"]
    options = _options(names["pdm"].mean_shape.dtype)
    _, states, valid = nu_rlms_with_trace(*problem, options, rigid=rigid)
    tol = _stepwise_tol(options)
    state = nu_rlms_init(*problem, options, rigid=rigid)
    slot = 0
    while state.status == Status.RUNNING:
        state = nu_rlms_step(*problem[:2], state, options, rigid=rigid)
        slot += 1
        _same(jax.tree.map(lambda x, k=slot: x[k], states), state, tol)
    assert slot == np.asarray(valid).sum() - 1
    _same(nu_rlms(*problem, options, rigid=rigid), state, tol)


def test_an_ended_state_is_resumed_as_it_is():
    names = synthetic.example()
    problem = names["pdm"], names["responses"], names["params"]
    options = _options(names["pdm"].mean_shape.dtype)
    end = nu_rlms(*problem, options)
    _same(_resume(*problem[:2], end, options), end)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_phase_in_two_halves_is_the_phase():
    names = synthetic.example()
    problem = names["pdm"], names["responses"], names["params"]
    options = _options(names["pdm"].mean_shape.dtype)
    state = nu_rlms_init(*problem, options)
    for _ in range(3):
        state = nu_rlms_step(*problem[:2], state, options)
    halves = _resume(*problem[:2], state, options)
    _same(halves, nu_rlms(*problem, options), _stepwise_tol(options))


@pytest.mark.slow
def test_newton_takes_the_same_steps_in_every_program():
    names = synthetic.example()
    problem = names["pdm"], names["responses"], names["params"]
    options = _options(names["pdm"].mean_shape.dtype, solver="newton")
    plain = nu_rlms(*problem, options)
    assert plain.status == Status.CONVERGED
    last, states, valid = nu_rlms_with_trace(*problem, options)
    _same(last, plain, NEWTON_TOL)
    state = nu_rlms_init(*problem, options)
    for slot in range(1, int(valid.sum(dtype=jnp.int32))):
        state = nu_rlms_step(*problem[:2], state, options)
        recorded = jax.tree.map(lambda x, k=slot: x[k], states)
        # What is left out of a record is worked out again from the rest.
        _same(recorded, dataclasses.replace(state, quadratic=None), NEWTON_TOL)
        if slot == 1:
            resumed = _resume(*problem[:2], recorded, options)
            _same(resumed.params, plain.params, NEWTON_TOL)
    _same(state, plain, NEWTON_TOL)


@pytest.mark.optimised
@pytest.mark.slow
def test_fit_with_trace_is_fit():
    names = synthetic.example(np.float32)
    options = FitOptions(
        solver="em", window_sizes=(0, 7), max_steps=MAX_STEPS, starts=1
    )
    args = names["model"].prepared((0, 7)), names["image"], names["box"]
    plain = fit(*args, options=options)
    result, trace = fit_with_trace(*args, options=options)
    assert plain.converged
    _same(result, plain)
    assert not np.asarray(trace.valid[0]).any()  # the scale that was skipped
    slots = np.asarray(trace.valid[1]).sum(axis=-1)
    np.testing.assert_array_equal(slots, np.asarray(result.num_steps[1]) + 1)
    ends = jax.tree.map(lambda x: x[1, :, -1], trace.states)
    np.testing.assert_array_equal(ends.shape_delta, result.shape_delta[1])
    np.testing.assert_array_equal(ends.evidence.shape[1], result.landmarks)
    np.testing.assert_array_equal(
        ends.evidence.log_densities[1], result.landmark_log_likelihoods
    )
    # The second phase starts where the first one ended.
    start = jax.tree.map(lambda x: x[1, 1, 0], trace.states)
    _same(start.params, jax.tree.map(lambda x: x[0], ends.params))


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "rigid"), [("em", True), ("newton", False)])
def test_the_trace_is_differentiable_in_reverse(solver, rigid):
    names = synthetic.example()
    options = NURLMSOptions(solver=solver, max_steps=4)

    def end(maps):
        responses = dataclasses.replace(names["responses"], maps=maps)
        problem = names["pdm"], responses, names["params"]
        last, _, _ = nu_rlms_with_trace(*problem, options, rigid=rigid)
        return last.evidence.shape[0, 0]

    maps = names["responses"].maps
    noise = np.random.default_rng(0).uniform(-1, 1, maps.shape)
    direction = noise * np.asarray(maps)
    slope = np.asarray(jax.jit(jax.grad(end))(maps))
    assert np.all(np.isfinite(slope)) and np.abs(slope).max() > 0
    _, forward = jax.jit(lambda m, d: jax.jvp(end, (m,), (d,)))(maps, direction)
    np.testing.assert_allclose(np.sum(slope * direction), forward, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["newton", "openface"])
def test_a_face_that_failed_leaves_the_others_their_derivatives(solver):
    """An option that all faces of a batch share, in reverse."""
    names = synthetic.example()
    good, ended = names["params"], dataclasses.replace(names["params"], scale=np.nan)

    def first_mode(numbers, starts):
        sigma, reg_factor = numbers
        options = NURLMSOptions(
            solver=solver, max_steps=4, sigma=sigma, reg_factor=reg_factor
        )
        last, _, _ = jax.vmap(
            lambda start: nu_rlms_with_trace(
                names["pdm"], names["responses"], start, options
            )
        )(starts)
        usable = last.status != Status.NONFINITE
        return jnp.sum(jnp.where(usable, last.params.params_local[:, 0], 0))

    slope = jax.jit(jax.grad(first_mode))
    alone, both = (
        slope(jnp.asarray([1.5, 25.0]), jax.tree.map(lambda *x: jnp.stack(x), *starts))
        for starts in ([good], [good, ended])
    )
    # OpenFace's step looks its kernel up in a table: no derivative by the bandwidth.
    assert alone[1] != 0 and (alone[0] != 0 or solver == "openface")
    np.testing.assert_allclose(both, alone, rtol=1e-9)


@pytest.mark.parametrize("solver", list(STEPS))
def test_derivatives_in_several_directions_are_traced(solver):
    """Forward mode takes the loop through `vmap`, with what is None in a state."""
    names = synthetic.example()

    def end(numbers):
        sigma, reg_factor = numbers
        options = NURLMSOptions(solver=solver, sigma=sigma, reg_factor=reg_factor)
        problem = names["pdm"], names["responses"], names["params"]
        return nu_rlms(*problem, options).evidence.shape

    slopes = jax.eval_shape(jax.jacfwd(end), jnp.asarray([1.5, 25.0]))
    assert slopes.shape == (12, 2, 2)
