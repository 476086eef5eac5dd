"""Cursors over the numbers in OpenFace's files, binary or text.

A cursor reads one number or matrix after another. At the first that does not fit it
raises a `ModelFileError` with the file, the place, what it found and what it expected.
Nothing is allocated before it is known to be in the file, so damaged sizes fail at
once.
"""

import os
import struct
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from jaxclnf.errors import ModelFileError, read_bytes

# OpenCV's codes for the type of a matrix.
_INTEGER_TYPES = {0: np.dtype("u1"), 4: np.dtype("<i4")}
_REAL_TYPES = {5: np.dtype("<f4"), 6: np.dtype("<f8")}

_MAX_SIDE = 1_000_000
# Fits float32 with room to spare; beyond it, something else was read as a number.
_LARGEST_REAL = 1e30


class Cursor(ABC):
    """What both kinds of file have in common; `what` names an item in messages."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def integer(self, what: str, low: int, high: int) -> int:
        """The next number, an integer from `low` to `high`."""

    @abstractmethod
    def real(self, what: str, low: float = -np.inf, high: float = np.inf) -> float:
        """The next number, finite and from `low` to `high`."""

    @abstractmethod
    def finish(self) -> None:
        """Makes sure that nothing follows."""

    @abstractmethod
    def _where(self) -> str:
        """Place of the last item."""

    @abstractmethod
    def _values(self, what: str, num: int, dtype: np.dtype) -> np.ndarray:
        """The next `num` numbers."""

    def error(self, what: str, found: Any, expected: str) -> ModelFileError:
        """The error for the item read last."""
        return ModelFileError(
            f"{self.name}, {self._where()}: {what}: found {found}, expected {expected}"
        )

    def real_matrix(
        self, what: str, rows: int | None = None, cols: int | None = None
    ) -> np.ndarray:
        """The next matrix, of finite real numbers, as float64.

        Args:
            what: What the matrix is.
            rows: Its number of rows, if that is known.
            cols: Its number of columns, if that is known.

        Returns:
            The matrix.

        Raises:
            ModelFileError: If something else is there.
        """
        values = self._matrix(what, rows, cols, _REAL_TYPES)
        with np.errstate(invalid="ignore"):  # Some NaNs signal, and warn when touched.
            matrix = values.astype(np.float64)
            wrong = ~(np.abs(matrix) <= _LARGEST_REAL)
        if wrong.any():
            raise self.error(what, matrix[wrong][0], "finite numbers")
        return matrix

    def integer_matrix(
        self,
        what: str,
        rows: int | None = None,
        cols: int | None = None,
        *,
        low: int,
        high: int,
    ) -> np.ndarray:
        """The next matrix, of integers from `low` to `high`, as int32.

        Args:
            what: What the matrix is.
            rows: Its number of rows, if that is known.
            cols: Its number of columns, if that is known.
            low: Smallest entry allowed.
            high: Largest entry allowed.

        Returns:
            The matrix.

        Raises:
            ModelFileError: If something else is there.
        """
        matrix = self._matrix(what, rows, cols, _INTEGER_TYPES).astype(np.int32)
        wrong = (matrix < low) | (matrix > high)
        if wrong.any():
            raise self.error(what, matrix[wrong][0], f"integers from {low} to {high}")
        return matrix

    def _matrix(
        self, what: str, rows: int | None, cols: int | None, types: dict[int, np.dtype]
    ) -> np.ndarray:
        num_rows = self._side(f"{what}: number of rows", rows)
        num_cols = self._side(f"{what}: number of columns", cols)
        code = self.integer(f"{what}: type code", min(types), max(types))
        if code not in types:
            raise self.error(f"{what}: type code", code, f"one of {[*types]}")
        values = self._values(what, num_rows * num_cols, types[code])
        return values.reshape(num_rows, num_cols)

    def _side(self, what: str, known: int | None) -> int:
        low, high = (1, _MAX_SIDE) if known is None else (known, known)
        return self.integer(what, low, high)

    def _check_range(
        self, what: str, value: int | float, low: int | float, high: int | float
    ) -> None:
        if not (low <= value <= high and abs(value) <= _LARGEST_REAL):
            raise self.error(what, value, _range_in_words(low, high))


class BinaryCursor(Cursor):
    """A cursor over little-endian binary data.

    Example:
        >>> cursor = BinaryCursor(struct.pack("<id", 7, 0.25), "views.dat")
        >>> cursor.integer("number of views", 1, 100), cursor.real("patch scaling")
        (7, 0.25)
        >>> cursor.finish()
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(name)
        self._data = data
        self._start = 0
        self._next = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "BinaryCursor":
        """A cursor at the beginning of a file."""
        return cls(read_bytes(path), os.fspath(path))

    def integer(self, what: str, low: int, high: int) -> int:
        """The next int32, from `low` to `high`."""
        value = struct.unpack("<i", self._take(what, 4))[0]
        self._check_range(what, value, low, high)
        return value

    def real(self, what: str, low: float = -np.inf, high: float = np.inf) -> float:
        """The next float64, finite and from `low` to `high`."""
        value = struct.unpack("<d", self._take(what, 8))[0]
        self._check_range(what, value, low, high)
        return value

    def reals32(self, what: str, num: int) -> np.ndarray:
        """The next float32 numbers, finite."""
        values = self._values(what, num, np.dtype("<f4"))
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise self.error(what, values[wrong][0], "finite numbers")
        return values.astype(np.float32)

    def finish(self) -> None:
        """Makes sure that no bytes follow."""
        self._start = self._next
        left = len(self._data) - self._next
        if left:
            raise self.error("end", f"{left} more bytes", "the end of the file")

    def _where(self) -> str:
        return f"byte {self._start}"

    def _values(self, what: str, num: int, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self._take(what, num * dtype.itemsize), dtype)

    def _take(self, what: str, num_bytes: int) -> bytes:
        self._start = self._next
        left = len(self._data) - self._next
        if num_bytes > left:
            found = f"{left} bytes before the end of the file"
            raise self.error(what, found, f"{num_bytes} bytes")
        self._next += num_bytes
        return self._data[self._start : self._next]


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
        self._start = 0
        self._next = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TextCursor":
        """A cursor at the beginning of a file."""
        return cls(read_text(path), os.fspath(path))

    def integer(self, what: str, low: int, high: int) -> int:
        """The next word, an integer from `low` to `high`."""
        value = int(self._values(what, 1, _INTEGER_TYPES[4])[0])
        self._check_range(what, value, low, high)
        return value

    def real(self, what: str, low: float = -np.inf, high: float = np.inf) -> float:
        """The next word, a finite number from `low` to `high`."""
        value = float(self._values(what, 1, _REAL_TYPES[6])[0])
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


def _range_in_words(low: int | float, high: int | float) -> str:
    if low == high:
        return f"{low}"
    if np.isinf(low) and np.isinf(high):
        return "a finite number"
    if np.isinf(high):
        return f"a finite number of at least {low}"
    return f"a number from {low} to {high}"


def _shorten(word: str) -> str:
    return repr(word if len(word) <= 20 else word[:20] + "...")
