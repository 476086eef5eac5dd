"""Traced programs in a folder: found by other processes, and never a hindrance."""

from pathlib import Path

import pytest

from jaxclnf.app import traces
from jaxclnf.app.traces import TraceFolder


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


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shelf = TraceFolder(tmp_path / "file")
    with pytest.warns(UserWarning, match="file.*cannot be kept"):
        shelf.put("fit", "a", b"program")
    with pytest.warns(UserWarning, match="file.*cannot be read"):
        assert shelf.get("fit", "a") is None


def test_other_sources_make_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = TraceFolder(tmp_path)
    shelf.put("fit", "a", b"program")
    monkeypatch.setattr(traces, "_made_by", lambda: "other sources")
    assert shelf.get("fit", "a") is None
