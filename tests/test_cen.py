"""CEN experts: networks against plain loops, and their files, whole and damaged."""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.app.info import describe_model
from jaxclnf.errors import ModelFileError
from jaxclnf.experts.cen import cen_responses, sparse_interpolation
from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import CENExperts, CENLayer
from jaxclnf.openface.cen_file import read_cen, read_early_termination
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.storage.npz import read_model, save_model
from tests import synthetic
from tests.test_openface_readers import (
    READERS,
    binary_matrix,
    pdm_file,
    refused,
    write,
)

TOL = 1e-12  # float64: some hundred roundings of numbers about 1
FLOAT32_TOL = 2e-5

NUM_LANDMARKS = 4
SIDE = 3
WINDOW = 5
VIEWS_DEGREES = ((0.0, 0.0, 0.0), (0.0, -30.0, 0.0), (0.0, 30.0, 0.0))
MIRROR_LANDMARK = (2, 1, 0, 3)
MIRROR_VIEW = (1, 2, 1)  # A frontal view is its own mirror, whatever is written here.
VISIBILITY = ((1, 1, 1, 1), (1, 1, 1, 0), (1, 1, 1, 1))
# Landmark 2 borrows from 0 in front, all of view 2 from view 1.
EMPTY = ((0, 2), (2, 0), (2, 1), (2, 2))
WIDTHS = (5, 4, 1)
FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}
CODES = {"sigmoid": 0, "linear": 1, "relu": 2}


class Network:
    """One expert, as the file has it: the first input is constant, then columns."""

    def __init__(self, seed: Any, widths: Sequence[int] = WIDTHS) -> None:
        rng = np.random.default_rng(seed)
        sizes = (SIDE**2 + 1, *widths)
        self.biases = [rng.normal(size=(num, 1)) for num in sizes[1:]]
        self.weights = [
            rng.normal(size=(num, inputs))
            for inputs, num in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        middle = rng.choice(["relu", "sigmoid", "linear"])
        self.activations = ["relu", str(middle), "sigmoid"][-len(widths) :]
        self.confidence = rng.uniform(0.1, 1)

    def packed(self, dtype: Any) -> bytes:
        data = struct.pack("<4i", 6, SIDE, SIDE, len(self.weights))
        for name, bias, weights in zip(
            self.activations, self.biases, self.weights, strict=True
        ):
            data += struct.pack("<i", CODES[name])
            data += binary_matrix(bias.astype(dtype))
            data += binary_matrix(weights.astype(dtype))
        return data + struct.pack("<d", self.confidence)

    def score(self, region: np.ndarray) -> float:
        """Of a region `[row, column]`."""
        pixels = region.T.reshape(-1)
        pixels = pixels - pixels.mean()
        norm = np.sqrt(np.sum(pixels**2))
        values = np.concatenate([[1.0], pixels / norm if norm > 0 else pixels])
        for name, bias, weights in zip(
            self.activations, self.biases, self.weights, strict=True
        ):
            values = FUNCTIONS[name](weights @ values + bias[:, 0])
        return float(values[0])


def networks() -> dict[tuple[int, int], Network]:
    """The experts by view and landmark; one is there, but marked as invisible."""
    return {
        at: Network(at)
        for at in np.ndindex(len(VIEWS_DEGREES), NUM_LANDMARKS)
        if at not in EMPTY
    }


def cen_file(
    *,
    dtype: Any = "f4",
    scaling: float = 0.5,
    mirror: Sequence[int] = MIRROR_LANDMARK,
    mirror_view: Sequence[int] = MIRROR_VIEW,
    **changed: Network | None,
) -> bytes:
    """A CEN file; `v0n1=...` changes an expert, None removes it."""
    experts: dict[tuple[int, int], Network | None] = {**networks()}
    experts |= {(int(key[1]), int(key[3])): one for key, one in changed.items()}
    data = struct.pack("<di", scaling, len(VIEWS_DEGREES))
    for center in VIEWS_DEGREES:
        data += binary_matrix(np.array(center)[:, None])
    for visible in VISIBILITY:
        data += binary_matrix(np.array(visible, np.int32)[:, None])
    data += binary_matrix(np.array([mirror], np.int32))
    data += binary_matrix(np.array([mirror_view], np.int32))
    for at in np.ndindex(len(VIEWS_DEGREES), NUM_LANDMARKS):
        expert = experts.get(at)
        absent = struct.pack("<4id", 6, SIDE, SIDE, 0, 0.0)
        data += absent if expert is None else expert.packed(dtype)
    return data


def served_by(view: int, landmark: int) -> tuple[tuple[int, int], bool]:
    """Whose network a landmark uses, and whether mirrored."""
    if (view, landmark) not in EMPTY:
        return (view, landmark), False
    return (0 if view == 0 else 3 - view, MIRROR_LANDMARK[landmark]), True


def expected_maps(view: int, areas: np.ndarray, *, dense: bool) -> np.ndarray:
    """The response maps from plain loops."""
    known = networks()
    maps = np.zeros((NUM_LANDMARKS, WINDOW, WINDOW))
    for i in range(NUM_LANDMARKS):
        if not VISIBILITY[view][i]:
            continue
        at, mirrored = served_by(view, i)
        area = areas[i][:, ::-1] if mirrored else areas[i]
        scores = np.full((WINDOW, WINDOW), np.nan)
        for x, y in np.ndindex(WINDOW, WINDOW):
            if dense or (x * WINDOW + y) % 2 == 1:
                region = area[y : y + SIDE, x : x + SIDE]
                scores[y, x] = known[at].score(region)
        padded = np.pad(scores, 1, constant_values=np.nan)
        around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2]]
        around = np.stack([*around, padded[1:-1, 2:]])
        if not dense:
            missing = np.isnan(scores)
            scores[missing] = np.nanmean(around[:, missing], axis=0)
        maps[i] = scores[:, ::-1] if mirrored else scores
    return maps


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cen"), cen_file(dtype="f8"))


