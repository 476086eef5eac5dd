"""Learning when to trust a fit: trial fits, the warped face, the network, scales."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import (
    CLNFModel,
    JointValidator,
    LabelledFaces,
    LikelihoodValidator,
    fit,
    load_model,
    mirror_index,
)
from jaxclnf.fitting.validate import run_layers, validator_outputs
from jaxclnf.fitting.warp import warp_face
from jaxclnf.learn.accuracy import percent_off
from jaxclnf.learn.boxes import box_off
from jaxclnf.learn.mean_face import mean_face_warp
from jaxclnf.learn.network import (
    _outputs,
    learn_network,
    mirrored_pictures,
    no_network,
)
from jaxclnf.learn.options import ValidatorOptions
from jaxclnf.learn.trial_fits import trial_fits
from jaxclnf.learn.validator import fit_logistic, learn_validator
from jaxclnf.learn.worse import worsened

FEW = ValidatorOptions(num_hidden=4, picture_size=16, num_epochs=8)
outputs_of = jax.jit(validator_outputs)


@pytest.fixture(scope="module")
def embedded() -> CLNFModel:
    """The embedded model, whose mean face is symmetric."""
    return load_model()


def one_face(example: dict, count: int) -> LabelledFaces:
    """The same labelled picture several times."""
    points = np.asarray(example["landmarks"], np.float64)
    return LabelledFaces(
        names=tuple(map(str, range(count))),
        images=(example["image"],) * count,
        landmarks=np.stack([points] * count),
        spread=np.ones((count, len(points))),
    )


# The warped face.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [9, 32])
def test_the_mean_face_is_warped_onto_itself(example: dict, size: int, dtype: type):
    """Landmarks of the mean face at known places: what is seen is the image there."""
    pdm = jax.tree.map(lambda x: x.astype(dtype), example["pdm"])
    warp = mean_face_warp(pdm, size)
    mean = np.asarray(pdm.mean_shape, np.float64)[:, :2]
    mean = mean * size / np.sqrt(np.ptp(mean, axis=0).prod())
    shift = np.asarray([40.0, 50.0]) - np.asarray(warp.corner[0], np.float64)
    y, x = np.mgrid[:120, :120]
    ramp = (x + 2.0 * y).astype(dtype)  # linear: interpolation is exact
    seen = np.asarray(
        jax.jit(warp_face)(
            warp,
            jnp.asarray(0),
            ramp,
            jnp.asarray(mean + shift, dtype),
            jnp.asarray(ramp.shape),
        )
    )
    used = np.asarray(warp.triangle_of_pixel[0]) >= 0
    rows, columns = np.nonzero(used)
    # Positions are rounded to 1/32 px.
    expected = (columns + 40) + 2 * (rows + 50)
    np.testing.assert_allclose(seen[used], expected, atol=3 / 64 + 1e-3)
    assert seen.dtype == dtype and used.mean() > 0.5
    assert abs(np.sqrt(used.size) - size) < 2.5


def test_a_symmetric_face_has_a_symmetric_picture(embedded: CLNFModel):
    warp = mean_face_warp(embedded.pdm, 24)
    used = np.asarray(warp.triangle_of_pixel[0]) >= 0
    assert (used == used[:, ::-1]).all() and used.mean() > 0.7


def test_mirrored_pictures_are_those_of_the_mirrored_image(embedded: CLNFModel):
    pdm = jax.tree.map(lambda x: x.astype(np.float64), embedded.pdm)
    blank = no_network(pdm, 24)
    points = np.asarray(pdm.mean_shape)[:, :2]
    points = points * (90 / np.ptp(points[:, 0])) + [99.5, 110.0]
    partner = mirror_index(np.asarray(pdm.mean_shape))
    image = cv2.GaussianBlur(
        np.random.default_rng(0).normal(size=(220, 200)), (0, 0), 9
    )
    other = np.stack([199 - points[:, 0], points[:, 1]], axis=1)[partner]
    plain, flipped = (
        np.asarray(outputs_of(blank, picture, jnp.asarray(at), jnp.zeros(3)))
        for picture, at in (
            (image, points),
            (np.ascontiguousarray(image[:, ::-1]), other),
        )
    )
    expected = mirrored_pictures(blank, plain[None])[0]
    # But for positions, which are rounded to 1/32 px.
    np.testing.assert_allclose(expected, flipped, atol=0.05)
    assert np.abs(plain - flipped).max() > 1


@pytest.mark.parametrize(
    "points", [[[0, 0], [1, 2]], [[0, 0], [1, 1], [3, 3]], [[0, 0], [0, 1], [0, 3]]]
)
def test_landmarks_on_a_line_are_no_face(example: dict, points: list):
    flat = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    pdm = dataclasses.replace(example["pdm"], mean_shape=jnp.asarray(flat))
    message = f"found {len(points)} landmarks on a line, expected some beside it"
    with pytest.raises(ValueError, match=message):
        mean_face_warp(pdm, 16)


# The network.


def test_a_network_finds_what_differs(example: dict):
    """A stripe that half of the pictures have; new pictures show what was learnt."""
    blank = no_network(example["pdm"], 12)
    rng = np.random.default_rng(0)
    is_near = np.arange(700) % 3 > 0
    stripe = np.zeros(blank.mean.shape[1:])
    stripe[4:6] = 2.0
    pictures = rng.normal(size=(700, blank.mean.size))
    pictures += is_near[:, None] * stripe.reshape(-1)
    learn = lambda seed: learn_network(
        blank, pictures[:500], is_near[:500], num_hidden=4, num_epochs=80, seed=seed
    )
    network = learn(0)
    found = np.asarray(
        _outputs(
            network.layers, jnp.asarray(pictures[500:]) - network.mean.reshape(1, -1)
        )
    )
    assert ((found > 0) == is_near[500:]).mean() > 0.97
    np.testing.assert_allclose(
        network.mean.reshape(-1), pictures[:500].mean(axis=0), rtol=1e-6
    )
    # As `validator_outputs` will run it.
    view = jnp.asarray(0)
    one = run_layers(network.layers, view, jnp.asarray(pictures[500])[None])
    several = _outputs(network.layers, jnp.asarray(pictures[500:503]))
    np.testing.assert_allclose(one, several[:1], rtol=1e-9)
    for layer in jax.tree.leaves(network.layers):
        assert layer.dtype == blank.mean.dtype
        assert (layer.astype(jnp.float16).astype(layer.dtype) == layer).all()
    again, other = learn(0), learn(1)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), network, again)
    assert all(jax.tree.leaves(same))
    first, second = (jax.tree.leaves(x.layers)[0] for x in (network, other))
    assert not (first == second).all()


# Trial fits.


def test_a_logistic_regression_finds_what_made_the_data():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 40_000)
    # Of both kinds about as many, so that weighing them the same changes nothing.
    good = rng.uniform(size=len(x)) < 1 / (1 + np.exp(-3 * x))
    nothing = rng.normal(5, 0.1, len(x))
    weights, bias = fit_logistic(jnp.asarray(np.stack([x, nothing], axis=1)), good)
    assert float(weights[0]) == pytest.approx(3, rel=0.05)
    assert float(weights[1]) == pytest.approx(0, abs=0.5)  # a twentieth of its spread
    assert float(bias + 5 * weights[1]) == pytest.approx(0, abs=0.1)


def test_both_kinds_count_the_same_and_separable_ones_stay_finite():
    x = jnp.asarray([0.0] * 3 + [1.0])[:, None]
    good = np.asarray([False] * 3 + [True])
    (weight,), bias = fit_logistic(x, good)
    assert np.isfinite(weight) and float(weight) > 5
    assert float(-bias / weight) == pytest.approx(0.5, abs=1e-3)


def test_boxes_and_distances():
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 100, (12, 2))
    size = np.ptp(labels, axis=0)
    boxes = np.stack([box_off(rng, labels, 0.2, 0.1) for _ in range(4000)])
    centres = boxes[:, :2] + boxes[:, 2:] / 2 - labels.min(axis=0) - size / 2
    np.testing.assert_allclose(centres.std(axis=0) / size, 0.2, rtol=0.05)
    growth = np.log(boxes[:, 2:] / size)
    np.testing.assert_allclose(growth.std(axis=0), 0.1, rtol=0.05)
    np.testing.assert_array_almost_equal(growth[:, 0], growth[:, 1])
    off = percent_off(labels + (0.3, 0.4), labels)
    assert off == pytest.approx(50 / np.sqrt(size.prod()))


NOTHING = {
    f"max_{what}": 0.0
    for what in ("blur_percent", "noise", "shadow_percent", "hidden_percent")
}
EDGE = np.full((40, 60), 50, np.uint8)
EDGE[:, 30:] = 200


def made_worse(picture: np.ndarray, box: tuple, **changes: float) -> list[np.ndarray]:
    """What differs of three hundred versions of it, made around a face's box."""
    rng = np.random.default_rng(0)
    options = dataclasses.replace(ValidatorOptions(), **{**NOTHING, **changes})
    x, y, width, height = box
    corners = np.asarray([[x, y], [x + width, y + height]], float)
    versions = [worsened(rng, picture, corners, options) for _ in range(300)]
    assert all(v.dtype == np.uint8 and v.shape == picture.shape for v in versions)
    changed = [v for v in versions if (v != picture).any()]
    # A fifth each, hiding is two of them; light a third. A little changes nothing.
    most = {"max_hidden_percent": 120, "max_shadow_percent": 100}
    for what in changes:
        assert 0.5 < len(changed) / most.get(what, 60) < 1.2
    return changed


