"""Our own model file, and finding and opening any kind of model."""

import dataclasses
import errno
import inspect
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.errors import MAX_FILE_BYTES, ModelFileError, read_bytes
from jaxclnf.experts.types import CCNFExperts, SVRExperts
from jaxclnf.fitting.model import CLNFModel, CLNFPart, ModelInfo
from jaxclnf.shape.pdm import PDM
from jaxclnf.storage import load, npz
from jaxclnf.storage.load import load_model, load_pdm
from jaxclnf.storage.npz import read_model, save_model


def tiny_pdm(rng: np.random.Generator, num: int, dtype: type) -> PDM:
    return PDM(
        mean_shape=jnp.asarray(rng.normal(size=(num, 3)).astype(dtype)),
        princ_comp=jnp.asarray(rng.normal(size=(num, 3, 2)).astype(dtype)),
        eigen_values=jnp.asarray([3.0, 1e-40], dtype),  # A denormal in float32.
    )


def tiny_ccnf(
    rng: np.random.Generator, num: int, dtype: type, num_betas: int
) -> CCNFExperts:
    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape).astype(dtype))

    neighbours = {w: jnp.stack([jnp.eye(w * w, dtype=dtype)] * 2) for w in (5, 3, 11)}
    return CCNFExperts(
        patch_scaling=jnp.asarray(0.25, dtype),
        view_centers=jnp.asarray([[0.0, -0.0, np.inf], [np.nan, 1, 2]], dtype),
        visibility=jnp.asarray(rng.integers(2, size=(2, num)).astype(bool)),
        weights=draw(2, num, 3, 5, 5),
        norm_weights=draw(2, num, 3),
        bias=draw(2, num, 3),
        alpha=abs(draw(2, num, 3)),
        beta=abs(draw(2, num, num_betas)),
        confidence=draw(2, num),
        neighbours=neighbours if num_betas else {},
        sigma={3: (draw(num, 9, 9), draw(num, 9, 9))},
    )


def tiny_svr(rng: np.random.Generator, num: int, dtype: type) -> SVRExperts:
    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape).astype(dtype))

    return SVRExperts(
        patch_scaling=jnp.asarray(0.5, dtype),
        view_centers=draw(1, 3),
        visibility=jnp.ones((1, num), bool),
        weights=draw(1, num, 2, 5, 5),
        scaling=draw(1, num, 2),
        bias=draw(1, num, 2),
        confidence=draw(1, num),
        modalities=("grey", "gradient"),
    )


def tiny_model(dtype: type = np.float32, *, sane: bool = False) -> CLNFModel:
    """A model with everything in it; `sane` ones can be prepared."""
    rng = np.random.default_rng(0)
    info = ModelInfo(name="tiny", licence="Licence © “any”\n\x00", provenance="a test")
    part = CLNFModel(pdm=tiny_pdm(rng, 2, dtype), experts=(tiny_svr(rng, 2, dtype),))
    experts = (tiny_ccnf(rng, 3, dtype, 2), tiny_ccnf(rng, 3, dtype, 0))
    return CLNFModel(
        pdm=tiny_pdm(rng, 3, dtype),
        experts=experts[:1] if sane else (*experts, tiny_svr(rng, 3, dtype)),
        parts=(
            CLNFPart(
                model=dataclasses.replace(part, info=info),
                main_index=jnp.asarray([2, 0], jnp.int32),
                part_index=jnp.asarray([0, 1], jnp.int32),
                name="eye",
            ),
        ),
        triangulations=(jnp.asarray([[0, 1, 2]], jnp.int32),) * 2,
        info=info,
    )


def without_sigma(model: CLNFModel) -> CLNFModel:
    experts = tuple(
        dataclasses.replace(e, sigma={}) if isinstance(e, CCNFExperts) else e
        for e in model.experts
    )
    return dataclasses.replace(model, experts=experts)