@pytest.fixture(scope="module")
def experts(file: Path) -> CENExperts:
    return read_cen(file, np.float64)


@pytest.fixture(scope="module")
def areas() -> np.ndarray:
    side = WINDOW + SIDE - 1
    areas = np.random.default_rng(8).uniform(0, 255, (NUM_LANDMARKS, side, side))
    areas[1, :4, :5] = 0.0  # some regions without contrast ...
    areas[2, :, :4] = 200.3  # ... of any grey value
    return areas


compiled = jax.jit(cen_responses, static_argnames="dense")


# Response maps.


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("view", range(3))
def test_responses_against_loops(experts, areas, view, dense):
    maps = compiled(experts, jnp.asarray(view), jnp.asarray(areas), dense=dense)
    expected = expected_maps(view, np.round(areas, 12), dense=dense)
    np.testing.assert_allclose(maps, expected, rtol=0, atol=TOL)
    if view == 1:
        np.testing.assert_array_equal(maps[3], 0)  # invisible


def test_float32(file, areas):
    low = read_cen(file, np.float32)
    for view in range(3):
        for dense in (False, True):
            maps = compiled(
                low, jnp.asarray(view), jnp.asarray(areas, jnp.float32), dense=dense
            )
            assert maps.dtype == np.float32
            expected = expected_maps(view, areas, dense=dense)
            np.testing.assert_allclose(maps, expected, rtol=0, atol=FLOAT32_TOL)


