"""Several starts: where they are, which fit is kept, when one is enough."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting.face import fit_face
from jaxclnf.fitting.fit import fit, fit_with_trace
from jaxclnf.fitting.hypotheses import START_ROTATIONS, fit_starts, starts_from_box
from jaxclnf.fitting.model import EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.pruning import begin_start
from jaxclnf.shape.initial import params_from_box
from jaxclnf.shape.pdm import bounding_box, project
from jaxclnf.shape.rotation import euler_from_matrix
from jaxclnf.status import Status
from tests import synthetic
from tests.plugin import QUICKLY

OPENFACE = dataclasses.replace(FitOptions.openface(parts=False), window_sizes=(9, 7))


@pytest.fixture(scope="module")
def names() -> dict:
    return synthetic.example()


def _three(names: dict):
    """A good start, a useless one, and one a little off."""
    good, pdm = names["truth"], names["pdm"]
    far = dataclasses.replace(good, translation=good.translation + 60.0)
    near = synthetic.make_params(pdm, scale=1.05, modes=0.0)
    return jax.tree.map(lambda *x: jnp.stack(x), far, near, good)


def _run(names: dict, starts, options: FitOptions, model=None):
    image = jnp.asarray(names["image"])
    model = names["model"] if model is None else model
    run = jax.jit(lambda m, s, o: fit_starts(m, image, jnp.asarray(image.shape), s, o))
    return run(model, starts, options)


def test_starts_fill_the_box():
    pdm = synthetic.make_pdm()
    box = jnp.asarray([30.0, 40.0, 100.0, 90.0])
    starts = starts_from_box(pdm, box, 11)
    for i, angles in enumerate(START_ROTATIONS):
        start = jax.tree.map(lambda x, i=i: x[i], starts)
        found = np.asarray(euler_from_matrix(start.rotation))
        assert np.abs(found - np.array(angles)).max() < 1e-9
        corner, size = np.split(np.asarray(bounding_box(project(pdm, start))), 2)
        assert np.abs(corner + size / 2 - [80, 85]).max() < 1e-9
        assert not np.any(start.params_local)
    first = jax.jit(params_from_box)(pdm, box)
    np.testing.assert_allclose(starts.scale[0], first.scale, rtol=1e-12)


def test_one_start_is_the_first_of_eleven():
    pdm, box = synthetic.make_pdm(), jnp.asarray([30.0, 40.0, 100.0, 90.0])
    one, many = starts_from_box(pdm, box, 1), starts_from_box(pdm, box, 11)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), one, many)


@pytest.mark.parametrize("number", [0, 12])
def test_other_numbers_of_starts_are_refused(number: int):
    box = jnp.asarray([0.0, 0.0, 10.0, 10.0])
    with pytest.raises(ValueError, match=f"starts is {number}; expected 1 to 11"):
        starts_from_box(synthetic.make_pdm(), box, number)


@pytest.mark.parametrize("finished", [0, -1])
def test_at_least_one_start_is_finished(names: dict, finished: int):
    options = FitOptions(window_sizes=(9, 7), finished_starts=finished)
    with pytest.raises(ValueError, match=f"finished_starts is {finished}; expected 1"):
        _run(names, _three(names), options)


@pytest.mark.slow
def test_the_likeliest_after_the_first_phase_are_finished(names: dict):
    """And they end where they would have ended had all been finished.

    The first scale is not used, and passes are several.
    """
    starts = _three(names)
    coarse, fine = names["model"].experts
    model = dataclasses.replace(names["model"], experts=(coarse, coarse, fine))
    both = FitOptions(window_sizes=(0, 9, 7), max_passes=3)
    image = jnp.asarray(names["image"])
    begin = jax.jit(jax.vmap(begin_start, in_axes=(None, None, None, 0, None)))
    begun = begin(model, image, jnp.asarray(image.shape), starts, both)
    assert len(begun.phases) == 3
    order = np.argsort(-np.asarray(begun.log_likelihood), kind="stable")
    best = _run(names, starts, both, model)
    every = _run(names, starts, dataclasses.replace(both, finished_starts=None), model)
    done = np.isfinite(np.asarray(best.log_likelihoods))
    assert sorted(order[:2]) == np.flatnonzero(done).tolist()
    assert np.isfinite(every.log_likelihoods).all()
    assert int(best.start) == int(every.start)
    for name, found in best.fit._asdict().items():
        expected = getattr(every.fit, name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            found,
            expected,
        )


@pytest.mark.slow
def test_a_failed_start_is_not_chosen_and_a_trace_joins_both_stages(names: dict):
    starts = _three(names)
    starts = dataclasses.replace(starts, scale=starts.scale.at[2].set(jnp.nan))
    image = jnp.asarray(names["image"])
    options = FitOptions(window_sizes=(9, 7), max_steps=20)
    best = jax.jit(partial(fit_starts, with_trace=True))(
        names["model"], image, jnp.asarray(image.shape), starts, options
    )
    assert np.isfinite(best.log_likelihoods).tolist() == [True, True, False]
    assert int(best.fit.status) == Status.CONVERGED
    slots = best.trace.valid.sum(axis=-1, dtype=jnp.int32)
    np.testing.assert_array_equal(slots, best.fit.num_steps + 1)


def test_no_choice_within_the_last_scale(names: dict):
    image = jnp.asarray(names["image"])
    options = FitOptions(window_sizes=(7,))
    with pytest.raises(ValueError, match="num_phases is 1; expected at most 0"):
        begin_start(
            names["model"], image, jnp.asarray(image.shape), names["params"], options
        )


@pytest.mark.slow
def test_a_start_that_failed_early_stays_as_it_was(names: dict):
    nothing = dataclasses.replace(_three(names), scale=jnp.full(3, jnp.nan))
    options = FitOptions(solver="em", window_sizes=(9, 7))
    lost = _run(names, nothing, options)
    assert int(lost.fit.status) == Status.BAD_START and int(lost.start) == 0
    assert not np.any(lost.fit.num_steps) and np.isnan(lost.log_likelihoods).all()


@pytest.mark.slow
def test_the_likeliest_is_kept(names: dict):
    starts = _three(names)
    best = _run(names, starts, OPENFACE)
    scores = np.asarray(best.log_likelihoods)
    assert int(best.start) == np.argmax(scores) and scores[0] < scores.max()
    alone = _run(
        names, jax.tree.map(lambda x: x[int(best.start)][None], starts), OPENFACE
    )
    np.testing.assert_allclose(best.fit.landmarks, alone.fit.landmarks, atol=1e-9)


@pytest.mark.slow
def test_the_first_of_equals_is_kept(names: dict):
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), names["truth"])
    assert int(_run(names, twice, OPENFACE).start) == 0


@pytest.mark.slow
def test_the_end_of_a_short_search_is_one_more_start(names: dict):
    starts = _three(names)
    options = FitOptions(window_sizes=(9, 7), short_search=1)
    both = _run(names, starts, options)
    short = _run(names, starts, options.of_short_search())
    assert np.max(short.fit.num_steps) == 1
    end = short.fit.params
    four = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), starts, end)
    plain = _run(names, four, dataclasses.replace(options, short_search=0))
    for name in ("log_likelihoods", "start"):
        np.testing.assert_allclose(getattr(both, name), getattr(plain, name), rtol=1e-6)
    np.testing.assert_allclose(both.fit.landmarks, plain.fit.landmarks, atol=1e-6)
    np.testing.assert_allclose(both.reach[:2], np.fmin(short.reach, plain.reach)[:2])
    np.testing.assert_allclose(both.reach[2:], np.fmax(short.reach, plain.reach)[2:])


def test_steps_of_a_short_search_are_not_negative(names: dict):
    options = FitOptions(window_sizes=(7,), short_search=-1)
    with pytest.raises(ValueError, match="short_search is -1; expected a number"):
        _run(names, _three(names), options)


@pytest.mark.slow
def test_no_short_search_from_one_start(names: dict):
    only = jax.tree.map(lambda x: x[:1], _three(names))
    options = FitOptions(window_sizes=(7,), short_search=1)
    assert _run(names, only, options).log_likelihoods.shape == (1,)


@pytest.mark.slow
def test_a_failed_start_is_not_kept(names: dict):
    starts = _three(names)
    starts = dataclasses.replace(starts, scale=starts.scale.at[2].set(jnp.nan))
    options = FitOptions(window_sizes=(7,))
    best = _run(names, starts, options)
    assert int(best.start) != 2 and np.isnan(best.log_likelihoods[2])
    nothing = dataclasses.replace(starts, scale=jnp.full(3, jnp.nan))
    lost = _run(names, nothing, options)
    assert int(lost.fit.status) == Status.BAD_START and int(lost.start) == 0


@pytest.mark.slow
def test_eleven_starts_of_a_face(names: dict):
    options = FitOptions(
        window_sizes=(9, 7), starts=11, finished_starts=None, max_steps=200
    )
    result = fit(names["model"], names["image"], names["box"], options=options)
    assert result.start_log_likelihoods.shape == (11,)
    assert int(result.start) == np.nanargmax(result.start_log_likelihoods)
    assert np.abs(result.landmarks - names["landmarks"]).max() < 2
    traced, trace = fit_with_trace(
        names["model"], names["image"], names["box"], options=options
    )
    np.testing.assert_allclose(traced.landmarks, result.landmarks, atol=1e-6)
    slots = np.asarray(trace.valid).sum(-1)
    np.testing.assert_array_equal(slots, np.asarray(result.num_steps) + 1)


def _with_cutoffs(names: dict, cutoffs: list[float]):
    views = len(cutoffs)
    data = EarlyTermination(
        weights=jnp.ones(views), biases=jnp.zeros(views), cutoffs=jnp.asarray(cutoffs)
    )
    return dataclasses.replace(names["model"], early_termination=data)


@pytest.mark.slow
def test_a_good_start_ends_the_search(names: dict):
    """Every score exceeds the cut-off: only the first start is completed."""
    best = _run(names, _three(names), OPENFACE, _with_cutoffs(names, [-1e9, -1e9]))
    assert int(best.start) == 0
    assert np.isfinite(best.log_likelihoods).tolist() == [True, False, False]
    # It goes on where it was, modes included: as if there were no other start.
    only = jax.tree.map(lambda x: x[:1], _three(names))
    alone = _run(names, only, OPENFACE)
    np.testing.assert_allclose(best.fit.landmarks, alone.fit.landmarks, atol=1e-6)
    assert best.fit.num_steps.tolist() == alone.fit.num_steps.tolist()


@pytest.mark.slow
def test_without_a_good_start_the_three_best_are_completed(names: dict):
    starts = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), _three(names))
    best = _run(names, starts, OPENFACE, _with_cutoffs(names, [1e9, 1e9]))
    done = np.isfinite(np.asarray(best.log_likelihoods))
    first = _run(names, starts, dataclasses.replace(OPENFACE, window_sizes=(9,)))
    order = np.argsort(-np.asarray(first.log_likelihoods), kind="stable")
    assert sorted(order[:3]) == np.nonzero(done)[0].tolist()
    assert int(best.start) == np.nanargmax(best.log_likelihoods)


@pytest.mark.slow
def test_early_termination_is_for_openface_alone(names: dict):
    model = _with_cutoffs(names, [-1e9, -1e9])
    options = FitOptions(window_sizes=(7,), max_steps=30)
    best = _run(names, _three(names), options, model)
    assert np.isfinite(best.log_likelihoods).all()


WITHOUT_X64 = """
import warnings
warnings.simplefilter("error")
import jax
import numpy as np
import jaxclnf
from tests import synthetic
names = synthetic.example(np.float32)
assert not jax.config.jax_enable_x64
options = jaxclnf.FitOptions.openface(starts=11)
box = np.asarray(names["box"])[None]
result = jaxclnf.fit(names["model"], names["image"], box, options=options)
assert result.landmarks.dtype == np.float32
error = np.abs(np.asarray(result.landmarks)[0] - np.asarray(names["landmarks"]))
assert error.max() < 4, error.max()
"""
"""What users run. The tests have float64 switched on, which hides mistakes with it."""


@pytest.mark.slow
def test_openface_dialect_without_x64():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_X64],
        cwd=root,
        env=os.environ | QUICKLY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_parts_and_start_are_in_the_result(names: dict):
    image = jnp.asarray(names["image"])
    result, _ = jax.jit(fit_face)(
        names["model"], image, jnp.asarray(image.shape), _three(names), OPENFACE
    )
    assert result.start_log_likelihoods.shape == (3,)
    assert result.parts == {}  # switched off
    assert np.isnan(result.certainty) and result.success  # no validator
