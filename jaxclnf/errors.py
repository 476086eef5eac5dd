"""Model files that cannot be used: the error, and where every reader begins."""

import os
from pathlib import Path

MAX_FILE_BYTES = 2 << 30
"""Largest file that is read; far above any model, far below a computer's memory."""


class ModelFileError(ValueError):
    """A model file is missing, damaged, or not what it should be.

    The message names the file and the place in it, what was found, and what was
    expected.
    """


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a model file.

    Args:
        path: The file.

    Returns:
        All its bytes, at least one.

    Raises:
        ModelFileError: If it is not a readable, non-empty file of sensible size.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"abc")
        ...     file.flush()
        ...     read_bytes(file.name)
        b'abc'
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ModelFileError(f"{path}: found a folder, expected a model file")
        if not path.is_file():
            raise ModelFileError(f"{path}: found no such file, expected a model file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path}: found {size} bytes, expected at most {MAX_FILE_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: found an unreadable file ({error.strerror}), expected a model"
            " file that may be read"
        ) from error
    if not data:
        raise ModelFileError(f"{path}: found an empty file, expected a model file")
    return data
