"""The certificate once more, from the result alone."""

import dataclasses

import numpy as np
import pytest

from jaxclnf.diagnosis.verify import verify
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.options import FitOptions
from jaxclnf.status import Status
from tests import synthetic

pytestmark = pytest.mark.slow

OPTIONS = FitOptions(window_sizes=(7, 7), use_parts=False)


@pytest.fixture(
    scope="module",
    params=[np.float64, np.float32],
    ids=["f64", "f32"],
)
def fitted(request: pytest.FixtureRequest) -> tuple:
    names = synthetic.example(request.param)
    args = names["model"], names["image"]
    return *args, fit(*args, names["box"], options=OPTIONS)


def test_a_converged_fit_is_certified(fitted):
    model, image, result = fitted
    found = verify(model, image, result, OPTIONS)
    assert result.certified and found.certified
    tol = 1e-6 if result.landmarks.dtype == np.float64 else 2e-3
    np.testing.assert_allclose(
        found.newton_distance, result.newton_distance, rtol=0, atol=tol
    )
    np.testing.assert_allclose(
        found.smallest_curvature, result.smallest_curvature, rtol=0, atol=1e-3
    )
    np.testing.assert_array_equal(found.num_active_bounds, result.num_active_bounds)
    assert "certified: 4 phases" in str(found)


def test_several_passes_are_judged_on_the_maps_of_the_last(fitted):
    model, image, once = fitted
    options = dataclasses.replace(OPTIONS, max_passes=9)
    result = fit(model, image, params=once.start_params, options=options)
    assert int(result.num_passes) > 1 and result.certified
    found = verify(model, image, result, options)
    assert found.certified, found
    before = dataclasses.replace(result, pass_params=result.start_params)
    assert not verify(model, image, before, options).certified


def test_too_few_landmarks_for_a_pose_are_not_certified(fitted):
    """Two: what EM's curvature is compared with cannot be inverted."""
    model, image, result = fitted
    two = np.isin(np.arange(12), [0, 5])
    experts = tuple(
        dataclasses.replace(e, visibility=e.visibility & two[None])
        for e in model.experts
    )
    blind = dataclasses.replace(model, experts=experts)
    failed = fit(blind, image, params=result.start_params, options=OPTIONS)
    assert failed.status == Status.NONFINITE
    found = verify(blind, image, failed, OPTIONS)
    assert not found.certified and "NONFINITE" in str(found)


def test_a_fit_that_did_not_run_is_not_certified(fitted):
    model, image, _ = fitted
    nothing = fit(model, image, np.full(4, np.nan), options=OPTIONS)
    found = verify(model, image, nothing, OPTIONS)
    assert str(found) == "not certified: no phase was run" and not found.certified


def test_a_fit_that_failed_is_not_certified_by_the_phases_before(fitted):
    model, image, whole = fitted
    options = dataclasses.replace(OPTIONS, min_scale=50.0)
    failed = fit(model, image, params=whole.start_params, options=options)
    assert failed.status == Status.FACE_TOO_SMALL and not failed.certified
    found = verify(model, image, failed, options)
    assert found.ran.any() and not found.certified
    assert str(found).startswith("not certified, FACE_TOO_SMALL: 2 phases, at most ")


def test_an_end_that_was_moved_is_not(fitted):
    model, image, result = fitted
    ends = result.phase_params
    moved = dataclasses.replace(ends, translation=ends.translation + 0.02)
    found = verify(
        model, image, dataclasses.replace(result, phase_params=moved), OPTIONS
    )
    assert not found.certified
    assert str(found).startswith("not certified")
    # The first phase is judged on maps that stay; by a pixel's fiftieth it is off.
    assert found.newton_distance[0, 0] == pytest.approx(0.02 * np.sqrt(2), rel=0.1)


def test_several_faces_are_refused(fitted):
    model, image, result = fitted
    rows = dataclasses.replace(result, status=result.status[None])
    with pytest.raises(ValueError, match=r"leading axes \(1,\); expected one face"):
        verify(model, image, rows, OPTIONS)


def test_another_models_result_is_refused(fitted):
    model, image, result = fitted
    short = dataclasses.replace(result, num_steps=result.num_steps[:1])
    with pytest.raises(ValueError, match=r"phases \(1, 2\); expected \(2, 2\)"):
        verify(model, image, short, OPTIONS)