@pytest.mark.parametrize("window", [3, 7, 11])
def test_interpolation(window):
    """What is computed stays; the others are means of two to four neighbours."""
    matrix = sparse_interpolation(window)
    assert matrix.shape == (window**2 // 2, window**2)
    np.testing.assert_array_equal(matrix[:, 1::2], np.eye(window**2 // 2))
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-15)
    numbers = np.sum(matrix > 0, axis=0).reshape(window, window)
    assert numbers[0, 0] == 2 and numbers[1, 1] == 4
    assert numbers[0, 2] == (2 if window == 3 else 3)
    # The same positions column by column.
    grid = matrix.reshape(-1, window, window)
    np.testing.assert_array_equal(grid.sum(axis=0), grid.sum(axis=0).T)
    for even in (0, 1, 4):
        with pytest.raises(ValueError, match=f"window_size is {even}"):
            sparse_interpolation(even)


def test_window_of_one_position(experts):
    area = np.random.default_rng(0).uniform(0, 255, (NUM_LANDMARKS, SIDE, SIDE))
    maps = cen_responses(experts, jnp.asarray(0), jnp.asarray(area))
    assert maps.shape == (NUM_LANDMARKS, 1, 1)
    score = networks()[0, 0].score(area[0])
    np.testing.assert_allclose(maps[0, 0, 0], score, rtol=0, atol=TOL)


def test_gain_and_offset_do_not_matter(experts, areas):
    view = jnp.asarray(0)
    plain = compiled(experts, view, jnp.asarray(areas))
    changed = compiled(experts, view, jnp.asarray(0.3 * areas + 20))
    np.testing.assert_allclose(changed, plain, rtol=0, atol=1e-10)


def test_each_face_its_own_view_under_vmap(experts, areas):
    views = jnp.asarray([2, 0, 1])
    many = jnp.stack([jnp.asarray(areas) + i for i in range(3)])
    batch = jax.jit(jax.vmap(cen_responses, (None, 0, 0)))(experts, views, many)
    for i in range(3):
        alone = compiled(experts, views[i], many[i])
        np.testing.assert_allclose(batch[i], alone, rtol=0, atol=TOL)


def test_derivatives_are_finite_where_there_is_no_contrast(experts, areas):
    gradient = jax.grad(lambda a: cen_responses(experts, jnp.asarray(0), a).sum())
    found = np.asarray(gradient(jnp.asarray(areas)))
    assert np.all(np.isfinite(found)) and np.any(found != 0)


def face_experts(pdm: Any, *, kinds: tuple[str, ...] = ("sigmoid",)) -> CENExperts:
    """One view of one-layer networks, every second landmark's mirrored."""
    n = pdm.num_landmarks
    dtype = pdm.mean_shape.dtype
    rng = np.random.default_rng(3)
    layer = CENLayer(
        weights=jnp.asarray(rng.normal(size=(n, 1, synthetic.SIDE**2)), dtype),
        bias=jnp.zeros((n, 1), dtype),
        activation=jnp.arange(n, dtype=jnp.int32) % len(kinds),
        activations=kinds,
    )
    return CENExperts(
        patch_scaling=jnp.asarray(0.35, dtype),
        view_centers=jnp.zeros((1, 3), dtype),
        visibility=jnp.ones((1, n), bool),
        network=jnp.arange(n, dtype=jnp.int32)[None],
        mirrored=jnp.arange(n)[None] % 2 == 1,
        layers=(layer,),
        confidence=jnp.linspace(0.1, 1.0, n, dtype=dtype)[None],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_response_maps_of_a_face(dtype):
    names = synthetic.example(dtype)
    experts = face_experts(names["pdm"])
    look = jax.jit(response_maps, static_argnames="window_size")
    found = look(names["pdm"], experts, jnp.asarray(names["image"]), names["params"], 7)
    maps = np.asarray(found.maps)
    assert maps.shape == (12, 7, 7) and maps.dtype == dtype
    assert np.all((maps > 0) & (maps < 1)) and np.all(maps.std(axis=(1, 2)) > 0.01)
    np.testing.assert_array_equal(found.confidence, experts.confidence[0])
    assert experts.support == synthetic.SIDE


# Files.


@pytest.mark.parametrize("stored", ["f4", "f8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_file_holds_what_was_written(tmp_path: Path, stored: str, dtype: type):
    experts = read_cen(write(tmp_path, cen_file(dtype=stored)), dtype)
    known = networks()
    order = list(known)
    assert experts.patch_scaling == 0.5 and experts.support == SIDE
    np.testing.assert_array_equal(experts.visibility, np.array(VISIBILITY, bool))
    degrees = np.rad2deg(np.asarray(experts.view_centers, np.float64))
    np.testing.assert_allclose(degrees, VIEWS_DEGREES, atol=1e-5)
    for layer, width in zip(experts.layers, WIDTHS, strict=True):
        assert layer.weights.shape[:2] == layer.bias.shape == (len(order), width)
        assert layer.weights.dtype == layer.bias.dtype == dtype
    for view, landmark in np.ndindex(len(VIEWS_DEGREES), NUM_LANDMARKS):
        at, mirrored = served_by(view, landmark)
        visible = bool(VISIBILITY[view][landmark])
        found = int(experts.network[view, landmark])
        assert found == (order.index(at) if visible else 0)
        assert bool(experts.mirrored[view, landmark]) == (mirrored and visible)
        assert experts.confidence[view, landmark] == dtype(known[at].confidence)
    for position, at in enumerate(order):
        for k, layer in enumerate(experts.layers):
            kind = layer.activations[int(layer.activation[position])]
            assert kind == known[at].activations[k]
        # Behind the first layer, as it is.
        weights = known[at].weights[1].astype(stored).astype(dtype)
        np.testing.assert_array_equal(experts.layers[1].weights[position], weights)
    assert experts.layers[0].activations == ("relu",)
    assert len(experts.layers[1].activations) > 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(experts))


def test_own_confidence_of_a_borrower(tmp_path: Path):
    data = cen_file()
    absent = struct.pack("<4id", 6, SIDE, SIDE, 0, 0.0)
    given = struct.pack("<4id", 6, SIDE, SIDE, 0, 0.25)
    experts = read_cen(write(tmp_path, data.replace(absent, given, 1)))
    assert experts.confidence[0, 2] == 0.25
    assert experts.confidence[2, 2] != 0.25


def test_truncated_files(tmp_path: Path):
    data = cen_file()
    for end in [*range(1, len(data), max(1, len(data) // 150)), len(data) - 1]:
        refused(read_cen, write(tmp_path, data[:end]))
    assert "end of the file" in refused(read_cen, write(tmp_path, data + b"\0"))


def test_not_a_model_file(tmp_path: Path):
    assert "no such file" in refused(read_cen, tmp_path / "file.dat")
    assert "folder" in refused(read_cen, tmp_path)
    refused(read_cen, write(tmp_path, b""))
    for read, content in READERS.values():
        refused(read_cen, write(tmp_path, content))
        refused(read, write(tmp_path, cen_file()))
    for junk in (bytes(1000), b"\xff" * 1000, np.random.default_rng(0).bytes(5000)):
        refused(read_cen, write(tmp_path, junk))


def test_damaged_bytes(tmp_path: Path):
    """Wherever 32 bits are wrong, the reader succeeds or explains."""
    data = cen_file()
    for place in range(0, len(data) - 4, 31):
        for junk in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4)):
            file = write(tmp_path, data[:place] + junk + data[place + 4 :])
            try:
                read_cen(file)
            except ModelFileError as error:
                assert str(file) in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mirror": (2, 1, 0, 4)}, "mirror landmarks: found 4"),
        ({"mirror": (2, 1, 0)}, "mirror landmarks: found a matrix of (1, 3)"),
        ({"mirror_view": (0, 2, -1)}, "mirror views: found -1"),
        ({"mirror_view": (0, 2, 1, 1)}, "mirror views: found a matrix of (1, 4)"),
        ({"v0n1": Network(0, (6, 4, 1))}, "found 9-5-4-1, 9-6-4-1, expected the same"),
        ({"v0n1": Network(0, (1,))}, "found 9-1, 9-5-4-1, expected the same"),
        ({"v0n1": Network(0, (5, 4, 2))}, "outputs of landmark 1 in view 0: found 2"),
        ({"v0n1": None}, "landmark 1 in view 0: found no expert"),
        ({"v0n0": None}, "landmark 0 in view 0: found no expert"),
        ({f"v{v}n{i}": None for v in range(3) for i in range(4)}, "found no expert"),
    ],
)
def test_inconsistent_files(tmp_path: Path, changes: dict, message: str):
    assert message in refused(read_cen, write(tmp_path, cen_file(**changes)))


def test_a_negative_confidence(tmp_path: Path):
    expert = Network((0, 1))
    expert.confidence = -0.5
    message = refused(read_cen, write(tmp_path, cen_file(v0n1=expert)))
    assert "confidence of landmark 1 in view 0: found -0.5" in message
    assert "expected a finite number of at least 0.0" in message


def test_wrong_numbers_are_named(tmp_path: Path):
    data = cen_file()
    first = data.index(struct.pack("<4i", 6, SIDE, SIDE, 3))
    for place, value, message in (
        (0, 5, "expert code of landmark 0 in view 0: found 5, expected 6"),
        (1, -1, "patch width"),
        (1, 0, "patch height"),
        (2, 4, "patch height of landmark 0 in view 0: found 4, expected 3"),
        (3, -1, "number of layers"),
        (4, 7, "activation of layer 0 of landmark 0 in view 0: found 7"),
        (6, 2, "bias of layer 0 of landmark 0 in view 0: found a matrix of (5, 2)"),
    ):
        at = first + 4 * place
        damaged = data[:at] + struct.pack("<i", value) + data[at + 4 :]
        assert message in refused(read_cen, write(tmp_path, damaged))


# Early termination.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_early_termination(tmp_path: Path, dtype: type):
    text = "1.0 1.1 0.9\n0.02 -0.03 0.01\n1e9 2 3"
    early = read_early_termination(write(tmp_path, text), 3, dtype)
    np.testing.assert_array_equal(early.weights, np.array([1.0, 1.1, 0.9], dtype))
    np.testing.assert_array_equal(early.biases, np.array([0.02, -0.03, 0.01], dtype))
    np.testing.assert_array_equal(early.cutoffs, np.array([1e9, 2, 3], dtype))
    assert early.cutoffs.dtype == dtype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1 1 0 0 0 2 2", "cutoff of view 2: found 0 numbers before the end"),
        ("1 1 1 0 0 0 2 2 2 2", "end of the file"),
        ("1 1 1 0 0 x 2 2 2", "bias of view 2: found 'x', expected a number"),
        ("1 nan 1 0 0 0 2 2 2", "weight of view 1: found nan"),
    ],
)
def test_damaged_early_termination(tmp_path: Path, text: str, message: str):
    read = lambda file: read_early_termination(file, 3)
    assert message in refused(read, write(tmp_path, text))


# Whole models.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pdm.txt").write_text(pdm_file(NUM_LANDMARKS))
    for scale in (0.25, 0.5):
        (tmp_path / f"cen_{scale}.dat").write_bytes(cen_file(scaling=scale))
    (tmp_path / "early.txt").write_text("1 1 1 0 0 0 2 2 2")
    (tmp_path / "cen.txt").write_text(
        "PDM pdm.txt\nPatchesIntensity absent.txt\nPatchesCCNF absent.txt\n"
        "PatchesCEN cen_0.25.dat\nPatchesCEN cen_0.5.dat\nEarlyTermination early.txt\n"
    )
    (tmp_path / "main_cen.txt").write_text("LandmarkDetector cen.txt\n")
    return tmp_path


def test_main_file_prefers_convolutional_experts(folder: Path):
    model = read_openface_model(folder / "main_cen.txt")
    assert [float(experts.patch_scaling) for experts in model.experts] == [0.25, 0.5]
    assert all(isinstance(experts, CENExperts) for experts in model.experts)
    assert model.early_termination is not None
    np.testing.assert_array_equal(model.early_termination.cutoffs, 2)
    assert model.prepared((7, 5)).early_termination is model.early_termination


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cen_0.5.dat", "gone.dat", "cen.txt, line 5, PatchesCEN: found 'gone.dat'"),
        ("early.txt", "gone.txt", "EarlyTermination: found 'gone.txt', no such file"),
        ("Early", "EarlyTermination early.txt\nEarly", "found 2 lines EarlyTermin"),
    ],
)
def test_main_file_that_does_not_fit(folder: Path, old: str, new: str, message: str):
    text = (folder / "cen.txt").read_text()
    (folder / "cen.txt").write_text(text.replace(old, new))
    with pytest.raises(ModelFileError) as caught:
        read_openface_model(folder / "main_cen.txt")
    assert message in str(caught.value)


def test_experts_for_other_landmarks(folder: Path):
    (folder / "pdm.txt").write_text(pdm_file(NUM_LANDMARKS + 1))
    with pytest.raises(ModelFileError, match="4 landmarks, expected 5, as in the PDM"):
        read_openface_model(folder / "main_cen.txt")


def test_our_own_model_file(folder: Path):
    model = read_openface_model(folder / "main_cen.txt")
    save_model(model, folder / "model.npz")
    again = read_model(folder / "model.npz")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, again, model)
    without = dataclasses.replace(model, early_termination=None)
    save_model(without, folder / "model.npz")
    assert read_model(folder / "model.npz").early_termination is None


def test_description(folder: Path):
    text = describe_model(read_openface_model(folder / "main_cen.txt"))
    assert "0.25 px/mm, 3 views, CEN with 8 networks of layers 5-4-1 on 3 x 3" in text
    assert "early termination" in text
