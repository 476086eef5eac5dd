"""Image files: reading whatever people have, and writing without half-written files."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxclnf.app.errors import MediaError
from jaxclnf.app.streams import decoder_messages
from jaxclnf.whole_files import write_whole

MAX_FILE_BYTES = 1 << 30
"""Largest image file that is read; far above any photograph."""

MAX_SIDE = 1 << 15
"""Longest side of an image that is used, pixels. One narrow strip of more would still
take memory for a whole square."""

_DAMAGE = re.compile(
    r"Corrupt JPEG data: (?!\d+ extraneous bytes)|.*code not yet in table"
)
"""What decoders say of a picture that they fill up with other pixels. Bytes too many,
which some cameras write, spoil none."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files in a folder that count as images, in small letters."""

FOLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""Those that OpenFace's users expect a folder of inputs to mean."""


def read_image(
    path: str | os.PathLike[str],
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Reads a photograph in any format that OpenCV knows.

    It is turned upright as its EXIF tag says; 16-bit files keep their upper 8 bits and
    transparency is dropped. While a file is decoded, what C libraries write to the
    error stream is caught for the message, so one thread decodes at a time.

    Args:
        path: The file; any characters are fine.

    Returns:
        The picture with channels blue, green, red, and in grey.

    Raises:
        MediaError: If it is no readable image; the message names the file and says
            what is wrong with it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_png(Path(folder, "a.png"), np.full((2, 3, 3), 7, np.uint8))
        ...     bgr, grey = read_image(Path(folder, "a.png"))
        >>> bgr.shape, grey.tolist()
        ((2, 3, 3), [[7, 7, 7], [7, 7, 7]])
    """
    path = Path(path)
    data = _read_bytes(path)
    with decoder_messages() as messages:
        try:
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            if "CV_IO_MAX_IMAGE" in str(error):
                raise MediaError(
                    f"{path}: more pixels than OpenCV decodes (2^20 a side, 2^30 in"
                    " all)"
                ) from error
            raise MediaError(f"{path}: damaged image ({error.err or error})") from error
    if bgr is None:
        raise MediaError(f"{path}: {_why_not_decoded(path, messages)}")
    if damage := next(filter(_DAMAGE.match, messages), None):
        raise MediaError(f"{path}: damaged image ({damage})")
    height, width = bgr.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise MediaError(
            f"{path}: {width} x {height} pixels; at most {MAX_SIDE} a side are used"
        )
    return bgr, cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)


def write_png(path: str | os.PathLike[str], bgr: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a picture as a PNG file, whole or not at all.

    Args:
        path: Where to; a file already there is replaced.
        bgr: Channels blue, green, red.

    Raises:
        MediaError: If it cannot be encoded or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_png(Path(folder, "a.png"), np.zeros((2, 3, 3), np.uint8))
        ...     os.listdir(folder)
        ['a.png']
    """
    try:
        encoded, data = cv2.imencode(".png", bgr)
    except cv2.error as error:
        raise MediaError(f"{path}: cannot be encoded ({error.err})") from error
    if not encoded:
        raise MediaError(f"{path}: cannot be encoded as PNG")
    write_bytes(path, data.tobytes())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all.

    The bytes go to a temporary file beside it, which then takes its name.

    Args:
        path: Where to; a file already there is replaced.
        data: The contents.

    Raises:
        MediaError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder, "a"), b"text")
        ...     Path(folder, "a").read_bytes()
        b'text'
    """
    try:
        write_whole(Path(path), data)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror})") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder, and those above it, unless it is there.

    Args:
        path: The folder.

    Returns:
        The folder.

    Raises:
        MediaError: If it cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_folder(Path(folder, "new", "deep")).is_dir()
        True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise MediaError(f"{path}: is a file, not a folder") from error
    except OSError as error:
        raise MediaError(
            f"{path}: the folder cannot be made ({error.strerror})"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise MediaError(f"{path}: nothing may be written into this folder")
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        # A device or pipe is refused unread: it may never end.
        if path.is_dir():
            raise MediaError(f"{path}: is a folder, not an image")
        size = path.stat().st_size
        if not path.is_file():
            raise MediaError(f"{path}: is not a regular file")
        if size > MAX_FILE_BYTES:
            raise MediaError(f"{path}: {size} bytes are too many for an image")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise MediaError(f"{path}: the file is empty")
    return data


def _why_not_decoded(path: Path, messages: list[str]) -> str:
    if not cv2.haveImageReader(str(path)):
        return "not an image of a known format"
    reason = f" ({messages[-1]})" if messages else ""
    return f"damaged, truncated or unsupported image{reason}"
