"""The convolutional face detector: layers, files and the cascade, on small networks.

The detectors here are made by hand: they take what is red for a face.
"""

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.signal import correlate2d

from jaxclnf.detect import mtcnn
from jaxclnf.detect.mtcnn import boxes_from_mtcnn, detect_faces_mtcnn, suppress
from jaxclnf.detect.mtcnn_network import (
    MTCNN,
    Convolution,
    Dense,
    Layer,
    MaxPooling,
    PReLU,
    apply_network,
    pooled_size,
)
from jaxclnf.errors import ModelFileError
from jaxclnf.openface.mtcnn_file import load_mtcnn, read_mtcnn

RED = (0, 0, 255)


# Networks made by hand.


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(offsets: tuple[float, ...]) -> np.ndarray:
    """Biases for: no face where the mean of red, from -1 to 1, is below 0."""
    return np.array([0, 0, *offsets], np.float32)


def red_dense(side: int, offsets: tuple[float, ...]) -> tuple[Layer, ...]:
    """A network that sees a face where the mean of red is large."""
    weights = np.zeros((side, side, 3, 6), np.float32)
    weights[:, :, 0, 1] = 20 / side**2
    return (Dense(weights=weights.reshape(-1, 6), bias=outputs(offsets)),)


def red_detector(
    rnet: tuple[float, ...] = (0, 0, 0, 0), onet: tuple[float, ...] = (0, 0, 0, 0)
) -> MTCNN:
    """A detector of red squares whose networks correct boxes by constants."""
    kernels = np.zeros((6, 6, 3, 6), np.float32)
    kernels[:, :, 0, 1] = 20 / 36
    pooling = MaxPooling(kernel=(2, 2), stride=(2, 2))
    bias = outputs((0, 0, 0, 0))
    return MTCNN(
        pnet=(pooling, Convolution(weights=kernels, bias=bias)),
        rnet=red_dense(24, rnet),
        onet=red_dense(48, onet),
    )


def red_square(x: int, y: int, side: int, height: int = 240, width: int = 320):
    image = np.zeros((height, width, 3), np.uint8)
    image[max(y, 0) : y + side, max(x, 0) : x + side] = RED
    return image


def raw(boxes: np.ndarray) -> np.ndarray:
    """The last network's boxes, as `x, y, x + width, y + height`."""
    size = boxes[:, 2:] / [1.0323, 0.7751]
    corner = boxes[:, :2] - np.array([-0.0075, 0.2459]) * size
    return np.concatenate([corner, corner + size], axis=1)


# Layers.


def test_convolution_correlates():
    maps, weights, bias = random(2, 7, 9, 3), random(2, 4, 3, 5, seed=1), random(5)
    found = apply_network((Convolution(weights=weights, bias=bias),), maps)
    assert found.shape == (2, 6, 6, 5) and found.dtype == np.float32
    for picture in range(2):
        for k in range(5):
            expected = bias[k] + sum(
                correlate2d(maps[picture, ..., c], weights[..., c, k], "valid")
                for c in range(3)
            )
            np.testing.assert_allclose(found[picture, ..., k], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (5, 6), (8, 9)])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (3, 2)])