def test_pictures_with_nothing_to_be_done_stay_as_they_are():
    assert made_worse(EDGE, (0, 0, 100, 100)) == []


def test_blurred_pictures():
    blurred = made_worse(EDGE, (0, 0, 100, 100), max_blur_percent=5.0)
    # Of an edge of 150; a Gaussian is steepest in its middle.
    steepest = [np.abs(np.diff(v[20].astype(float))).max() for v in blurred]
    sigmas = 150 / np.asarray(steepest) / np.sqrt(2 * np.pi)
    assert sigmas.max() == pytest.approx(5, rel=0.1) and sigmas.min() < 2
    assert all((v == v[:1]).all() for v in blurred)


def test_noisy_pictures():
    noisy = made_worse(EDGE, (0, 0, 100, 100), max_noise=20.0)
    spread = [(v[:, 10:50].astype(float) - EDGE[:, 10:50]).std() for v in noisy]
    assert max(spread) == pytest.approx(20, rel=0.1) and min(spread) < 5


def test_pictures_lit_from_one_side():
    """Over a face's box light falls by a share, evenly; from any side."""
    even = np.full((120, 90), 200, np.uint8)
    shaded = made_worse(even, (20, 30, 40, 60), max_shadow_percent=80.0)
    face = [v[30:91, 20:61].astype(float) for v in shaded]
    # Its lightest corner keeps its light, and nothing beyond it is lighter.
    assert all(f.max() == pytest.approx(200, abs=0.51) for f in face)
    assert all(v.max() == 200 for v in shaded)
    darkest = [f.min() for f in face]
    assert min(darkest) == pytest.approx(40, abs=6) and max(darkest) > 150
    for f in face:
        inner = f[1:-1, 1:-1]
        for slope in np.diff(inner, axis=0), np.diff(inner, axis=1):
            assert np.ptp(slope) <= 1  # whole numbers
    towards = [np.sign(f[:, -1].mean() - f[:, 0].mean()) for f in face]
    assert 0.3 < np.mean(np.asarray(towards) > 0) < 0.7


