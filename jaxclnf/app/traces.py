"""The shelf of traced programs in a folder, beside JAX's compiled ones."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from jaxclnf.shelf import LOADED_AT
from jaxclnf.whole_files import write_whole

_DIGEST = hashlib.sha256().digest_size
_PACKAGE = Path(__file__).parents[1]


class TraceFolder:
    """A `Shelf` in a folder.

    A program is found again by what it was made from: the source code of the package,
    JAX, its key. Files begin with a digest of what follows; one that is damaged counts
    as none, and is written anew. Where there are no sources, where they cannot be read
    or are others than those that were loaded, nothing is found and nothing kept.
    """

    def __init__(self, folder: Path, package: Path = _PACKAGE) -> None:
        """Takes a folder.

        Args:
            folder: The folder, which need not exist.
            package: Where the sources are.
        """
        self._folder, self._package = Path(os.path.abspath(folder)), package
        self._sources, self._made_by = _states(package), _digest(package)
        self._is_usable = (
            bool(self._sources)
            and self._made_by is not None
            and all(state.changed_ns < 1e9 * LOADED_AT for state in self._sources)
        )

    def get(self, name: str, key: str) -> bytes | None:
        """As `Shelf.get`.

        Args:
            name: The name of the function.
            key: What its trace depends on.

        Returns:
            The program, or None. Where the folder cannot be read there is a warning,
            and it is not used any more.

        Example:
            >>> TraceFolder(Path("/no/such/folder")).get("fit", "float32") is None
            True
        """
        if not self._is_current():
            return None
        try:
            content = self._file(name, key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._give_up(error)
        program = content[_DIGEST:]
        intact = hashlib.sha256(program).digest() == content[:_DIGEST]
        return program if intact else None

    def put(self, name: str, key: str, program: bytes) -> None:
        """As `Shelf.put`.

        Args:
            name: The name of the function.
            key: What its trace depends on.
            program: The program. Where it cannot be written there is a warning, and
                the folder is not used any more.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     shelf = TraceFolder(Path(folder) / "traces")
            ...     shelf.put("fit", "float32", b"program")
            ...     shelf.get("fit", "float32"), shelf.get("fit", "float64")
            (b'program', None)
        """
        if not self._is_current():
            return
        file = self._file(name, key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, hashlib.sha256(program).digest() + program)
        except OSError as error:
            self._give_up(error)

    def _is_current(self) -> bool:
        return self._is_usable and _states(self._package) == self._sources

    def _file(self, name: str, key: str) -> Path:
        text = f"{self._made_by}\n{_libraries()}\n{key}"
        return self._folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()}"

    def _give_up(self, error: OSError) -> None:
        self._is_usable = False
        warnings.warn(
            f"{self._folder}: traced programs cannot be kept ({error.strerror})",
            stacklevel=3,
        )


class _State(NamedTuple):
    """What tells whether a source has changed."""

    name: str
    changed_ns: int
    """When, its time having been set or not, nanoseconds since the epoch."""
    size: int
    number: int


def _sources(package: Path) -> list[Path]:
    """Without locks and copies of editors."""
    return sorted(p for p in package.rglob("*.py") if not p.name.startswith("."))


def _states(package: Path) -> list[_State] | None:
    try:
        stats = [(str(path), path.stat()) for path in _sources(package)]
    except OSError:  # Some are being replaced: they are not those that were loaded.
        return None
    return [
        _State(name, max(x.st_mtime_ns, x.st_ctime_ns), x.st_size, x.st_ino)
        for name, x in stats
    ]


def _digest(package: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        for source in _sources(package):
            content = source.read_bytes()
            digest.update(f"{source.relative_to(package)} {len(content)}\n".encode())
            digest.update(content)
    except OSError:
        return None
    return digest.hexdigest()


def _libraries() -> str:
    """What traces besides the package, as it was loaded."""
    import jax  # which may not be loaded yet when the folder is chosen
    import numpy as np
    from jaxlib.version import __version__ as jaxlib

    return f"jax {jax.__version__} {jaxlib} numpy {np.__version__}"
