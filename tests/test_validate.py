"""A made-up landmark validator: OpenCV, SciPy and NumPy say what is right."""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxclnf.app.info import describe_model
from jaxclnf.errors import ModelFileError
from jaxclnf.fitting.validate import (
    Validator,
    validate,
    validator_feature,
    validator_outputs,
)
from jaxclnf.fitting.warp import region_of_interest, warp_face
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.openface.validator_file import read_validator
from jaxclnf.storage.npz import read_model, save_model
from tests import synthetic

PICTURE = (14, 12)
TRIANGLES = np.array([[0, 1, 3], [1, 4, 3], [1, 2, 4], [2, 5, 4]], np.int32)
VIEWS_DEGREES = ((0.0, 0.0, 0.0), (0.0, -30.0, 0.0), (0.0, 30.0, 0.0))
NUM_BINS = 5

chosen_outputs = jax.jit(validator_outputs)
chosen_certainty = jax.jit(validate)
feature_of = jax.jit(validator_feature)
warped = jax.jit(warp_face)


class Layer(NamedTuple):
    kind: int
    weights: np.ndarray = np.zeros(0)
    bias: np.ndarray = np.zeros(0)


class View(NamedTuple):
    """One view as the file has it; masked pixels column by column."""

    center: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    layers: list[Layer]
    points: np.ndarray
    triangles: np.ndarray
    triangle_of_pixel: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return (self.triangle_of_pixel >= 0).astype(np.int32)

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Position of each pixel in the frame of the mean face."""
        y, x = np.mgrid[: PICTURE[0], : PICTURE[1]]
        return x + self.points[:, 0].min(), y + self.points[:, 1].min()


def coordinates(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """How far points are along the sides of a triangle."""
    sides = np.stack([corners[1] - corners[0], corners[2] - corners[0]], axis=1)
    return (points - corners[0]) @ np.linalg.inv(sides).T


def make_view(index: int) -> View:
    """A view; the second one lacks a triangle."""
    rng = np.random.default_rng(index)
    grid = np.array([[-5.0, -6], [0, -6.5], [5, -6], [-5, 6], [0, 6.5], [5, 6]])
    points = grid + rng.uniform(-0.4, 0.4, grid.shape)
    triangles = TRIANGLES[: 3 if index == 1 else 4]
    y, x = np.mgrid[: PICTURE[0], : PICTURE[1]]
    pixels = np.stack([x, y], axis=-1) + points.min(axis=0)
    triangle_of_pixel = np.full(PICTURE, -1, np.int32)
    affine = []
    for i, corners in enumerate(points[triangles]):
        along = coordinates(pixels, corners)
        inside = (along >= 0).all(axis=-1) & (along.sum(axis=-1) <= 1)
        triangle_of_pixel[inside] = i
        # The map from (1, x, y), from its values at three places.
        places = np.array([[0.0, 0], [1, 0], [0, 1]])
        values = coordinates(places, corners)
        affine.append([values[0], values[1] - values[0], values[2] - values[0]])
    alpha, beta = np.moveaxis(np.array(affine), 2, 0)
    count = int((triangle_of_pixel >= 0).sum())
    shapes = [((1, 2, 3, 3), 2), ((2, 3, 2, 2), 3), ((18, 4), 4), ((4, NUM_BINS), 5)]
    drawn = [
        Layer(0 if len(shape) == 4 else 2, rng.normal(size=shape), rng.normal(size=num))
        for shape, num in shapes
    ]
    pool, relu, sigmoid = Layer(1), Layer(3), Layer(4)
    return View(
        center=np.array(VIEWS_DEGREES[index]),
        mean=rng.normal(0, 0.3, count),
        std=rng.uniform(0.5, 1.5, count),
        layers=[
            drawn[0],
            relu,
            pool,
            drawn[1],
            sigmoid,
            pool,
            drawn[2],
            relu,
            drawn[3],
        ],
        points=points,
        triangles=triangles,
        triangle_of_pixel=triangle_of_pixel,
        alpha=alpha,
        beta=beta,
    )


VIEWS = [make_view(i) for i in range(3)]


# A writer, from the format's description.


def matrix(array: np.ndarray) -> bytes:
    code = {"i4": 4, "f4": 5, "f8": 6}[array.dtype.str[1:]]
    return struct.pack("<3i", *array.shape, code) + array.tobytes()


def layer_bytes(layer: Layer) -> bytes:
    data = struct.pack("<i", layer.kind)
    if layer.kind == 0:
        data += struct.pack("<2i", *layer.weights.shape[:2])
        data += layer.bias.astype("f4").tobytes()
        kernels = layer.weights.astype("f4").reshape(-1, *layer.weights.shape[2:])
        return data + b"".join(map(matrix, kernels))
    if layer.kind == 2:
        data += matrix(layer.bias[:, None].astype("f4"))
        data += matrix(layer.weights.astype("f4"))
    return data


def view_bytes(view: View, mask: np.ndarray | None = None) -> bytes:
    low = view.points.min(axis=0)
    return b"".join(
        [
            matrix(view.mean[None]),
            matrix(view.std[None]),
            struct.pack("<i", len(view.layers)),
            *map(layer_bytes, view.layers),
            struct.pack("<i2d", len(view.mean), *low),
            matrix(view.points.T.reshape(-1, 1)),
            matrix(view.triangles),
            matrix(view.triangle_of_pixel),
            matrix(view.mask if mask is None else mask),
            matrix(view.alpha),
            matrix(view.beta),
        ]
    )


def file_bytes(views: list[View], masks: list[np.ndarray] | None = None) -> bytes:
    data = struct.pack("<2i", 3, len(views))
    data += b"".join(matrix(view.center[:, None]) for view in views)
    pairs = zip(views, masks or [None] * len(views), strict=True)
    return data + b"".join(view_bytes(view, mask) for view, mask in pairs)


def read(tmp_path: Path, data: bytes, dtype: type = np.float64) -> Validator:
    file = tmp_path / "validator.txt"
    file.write_bytes(data)
    return read_validator(file, dtype, num_landmarks=6)


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Validator:
    return read(tmp_path_factory.mktemp("validator"), file_bytes(VIEWS))


# What the validator is to compute, by other means.


def expected_warp(view: View, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The piecewise warp by OpenCV, on the region cut out of the image."""
    last = np.array(image.shape)[::-1] - 1
    low = np.clip((landmarks.min(axis=0) - 3).astype(int), 0, last)
    high = np.clip((landmarks.max(axis=0) + 3).astype(int), 0, last)
    region = image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    x, y = view.grid
    position = np.full((*PICTURE, 2), -1.0)
    for t, (i, j, k) in enumerate(view.triangles):
        here = view.triangle_of_pixel == t
        terms = np.stack([np.ones(here.sum()), x[here], y[here]], axis=1)
        along, across = terms @ view.alpha[t], terms @ view.beta[t]
        p = landmarks - low
        position[here] = (
            p[i] + np.outer(along, p[j] - p[i]) + np.outer(across, p[k] - p[i])
        )
    maps = position.astype(np.float32)
    return cv2.remap(region, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR)


