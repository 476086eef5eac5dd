"""Models of OpenFace, converted into files of the user's cache."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclnf.errors import ModelFileError
from jaxclnf.experts.types import CCNFExperts
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.openface.release import (
    Release,
    ReleaseFile,
    find_model_folder,
    read_release,
)
from jaxclnf.storage import load, npz, openface_cache
from jaxclnf.storage.load import load_model, load_pdm
from jaxclnf.storage.npz import read_model, save_model
from jaxclnf.storage.openface_cache import (
    cache_folder,
    conversion_file,
    conversions,
    convert_model,
    find_conversion,
    is_converted,
)
from tests.openface_release import FILES, isolate, write_models


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders."""
    isolate(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


@pytest.fixture
def folder(home: Path) -> Path:
    """OpenFace's folder of models."""
    return write_models(home / "model")


@pytest.fixture
def files(home: Path) -> tuple[ReleaseFile, ...]:
    """The files of the model `tiny`."""
    return read_release().models["tiny"]


def other(files: tuple[ReleaseFile, ...]) -> tuple[ReleaseFile, ...]:
    """The same files with another content."""
    return (*files[:-1], dataclasses.replace(files[-1], sha256="0" * 64))


def assert_same_arrays(a: CLNFModel, b: CLNFModel) -> None:
    """Same types, shapes and bits; what is said of their origin may differ."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(x, jax.Array) and isinstance(y, jax.Array)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert a.info.name == b.info.name
    assert [part.name for part in a.parts] == [part.name for part in b.parts]


# Where it is.


def test_the_folder_of_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder() == home / "cache" / "jaxclnf" / "openface"
    monkeypatch.setenv("JAXCLNF_CACHE_DIR", str(home / "mine"))
    assert cache_folder() == home / "mine" / "openface"
    monkeypatch.setenv("JAXCLNF_CACHE_DIR", "~no_such_user/x")
    assert cache_folder() == Path("~no_such_user/x/openface")


def test_an_empty_cache(home: Path, files: tuple[ReleaseFile, ...]):
    assert conversions() == () and find_conversion("tiny") is None
    assert not is_converted("tiny", files)


# Converting.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["tiny", "svr"])
def test_a_converted_model_is_the_same(folder: Path, dtype: type, name: str):
    files = read_release().models[name]
    file = convert_model(name, folder, files, "Be good.")
    assert file == conversion_file(name, files) == find_conversion(name)
    assert is_converted(name, files)
    original = load_model(folder / f"main_{name}.txt", dtype=dtype)
    converted = load_model(name, dtype=dtype)
    assert_same_arrays(converted, original)
    assert converted.info.licence == "Be good."
    assert converted.info.provenance.startswith(original.info.provenance)
    pdm = load_pdm(name, dtype)
    np.testing.assert_array_equal(pdm.mean_shape, original.pdm.mean_shape)


def test_converting_and_loading_without_x64(
    folder: Path, files: tuple[ReleaseFile, ...]
):
    with jax.enable_x64(False):
        file = convert_model("tiny", folder, files, "")
        assert jnp.asarray(1.5).dtype == np.float32  # x64 is off again.
        converted = load_model("tiny")
        assert_same_arrays(converted, load_model(folder / "main_tiny.txt"))
    exact = read_model(file)
    assert exact.pdm.mean_shape.dtype == np.float64  # Decimals, in OpenFace's file.
    (experts,) = exact.experts
    assert isinstance(experts, CCNFExperts)
    assert experts.weights.dtype == np.float32  # As in OpenFace's file.


def test_values_beyond_float32_keep_their_place():
    for value in (1e300, np.nextafter(1.0, 2.0), 1e-50):
        leaf = jnp.asarray([value, 1.0])
        assert openface_cache._compact(leaf).dtype == np.float64
    leaf = jnp.asarray([np.nan, -0.0, np.inf, 0.5, 2.0**-140])
    compact = openface_cache._compact(leaf)
    assert compact.dtype == np.float32
    assert compact.astype(np.float64).tobytes() == np.asarray(leaf).tobytes()


def test_only_the_newest_conversion_is_kept(
    folder: Path, files: tuple[ReleaseFile, ...]
):
    old = convert_model("tiny", folder, other(files), "")
    neighbour = convert_model("svr", folder, read_release().models["svr"], "")
    assert not is_converted("tiny", files) and find_conversion("tiny") == old
    new = convert_model("tiny", folder, files, "")
    assert sorted(cache_folder().iterdir()) == sorted([neighbour, new])


def test_a_conversion_out_of_date(
    folder: Path, files: tuple[ReleaseFile, ...], monkeypatch: pytest.MonkeyPatch
):
    old = convert_model("tiny", folder, files, "")
    for module, name, value in [
        (openface_cache, "CONVERSION", 99),
        (npz, "VERSION", 99),
        (npz, "_TYPES", {**npz._TYPES, "more": Release}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert find_conversion("tiny") is None and not is_converted("tiny", files)
            (found,) = conversions()
            assert (found.name, found.file, found.is_current) == ("tiny", old, False)
            with pytest.raises(ModelFileError, match="no model named 'tiny'"):
                load_model("tiny")
    monkeypatch.setattr(openface_cache, "CONVERSION", 99)
    new = convert_model("tiny", folder, files, "")
    assert new != old and [*cache_folder().iterdir()] == [new]


def test_the_youngest_of_two_is_taken(folder: Path, files: tuple[ReleaseFile, ...]):
    first = convert_model("tiny", folder, files, "")
    second = conversion_file("tiny", other(files))
    second.write_bytes(first.read_bytes())
    for younger, older in [(first, second), (second, first)]:
        os.utime(older, (1000, 1000))
        os.utime(younger, (2000, 2000))
        assert find_conversion("tiny") == younger


def test_other_files_in_the_cache_do_not_matter(
    folder: Path, files: tuple[ReleaseFile, ...]
):
    file = convert_model("tiny", folder, files, "")
    (cache_folder() / "notes-of-mine.npz").write_text("hello")
    (cache_folder() / ".tiny.tmp").write_text("hello")
    (cache_folder() / file.name.replace("tiny", "folder")).mkdir()
    assert [found.file for found in conversions()] == [file]


def test_a_conversion_that_another_process_removes(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    file = cache_folder() / "gone-00000000-000000000000.npz"
    file.parent.mkdir(parents=True)
    file.touch()
    look = os.stat

    def look_and_remove(path, **options):
        facts = look(path, **options)
        if path == file:
            file.unlink()
        return facts

    monkeypatch.setattr(os, "stat", look_and_remove)
    assert [found.name for found in conversions()] == ["gone"]
    assert conversions() == ()


def test_a_damaged_conversion_is_made_again(
    folder: Path, files: tuple[ReleaseFile, ...]
):
    file = convert_model("tiny", folder, files, "")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert not is_converted("tiny", files)
    with pytest.raises(ModelFileError, match="damaged"):
        load_model("tiny")
    convert_model("tiny", folder, files, "")
    assert file.read_bytes() == whole


# What can go wrong.


@pytest.mark.parametrize("lost", ["ccnf.txt", "eye/eye.txt", "main_tiny.txt"])
def test_missing_source(folder: Path, files: tuple[ReleaseFile, ...], lost: str):
    (folder / lost).unlink()
    with pytest.raises(ModelFileError, match="no such file") as caught:
        convert_model("tiny", folder, files, "")
    assert Path(lost).name in str(caught.value)
    assert not cache_folder().exists()


def test_truncated_source(folder: Path, files: tuple[ReleaseFile, ...]):
    (folder / "ccnf.txt").write_bytes(FILES["ccnf.txt"][:-1])
    with pytest.raises(ModelFileError, match=r"ccnf\.txt, byte"):
        convert_model("tiny", folder, files, "")


def test_cache_that_is_no_folder(home: Path, files: tuple[ReleaseFile, ...]):
    folder = write_models(home / "model")
    (home / "cache").write_text("in the way")
    with pytest.raises(ModelFileError, match="JAXCLNF_CACHE_DIR") as caught:
        convert_model("tiny", folder, files, "")
    assert str(home / "cache") in str(caught.value)
    assert conversions() == () and find_conversion("tiny") is None


@pytest.mark.parametrize(
    ("module", "name"), [(Path, "mkdir"), (Path, "write_bytes"), (os, "replace")]
)
def test_cache_that_cannot_be_written(
    folder: Path,
    files: tuple[ReleaseFile, ...],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
):
    def fail(*args: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(args[0]))

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(ModelFileError, match=r"\(Permission denied\), expected") as e:
        convert_model("tiny", folder, files, "")
    assert str(cache_folder()) in str(e.value)
    monkeypatch.undo()
    assert not [*folder.parent.glob("cache/jaxclnf/openface/*")]


# By name.


def test_names_that_are_not_there(
    home: Path, folder: Path, files: tuple[ReleaseFile, ...]
):
    message = r"\['default'\].*OpenFace: \[\].*jaxclnf models"
    with pytest.raises(ModelFileError, match=message):
        load_model("tiny")
    convert_model("tiny", folder, files, "")
    with pytest.raises(ModelFileError, match=r"\['default'\].*OpenFace: \['tiny'\]"):
        load_model("tiniest")
    with pytest.raises(ModelFileError, match="'t\\*'"):
        load_model("t*")


def test_embedded_names_come_first(
    folder: Path, files: tuple[ReleaseFile, ...], monkeypatch: pytest.MonkeyPatch
):
    file = convert_model("tiny", folder, files, "")
    model = dataclasses.replace(read_model(file), triangulations=())
    embedded = folder.parent / "embedded"
    embedded.mkdir()
    save_model(model, embedded / "tiny.npz")
    assert load_model("tiny").triangulations
    monkeypatch.setattr(load, "_MODEL_FOLDERS", (embedded,))
    assert load_model("tiny").triangulations == ()


# The published models.


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["clnf_general", "clnf_wild", "clnf_multi_pie", "clm_general", "clm_wild"]
)
def test_published_models_convert_exactly(
    tmp_path: Path, openface_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("JAXCLNF_CACHE_DIR", str(tmp_path))
    release = read_release()
    folder = find_model_folder(openface_dir.parent, release)
    assert folder is not None
    file = convert_model(name, folder, release.models[name], "The licence.")
    assert file.parent.parent == tmp_path
    for dtype in (np.float32, np.float64):
        original = read_openface_model(openface_dir / f"main_{name}.txt", dtype)
        assert_same_arrays(load.with_reals_as(read_model(file), dtype), original)
    assert find_conversion(name) == file
