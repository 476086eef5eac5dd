"""Cursors over the numbers in OpenFace's files; here those over binary ones.

A cursor reads one number or matrix after another. At the first that does not fit it
raises a `ModelFileError` with the file, the place, what it found and what it expected.
Nothing is allocated before it is known to be in the file, so damaged sizes fail at
once.
"""

import math
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclnf.errors import ModelFileError, read_bytes

# OpenCV's codes for the type of a matrix.
INTEGER_TYPES = {0: np.dtype("u1"), 4: np.dtype("<i4")}
REAL_TYPES = {5: np.dtype("<f4"), 6: np.dtype("<f8")}

_REAL_CODES = min(REAL_TYPES), max(REAL_TYPES)

_MAX_SIDE = 1_000_000
# Fits float32 with room to spare; beyond it, something else was read as a number.
_LARGEST_REAL = 1e30

_INT32 = np.dtype("<i4")
_FLOAT64 = np.dtype("<f8")


class Number(NamedTuple):
    """A number of a record, finite and from `low` to `high`."""

    what: str
    """Its name in messages."""
    low: float = -np.inf
    high: float = np.inf
    dtype: np.dtype = _FLOAT64
    """As it is in the file."""
    shape: tuple[int, ...] = ()
    """Of several such numbers one after another."""

    @classmethod
    def integer(cls, what: str, low: int, high: int) -> "Number":
        """An int32."""
        return cls(what, low, high, _INT32)


class Matrix(NamedTuple):
    """A matrix of a record, of finite real numbers."""

    what: str
    """Its name in messages."""
    rows: int
    cols: int


class Cursor(ABC):
    """What both kinds of file have in common; `what` names an item in messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._start = 0
        self._next = 0

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
        values = self._matrix(what, rows, cols, REAL_TYPES)
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
        matrix = self._matrix(what, rows, cols, INTEGER_TYPES).astype(np.int32)
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

    def records(self, num: int, items: Sequence[Number | Matrix]) -> list[np.ndarray]:
        """Records that follow each other and have the same items.

        A step of Python for each item, not for each number of each record.

        Args:
            num: How many records there are.
            items: What each of them holds.

        Returns:
            For each item its values, `(num, *shape)`: integers as int32, reals as
            float64.

        Raises:
            ModelFileError: If something else is there, or a matrix is of another type
                than that of the first record.
        """
        fields: list[Number] = []
        places = []
        for item in items:
            if isinstance(item, Matrix):
                fields += self._head_of_matrix(item, sum(map(_num_bytes, fields)))
                values = REAL_TYPES[int(fields[-1].low)]
                item = Number(item.what, dtype=values, shape=(item.rows, item.cols))
            places.append(len(fields))
            fields.append(item)
        dtype = np.dtype([(str(i), f.dtype, f.shape) for i, f in enumerate(fields)])
        begin = self._next
        records = self._values(items[0].what, num, dtype)
        columns = [records[name] for name in dtype.names or ()]
        with np.errstate(invalid="ignore"):  # Some NaNs signal, and warn when touched.
            wrong = [_out_of_range(*pair) for pair in zip(fields, columns, strict=True)]
        if any(w.any() for w in wrong):
            first = np.argwhere(np.stack([w.any(axis=1) for w in wrong], axis=1))[0]
            record, i = map(int, first)
            entry = int(wrong[i][record].argmax())
            before = sum(map(_num_bytes, fields[:i]))
            before += entry * fields[i].dtype.itemsize
            self._start = begin + record * dtype.itemsize + before
            value = columns[i][record].flat[entry].item()
            self._check_range(fields[i].what, value, fields[i].low, fields[i].high)
        return [
            columns[i].astype(np.int32 if fields[i].dtype == _INT32 else np.float64)
            for i in places
        ]

    def real_matrices(self, what: str, num: int) -> np.ndarray:
        """Matrices of one size and type that follow each other.

        Args:
            what: What the matrices are.
            num: How many there are, 1 or more.

        Returns:
            `(num, rows, columns)`, float64.

        Raises:
            ModelFileError: If something else is there, or one has another size or type
                than the first.
        """
        first = self.real_matrix(what)
        (others,) = self.records(num - 1, [Matrix(what, *first.shape)])
        return np.concatenate([first[None], others])

    def _head_of_matrix(self, matrix: Matrix, ahead: int) -> list[Number]:
        """What stands before the values of a matrix that begins so many bytes ahead."""
        at = self._next + ahead + 2 * _INT32.itemsize
        code = int.from_bytes(self._data[at : at + _INT32.itemsize], "little")
        # A code that is none lies outside of these: it is refused where it stands.
        low, high = (code, code) if code in REAL_TYPES else _REAL_CODES
        what, rows, cols = matrix
        return [
            Number.integer(f"{what}: number of rows", rows, rows),
            Number.integer(f"{what}: number of columns", cols, cols),
            Number.integer(f"{what}: type code", low, high),
        ]

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


def _num_bytes(number: Number) -> int:
    return number.dtype.itemsize * math.prod(number.shape)


def _out_of_range(number: Number, values: np.ndarray) -> np.ndarray:
    """Which values are not what they should be: records, and values of each."""
    low, high = max(number.low, -_LARGEST_REAL), min(number.high, _LARGEST_REAL)
    inside = (low <= values) & (values <= high)
    return ~inside.reshape(len(values), math.prod(number.shape))


def _range_in_words(low: int | float, high: int | float) -> str:
    if low == high:
        return f"{low}"
    if np.isinf(low) and np.isinf(high):
        return "a finite number"
    if np.isinf(high):
        return f"a finite number of at least {low}"
    return f"a number from {low} to {high}"
