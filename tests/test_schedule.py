"""Scales as turns of one loop: the same fit as scale by scale."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import filled_up
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.progress import conclude_scales
from jaxclnf.fitting.schedule import begin_scales, fit_scales, run_scales
from jaxclnf.solver.evidence import evaluate
from jaxclnf.solver.options import NURLMSOptions, SolverName
from jaxclnf.solver.steps import STEPS
from jaxclnf.status import Status

TOL = 1e-9  # px in float64: other programs add up in another order


def _options(solver: SolverName) -> FitOptions:
    openface = FitOptions.openface(parts=False)
    options = openface if solver == "openface" else FitOptions(solver=solver)
    # The larger window second: filling up must not depend on the order.
    return dataclasses.replace(options, window_sizes=(7, 9), starts=1)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "num_phases"), [("newton", 1), ("openface", 2)])
def test_a_loop_is_scale_by_scale(example: dict, solver: SolverName, num_phases: int):
    """After two phases the last scale is run alone, after one the loop goes on."""
    model, params = example["model"], example["params"]
    image, options = jnp.asarray(example["image"]), _options(solver)
    size = jnp.asarray(image.shape)

    @jax.jit
    def in_pieces(params):
        begun = begin_scales(model, size, params, options)
        some = run_scales(model, image, begun, options, num_phases=num_phases)
        return conclude_scales(model, run_scales(model, image, some, options)).fit

    @jax.jit
    def at_once(params):
        return fit_scales(model, image, size, params, options).fit

    found, expected = at_once(params), in_pieces(params)
    assert found.num_steps.tolist() == expected.num_steps.tolist()
    assert (np.asarray(found.num_steps) > 0).all()
    for name in ("landmarks", "reach", "landmark_log_likelihoods", "pass_delta"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=0, atol=TOL
        )
    assert int(found.status) == int(expected.status)
    assert int(found.num_passes) == int(expected.num_passes) == 1


@pytest.mark.slow
def test_only_the_last_scale_is_passed_through_again(example: dict):
    options = dataclasses.replace(_options("newton"), max_passes=3, pass_tol=0.0)
    image = jnp.asarray(example["image"])
    run = jax.jit(
        lambda params, options: (
            fit_scales(
                example["model"], image, jnp.asarray(image.shape), params, options
            ).fit
        )
    )
    found = run(example["params"], options)
    assert int(found.num_passes) == 3
    assert Status(int(found.pass_status)) is Status.MAX_STEPS
    # Where every pass is at rest, one is enough: of the first scale too.
    still = run(example["params"], dataclasses.replace(options, pass_tol=1e9))
    assert int(still.num_passes) == 1
    np.testing.assert_array_equal(
        found.phase_params.translation[0], still.phase_params.translation[0]
    )


@pytest.mark.parametrize("solver", list(STEPS))
def test_maps_that_are_filled_up_say_the_same(example: dict, solver: SolverName):
    pdm, maps = example["pdm"], example["responses"]
    larger = filled_up(maps, 11)
    assert larger.maps.shape == (pdm.num_landmarks, 11, 11)
    options = NURLMSOptions(solver=solver)
    look = jax.jit(evaluate)
    # As it is, and so far off that OpenFace's kernel clamps.
    for shift in (0.0, 60.0):
        params = example["params"].moved(jnp.asarray([shift, -shift]))
        found, expected = (look(pdm, m, params, options) for m in (larger, maps))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-10),
            found,
            expected,
        )


def test_maps_are_filled_up_further_and_never_cut(example: dict):
    once = filled_up(example["responses"], 9)
    again = filled_up(once, 11)
    assert again.maps.shape[1:] == (11, 11)
    assert np.asarray([again.side, once.side]).tolist() == [7, 7]
    with pytest.raises(ValueError, match="size is 9; expected 11 or more"):
        filled_up(again, 9)


def test_public_functions_are_compiled_once(example: dict):
    pdm, experts = example["pdm"], example["model"].experts[0]
    compiled: Any = response_maps
    counts = []
    for _ in range(2):
        compiled(pdm, experts, example["image"], example["params"], 7)
        counts.append(compiled._cache_size())
    assert counts[0] == counts[1]
