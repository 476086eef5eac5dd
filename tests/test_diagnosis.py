"""Each class of findings, provoked; and good phases, of which nothing is said."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.diagnosis.agreement import judge_ascent
from jaxclnf.diagnosis.diagnose import diagnose
from jaxclnf.diagnosis.findings import Diagnosis, Finding, Kind
from jaxclnf.diagnosis.motion import judge_open_end, way_from
from jaxclnf.diagnosis.trace import PhaseTrace, phase_trace, tangent_step, trace_phase
from jaxclnf.diagnosis.truth import terms_of, truth_at
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.fit import fit_with_trace
from jaxclnf.fitting.options import FitOptions
from jaxclnf.shape.pdm import PDM, PDMParams, project, retract
from jaxclnf.solver.loop import nu_rlms_with_trace
from jaxclnf.solver.objective import curvature, em_curvature, gradient, objective
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.status import Status
from tests import synthetic

MAX_STEPS = 40


def _options(solver: str = "em", max_steps: int = MAX_STEPS, **changes):
    """Weak numbers, so that all of one solver and limit share a compilation."""
    return NURLMSOptions(
        solver=solver,  # pyright: ignore[reportArgumentType]
        max_steps=max_steps,
        **changes,
    )


def _problem(names: dict) -> tuple[PDM, ResponseMaps, PDMParams]:
    return names["pdm"], names["responses"], names["params"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(np.float64, marks=pytest.mark.slow), np.float32],
    ids=["f64", "f32"],
)
def names(request: pytest.FixtureRequest) -> dict:
    return synthetic.example(request.param)


@pytest.fixture(scope="module")
def sound(example: dict) -> PhaseTrace:
    """A good non-rigid phase, which the tests below spoil."""
    problem = _problem(example)
    return jax.tree.map(np.asarray, trace_phase(*problem, _options()))


def _last(trace: PhaseTrace) -> int:
    return int(trace.valid.sum()) - 1


# Truth and trace.


@pytest.mark.parametrize("rigid", [False, True])
def test_truth_and_solver_agree(example, rigid):
    """Two independent ways to F, its derivatives and the metric."""
    pdm, responses = example["pdm"], example["responses"]
    params = example["truth"]
    options = NURLMSOptions(weight_factor=jnp.asarray(2.5))
    here = pdm, responses, params, options
    truth = jax.jit(truth_at, static_argnames="rigid")(*here, rigid=rigid)

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)

    same(truth.objective, jax.jit(objective)(*here))
    same(truth.gradient, jax.jit(gradient, static_argnames="rigid")(*here, rigid=rigid))
    metric = jax.jit(em_curvature, static_argnames="rigid")(*here, rigid=rigid)
    same(truth.metric, metric)
    bend = jax.jit(curvature, static_argnames="rigid")(*here, rigid=rigid)
    lower = np.linalg.cholesky(np.asarray(metric))
    half = np.linalg.solve(lower, np.asarray(bend))
    values = np.linalg.eigvalsh(np.linalg.solve(lower, half.T))
    same(truth.smallest_curvature, values[0])


def test_truth_without_evidence(example):
    """An empty map, and one of an invisible landmark, say nothing."""
    pdm, params = example["pdm"], example["params"]
    maps = example["responses"].maps.at[3].set(0)
    visible = example["responses"].visibility.at[5].set(False)
    responses = dataclasses.replace(example["responses"], maps=maps, visibility=visible)
    truth = jax.jit(truth_at)(pdm, responses, params, _options())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(truth))
    np.testing.assert_array_equal(truth.mean_shifts[jnp.asarray([3, 5])], 0)
    np.testing.assert_array_equal(truth.terms[jnp.asarray([3, 5])], 0)


def test_a_step_is_recovered_from_its_ends(example):
    rng = np.random.default_rng(0)
    for size in (1e-6, 0.3):
        step = jnp.asarray(rng.normal(size=10) * size)
        moved = retract(example["params"], step)
        found = tangent_step(example["params"], moved)
        # `retract` polishes its rotation, to fourth order in rounding only.
        np.testing.assert_allclose(found, step, rtol=1e-9, atol=1e-12)


def test_the_trace_keeps_every_step(sound):
    last = _last(sound)
    for k in range(1, last + 1):
        before = jax.tree.map(lambda x, k=k: jnp.asarray(x[k - 1]), sound.params)
        after = jax.tree.map(lambda x, k=k: x[k], sound.params)
        moved = retract(before, jnp.asarray(sound.step[k]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            moved,
            after,
        )
    np.testing.assert_array_equal(sound.step[0], 0)
    assert sound.window_size == 7
    assert np.isnan(sound.truth.gradient[last + 1 :]).all()
    assert np.isfinite(sound.truth.gradient[: last + 1]).all()
    at = sound.positions[: last + 1]
    np.testing.assert_allclose(at, sound.truth.positions[: last + 1], atol=1e-9)


@pytest.mark.slow
def test_dtypes_follow_the_input(names):
    problem = _problem(names)
    trace = trace_phase(*problem, _options(max_steps=3))
    floats = [x for x in jax.tree.leaves(trace) if jnp.issubdtype(x.dtype, jnp.inexact)]
    assert {x.dtype for x in floats if x.ndim} == {names["pdm"].mean_shape.dtype}


# Good phases.


@pytest.mark.parametrize("rigid", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "em"},
        {"solver": "openface", "shape_tol": 0.01},
        {"solver": "em", "n_sigmas": 0.25, "reg_factor": 1.0},
        {"solver": "em", "weight_factor": 2.5},
    ],
    ids=["em", "openface", "em at bounds", "em weighted"],
)
def test_good_phases_have_no_problem(names, options, rigid):
    problem = _problem(names)
    trace = trace_phase(*problem, _options(**options), rigid=rigid)
    found = diagnose(trace)
    assert found.kinds == (Kind.CONVERGED,), str(found)
    assert str(found).startswith("no problem")


def test_five_steps_of_openface_are_no_problem(names):
    problem = _problem(names)
    trace = trace_phase(*problem, _options(solver="openface", max_steps=5))
    assert diagnose(trace).kinds == (Kind.CUT_OFF,)


@pytest.mark.slow
def test_a_fit_is_diagnosed_from_its_trace(example):
    options = FitOptions(window_sizes=(7,), max_steps=MAX_STEPS)
    problem = example["model"], example["image"], example["box"]
    _, trace = fit_with_trace(*problem, options=options)
    found = diagnose(trace, options=options)
    assert found.kinds == (Kind.CONVERGED,) * 2 and found.converges
    assert {x.where for x in found.findings} == {
        "scale 0, rigid",
        "scale 0, non-rigid",
    }
    # The same path, with a status that says it was not over, and F upside down.
    status = np.where(trace.states.status == Status.CONVERGED, 2, trace.states.status)
    states = dataclasses.replace(
        trace.states, status=status, objective=-trace.states.objective
    )
    found = diagnose(dataclasses.replace(trace, states=states), options=options)
    assert Kind.OBJECTIVE_FALLS in found.kinds and Kind.CONVERGED not in found.kinds


@pytest.mark.slow
def test_a_bad_start_is_named(example):
    options = FitOptions(window_sizes=(7,), max_steps=MAX_STEPS)
    box = jnp.asarray([np.nan, 0.0, 10.0, 10.0])
    _, trace = fit_with_trace(example["model"], example["image"], box, options=options)
    assert diagnose(trace, options=options).kinds == (Kind.BAD_START,)


def test_batches_are_refused(sound):
    batch = jax.tree.map(lambda x: x[None], sound)
    with pytest.raises(ValueError, match="expected one axis"):
        diagnose(batch)


def test_what_is_no_trace_is_refused():
    with pytest.raises(TypeError, match="trace is a int; expected a PhaseTrace or"):
        inspect.unwrap(diagnose)(3)


# Ends without a result.


def test_nothing_visible(example):
    responses = dataclasses.replace(
        example["responses"], visibility=jnp.zeros(12, bool)
    )
    trace = trace_phase(example["pdm"], responses, example["params"], _options())
    assert diagnose(trace).kinds == (Kind.NOTHING_VISIBLE,)


@pytest.mark.slow
def test_not_finite(example, sound):
    params = dataclasses.replace(example["params"], scale=jnp.asarray(np.nan))
    trace = trace_phase(example["pdm"], example["responses"], params, _options())
    assert diagnose(trace).kinds == (Kind.NONFINITE,)
    hidden = sound.objective.copy()
    hidden[3] = np.inf
    found = diagnose(dataclasses.replace(sound, objective=hidden))
    assert found.kinds == (Kind.NONFINITE,) and found.findings[0].evidence["step"] == 3


def test_what_was_wrong_before_the_numbers_ran_away(sound):
    """Of a phase that ended in NaNs the finite steps are looked at."""
    shifts = -sound.mean_shifts
    shifts[4:] = np.nan
    status = np.where(np.arange(len(sound.status)) >= 4, Status.NONFINITE, sound.status)
    found = diagnose(dataclasses.replace(sound, mean_shifts=shifts, status=status))
    assert found.kinds[:2] == (Kind.NONFINITE, Kind.WRONG_MEAN_SHIFT)
    assert found.findings[1].evidence["cause"] == "the mean shift has the wrong sign"


# Numbers that are not those of F.


def test_wrong_shape(sound):
    found = diagnose(dataclasses.replace(sound, shape=sound.shape + 0.01))
    assert found.kinds[0] == Kind.WRONG_SHAPE
    assert found.findings[0].evidence["difference"] == pytest.approx(0.01)


def test_wrong_mean_shift_of_one_landmark(sound):
    shifts = sound.mean_shifts.copy()
    shifts[2, 7, 1] += 0.01
    found = diagnose(dataclasses.replace(sound, mean_shifts=shifts))
    (finding,) = [x for x in found.findings if x.kind == Kind.WRONG_MEAN_SHIFT]
    assert finding.evidence["landmarks"] == [7]
    assert finding.evidence["cause"] is None


def _with_shifts(trace: PhaseTrace, shifts: np.ndarray) -> str | None:
    found = diagnose(dataclasses.replace(trace, mean_shifts=shifts))
    (finding,) = [x for x in found.findings if x.kind == Kind.WRONG_MEAN_SHIFT]
    return finding.evidence["cause"]


def test_mix_ups_of_the_mean_shift_are_named(sound):
    v = sound.truth.mean_shifts
    a = sound.responses.ref_from_img
    # What of these is the same to the last bit, both of them may be named.
    assert _with_shifts(sound, -v) == "the mean shift has the wrong sign"
    assert _with_shifts(sound, v[..., ::-1]) == "x and y of the mean shift are swapped"
    assert "stacked" in (
        _with_shifts(sound, v.transpose(0, 2, 1).reshape(v.shape)) or ""
    )
    interleaved = v.reshape(len(v), 2, 12).transpose(0, 2, 1)
    assert "interleaved mean shifts" in (_with_shifts(sound, interleaved) or "")
    left = _with_shifts(sound, v @ a.T)
    assert left == "the mean shift is left in pixels of the map"
    assert "ref_from_img instead" in (_with_shifts(sound, v @ a.T @ a.T) or "")


def _with_gradient(trace: PhaseTrace, slope: np.ndarray) -> str | None:
    found = diagnose(dataclasses.replace(trace, gradient=slope))
    (finding,) = [x for x in found.findings if x.kind == Kind.WRONG_GRADIENT]
    assert finding.evidence["angle"] > 0
    return finding.evidence["cause"]


def test_mix_ups_of_the_gradient_are_named(sound):
    g = sound.gradient
    pull = np.zeros_like(g)
    pull[:, 6:] = 25 * sound.params.params_local / sound.pdm.eigen_values
    assert _with_gradient(sound, g + pull) == "the prior is missing"
    assert _with_gradient(sound, g + 2 * pull) == "the prior has the wrong sign"
    assert _with_gradient(sound, g - 2 * pull) == "the prior counts 3 times"
    flipped = g.copy()
    flipped[:, [0, 8]] *= -1
    assert _with_gradient(sound, flipped) == (
        "the sign of the Jacobian's column is wrong: scale, mode 2"
    )
    assert _with_gradient(sound, g + np.sin(g)) is None


def test_wrong_objective(sound):
    found = diagnose(dataclasses.replace(sound, objective=1.001 * sound.objective))
    assert found.kinds[0] == Kind.WRONG_OBJECTIVE
    moved = dataclasses.replace(sound, objective=sound.objective + 100)
    assert diagnose(moved).kinds == (Kind.CONVERGED,)  # a constant means nothing


def test_objective_falls():
    rising = np.arange(5.0)
    slots = np.arange(5)
    assert judge_ascent(rising, 5.0, slots, "em") == []
    (finding,) = judge_ascent(rising[::-1].copy(), 5.0, slots, "em")
    assert finding.kind == Kind.OBJECTIVE_FALLS and finding.evidence["falls"] == 4
    assert judge_ascent(rising[::-1].copy(), 5.0, slots, "openface") == []
    rounding = np.array([1.0, 1.0 - 1e-15])
    assert judge_ascent(rounding, 1.0, slots[:2], "em") == []


def test_converged_elsewhere(sound):
    """A phase that claims its end after the second step."""
    status = sound.status.copy()
    status[2:] = Status.CONVERGED
    valid = np.arange(len(status)) <= 2
    found = diagnose(dataclasses.replace(sound, status=status, valid=valid))
    assert found.kinds[0] == Kind.FALSE_CONVERGENCE and found.converges
    assert Kind.CONVERGED not in found.kinds


def test_indefinite_curvature(sound):
    bend = np.where(np.arange(len(sound.valid)) == _last(sound), -0.2, 0.3)
    truth = dataclasses.replace(sound.truth, smallest_curvature=bend)
    found = diagnose(dataclasses.replace(sound, truth=truth))
    assert found.kinds[0] == Kind.INDEFINITE
    early = dataclasses.replace(sound.truth, smallest_curvature=bend[::-1].copy())
    assert (
        Kind.INDEFINITE not in diagnose(dataclasses.replace(sound, truth=early)).kinds
    )


def test_bound_ignored(sound):
    options = _options(n_sigmas=0.1)
    found = diagnose(dataclasses.replace(sound, options=options))
    assert found.kinds[0] == Kind.BOUND_IGNORED
    assert found.findings[0].evidence["largest"] > 0.1


def test_bound_cycling(sound):
    at_bound = np.zeros_like(sound.at_bound)
    at_bound[::2, 1] = 1
    status = np.where(sound.status == Status.CONVERGED, Status.MAX_STEPS, sound.status)
    cycling = dataclasses.replace(sound, at_bound=at_bound, status=status)
    (finding,) = [x for x in diagnose(cycling).findings if x.kind == Kind.BOUND_CYCLING]
    assert finding.evidence["modes"] == [1]
    steady = dataclasses.replace(cycling, at_bound=np.ones_like(at_bound))
    assert Kind.BOUND_CYCLING not in diagnose(steady).kinds


def test_drift(sound):
    positions = sound.truth.positions.copy()
    positions[_last(sound), :7] += 8
    truth = dataclasses.replace(sound.truth, positions=positions)
    found = diagnose(dataclasses.replace(sound, truth=truth))
    (finding,) = [x for x in found.findings if x.kind == Kind.DRIFT]
    assert finding.evidence["landmarks"] == list(range(7))
    positions[_last(sound), :2] -= 8  # five of twelve are not most of the face
    assert Kind.DRIFT not in diagnose(dataclasses.replace(sound, truth=truth)).kinds


# The way of a shape.


def _end(shapes: np.ndarray, solver: str = "em", said: float = 1.0) -> Finding:
    shapes = np.asarray(shapes, float).reshape(len(shapes), -1, 2)
    moved = np.append(False, np.any(np.diff(shapes, axis=0) != 0, axis=(1, 2)))
    return judge_open_end(way_from(shapes, moved, said, 0.005, solver))


def _along(lengths: np.ndarray) -> np.ndarray:
    """A way in one direction with steps of these lengths."""
    x = np.append(0, np.cumsum(lengths))
    return np.stack([0.6 * x, 0.8 * x], axis=-1)


def test_slow_linear_convergence():
    finding = _end(_along(0.9 ** np.arange(40)))
    assert finding.kind == Kind.SLOW
    assert finding.evidence["rate"] == pytest.approx(0.9)
    expected = int(np.ceil(np.log(0.005 / 0.9**39) / np.log(0.9)))
    assert finding.evidence["steps_missing"] == expected
    assert _end(_along(0.9 ** np.arange(40)), "openface").kind == Kind.CUT_OFF
    assert _end(_along(0.9 ** np.arange(10))).kind == Kind.CUT_OFF
    assert _end(_along(0.5 ** np.arange(3))).kind == Kind.CUT_OFF


def test_constant_step():
    finding = _end(_along(np.full(30, 2.5)))
    assert finding.kind == Kind.CONSTANT_STEP
    assert finding.evidence["step"] == pytest.approx(2.5)


def test_growing_steps():
    finding = _end(_along(1.2 ** np.arange(30)))
    assert finding.kind == Kind.DIVERGENCE
    assert finding.evidence["rate"] == pytest.approx(1.2)


@pytest.mark.parametrize("period", [2, 3, 5])
def test_oscillation_with_its_period(period):
    angles = 2 * np.pi * np.arange(40) / period
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    finding = _end(ring)
    assert finding.kind == Kind.OSCILLATION
    assert finding.evidence["period"] == period


def test_going_back_and_forth_without_a_period():
    steps = np.random.default_rng(0).uniform(0.5, 1.5, 40) * (-1.0) ** np.arange(40)
    finding = _end(_along(steps))
    assert finding.kind == Kind.OSCILLATION and finding.evidence["cosine"] < -0.9


def test_wandering():
    rng = np.random.default_rng(1)
    way = np.cumsum(rng.normal(size=(40, 2)) * rng.uniform(0.2, 3, (40, 1)), axis=0)
    assert _end(way).kind == Kind.WANDERING


def test_no_step_accepted():
    way = _along(np.append(0.5 ** np.arange(4), np.zeros(12)))
    finding = _end(way)
    assert finding.kind == Kind.STALLED
    assert finding.evidence == {"refused": 9, "last_accepted": 4}
    # One accepted now and then is no progress; every other one is.
    lengths = np.where(np.arange(40) % 8 == 0, 1.0, 0)
    assert _end(_along(lengths)).kind == Kind.STALLED
    lengths = np.where(np.arange(40) % 3 == 0, 0, 0.9 ** np.arange(40))
    assert _end(_along(lengths)).kind == Kind.SLOW


def test_at_rest_but_not_stopped():
    finding = _end(_along(0.6 ** np.arange(20)), said=3.0)
    assert finding.kind == Kind.AT_REST and finding.evidence["said"] == 3.0
    assert "bounds" in finding.message
    assert "bounds" not in _end(_along(0.6 ** np.arange(20)), said=0.001).message


# The report.


def test_the_report_is_in_order():
    kinds = (Kind.NONFINITE, Kind.SLOW, Kind.CONVERGED)
    found = Diagnosis(tuple(Finding(k, "x", where="scale 1, rigid") for k in kinds))
    assert [x.kind for x in found.problems] == list(kinds[:2])
    assert not found.converges
    lines = str(found).splitlines()
    assert lines[0] == "2 problems"
    assert lines[1] == "- not finite [scale 1, rigid]: x"
    assert [k.severity for k in Kind] == list(range(len(Kind)))


@pytest.mark.slow
def test_recorded_states_give_the_same_trace(example, sound):
    problem = example["pdm"], example["responses"]
    _, states, valid = nu_rlms_with_trace(*problem, example["params"], _options())
    look = jax.jit(phase_trace, static_argnames="rigid")
    again = look(*problem, states, valid, _options())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
        again,
        sound,
    )


def test_terms_follow_the_definition(example):
    """By hand, in plain NumPy, for one landmark and one mode."""
    pdm, responses, params = (example[x] for x in ("pdm", "responses", "truth"))
    terms = np.asarray(jax.jit(terms_of)(pdm, responses, params, _options()))
    a = np.asarray(responses.ref_from_img)
    shape = np.asarray(jax.jit(project)(pdm, params))
    x, y = a @ (shape[4] - np.asarray(responses.base_shape)[4]) + 3
    rows, columns = np.mgrid[:7, :7]
    kernel = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
    density = np.sum(np.asarray(responses.maps)[4] * kernel)
    expected = 1.5**2 / np.linalg.det(a) * np.log(density)
    assert terms[4] == pytest.approx(expected, rel=1e-10)
    q, e = float(params.params_local[1]), float(pdm.eigen_values[1])
    assert terms[12 + 1] == pytest.approx(-12.5 * q**2 / e, rel=1e-10)
