"""OpenFace's point distribution models: three text matrices."""

import os

import jax
import numpy as np
from jax.typing import DTypeLike

from jaxclnf.openface.text import TextCursor
from jaxclnf.shape.pdm import PDM


def read_pdm(path: str | os.PathLike[str], dtype: DTypeLike = np.float32) -> PDM:
    """Reads a point distribution model.

    Args:
        path: A text file: mean shape in millimetres, modes, their variances.
        dtype: Floating type of the arrays.

    Returns:
        The model.

    Raises:
        ModelFileError: If the file cannot be read or holds something else.

    Mirrors:
        PDM::Read. The stored order x...x y...y z...z is turned into `(n, 3)` here.

    Example:
        >>> import pathlib, tempfile
        >>> numbers = ["# mean", "3 1 6 0 0 1", "# modes", "3 1 6 1 0 0", "1 1 6 4"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "pdm.txt")
        ...     _ = file.write_text("\\n".join(numbers))
        ...     read_pdm(file).mean_shape.tolist()
        [[0.0, 0.0, 1.0]]
    """
    cursor = TextCursor.open(path)
    mean_shape = cursor.real_matrix("mean shape", cols=1)
    num_coordinates = len(mean_shape)
    if num_coordinates % 3:
        raise cursor.error(
            "mean shape", f"{num_coordinates} rows", "x, y and z of each landmark"
        )
    princ_comp = cursor.real_matrix("modes", rows=num_coordinates)
    num_modes = princ_comp.shape[1]
    eigen_values = cursor.real_matrix("variances of the modes", rows=1, cols=num_modes)
    if eigen_values.min() <= 0:
        raise cursor.error(
            "variances of the modes", eigen_values.min(), "positive numbers"
        )
    cursor.finish()
    by_axis = princ_comp.reshape(3, -1, num_modes)
    return PDM(
        mean_shape=jax.device_put(mean_shape.reshape(3, -1).T.astype(dtype)),
        princ_comp=jax.device_put(by_axis.transpose(1, 0, 2).astype(dtype)),
        eigen_values=jax.device_put(eigen_values[0].astype(dtype)),
    )
