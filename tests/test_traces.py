"""Traced programs in a folder: found by other processes, and never a hindrance."""

import os
import time
from pathlib import Path

import pytest

from jaxclnf.app import traces
from jaxclnf.app.traces import TraceFolder
from jaxclnf.shelf import LOADED_AT


def package(folder: Path) -> Path:
    """A package that was written before it was loaded."""
    folder.mkdir()
    write(folder / "one.py", "a = 1\n")
    write(folder / "two.py", "b = 1\n")
    return folder


def write(file: Path, text: str, seconds: float = -60.0) -> None:
    file.write_text(text)
    changed = LOADED_AT + seconds
    os.utime(file, (changed, changed))


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
def test_other_sources_make_other_programs(tmp_path: Path, change: str) -> None:
    sources = package(tmp_path / "package")
    TraceFolder(tmp_path / "traced", sources).put("fit", "a", b"program")
    assert TraceFolder(tmp_path / "traced", sources).get("fit", "a") == b"program"
    match change:
        case "contents":
            write(sources / "two.py", "b = 2\n")
        case "name":
            (sources / "two.py").rename(sources / "three.py")
        case "one more":
            (sources / "inner").mkdir()
            write(sources / "inner" / "three.py", "")
        case "one less":
            (sources / "two.py").unlink()
    other = TraceFolder(tmp_path / "traced", sources)
    assert other.get("fit", "a") is None
    other.put("fit", "a", b"other program")
    assert other.get("fit", "a") == b"other program"


def test_sources_that_changed_since_are_not_those_that_trace(tmp_path: Path) -> None:
    sources = package(tmp_path / "package")
    shelf = TraceFolder(tmp_path / "traced", sources)
    shelf.put("fit", "a", b"program")
    write(sources / "two.py", "b = 2\n", -30.0)
    assert shelf.get("fit", "a") is None
    shelf.put("fit", "b", b"program")
    write(sources / "one.py", "a = 3\n", time.time() - LOADED_AT)
    later = TraceFolder(tmp_path / "traced", sources)
    later.put("fit", "a", b"program")
    assert later.get("fit", "a") is None
    assert len(list((tmp_path / "traced").iterdir())) == 1


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