def expected_feature(view: View, warped: np.ndarray) -> np.ndarray:
    pixels = warped.T[view.mask.T > 0].astype(np.float64)
    picture = np.zeros(PICTURE)
    standard = (pixels - pixels.mean()) / pixels.std()
    picture.T[view.mask.T > 0] = (standard - view.mean) / view.std
    return picture


def pooled(image: np.ndarray) -> np.ndarray:
    rows, columns = (range(0, size, 2) for size in image.shape)
    return np.array(
        [[image[i : i + 2, j : j + 2].max() for j in columns] for i in rows]
    )


def expected_outputs(view: View, feature: np.ndarray) -> np.ndarray:
    maps = [feature]
    for kind, weights, bias in view.layers:
        weights, bias = weights.astype("f4"), bias.astype("f4")
        if kind == 0:
            maps = [
                bias[k]
                + sum(
                    correlate2d(image, weights[i, k].astype(np.float64), "valid")
                    for i, image in enumerate(maps)
                )
                for k in range(weights.shape[1])
            ]
        elif kind == 1:
            maps = [pooled(image) for image in maps]
        elif kind == 2:
            vector = np.concatenate([image.ravel(order="F") for image in maps])
            maps = [vector @ weights.astype(np.float64) + bias]
        elif kind == 3:
            maps = [np.maximum(image, 0) for image in maps]
        else:
            maps = [1 / (1 + np.exp(-image)) for image in maps]
    return maps[0]