def test_pictures_of_which_a_part_is_hidden():
    """Beyond a border all is 0; a rectangle is even and somewhere over the face."""
    bright = np.random.default_rng(1).integers(100, 200, (120, 90)).astype(np.uint8)
    hidden = made_worse(bright, (20, 30, 40, 60), max_hidden_percent=25.0)
    cut, covered = [], []
    for v in hidden:
        gone = v != bright
        rows, columns = np.nonzero(gone)
        whole = (slice(rows.min(), rows.max() + 1), slice(columns.min(), None))
        if gone.all(axis=1).any() or gone.all(axis=0).any():
            assert (v[gone] == 0).all()
            share = gone[30:91, 20:61].mean()
            cut.append(share)
        else:
            box = v[whole[0], columns.min() : columns.max() + 1]
            assert (box == box[0, 0]).mean() > 0.99
            assert (np.abs(rows.mean() - 60) < 50) and (
                np.abs(columns.mean() - 40) < 40
            )
            covered.append(gone.sum() / (40 * 60))
    assert min(len(cut), len(covered)) > 30
    for shares in (cut, covered):
        assert 0.18 < max(shares) < 0.3 and min(shares) < 0.08


@pytest.mark.slow
def test_trial_fits_are_the_same_whoever_else_is_there(example: dict):
    """Boxes and pictures of a face do not depend on the faces before it or after."""
    model, blank = example["model"], no_network(example["pdm"], 12)
    faces = one_face(example, 3)
    alone, three = (
        trial_fits(model, some, 0, FEW, network=blank, seed=1)
        for some in (faces.pick(np.asarray([True, False, False])), faces)
    )
    assert three.level.shape == (24,)
    assert three.outputs is not None and alone.outputs is not None
    assert three.outputs.shape == (24, blank.mean.size)
    np.testing.assert_allclose(three.level[:8], alone.level, rtol=1e-9)
    np.testing.assert_allclose(three.outputs[:8], alone.outputs, atol=1e-9)
    assert not (three.level[8:16] == three.level[:8]).all()
    assert min(three.is_near.sum(), three.is_far.sum()) == three.num_fewer > 5
    # What the network sees is zero-mean.
    pixels = three.outputs[three.is_near]
    assert np.isfinite(pixels).all() and (np.abs(pixels.mean(axis=1)) < 1e-6).all()
    nobody = trial_fits(model, faces.pick(np.zeros(3, bool)), 0, FEW)
    assert nobody.level.shape == (0,) and nobody.num_fewer == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_hidden", [0, 4])
