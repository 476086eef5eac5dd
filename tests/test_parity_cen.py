"""CEN experts against the C++ program's arrays, made with synthetic weights."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.experts.area import areas_of_interest
from jaxclnf.experts.cen import cen_responses, sparse_interpolation
from jaxclnf.experts.responses import response_maps
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.shape.pdm import project
from tests.reference import largest, params_from

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.optimised]

# Largest difference of a map for the same patch, by share of the maps. The synthetic
# filters are not zero-mean (sums up to 180), so float32 rounding shows: the reference's
# own sparse and dense scores of one region differ by up to 1.1e-5.
SAME_PATCH_TOL = {0.5: 5e-7, 0.95: 2e-6, 0.99: 4e-6, 1.0: 1e-5}
SAME_PARAMS_TOL = 5e-4  # of 99 % of the maps; more where a position's rounding flips
FLIPPED_TOL = 1e-2  # a patch sampled 1/32 px aside, through steep networks
FORMS = ("full", "sparse_left", "sparse_right", "sparse_both_left", "sparse_both_right")


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "cen_synth"


@pytest.fixture(scope="module")
def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "cen_synth_golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def cases(arrays: dict[str, np.ndarray]) -> list[dict]:
    return json.loads(str(arrays["meta"]))


@pytest.fixture(scope="module")
def model(folder: Path):
    return read_openface_model(folder / "main_cen_synth.txt")


def as_of(case: dict, arrays: dict, name: str) -> np.ndarray:
    return arrays[f"c{case['case']:02d}_{name}"]


def stored_patches(case: dict, arrays: dict) -> tuple[np.ndarray, np.ndarray]:
    """All patches, zeros where there is none, and which there are."""
    stored = as_of(case, arrays, "aoi")
    index = np.arange(0, 68, 1 if len(stored) == 68 else 8)
    patches = np.zeros((68, *stored.shape[1:]), np.float32)
    patches[index] = stored
    return patches, index


def assert_near(worst: list[float]) -> None:
    assert np.all(np.isfinite(worst))
    for share, tolerance in SAME_PATCH_TOL.items():
        assert np.quantile(worst, share) < tolerance


compiled = jax.jit(cen_responses, static_argnames="dense")


def test_mirror_landmarks_and_views(model, arrays):
    """The frontal view borrows from landmarks, the third one from the second."""
    for experts in model.experts:
        frontal = np.asarray(experts.mirrored[0])
        own = np.asarray(experts.network[0])
        assert frontal.sum() == 29
        np.testing.assert_array_equal(own[frontal], own[arrays["mirror_inds"]][frontal])
        assert not experts.mirrored[1].any() and experts.mirrored[2].all()
        np.testing.assert_array_equal(
            experts.network[2], experts.network[1][arrays["mirror_inds"]]
        )
        assert len(experts.layers[0].weights) == 39 + 68  # each network once


@pytest.mark.parametrize("window", [7, 11])
def test_interpolation_matrix(arrays, window):
    found = sparse_interpolation(window).astype(np.float32)
    np.testing.assert_array_equal(found, arrays[f"interp_matrix_w{window}"])


def test_responses_of_the_same_patch(model, arrays, cases):
    """Sparse, with mirrored landmarks among them: the path that the reference uses."""
    worst = []
    for case in cases:
        patches, index = stored_patches(case, arrays)
        maps = compiled(
            model.experts[case["scale"]],
            jnp.asarray(case["view"]),
            jnp.asarray(patches),
        )
        reference = as_of(case, arrays, "response")
        worst += [largest(np.asarray(maps)[i] - reference[i]) for i in index]
    assert_near(worst)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_one_expert(model, arrays, cases, form):
    """Dense, sparse, and mirrored: expert `i` on the mirror landmark's patch."""
    worst = []
    for case in cases:
        patches, index = stored_patches(case, arrays)
        mirror = arrays["mirror_inds"]
        is_right = form.endswith("right")
        seen = patches[mirror] if is_right else patches
        experts = model.experts[case["scale"]]
        view = jnp.asarray(case["view"])
        mirrored = jnp.full_like(experts.mirrored, is_right)
        changed = dataclasses.replace(experts, mirrored=mirrored)
        maps = compiled(changed, view, jnp.asarray(seen), dense=form == "full")
        for i in case.get("detail_landmarks", []):
            assert not experts.mirrored[view, i]
            if (mirror[i] if is_right else i) in index:
                reference = as_of(case, arrays, f"{form}_{i}")
                worst.append(largest(np.asarray(maps)[i] - reference))
    assert len(worst) >= 36
    assert_near(worst)