def scene(index: int, scale: float = 3.0) -> tuple[np.ndarray, jax.Array, jax.Array]:
    """An image, landmarks on it and angles of a view."""
    rng = np.random.default_rng(100 + index)
    # No black pixels: only what is outside counts as 0.
    image = np.maximum(synthetic.make_image(index, (90, 100)), 1)
    points = scale * VIEWS[index].points + rng.normal(0, 1, (6, 2)) + [48.3, 44.7]
    euler = np.deg2rad(VIEWS_DEGREES[index]) + rng.normal(0, 0.05, 3)
    return image, jnp.asarray(points), jnp.asarray(euler)


# Warp, feature, network, certainty.


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("scale", [1.5, 3.0, 9.0])
def test_warp_is_opencvs(validator, index, scale):
    image, landmarks, _ = scene(index, scale)  # At 9 a part is outside the image.
    size = jnp.asarray(image.shape)
    found = warped(validator.warp, jnp.asarray(index), image, landmarks, size)
    expected = expected_warp(VIEWS[index], image, np.asarray(landmarks))
    assert (scale == 9.0) == bool((expected[VIEWS[index].mask > 0] == 0).any())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("index", range(3))
def test_feature_and_outputs(validator, index):
    image, landmarks, euler = scene(index)
    view, size = jnp.asarray(index), jnp.asarray(image.shape)
    grey = expected_warp(VIEWS[index], image, np.asarray(landmarks))
    expected = expected_feature(VIEWS[index], grey)
    feature = feature_of(validator, view, image, landmarks, size)
    np.testing.assert_allclose(feature, expected, atol=1e-9)
    outputs = chosen_outputs(validator, image, landmarks, euler)
    expected = expected_outputs(VIEWS[index], expected)
    np.testing.assert_allclose(outputs, expected, atol=1e-9)
    certainty = chosen_certainty(validator, image, landmarks, euler)
    center = -1 + (2 * np.argmax(expected) + 1) / NUM_BINS
    assert float(certainty) == pytest.approx((1 - center) / 2, abs=1e-12)


def test_each_bin_has_its_certainty(validator):
    image, landmarks, euler = scene(0)
    last = validator.layers[-1]
    found = []
    for bin_index in range(NUM_BINS):
        bias = jnp.zeros_like(last.bias).at[:, bin_index].set(1e6)
        layers = (*validator.layers[:-1], dataclasses.replace(last, bias=bias))
        changed = dataclasses.replace(validator, layers=layers)
        found.append(float(chosen_certainty(changed, image, landmarks, euler)))
    np.testing.assert_allclose(found, [0.9, 0.7, 0.5, 0.3, 0.1], atol=1e-12)


def test_gain_and_offset_of_the_image_do_not_matter(validator):
    image, landmarks, euler = scene(2)
    plain = chosen_outputs(validator, image.astype(float), landmarks, euler)
    other = chosen_outputs(validator, 0.3 * image + 20, landmarks, euler)
    np.testing.assert_allclose(plain, other, atol=1e-8)


def test_region_is_cut_off_at_the_image():
    points = jnp.asarray([[-20.0, 3.9], [50.2, 41.0]])
    low, high = region_of_interest(points, jnp.asarray([40, 60]))
    assert low.tolist() == [0, 0] and high.tolist() == [53, 39]
    low, high = region_of_interest(points + 1e12, jnp.asarray([40, 60]))
    assert low.tolist() == high.tolist() == [59, 39]


# Transformations and types.


