"""One step of the solver, and where many of them lead."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from jaxclnf.shape.pdm import jacobian, mode_bounds, project, retract
from jaxclnf.solver.loop import nu_rlms, nu_rlms_init, nu_rlms_step, nu_rlms_with_trace
from jaxclnf.solver.objective import gradient, objective
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.status import Status
from tests import synthetic

TOL = 1e-10  # px and mm; float64, condition number of the normal matrix about 1e5
SLOPE_TOL = 1e-6  # px, of the scaled gradient where steps are below 1e-8 px

_objective = jax.jit(objective)
_objectives = jax.vmap(_objective, (None, None, 0, None))
_gradient = jax.jit(gradient, static_argnames="rigid")
_project = jax.jit(project)
_jacobian = jax.jit(jacobian)


def _options(max_steps: int = 300, solver: str = "em", **changes) -> NURLMSOptions:
    """Always arrays, so that all cases share one compilation."""
    numbers = {
        "sigma": 1.5,
        "reg_factor": 25.0,
        "weight_factor": 0.0,
        "shape_tol": 0.005,
        "n_sigmas": 3.0,
    } | changes
    return NURLMSOptions(
        solver=solver,  # pyright: ignore[reportArgumentType]
        max_steps=max_steps,
        **{name: jnp.asarray(x) for name, x in numbers.items()},
    )


def _climbed(pdm, responses, params, options, delta):
    return objective(pdm, responses, retract(params, delta), options)


_climb = jax.jit(jax.value_and_grad(_climbed, argnums=4))


@pytest.fixture(scope="module")
def problem(example: dict) -> tuple:
    return example["pdm"], example["responses"], example["params"]


def _naive_shifts(responses, shape: np.ndarray, sigma: float) -> np.ndarray:
    window = responses.maps.shape[-1]
    rows, columns = np.mgrid[:window, :window]
    a, b = np.asarray(responses.ref_from_img), np.asarray(responses.img_from_ref)
    positions = (shape - np.asarray(responses.base_shape)) @ a.T + (window - 1) / 2
    shifts = []
    for pixels, (x, y) in zip(np.asarray(responses.maps), positions, strict=True):
        kernel = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        weights = pixels * kernel / np.sum(pixels * kernel)
        shifts.append([np.sum(weights * columns) - x, np.sum(weights * rows) - y])
    return np.asarray(shifts) @ b.T


@pytest.mark.parametrize("rigid", [False, True])
@pytest.mark.parametrize("reg_factor", [0.01, 25.0, 1000.0])
@pytest.mark.parametrize("weight_factor", [0.0, 2.5])
def test_a_step_is_the_dense_solve(problem, reg_factor, weight_factor, rigid):
    pdm, responses, _ = problem
    params = synthetic.make_params(
        pdm, scale=1.08, euler=(0.02, -0.05, 0.06), translation=(127, 120), modes=0.2
    )
    options = _options(
        reg_factor=reg_factor, weight_factor=weight_factor, n_sigmas=100.0
    )
    state = nu_rlms_init(pdm, responses, params, options, rigid=rigid)
    after = nu_rlms_step(pdm, responses, state, options, rigid=rigid)

    columns = np.asarray(_jacobian(pdm, params)).reshape(24, 10)
    shifts = _naive_shifts(responses, np.asarray(_project(pdm, params)), 1.5)
    weights = np.ones(12)
    if weight_factor:
        weights = weight_factor * np.asarray(responses.confidence)
    weights = np.repeat(weights, 2)
    precision = reg_factor / np.asarray(pdm.eigen_values)
    normal = columns.T @ (weights[:, None] * columns)
    normal[6:, 6:] += np.diag(precision)
    right = columns.T @ (weights * shifts.ravel())
    right[6:] -= precision * np.asarray(params.params_local)
    size = 6 if rigid else 10
    step = scipy.linalg.solve(normal[:size, :size], right[:size], assume_a="pos")
    expected = retract(params, jnp.asarray(step))

    assert after.step_factor == 1  # accepted
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOL),
        after.params,
        expected,
    )
    moved = np.linalg.norm(columns[:, :size] @ step)
    np.testing.assert_allclose(after.shape_delta, moved, rtol=1e-9)
    assert after.num_steps == 1


def test_a_state_describes_its_parameters(problem):
    options = _options()
    state = nu_rlms_init(*problem, options)
    for _ in range(3):
        state = nu_rlms_step(*problem[:2], state, options)
    pdm, responses, _ = problem
    np.testing.assert_allclose(
        state.evidence.shape, _project(pdm, state.params), rtol=0, atol=TOL
    )
    np.testing.assert_allclose(
        state.objective, _objective(pdm, responses, state.params, options), rtol=1e-11
    )
    np.testing.assert_allclose(
        state.evidence.mean_shifts,
        _naive_shifts(responses, np.asarray(state.evidence.shape), 1.5),
        rtol=0,
        atol=TOL,
    )
    slope = np.asarray(_gradient(pdm, responses, state.params, options))
    columns = np.asarray(_jacobian(pdm, state.params)).reshape(24, 10)
    diagonal = np.sum(columns**2, axis=0)
    diagonal[6:] += 25 / np.asarray(pdm.eigen_values)
    np.testing.assert_allclose(
        state.gradient_norm, np.max(np.abs(slope) / np.sqrt(diagonal)), rtol=1e-7
    )


def _trace(problem, options, rigid=False):
    last, states, valid = nu_rlms_with_trace(*problem, options, rigid=rigid)
    return last, jax.tree.map(lambda x: np.asarray(x)[np.asarray(valid)], states)


@pytest.mark.parametrize("rigid", [False, True])
@pytest.mark.parametrize("n_sigmas", [3.0, 0.1])
@pytest.mark.parametrize("reg_factor", [1.0, 25.0])
def test_the_objective_never_falls(problem, reg_factor, n_sigmas, rigid):
    options = _options(reg_factor=reg_factor, n_sigmas=n_sigmas, max_steps=60)
    last, states = _trace(problem, options, rigid)
    pdm, responses, _ = problem
    truth = np.asarray(_objectives(pdm, responses, states.params, options))
    assert len(truth) == last.num_steps + 1 > 5
    rounding = 1e-12 * abs(float(truth[0]))
    assert np.all(np.diff(truth) >= -rounding)
    np.testing.assert_allclose(states.objective, truth, rtol=1e-11)
    if not rigid:
        bounds = np.asarray(mode_bounds(pdm, n_sigmas))
        assert np.all(np.abs(states.params.params_local) <= bounds)


@pytest.fixture(scope="module")
def spiky(problem) -> tuple:
    """Lone peaks further away than the face is wide: full steps turn it too far."""
    pdm, responses, params = problem
    rng = np.random.default_rng(8)
    maps = np.full(responses.maps.shape, 1e-12)
    rows, columns = rng.integers(0, 7, (2, 12))
    maps[np.arange(12), rows, columns] = 1.0
    small = dataclasses.replace(params, scale=jnp.asarray(0.02))
    spiky = dataclasses.replace(
        responses, maps=jnp.asarray(maps), base_shape=_project(pdm, small)
    )
    return pdm, spiky, small


def test_a_step_that_lowers_the_objective_is_halved(spiky):
    options = _options(max_steps=60)
    last, states = _trace(spiky, options, rigid=True)
    assert last.status == Status.CONVERGED
    assert np.all(np.diff(states.objective) >= 0)
    rejected = np.nonzero(states.step_factor < 1)[0]
    assert len(rejected) > 2
    for k in rejected:
        before, after = (jax.tree.map(lambda x, k=k: x[k], states) for k in (k - 1, k))
        assert after.step_factor == before.step_factor / 2
        assert after.num_steps == before.num_steps + 1
        jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
        assert after.objective == before.objective
        # What was refused does lower F.
        pdm, responses, _ = spiky
        columns = np.asarray(_jacobian(pdm, before.params))[..., :6].reshape(24, 6)
        slope = _gradient(pdm, responses, before.params, options, rigid=True)
        step = before.step_factor * np.linalg.solve(columns.T @ columns, slope)
        refused = retract(before.params, jnp.asarray(step))
        assert _objective(pdm, responses, refused, options) < before.objective


def _best_nearby(problem, params, options) -> float:
    """How much L-BFGS-B, within the mode bounds, can still add to F."""
    pdm, responses, _ = problem
    bounds = np.asarray(mode_bounds(pdm, options.n_sigmas))
    local = np.asarray(params.params_local)
    # Pixels, so that all directions are alike.
    columns = np.asarray(_jacobian(pdm, params)).reshape(24, 10)
    unit = 1 / np.sqrt(np.sum(columns**2, axis=0))

    def loss(x):
        value, slope = _climb(pdm, responses, params, options, jnp.asarray(x * unit))
        return -float(value), -np.asarray(slope) * unit

    limits = [(None, None)] * 6 + list(
        zip((-bounds - local) / unit[6:], (bounds - local) / unit[6:], strict=True)
    )
    start = loss(np.zeros(10))[0]
    # The retraction is only exact at zero: few and small moves.
    end = scipy.optimize.minimize(
        loss,
        np.zeros(10),
        jac=True,
        bounds=limits,
        method="L-BFGS-B",
        options={"maxiter": 50, "ftol": 1e-15, "gtol": 1e-10},
    )
    return start - end.fun


@pytest.mark.parametrize("n_sigmas", [3.0, 0.25, 0.05, 0.0])
def test_the_fixed_point_is_a_constrained_optimum(problem, n_sigmas):
    options = _options(n_sigmas=n_sigmas, reg_factor=1.0, shape_tol=1e-8)
    state = nu_rlms(*problem, options)
    assert state.status == Status.CONVERGED
    pdm, responses, _ = problem
    bounds = np.asarray(mode_bounds(pdm, n_sigmas))
    local = np.asarray(state.params.params_local)
    slope = np.asarray(_gradient(pdm, responses, state.params, options))
    columns = np.asarray(_jacobian(pdm, state.params)).reshape(24, 10)
    scaled = slope / np.sqrt(np.sum(columns**2, axis=0))
    at_bound = np.concatenate([np.zeros(6, bool), np.abs(local) >= bounds])
    assert at_bound.any() == (n_sigmas < 1)
    np.testing.assert_allclose(scaled[~at_bound], 0, atol=SLOPE_TOL)
    if n_sigmas:
        outwards = scaled[6:] * np.sign(local)
        assert np.all(outwards[at_bound[6:]] > -SLOPE_TOL)
        assert state.gradient_norm < SLOPE_TOL
        assert _best_nearby(problem, state.params, options) < 1e-8
        if n_sigmas < 1:  # and the bounds do hold it back
            wider = _options(n_sigmas=3.0, reg_factor=1.0)
            assert _best_nearby(problem, state.params, wider) > 1e-3


def test_the_gradient_norm_counts_no_mode_without_room(problem):
    """With bounds of zero the modes cannot move, whichever way F slopes."""
    options = _options(n_sigmas=0.0, reg_factor=1.0, shape_tol=1e-8)
    assert nu_rlms(*problem, options).gradient_norm < SLOPE_TOL


def test_the_rigid_fixed_point_is_stationary_in_the_pose(problem):
    options = _options(shape_tol=1e-8)
    state = nu_rlms(*problem, options, rigid=True)
    assert state.status == Status.CONVERGED
    slope = np.asarray(_gradient(*problem[:2], state.params, options, rigid=True))
    columns = np.asarray(_jacobian(problem[0], state.params)).reshape(24, 10)[:, :6]
    scaled = slope / np.sqrt(np.sum(columns**2, axis=0))
    np.testing.assert_allclose(scaled, 0, atol=SLOPE_TOL)


def test_a_rigid_phase_leaves_the_modes_alone(problem):
    """Even those beyond the bounds."""
    pdm, responses, params = problem
    local = jnp.asarray([100.0, -3.0, 0.1, 50.0])
    params = dataclasses.replace(params, params_local=local)
    state = nu_rlms(pdm, responses, params, _options(), rigid=True)
    np.testing.assert_array_equal(state.params.params_local, local)
    assert state.num_steps > 1


def test_a_nonrigid_phase_starts_inside_the_bounds(problem):
    pdm, responses, params = problem
    local = jnp.asarray([100.0, -3.0, 0.1, 50.0])
    params = dataclasses.replace(params, params_local=local)
    state = nu_rlms_init(pdm, responses, params, _options())
    bounds = mode_bounds(pdm, 3.0)
    np.testing.assert_array_equal(
        state.params.params_local, jnp.clip(local, -bounds, bounds)
    )


# Ends.


@pytest.mark.parametrize("rigid", [False, True])
def test_nothing_visible(problem, rigid):
    pdm, responses, params = problem
    for blind in (
        dataclasses.replace(responses, visibility=jnp.zeros(12, bool)),
        dataclasses.replace(responses, maps=jnp.zeros_like(responses.maps)),
    ):
        state = nu_rlms(pdm, blind, params, _options(), rigid=rigid)
        assert state.status == Status.NOTHING_VISIBLE
        assert state.num_steps == 0
        jax.tree.map(np.testing.assert_array_equal, state.params, params)


@pytest.mark.parametrize("field", ["scale", "rotation", "translation", "params_local"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_start_that_is_not_finite(problem, field, bad):
    pdm, responses, params = problem
    value = jnp.full_like(getattr(params, field), bad)
    params = dataclasses.replace(params, **{field: value})
    state = nu_rlms(pdm, responses, params, _options(), rigid=True)
    assert state.status == Status.NONFINITE
    assert state.num_steps == 0


@pytest.mark.parametrize("solver", ["newton", "em", "openface"])
def test_too_little_to_see_ends_with_the_state_before(problem, solver):
    """One landmark does not determine a pose: the normal matrix is singular."""
    pdm, responses, params = problem
    one = dataclasses.replace(responses, visibility=jnp.arange(12) == 3)
    state = nu_rlms(pdm, one, params, _options(solver=solver), rigid=True)
    assert state.status == Status.NONFINITE
    chex.assert_trees_all_equal(state.params, params)
    assert np.all(np.isfinite(state.evidence.shape))


@pytest.mark.parametrize("solver", ["newton", "em", "openface"])
def test_a_face_without_a_step_leaves_the_others_their_derivatives(problem, solver):
    """By an option that both share, in reverse: one of them shows one landmark only."""
    pdm, responses, params = problem

    def error(sigma: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps = dataclasses.replace(responses, visibility=seen)
        options = _options(3, solver=solver, sigma=sigma)
        last, *_ = nu_rlms_with_trace(pdm, maps, params, options, rigid=True)
        return jnp.sum(last.evidence.shape**2), last.status

    seen = jnp.stack([jnp.ones(12, bool), jnp.arange(12) == 3])
    slope = jax.jit(jax.vmap(jax.grad(error, has_aux=True), in_axes=(None, 0)))
    slopes, status = slope(jnp.asarray(1.5), seen)
    assert status[0] != Status.NONFINITE and status[1] == Status.NONFINITE
    assert np.isfinite(slopes).all() and slopes[0] != 0 and slopes[1] == 0


@pytest.mark.parametrize("solver", ["newton", "em", "openface"])
def test_a_map_of_nan_leaves_the_others_their_derivatives(problem, solver):
    """In reverse as in forward mode, from the optimum, where one step is all there is,
    and from before it."""
    pdm, responses, params = problem
    maps = responses.maps.at[3].set(jnp.nan).at[5, 2, 1].set(jnp.nan)
    responses = dataclasses.replace(responses, maps=maps)

    def ahead(sigma: jax.Array, params) -> jax.Array:
        options = _options(9, solver=solver, sigma=sigma)
        return nu_rlms(pdm, responses, params, options).evidence.shape[0, 0]

    def back(sigma: jax.Array, params) -> tuple[jax.Array, jax.Array]:
        options = _options(9, solver=solver, sigma=sigma)
        last, *_ = nu_rlms_with_trace(pdm, responses, params, options)
        return last.evidence.shape[0, 0], last.params

    forward = jax.jit(jax.jacfwd(ahead))
    reverse = jax.jit(jax.grad(back, has_aux=True))
    sigma = jnp.asarray(1.5)
    slope, end = reverse(sigma, params)
    np.testing.assert_allclose(slope, forward(sigma, params), rtol=1e-6)
    slope, _ = reverse(sigma, end)
    assert slope != 0
    np.testing.assert_allclose(slope, forward(sigma, end), rtol=1e-6)


def test_without_bounds_the_modes_have_derivatives(problem):
    """By the variances, which then only the prior knows."""
    pdm, responses, params = problem

    def end(variances: jax.Array, n_sigmas: float) -> jax.Array:
        loose = dataclasses.replace(pdm, eigen_values=variances)
        options = _options(9, n_sigmas=n_sigmas)
        return nu_rlms(loose, responses, params, options).evidence.shape[0, 0]

    slope = jax.jit(jax.jacfwd(end))
    found, known = (slope(pdm.eigen_values, n) for n in (np.inf, 1e6))
    np.testing.assert_allclose(found, known, rtol=1e-6)
    assert found.any()


def test_no_confidence_is_no_weight(problem):
    """Also where a model made by hand has a confidence below 0."""
    pdm, responses, params = problem
    confidence = responses.confidence.at[0].set(-0.3)
    responses = dataclasses.replace(responses, confidence=confidence)
    options = _options(weight_factor=2.5)
    zero = jnp.zeros(6 + pdm.num_modes)
    _, slope = _climb(pdm, responses, params, options, zero)
    found = _gradient(pdm, responses, params, options)
    np.testing.assert_allclose(found, slope, rtol=1e-9, atol=1e-9)


def test_step_limit(problem):
    state = nu_rlms(*problem, _options(max_steps=3, shape_tol=0.0))
    assert state.status == Status.MAX_STEPS
    assert state.num_steps == 3


def test_convergence_on_the_very_last_step_counts(problem):
    _, states = _trace(problem, _options(max_steps=60))
    between = float(states.shape_delta[2] + states.shape_delta[3]) / 2
    state = nu_rlms(*problem, _options(max_steps=3, shape_tol=between))
    assert state.status == Status.CONVERGED
    assert state.num_steps == 3


def test_a_converged_start_takes_one_step(problem):
    pdm, responses, _ = problem
    end = nu_rlms(*problem, _options(shape_tol=1e-8))
    again = nu_rlms(pdm, responses, end.params, _options())
    assert again.status == Status.CONVERGED
    assert again.num_steps == 1


def test_known_answer(example):
    """From the start a little off, the right shape within the window."""
    state = nu_rlms(*(example[x] for x in ("pdm", "responses", "params")), _options())
    error = np.abs(np.asarray(state.evidence.shape - example["landmarks"]))
    start = np.abs(np.asarray(_project(example["pdm"], example["params"])))
    start = np.abs(start - np.asarray(example["landmarks"]))
    assert error.max() < 2.5 and error.mean() < start.mean() / 2


def test_unknown_solver(problem):
    options = _options(solver="other")
    with pytest.raises(ValueError, match="solver is 'other'; expected one of newton"):
        nu_rlms(*problem, options)


def test_numbers_can_change_without_tracing_again(problem):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(pdm, responses, params, options):
        state = nu_rlms_init(pdm, responses, params, options, rigid=True)
        return nu_rlms_step(pdm, responses, state, options, rigid=True)

    chex.clear_trace_counter()
    ends = []
    for sigma in (1.5, 2.0, 0.5):
        options = NURLMSOptions(sigma=sigma, reg_factor=10 * sigma, shape_tol=sigma)
        ends.append(float(run(*problem, options).objective))
    assert len(set(ends)) == 3
