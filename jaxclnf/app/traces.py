"""The shelf of traced programs in a folder, beside JAX's compiled ones."""

import functools
import hashlib
import os
import uuid
import warnings
from importlib.metadata import version
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


class TraceFolder:
    """A `Shelf` in a folder.

    A program is found again by what it was made from: key, source code of the package,
    JAX. Files begin with a digest of what follows; one that is damaged counts as none,
    and is written anew.
    """

    def __init__(self, folder: Path) -> None:
        """Takes a folder.

        Args:
            folder: The folder, which need not exist.
        """
        self._folder = folder

    def get(self, name: str, key: str) -> bytes | None:
        """As `Shelf.get`.

        Args:
            name: The name of the function.
            key: What its trace depends on.

        Returns:
            The program, or None; where a file cannot be read also with a warning.

        Example:
            >>> TraceFolder(Path("/no/such/folder")).get("fit", "float32") is None
            True
        """
        file = self._file(name, key)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            warnings.warn(
                f"{file}: a traced program cannot be read ({error.strerror}); it is "
                "traced again",
                stacklevel=2,
            )
            return None
        program = content[_DIGEST:]
        intact = hashlib.sha256(program).digest() == content[:_DIGEST]
        return program if intact else None

    def put(self, name: str, key: str, program: bytes) -> None:
        """As `Shelf.put`.

        Args:
            name: The name of the function.
            key: What its trace depends on.
            program: The program; where it cannot be written there is a warning.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     shelf = TraceFolder(Path(folder) / "traces")
            ...     shelf.put("fit", "float32", b"program")
            ...     shelf.get("fit", "float32"), shelf.get("fit", "float64")
            (b'program', None)
        """
        file = self._file(name, key)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(hashlib.sha256(program).digest() + program)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"{file}: a traced program cannot be kept ({error.strerror})",
                stacklevel=2,
            )

    def _file(self, name: str, key: str) -> Path:
        digest = hashlib.sha256(f"{_made_by()}\n{key}".encode()).hexdigest()
        return self._folder / f"{name}-{digest}"


@functools.cache
def _made_by() -> str:
    """What traces in this process, to the letter."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(folder)} {len(content)}\n".encode())
        digest.update(content)
    return f"{digest.hexdigest()} jax {version('jax')} jaxlib {version('jaxlib')}"
