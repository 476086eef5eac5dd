"""`.npz` files of training: what can be wrong with them, and those of labels."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxclnf.app.errors import ArgumentError, TableError
from jaxclnf.app.train_config import DataSource

ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    TypeError,  # NumPy gives an array, not an archive, for an .npy file
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)
"""What reading an `.npz` file that is none, or a damaged one, can end in."""

_SHAPES = {1: "(f,)", 2: "(f, n)", 3: "(f, n, 2)"}


def unreadable(path: Path, error: Exception) -> str:
    """The message for an `.npz` file that cannot be read.

    Args:
        path: The file.
        error: One of `ARCHIVE_ERRORS`.

    Returns:
        What to tell. Of a file of another kind NumPy says that it contains pickled
        objects.

    Example:
        >>> unreadable(Path("a.npz"), ValueError("Bad CRC-32"))
        'a.npz: is no .npz file'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: cannot be read ({error.strerror})"
    if not zipfile.is_zipfile(path):
        return f"{path}: is no .npz file"
    return f"{path}: is a damaged .npz file: {error}"


def read_label_arrays(source: DataSource, path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of labels that a source names.

    Args:
        source: What they are called.
        path: The `.npz` file.

    Returns:
        The arrays by their names in the file, each of the right kind and shape.

    Raises:
        ArgumentError: There is no such file, or no such array in it.
        TableError: It cannot be read, or the arrays do not fit together.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "labels.npz")
        ...     np.savez(file, names=["a.png"], landmarks=np.zeros((1, 68, 2)))
        ...     sorted(read_label_arrays(DataSource(Path(folder), file), file))
        ['landmarks', 'names']
    """
    kinds = {source.landmarks_key: ("fiu", 3), source.names_key: ("U", 1)}
    if source.spread_key is not None:
        kinds[source.spread_key] = ("fiu", 2)
    if source.use_key is not None:
        kinds[source.use_key] = ("b", 1)
    if not path.is_file():
        raise ArgumentError(f"{path}: found no such file of labels")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in kinds if key in stored}
            present = list(stored)
    except ARCHIVE_ERRORS as error:
        raise TableError(unreadable(path, error)) from error
    for key in kinds:
        if key not in arrays:
            raise ArgumentError(
                f"{path}: found no array '{key}', only {', '.join(present) or 'none'}"
            )
    shape = arrays[source.landmarks_key].shape
    for key, (kind, ndim) in kinds.items():
        array = arrays[key]
        expected = shape[:ndim] if key != source.landmarks_key else (*shape[:2], 2)
        if array.dtype.kind not in kind or len(shape) != 3 or array.shape != expected:
            words = {"U": "text", "b": "bool"}.get(kind, "numbers")
            raise TableError(
                f"{path}: found '{key}' with {array.dtype} of shape {array.shape},"
                f" expected {words} of shape {_SHAPES[ndim]} for all faces"
            )
    return arrays
