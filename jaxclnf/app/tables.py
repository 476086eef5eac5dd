"""Tables: what was found in a photograph, and boxes that people bring along."""

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Float64

from jaxclnf.app.errors import MediaError, TableError, with_notes
from jaxclnf.app.media import write_bytes
from jaxclnf.fitting.result import FitResult
from jaxclnf.openface.csv_table import (
    OpenFaceColumns,
    OpenFaceRow,
    write_openface_csv,
)
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import Status

BOX_COLUMNS = ("x", "y", "width", "height")
"""Columns of a table of boxes, besides `image`."""

ANY_IMAGE = ""
"""Key of the boxes of a table without a column `image`."""


@dataclasses.dataclass(frozen=True)
class Face:
    """One fitted face on the host, for pictures."""

    box: Float64[np.ndarray, " 4"]
    """Where the fit began: `(x, y, width, height)`, pixels."""
    landmarks: Float[np.ndarray, "n 2"]
    """Landmarks `(x, y)`, pixels; NaN where the start was unusable."""
    params_global: Float[np.ndarray, " 6"]
    """Scale, pitch, yaw, roll, translation x and y; radians and pixels."""
    status: Status
    """How the fit ended."""
    converged: bool
    """Whether every phase of the fit converged."""
    success: bool
    """Whether it is to be trusted."""
    steps: int
    """Steps of all phases together."""
    log_likelihood: float
    """Mean over the landmarks that have evidence."""
    view: int
    """View of the patch experts at the last scale."""

    @property
    def failed(self) -> bool:
        """Whether the landmarks cannot be used."""
        return self.status >= Status.NONFINITE


def faces_of(boxes: Float[np.ndarray, "b 4"], result: FitResult) -> list[Face]:
    """Takes fitted faces off the device.

    Args:
        boxes: Where the fits began, one `(x, y, width, height)` per face, pixels.
        result: What `fit` returned for them.

    Returns:
        The faces, in the order of the boxes.

    Example:
        >>> boxes = np.asarray(box)[None]
        >>> options = FitOptions(window_sizes=(7,))
        >>> (face,) = faces_of(boxes, fit(model, image, boxes, options=options))
        >>> face.landmarks.shape == (pdm.num_landmarks, 2)
        True
    """
    host = jax.tree.map(np.asarray, result)
    return [
        _face(box, jax.tree.map(lambda x, i=i: x[i], host))
        for i, box in enumerate(boxes)
    ]


@jax.jit
def _params_global(params: PDMParams) -> Float[Array, " 6"]:
    return params.params_global


def _face(box: np.ndarray, result: FitResult) -> Face:
    return Face(
        box=box.astype(np.float64),
        landmarks=np.asarray(result.landmarks),
        params_global=np.asarray(_params_global(result.params)),
        status=Status(int(result.status)),
        converged=bool(result.converged),
        success=bool(result.success),
        steps=int(np.sum(result.num_steps)),
        log_likelihood=float(result.log_likelihood),
        view=int(result.view),
    )


def partial_path(path: str | os.PathLike[str]) -> Path:
    """Where the rows of a table go that could not be finished.

    Args:
        path: The table.

    Returns:
        A file beside it.

    Example:
        >>> partial_path("out/talk.v1.csv").name
        'talk.v1.partial.csv'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Removes what an earlier run left unfinished of a file that is whole now.

    Args:
        path: The file; nothing happens where there is no `partial_path` of it.

    Example:
        >>> remove_partial("no/such/talk.csv")
    """
    with contextlib.suppress(OSError):
        partial_path(path).unlink(missing_ok=True)


def write_openface_rows(
    path: str | os.PathLike[str], columns: OpenFaceColumns, rows: Iterable[OpenFaceRow]
) -> None:
    """Writes a table in OpenFace's form.

    Only a whole table gets the name. Where an exception ends it the rows so far go to
    `partial_path`, and the exception has a note that says so.

    Args:
        path: Where to; a file already there is replaced.
        columns: Which columns it has.
        rows: The faces; may be none.

    Raises:
        MediaError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> columns = OpenFaceColumns(form="photo", num_landmarks=2, num_modes=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_openface_rows(Path(folder, "a.csv"), columns, [])
        ...     Path(folder, "a.csv").read_text()[-36:]
        ' p_0, status, steps, log_likelihood\\n'
    """
    try:
        write_openface_csv(path, columns, rows, partial=partial_path(path))
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror})"
        raise MediaError(with_notes(message, error)) from error


