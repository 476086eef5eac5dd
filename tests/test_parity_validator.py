"""The landmark validator against the C++ program's arrays, stage by stage."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.media import read_image
from jaxclnf.fitting.validate import (
    CERTAINTY_THRESHOLD,
    Validator,
    validate,
    validator_feature,
    validator_outputs,
)
from jaxclnf.fitting.warp import region_of_interest, warp_face
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.openface.validator_file import read_validator

pytestmark = [pytest.mark.shared, pytest.mark.slow]

# Bit for bit where XLA contracts `x * a + y * b` as the C++ compiler did. Otherwise a
# few positions a hundred thousand fall on the other side of a boundary of 1/32 px.
MAX_FLIPPED_SHARE = 1e-4
FEATURE_TOL = 1e-5  # of its standard deviation, about 250
OUTPUT_TOL = 1e-4  # of numbers up to 30
SAME_BIN_TOL = 1e-6
CONFIGURATIONS = (
    "clnf_general_single",
    "clnf_wild_single",
    "clnf_multi_pie_single",
    "clm_general_single",
)
"""Whole fits whose certainties are compared."""

chosen_outputs = jax.jit(validator_outputs)
chosen_certainty = jax.jit(validate)
feature_of = jax.jit(validator_feature)
warped = jax.jit(warp_face)


class Case(NamedTuple):
    """A stored case: what went in, what came out, and what the meta data say."""

    image: np.ndarray
    size: jax.Array
    arrays: dict[str, np.ndarray]
    view: int
    certainty: float

    @property
    def landmarks(self) -> jax.Array:
        return jnp.asarray(self.arrays["landmarks"])

    @property
    def euler(self) -> jax.Array:
        return jnp.asarray(self.arrays["orientation"])


def on_canvas(image: np.ndarray) -> np.ndarray:
    """The image on one size of canvas, to need one compilation."""
    canvas = np.zeros((2048, 2048), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


@pytest.fixture(scope="module")
def cases(golden: Path) -> list[Case]:
    with np.load(golden / "validator.npz") as file:
        arrays = dict(file)
    with np.load(golden / "gray_images.npz") as file:
        images = dict(file)
    found = []
    for i, fact in enumerate(json.loads(str(arrays["meta"]))):
        image = images[fact["image"].replace(".", "_")]
        prefix = f"c{i:02d}_"
        own = {k.removeprefix(prefix): arrays[k] for k in arrays if k[:4] == prefix}
        size = jnp.asarray(image.shape)
        found.append(Case(on_canvas(image), size, own, fact["view"], fact["certainty"]))
    assert len(found) == 48
    return found


@pytest.fixture(scope="module")
def detailed(cases: list[Case]) -> list[Case]:
    """The cases that have the warped face."""
    found = [case for case in cases if "warped" in case.arrays]
    assert len(found) == 16
    return found


@pytest.fixture(scope="module")
def validator(openface_dir: Path) -> Validator:
    file = openface_dir / "detection_validation" / "validator_cnn.txt"
    return read_validator(file, num_landmarks=68)


def test_regions(cases):
    for case in cases:
        low, high = region_of_interest(case.landmarks, case.size)
        assert [*low.tolist(), *high.tolist()] == case.arrays["roi"].tolist()


def test_warped_faces(validator, detailed):
    differences = []
    for case in detailed:
        face = warped(
            validator.warp,
            jnp.asarray(case.view),
            case.image,
            case.landmarks,
            case.size,
        )
        differences.append(np.asarray(face) - case.arrays["warped"])
    assert np.mean(np.array(differences) != 0) <= MAX_FLIPPED_SHARE
    # A neighbour 1/32 px aside, at the steepest edge there is.
    assert np.abs(differences).max() <= 255 / 32 * np.sqrt(2)


def test_features(validator, detailed):
    for case in detailed:
        view = jnp.asarray(case.view)
        inputs = case.image, case.landmarks, case.size
        feature = np.asarray(feature_of(validator, view, *inputs))
        used = np.asarray(validator.warp.triangle_of_pixel[case.view]) >= 0
        stored = case.arrays["feature"]  # column by column
        error = np.abs(feature.T[used.T] - stored)
        # A flipped position shows in its own pixel, and a little in all.
        assert np.quantile(error, 0.99) < FEATURE_TOL * stored.std()
        assert not feature[~used].any()


def test_outputs_and_certainty(validator, cases):
    for case in cases:
        inputs = case.image, case.landmarks, case.euler, case.size
        outputs = np.asarray(chosen_outputs(validator, *inputs))
        stored = case.arrays["outputs"]
        assert np.abs(outputs - stored).max() < OUTPUT_TOL
        assert outputs.argmax() == stored.argmax()
        certainty = float(chosen_certainty(validator, *inputs))
        assert certainty == pytest.approx(case.certainty, abs=SAME_BIN_TOL)


def test_float64_finds_the_same(openface_dir, validator, cases):
    file = openface_dir / "detection_validation" / "validator_cnn.txt"
    double = read_validator(file, np.float64)
    for case in cases[::3]:
        points = case.landmarks.astype(np.float64), case.euler.astype(np.float64)
        found = chosen_certainty(double, case.image, *points, case.size)
        assert found.dtype == np.float64
        assert float(found) == pytest.approx(case.certainty, abs=SAME_BIN_TOL)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_certainties_of_whole_fits(validator, golden, shared, configuration):
    """Also where landmarks reach beyond the image, which no stored case does."""
    with np.load(golden / f"fits300w_{configuration}.npz") as file:
        fits = dict(file)
    found, cut_off = [], 0
    for i, name in enumerate(fits["image"]):
        image = read_image(shared / "faces" / str(fits["dataset"][i]) / str(name))[1]
        landmarks = fits["landmarks"][i]
        last = np.array(image.shape)[::-1] - 1
        cut_off += bool((landmarks < 3).any() or (landmarks > last - 3).any())
        found.append(
            chosen_certainty(
                validator,
                on_canvas(image),
                jnp.asarray(landmarks),
                jnp.asarray(fits["params_global"][i, 1:4]),
                jnp.asarray(image.shape),
            )
        )
    assert len(found) == 446 and cut_off >= 10
    bins = np.rint(30 * np.abs(np.array(found) - fits["certainty"]))
    assert bins.max() <= 1 and np.mean(bins > 0) <= 0.01
    success = np.array(found) > CERTAINTY_THRESHOLD
    assert np.mean(success == fits["success"]) >= 0.99


@pytest.mark.parametrize(
    "name, num_bins", [("validator_cnn.txt", 30), ("validator_cnn_68.txt", 20)]
)
def test_published_files(openface_dir, cases, name, num_bins):
    """Both tell landmarks in place (even cases) from the same ones moved (odd)."""
    file = openface_dir / "detection_validation" / name
    found = read_validator(file, num_landmarks=68)
    certainties = []
    for case in cases:
        inputs = case.image, case.landmarks, case.euler, case.size
        assert chosen_outputs(found, *inputs).shape == (num_bins,)
        certainties.append(float(chosen_certainty(found, *inputs)))
    assert np.median(certainties[::2]) > CERTAINTY_THRESHOLD
    assert np.median(certainties[1::2]) < 0.5


def test_published_model_brings_its_validator(openface_dir, validator):
    model = read_openface_model(openface_dir / "main_clnf_general.txt")
    assert model.validator is not None
    assert all(part.model.validator is None for part in model.parts)
    same = jax.tree.map(np.array_equal, model.validator, validator)
    assert jax.tree.all(same)