def assert_identical(a: CLNFModel, b: CLNFModel) -> None:
    """Same structure, static fields, types, shapes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(x, jax.Array) and isinstance(y, jax.Array)
        assert (x.dtype, x.shape, x.weak_type) == (y.dtype, y.shape, y.weak_type)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A stored model."""
    file = tmp_path / "tiny.npz"
    save_model(tiny_model(), file)
    return file


def refused(read: Callable, file: Path | str) -> str:
    """The message of the error that reading must end in."""
    with pytest.raises(ModelFileError) as caught:
        read(file)
    message = str(caught.value)
    assert str(file) in message and "found" in message and "expected" in message
    return message


# Round trips.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: type):
    model = tiny_model(dtype)
    save_model(model, tmp_path / "a.npz")
    again = read_model(tmp_path / "a.npz")
    assert_identical(again, without_sigma(model))
    assert again.info == model.info and again.parts[0].name == "eye"


def test_files_of_equal_models_are_equal(tmp_path: Path, file: Path):
    save_model(read_model(file), tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == file.read_bytes()


def test_equal_arrays_are_stored_once(file: Path):
    with np.load(file) as stored:
        arrays = [stored[name] for name in stored.files]
    assert sum(a.shape == (2, 121, 121) for a in arrays) == 1
    assert sum(a.dtype == np.int32 and a.shape == (1, 3) for a in arrays) == 1


def test_numpy_can_read_the_file(file: Path):
    with np.load(file, allow_pickle=False) as stored:
        header = json.loads(stored["header"].tobytes())
        shape = header["model"]["fields"]["pdm"]["fields"]["mean_shape"]["array"]
        np.testing.assert_array_equal(stored[shape], tiny_model().pdm.mean_shape)
    assert header["format"] == "jaxclnf-model" and header["version"] == 1


def test_saving_replaces_a_file(file: Path):
    file.write_bytes(b"something else")
    save_model(tiny_model(), file)
    assert_identical(read_model(file), without_sigma(tiny_model()))
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_saving_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left", "a temporary name")

    before = file.read_bytes()
    monkeypatch.setattr(Path if step == "write_bytes" else os, step, fail)
    with pytest.raises(OSError, match="no space left") as caught:
        save_model(tiny_model(), file)
    assert caught.value.filename == str(file)
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert [*file.parent.iterdir()] == [file]


def test_saving_under_another_suffix(tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"'\.txt', expected '\.npz'"):
        save_model(tiny_model(), tmp_path / "model.txt")


@pytest.mark.parametrize("what", [None, "a text"])
def test_what_is_no_model_replaces_no_file(file: Path, what: Any):
    before, save = file.read_bytes(), inspect.unwrap(save_model)
    with pytest.raises(TypeError, match="model is a .*; expected a CLNFModel"):
        save(what, file)
    with pytest.raises(TypeError, match="model is a PDM; expected a CLNFModel"):
        save(read_model(file).pdm, file)
    assert file.read_bytes() == before


def test_saving_in_place_of_a_folder(file: Path, tmp_path: Path):
    folder = tmp_path / "a.npz"
    folder.mkdir()
    with pytest.raises(ModelFileError, match="a.npz: found a folder, expected a pl"):
        save_model(read_model(file), folder)
    assert {*tmp_path.iterdir()} == {folder, file}


def test_saving_to_a_missing_folder(tmp_path: Path):
    folder = tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as caught:
        save_model(tiny_model(), folder / "model.npz")
    assert f"found no folder {folder}, expected one" in str(caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", [jnp.zeros(3, jnp.bfloat16), jnp.zeros(3, complex)])
def test_what_cannot_be_stored(tmp_path: Path, value: jax.Array):
    model = tiny_model()
    odd = dataclasses.replace(model.pdm, eigen_values=value)
    with pytest.raises(TypeError, match="cannot store it"):
        save_model(dataclasses.replace(model, pdm=odd), tmp_path / "odd.npz")
    assert not [*tmp_path.iterdir()]


def test_numbers_with_their_bytes_the_other_way_round(tmp_path: Path):
    model = tiny_model()
    values = np.asarray(model.pdm.eigen_values)
    turned = values.astype(values.dtype.newbyteorder())
    pdm = dataclasses.replace(model.pdm, eigen_values=turned)
    save_model(dataclasses.replace(model, pdm=pdm), tmp_path / "turned.npz")
    again = read_model(tmp_path / "turned.npz").pdm.eigen_values
    np.testing.assert_array_equal(again, values)


# Damage.


def rewritten(
    file: Path,
    change: Callable[[dict, dict[str, np.ndarray]], None],
    *,
    sign: bool = True,
) -> Path:
    """Another file beside `file` with a changed header and arrays."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    if sign and "checksum" in header:
        content = {k: v for k, v in header.items() if k != "checksum"}
        header["checksum"] = npz._checksum(content, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    other = file.with_name("other.npz")
    np.savez_compressed(other, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    return other


def test_rewritten_without_change(file: Path):
    other = rewritten(file, lambda header, arrays: None)
    assert_identical(read_model(other), read_model(file))


def test_truncated_files(file: Path):
    data = file.read_bytes()
    for end in [*range(1, len(data), len(data) // 100), len(data) - 1]:
        file.write_bytes(data[:end])
        refused(read_model, file)


def test_damaged_bytes(file: Path):
    """A wrong byte is found, or one that does not matter (a date, say)."""
    data = file.read_bytes()
    model = read_model(file)
    num_found = 0
    places = [
        *range(0, len(data), len(data) // 200),
        *range(len(data) - 200, len(data)),
    ]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        try:
            assert_identical(read_model(file), model)
        except ModelFileError as error:
            assert str(file) in str(error)
            num_found += 1
    assert num_found > 0.7 * len(places)


def test_flipped_bits_in_the_directory_of_the_archive(file: Path):
    """Versions, flags and the kind of compression of an entry."""
    data = file.read_bytes()
    model = read_model(file)
    for bit in range(12 * 8):
        damaged = bytearray(data)
        damaged[data.rfind(b"PK\1\2") + bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert_identical(read_model(file), model)
        except ModelFileError as error:
            assert "damaged archive" in str(error)


def test_wrong_checksum(file: Path):
    def change(header: dict, arrays: dict[str, np.ndarray]) -> None:
        name = header["model"]["fields"]["pdm"]["fields"]["mean_shape"]["array"]
        arrays[name] = np.nextafter(arrays[name], np.float32(1))

    assert "checksum" in refused(read_model, rewritten(file, change, sign=False))


def test_licence_is_part_of_the_checksum(file: Path):
    def change(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["model"]["fields"]["info"]["fields"]["licence"] = "do as you please"

    assert "checksum" in refused(read_model, rewritten(file, change, sign=False))


def test_newer_version(file: Path):
    other = rewritten(file, lambda header, arrays: header.update(version=2))
    assert "version 2" in refused(read_model, other)


def test_missing_arrays(file: Path):
    other = rewritten(file, lambda header, arrays: arrays.clear())
    assert "no arrays array_0000, array_0001" in refused(read_model, other)


def test_unknown_fields_and_types(file: Path):
    def new_field(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["model"]["fields"]["colour"] = 3

    def lost_field(header: dict, arrays: dict[str, np.ndarray]) -> None:
        del header["model"]["fields"]["pdm"]

    def new_type(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["model"]["fields"]["pdm"]["type"] = "pdm4d"

    def no_model(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["model"] = header["model"]["fields"]["pdm"]

    def no_array(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["model"]["fields"]["pdm"]["fields"]["mean_shape"] = {"array": "array_9"}

    def odd_names(header: dict, arrays: dict[str, np.ndarray]) -> None:
        header["arrays"] = [[1]]

    assert "colour" in refused(read_model, rewritten(file, new_field))
    assert "CLNFModel" in refused(read_model, rewritten(file, lost_field))
    message = refused(read_model, rewritten(file, new_type))
    assert "pdm4d" in message and message.count(str(file.parent)) == 1
    assert "PDM" in refused(read_model, rewritten(file, no_model))
    assert "array_9" in refused(read_model, rewritten(file, no_array))
    assert "[1]" in refused(read_model, rewritten(file, odd_names))


@pytest.mark.parametrize("what", ["words", "no pairs"])
def test_what_another_program_may_write(file: Path, what: str):
    def change(header: dict, arrays: dict[str, np.ndarray]) -> None:
        if what == "words":
            arrays["array_0000"] = np.array(["word"])
        else:
            header["model"]["fields"]["parts"] = {"items": [["a", 1, 2]]}

    assert "found what is no model" in refused(read_model, rewritten(file, change))


def test_fields_with_defaults_may_be_missing(file: Path):
    """So files of today can be read when models have gained more fields."""

    def change(header: dict, arrays: dict[str, np.ndarray]) -> None:
        del header["model"]["fields"]["triangulations"]

    model = read_model(rewritten(file, change))
    assert model.triangulations == ()
    assert_identical(
        model, dataclasses.replace(without_sigma(tiny_model()), triangulations=())
    )


def test_incomplete_header(file: Path):
    other = rewritten(file, lambda header, arrays: header.pop("checksum"), sign=False)
    assert "header with" in refused(read_model, other)


def test_foreign_npz(tmp_path: Path):
    file = tmp_path / "foreign.npz"
    for header in (
        np.arange(3),
        np.arange(3, dtype=np.uint8),
        np.frombuffer(b'{"format": "other", "version": 1}', np.uint8),
        np.frombuffer(b"[1, 2]", np.uint8),
    ):
        np.savez(file, header=header)
        assert "another program" in refused(read_model, file)
    np.savez(file, x=np.arange(3))
    assert "another program" in refused(read_model, file)
    np.savez(file, x=np.array([{}], object))
    assert "damaged" in refused(read_model, file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged" in refused(read_model, file)


def test_array_larger_than_its_file(tmp_path: Path):
    """The reader must not allocate what a header only claims."""
    stream = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(stream, claim)
    file = tmp_path / "huge.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", stream.getvalue())
    assert "damaged" in refused(read_model, file)


def test_archive_that_unpacks_to_too_much(file: Path, monkeypatch: pytest.MonkeyPatch):
    size = file.stat().st_size
    monkeypatch.setattr(npz, "MAX_FILE_BYTES", size)
    assert "unpacked" in refused(read_model, file)


def test_not_a_model_file(tmp_path: Path):
    file = tmp_path / "file.npz"
    for read in (read_model, load_model, load_pdm):
        file.unlink(missing_ok=True)
        assert "no such file" in refused(read, file)
        file.write_bytes(b"")
        assert "empty" in refused(read, file)
        file.write_bytes(b"Hello, this is text")
        assert "begins with b'Hello" in refused(read, file)
        file.write_bytes(b"PK" + bytes(100))
        assert "damaged" in refused(read, file)
        assert "folder" in refused(read, tmp_path)
    with file.open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)
    assert "at most" in refused(read_model, file)


def test_unreadable_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert "Permission denied" in refused(read_bytes, file)


# Loading by path or name.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loading_casts_and_prepares(tmp_path: Path, dtype: type):
    file = tmp_path / "tiny.npz"
    save_model(tiny_model(np.float32, sane=True), file)
    model = load_model(file, dtype=dtype)
    types = {leaf.dtype for leaf in jax.tree.leaves(model)}
    assert types == {np.dtype(dtype), np.dtype(bool), np.dtype(np.int32)}
    (experts,) = model.experts
    assert isinstance(experts, CCNFExperts) and experts.sigma.keys() == {11}
    expected = tiny_model(sane=True).pdm.mean_shape.astype(dtype)
    np.testing.assert_array_equal(load_pdm(file, dtype).mean_shape, expected)
    assert load_pdm(str(file), dtype).mean_shape.dtype == dtype


@pytest.mark.parametrize("load_any", [load_model, load_pdm])
def test_types_that_the_arrays_would_not_have(tmp_path: Path, load_any: Callable):
    file = tmp_path / "tiny.npz"
    save_model(tiny_model(np.float64, sane=True), file)
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="float64 and JAX's x64 mode is off"):
            load_any(file, dtype=np.float64)
        load_any(file, dtype=np.float32)
    with pytest.raises(ValueError, match="dtype is int32; expected float32 or float64"):
        load_any(file, dtype=np.int32)


def test_loading_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for folder in (models, elsewhere / "tiny"):
        folder.mkdir(parents=True)
    save_model(tiny_model(sane=True), models / "tiny.npz")
    monkeypatch.setattr(load, "_MODEL_FOLDERS", (tmp_path / "absent", models))
    monkeypatch.chdir(elsewhere)  # A folder called `tiny` does not hide the model,
    assert load_model("tiny").info.name == "tiny"
    (elsewhere / "tiny").rmdir()
    (elsewhere / "tiny").touch()  # nor does a file.
    assert load_model("tiny").info.name == "tiny"
    (elsewhere / "weights").touch()
    assert "weights: found suffix ''" in refused(load_model, "weights")
    message = refused(load_model, "large")
    assert "['tiny']" in message and "main_clnf_general.txt" in message
    save_model(tiny_model(sane=True), models / "default.npz")
    assert load_model().info.name == "tiny"
    assert load_pdm().num_landmarks == 3


def test_no_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "_MODEL_FOLDERS", (tmp_path,))
    for path in (None, "default"):
        with pytest.raises(ModelFileError, match="--model PATH") as caught:
            load_model(path)
        message = str(caught.value)
        assert f"no default.npz in {tmp_path}, expected the embedded model" in message


def test_paths_that_are_no_models(tmp_path: Path):
    (tmp_path / "model.dat").write_text("words")
    assert "'.dat', expected '.npz'" in refused(load_model, tmp_path / "model.dat")
    assert "no such file" in refused(load_model, tmp_path / "model")
    assert "no such file" in refused(load_model, tmp_path / "model.txt")
    (tmp_path / "words.txt").write_text("Some words.")
    assert "found 'Some'" in refused(load_model, tmp_path / "words.txt")
    assert "found 'Some'" in refused(load_pdm, tmp_path / "words.txt")
    (tmp_path / "comments.txt").write_text("# nothing\n\n")
    assert "no directive" in refused(load_pdm, tmp_path / "comments.txt")
    assert "folder" in refused(load_model, "/")
    with pytest.raises(ModelFileError):
        load_model("")


@pytest.mark.parametrize("suffix", ["", ".txt", ".npz"])
def test_a_name_that_is_too_long(tmp_path: Path, suffix: str):
    name = "n" * 300 + suffix
    refused(load_model, name)
    refused(load_pdm, tmp_path / name)


def test_loading_a_bare_shape_model(tmp_path: Path):
    pdm = tmp_path / "pdm.txt"
    pdm.write_text("# mean\n3 1 6 0 0 1\n# modes\n3 1 6 1 0 0\n1 1 6 4")
    assert load_pdm(pdm).num_landmarks == 1
    (tmp_path / "clnf.txt").write_text("PDM pdm.txt\nPatchesCEN absent.dat")
    (tmp_path / "main.txt").write_text("LandmarkDetector clnf.txt")
    assert load_pdm(tmp_path / "clnf.txt").num_landmarks == 1
    assert load_pdm(tmp_path / "main.txt", np.float64).mean_shape.dtype == np.float64
    assert "expected one of Landmark" in refused(load_model, pdm)


# The published models.


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["main_clnf_wild", "main_clm_general"])
def test_published_models_in_our_format(tmp_path: Path, openface_dir: Path, name: str):
    model = load_model(openface_dir / f"{name}.txt")
    save_model(model, tmp_path / "model.npz")
    assert_identical(read_model(tmp_path / "model.npz"), without_sigma(model))
    assert_identical(load_model(tmp_path / "model.npz"), model)
    pdm = load_pdm(openface_dir / f"{name}.txt")
    np.testing.assert_array_equal(pdm.mean_shape, model.pdm.mean_shape)
