"""A cursor over the numbers in OpenFace's text files, and the text of a file."""

import os

import numpy as np

from jaxclnf.errors import ModelFileError, read_bytes
from jaxclnf.openface.matrices import INTEGER_TYPES, REAL_TYPES, Cursor


class TextCursor(Cursor):
    """A cursor over numbers between white space; lines starting with # are skipped.

    Example:
        >>> cursor = TextCursor("# rows, columns, type\\n1 2 6  0.5 1.5", "shape.txt")
        >>> cursor.real_matrix("mean shape", rows=1).tolist()
        [[0.5, 1.5]]
        >>> cursor.finish()
    """

    def __init__(self, text: str, name: str) -> None:
        super().__init__(name)
        self._words: list[str] = []
        self._lines: list[int] = []
        for number, line in enumerate(text.splitlines(), start=1):
            words = [] if line.lstrip().startswith("#") else line.split()
            self._words += words
            self._lines += [number] * len(words)
        self._last_line = max(len(text.splitlines()), 1)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TextCursor":
        """A cursor at the beginning of a file."""
        return cls(read_text(path), os.fspath(path))

    def integer(self, what: str, low: int, high: int) -> int:
        """The next word, an integer from `low` to `high`."""
        value = int(self._values(what, 1, INTEGER_TYPES[4])[0])
        self._check_range(what, value, low, high)
        return value

    def real(self, what: str, low: float = -np.inf, high: float = np.inf) -> float:
        """The next word, a finite number from `low` to `high`."""
        value = float(self._values(what, 1, REAL_TYPES[6])[0])
        self._check_range(what, value, low, high)
        return value

    def finish(self) -> None:
        """Makes sure that only comments follow."""
        self._start = self._next
        if self._next < len(self._words):
            found = _shorten(self._words[self._next])
            raise self.error("end", found, "the end of the file")

    def _where(self) -> str:
        at_end = self._start >= len(self._lines)
        return f"line {self._last_line if at_end else self._lines[self._start]}"

    def _values(self, what: str, num: int, dtype: np.dtype) -> np.ndarray:
        self._start = self._next
        left = len(self._words) - self._next
        if num > left:
            found = f"{left} numbers before the end of the file"
            raise self.error(what, found, str(num))
        self._next += num
        is_real = dtype.kind == "f"
        parse, kind = (float, "a number") if is_real else (_int32, "an integer")
        values = []
        for index in range(self._start, self._next):
            try:
                values.append(parse(self._words[index]))
            except ValueError as error:
                self._start = index
                found = _shorten(self._words[index])
                raise self.error(what, found, kind) from error
        # As precise as the decimals are, whatever the type code says.
        return np.array(values, np.float64 if is_real else np.int32)


def read_text(path: str | os.PathLike[str]) -> str:
    """The contents of a text file, in UTF-8 or, failing that, Windows' Latin-1.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        ModelFileError: If the file cannot be read, or is a binary one.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "notice.txt")
        ...     _ = file.write_bytes("façade".encode("latin-1"))
        ...     read_text(file)
        'façade'
    """
    data = read_bytes(path)
    if b"\0" in data:
        raise ModelFileError(
            f"{os.fspath(path)}, byte {data.index(0)}: found binary data, expected text"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _int32(word: str) -> int:
    value = int(word)
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{_shorten(word)} does not fit 32 bits")
    return value


def _shorten(word: str) -> str:
    return repr(word if len(word) <= 20 else word[:20] + "...")
