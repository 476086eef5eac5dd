"""What experts learn from: places, targets, weights, mirrored faces, wear of pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.learn.ccnf.samples import (
    Augmentation,
    FaceBank,
    Samples,
    draw_samples,
    make_bank,
)
from jaxclnf.learn.faces import LabelledFaces, held_out
from jaxclnf.shape.pdm import PDM, project
from tests import synthetic

COUNT = 16  # one number of samples in all tests: one compilation
TOL = 1e-10  # float64: sampling positions of some hundred pixels

WINDOW, SUPPORT = 7, 11
SIDE = WINDOW + SUPPORT - 1
STILL = Augmentation(scale=0.0, rotation=0.0, shift=0.0, blur=0.0, noise=0.0, gamma=0.0)
MOVED = dataclasses.replace(STILL, scale=0.07, rotation=0.07, shift=0.45)
WORN = dataclasses.replace(MOVED, blur=0.2, noise=0.12, gamma=0.3)
PARTNERS = np.asarray([3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8])  # of the 4 x 3 grid

_project = jax.jit(project)
_draw = jax.jit(draw_samples, static_argnames=("window_size", "support"))


def draw(
    bank: FaceBank,
    augmentation: Augmentation,
    *,
    flipped: bool = False,
    seed: int = 0,
    patch_scaling: float = 0.5,
    target_sigma: float = 1.0,
) -> Samples:
    """Samples of the bank's first face."""
    dtype = bank.landmarks.dtype
    return _draw(
        jax.random.key(seed),
        bank,
        jnp.zeros(COUNT, jnp.int32),
        jnp.full(COUNT, flipped),
        jnp.arange(12, dtype=jnp.int32),
        jnp.asarray(PARTNERS, jnp.int32),
        patch_scaling=jnp.asarray(patch_scaling, dtype),
        target_sigma=jnp.asarray(target_sigma, dtype),
        window_size=WINDOW,
        support=SUPPORT,
        augmentation=augmentation,
    )


def labelled(
    image: np.ndarray, landmarks: np.ndarray, spread: np.ndarray | None = None
) -> LabelledFaces:
    """One face."""
    spread = np.zeros(len(landmarks)) if spread is None else spread
    return LabelledFaces(
        names=("face",),
        images=(image,),
        landmarks=np.asarray(landmarks, np.float64)[None],
        spread=np.asarray(spread, np.float64)[None],
    )


@pytest.fixture(scope="module")
def pdm() -> PDM:
    return synthetic.make_pdm()


@pytest.fixture(scope="module")
def dots(pdm: PDM) -> FaceBank:
    """A dark picture with a dot at each landmark, each of its own brightness."""
    truth = synthetic.make_params(pdm)
    landmarks = np.asarray(_project(pdm, truth))
    rows, columns = np.indices(synthetic.IMAGE_SHAPE)
    image = np.zeros(synthetic.IMAGE_SHAPE)
    for grey, (x, y) in zip(brightness(), landmarks, strict=True):
        image += grey * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
    faces = labelled(np.round(image).astype(np.uint8), landmarks)
    return make_bank(pdm, faces, jax.tree.map(lambda x: x[None], truth))


def brightness() -> np.ndarray:
    """The dot of each landmark."""
    return 100 + 12.0 * np.arange(12)


def centre_of_target(targets: jax.Array) -> np.ndarray:
    """Where the target's bell stands, pixels from the middle, from its slope."""
    bells = np.log(np.asarray(targets)).reshape(*targets.shape[:-1], WINDOW, WINDOW)
    middle = WINDOW // 2
    across = bells[..., middle, middle + 1] - bells[..., middle, middle - 1]
    down = bells[..., middle + 1, middle] - bells[..., middle - 1, middle]
    return np.stack([across, down], axis=-1) / 2


def centre_of_light(areas: jax.Array) -> np.ndarray:
    """Centre of gravity of the grey values near the brightest pixel."""
    grid, light = np.arange(SIDE) - (SIDE - 1) / 2, np.asarray(areas)
    # Of the upper half of a dot alone, so that its tails may leave the area.
    light = np.maximum(light - 0.5 * light.max(axis=(-2, -1), keepdims=True), 0)
    light = light / light.sum(axis=(-2, -1), keepdims=True)
    x = np.sum(light * grid, axis=(-2, -1))
    y = np.sum(light * grid[:, None], axis=(-2, -1))
    return np.stack([x, y], axis=-1)


