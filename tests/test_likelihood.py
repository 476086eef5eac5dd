"""The validator that looks at the experts' own responses: level, certainty, fits."""

import csv
import dataclasses
from pathlib import Path

import cv2
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
    TrackOptions,
    detect_faces,
    fit,
    fit_many,
    fit_with_trace,
    load_model,
    save_model,
    start_tracking,
    track_frame,
)
from jaxclnf.app.cli import main
from jaxclnf.app.info import describe_model
from jaxclnf.app.media import read_image, write_png
from jaxclnf.fitting.likelihood import response_level, validate_likelihood
from jaxclnf.solver.kde import log_kde

PHOTOGRAPH = Path(__file__).parents[1] / "docs" / "astronaut.jpg"
SMALL = FitOptions(window_sizes=(7,))
level_of = jax.jit(response_level, static_argnums=2)


def judging(model: CLNFModel, weight: float, middle: float) -> CLNFModel:
    """The model with a validator whose certainty is one half at a level."""
    count, dtype = len(model.experts), model.pdm.mean_shape.dtype
    validator = LikelihoodValidator(
        weights=jnp.full(count, weight, dtype),
        biases=jnp.full(count, -weight * middle, dtype),
    )
    return dataclasses.replace(model, validator=validator)


# Level and certainty.


@pytest.mark.parametrize("window", [5, 7, 11])
@pytest.mark.parametrize("sigma", [1.25, 1.875, 3.0])
def test_the_level_of_equal_responses_is_their_logarithm(window: int, sigma: float):
    maps = jnp.full((1, window, window), 0.3)
    centre = jnp.full((1, 2), window // 2, maps.dtype)
    (density,), _ = log_kde(maps, centre, jnp.asarray(sigma))
    assert float(level_of(density, sigma, window)) == pytest.approx(np.log(0.3))


def test_certainty_is_a_logistic_of_the_level():
    validator = LikelihoodValidator(
        weights=jnp.asarray([2.0, 10.0]), biases=jnp.asarray([1.0, 30.0])
    )
    judge = jax.jit(validate_likelihood, static_argnums=1)
    assert float(judge(validator, 0, jnp.asarray(-0.5))) == 0.5
    for scale, weight, bias in ((0, 2.0, 1.0), (1, 10.0, 30.0)):
        found = float(judge(validator, scale, jnp.asarray(-2.9)))
        assert found == pytest.approx(1 / (1 + np.exp(2.9 * weight - bias)))
    for level in (np.nan, -np.inf, np.inf):
        assert float(judge(validator, 1, jnp.asarray(level))) == 0


def test_certainty_under_vmap_grad_and_float32():
    single = LikelihoodValidator(
        weights=jnp.asarray([8.0], jnp.float32), biases=jnp.asarray([2.0], jnp.float32)
    )
    levels = jnp.linspace(-2, 2, 9, dtype=jnp.float32)
    found = jax.vmap(lambda x: validate_likelihood(single, 0, x))(levels)
    assert found.dtype == jnp.float32 and (jnp.diff(found) >= 0).all()
    slope = jax.grad(lambda x: validate_likelihood(single, 0, x))(levels[4])
    assert float(slope) == pytest.approx(8 * float(found[4] * (1 - found[4])))
    for level in (jnp.nan, jnp.inf, -jnp.inf):
        # A face that failed may not make the gradient of a batch NaN.
        at = jnp.asarray(level, jnp.float32)
        assert float(jax.grad(lambda x: validate_likelihood(single, 0, x))(at)) == 0


def test_a_scale_that_the_validator_lacks():
    one = LikelihoodValidator(weights=jnp.ones(1), biases=jnp.zeros(1))
    message = "found a validator of 1 scales, expected one that has scale 1"
    with pytest.raises(ValueError, match=message):
        validate_likelihood(one, 1, jnp.asarray(0.0))


# Fits.


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (SMALL, 0),
        pytest.param(FitOptions(window_sizes=(7, 9)), 1, marks=pytest.mark.slow),
        pytest.param(FitOptions(window_sizes=(0, 7)), 1, marks=pytest.mark.slow),
        pytest.param(
            FitOptions.openface(parts=False), 1, marks=pytest.mark.slow, id="openface"
        ),
    ],
)
def test_a_fit_is_judged_at_its_last_scale(example: dict, options, scale: int):
    options = dataclasses.replace(options, starts=1)
    model = judging(example["model"], 0.7, -2.0)
    result = fit(model, example["image"], example["box"], options=options)
    sigma = options.at_scale(model.experts[scale].patch_scaling).sigma
    window = options.window_sizes[scale]
    level = float(level_of(result.log_likelihood, sigma, window))
    expected = 1 / (1 + np.exp(-0.7 * (level + 2.0)))
    assert float(result.certainty) == pytest.approx(expected, rel=1e-9)


