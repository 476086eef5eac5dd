"""OpenFace's files: small synthetic ones, whole and damaged, and the published ones."""

import functools
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxclnf.errors import MAX_FILE_BYTES, ModelFileError
from jaxclnf.experts.types import CCNFExperts, SVRExperts
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.openface.ccnf_file import read_ccnf
from jaxclnf.openface.main_file import read_openface_model, read_openface_pdm
from jaxclnf.openface.pdm_file import read_pdm
from jaxclnf.openface.svr_file import read_svr
from jaxclnf.openface.triangulation_file import read_triangulations

NUM_LANDMARKS = 3
SIDE = 3
VIEWS_DEGREES = ((0.0, 0.0, 0.0), (0.0, 30.0, -90.0))
VISIBILITY = ((1, 1, 1), (1, 0, 1))


# Writers, from the format descriptions.


def binary_matrix(array: np.ndarray) -> bytes:
    code = {"u1": 0, "i4": 4, "f4": 5, "f8": 6}[array.dtype.str[1:]]
    return struct.pack("<3i", *array.shape, code) + array.tobytes()


def text_matrix(array: np.ndarray) -> str:
    code = 4 if array.dtype.kind == "i" else 6
    rows = "\n".join(" ".join(repr(x) for x in row) for row in array.tolist())
    return f"{array.shape[0]}\n{array.shape[1]}\n{code}\n{rows}\n"


def binary_views(scaling: float = 0.5) -> bytes:
    centers = [np.array(center)[:, None] for center in VIEWS_DEGREES]
    visibility = [np.array(visible, np.int32)[:, None] for visible in VISIBILITY]
    return struct.pack("<di", scaling, len(centers)) + b"".join(
        binary_matrix(m) for m in (*centers, *visibility)
    )