def test_pooling_rounds_its_number_of_windows(
    size: tuple[int, int], kernel: tuple[int, int]
):
    maps = random(2, *size, 3)
    found = apply_network((MaxPooling(kernel=kernel, stride=(2, 2)),), maps)
    # Half a window more counts as a whole one.
    rows, columns = (-(-(s - k) // 2) + 1 for s, k in zip(size, kernel, strict=True))
    assert found.shape == (2, rows, columns, 3)
    for i, j in np.ndindex(rows, columns):
        window = maps[:, 2 * i : 2 * i + kernel[0], 2 * j : 2 * j + kernel[1]]
        np.testing.assert_array_equal(found[:, i, j], window.max(axis=(1, 2)))


def test_less_than_half_a_window_is_left_out():
    assert [pooled_size(size, 3, 3) for size in (3, 4, 5, 6)] == [1, 1, 2, 2]
    maps = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    found = apply_network((MaxPooling(kernel=(1, 3), stride=(1, 3)),), maps)
    assert found.tolist() == [[[[2.0]]]]


def test_prelu_scales_what_is_negative():
    maps = np.array([[[[-2, -2], [3, 3]]]], np.float32)
    slope = np.array([0.5, -1], np.float32)
    found = apply_network((PReLU(slope=slope),), maps)
    assert found.tolist() == [[[[-1, 2], [3, 3]]]]


def test_dense_for_each_position_or_for_all():
    maps, bias = random(3, 2, 4, 5), random(6)
    each, whole = random(5, 6, seed=1), random(40, 6, seed=2)
    found = apply_network((Dense(weights=each, bias=bias),), maps)
    np.testing.assert_allclose(found, maps @ each + bias, atol=1e-6)
    found = apply_network((Dense(weights=whole, bias=bias),), maps)
    np.testing.assert_allclose(found, maps.reshape(3, 40) @ whole + bias, atol=1e-5)
    again = (Dense(weights=whole, bias=bias), Dense(weights=each[:, :1], bias=bias[:1]))
    with pytest.raises(ValueError):
        apply_network(again, maps)


# The cascade.


def test_a_red_square_is_found():
    # As large as the smallest squares of the pyramid: in a larger one many boxes would
    # be wholly red, and rounding would decide which of them is kept first.
    image = red_square(90, 60, 60)
    boxes, confidences = detect_faces_mtcnn(red_detector(), image)
    assert boxes.dtype == confidences.dtype == np.float64
    assert boxes.shape == (len(confidences), 4)
    assert (confidences >= 0.7).all() and (confidences <= 1).all()
    first, last = raw(boxes)[:, :2], raw(boxes)[:, 2:]
    common = np.minimum(last, [150, 120]) - np.maximum(first, [90, 60])
    assert (common > 0).all()
    of_both = (last - first)[0].prod() + 60**2 - common[0].prod()
    assert common[0].prod() / of_both > 0.5


def test_channels_are_blue_green_red():
    image = red_square(90, 60, 100)
    assert len(detect_faces_mtcnn(red_detector(), image[..., ::-1])[0]) == 0
    grey = image[..., 2]
    np.testing.assert_array_equal(
        detect_faces_mtcnn(red_detector(), grey)[0],
        detect_faces_mtcnn(red_detector(), image)[0],
    )


def test_the_most_certain_face_comes_first():
    image = red_square(30, 40, 70) // 8 * 6 + red_square(200, 100, 70)
    for right, picture in ((True, image), (False, image[:, ::-1])):
        boxes, confidences = detect_faces_mtcnn(red_detector(), picture)
        assert (np.diff(confidences) <= 0).all() and confidences[0] > confidences[-1]
        is_right = boxes[:, 0] > 160
        assert is_right[0] == right and (is_right != right).any()


def test_last_corrections_are_fractions_of_the_patch():
    """A patch has one more row and column than the square it is cut out around."""
    image = red_square(90, 60, 100)
    offsets = np.array([0.1, -0.05, 0.2, -0.15])
    before = raw(detect_faces_mtcnn(red_detector(), image)[0])
    after = raw(detect_faces_mtcnn(red_detector(onet=tuple(offsets)), image)[0])
    side = (before[0, 2:] - before[0, :2])[0]
    np.testing.assert_allclose(after[0], before[0] + side * offsets, atol=1e-5)
    assert side == pytest.approx(round(side))


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        # The 12 x 12 pixels at scale 0.2, counted from 1: from 5 to 60.
        ((0, 0, 0, 0), (5, 5, 61, 61)),
        # 10.5 and 5, 55 wide and 27.5 high; the square begins at -8.75.
        ((0.1, 0, 0.1, -0.5), (10, -8, 66, 48)),
        # -0.5 and 0.6, 55 wide and high plus 4.4.
        ((-0.1, -0.08, -0.02, 0), (0, 0, 60, 60)),
    ],
)
def test_squares_have_whole_pixels(offsets: tuple[float, ...], expected: tuple):
    image = np.full((60, 60, 3), RED, np.uint8)
    boxes, _ = detect_faces_mtcnn(red_detector(rnet=offsets), image)
    np.testing.assert_allclose(raw(boxes), [expected], atol=1e-6)