def test_success_is_what_the_validator_says(example: dict):
    place = example["image"], example["box"]
    plain = fit(example["model"], *place, options=SMALL)
    assert np.isnan(plain.certainty) and plain.success
    sigma = SMALL.at_scale(example["model"].experts[0].patch_scaling).sigma
    level = float(level_of(plain.log_likelihood, sigma, 7))
    for middle, success in ((level - 0.1, True), (level + 0.1, False)):
        model = judging(example["model"], 50.0, middle)
        result = fit(model, *place, options=SMALL)
        assert bool(result.success) == success
        assert result.status == Status.CONVERGED and result.certified
        np.testing.assert_array_equal(result.landmarks, plain.landmarks)


@pytest.mark.slow
def test_of_several_faces_each_is_judged(example: dict):
    model = judging(example["model"], 50.0, -100.0)
    boxes = np.stack([example["box"], np.full(4, np.nan)])
    both = fit_many(model, [example["image"]] * 2, boxes, options=SMALL)
    assert both.success.tolist() == [True, False]
    assert float(both.certainty[0]) > 0.9


def test_a_failed_fit_has_no_certainty(example: dict):
    """However strong the responses were before it failed."""
    model = judging(example["model"], 50.0, -100.0)
    place = model, example["image"], example["box"]
    small = fit(*place, options=dataclasses.replace(SMALL, min_scale=1000.0))
    assert small.status == Status.FACE_TOO_SMALL
    assert np.isfinite(small.log_likelihood)
    assert float(small.certainty) == 0 and not small.success
    assert float(fit(*place, options=SMALL).certainty) == 1


@pytest.mark.slow
def test_with_parts_it_is_the_whole_face_that_is_judged(example: dict):
    model = judging(example["with_part"], 0.7, -2.0)
    place = model, example["image"], example["box"]
    alone = fit(*place, options=dataclasses.replace(SMALL, use_parts=False))
    whole = fit(*place, options=dataclasses.replace(SMALL, use_parts=True))
    assert whole.parts and not alone.parts
    assert float(whole.certainty) == pytest.approx(float(alone.certainty), rel=1e-9)
    assert 0 < float(whole.certainty) < 1


@pytest.mark.slow
def test_certainty_under_jit_vmap_and_with_a_trace(example: dict):
    """Bandwidths as arrays; several passes; every way the same number."""
    model = judging(example["model"], 0.7, -2.0)
    options = dataclasses.replace(SMALL, max_passes=3)

    def certainty(sigma: jax.Array) -> jax.Array:
        with_it = dataclasses.replace(options, sigma=sigma)
        return fit(model, example["image"], example["box"], options=with_it).certainty

    sigmas = jnp.asarray([1.0, 1.5, 2.5])
    together = jax.jit(jax.vmap(certainty))(sigmas)
    one_by_one = [certainty(sigma) for sigma in sigmas]
    np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-9)
    traced, _ = fit_with_trace(model, example["image"], example["box"], options=options)
    np.testing.assert_allclose(traced.certainty, one_by_one[1], rtol=1e-9)


@pytest.mark.slow
def test_a_face_that_goes_is_noticed(example: dict):
    """Its picture gives way to noise: the fit still converges, but is not trusted."""
    noise = np.random.default_rng(0).integers(0, 256, example["image"].shape)
    pictures = [example["image"]] * 2 + [noise.astype(np.uint8)] * 2
    pictures += [example["image"]]
    fits = [fit(example["model"], p, example["box"], options=SMALL) for p in pictures]
    sigma = SMALL.at_scale(example["model"].experts[0].patch_scaling).sigma
    levels = [float(level_of(f.log_likelihood, sigma, 7)) for f in fits]
    assert levels[2] < levels[0] - 0.2
    model = judging(example["model"], 50.0, (levels[0] + levels[2]) / 2)
    options = TrackOptions(first=SMALL, follow=SMALL)
    state, good, asked = start_tracking(model, options), [], []

    for i, picture in enumerate(pictures):

        def detect(i: int = i) -> np.ndarray | None:
            asked.append(i)
            return None if 2 <= i <= 3 else np.asarray(example["box"])

        state, result = track_frame(model, picture, state, options, detect)
        good.append(bool(result.success))
    assert good == [True, True, False, False, True]
    assert asked[:2] == [0, 2]  # the first frame, and when it was lost
    # Without a validator nobody notices.
    plain, good = start_tracking(example["model"], options), []
    for picture in pictures[:3]:
        plain, result = track_frame(
            example["model"],
            picture,
            plain,
            options,
            lambda: np.asarray(example["box"]),
        )
        good.append(bool(result.success))
    assert good == [True] * 3


def test_it_is_stored_and_described(example: dict, tmp_path: Path):
    model = judging(example["model"], 12.0, -2.5)
    save_model(model, tmp_path / "model.npz")
    again = load_model(tmp_path / "model.npz").validator
    assert isinstance(again, LikelihoodValidator)
    np.testing.assert_array_equal(again.biases, np.asarray([30.0, 30.0], np.float32))
    assert "log-likelihood at each of 2 scales" in describe_model(model)
    assert "validator   none" in describe_model(example["model"])


def test_a_file_whose_validator_does_not_suit_its_scales(example: dict, tmp_path: Path):
    model = judging(example["model"], 1.0, 0.0)
    short = LikelihoodValidator(weights=jnp.ones(1), biases=jnp.zeros(2))
    save_model(dataclasses.replace(model, validator=short), tmp_path / "model.npz")
    with pytest.raises(ModelFileError, match="expected 2 weights and biases, one for"):
        load_model(tmp_path / "model.npz")


