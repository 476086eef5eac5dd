"""Traced programs in a folder: found by other processes, and never a hindrance."""

import os
import time
from pathlib import Path

import pytest

from jaxclnf.app import traces
from jaxclnf.app.traces import TraceFolder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that was written before it was loaded."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "one.py").write_text("a = 1\n")
    (folder / "two.py").write_text("b = 1\n")
    monkeypatch.setattr(traces, "LOADED_AT", time.time() + 1000)
    return folder


def test_what_was_put_there_is_found(tmp_path: Path) -> None:
    shelf = TraceFolder(tmp_path / "traced")
    assert shelf.get("fit", "a") is None
    shelf.put("fit", "a", b"one")
    shelf.put("fit", "b", b"two")
    shelf.put("fit", "a", b"three")
    again = TraceFolder(tmp_path / "traced")
    assert (again.get("fit", "a"), again.get("fit", "b")) == (b"three", b"two")
    assert again.get("track", "a") is None
    assert len(list(tmp_path.rglob("*"))) == 3  # the folder, and no temporary files


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_damaged_ones_count_as_none(tmp_path: Path, damage: bytes | None) -> None:
    shelf = TraceFolder(tmp_path)
    shelf.put("fit", "a", b"program")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert shelf.get("fit", "a") is None
    shelf.put("fit", "a", b"program")
    assert shelf.get("fit", "a") == b"program"


def test_a_folder_that_cannot_be_used_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (
        lambda shelf: shelf.put("fit", "a", b"program"),
        lambda shelf: shelf.get("fit", "a"),
    ):
        shelf = TraceFolder(tmp_path / "file")
        with pytest.warns(UserWarning, match="file: traced programs cannot be kept"):
            assert use(shelf) is None
        shelf.put("fit", "a", b"program")
        assert shelf.get("fit", "a") is None
    assert (tmp_path / "file").read_bytes() == b""


def test_the_folder_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shelf = TraceFolder(Path("traced"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shelf.put("fit", "a", b"program")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere", "traced"]


@pytest.mark.parametrize("change", ["contents", "name", "one more", "one less"])
def test_other_sources_make_other_programs(
    tmp_path: Path, package: Path, change: str
) -> None:
    TraceFolder(tmp_path / "traced", package).put("fit", "a", b"program")
    assert TraceFolder(tmp_path / "traced", package).get("fit", "a") == b"program"
    match change:
        case "contents":
            (package / "two.py").write_text("b = 2\n")
        case "name":
            (package / "two.py").rename(package / "three.py")
        case "one more":
            (package / "inner").mkdir()
            (package / "inner" / "three.py").touch()
        case "one less":
            (package / "two.py").unlink()
    other = TraceFolder(tmp_path / "traced", package)
    assert other.get("fit", "a") is None
    other.put("fit", "a", b"other program")
    assert other.get("fit", "a") == b"other program"


def test_sources_that_changed_since_are_not_those_that_trace(
    tmp_path: Path, package: Path
) -> None:
    shelf = TraceFolder(tmp_path / "traced", package)
    shelf.put("fit", "a", b"program")
    source, again = package / "two.py", package / "three.py"
    state = source.stat()
    again.write_text("b = 2\n")
    os.utime(again, ns=(state.st_atime_ns, state.st_mtime_ns))
    again.rename(source)  # of the same size and time
    assert shelf.get("fit", "a") is None
    shelf.put("fit", "b", b"program")
    assert len(list((tmp_path / "traced").iterdir())) == 1


def test_sources_younger_than_what_was_loaded_are_not_those_that_trace(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = time.time() - 1000
    monkeypatch.setattr(traces, "LOADED_AT", long_ago)
    for source in package.iterdir():  # as archives are unpacked
        os.utime(source, (long_ago - 1000, long_ago - 1000))
    shelf = TraceFolder(tmp_path / "traced", package)
    shelf.put("fit", "a", b"program")
    assert shelf.get("fit", "a") is None and not (tmp_path / "traced").exists()


@pytest.mark.parametrize("name", [".#one.py", "gone.py", "folder.py"])
def test_what_is_no_source_is_no_hindrance(
    tmp_path: Path, package: Path, name: str
) -> None:
    """An editor's lock is as no file; what cannot be read makes the folder unusable."""

    def put_there() -> None:
        if name == "folder.py":
            (package / name).mkdir()
        else:
            (package / name).symlink_to("nowhere")

    expected = b"program" if name == ".#one.py" else None
    shelf = TraceFolder(tmp_path / "traced", package)
    shelf.put("fit", "a", b"program")
    put_there()
    for one in (shelf, TraceFolder(tmp_path / "traced", package)):
        assert one.get("fit", "a") == expected
        one.put("fit", "a", b"program")


def test_without_sources_nothing_is_kept(tmp_path: Path) -> None:
    shelf = TraceFolder(tmp_path / "traced", tmp_path / "archive.zip" / "package")
    shelf.put("fit", "a", b"program")
    assert shelf.get("fit", "a") is None and not (tmp_path / "traced").exists()


def test_other_libraries_make_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = TraceFolder(tmp_path)
    shelf.put("fit", "a", b"program")
    for library in ("jax", "jaxlib.version", "numpy"):
        with monkeypatch.context() as changed:
            changed.setattr(f"{library}.__version__", "0.0.1")
            assert shelf.get("fit", "a") is None
    assert shelf.get("fit", "a") == b"program"
    assert "jax" in traces._libraries()