def ccnf_arrays(num_neurons: int = 2, num_components: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (len(VISIBILITY), NUM_LANDMARKS)
    return {
        "weights": rng.normal(size=(*shape, num_neurons, SIDE, SIDE)).astype("f4"),
        "norm_weights": rng.normal(size=(*shape, num_neurons)),
        "bias": rng.normal(size=(*shape, num_neurons)),
        "alpha": rng.uniform(size=(*shape, num_neurons)),
        "beta": rng.uniform(size=(*shape, num_components)),
        "confidence": rng.uniform(size=shape),
    }


def ccnf_expert(
    arrays: dict[str, np.ndarray], at: tuple[int, int], num: int, neuron_type: int = 0
) -> bytes:
    weights = arrays["weights"][at]
    data = struct.pack("<4i", 5, *weights.shape[1:], num)
    for i in range(num):
        numbers = [arrays[name][at][i] for name in ("norm_weights", "bias", "alpha")]
        data += struct.pack("<2i3d", 2, neuron_type, *numbers)
        data += binary_matrix(weights[i])
    return data + arrays["beta"][at].tobytes() + arrays["confidence"][at].tobytes()


def ccnf_components(sizes: tuple[int, ...], num: int) -> bytes:
    data = struct.pack("<i", len(sizes))
    for size in sizes:
        data += struct.pack("<2i", size, num)
        for k in range(num):
            data += binary_matrix((k + 1) * np.eye(size**2, dtype="f4"))
    return data


def ccnf_file(
    num_components: int = 2, neuron_type: int = 0, short: tuple[int, int] | None = None
) -> bytes:
    """A CCNF file; the expert at `short` has only the first of its neurons."""
    arrays = ccnf_arrays(num_components=num_components)
    data = binary_views() + ccnf_components((3, 1), num_components)
    for at in np.ndindex(arrays["confidence"].shape):
        if not VISIBILITY[at[0]][at[1]]:
            data += struct.pack("<5i", 5, 0, 0, 0, 0)
        else:
            data += ccnf_expert(arrays, at, 1 if at == short else 2, neuron_type)
    return data


def svr_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (len(VISIBILITY), NUM_LANDMARKS)
    return {
        "weights": rng.normal(size=(*shape, 2, SIDE, SIDE)),
        "scaling": rng.normal(size=(*shape, 2)),
        "bias": rng.normal(size=(*shape, 2)),
        "confidence": rng.uniform(size=(*shape, 2)),
    }


def svr_expert(
    arrays: dict[str, np.ndarray], at: tuple[int, int], types: tuple[int, ...]
) -> str:
    text = f"3 {SIDE} {SIDE} {len(types)}\n"
    for i, kind in enumerate(types):
        numbers = [arrays[name][at][i] for name in ("confidence", "scaling", "bias")]
        text += f"2 {kind} {' '.join(str(float(x)) for x in numbers)} "
        text += text_matrix(arrays["weights"][at][i].T)
    return text


def svr_file(types: tuple[tuple[int, ...], ...] = ((0, 1),) * 5) -> str:
    """An SVR file; `types` are the modalities of each visible landmark."""
    arrays = svr_arrays()
    text = "# scaling\n0.5\n# views\n2\n# centres\n"
    text += "".join(text_matrix(np.array(c)[:, None]) for c in VIEWS_DEGREES)
    text += "# visibilities\n"
    text += "".join(text_matrix(np.array(v)[:, None]) for v in VISIBILITY)
    text += "# experts\n"
    remaining = iter(types)
    for at in np.ndindex(arrays["bias"].shape[:2]):
        visible = VISIBILITY[at[0]][at[1]]
        text += svr_expert(arrays, at, next(remaining)) if visible else "3 0 0 0\n"
    return text


def pdm_arrays(num_landmarks: int = NUM_LANDMARKS) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(2)
    size = 3 * num_landmarks
    return rng.normal(size=(size, 1)), rng.normal(size=(size, 2)), np.array([[9.0, 4]])


def pdm_file(num_landmarks: int = NUM_LANDMARKS) -> str:
    mean, modes, variances = map(text_matrix, pdm_arrays(num_landmarks))
    return f"# The mean\n{mean}\n# The components\n{modes}# Variances\n{variances}\n\n"


TRIANGLES = "# views\n2\n# one\n1\n3\n4\n0 1 2 \n# two\n2\n3\n4\n0 1 2 \n2 1 0 "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model with parts, two folders below its licence."""
    root = tmp_path / "openface" / "model"
    part = root / "part"
    for directory in (root / "pdms", root / "experts", part):
        directory.mkdir(parents=True)
    (root.parent / "OpenFace-license.txt").write_text("For research only.\n")
    (root.parent / "Copyright.txt").write_bytes("\xa9 Baltru\x9aaitis".encode("latin1"))
    (root / "pdms" / "pdm.txt").write_text(pdm_file())
    (root / "tris.txt").write_text(TRIANGLES)
    for scale in (0.25, 0.5):
        views = binary_views()
        data = binary_views(scale) + ccnf_file()[len(views) :]
        (root / "experts" / f"ccnf_{scale}.txt").write_bytes(data)
    (root / "experts" / "svr.txt").write_text(svr_file())
    (root / "clnf.txt").write_bytes(
        b"PDM pdms/pdm.txt\r\nTriangulations tris.txt\r\n\r\n"
        b"PatchesIntensity experts/svr.txt\r\n"
        b"PatchesCCNF experts/ccnf_0.25.txt\r\nPatchesCCNF experts\\ccnf_0.5.txt"
    )
    (root / "clm.txt").write_text(
        "PDM pdms/pdm.txt\nPatchesIntensity experts/svr.txt\nEarlyTermination no.txt\n"
    )
    (root / "main_clnf.txt").write_text(
        "LandmarkDetector clnf.txt\nLandmarkDetector_part part/main_eye.txt eye 2 0 1 2"
        "\nFaceDetConversion absent.txt"
    )
    (part / "main_eye.txt").write_text("LandmarkDetector ../clm.txt \n")
    return root


def write(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "file.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


# Whole files.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pdm_is_reshaped(tmp_path: Path, dtype: type):
    pdm = read_pdm(write(tmp_path, pdm_file()), dtype)
    mean, modes, variances = pdm_arrays()
    for i in range(NUM_LANDMARKS):
        for axis in range(3):
            row = axis * NUM_LANDMARKS + i
            assert pdm.mean_shape[i, axis] == mean[row, 0].astype(dtype)
            np.testing.assert_array_equal(
                pdm.princ_comp[i, axis], modes[row].astype(dtype)
            )
    np.testing.assert_array_equal(pdm.eigen_values, variances[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(pdm)} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ccnf_holds_what_was_written(tmp_path: Path, dtype: type):
    experts = read_ccnf(write(tmp_path, ccnf_file()), dtype)
    visible = np.array(VISIBILITY, bool)
    for name, array in ccnf_arrays().items():
        mask = visible.reshape(visible.shape + (1,) * (array.ndim - 2))
        expected = np.where(mask, array, 0).astype(dtype)
        np.testing.assert_array_equal(getattr(experts, name), expected, name)
        assert getattr(experts, name).dtype == dtype
    assert experts.patch_scaling == dtype(0.5) and experts.patch_scaling.shape == ()
    np.testing.assert_array_equal(experts.visibility, visible)
    assert experts.visibility.dtype == bool
    degrees = np.rad2deg(np.asarray(experts.view_centers, np.float64))
    np.testing.assert_allclose(degrees, VIEWS_DEGREES, atol=1e-5)
    assert experts.sigma == {}
    assert experts.neighbours.keys() == {1, 3}
    expected = np.stack([np.eye(9), 2 * np.eye(9)]).astype(dtype)
    np.testing.assert_array_equal(experts.neighbours[3], expected)


def test_ccnf_without_components(tmp_path: Path):
    experts = read_ccnf(write(tmp_path, ccnf_file(num_components=0)))
    assert experts.neighbours == {}
    assert experts.beta.shape == (2, NUM_LANDMARKS, 0)


def test_ccnf_pads_missing_neurons(tmp_path: Path):
    experts = read_ccnf(write(tmp_path, ccnf_file(short=(1, 2))))
    full = read_ccnf(write(tmp_path, ccnf_file()))
    assert experts.alpha[1, 2, 1] == 0 and not experts.weights[1, 2, 1].any()
    assert experts.alpha[1, 2, 0] == full.alpha[1, 2, 0]
    np.testing.assert_array_equal(experts.weights[0], full.weights[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_svr_holds_what_was_written(tmp_path: Path, dtype: type):
    experts = read_svr(write(tmp_path, svr_file()), dtype)
    visible = np.array(VISIBILITY, bool)
    arrays = svr_arrays()
    arrays["confidence"] = arrays["confidence"].sum(axis=-1)
    for name, array in arrays.items():
        mask = visible.reshape(visible.shape + (1,) * (array.ndim - 2))
        expected = np.where(mask, array, 0).astype(dtype)
        np.testing.assert_array_equal(getattr(experts, name), expected, name)
        assert getattr(experts, name).dtype == dtype
    np.testing.assert_array_equal(experts.visibility, visible)
    assert experts.modalities == ("grey", "gradient")


def test_triangulations(tmp_path: Path):
    first, second = read_triangulations(write(tmp_path, TRIANGLES))
    assert first.tolist() == [[0, 1, 2]]
    assert second.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert first.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_main_file(folder: Path, dtype: type):
    model = read_openface_model(folder / "main_clnf.txt", dtype)
    assert [float(e.patch_scaling) for e in model.experts] == [0.25, 0.5]
    assert all(isinstance(e, CCNFExperts) for e in model.experts)
    assert len(model.triangulations) == 2
    (part,) = model.parts
    assert part.name == "eye"
    assert part.main_index.tolist() == [2, 1] and part.part_index.tolist() == [0, 2]
    assert isinstance(part.model.experts[0], SVRExperts)
    types = {leaf.dtype for leaf in jax.tree.leaves(model)}
    assert types == {np.dtype(dtype), np.dtype(bool), np.dtype(np.int32)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model))


def test_main_file_says_where_the_model_comes_from(folder: Path):
    info = read_openface_model(folder / "main_clnf.txt").info
    assert info.name == "clnf"
    assert info.provenance == "OpenFace 2.x model file main_clnf.txt"
    assert info.licence == "For research only.\n\n© Baltrušaitis"


def test_licence_in_short_where_there_is_none(folder: Path):
    for file in folder.parent.glob("*.txt"):
        file.unlink()
    model = read_openface_model(folder / "main_clnf.txt")
    assert "non-commercial" in model.info.licence


def test_detector_file_alone(folder: Path):
    model = read_openface_model(folder / "clm.txt")
    assert model.info.name == "clm"
    assert model.parts == () and model.triangulations == ()


def test_float64_without_x64_is_float32(folder: Path):
    with jax.enable_x64(False):
        model = read_openface_model(folder / "main_clnf.txt", np.float64)
    assert model.pdm.mean_shape.dtype == np.float32


# Damaged files.

READERS: dict[str, tuple[Callable, str | bytes]] = {
    "pdm": (read_pdm, pdm_file()),
    "ccnf": (read_ccnf, ccnf_file()),
    "svr": (read_svr, svr_file()),
    "triangulations": (read_triangulations, TRIANGLES),
}
EVERY_READER = pytest.mark.parametrize("kind", READERS)


def refused(read: Callable, file: Path) -> str:
    """The message of the error that reading must end in."""
    with pytest.raises(ModelFileError) as caught:
        read(file)
    message = str(caught.value)
    assert str(file) in message and "found" in message and "expected" in message
    return message


@EVERY_READER
def test_truncated_files(tmp_path: Path, kind: str):
    read, content = READERS[kind]
    text = content.rstrip() if isinstance(content, str) else content
    data = text.encode() if isinstance(text, str) else text
    # In text, half of the last number may still be a number.
    ends = [*range(1, len(data) - 20, max(1, len(data) // 150))]
    ends += [len(data) - 1] if isinstance(content, bytes) else []
    for end in ends:
        refused(read, write(tmp_path, data[:end]))


@EVERY_READER
def test_more_than_expected(tmp_path: Path, kind: str):
    read, content = READERS[kind]
    more = content + b"\0" if isinstance(content, bytes) else content + "\n1"
    assert "end of the file" in refused(read, write(tmp_path, more))


@EVERY_READER
def test_not_a_model_file(tmp_path: Path, kind: str):
    read, _ = READERS[kind]
    file = tmp_path / "file.txt"
    assert "no such file" in refused(read, file)
    refused(read, tmp_path / ("n" * 300))
    assert "folder" in refused(read, tmp_path)
    assert "empty" in refused(read, write(tmp_path, b""))
    refused(read, write(tmp_path, "These are words, not numbers.\n" * 100))
    refused(read, write(tmp_path, "# only a comment"))
    refused(read, write(tmp_path, bytes(1000)))
    refused(read, write(tmp_path, b"\xff" * 1000))
    refused(read, write(tmp_path, np.random.default_rng(0).bytes(5000)))


@EVERY_READER
def test_every_other_format(tmp_path: Path, kind: str):
    read, _ = READERS[kind]
    for other, (_, content) in READERS.items():
        if other != kind:
            refused(read, write(tmp_path, content))


@EVERY_READER
def test_too_large_file_is_not_read(tmp_path: Path, kind: str):
    read, content = READERS[kind]
    file = write(tmp_path, content)
    with file.open("ab") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    assert "at most" in refused(read, file)


@pytest.mark.parametrize("kind", ["ccnf", "svr"])
def test_negative_confidences(tmp_path: Path, kind: str):
    if kind == "ccnf":  # the last number of the file
        read, content = read_ccnf, ccnf_file()[:-8] + struct.pack("<d", -0.5)
    else:
        known = repr(float(svr_arrays()["confidence"][0, 0, 0]))
        read, content = read_svr, svr_file().replace(known, "-0.5", 1)
    message = refused(read, write(tmp_path, content))
    assert "confidence of landmark" in message
    assert "found -0.5, expected a finite number of at least 0.0" in message


@pytest.mark.parametrize("value", [-(2**31), -1, 77, 10**6, 2**31 - 1])
def test_wrong_integers_in_ccnf(tmp_path: Path, value: int):
    """No int32 of the first header, components and expert goes unnoticed."""
    data = ccnf_file()
    views = binary_views()
    start = len(views)
    components = len(ccnf_components((3, 1), 2))
    # Number of views; a matrix; number of sizes; size; count; a matrix; expert; neuron.
    places = [8, 12, 16, 20, start, start + 4, start + 8, start + 12, start + 16]
    places += [start + components + 4 * i for i in range(6)]
    for place in places:
        damaged = data[:place] + struct.pack("<i", value) + data[place + 4 :]
        refused(read_ccnf, write(tmp_path, damaged))


def test_damaged_bytes_in_ccnf(tmp_path: Path):
    """Wherever 32 bits are wrong, the reader succeeds or explains."""
    data = ccnf_file()
    for place in range(0, len(data) - 4, 7):
        for junk in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", bytes(4)):
            file = write(tmp_path, data[:place] + junk + data[place + 4 :])
            try:
                read_ccnf(file)
            except ModelFileError as error:
                assert str(file) in str(error)


def test_numbers_that_are_not_finite(tmp_path: Path):
    data = ccnf_file()
    for value in (math.nan, math.inf, -1e300):
        number = struct.pack("<d", value)
        refused(read_ccnf, write(tmp_path, data[:-8] + number))
        refused(read_ccnf, write(tmp_path, number + data[8:]))
    for word in ("nan", "inf", "1e999", "-1e40", "0x10", "1,5", "abc"):
        damaged = pdm_file().replace("9.0", word)
        assert "variances" in refused(read_pdm, write(tmp_path, damaged))


def test_messages_name_the_place(tmp_path: Path):
    text = pdm_file().replace("9.0", "nine")
    line = text[: text.index("nine")].count("\n") + 1
    message = refused(read_pdm, write(tmp_path, text))
    assert f"line {line}: variances of the modes: found 'nine'" in message

    data = ccnf_file()
    data = data[:8] + struct.pack("<i", -3) + data[12:]
    message = refused(read_ccnf, write(tmp_path, data))
    assert "byte 8: number of views: found -3, expected a number from 1" in message


def test_messages_name_the_place_in_a_later_record(tmp_path: Path):
    """Neurons are read at once; each of their numbers is named where it stands."""
    start = len(binary_views() + ccnf_components((3, 1), 2))
    neuron = 8 + 3 * 8 + 12 + SIDE * SIDE * 4
    second = start + 16 + neuron
    data = ccnf_file()
    nan = struct.pack("<f", math.nan)
    for offset, junk, message in (
        (0, struct.pack("<i", 3), "neuron code {}: found 3, expected 2"),
        (8, struct.pack("<d", math.inf), "norm weight {}: found inf, expected a fin"),
        (24, struct.pack("<d", 1e300), "alpha {}: found 1e+300, expected a finite"),
        (36, struct.pack("<i", 1), "neuron weights {}: number of columns: found 1, ex"),
        (40, struct.pack("<i", 6), "neuron weights {}: type code: found 6, expected 5"),
        (44 + 7 * 4, nan, "neuron weights {}: found nan, expected a finite number"),
    ):
        place = second + offset
        damaged = data[:place] + junk + data[place + len(junk) :]
        found = refused(read_ccnf, write(tmp_path, damaged))
        assert f"byte {place}: {message.format('of landmark 0 in view 0')}" in found


def test_the_first_of_several_faults_is_named(tmp_path: Path):
    start = len(binary_views() + ccnf_components((3, 1), 2)) + 16
    neuron = 8 + 3 * 8 + 12 + SIDE * SIDE * 4
    data = bytearray(ccnf_file())
    data[start + neuron : start + neuron + 4] = struct.pack("<i", 9)  # code, second
    data[start + 16 : start + 24] = struct.pack("<d", math.nan)  # bias, first
    message = refused(read_ccnf, write(tmp_path, bytes(data)))
    assert f"byte {start + 16}: bias of landmark 0" in message


def test_huge_sizes_in_text(tmp_path: Path):
    for size in ("-1", "0", "999999", "99999999999999999999", "9" * 5000):
        refused(read_pdm, write(tmp_path, f"{size} 1 6 0 0 0"))
        refused(read_triangulations, write(tmp_path, f"1 {size} 3 4 0 1 2"))
        refused(read_triangulations, write(tmp_path, f"{size} 1 3 4 0 1 2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4 1 6 0 0 0 0", "x, y and z"),
        ("3 2 6 0 0 0 0 0 0", "number of columns"),
        ("3 1 6 0 0 1  6 1 6 1 0 0 0 0 0", "modes: number of rows"),
        ("3 1 6 0 0 1  3 1 6 1 0 0  1 2 6 1 1", "number of columns"),
        ("3 1 6 0 0 1  3 1 6 1 0 0  1 1 6 0", "positive"),
        ("3 1 4 0 0 1", "type code"),
        ("3 1 7 0 0 1", "type code"),
        ("3 1 6.5 0 0 1", "an integer"),
    ],
)
def test_pdm_of_wrong_shape(tmp_path: Path, text: str, message: str):
    assert message in refused(read_pdm, write(tmp_path, text))


def test_triangle_without_a_corner(tmp_path: Path):
    assert "integers from 0" in refused(
        read_triangulations, write(tmp_path, "1 1 3 4 0 1 -1")
    )


def test_unsupported_ccnf_neurons(tmp_path: Path):
    message = refused(read_ccnf, write(tmp_path, ccnf_file(neuron_type=3)))
    assert "only grey" in message


def test_inconsistent_ccnf(tmp_path: Path):
    start, end = binary_views(), ccnf_file()[len(binary_views()) :]
    sizes = ccnf_components((3, 1), 2)
    twice = ccnf_components((3, 3), 2)
    refused(read_ccnf, write(tmp_path, start + twice + end[len(sizes) :]))

    one_less = struct.pack("<i", 2) + ccnf_components((3,), 2)[4:]
    one_less += ccnf_components((1,), 1)[4:]
    message = refused(read_ccnf, write(tmp_path, start + one_less))
    assert "number of neighbour matrices of window size 1: found 1" in message

    absent = struct.pack("<5i", 5, 0, 0, 0, 0)
    message = refused(read_ccnf, write(tmp_path, start + sizes + 6 * absent))
    assert "exactly one size" in message

    arrays = ccnf_arrays()
    small = {**arrays, "weights": arrays["weights"][..., :1, :1]}
    experts = [ccnf_expert(arrays, (0, i), 2) for i in range(3)]
    mixed = [*experts, ccnf_expert(small, (1, 0), 2), absent, experts[2]]
    message = refused(read_ccnf, write(tmp_path, start + sizes + b"".join(mixed)))
    assert "[1, 3]" in message

    hidden = [*experts, absent, absent, experts[2]]
    message = refused(read_ccnf, write(tmp_path, start + sizes + b"".join(hidden)))
    assert "landmark 0 in view 1: found no expert" in message


def test_inconsistent_svr(tmp_path: Path):
    types = ((0, 1),) * 4
    assert "same for all" in refused(
        read_svr, write(tmp_path, svr_file((*types, (1, 0))))
    )
    assert "same for all" in refused(
        read_svr, write(tmp_path, svr_file((*types, (0,))))
    )
    assert "no expert" in refused(read_svr, write(tmp_path, svr_file((*types, ()))))
    assert "once" in refused(read_svr, write(tmp_path, svr_file(((1, 1),) * 5)))
    assert "modality" in refused(read_svr, write(tmp_path, svr_file(((0, 2),) * 5)))
    assert "same for all" in refused(read_svr, write(tmp_path, svr_file(((),) * 5)))


# Main files that do not fit together.


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("main_clnf.txt", "FaceDet", "FooDet", "line 3: found 'FooDetConversion'"),
        ("main_clnf.txt", "eye 2 0", "eye 3 0", "landmark '3', expected an index"),
        ("main_clnf.txt", "eye 2 0", "eye 2 -1", "landmark '-1', expected an index"),
        ("main_clnf.txt", "eye 2 0 1 2", "eye 2 0 1", "pairs of landmark indices"),
        ("main_clnf.txt", "eye 2 0 1 2", "eye", "pairs of landmark indices"),
        ("main_clnf.txt", "part/main_eye", "part/main_nose", "no such file"),
        ("main_clnf.txt", "part/main_eye.txt", "main_clnf.txt", "this is a part of"),
        ("main_clnf.txt", "Detector clnf.txt", "Detector", "'', no such file"),
        ("main_clnf.txt", "clnf.txt", "n" * 300, "no such file"),
        ("main_clnf.txt", "Detector clnf", "Detector main_clnf", "a main file"),
        ("main_clnf.txt", "LandmarkDetector clnf.txt", "# no", "found 0 lines"),
        ("clnf.txt", "PDM pdms/pdm.txt", "# no", "found 0 lines PDM"),
        ("clnf.txt", "PDM", "PDM pdms/pdm.txt\nPDM", "found 2 lines PDM"),
        ("clnf.txt", "PatchesIntensity", "LandmarkDetector", "expected one of PDM"),
        ("clnf.txt", "PatchesCCNF", "PatchesCEN", "mirror landmarks"),
        ("clm.txt", "PatchesIntensity", "Triangulations", "found no experts"),
        ("pdms/pdm.txt", pdm_file(), pdm_file(4), "4, as in the PDM"),
        ("tris.txt", "2 1 0", "3 1 0", "a triangle with landmark 3"),
    ],
)
def test_main_file_that_does_not_fit(
    folder: Path, file: str, old: str, new: str, message: str
):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(ModelFileError) as caught:
        read_openface_model(folder / "main_clnf.txt")
    assert message in str(caught.value)
    assert "expected" in str(caught.value)


def test_main_file_of_nothing(tmp_path: Path):
    assert "no such file" in refused(read_openface_model, tmp_path / "main.txt")
    refused(read_openface_model, tmp_path)
    refused(read_openface_model, write(tmp_path, ""))
    refused(read_openface_model, write(tmp_path, "\n# nothing\n"))
    assert "binary" in refused(read_openface_model, write(tmp_path, ccnf_file()))
    assert "one of Landmark" in refused(
        read_openface_model, write(tmp_path, pdm_file())
    )


def test_shape_model_of_a_model_without_its_experts(folder: Path):
    (folder / "cen.txt").write_text("PDM pdms/pdm.txt\nPatchesCEN absent.dat\n")
    main = write(folder, "LandmarkDetector cen.txt\n")
    assert read_openface_pdm(main).num_landmarks == NUM_LANDMARKS
    with pytest.raises(ModelFileError, match="line 2, PatchesCEN: found 'absent.dat'"):
        read_openface_model(main)


# The published files.

PDM_FILES = {
    "in_the_wild_68": "pdms/In-the-wild_aligned_PDM_68.txt",
    "multi_pie_68": "pdms/Multi-PIE_aligned_PDM_68.txt",
    "menpo_68": "pdms/pdm_68_aligned_menpo.txt",
    "left_eye_28": "model_eye/pdms/pdm_28_l_eye_3D_closed.txt",
    "eye_28": "model_eye/pdms/pdm_28_eye_3D_closed.txt",
    "inner_51": "model_inner/pdms/pdm_51_inner.txt",
}
MAIN_FILES = {
    "clnf_general": "main_clnf_general.txt",
    "clnf_wild": "main_clnf_wild.txt",
    "clnf_multi_pie": "main_clnf_multi_pie.txt",
    "inner": "model_inner/main_clnf_inner.txt",
    "left_eye": "model_eye/main_clnf_synth_left.txt",
    "right_eye": "model_eye/main_clnf_synth_right.txt",
    "svr_general": "main_clm_general.txt",
}


@functools.cache
def published(file: Path) -> CLNFModel:
    """A published model in float64, read once for all tests."""
    return read_openface_model(file, np.float64)


@pytest.mark.shared
@pytest.mark.parametrize("name", PDM_FILES)
def test_published_pdm(golden: Path, openface_dir: Path, name: str):
    pdm = read_pdm(openface_dir / PDM_FILES[name])
    with np.load(golden / f"pdm_{name}.npz") as reference:
        mean, modes = reference["mean_shape"], reference["princ_comp"]
        eigen_values = reference["eigen_values"]
    np.testing.assert_array_equal(pdm.mean_shape.T.reshape(-1), mean)
    by_axis = pdm.princ_comp.transpose(1, 0, 2)
    np.testing.assert_array_equal(by_axis.reshape(modes.shape), modes)
    np.testing.assert_array_equal(pdm.eigen_values, eigen_values)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", MAIN_FILES)
def test_published_model(golden: Path, openface_dir: Path, name: str):
    """Views, components, visibilities and confidences as the C++ program has them."""
    model = published(openface_dir / MAIN_FILES[name])
    with np.load(golden / f"responses_{name}.npz") as reference:
        meta = json.loads(str(reference["meta"]))
        for scale, experts in enumerate(model.experts):
            centers = reference[f"view_centers_scale{scale}"]
            np.testing.assert_allclose(experts.view_centers, centers, atol=1e-12)
        for case in meta["cases"]:
            experts = model.experts[case["scale"]]
            visible = reference[f"c{case['case']:02}_vis"]
            np.testing.assert_array_equal(experts.visibility[case["view"]], visible)
            confidence = np.asarray(experts.confidence[case["view"]])
            np.testing.assert_allclose(
                np.where(visible, confidence, 0),
                reference[f"c{case['case']:02}_patch_confidence"],
                rtol=1e-6,
            )
    assert [float(e.patch_scaling) for e in model.experts] == meta["scalings"]
    assert [len(e.view_centers) for e in model.experts] == meta["n_views"]
    components = dict(
        zip(meta["sigma_windows"], meta["sigma_n_components"], strict=True)
    )
    expected = {size: num for size, num in components.items() if num}
    for experts in model.experts:
        if isinstance(experts, CCNFExperts):
            found = {size: len(c) for size, c in experts.neighbours.items()}
            assert found == expected
            assert experts.weights.shape[2:] == (7, 11, 11)
        else:
            assert isinstance(experts, SVRExperts)
            assert experts.modalities == ("grey", "gradient")


@pytest.mark.slow
@pytest.mark.shared
def test_published_neurons(golden: Path, openface_dir: Path):
    """Linear responses of one expert's neurons, from the file's weights as they are."""
    model = published(openface_dir / "main_clnf_general.txt")
    with np.load(golden / "responses_clnf_general.npz") as reference:
        case = json.loads(str(reference["meta"]))["cases"][0]
        landmark, window = case["detail_landmarks"][0], case["window"]
        area = reference["c00_aoi"][landmark].astype(np.float64)
        expected = reference["c00_neuron_lin0"]
    experts = model.experts[case["scale"]]
    assert isinstance(experts, CCNFExperts)
    at = case["view"], landmark
    supports = np.lib.stride_tricks.sliding_window_view(area, (11, 11))
    supports = supports - supports.mean(axis=(2, 3), keepdims=True)
    supports = supports / np.linalg.norm(supports, axis=(2, 3), keepdims=True)
    linear = np.einsum("yxij,kij->kxy", supports, np.asarray(experts.weights[at]))
    linear *= np.asarray(experts.norm_weights[at])[:, None, None]
    linear += np.asarray(experts.bias[at])[:, None, None]
    # Not even close if rows and columns of the weights were mixed up.
    np.testing.assert_allclose(linear.reshape(7, window**2), expected, atol=2e-4)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["main_clm_wild.txt", "clnf_wild.txt"])
def test_other_published_models(openface_dir: Path, name: str):
    model = read_openface_model(openface_dir / name)
    assert model.pdm.num_landmarks == 68 and len(model.triangulations) == 7
    assert len(model.parts) == (2 if name.startswith("main") else 0)


@pytest.mark.shared
def test_published_parts(openface_dir: Path):
    model = published(openface_dir / "main_clnf_general.txt")
    assert [part.name for part in model.parts] == [
        "inner",
        "left_eye_28",
        "right_eye_28",
    ]
    inner, left, _ = model.parts
    np.testing.assert_array_equal(inner.main_index, np.arange(17, 68))
    assert left.main_index.tolist() == [36, 37, 38, 39, 40, 41]
    assert left.part_index.tolist() == [8, 10, 12, 14, 16, 18]
    assert "NONCOMMERCIAL" in model.info.licence
    assert all(str(openface_dir) not in text for text in vars(model.info).values())


@pytest.mark.shared
def test_published_convolutional_models(openface_dir: Path):
    """Their weights are published apart from the other files."""
    main = openface_dir / "main_ceclm_general.txt"
    message = "cen_general.txt, line 3, PatchesCEN: found .*0.25_of.dat', no such file"
    with pytest.raises(ModelFileError, match=message):
        read_openface_model(main)
    assert read_openface_pdm(main).num_modes == 34


@pytest.mark.shared
def test_published_files_in_other_readers(openface_dir: Path):
    """Each file is refused by the readers that it does not belong to."""
    for file in sorted(openface_dir.rglob("*")):
        for read in (read_pdm, read_ccnf, read_svr, read_triangulations):
            belongs = (
                (read is read_pdm and "pdms" in file.parts)
                or (read is read_ccnf and "ccnf_patches" in file.name)
                or (read is read_svr and file.name.startswith("svr_patches"))
                or (read is read_triangulations and file.name == "tris_68.txt")
            )
            if not (belongs and file.is_file()):
                refused(read, file)