# The embedded model.


@pytest.mark.slow
def test_the_embedded_model_trusts_bad_pictures_of_faces_and_nothing_else():
    """Blurred, moving, noisy, lit from a side: landmarks stay, and so does trust.

    Beside the face, in black, in noise and on a ramp all converge, none is trusted.
    """
    model = load_model()
    assert isinstance(model.validator, JointValidator)
    shape = (160, 160)
    ramp = np.tile(np.linspace(0, 255, shape[1]), (shape[0], 1))
    noise = np.random.default_rng(0).integers(0, 256, shape)
    no_faces = [p.astype(np.uint8) for p in (np.zeros(shape), noise, ramp)]
    _, grey = read_image(PHOTOGRAPH)
    box = np.asarray([175.0, 75.0, 95.0, 105.0])
    noise = np.random.default_rng(0).normal(0, 25, grey.shape)
    pictures = [
        grey,
        cv2.GaussianBlur(grey, (0, 0), 0.04 * 100),
        cv2.blur(grey, (15, 1)),
        np.clip(grey + noise, 0, 255).astype(np.uint8),
        (grey * np.linspace(1, 0.2, grey.shape[1])).astype(np.uint8),
    ]
    beside, somewhere = box + [-90, 250, 0, 0], np.asarray([40.0, 40.0, 80.0, 80.0])
    boxes = np.stack([box] * 5 + [beside] * 5 + [somewhere] * 3)
    options = FitOptions(starts=1)
    result = fit_many(model, pictures * 2 + no_faces, boxes, options=options)
    assert result.success.tolist() == [True] * 5 + [False] * 8
    assert (result.status[10:] == Status.CONVERGED).all()
    assert (result.certainty[10:] < 0.01).all()
    landmarks = np.asarray(result.landmarks)
    off = np.linalg.norm(landmarks[1:5] - landmarks[:1], axis=2)
    assert off.mean(axis=1).max() < 4


@pytest.mark.slow
def test_a_face_that_jumps_is_looked_for_again():
    """By more than the windows reach; without a validator the fit would stay behind."""
    model = load_model()
    _, grey = read_image(PHOTOGRAPH)
    jumps = [(0, 0), (2, 1), (62, 1), (64, 3)]
    pictures = [np.roll(grey, jump, axis=(0, 1)) for jump in jumps]
    options = TrackOptions()
    model = model.prepared(*options.window_sizes)
    state, asked, landmarks = start_tracking(model, options), [], []
    for i, picture in enumerate(pictures):

        def detect(i: int = i, picture: np.ndarray = picture) -> np.ndarray:
            asked.append(i)
            (box,) = detect_faces(picture, calibration=model.box_calibration)
            return box

        state, result = track_frame(model, picture, state, options, detect)
        assert result.success and float(result.certainty) > 0.9
        landmarks.append(np.asarray(result.landmarks))
    assert asked == [0, 2]
    for (down, right), found in zip(jumps, landmarks, strict=True):
        apart = np.linalg.norm(found - (right, down) - landmarks[0], axis=1)
        assert apart.max() < 1.5


# The command.


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.mark.slow
def test_what_the_command_says_of_a_fit_off_the_face(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("x,y,width,height\n100,300,110,120\n175,75,95,105\n")
    args = ["fit", str(PHOTOGRAPH), "--boxes", str(boxes), "--out", str(tmp_path / "o")]
    assert main(args) == 0
    assert "2 faces, 2 converged, 1 trusted" in capsys.readouterr().out
    (summary,) = table(tmp_path / "o" / "summary.csv")
    assert [summary[k] for k in ("faces", "converged", "trusted")] == ["2", "2", "1"]
    off, on = (float(r["confidence"]) for r in table(tmp_path / "o" / "astronaut.csv"))
    assert off < 0.1 and on > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True])
def test_a_face_that_goes_and_comes_back_in_a_video(
    multi: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bgr, _ = read_image(PHOTOGRAPH)
    grey = np.full_like(bgr, 90)
    frames = [bgr] * 2 + [grey] * (6 if multi else 2) + [bgr] * 2
    (tmp_path / "walk").mkdir()
    for i, frame in enumerate(frames):
        write_png(tmp_path / "walk" / f"{i:02}.png", frame)
    args = ["track", str(tmp_path / "walk"), "--out", str(tmp_path)]
    args += ["--multi", "--detect-every", "2"] if multi else []
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert f"{len(frames)} frames, 4 with a trusted face" in shown
    rows = [(r["face_id"], r["success"]) for r in table(tmp_path / "walk.csv")]
    if multi:
        # Five frames without it end a face. What comes back is a new one.
        assert rows[:2] == [("0", "1")] * 2 and rows[-2:] == [("1", "1")] * 2
        assert {success for _, success in rows[2:-2]} == {"0"}
    else:
        assert rows == [("0", "1")] * 2 + [("0", "0")] * 2 + [("0", "1")] * 2