def test_padding_changes_nothing(validator):
    image, landmarks, euler = scene(1, 9.0)
    canvas = np.full((128, 160), 77, np.uint8)  # Whatever is there.
    canvas[:90, :100] = image
    plain = chosen_outputs(validator, image, landmarks, euler)
    padded = chosen_outputs(validator, canvas, landmarks, euler, jnp.asarray([90, 100]))
    np.testing.assert_array_equal(plain, padded)


def test_vmap_and_a_bad_neighbour(validator):
    image, landmarks, euler = scene(0)
    rows = jnp.stack([landmarks, landmarks + 5.3, landmarks - 7.7])
    angles = jnp.deg2rad(jnp.asarray(VIEWS_DEGREES))
    one_by_one = [
        chosen_outputs(validator, image, *row) for row in zip(rows, angles, strict=True)
    ]
    many = jax.jit(jax.vmap(validator_outputs, in_axes=(None, None, 0, 0)))
    together = many(validator, image, rows, angles)
    np.testing.assert_allclose(together, jnp.stack(one_by_one), atol=1e-9)
    bad = many(validator, image, rows.at[1, 2].set(jnp.nan), angles)
    assert jnp.isnan(bad[1]).all()
    np.testing.assert_array_equal(bad[::2], together[::2])


def test_a_new_face_compiles_nothing(validator):
    image, landmarks, euler = scene(0)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda *x: validate(*x), n=1))
    for shift in (0.0, 1.0):
        once(validator, image, landmarks + shift, euler + shift)


def test_float32_in_float32_out(validator):
    single = jax.tree.map(
        lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, validator
    )
    for index in range(3):
        image, landmarks, euler = scene(index)
        inputs = image, landmarks.astype(np.float32), euler.astype(np.float32)
        found = chosen_outputs(single, *inputs)
        assert found.dtype == chosen_certainty(single, *inputs).dtype == np.float32
        doubles = [x.astype(np.float64) for x in inputs[1:]]
        exact = chosen_outputs(validator, image, *doubles)
        np.testing.assert_allclose(found, exact, atol=2e-2)


# Nothing to judge.


def _moved_out(landmarks):
    return landmarks + jnp.asarray([[0.0, 400.0]])


