"""OpenFace's published files: their list, where they are, whether they are whole."""

import json
import os
from pathlib import Path

import pytest

from jaxclnf.errors import ModelFileError
from jaxclnf.openface import release as module
from jaxclnf.openface.directives import named, only, read_directives
from jaxclnf.openface.release import (
    PLACES,
    Release,
    check_files,
    find_model_folder,
    read_release,
    standard_folder,
)
from tests.openface_release import FILES, MODELS, isolate, write_list, write_models


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders."""
    isolate(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


@pytest.fixture
def release(home: Path) -> Release:
    """The made-up release."""
    return read_release()


def states_of(folder: Path, release: Release, name: str = "tiny") -> dict[str, str]:
    """The problems of a model's files, of those that have one."""
    states = check_files(folder, release.models[name])
    assert [*states] == MODELS[name]
    return {path: state.problem for path, state in states.items() if state.problem}


# The list.


def test_the_list_is_read(release: Release):
    assert release.version == "9.9"
    found = {name: [f.path for f in files] for name, files in release.models.items()}
    assert found == MODELS
    assert [f.is_apart for f in release.models["apart"]] == [False, False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "[1, 2]",
        "{}",
        '{"release": "1", "models": {"a": ["x"]}, "files": {}}',
        '{"release": "1", "models": {"a": ["x"]}, "files": {"x": {"size": 1}}}',
        '{"release": "1", "models": {"a": 3}, "files": {}}',
        '{"release": "1", "models": {}, "files": {"x": {"size": "s", "sha256": ""}}}',
    ],
)
def test_damaged_lists(tmp_path: Path, text: str):
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(ModelFileError, match="found a damaged list") as caught:
        read_release(file)
    assert str(file) in str(caught.value) and "expected" in str(caught.value)


