"""OpenFace's triangulations of the landmarks, for drawing."""

import os

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxclnf.openface.text import TextCursor
from jaxclnf.openface.views import MAX_LANDMARKS, MAX_VIEWS


def read_triangulations(
    path: str | os.PathLike[str],
) -> tuple[Int[Array, "_ 3"], ...]:
    """Reads the triangles between landmarks, for each view.

    Args:
        path: A text file: the number of views, then a matrix of triangles for each.

    Returns:
        Landmark indices of the corners of each triangle, int32, one array per view.

    Raises:
        ModelFileError: If the file cannot be read or holds something else.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "triangles.txt")
        ...     _ = file.write_text("# views\\n1\\n# triangles\\n1 3 4\\n0 1 2")
        ...     [view.tolist() for view in read_triangulations(file)]
        [[[0, 1, 2]]]
    """
    cursor = TextCursor.open(path)
    num_views = cursor.integer("number of triangulations", 1, MAX_VIEWS)
    triangulations = [
        cursor.integer_matrix(
            f"triangles of view {v}", cols=3, low=0, high=MAX_LANDMARKS - 1
        )
        for v in range(num_views)
    ]
    cursor.finish()
    return tuple(jax.device_put(t.astype(np.int32)) for t in triangulations)
