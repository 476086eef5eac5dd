"""Models of OpenFace converted into our own file, in the user's cache.

They stay under OpenFace's licence, so they belong into no project. A conversion's file
is `NAME-LAYOUT-SOURCE.npz`: LAYOUT changes when this program would store more, or store
it in another way; SOURCE changes with OpenFace's files. So one that is out of date is
never taken for a good one.
"""

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxclnf.errors import ModelFileError
from jaxclnf.openface.main_file import read_openface_model
from jaxclnf.openface.release import ReleaseFile
from jaxclnf.storage import npz
from jaxclnf.storage.npz import read_model, save_model
from jaxclnf.user_cache import CACHE_VARIABLE, user_cache

CONVERSION = 1
"""Raised when the same files and types come to be converted into something else."""

_NAME = re.compile(r"(?P<name>\w+)-(?P<layout>[0-9a-f]{8})-(?P<source>[0-9a-f]{12})")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One converted model in the cache."""

    name: str
    """The model's name, `"clnf_general"`."""
    file: Path
    """Where it is."""
    layout: str
    """Which version of the conversion made it."""

    @property
    def is_current(self) -> bool:
        """Whether this program would convert in the same way."""
        return self.layout == _layout()


def cache_folder() -> Path:
    """The folder of converted models, which need not exist.

    Returns:
        The folder.

    Example:
        >>> cache_folder().name
        'openface'
    """
    return user_cache() / "openface"


def conversion_file(name: str, files: Iterable[ReleaseFile]) -> Path:
    """The file that the conversion of a model has, or would have.

    Args:
        name: The model's name.
        files: The published files that it is made of.

    Returns:
        A file of the cache; another one for other files, and for another layout.

    Example:
        >>> one, other = (ReleaseFile("a.txt", 1, digest) for digest in ("0a", "0b"))
        >>> conversion_file("tiny", [one]) == conversion_file("tiny", [other])
        False
    """
    facts = json.dumps([[file.path, file.sha256] for file in files])
    return cache_folder() / f"{name}-{_layout()}-{_digest(facts, 12)}.npz"


def conversions() -> tuple[Conversion, ...]:
    """All converted models in the cache, those out of date too.

    Returns:
        The conversions, the youngest first; none where there is no cache or it cannot
        be looked into.

    Example:
        >>> all(found.file.suffix == ".npz" for found in conversions())
        True
    """
    folder = cache_folder()
    found = []
    for file in folder.glob("*.npz") if os.path.isdir(folder) else ():
        match = _NAME.fullmatch(file.stem)
        try:
            facts = os.stat(file)
        except OSError:  # Another process converts, and has just removed it.
            continue
        if match and stat.S_ISREG(facts.st_mode):
            conversion = Conversion(match["name"], file, match["layout"])
            found.append((facts.st_mtime, str(file), conversion))
    return tuple(conversion for *_, conversion in sorted(found, reverse=True))


def find_conversion(name: str) -> Path | None:
    """The file of a converted model.

    Args:
        name: The model's name, `"clnf_general"`.

    Returns:
        Its file; the youngest of several; `None` if there is none that this program
        made or would make.

    Example:
        >>> find_conversion("no_such_model") is None
        True
    """
    for conversion in conversions():
        if conversion.name == name and conversion.is_current:
            return conversion.file
    return None


def is_converted(name: str, files: Sequence[ReleaseFile]) -> bool:
    """Whether a model has been converted and its file can be read.

    Args:
        name: The model's name.
        files: The published files that it is made of.

    Returns:
        False if it must be converted, or converted again.

    Example:
        >>> is_converted("tiny", [ReleaseFile("a.txt", 1, "0a")])
        False
    """
    file = conversion_file(name, files)
    if not file.is_file():
        return False
    try:
        read_model(file)
    except ModelFileError:  # Damaged: it is made again.
        return False
    return True


def convert_model(
    name: str,
    folder: str | os.PathLike[str],
    files: Sequence[ReleaseFile],
    licence: str,
) -> Path:
    """Converts a model of OpenFace into one file of the cache.

    An older conversion of the same model is removed once the new one is there. Every
    number is kept: what float32 cannot hold is stored in float64.

    Args:
        name: The model's name.
        folder: OpenFace's folder of models.
        files: The published files that it is made of, main file first; they are not
            checked here.
        licence: Text of the licence, which becomes part of the file.

    Returns:
        The converted file.

    Raises:
        ModelFileError: If a file is missing or damaged, if this version does not
            support what is in it, or if the cache cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         convert_model("tiny", folder, [ReleaseFile("no.txt", 1, "")], "")
        ...     except ModelFileError as error:
        ...         print(str(error).removeprefix(folder)[1:])
        no.txt: found no such file, expected a model file
    """
    main = Path(folder, files[0].path)
    with jax.enable_x64(True):
        model = jax.tree.map(_compact, read_openface_model(main, np.float64))
        info = dataclasses.replace(
            model.info,
            name=name,
            licence=licence,
            provenance=f"{model.info.provenance}, converted by jaxclnf",
        )
        model = dataclasses.replace(model, info=info)
        file = conversion_file(name, files)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_model(model, file)
            for old in conversions():
                if old.name == name and old.file != file:
                    old.file.unlink(missing_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"{error.filename or file}: found a place that cannot be written"
                f" ({error.strerror or error}), expected a cache for converted models;"
                f" {CACHE_VARIABLE} names another folder"
            ) from error
    return file


def _compact(leaf: jax.Array) -> np.ndarray:
    """The same numbers, in float32 if that holds them exactly."""
    array = np.asarray(leaf)
    if array.dtype != np.float64:
        return array
    # What is too large becomes infinite, hence not equal.
    with np.errstate(over="ignore"):
        small = array.astype(np.float32)
    return small if np.array_equal(small, array, equal_nan=True) else array


def _layout() -> str:
    """Tells apart what conversions store: the types, their fields, and CONVERSION."""
    types = {
        name: [field.name for field in dataclasses.fields(cls)]
        for name, cls in npz._TYPES.items()
    }
    return _digest(json.dumps([npz.VERSION, CONVERSION, types], sort_keys=True), 8)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
