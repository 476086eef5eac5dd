"""The published files of an OpenFace release: which, where, and whether they are whole.

`models/openface-2.2.0.json` lists them by size and SHA-256. The files themselves are
OpenFace's and come from there; nothing is downloaded here.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import platformdirs

from jaxclnf.errors import ModelFileError, read_bytes
from jaxclnf.openface.text import read_text

PLACES = (
    ".",
    "model",
    "lib/local/LandmarkDetector/model",
    "originals/lib/local/LandmarkDetector/model",
)
"""Where model files are in a folder: its own, that of OpenFace's programs, of its
sources, and of the cache that PyCLNF and its siblings share."""

FOLDER_VARIABLE = "OPENFACE_MODELS_DIR"
"""Environment variable that names the shared cache, in place of the user's own."""

_LIST = "openface-2.2.0.json"
_PACKAGE = Path(__file__).parents[1]
# In an installed package, and in a checkout of the repository.
_LISTS = (_PACKAGE / "models" / _LIST, _PACKAGE.parent / "models" / _LIST)


@dataclasses.dataclass(frozen=True)
class ReleaseFile:
    """One published file."""

    path: str
    """Its place in the folder of models, with slashes."""
    size: int
    """Bytes; with LF line ends if it is text."""
    sha256: str
    """SHA-256 of those bytes, hexadecimal."""
    is_apart: bool = False
    """Whether it is published apart from OpenFace's sources, so that copies lack it."""


@dataclasses.dataclass(frozen=True)
class Release:
    """The files of a release that its models need."""

    version: str
    """Its number, `"2.2.0"`."""
    models: dict[str, tuple[ReleaseFile, ...]]
    """What each model needs, by the model's name; its main file first."""


@dataclasses.dataclass(frozen=True)
class FileState:
    """What was found where a published file should be."""

    problem: str = ""
    """What is wrong, naming the file; empty if it is the published one."""
    is_missing: bool = False
    """Whether there is no file at all."""


def read_release(path: str | os.PathLike[str] | None = None) -> Release:
    """Reads the list of a release's files.

    Args:
        path: The list; `None` for the one that comes with the package.

    Returns:
        The release.

    Raises:
        ModelFileError: If there is no such list or it is damaged.

    Example:
        >>> release = read_release()
        >>> release.version, release.models["clnf_general"][0].path
        ('2.2.0', 'main_clnf_general.txt')
    """
    lists = _LISTS if path is None else (Path(path),)
    file = next((file for file in lists if file.is_file()), lists[0])
    try:
        content = json.loads(read_text(file))
        files = {name: _file(name, facts) for name, facts in content["files"].items()}
        models = {
            name: tuple(files[path] for path in paths)
            for name, paths in content["models"].items()
        }
        return Release(version=str(content["release"]), models=models)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{file}: found a damaged list ({error}), expected the published files of a"
            " release of OpenFace"
        ) from error


def standard_folder(version: str) -> Path:
    """Where the files of a release are kept if nothing else is said.

    It is `$OPENFACE_MODELS_DIR/VERSION` where that variable is set, else
    `OpenFaceModels/VERSION` among the user's data: the cache that PyCLNF 0.4 and its
    siblings use too.

    Args:
        version: The release, `"2.2.0"`.

    Returns:
        The folder, which need not exist.

    Example:
        >>> standard_folder("2.2.0").name
        '2.2.0'
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(named), version)
    return platformdirs.user_data_path("OpenFaceModels", appauthor=False) / version


def find_model_folder(folder: str | os.PathLike[str], release: Release) -> Path | None:
    """Finds OpenFace's folder of models in another, or recognises it as one.

    Args:
        folder: A folder of models, or one that has it in one of `PLACES`.
        release: What there should be.

    Returns:
        The place with most of the release's files; `None` if there are none.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pathlib.Path(folder, "model").mkdir()
        ...     pathlib.Path(folder, "model", "main_clnf_wild.txt").touch()
        ...     found = find_model_folder(folder, read_release())
        >>> found.name
        'model'
    """
    paths = {file.path for files in release.models.values() for file in files}
    best, most = None, 0
    for place in PLACES:
        candidate = Path(folder, place)
        num = sum(os.path.isfile(candidate / path) for path in paths)
        if num > most:
            best, most = candidate, num
    return best


def check_files(
    folder: str | os.PathLike[str], files: Iterable[ReleaseFile]
) -> dict[str, FileState]:
    """Compares files with the published ones.

    Line ends of text files do not matter: some systems change them when they copy.

    Args:
        folder: The folder of models.
        files: The published files.

    Returns:
        What was found, by each file's place in the folder.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "a.txt").write_text("abc")
        ...     states = check_files(folder, [ReleaseFile("a.txt", 4, "")])
        >>> states["a.txt"].problem[-46:]
        'a.txt: found 3 bytes, expected 4, as published'
    """
    return {file.path: _check(Path(folder, file.path), file) for file in files}


def _check(path: Path, file: ReleaseFile) -> FileState:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return FileState(f"{path}: found no such file, expected a model file", True)
    except OSError as error:
        return FileState(
            f"{path}: found a file out of reach ({error.strerror}), expected one that"
            " may be read"
        )
    try:
        data = read_bytes(path)
    except ModelFileError as error:
        return FileState(str(error))
    if b"\0" not in data:
        data = data.replace(b"\r\n", b"\n")
    if len(data) != file.size:
        return FileState(
            f"{path}: found {len(data)} bytes, expected {file.size}, as published"
        )
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        return FileState(
            f"{path}: found SHA-256 {found}, expected {file.sha256}, as published"
        )
    return FileState()


def _file(path: str, facts: dict[str, Any]) -> ReleaseFile:
    return ReleaseFile(
        path=path,
        size=int(facts["size"]),
        sha256=str(facts["sha256"]),
        is_apart=bool(facts.get("apart", False)),
    )