def test_faces_beyond_the_border():
    image = red_square(-25, -25, 110)
    boxes, _ = detect_faces_mtcnn(red_detector(onet=(-0.4, 0, 0, 0)), image)
    assert boxes[0, 0] < 0


def test_memory_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (5, 6, 3), np.uint8), (150, 125))
    networks = red_detector(rnet=(0.01, 0.02, -0.03, 0.04))
    expected = detect_faces_mtcnn(networks, image, min_size=24)
    assert len(expected[0]) > 3
    monkeypatch.setattr(mtcnn, "_BATCH_PIXELS", 3 * 48**2)
    monkeypatch.setattr(mtcnn, "_BAND_PIXELS", 1500)
    found = detect_faces_mtcnn(networks, image, min_size=24)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("height", range(12, 20))
def test_bands_of_the_first_network(height: int, monkeypatch):
    level = random(height, 15, 3)
    pnet = red_detector().pnet
    expected = apply_network(pnet, level[None])[0]
    for rows in (1, 2, 3):
        monkeypatch.setattr(mtcnn, "_BAND_PIXELS", rows * 2 * 15)
        np.testing.assert_allclose(mtcnn._slide(pnet, level), expected, atol=1e-6)


@pytest.mark.parametrize("side", [24, 48])
@pytest.mark.parametrize(
    "square",
    [
        (20, 30, 60),
        (20, 30, 47),
        (20, 30, 9),
        (-13, -9, 40),
        (80, 70, 55),
        (-30, -40, 300),
        (500, -600, 31),
    ],
)
def test_patches_are_those_of_opencv(square: tuple[int, int, int], side: int):
    image = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
    x, y, size = square
    border = 700
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    patch = padded[border + y - 1 :, border + x - 1 :][: size + 1, : size + 1]
    expected = cv2.resize(patch.astype(np.float32), (side, side))[..., ::-1]
    found = mtcnn._patches(image, np.array([[x, y, size, size]], np.float64), side)
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


def test_levels_of_the_pyramid():
    image = np.random.default_rng(0).integers(0, 256, (130, 200, 3), np.uint8)
    levels = list(mtcnn._pyramid(image, 60))
    assert [scale for scale, _ in levels] == pytest.approx(
        [0.2, 0.2 * 0.709, 0.2 * 0.709**2]
    )
    assert [level.shape[:2] for _, level in levels] == [(26, 40), (19, 29), (14, 21)]
    for _, level in levels:
        expected = cv2.resize(image.astype(np.float32), level.shape[1::-1])
        expected = (expected[..., ::-1] - 127.5) / 128
        np.testing.assert_allclose(level, expected, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(0, 0, 3), (0, 5), (1, 500, 3), (59, 400), (60, 60, 3), (200, 200, 3)]
)
def test_no_face_gives_no_rows(shape: tuple[int, ...]):
    boxes, confidences = detect_faces_mtcnn(red_detector(), np.zeros(shape, np.uint8))
    assert boxes.shape == (0, 4) and confidences.shape == (0,)
    assert boxes.dtype == confidences.dtype == np.float64