def test_a_validator_is_learnt_from_fits(example: dict, num_hidden: int):
    """Of one face, from many boxes; the experts respond best where they belong."""
    model, options = example["model"], dataclasses.replace(FEW, num_hidden=num_hidden)
    faces = one_face(example, 24)
    held_out = np.arange(24) % 2 == 0
    said: list[str] = []
    learnt = learn_validator(model, faces, held_out, options, say=said.append)
    assert learnt is not None
    validator = learnt.validator
    if num_hidden:
        assert isinstance(validator, JointValidator)
        assert jax.tree.leaves(validator.network.layers)[1].shape == (1, 4)
        assert validator.network_weights.shape == (2,)
        assert "fits to learn from" in said[0]
        validator = validator.likelihood
    else:
        assert said == []
    assert isinstance(validator, LikelihoodValidator)
    assert validator.weights.shape == validator.biases.shape == (2,)
    assert min(learnt.trusted_in_place) > max(learnt.trusted_lost)
    judged = dataclasses.replace(model, validator=learnt.validator)
    assert fit(judged, example["image"], example["box"]).success
    away = example["box"] + np.asarray([70.0, 60.0, 0.0, 0.0])
    assert not fit(judged, example["image"], away).success


@pytest.mark.slow
def test_what_a_network_sees_is_the_same_in_a_larger_picture(example: dict):
    """And beside other pictures of other sizes."""
    image = np.asarray(example["image"])
    model, blank = example["model"], no_network(example["pdm"], 12)
    options = dataclasses.replace(FEW, **NOTHING)
    faces = one_face(example, 2)
    larger = np.pad(image, ((0, 40), (0, 170)))
    padded = dataclasses.replace(faces, images=(image, larger))
    plain, other = (
        trial_fits(model, some, 0, options, network=blank) for some in (faces, padded)
    )
    assert plain.outputs is not None and other.outputs is not None
    near = plain.is_near & other.is_near
    assert near.sum() > 5
    np.testing.assert_allclose(plain.outputs[near], other.outputs[near], atol=0.1)
    np.testing.assert_allclose(plain.outputs[:8], other.outputs[:8], atol=1e-9)


@pytest.mark.slow
def test_a_network_learns_from_no_held_out_face(example: dict):
    """Other pictures of those change what is weighed, not the network."""
    model, faces = example["model"], one_face(example, 12)
    held_out = np.arange(12) % 2 == 0
    noise = np.random.default_rng(0).integers(0, 60, example["image"].shape)
    noisy = np.clip(np.asarray(example["image"]) * 0.7 + noise, 0, 255).astype(np.uint8)
    images = tuple(noisy if held else example["image"] for held in held_out)
    learnt = [
        learn_validator(model, some, held_out, FEW, symmetric=False)
        for some in (faces, dataclasses.replace(faces, images=images))
    ]
    one, other = (x.validator for x in learnt if x is not None)
    assert isinstance(one, JointValidator) and isinstance(other, JointValidator)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), one.network, other.network)
    assert all(jax.tree.leaves(same))
    assert not (one.likelihood.biases == other.likelihood.biases).all()
    mirrored = learn_validator(model, faces, held_out, FEW, symmetric=True)
    assert mirrored is not None and isinstance(mirrored.validator, JointValidator)
    assert not (mirrored.validator.network.mean == one.network.mean).all()


def said_of(model: CLNFModel, faces: LabelledFaces, **changes: float) -> str:
    """What is said where no validator can be learnt."""
    said: list[str] = []
    held_out = np.arange(len(faces)) % 2 == 0
    options = dataclasses.replace(FEW, **changes)
    assert learn_validator(model, faces, held_out, options, say=said.append) is None
    return said[-1]


@pytest.mark.slow
def test_too_few_fits_are_no_validator(example: dict):
    model, faces = example["model"], one_face(example, 12)
    impossible = {"in_place_percent": 1e-6, "lost_percent": 1e3}
    assert "expected 5 of each" in said_of(model, faces, **impossible)
    said = said_of(model, faces, num_hidden=0, **impossible)
    assert "found 0 fits in place and 0 lost at scale 0" in said
    # Nobody to learn from: faces without labels.
    unknown = dataclasses.replace(faces, spread=np.full(faces.spread.shape, np.inf))
    said = said_of(model, unknown)
    assert "no validator: found 0 fits in place and 0 lost at scale 0" in said


@pytest.mark.slow
def test_with_nobody_to_learn_a_network_from_responses_judge(example: dict):
    said: list[str] = []
    everyone, faces = np.ones(12, bool), one_face(example, 12)
    learnt = learn_validator(example["model"], faces, everyone, FEW, say=said.append)
    assert learnt is not None and isinstance(learnt.validator, LikelihoodValidator)
    expected = "found 0 fits in place and 0 lost to learn from, expected 5 of each"
    assert said == [f"validator without a network: {expected}"]
