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
from jaxclnf.learn.trial_fits import trial_fits, worsened
from jaxclnf.learn.validator import fit_logistic, learn_validator

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


def test_pictures_are_made_worse_in_a_third_of_the_ways():
    rng = np.random.default_rng(0)
    edge = np.repeat(np.asarray([[50, 200]], np.uint8), 30, axis=1).repeat(40, axis=0)
    corners = np.asarray([[0.0, 0.0], [100.0, 100.0]])
    options = ValidatorOptions(max_blur_percent=5.0, max_noise=20.0)
    kept, blurred, noisy = 0, [], []
    for _ in range(300):
        picture = worsened(rng, edge, corners, options)
        assert picture.dtype == np.uint8 and picture.shape == edge.shape
        flat = picture[:, 20:25].astype(float)
        if (picture == edge).all():
            kept += 1
        elif flat.std(axis=0).max() > 0:
            noisy.append(flat.std())
        else:  # blurred along the edge only, which is a step of 150 over its width
            steepest = np.abs(np.diff(picture[20].astype(float))).max()
            blurred.append(150 / steepest / np.sqrt(2 * np.pi))
    # Little blur or noise changes nothing.
    assert 90 < kept < 140 and 60 < len(blurred) < 110 and 80 < len(noisy) < 120
    assert max(noisy) == pytest.approx(20, rel=0.1)
    assert max(blurred) == pytest.approx(5, rel=0.1)


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
    assert not (three.is_near & three.is_far).any()
    assert min(three.is_near.sum(), three.is_far.sum()) == three.num_fewer > 5
    # The network is not asked about faces whose landmarks would be known by chance.
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
    assert "found 0 fits in place and 0 lost of the faces to learn from" in said
