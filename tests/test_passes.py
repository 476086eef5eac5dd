"""The last scale again and again, until the landmarks are where its maps were made."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from jaxclnf.fitting.fit import fit, fit_with_trace
from jaxclnf.fitting.options import FitOptions
from jaxclnf.status import Status

ONE = FitOptions(window_sizes=(0, 7), starts=1)
MANY = dataclasses.replace(ONE, max_passes=40, pass_tol=1e-6, shape_tol=1e-8)


@pytest.fixture(scope="module")
def run(example: dict):
    return partial(fit, example["model"], example["image"])


def _farthest(a, b) -> float:
    return np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1).max()


@pytest.mark.slow
def test_a_single_pass_says_how_far_it_went(example, run):
    result = run(params=example["params"], options=ONE)
    assert int(result.num_passes) == 1
    assert Status(int(result.pass_status)) is Status.MAX_STEPS and result.converged
    assert result.status == Status.CONVERGED  # of passes nothing was asked
    before = fit(
        example["model"],
        example["image"],
        params=example["params"],
        options=dataclasses.replace(ONE, pass_tol=1e9),
    )
    assert Status(int(before.pass_status)) is Status.CONVERGED
    assert float(before.pass_delta) == float(result.pass_delta) > 0.05


@pytest.mark.slow
def test_the_end_is_a_fixed_point(example, run):
    result = run(params=example["params"], options=MANY)
    assert Status(int(result.pass_status)) is Status.CONVERGED and result.certified
    assert 2 < int(result.num_passes) < 40 and float(result.pass_delta) < 1e-6
    once_more = run(
        params=result.params, options=dataclasses.replace(MANY, max_passes=1)
    )
    assert _farthest(once_more.landmarks, result.landmarks) < 1e-6
    single = run(params=example["params"], options=ONE)
    assert _farthest(single.landmarks, result.landmarks) > 1e-3


@pytest.mark.slow
def test_the_limit_of_passes_holds(example, run):
    two = dataclasses.replace(MANY, max_passes=2, pass_tol=0.0)
    result = run(params=example["params"], options=two)
    assert int(result.num_passes) == 2
    assert Status(int(result.pass_status)) is Status.MAX_STEPS
    assert result.status == Status.MAX_STEPS and not result.converged
    one = dataclasses.replace(two, max_passes=1)
    first = run(params=example["params"], options=one)
    second = run(params=first.params, options=one)
    assert _farthest(second.landmarks, result.landmarks) < 1e-6
    np.testing.assert_allclose(result.pass_delta, second.pass_delta, rtol=1e-4)


@pytest.mark.slow
def test_a_bad_start_has_no_pass(example, run):
    lost = dataclasses.replace(example["params"], scale=np.nan * np.ones(()))
    for options in (ONE, dataclasses.replace(MANY, max_passes=2)):
        result = run(params=lost, options=options)
        assert int(result.num_passes) == 0 and np.isnan(result.pass_delta)
        assert Status(int(result.pass_status)) is Status.BAD_START


@pytest.mark.parametrize("number", [0, -1])
def test_no_pass_at_all_is_refused(example, run, number):
    options = dataclasses.replace(ONE, max_passes=number)
    with pytest.raises(ValueError, match=f"max_passes is {number}; expected 1"):
        run(params=example["params"], options=options)


@pytest.mark.slow
def test_the_trace_is_of_the_last_pass(example):
    options = dataclasses.replace(MANY, max_passes=3)
    result, trace = fit_with_trace(
        example["model"], example["image"], params=example["params"], options=options
    )
    slots = np.asarray(trace.valid).sum(-1)[1]
    np.testing.assert_array_equal(slots, np.asarray(result.num_steps)[1] + 1)
    last = np.asarray(trace.states.evidence.shape)[1, 1, -1]
    np.testing.assert_allclose(last, result.landmarks, atol=1e-6)