def test_no_list(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LISTS", (home / "a.json", home / "b.json"))
    with pytest.raises(ModelFileError, match=r"a\.json: found no such file"):
        read_release()
    write_list(home / "b.json")
    assert read_release().version == "9.9"


# Where the files are.


def test_the_folder_of_the_user(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert standard_folder("9.9") == home / "data" / "OpenFaceModels" / "9.9"
    monkeypatch.setenv("OPENFACE_MODELS_DIR", "")
    assert standard_folder("9.9") == home / "data" / "OpenFaceModels" / "9.9"
    monkeypatch.setenv("OPENFACE_MODELS_DIR", str(home / "other"))
    assert standard_folder("9.9") == home / "other" / "9.9"


@pytest.mark.parametrize("place", PLACES)
def test_models_are_found_in_every_place(tmp_path: Path, release: Release, place: str):
    write_models(tmp_path / "all" / place)
    found = find_model_folder(tmp_path / "all", release)
    assert found is not None and os.path.samefile(found, tmp_path / "all" / place)


def test_the_fuller_place_wins(tmp_path: Path, release: Release):
    write_models(tmp_path / "model")
    (tmp_path / "main_tiny.txt").write_bytes(FILES["main_tiny.txt"])
    assert find_model_folder(tmp_path, release) == tmp_path / "model"


def test_no_models(tmp_path: Path, release: Release):
    (tmp_path / "main_tiny.txt").mkdir()
    assert find_model_folder(tmp_path, release) is None
    assert find_model_folder(tmp_path / "absent", release) is None


# Whether they are whole.


def test_whole_files(tmp_path: Path, release: Release):
    write_models(tmp_path)
    assert states_of(tmp_path, release) == {}


def test_line_ends_do_not_matter(tmp_path: Path, release: Release):
    write_models(tmp_path)
    text = FILES["main_tiny.txt"]
    (tmp_path / "main_tiny.txt").write_bytes(text.replace(b"\n", b"\r\n"))
    assert states_of(tmp_path, release) == {}
    # In a binary file such bytes are numbers.
    data = FILES["ccnf.txt"]
    (tmp_path / "ccnf.txt").write_bytes(data[:-4] + b"\r\n" + data[-4:])
    assert states_of(tmp_path, release).keys() == {"ccnf.txt"}


def test_missing_files(tmp_path: Path, release: Release):
    write_models(tmp_path)
    (tmp_path / "ccnf.txt").unlink()
    states = check_files(tmp_path, release.models["tiny"])
    assert [path for path, s in states.items() if s.is_missing] == ["ccnf.txt"]
    assert states["ccnf.txt"].problem.startswith(f"{tmp_path / 'ccnf.txt'}: found no")
    (tmp_path / "eye").rename(tmp_path / "elsewhere")
    (tmp_path / "eye").write_text("not a folder")
    states = check_files(tmp_path, release.models["tiny"])
    assert sum(state.is_missing for state in states.values()) == 4


def test_wrong_files(tmp_path: Path, release: Release):
    write_models(tmp_path)
    data = FILES["ccnf.txt"]
    file = tmp_path / "ccnf.txt"
    changed = data[:-1] + bytes([data[-1] ^ 1])
    for content, problem in [
        (data[:-1], f"found {len(data) - 1} bytes, expected {len(data)}"),
        (data + b"\0", f"found {len(data) + 1} bytes, expected {len(data)}"),
        (changed, "found SHA-256"),
        (b"", "found an empty file"),
    ]:
        file.write_bytes(content)
        (found,) = states_of(tmp_path, release).values()
        assert found.startswith(f"{file}: {problem}") and "expected" in found
    file.unlink()
    file.mkdir()
    assert "found a folder" in states_of(tmp_path, release)["ccnf.txt"]


@pytest.mark.parametrize("method", ["stat", "read_bytes"])
def test_unreadable_files(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch, method: str
):
    write_models(tmp_path)
    original = getattr(Path, method)

    def fail(path: Path, *args: object, **kwargs: object):
        if path.name == "ccnf.txt":
            raise PermissionError(13, "Permission denied")
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, method, fail)
    states = check_files(tmp_path, release.models["tiny"][:5])
    state = states["ccnf.txt"]
    assert "(Permission denied), expected" in state.problem and not state.is_missing
    assert [s.problem for s in states.values() if s is not state] == [""] * 4


# The published files.


def test_the_list_of_the_package():
    release = read_release()
    assert release.version == "2.2.0"
    assert [*release.models] == [
        "clnf_general",
        "clnf_wild",
        "clnf_multi_pie",
        "clm_general",
        "clm_wild",
        "ceclm_general",
    ]
    for name, files in release.models.items():
        assert files[0].path == f"main_{name}.txt"
        assert all(len(file.sha256) == 64 and file.size > 20 for file in files)
        assert len({file.path for file in files}) == len(files)
    apart = [f.path for f in release.models["ceclm_general"] if f.is_apart]
    assert len(apart) == 4 and all(path.endswith("_of.dat") for path in apart)


def test_the_list_holds_facts_only():
    file = next(file for file in module._LISTS if file.is_file())
    assert file.stat().st_size < 20_000
    content = json.loads(file.read_text())
    for facts in content["files"].values():
        assert facts.keys() <= {"size", "sha256", "apart"}


def needed(main: Path) -> set[Path]:
    """The files that a main file asks for, itself too."""
    directives = read_directives(main)
    detector = main.parent / only(directives, "LandmarkDetector").rest
    found = {main, detector}
    for directive in read_directives(detector):
        found.add(main.parent / directive.rest)
    for directive in named(directives, "DetectionValidator"):
        found.add(main.parent / directive.rest)
    for directive in named(directives, "LandmarkDetector_part"):
        found |= needed(main.parent / directive.rest.split()[0])
    return found


@pytest.mark.shared
def test_published_files_are_those_of_the_list(openface_dir: Path):
    release = read_release()
    for base in (openface_dir, openface_dir.parent):
        folder = find_model_folder(base, release)
        assert folder is not None and folder.resolve() == openface_dir.resolve()
    for files in release.models.values():
        paths = {openface_dir / file.path for file in files}
        assert needed(openface_dir / files[0].path) == paths
        states = check_files(openface_dir, files)
        for file in files:
            assert states[file.path].is_missing == file.is_apart
            assert bool(states[file.path].problem) == file.is_apart