# Where things are.


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("augmentation", [STILL, MOVED], ids=["still", "moved"])
def test_the_target_peaks_where_the_label_is(dots, flipped, augmentation):
    samples = draw(dots, augmentation, flipped=flipped)
    target, light = centre_of_target(samples.targets), centre_of_light(samples.areas)
    # The dots are cut off at half their height in pixels of half their width.
    np.testing.assert_allclose(light, target, rtol=0, atol=0.12)
    assert np.abs(light - target).mean() < 0.03
    brightest = np.asarray(samples.areas).reshape(COUNT, 12, -1).argmax(axis=2)
    peak = np.asarray(samples.targets).reshape(COUNT, 12, -1).argmax(axis=2)
    in_area = np.stack(np.divmod(brightest, SIDE)) - SUPPORT // 2
    apart = in_area - np.stack(np.divmod(peak, WINDOW))
    assert np.abs(apart).max() <= 1  # between two pixels either may be the brightest
    assert np.mean(np.abs(apart)) < 0.1


@pytest.mark.parametrize("flipped", [False, True])
def test_a_mirrored_face_shows_the_partners(dots, flipped):
    samples = draw(dots, STILL, flipped=flipped)
    expected = brightness()[PARTNERS if flipped else np.arange(12)] / 255
    found = np.asarray(samples.areas)[:, :, SIDE // 2, SIDE // 2]
    np.testing.assert_allclose(found, np.tile(expected, (COUNT, 1)), rtol=0.025)


def test_the_target_is_a_bell_around_the_offset(dots):
    for sigma in (1.0, 1.7):
        samples = draw(dots, MOVED, target_sigma=sigma)
        centre = sigma**2 * centre_of_target(samples.targets)
        grid = np.arange(WINDOW) - WINDOW // 2
        distance = (grid[None, :] - centre[..., 0, None, None]) ** 2 + (
            grid[:, None] - centre[..., 1, None, None]
        ) ** 2
        np.testing.assert_allclose(
            samples.targets,
            np.exp(-distance / (2 * sigma**2)).reshape(samples.targets.shape),
            rtol=0,
            atol=TOL,
        )


def test_offsets_fill_the_middle_of_the_window(dots):
    centre = centre_of_target(draw(dots, MOVED).targets)
    reach = 0.45 * WINDOW
    assert 0.95 * reach < np.abs(centre).max() <= reach
    np.testing.assert_allclose(centre.mean(axis=(0, 1)), 0, atol=0.3)
    np.testing.assert_allclose(centre.std(axis=(0, 1)), reach / 3**0.5, rtol=0.06)


def test_a_plain_sample_is_a_piece_of_the_picture():
    """At one pixel per millimetre and without any variation."""
    image = synthetic.make_image()
    corners = np.random.default_rng(0).integers(20, 220, (12, 2))
    bank = FaceBank(
        images=jnp.asarray(image)[None],
        landmarks=jnp.asarray(corners, float)[None],
        spread=jnp.zeros((1, 12)),
        img_from_face=jnp.eye(2)[None],
    )
    samples = draw(bank, STILL, patch_scaling=1.0)
    half = SIDE // 2
    expected = [
        image[y - half : y + half + 1, x - half : x + half + 1] / 255
        for x, y in corners
    ]
    np.testing.assert_allclose(samples.areas[0], expected, rtol=0, atol=TOL)


def test_size_and_angle_vary_as_asked():
    """A ramp shows the frame: the slope of an area is the frame's matrix times it."""
    height, width = synthetic.IMAGE_SHAPE
    ramp = np.tile(np.minimum(np.arange(width), 255), (height, 1)).astype(np.uint8)
    frame = 1.5 * np.asarray([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    bank = FaceBank(
        images=jnp.asarray(ramp)[None],
        landmarks=jnp.asarray(np.full((1, 12, 2), 120.0)),
        spread=jnp.zeros((1, 12)),
        img_from_face=jnp.asarray(frame)[None],
    )
    for flip in (False, True):
        draws = [draw(bank, MOVED, flipped=flip, seed=i).areas for i in range(8)]
        areas = 255 * np.concatenate(draws)[:, 0]
        slope_x = np.diff(areas, axis=2).mean(axis=(1, 2)) * (-1 if flip else 1)
        slope_y = np.diff(areas, axis=1).mean(axis=(1, 2))
        count = len(areas)
        # The first row of `frame @ turn / patch_scaling`.
        size = np.log(np.hypot(slope_x, slope_y) * 0.5 / 1.5)
        angle = np.arctan2(-slope_y, slope_x) - 0.3
        for values in (size, angle):
            assert abs(values.mean()) < 4 * 0.07 / count**0.5
            assert values.std() == pytest.approx(0.07, rel=4 / (2 * count) ** 0.5)
        assert abs(np.corrcoef(size, angle)[0, 1]) < 0.2


# Mirrored faces.


@pytest.mark.parametrize("worn", [False, True])
def test_a_flipped_sample_is_one_of_the_mirrored_picture(pdm, worn):
    """At the partner, with the frame turned the other way round."""
    image, truth = synthetic.make_image(), synthetic.make_params(pdm)
    spread = np.linspace(0.1, 3.0, 12)
    bank = make_bank(
        pdm,
        labelled(image, np.asarray(_project(pdm, truth)), spread),
        jax.tree.map(lambda x: x[None], truth),
    )
    mirror = np.diag([-1.0, 1.0])
    last = image.shape[1] - 1
    landmarks = np.asarray(bank.landmarks)[:, PARTNERS] @ mirror + [last, 0]
    other = FaceBank(
        images=bank.images[:, :, ::-1],
        landmarks=jnp.asarray(landmarks),
        spread=bank.spread[:, PARTNERS],
        img_from_face=jnp.asarray(mirror @ np.asarray(bank.img_from_face) @ mirror),
    )
    here = WORN if worn else MOVED
    there = dataclasses.replace(here, rotation=-0.07)
    flipped = draw(bank, here, flipped=True)
    plain = draw(other, there)
    np.testing.assert_allclose(flipped.areas, plain.areas, rtol=0, atol=TOL)
    np.testing.assert_allclose(flipped.targets, plain.targets, rtol=0, atol=TOL)
    np.testing.assert_allclose(flipped.weights, plain.weights, rtol=0, atol=TOL)


# Weights.


def test_weights_fall_with_the_spread(dots):
    spread = np.asarray([0.0, 0.5, 1.0, 2.0, 4.0, 1e3, 1e300, np.inf, 0, 0, 0, 0])
    bank = dataclasses.replace(dots, spread=jnp.asarray(spread)[None])
    samples = draw(bank, STILL)
    weights = np.asarray(samples.weights)[0]
    assert weights[0] == 1 and weights[7] == 0
    assert np.all(np.diff(weights[:8]) <= 0) and np.all(np.diff(weights[:6]) < 0)
    # In reference pixels, against the width of the target.
    pixels = np.sqrt(np.linalg.det(np.asarray(dots.img_from_face[0]))) / 0.5
    expected = 1 / (1 + (spread[:6] / pixels) ** 2)
    np.testing.assert_allclose(weights[:6], expected, rtol=1e-12)
    wide = draw(bank, STILL, target_sigma=2.0)
    expected = 1 / (1 + (spread[:6] / (2 * pixels)) ** 2)
    np.testing.assert_allclose(wide.weights[0, :6], expected, rtol=1e-12)


def test_an_unknown_label_is_harmless(dots):
    """It stands at 0, 0; much of its area lies outside the picture."""
    bank = dataclasses.replace(
        dots,
        landmarks=dots.landmarks.at[:, 2].set(0.0),
        spread=dots.spread.at[:, 2].set(np.inf),
    )
    samples = draw(bank, WORN)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(samples))
    np.testing.assert_array_equal(samples.weights[:, 2], 0)
    np.testing.assert_array_equal(samples.weights[:, [0, 1, 3]], 1)


# Wear.


@pytest.mark.slow
def test_gamma_is_one_exponent_per_face(dots):
    clean = np.asarray(draw(dots, STILL).areas)
    gamma = dataclasses.replace(STILL, gamma=0.3)
    worn = np.asarray(draw(dots, gamma).areas)
    lit = clean > 0.1
    exponents = np.log(np.maximum(worn, 1e-9)) / np.log(np.maximum(clean, 1e-9))
    exponents = [
        np.unique(np.round(e[m], 9)) for e, m in zip(exponents, lit, strict=True)
    ]
    assert all(len(e) == 1 for e in exponents)
    assert np.log(np.concatenate(exponents)).std() == pytest.approx(0.3, rel=0.4)
    np.testing.assert_array_equal(worn[clean == 0], 0)


def test_noise_is_measured_in_the_contrast_of_the_area(dots):
    clean = np.asarray(draw(dots, STILL).areas)
    noisy = dataclasses.replace(STILL, noise=0.12)
    worn = np.asarray(draw(dots, noisy).areas)
    level = (worn - clean).std(axis=(2, 3)) / clean.std(axis=(2, 3))
    of_face = level.mean(axis=1)
    np.testing.assert_allclose(level / of_face[:, None], 1, atol=0.2)
    assert 0.1 < of_face.max() < 0.13 and of_face.min() < 0.02
    assert of_face.mean() == pytest.approx(0.06, rel=0.3)


def test_blur_keeps_light_and_takes_contrast(dots):
    clean = np.asarray(draw(dots, STILL).areas)
    blurred = dataclasses.replace(STILL, blur=0.2)
    worn = np.asarray(draw(dots, blurred).areas)
    np.testing.assert_allclose(worn.sum(axis=(2, 3)), clean.sum(axis=(2, 3)), rtol=1e-9)
    ratio = worn.std(axis=(2, 3)) / clean.std(axis=(2, 3))
    assert np.all(ratio < 1) and np.all(ratio > 0.8)


# Keys and types.


def test_the_same_key_gives_the_same_samples(dots):
    first, again, other = (draw(dots, WORN, seed=seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.all(np.any(np.asarray(first.areas != other.areas), axis=(2, 3)))
    # Every sample of a batch is another one.
    areas = np.asarray(first.areas)
    assert np.all(np.any(areas[1:] != areas[:-1], axis=(2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_type_of_the_labels(dots, dtype):
    typed = jax.tree.map(lambda x: x if x.dtype == np.uint8 else x.astype(dtype), dots)
    samples = jax.eval_shape(draw, typed, WORN)
    assert {x.dtype for x in jax.tree.leaves(samples)} == {np.dtype(dtype)}
    assert samples.areas.shape == (COUNT, 12, SIDE, SIDE)
    assert samples.targets.shape == (COUNT, 12, WINDOW**2)


# Banks and faces.


def test_a_bank_holds_pictures_of_any_size(pdm):
    """Filled up with zeros, which is what lies outside a picture anyway."""
    angles = [(0.0, 0.0, 0.3), (0.0, 0.0, -0.2)]
    params = [
        synthetic.make_params(pdm, euler=euler, scale=scale, modes=0.0)
        for euler, scale in zip(angles, (0.9, 1.3), strict=True)
    ]
    images = (
        synthetic.make_image(0, (240, 200)),
        synthetic.make_image(1, (180, 260)),
    )
    faces = LabelledFaces(
        names=("a", "b"),
        images=images,
        landmarks=np.stack([np.asarray(_project(pdm, p)) for p in params]),
        spread=np.ones((2, 12)),
    )
    bank = make_bank(pdm, faces, jax.tree.map(lambda *x: jnp.stack(x), *params))
    assert bank.images.shape == (2, 240, 260) and bank.images.dtype == jnp.uint8
    for image, padded in zip(images, np.asarray(bank.images), strict=True):
        height, width = image.shape
        np.testing.assert_array_equal(padded[:height, :width], image)
        assert padded[height:].max(initial=0) == padded[:, width:].max(initial=0) == 0
    for turn, scale, angle in zip(
        bank.img_from_face, (0.9, 1.3), (0.3, -0.2), strict=True
    ):
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        np.testing.assert_allclose(turn, [[cosine, -sine], [sine, cosine]], atol=TOL)


def test_names_alone_decide_what_is_held_out():
    names = [f"face {i}.jpg" for i in range(2000)]
    mask = held_out(names)
    assert mask.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(held_out(names[::-1]), mask[::-1])
    rest = np.delete(mask, slice(7, 50))
    np.testing.assert_array_equal(held_out(names[:7] + names[50:]), rest)
    assert np.all(held_out(names, 0.3)[mask])  # a larger share only adds
    assert not held_out(names, 0.0).any() and held_out(names, 1.0).all()
    assert held_out([]).shape == (0,)


def test_picking_faces():
    faces = LabelledFaces(
        names=("a", "b", "c"),
        images=tuple(np.full((i + 1, 2), i, np.uint8) for i in range(3)),
        landmarks=np.arange(12.0).reshape(3, 2, 2),
        spread=np.arange(6.0).reshape(3, 2),
    )
    assert len(faces) == 3
    for which in (np.asarray([2, 0]), np.asarray([True, False, True])):
        some = faces.pick(which)
        assert set(some.names) == {"a", "c"} and len(some) == 2
        for i, name in enumerate(some.names):
            k = faces.names.index(name)
            np.testing.assert_array_equal(some.images[i], faces.images[k])
            np.testing.assert_array_equal(some.landmarks[i], faces.landmarks[k])
            np.testing.assert_array_equal(some.spread[i], faces.spread[k])
    assert faces.pick(np.asarray([2, 0])).names == ("c", "a")
    assert len(faces.pick(np.zeros(3, bool))) == 0