BAD_LANDMARKS = {
    "nan": lambda x: x.at[3, 1].set(jnp.nan),
    "infinite": lambda x: x.at[0, 0].set(-jnp.inf),
    "all infinite": lambda x: jnp.full_like(x, jnp.inf),
    "huge": lambda x: x.at[0, 0].set(1e30),
    "below": _moved_out,
    "left": lambda x: x - jnp.asarray([[300.0, 0.0]]),
    "one point": lambda x: jnp.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("name", BAD_LANDMARKS)
def test_bad_landmarks_are_not_certain(validator, name):
    image, landmarks, euler = scene(0)
    bad = BAD_LANDMARKS[name](landmarks)
    assert float(chosen_certainty(validator, image, bad, euler)) == 0
    assert jnp.isnan(chosen_outputs(validator, image, bad, euler)).all()


def test_degenerate_landmarks_have_finite_outputs(validator):
    image, landmarks, euler = scene(0)
    on_a_line = landmarks.at[:, 0].set(50.0)
    assert jnp.isfinite(chosen_outputs(validator, image, on_a_line, euler)).all()
    assert 0 < float(chosen_certainty(validator, image, on_a_line, euler)) < 1


@pytest.mark.parametrize("level", [0.0, 0.1, 77.7, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_flat_image_is_not_certain(validator, level, dtype):
    _, landmarks, euler = scene(0)
    validator, landmarks, euler = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == np.float64 else x,
        (validator, landmarks, euler),
    )
    flat = np.full((90, 100), level, dtype)
    assert float(chosen_certainty(validator, flat, landmarks, euler)) == 0


def test_bad_pixels_and_angles_are_not_certain(validator):
    image, landmarks, euler = scene(0)
    assert float(chosen_certainty(validator, image, landmarks, euler * jnp.nan)) == 0
    for bad in (np.nan, np.inf):
        pixels = image.astype(float)
        pixels[40:44, 46:50] = bad
        assert float(chosen_certainty(validator, pixels, landmarks, euler)) == 0


# The file.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_the_file(tmp_path, dtype):
    found = read(tmp_path, file_bytes(VIEWS), dtype)
    np.testing.assert_allclose(found.view_centers, np.deg2rad(VIEWS_DEGREES), rtol=1e-6)
    assert {x.dtype for x in jax.tree.leaves(found)} == {
        np.dtype(dtype),
        np.dtype(np.int32),
    }
    for index, view in enumerate(VIEWS):
        used = view.mask > 0
        mean, std = np.asarray(found.mean[index]), np.asarray(found.std[index])
        np.testing.assert_array_equal(mean.T[used.T], view.mean.astype(dtype))
        np.testing.assert_array_equal(std.T[used.T], view.std.astype(dtype))
        assert (mean[~used] == 0).all() and (std[~used] == 1).all()
        num = len(view.triangles)
        np.testing.assert_array_equal(found.warp.triangles[index, :num], view.triangles)
        low = view.points.min(axis=0)
        np.testing.assert_array_equal(found.warp.corner[index], low.astype(dtype))


def with_layers(*layers: Layer) -> list[View]:
    return [view._replace(layers=list(layers)) for view in VIEWS]


def kernel(inputs: int, outputs: int, side: int) -> Layer:
    return Layer(0, np.ones((inputs, outputs, side, side)), np.ones(outputs))


def dense(inputs: int, outputs: int) -> Layer:
    return Layer(2, np.ones((inputs, outputs)), np.ones(outputs))


def with_view(index: int, **changes) -> list[View]:
    views = list(VIEWS)
    views[index] = views[index]._replace(**changes)
    return views


def with_entry(array: np.ndarray, index, value) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


ALL = PICTURE[0] * PICTURE[1]
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "another type": (lambda: struct.pack("<2i", 1, 3), "type of validator: found 1"),
    "no view": (lambda: struct.pack("<2i", 3, 0), "number of views: found 0"),
    "more": (lambda: file_bytes(VIEWS) + b"x", "end: found 1 more bytes"),
    "deviation zero": (
        lambda: file_bytes(with_view(1, std=with_entry(VIEWS[1].std, 3, 0.0))),
        "deviation of view 1: found 0.0",
    ),
    "mean not finite": (
        lambda: file_bytes(with_view(0, mean=with_entry(VIEWS[0].mean, 0, np.nan))),
        "mean of view 0: found nan",
    ),
    "bias not finite": (
        lambda: file_bytes(
            with_layers(kernel(1, 1, 2)._replace(bias=np.array([np.inf])))
        ),
        "biases of layer 0 of view 0: found inf",
    ),
    "unknown layer": (lambda: file_bytes(with_layers(Layer(5))), "kind of layer 0"),
    "no layer": (lambda: file_bytes(with_layers()), "number of layers of view 0"),
    "views differ": (
        lambda: file_bytes(with_view(2, layers=VIEWS[2].layers[:-1])),
        "layers of view 2",
    ),
    "large kernel": (
        lambda: file_bytes(with_layers(kernel(1, 1, 13), dense(ALL, 2))),
        "kernels of layer 0: found 1 maps and 13 x 13 pixels",
    ),
    "huge kernel": (lambda: file_bytes(with_layers(kernel(1, 1, 102))), "at most 101"),
    "maps": (
        lambda: file_bytes(with_layers(kernel(1, 2, 3), kernel(3, 1, 2), dense(1, 2))),
        "kernels of layer 1: found 3 maps",
    ),
    "inputs": (
        lambda: file_bytes(with_layers(dense(ALL - 1, 2))),
        f"inputs of layer 0: found {ALL - 1}, expected {ALL}",
    ),
    "maps after a vector": (
        lambda: file_bytes(with_layers(dense(ALL, 4), Layer(1), dense(4, 2))),
        "layer 1: found maps",
    ),
    "one bin": (lambda: file_bytes(with_layers(dense(ALL, 1))), "outputs of the last"),
    "maps at the end": (lambda: file_bytes(with_layers(Layer(1))), "at least two bins"),
    "triangle": (
        lambda: file_bytes(
            with_view(1, triangles=with_entry(VIEWS[1].triangles, (0, 0), 6))
        ),
        "triangles of view 1: found 6",
    ),
    "pixel": (
        lambda: file_bytes(
            with_view(
                1, triangle_of_pixel=with_entry(VIEWS[1].triangle_of_pixel, (7, 6), 3)
            )
        ),
        "triangle of each pixel of view 1: found 3",
    ),
    "mask": (
        lambda: file_bytes(
            VIEWS, [VIEWS[0].mask, 1 - VIEWS[1].mask, np.ones_like(VIEWS[2].mask)]
        ),
        "mask of view 1",
    ),
    "count": (
        lambda: file_bytes(
            with_view(2, mean=VIEWS[2].mean[:-1], std=VIEWS[2].std[:-1])
        ),
        "mask of view 2",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_reported(tmp_path, name):
    make, message = DAMAGED[name]
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, make())
    assert message in str(caught.value) and "expected" in str(caught.value)
    assert str(tmp_path / "validator.txt") in str(caught.value)


def test_a_shortened_file_is_reported(tmp_path):
    data = file_bytes(VIEWS)
    for length in range(1, len(data), 97):
        with pytest.raises(ModelFileError, match=r"validator\.txt, byte"):
            read(tmp_path, data[:length])


def test_the_number_of_landmarks_is_checked(tmp_path):
    file = tmp_path / "validator.txt"
    file.write_bytes(file_bytes(VIEWS))
    with pytest.raises(ModelFileError, match="view 0: found 6, expected 5"):
        read_validator(file, num_landmarks=5)
    assert read_validator(file).mean.shape == (3, *PICTURE)


# In a model.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of six landmarks with one SVR expert each, and a validator."""
    modes = " ".join(["0.25"] * 18)
    pdm = f"18 1 6 {' '.join(map(str, range(18)))}\n18 1 6 {modes}\n1 1 6 4"
    (tmp_path / "pdm.txt").write_text(pdm)
    experts = "3 1 1 1\n2 0 1.0 2.0 3.0\n1 1 5 0.5\n" * 6
    views = f"0.5\n1\n3 1 6 0 0 0\n6 1 4 {'1 ' * 6}\n"
    (tmp_path / "svr.txt").write_text(views + experts)
    (tmp_path / "clm.txt").write_text("PDM pdm.txt\nPatchesIntensity svr.txt")
    (tmp_path / "validator.txt").write_bytes(file_bytes(VIEWS))
    main = "LandmarkDetector clm.txt\nDetectionValidator validator.txt"
    (tmp_path / "main.txt").write_text(main)
    return tmp_path


def test_main_file_brings_its_validator(folder):
    model = read_openface_model(folder / "main.txt")
    expected = read_validator(folder / "validator.txt")
    chex.assert_trees_all_equal(model.validator, expected)
    assert "validator   network of 3 views, 12 x 14 pixels" in describe_model(model)
    plain = read_openface_model(folder / "clm.txt")
    assert plain.validator is None and "validator   none" in describe_model(plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_through_our_own_file(folder, dtype):
    model = read_openface_model(folder / "main.txt", dtype)
    save_model(model, folder / "model.npz")
    again = read_model(folder / "model.npz")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    chex.assert_trees_all_equal(again, model)
    chex.assert_trees_all_equal_dtypes(again, model)


def test_missing_or_foreign_validator_is_an_error(folder):
    (folder / "pdm.txt").write_text("3 1 6 0 0 1  3 1 6 1 0 0  1 1 6 4")
    one = "3 1 1 1\n2 0 1.0 2.0 3.0\n1 1 5 0.5\n"
    (folder / "svr.txt").write_text(f"0.5\n1\n3 1 6 0 0 0\n1 1 4 1\n{one}")
    with pytest.raises(ModelFileError, match="found 6, expected 1, as in the model"):
        read_openface_model(folder / "main.txt")
    (folder / "validator.txt").unlink()
    with pytest.raises(ModelFileError) as caught:
        read_openface_model(folder / "main.txt")
    message = (
        f"{folder / 'main.txt'}, line 2, DetectionValidator: found 'validator.txt'"
    )
    assert message in str(caught.value)
