"""Parts of the face: when they are fitted, and what becomes of the whole."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.fitting import parts as parts_module
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.model import CLNFPart
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.parts import fit_parts, worst_status
from jaxclnf.fitting.result import PartFit
from jaxclnf.fitting.schedule import fit_scales
from jaxclnf.shape.initial import params_from_landmarks
from jaxclnf.shape.pdm import project
from jaxclnf.status import Status
from tests import synthetic

OPTIONS = FitOptions(window_sizes=(7,), starts=1)
ANSWER_TOL = 4.0  # px, as for the whole face


@pytest.fixture(scope="module")
def names() -> dict:
    return synthetic.example()


@pytest.fixture(scope="module")
def with_part(names: dict):
    return fit(names["with_part"], names["image"], names["box"], options=OPTIONS)


@pytest.fixture(scope="module")
def without(names: dict):
    options = dataclasses.replace(OPTIONS, use_parts=False)
    return fit(names["with_part"], names["image"], names["box"], options=options)


@pytest.mark.slow
def test_a_part_is_fitted_and_the_whole_refitted(names, with_part, without):
    (part,) = with_part.parts.values()
    assert part.fitted and part.status == Status.CONVERGED
    assert with_part.converged
    assert np.abs(part.landmarks - names["landmarks"])[:3].max() < ANSWER_TOL
    merged = jnp.asarray(without.landmarks).at[:3].set(part.landmarks[:3])
    refitted = params_from_landmarks(
        names["pdm"], merged, rotation=without.params.rotation
    )
    expected = project(names["pdm"], refitted)
    np.testing.assert_allclose(with_part.landmarks, expected, atol=1e-6)
    np.testing.assert_allclose(
        with_part.landmarks, project(names["pdm"], with_part.params), atol=1e-9
    )


@pytest.mark.slow
def test_phases_are_those_of_the_whole_face(with_part, without):
    np.testing.assert_array_equal(with_part.num_steps, without.num_steps)
    np.testing.assert_allclose(
        with_part.log_likelihood, without.log_likelihood, rtol=1e-9
    )


@pytest.mark.slow
def test_no_parts_on_request(without):
    assert without.parts == {}


def _part_at(names: dict, patch_scaling: float, usable: bool = True):
    return _fit_parts(names, _with_scaling(names, patch_scaling), usable=usable)


def _with_scaling(names: dict, patch_scaling: float, name: str = "part") -> CLNFPart:
    (part,) = names["with_part"].parts
    (experts,) = part.model.experts
    experts = dataclasses.replace(experts, patch_scaling=jnp.asarray(patch_scaling))
    own = dataclasses.replace(part.model, experts=(experts,))
    return dataclasses.replace(part, model=own, name=name)


def _fit_parts(names: dict, *parts: CLNFPart, usable: bool = True):
    model = dataclasses.replace(names["with_part"], parts=parts)
    image = jnp.asarray(names["image"])
    return jax.jit(fit_parts)(
        model,
        image,
        jnp.asarray(image.shape),
        names["landmarks"],
        names["truth"],
        jnp.asarray(usable),
        OPTIONS,
    )


@pytest.mark.slow
def test_a_face_too_small_for_a_part_only_places_it(names: dict):
    """The face has 1.1 px/mm; a part needs nine tenths of its first scale."""
    small = _part_at(names, 1.3)
    (part,) = small.parts.values()
    assert not part.fitted and part.status == Status.RUNNING
    assert not np.any(part.num_steps) and np.isnan(part.log_likelihood)
    assert np.abs(part.landmarks - names["landmarks"])[:3].max() < 1
    np.testing.assert_array_equal(small.landmarks, names["landmarks"])
    (enough,) = _part_at(names, 1.2).parts.values()
    assert enough.fitted


@pytest.mark.slow
def test_parts_of_one_kind_share_a_program(names: dict, monkeypatch):
    """The eyes: compiled once, fitted as if each were alone."""
    traced = []

    def counted(model, *args, **kwargs):
        traced.append(model.pdm.num_landmarks)
        return fit_scales(model, *args, **kwargs)

    monkeypatch.setattr(parts_module, "fit_scales", counted)
    one, other = (_with_scaling(names, s, n) for s, n in ((1.0, "one"), (0.9, "other")))
    few = dataclasses.replace(
        one, main_index=one.main_index[:2], part_index=one.part_index[:2], name="few"
    )
    together = _fit_parts(names, one, few, other).parts
    assert together.keys() == {"one", "few", "other"}
    assert len(traced) == 2  # one and other, few
    for part in (one, few, other):
        (alone,) = _fit_parts(names, part).parts.values()
        chex.assert_trees_all_close(together[part.name], alone, atol=1e-9)
    assert np.abs(together["one"].landmarks - together["other"].landmarks).max() > 1e-3


@pytest.mark.slow
def test_a_failed_face_has_no_fitted_part(names: dict):
    found = _part_at(names, 0.5, usable=False)
    (part,) = found.parts.values()
    assert not part.fitted
    np.testing.assert_array_equal(found.landmarks, names["landmarks"])


@pytest.mark.slow
def test_a_bad_start_has_parts_without_numbers(names: dict):
    result = fit(
        names["with_part"], names["image"], np.full(4, np.nan), options=OPTIONS
    )
    (part,) = result.parts.values()
    assert result.status == Status.BAD_START and not result.success
    assert not part.fitted and np.isnan(part.landmarks).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "whole, part, expected",
    [
        (Status.CONVERGED, Status.CONVERGED, Status.CONVERGED),
        (Status.CONVERGED, Status.MAX_STEPS, Status.MAX_STEPS),
        (Status.CONVERGED, Status.NONFINITE, Status.MAX_STEPS),
        (Status.MAX_STEPS, Status.CONVERGED, Status.MAX_STEPS),
        (Status.FACE_TOO_SMALL, Status.MAX_STEPS, Status.FACE_TOO_SMALL),
    ],
)
def test_worst_status(with_part, whole: Status, part: Status, expected: Status):
    (found,) = with_part.parts.values()
    fitted: PartFit = dataclasses.replace(
        found, status=jnp.asarray(part, jnp.int32), fitted=jnp.asarray(True)
    )
    merged = worst_status(jnp.asarray(whole, jnp.int32), {"part": fitted})
    assert int(merged) == expected


def test_settings_of_parts():
    openface = FitOptions.openface_wild()
    assert openface.for_part("inner").window_sizes == (9,)
    assert openface.for_part("inner").max_steps == 5  # not the ten of the whole face
    assert not openface.for_part("left_eye_28").refine_by_scale
    converged = FitOptions().for_part("right_eye_28")
    assert converged.max_steps == FitOptions().max_steps and converged.sigma == 1.0
    assert FitOptions().for_part("nose").window_sizes == FitOptions().window_sizes