def test_smallest_picture():
    image = np.full((60, 60, 3), RED, np.uint8)
    assert len(detect_faces_mtcnn(red_detector(), image)[0]) == 1
    assert len(detect_faces_mtcnn(red_detector(), image[1:])[0]) == 0


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((60, 60, 4), np.uint8),
        np.zeros((60, 60, 1), np.uint8),
        np.zeros(60, np.uint8),
        np.zeros((2, 60, 60, 3), np.uint8),
        np.zeros((60, 60, 3), np.float32),
    ],
)
def test_other_pictures_are_refused(image: np.ndarray):
    with pytest.raises(ValueError, match="uint8 picture") as caught:
        detect_faces_mtcnn(red_detector(), image)
    assert str(image.dtype) in str(caught.value)
    assert str(image.shape) in str(caught.value)


def test_min_size():
    with pytest.raises(ValueError, match="at least 12 pixels, not 11"):
        detect_faces_mtcnn(red_detector(), np.zeros((60, 60, 3), np.uint8), min_size=11)
    image = red_square(150, 100, 20)
    assert len(detect_faces_mtcnn(red_detector(), image)[0]) == 0
    boxes, _ = detect_faces_mtcnn(red_detector(), image, min_size=16)
    assert len(boxes)


@pytest.mark.parametrize("size", [1e12, 1e30, -1e30, -1])
def test_absurd_corrections_do_no_harm(size: float):
    image = red_square(90, 60, 100)
    for offsets in ((0, 0, size, size), (size, 0, 0, 0), (-size, -size, size, size)):
        for networks in (red_detector(rnet=offsets), red_detector(onet=offsets)):
            boxes, _ = detect_faces_mtcnn(networks, image)
            assert np.isfinite(boxes).all()


def test_numbers_beyond_float32_are_no_face():
    networks = red_detector()
    huge = Dense(weights=np.full((6, 6), 1e30, np.float32), bias=random(6))
    for name in ("pnet", "rnet", "onet"):
        layers = (*getattr(networks, name), huge, huge)
        broken = dataclasses.replace(networks, **{name: layers})
        assert len(detect_faces_mtcnn(broken, red_square(90, 60, 100))[0]) == 0


def test_boxes_around_landmarks():
    assert boxes_from_mtcnn(np.empty((0, 4))).shape == (0, 4)
    np.testing.assert_allclose(
        boxes_from_mtcnn(np.array([[10, 20, 100, 200]])),
        [[10 - 0.75, 20 + 49.18, 103.23, 155.02]],
    )


# Suppression.


def kept(boxes: list, scores: list, threshold: float, **kwargs) -> list[int]:
    rows = np.array(boxes, np.float64).reshape(-1, 4)
    return suppress(rows, np.array(scores, np.float64), threshold, **kwargs).tolist()


def test_suppression_of_nothing():
    assert kept([], [], 0.5) == []
    assert kept([[0, 0, 5, 5]], [0.1], 0.5) == [0]


def test_overlap_of_both():
    boxes = [[0, 0, 10, 10], [5, 0, 10, 10]]  # A third in common.
    assert kept(boxes, [1, 2], 0.3) == [1]
    assert kept(boxes, [2, 1], 0.3) == [0]
    assert kept(boxes, [1, 2], 0.34) == [1, 0]
    assert kept([[0, 0, 10, 10], [0, 5, 10, 5]], [1, 2], 0.5) == [1, 0]


def test_overlap_of_the_smaller():
    boxes = [[0, 0, 20, 20], [0, 0, 10, 10], [15, 15, 10, 10]]
    assert kept(boxes, [3, 2, 1], 0.5) == [0, 1, 2]
    assert kept(boxes, [3, 2, 1], 0.5, of_smaller=True) == [0, 2]
    assert kept(boxes, [1, 2, 3], 0.5, of_smaller=True) == [2, 1]


def test_a_suppressed_box_suppresses_nothing():
    boxes = [[0, 0, 10, 10], [4, 0, 10, 10], [8, 0, 10, 10]]
    assert kept(boxes, [3, 2, 1], 0.4) == [0, 2]
    assert kept(boxes, [1, 3, 2], 0.4) == [1]