@pytest.fixture(scope="module")
def image(shared: Path, cases) -> jax.Array:
    (name,) = {case["image"] for case in cases}
    with np.load(shared / "golden" / "gray_images.npz") as file:
        return jnp.asarray(file[name.replace(".", "_")])


def test_patches_of_the_same_parameters(model, arrays, cases, image):
    """Bit for bit, but for those whose landmark rounds to another 1/32 px."""
    sample = jax.jit(areas_of_interest, static_argnames=("size", "sampling"))
    equal, total = 0, 0
    for case in cases:
        params = params_from(
            as_of(case, arrays, "global"), as_of(case, arrays, "local")
        )
        patches = sample(
            image,
            jax.jit(project)(model.pdm, params),
            jnp.asarray(as_of(case, arrays, "sim_ref_to_img")),
            size=case["window"] + 10,
            sampling="fixed_point",
        )
        stored, index = stored_patches(case, arrays)
        difference = np.abs(np.asarray(patches)[index] - stored[index])
        equal += np.sum(difference.max(axis=(1, 2)) == 0)
        total += len(index)
        assert difference.max() < 8
    assert equal >= 0.9 * total


def test_responses_of_the_same_parameters(model, arrays, cases, image):
    """View, similarity, patches and maps together, from the stored parameters alone."""
    look = jax.jit(response_maps, static_argnames=("window_size", "sampling"))
    worst = []
    for case in cases:
        params = params_from(
            as_of(case, arrays, "global"), as_of(case, arrays, "local")
        )
        found = look(
            model.pdm,
            model.experts[case["scale"]],
            image,
            params,
            window_size=case["window"],
            sampling="fixed_point",
        )
        assert int(found.view) == case["view"]
        visible = as_of(case, arrays, "vis").astype(bool)
        np.testing.assert_array_equal(found.visibility, visible)
        assert (
            largest(found.ref_from_img - as_of(case, arrays, "sim_img_to_ref")) < 1e-6
        )
        inverse = as_of(case, arrays, "sim_ref_to_img")
        assert largest(found.img_from_ref - inverse) < 1e-6 * max(1, largest(inverse))
        difference = np.abs(np.asarray(found.maps) - as_of(case, arrays, "response"))
        worst.append(difference.max(axis=(1, 2)))
    worst = np.concatenate(worst)
    assert np.median(worst) < SAME_PATCH_TOL[0.5]
    assert np.quantile(worst, 0.99) < SAME_PARAMS_TOL
    assert worst.max() < FLIPPED_TOL


def test_early_termination(folder):
    model = read_openface_model(folder / "main_cen_synth_early.txt")
    early = model.early_termination
    assert early is not None
    np.testing.assert_allclose(early.weights, [1.0, 1.1, 0.9], rtol=1e-7)
    np.testing.assert_allclose(early.biases, [0.02, -0.03, 0.01], rtol=1e-7)
    np.testing.assert_allclose(early.cutoffs, [-1.13, -1.10, -1.05], rtol=1e-7)
    assert read_openface_model(folder / "main_cen_synth.txt").early_termination is None


def test_float64(folder, model, arrays, cases):
    """Of the same weights, so that only the arithmetic differs."""
    high = read_openface_model(folder / "main_cen_synth.txt", np.float64)
    for case in cases[:4]:
        patches, index = stored_patches(case, arrays)
        view = jnp.asarray(case["view"])
        maps = compiled(high.experts[case["scale"]], view, jnp.asarray(patches, float))
        assert maps.dtype == np.float64
        reference = as_of(case, arrays, "response")
        assert largest(np.asarray(maps)[index] - reference[index]) < 1e-4
