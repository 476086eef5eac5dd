"""Files that are written whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    The bytes go to a temporary file beside it, which then takes its name.

    Args:
        path: Where to; a file already there is replaced.
        data: The contents.

    Raises:
        OSError: It cannot be written; the error names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a"), b"text")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a']
    """
    # Not made from the file's own name, which may already be as long as is allowed,
    # and opened plainly, so that the file gets the usual permissions.
    partial = path.with_name(f".jaxclnf-{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        # It names the temporary file, or none.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):  # what matters is why it was not written
            partial.unlink(missing_ok=True)