def test_equal_scores_and_whole_pixels():
    assert kept([[0, 0, 9, 9], [0, 0, 9, 9], [50, 0, 9, 9]], [1, 1, 1], 0.5) == [0, 2]
    # Rounded, these have half of their area in common; exactly, more.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5.4]]
    assert kept(boxes, [2, 1], 0.5) == [0, 1]
    assert kept([[0, 0, 0, 0], [0, 0, 0, 0]], [2, 1], 0.5) == [0, 1]


# Files.


def matrix(array: np.ndarray) -> bytes:
    code = {"f4": 5, "f8": 6}[array.dtype.str[1:]]
    return struct.pack("<3i", *array.shape, code) + array.tobytes()


def convolution(weights: np.ndarray, bias: np.ndarray) -> bytes:
    """`weights` are `[row, column, input, output]`."""
    maps, num_out = weights.shape[2:]
    data = struct.pack("<3i", 0, maps, num_out) + bias.astype("<f4").tobytes()
    for at in np.ndindex(maps, num_out):
        data += matrix(np.ascontiguousarray(weights[(..., *at)]))
    return data


def pooling(across: int, down: int, step_across: int, step_down: int) -> bytes:
    return struct.pack("<5i", 1, across, down, step_across, step_down)


def dense(weights: np.ndarray, bias: np.ndarray) -> bytes:
    return struct.pack("<i", 2) + matrix(bias[:, None]) + matrix(weights)


def prelu(slope: np.ndarray) -> bytes:
    return struct.pack("<i", 3) + matrix(slope[:, None])


def network(*layers: bytes) -> bytes:
    return struct.pack("<i", len(layers)) + b"".join(layers)


def small_pnet() -> tuple[bytes, ...]:
    return (
        convolution(random(3, 3, 3, 2), random(2)),
        prelu(random(2)),
        pooling(2, 2, 2, 2),
        convolution(random(5, 5, 2, 4), random(4)),
        dense(random(4, 6), random(6)),
    )


def small_rnet() -> tuple[bytes, ...]:
    return (
        convolution(random(3, 2, 3, 2), random(2)),
        pooling(5, 4, 5, 4),
        dense(random(2 * 6 * 5, 7).astype(np.float64), random(7)),
        dense(random(7, 6), random(6)),
    )


