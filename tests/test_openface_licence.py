"""OpenFace's licence: where it is found, and remembering that it was accepted."""

import os
from pathlib import Path

import platformdirs
import pytest

from jaxclnf.app import openface_licence
from jaxclnf.app.errors import ArgumentError, MediaError
from jaxclnf.app.openface_licence import (
    acceptances_file,
    accepted_on,
    ensure_accepted,
)
from jaxclnf.errors import ModelFileError
from jaxclnf.openface.licence import IN_SHORT, Licence, find_licence
from tests.openface_release import LICENCE, isolate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders."""
    isolate(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


def test_the_nearest_licence(tmp_path: Path):
    openface = tmp_path / "openface"
    deep = tmp_path / "cache" / "originals/lib/local/LandmarkDetector/model"
    for folder in (openface / "model", deep):
        folder.mkdir(parents=True)
    (openface / "OpenFace-license.txt").write_text(LICENCE)
    assert find_licence(openface / "model").files == (
        openface / "OpenFace-license.txt",
    )
    (openface / "model" / "Copyright.txt").write_text("Nearer.")
    assert find_licence(openface / "model").text == "Nearer."
    assert find_licence(deep) == Licence(IN_SHORT)
    (tmp_path / "cache" / "originals" / "OpenFace-license.txt").write_text(LICENCE)
    assert find_licence(deep).text == LICENCE.strip()
    assert find_licence("/").text == IN_SHORT


def test_an_unreadable_licence(tmp_path: Path):
    (tmp_path / "OpenFace-license.txt").write_bytes(b"")
    with pytest.raises(ModelFileError, match="found an empty file"):
        find_licence(tmp_path)


def test_memory_that_cannot_be_read_or_written(home: Path, monkeypatch):
    licence = Licence("Some licence.")
    (home / "config").write_text("in the way")
    with pytest.raises(MediaError, match="cannot be remembered"):
        ensure_accepted(licence, accept=True)
    (home / "config").unlink()
    acceptances_file().mkdir(parents=True)
    with pytest.raises(MediaError, match="unreadable"):
        accepted_on(licence)
    acceptances_file().rmdir()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(MediaError, match="No space left"):
            ensure_accepted(licence, accept=True)
    assert not [*acceptances_file().parent.iterdir()]
    with pytest.raises(ArgumentError):
        ensure_accepted(licence, accept=False)
    ensure_accepted(licence, accept=True)
    assert accepted_on(licence) is not None


def test_the_files_of_the_user_are_where_they_belong():
    """Else the tests would look at the real ones."""
    assert openface_licence.platformdirs is platformdirs
    assert acceptances_file().parent.parent.name == "config"
