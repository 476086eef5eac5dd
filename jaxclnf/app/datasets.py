"""Annotated photographs on disk: landmark files, and folders of faces."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np

from jaxclnf.app.errors import TableError
from jaxclnf.app.media import IMAGE_SUFFIXES
from jaxclnf.learn.faces import tight_box


@dataclasses.dataclass(frozen=True)
class AnnotatedFace:
    """One face of a data set."""

    name: str
    """Name of the face within its set."""
    image: Path
    """The photograph."""
    box: np.ndarray
    """`(x, y, width, height)` to start from, pixels."""
    landmarks: np.ndarray
    """Ground truth `(n, 2)`, pixels, pixel centres at integers; NaN where unknown."""


def read_pts(path: str | os.PathLike[str]) -> np.ndarray:
    """Landmarks of a `.pts` file, as they are written there.

    Args:
        path: A file with `n_points: N` and N lines `x y` between braces.

    Returns:
        The points `(N, 2)`.

    Raises:
        TableError: The file cannot be read, or is not such a file.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "a.pts")
        ...     _ = file.write_text("version: 1\\nn_points: 2\\n{\\n1 2\\n3 4.5\\n}\\n")
        ...     read_pts(file).tolist()
        [[1.0, 2.0], [3.0, 4.5]]
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as landmarks: {error}") from error
    header, opening, rest = text.partition("{")
    body, closing, _ = rest.partition("}")
    if not opening or not closing:
        raise TableError(f"{path}: found no points between braces")
    points = np.asarray(
        [_point(path, line) for line in body.splitlines() if line.strip()], float
    ).reshape(-1, 2)
    announced = re.findall(r"n_points\s*:\s*(\d+)", header)
    if announced and int(announced[-1]) != len(points):
        raise TableError(f"{path}: found {len(points)} points, not {announced[-1]}")
    return points


def _point(path: str | os.PathLike[str], line: str) -> tuple[float, float]:
    try:
        x, y = map(float, line.split())
    except ValueError as error:
        raise TableError(f"{path}: found {line!r}, expected a line 'x y'") from error
    return x, y


EYE_CORNERS = (36, 45)
"""Outer eye corners among 68 landmarks: errors are relative to their distance."""


def interocular_error(
    landmarks: np.ndarray, truth: np.ndarray, points: slice = slice(None)
) -> float:
    """Mean distance to the truth over the distance of the outer eye corners.

    Args:
        landmarks: 68 landmarks `(68, 2)` that were found, pixels.
        truth: Where they are.
        points: Which of them count.

    Returns:
        The error; NaN if something is unknown.

    Example:
        >>> truth = np.zeros((68, 2))
        >>> truth[45] = 0.0, 50.0
        >>> interocular_error(truth + [0.0, 2.0], truth)
        0.04
    """
    size = np.linalg.norm(truth[EYE_CORNERS[0]] - truth[EYE_CORNERS[1]])
    distance = np.linalg.norm(np.asarray(landmarks) - truth, axis=1)
    return float(distance[points].mean() / size)


def faces_with_pts(folder: str | os.PathLike[str]) -> list[AnnotatedFace]:
    """All photographs of a folder that have a `.pts` (or `.PTS`) file beside them.

    Args:
        folder: The folder.

    Returns:
        The faces in order of their names, with the tight box of their points.

    Raises:
        TableError: A landmark file is unreadable or has no photograph.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     faces_with_pts(folder)
        []
    """
    files = sorted(path for path in Path(folder).glob("[!.]*") if path.is_file())
    images: dict[str, Path] = {}
    for kind in IMAGE_SUFFIXES:
        for path in files:
            if path.suffix.lower() == kind:
                images.setdefault(path.stem, path)
    faces = []
    for pts in files:
        if pts.suffix.lower() != ".pts":
            continue
        if pts.stem not in images:
            raise TableError(f"{pts}: found no photograph of that name beside it")
        points = read_pts(pts)
        image = images[pts.stem]
        faces.append(AnnotatedFace(pts.stem, image, tight_box(points), points))
    return faces


def faces_of_list(path: str | os.PathLike[str]) -> list[AnnotatedFace]:
    """The faces of a `faces.json` list with a `faces.npz` of arrays beside it.

    Args:
        path: The list; entries have `id`, `image` and `bbox`.

    Returns:
        The faces in order, with their own start boxes; ground truth may be NaN.

    Example:
        >>> import json, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "faces.json")
        ...     entry = {"id": "a", "image": "a.png", "bbox": [0, 0, 9, 9]}
        ...     _ = file.write_text(json.dumps([entry]))
        ...     np.savez(file.with_suffix(".npz"), gt=np.zeros((1, 68, 2)))
        ...     faces_of_list(file)[0].name
        'a'
    """
    path = Path(path)
    with np.load(path.with_suffix(".npz")) as arrays:
        truth = arrays["gt"]
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [
        AnnotatedFace(
            entry["id"],
            path.parent / entry["image"],
            np.asarray(entry["bbox"], float),
            truth[i],
        )
        for i, entry in enumerate(entries)
    ]