def write_rows(
    path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence]
) -> None:
    """Writes a table as UTF-8 text with commas, whole or not at all.

    Args:
        path: Where to; a file already there is replaced.
        header: Names of the columns.
        rows: Their values.

    Raises:
        MediaError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_rows(Path(folder, "a.csv"), ("a", "b"), [(1, "x,y")])
        ...     Path(folder, "a.csv").read_text()
        'a,b\\n1,"x,y"\\n'
    """
    text = "".join(map(_line, [header, *rows]))
    # File names may hold bytes that are no text; they go out as they came in.
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def _line(values: Sequence) -> str:
    """A row as text. Quoted is what holds a character that ends a line, of either
    kind: readers end a row there."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def read_boxes(path: str | os.PathLike[str]) -> dict[str, Float64[np.ndarray, "b 4"]]:
    """Reads boxes from a table with a header.

    It has the columns `x`, `y`, `width` and `height`, in pixels and tight around the
    landmarks, `image` unless all boxes are of one image, and any others. Numbers that
    make no box (NaN, a negative width) are kept: that face gets a row with a status.

    Args:
        path: The table, text with commas.

    Returns:
        For each `image`, as written there, its boxes in the order of the rows; under
        `ANY_IMAGE` where there is no such column.

    Raises:
        TableError: If it is no such table; the message names line, column and value.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "boxes.csv")
        ...     _ = table.write_text("image,x,y,width,height\\na.jpg,1,2,30,40\\n")
        ...     {name: boxes.tolist() for name, boxes in read_boxes(table).items()}
        {'a.jpg': [[1.0, 2.0, 30.0, 40.0]]}
    """
    path = Path(path)
    # The lines are kept as they are, for names of files may hold line breaks.
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    boxes: dict[str, list[list[float]]] = {}
    try:
        columns = _column_numbers(path, next(reader, []))
        for row in reader:
            if row:
                place = f"{path}, line {reader.line_num}"
                name, box = _parse_row(place, row, columns)
                boxes.setdefault(name, []).append(box)
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: {error}") from error
    return {name: np.array(rows, np.float64) for name, rows in boxes.items()}


def write_boxes(
    path: str | os.PathLike[str],
    boxes: Mapping[str, Float64[np.ndarray, "b 4"]],
) -> None:
    """Writes boxes as `read_boxes` reads them, whole or not at all.

    Args:
        path: Where to; a file already there is replaced.
        boxes: The boxes of each image, with every digit that they have.

    Raises:
        MediaError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "boxes.csv")
        ...     write_boxes(table, {"a.jpg": np.array([[1.5, 2.0, 30.0, 40.0]])})
        ...     {name: boxes.tolist() for name, boxes in read_boxes(table).items()}
        {'a.jpg': [[1.5, 2.0, 30.0, 40.0]]}
    """
    rows = [(name, *box) for name, some in boxes.items() for box in some.tolist()]
    write_rows(path, ("image", *BOX_COLUMNS), rows)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        header, _, _ = data.partition(b"\n")
        header.decode("utf-8-sig")
        # Names of files below it may hold bytes that are no text; see `write_rows`.
        return data.decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: byte {error.start} is not UTF-8 text") from error


@dataclasses.dataclass(frozen=True)
class _Columns:
    count: int
    box: tuple[int, ...]
    image: int | None


def _column_numbers(path: Path, header: list[str]) -> _Columns:
    names = [name.strip().lower() for name in header]
    for name in (*BOX_COLUMNS, "image"):
        if names.count(name) > 1:
            raise TableError(f"{path}, line 1: column '{name}' occurs twice")
    missing = [name for name in BOX_COLUMNS if name not in names]
    if missing:
        raise TableError(
            f"{path}, line 1: no column '{missing[0]}' in the header; needed are"
            f" {', '.join(BOX_COLUMNS)} and, for several images, image"
        )
    return _Columns(
        count=len(names),
        box=tuple(names.index(name) for name in BOX_COLUMNS),
        image=names.index("image") if "image" in names else None,
    )


def _parse_row(
    place: str, row: list[str], columns: _Columns
) -> tuple[str, list[float]]:
    if len(row) != columns.count:
        raise TableError(
            f"{place}: {len(row)} values under a header of {columns.count} columns"
        )
    box = []
    for name, number in zip(BOX_COLUMNS, columns.box, strict=True):
        try:
            box.append(float(row[number]))
        except ValueError as error:
            raise TableError(
                f"{place}, column '{name}': '{row[number]}' is not a number"
            ) from error
    if columns.image is None:
        return ANY_IMAGE, box
    image = row[columns.image].strip()
    if not image:
        raise TableError(f"{place}, column 'image': '' names no image")
    return image, box
