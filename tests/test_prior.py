"""The prior: alike for a face in photographs of any resolution."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import FitOptions, TrackOptions, fit, fit_with_trace, verify
from jaxclnf.fitting.prior import reg_for_size
from tests import synthetic

OPTIONS = FitOptions(window_sizes=(7,), starts=1, reg_factor=2.0, reg_scale=1.0)


@pytest.fixture(scope="module")
def names() -> dict:
    return synthetic.example()


def enlarged(names: dict, zoom: int) -> tuple[np.ndarray, jax.Array]:
    """The picture and the box, each pixel made into several."""
    grey, to = names["image"].astype(np.float32), cv2.INTER_LINEAR
    image = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=to)
    box = zoom * names["box"]
    return image, box.at[:2].add((zoom - 1) / 2)


def test_its_weight_is_the_square_of_the_size():
    """That of the maps, whatever their scale and however the face is turned."""
    reg = jax.jit(reg_for_size)
    angle = jnp.asarray([[0.6, -0.8], [0.8, 0.6]])
    for scaling in (0.25, 0.5):
        for size in (0.7, 1.4, 7.0):
            turned = size / scaling * angle
            found = reg(jnp.asarray(25.0), 0.7, jnp.asarray(scaling), turned)
            assert float(found) == pytest.approx(25 * (size / 0.7) ** 2)
            assert reg(jnp.asarray(25.0), None, jnp.asarray(scaling), turned) == 25


def test_a_face_without_a_size_leaves_derivatives_by_what_all_share():
    turns = jnp.stack([jnp.eye(2), jnp.full((2, 2), jnp.nan)])

    def total(reg_factor: jax.Array, reg_scale: jax.Array) -> jax.Array:
        each = jax.vmap(
            lambda turn: reg_for_size(reg_factor, reg_scale, jnp.asarray(0.5), turn)
        )(turns)
        return each[0]

    slopes = jax.grad(total, argnums=(0, 1))(jnp.asarray(25.0), jnp.asarray(0.5))
    np.testing.assert_allclose(slopes, (1.0, -100.0))


def test_what_openface_does_is_left_as_it_is():
    as_there = (
        FitOptions.openface(),
        FitOptions.openface_wild(),
        FitOptions.openface_cen(),
        FitOptions.openface_video(),
        TrackOptions.openface().follow,
        TrackOptions.openface_wild().first,
    )
    for options in as_there:
        assert options.reg_scale is None
        assert options.for_part("left_eye_28").reg_scale is None
        sized = options.at_scale(jnp.asarray(0.5), 3 * jnp.eye(2))
        assert float(sized.reg_factor) == pytest.approx(options.reg_factor - 15)
    assert FitOptions.wild().reg_scale == FitOptions().reg_scale == 1.0


def test_a_part_has_a_size_of_its_own():
    """OpenFace's numbers for parts are those of larger faces; others have none."""
    assert FitOptions().for_part("inner").reg_scale == 1.4
    assert FitOptions().for_part("nose").reg_scale == 1.0


@pytest.mark.slow
def test_a_face_that_is_enlarged_is_fitted_alike(names: dict):
    def moved(options: FitOptions) -> float:
        """By how much its landmarks are elsewhere, pixels of the small picture."""
        small = fit(names["model"], names["image"], names["box"], options=options)
        image, box = enlarged(names, 4)
        large = fit(names["model"], image, box, options=options)
        assert small.certified and large.certified
        back = (np.asarray(large.landmarks) - 1.5) / 4
        return float(np.abs(back - np.asarray(small.landmarks)).max())

    alike = moved(dataclasses.replace(OPTIONS, reg_factor=200.0))
    less = moved(dataclasses.replace(OPTIONS, reg_factor=200.0, reg_scale=None))
    assert alike < 0.3 and less > 5 * alike


@pytest.mark.slow
def test_the_trace_and_the_proof_have_the_same_prior(names: dict):
    """`verify` works F out from the options alone, in double precision."""
    image, box = enlarged(names, 2)
    options = dataclasses.replace(OPTIONS, window_sizes=(7, 5), reg_factor=50.0)
    result, trace = fit_with_trace(names["model"], image, box, options=options)
    assert result.certified
    found = verify(names["model"], image, result, options)
    assert found.certified and np.nanmax(found.newton_distance) < 1e-3
    other = dataclasses.replace(options, reg_scale=None)
    assert not verify(names["model"], image, result, other).certified
    last = np.asarray(trace.states.objective)[-1, -1]
    assert np.isfinite(last).any()
