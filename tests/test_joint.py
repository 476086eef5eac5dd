"""The validator that looks at the warped face and at the experts' responses."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf import (
    CLNFModel,
    FitOptions,
    JointValidator,
    LikelihoodValidator,
    ModelFileError,
    Status,
    fit,
    fit_many,
    fit_with_trace,
    load_model,
    save_model,
)
from jaxclnf.app.info import describe_model
from jaxclnf.fitting.face import level_of_fit
from jaxclnf.fitting.joint import validate_jointly
from jaxclnf.fitting.validate import FullyConnected, ReLU, validator_outputs
from jaxclnf.learn.network import no_network

SMALL = FitOptions(window_sizes=(7,), starts=1)
judge = jax.jit(validate_jointly, static_argnums=1)


def judging(model: CLNFModel, *, seed: int = 0) -> JointValidator:
    """A validator for a model, with a network of chance."""
    rng = np.random.default_rng(seed)
    blank, count = no_network(model.pdm, 12), len(model.experts)
    real = lambda x: jnp.asarray(x, model.pdm.mean_shape.dtype)
    first = rng.normal(size=(1, blank.mean.size, 3))
    last = rng.normal(size=(1, 3, 1)) / 9
    layers = (
        FullyConnected(weights=real(first), bias=real([[0.1] * 3])),
        ReLU(),
        FullyConnected(weights=real(last), bias=real([[0.2]])),
    )
    return JointValidator(
        network=dataclasses.replace(blank, layers=layers),
        network_weights=real(rng.uniform(0.5, 1, count)),
        likelihood=LikelihoodValidator(
            weights=real(rng.uniform(0.5, 1, count)), biases=real(np.ones(count))
        ),
    )


@pytest.fixture(scope="module")
def place(example: dict) -> tuple:
    """An image, landmarks in it, and their angles."""
    return jnp.asarray(example["image"]), example["landmarks"], example["truth"].euler


@pytest.mark.parametrize("scale", [0, 1])
def test_certainty_is_a_logistic_of_both(example: dict, place: tuple, scale: int):
    validator = judging(example["model"])
    (output,) = jax.jit(validator_outputs)(validator.network, *place)
    for level in (-3.0, -1.0, 0.5):
        score = float(validator.network_weights[scale] * output)
        score += float(validator.likelihood.weights[scale]) * level
        score += float(validator.likelihood.biases[scale])
        found = float(judge(validator, scale, *place, jnp.asarray(level)))
        assert found == pytest.approx(1 / (1 + np.exp(-score)), rel=1e-9)


def test_nothing_to_judge_is_not_certain(example: dict, place: tuple):
    validator, level = judging(example["model"]), jnp.asarray(-1.0)
    image, landmarks, euler = place
    assert float(judge(validator, 0, image, landmarks, euler, level)) > 0
    flat = jnp.full_like(image, 7)
    for unknown in (
        (image, landmarks.at[2, 0].set(jnp.nan), euler, level),
        (image, landmarks + 1e4, euler, level),
        (image, landmarks, euler * jnp.nan, level),
        (flat, landmarks, euler, level),
        *((*place, jnp.asarray(x)) for x in (jnp.nan, jnp.inf, -jnp.inf)),
    ):
        assert float(judge(validator, 0, *unknown)) == 0


def test_a_scale_that_the_validator_lacks(example: dict, place: tuple):
    validator = judging(example["model"])
    message = "found a validator of 2 scales, expected one that has scale 2"
    image, landmarks, euler = place
    with pytest.raises(ValueError, match=message):
        validate_jointly(validator, 2, image, landmarks, euler, jnp.asarray(0.0))


def test_vmap_grad_and_float32(example: dict, place: tuple):
    validator = judging(example["model"])
    image, landmarks, euler = place
    shifts = jnp.asarray([0.0, 1.0, jnp.nan, 40.0])
    of_shift = lambda shift, level: validate_jointly(
        validator, 0, image, landmarks + shift, euler, level
    )
    levels = jnp.asarray([-1.0, -2.0, -1.0, 0.0])
    together = jax.jit(jax.vmap(of_shift))(shifts, levels)
    alone = [jax.jit(of_shift)(*pair) for pair in zip(shifts, levels, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-9)
    assert float(together[2]) == 0
    slope = jax.jit(jax.grad(of_shift, argnums=1))
    certainty = float(together[1])
    expected = float(validator.likelihood.weights[0]) * certainty * (1 - certainty)
    assert float(slope(shifts[1], levels[1])) == pytest.approx(expected, rel=1e-6)
    # A face that failed may not make the gradient of a batch NaN.
    assert float(slope(shifts[1], jnp.asarray(jnp.nan))) == 0
    exact = float(jax.jit(of_shift)(shifts[0], levels[1]))
    single = jax.tree.map(
        lambda x: x.astype(np.float32) if x.dtype == np.float64 else x,
        (validator, landmarks, euler, levels[1]),
    )
    validator, landmarks, euler, level = single
    found = judge(validator, 0, image, landmarks, euler, level)
    assert found.dtype == jnp.float32
    # Positions are rounded to 1/32 px, some to a neighbour of that in double.
    assert float(found) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("what", ["face", "flat", "outside", "unknown"])
def test_derivatives_are_finite_whatever_there_is_to_judge(
    example: dict, place: tuple, what: str
):
    """By the validator, the image and the landmarks, in reverse mode."""
    image, landmarks, euler = place
    image = jnp.full_like(image, 7) if what == "flat" else image
    landmarks = landmarks + (1e4 if what == "outside" else 0)
    landmarks = landmarks.at[2, 0].add(jnp.nan if what == "unknown" else 0)

    def certainty(layers, pixels, landmarks):
        network = dataclasses.replace(validator.network, layers=layers)
        changed = dataclasses.replace(validator, network=network)
        level = jnp.asarray(-1.0)
        return validate_jointly(changed, 0, pixels, landmarks, euler, level)

    validator = judging(example["model"])
    arguments = validator.network.layers, image.astype(landmarks.dtype), landmarks
    slopes = jax.jit(jax.grad(certainty, argnums=(0, 1, 2)))(*arguments)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slopes))
    moves = any((x != 0).any() for x in jax.tree.leaves(slopes[:2]))
    assert moves == (what == "face")


def test_a_face_that_the_picture_cuts_off(example: dict, place: tuple):
    """As much of it as there is: as with zeros beyond the border."""
    image, landmarks, euler = place
    validator, level = judging(example["model"]), jnp.asarray(-1.0)
    border = int((landmarks[:, 1].min() + landmarks[:, 1].max()) / 2)
    cut, size = image[:border], jnp.asarray([border, image.shape[1]])
    alone = float(judge(validator, 0, cut, landmarks, euler, level))
    padded = jnp.pad(cut, ((0, 60), (0, 30)))
    found = float(judge(validator, 0, padded, landmarks, euler, level, size))
    assert 0 < alone < 1 and found == pytest.approx(alone, rel=1e-9)
    assert alone != float(judge(validator, 0, image, landmarks, euler, level))


@pytest.mark.slow
def test_a_fit_is_judged_by_it(example: dict, tmp_path: Path):
    """And again from a file."""
    validator = judging(example["model"])
    model = dataclasses.replace(example["model"], validator=validator)
    where = example["image"], example["box"]
    plain = fit(example["model"], *where, options=SMALL)
    result = fit(model, *where, options=SMALL)
    np.testing.assert_array_equal(result.landmarks, plain.landmarks)
    level = level_of_fit(model, result.log_likelihood, SMALL)
    seen = jnp.asarray(example["image"]), result.landmarks, result.params.euler
    certainty = float(judge(validator, 0, *seen, level))
    assert 0 < certainty < 1
    assert float(result.certainty) == pytest.approx(certainty, rel=1e-9)
    # It looks a few pixels beyond the landmarks, at least there.
    low, high = result.landmarks.min(axis=0), result.landmarks.max(axis=0)
    assert (result.reach[:2] < low - 3).all() and (result.reach[2:] > high + 3).all()
    for bias, success in ((60.0, True), (-60.0, False)):
        biases = jnp.full(2, bias)
        likelihood = dataclasses.replace(validator.likelihood, biases=biases)
        other = dataclasses.replace(validator, likelihood=likelihood)
        sure = dataclasses.replace(model, validator=other)
        assert bool(fit(sure, *where, options=SMALL).success) == success
    save_model(model, tmp_path / "model.npz")
    again = load_model(tmp_path / "model.npz", dtype=np.float64)
    assert isinstance(again.validator, JointValidator)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), again.validator, validator)
    assert all(jax.tree.leaves(same))
    size = "{2} x {1}".format(*validator.network.mean.shape)
    line = f"log-likelihood at each of 2 scales, and a network, {size} pixels"
    assert line in describe_model(again)


def test_a_file_whose_validator_does_not_suit_its_scales(example: dict, tmp_path: Path):
    validator = judging(example["model"])
    short = dataclasses.replace(validator, network_weights=jnp.ones(3))
    model = dataclasses.replace(example["model"], validator=short)
    save_model(model, tmp_path / "model.npz")
    with pytest.raises(ModelFileError, match=r"shapes \[\(2,\), \(3,\)\], expected 2"):
        load_model(tmp_path / "model.npz")


@pytest.mark.slow
def test_a_fit_among_others_and_one_with_a_trace_are_judged_the_same(example: dict):
    model = dataclasses.replace(example["model"], validator=judging(example["model"]))
    where = example["image"], example["box"]
    certainty = float(fit(model, *where, options=SMALL).certainty)
    boxes = np.stack([example["box"], np.full(4, np.nan), example["box"] + 3])
    many = fit_many(model, [example["image"]] * 3, boxes, options=SMALL)
    assert many.status.tolist()[1] == Status.BAD_START and not many.success[1]
    assert float(many.certainty[0]) == pytest.approx(certainty, abs=1e-6)
    assert float(many.certainty[1]) == 0
    traced, _ = fit_with_trace(model, *where, options=SMALL)
    assert float(traced.certainty) == pytest.approx(certainty, rel=1e-9)


@pytest.mark.slow
def test_a_face_in_a_large_photograph_is_judged_the_same(example: dict):
    """Of which only its neighbourhood is looked at."""
    model = dataclasses.replace(example["model"], validator=judging(example["model"]))
    image, box = np.asarray(example["image"]), np.asarray(example["box"])
    large = np.zeros((1400, 1900), image.dtype)
    large[1000 : 1000 + image.shape[0], 1200 : 1200 + image.shape[1]] = image
    shifted = box + [1200, 1000, 0, 0]
    boxes = np.stack([box, shifted])
    found = fit_many(model, [image, large], boxes, options=SMALL)
    one, other = (float(x) for x in found.certainty)
    assert 0 < one < 1 and other == pytest.approx(one, abs=1e-3)
    alone = fit(model, large, shifted, options=SMALL)
    assert float(alone.certainty) == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("what", ["no likelihood", "no layers", "three outputs"])
def test_a_file_whose_validator_has_not_all_it_needs(
    example: dict, tmp_path: Path, what: str
):
    found = judging(example["model"])
    if what == "no likelihood":
        broken = dataclasses.replace(found, likelihood=None)
    else:
        layers = () if what == "no layers" else found.network.layers[:2]
        network = dataclasses.replace(found.network, layers=layers)
        broken = dataclasses.replace(found, network=network)
    model = dataclasses.replace(example["model"], validator=broken)
    save_model(model, tmp_path / "model.npz")
    with pytest.raises(
        ModelFileError, match=r"model\.npz: found a joint validator with"
    ):
        load_model(tmp_path / "model.npz")