def small_onet() -> tuple[bytes, ...]:
    return pooling(8, 8, 8, 8), dense(random(3 * 6 * 6, 16), random(16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a detector of small random networks."""
    folder = tmp_path / "model" / "mtcnn_detector"
    folder.mkdir(parents=True)
    (folder / "MTCNN_detector.txt").write_bytes(
        b"# Networks\r\nPNet PNet.dat\r\n\r\nRNet RNet.dat\r\nONet ONet.dat"
    )
    (folder / "PNet.dat").write_bytes(network(*small_pnet()))
    (folder / "RNet.dat").write_bytes(network(*small_rnet()))
    (folder / "ONet.dat").write_bytes(network(*small_onet()))
    return folder


def refused(read: Callable, path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read(path)
    message = str(caught.value)
    assert "found" in message and "expected" in message
    return message


def test_networks_hold_what_was_written(folder: Path):
    networks = read_mtcnn(folder / "MTCNN_detector.txt")
    first, slopes, halve, second, last = networks.pnet
    assert isinstance(first, Convolution) and isinstance(second, Convolution)
    np.testing.assert_array_equal(first.weights, random(3, 3, 3, 2))
    np.testing.assert_array_equal(second.weights, random(5, 5, 2, 4))
    np.testing.assert_array_equal(second.bias, random(4))
    assert isinstance(slopes, PReLU) and isinstance(last, Dense)
    np.testing.assert_array_equal(slopes.slope, random(2))
    np.testing.assert_array_equal(last.weights, random(4, 6))
    np.testing.assert_array_equal(last.bias, random(6))
    assert isinstance(halve, MaxPooling)
    assert halve.kernel == halve.stride == (2, 2)
    assert isinstance(networks.rnet[1], MaxPooling)
    assert networks.rnet[1].kernel == networks.rnet[1].stride == (4, 5)
    for layers in (networks.pnet, networks.rnet, networks.onet):
        for layer in layers:
            for array in vars(layer).values():
                assert isinstance(array, tuple) or array.dtype == np.float32


def test_maps_are_flattened_column_by_column(folder: Path):
    networks = read_mtcnn(folder / "MTCNN_detector.txt")
    maps = random(2, 24, 24, 3)
    pooled = apply_network(networks.rnet[:2], maps)
    assert pooled.shape == (2, 6, 5, 2)
    flat = pooled.transpose(0, 3, 2, 1).reshape(2, -1)
    expected = flat @ random(60, 7) + random(7)
    np.testing.assert_allclose(
        apply_network(networks.rnet[:3], maps), expected, atol=1e-5
    )


def test_random_networks_detect(folder: Path):
    image = np.random.default_rng(0).integers(0, 256, (150, 120, 3), np.uint8)
    boxes, confidences = detect_faces_mtcnn(load_mtcnn(folder), image, min_size=20)
    assert boxes.shape == (len(confidences), 4)
    assert (np.diff(confidences) <= 0).all() and (confidences >= 0.7).all()


def test_detector_of_an_openface_folder(folder: Path):
    expected = read_mtcnn(folder / "MTCNN_detector.txt")
    for path in (folder, folder.parent, str(folder / "MTCNN_detector.txt")):
        found = load_mtcnn(path)
        assert [len(n) for n in vars(found).values()] == [5, 4, 2]
        assert isinstance(found.onet[1], Dense) and isinstance(expected.onet[1], Dense)
        np.testing.assert_array_equal(found.onet[1].weights, expected.onet[1].weights)
    message = refused(load_mtcnn, folder.parents[1])
    assert message.startswith(str(folder.parents[1])) and "MTCNN_detector" in message
    assert "no such file" in refused(load_mtcnn, folder / "absent.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("\n# nothing\n", "found no line"),
        ("PNet PNet.dat\nQNet RNet.dat", "line 2: found 'QNet'"),
        ("PNet PNet.dat\nRNet RNet.dat", "found 0 lines ONet"),
        ("PNet PNet.dat\nPNet PNet.dat", "found 2 lines PNet"),
        ("PNet PNet.dat\nRNet absent.dat\nONet ONet.dat", "line 2, RNet: found 'abs"),
        ("PNet\nRNet RNet.dat\nONet ONet.dat", "line 1, PNet: found ''"),
        ("PNet .\nRNet RNet.dat\nONet ONet.dat", "line 1, PNet: found '.'"),
        ("PNet\0", "binary data"),
    ],
)
def test_damaged_list(folder: Path, text: str, message: str):
    (folder / "MTCNN_detector.txt").write_text(text)
    assert message in refused(load_mtcnn, folder)


def replaced(layers: tuple[bytes, ...], index: int, layer: bytes) -> bytes:
    return network(*layers[:index], layer, *layers[index + 1 :])


NAN = np.array([np.nan, 0], np.float32)
DAMAGED = {
    "no layers": ("PNet", network(), "number of layers: found 0"),
    "kind": (
        "PNet",
        replaced(small_pnet(), 1, struct.pack("<i", 4)),
        "kind of layer 1: found 4, expected a number from 0 to 3",
    ),
    "end": ("RNet", network(*small_rnet()) + b"\0", "found 1 more bytes"),
    "maps": (
        "PNet",
        replaced(small_pnet(), 0, convolution(random(3, 3, 4, 2), random(2))),
        "input maps of layer 0: found 4, expected 3",
    ),
    "kernels": (
        "PNet",
        replaced(small_pnet(), 0, struct.pack("<3i", 0, 3, 0)),
        "kernels of layer 0: found 0",
    ),
    "many kernels": (
        "PNet",
        replaced(small_pnet(), 0, struct.pack("<3i", 0, 3, 9999)),
        "expected 39996 bytes",
    ),
    "biases": (
        "PNet",
        replaced(small_pnet(), 0, convolution(random(3, 3, 3, 2), NAN)),
        "biases of layer 0: found nan",
    ),
    "kernel sizes": (
        "PNet",
        replaced(
            small_pnet(),
            0,
            convolution(random(3, 3, 3, 1), random(1))[:-48] + matrix(random(3, 2)),
        ),
        "kernel of layer 0: number of columns: found 2, expected 3",
    ),
    "large kernels": (
        "PNet",
        replaced(small_pnet(), 3, convolution(random(6, 5, 2, 4), random(4))),
        "kernel of layer 3: found 6 x 5, expected at most 5 x 5",
    ),
    "infinite weights": (
        "PNet",
        replaced(small_pnet(), 4, dense(np.full((4, 6), np.inf), random(6))),
        "weights of layer 4: found inf",
    ),
    "pooling": (
        "RNet",
        replaced(small_rnet(), 1, pooling(24, 4, 5, 4)),
        "kernel width of layer 1: found 24, expected a number from 1 to 23",
    ),
    "stride": (
        "RNet",
        replaced(small_rnet(), 1, pooling(5, 4, 5, 5)),
        "stride down of layer 1: found 5, expected a number from 1 to 4",
    ),
    "no stride": (
        "RNet",
        replaced(small_rnet(), 1, pooling(5, 4, 0, 4)),
        "stride across of layer 1: found 0",
    ),
    "inputs": (
        "RNet",
        replaced(small_rnet(), 2, dense(random(61, 7), random(7))),
        "inputs of layer 2: found 61, expected 2 or 60",
    ),
    "outputs of a dense layer": (
        "RNet",
        replaced(small_rnet(), 2, dense(random(60, 7), random(6))),
        "weights of layer 2: number of columns: found 7, expected 6",
    ),
    "slopes": (
        "PNet",
        replaced(small_pnet(), 1, prelu(random(3))),
        "slopes of layer 1: number of rows: found 3, expected 2",
    ),
    "outputs": (
        "ONet",
        replaced(small_onet(), 1, dense(random(108, 5), random(5))),
        "outputs for 48 x 48 pixels: found 1 x 1 x 5, expected 1 x 1 x 6 or more",
    ),
    "positions": (
        "ONet",
        replaced(small_onet(), 1, dense(random(3, 6), random(6))),
        "found 6 x 6 x 6",
    ),
    "positions of the first network": (
        "PNet",
        network(pooling(2, 2, 2, 2), dense(random(108, 6), random(6))),
        "inputs of layer 1: found 108, expected 3, one for each map",
    ),
    "stride of the first network": (
        "PNet",
        network(convolution(random(12, 12, 3, 6), random(6))),
        "strides of all pooling layers: found (1, 1), expected 2 down and across",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_network(folder: Path, name: str):
    which, data, message = DAMAGED[name]
    file = folder / f"{which}.dat"
    file.write_bytes(data)
    text = refused(load_mtcnn, folder)
    assert message in text and text.startswith(str(file))


@pytest.mark.parametrize("which", ["PNet", "RNet", "ONet"])
def test_incomplete_network(folder: Path, which: str):
    file = folder / f"{which}.dat"
    data = file.read_bytes()
    lengths = np.random.default_rng(0).integers(1, len(data), 20)
    for length in (*lengths.tolist(), 1, 4, 8, len(data) - 1):
        file.write_bytes(data[:length])
        assert f"{which}.dat" in refused(load_mtcnn, folder)
