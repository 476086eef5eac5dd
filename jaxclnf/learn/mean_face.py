"""The warp onto a shape model's mean face, seen from the front."""

import jax.numpy as jnp
import numpy as np
from scipy.spatial import Delaunay, QhullError

from jaxclnf.fitting.warp import FaceWarp
from jaxclnf.shape.pdm import PDM


def mean_face_warp(pdm: PDM, size: int) -> FaceWarp:
    """Makes the warp that shows the face as large as wanted.

    Args:
        pdm: The shape model.
        size: Square root of the area of the mean face's box in the picture, pixels.

    Returns:
        The warp, of one view, in the type of the model. Its picture is what lies within
        the outermost landmarks, by Delaunay's triangles between them; pixels lie in it
        like their mirror images.

    Raises:
        ValueError: The mean face's landmarks lie on a line, as any two do.

    Example:
        >>> warp = mean_face_warp(pdm, 16)
        >>> height, width = warp.triangle_of_pixel.shape[1:]
        >>> abs(height * width - 16**2) < 80
        True
    """
    points = np.asarray(pdm.mean_shape, np.float64)[:, :2]
    area = np.ptp(points, axis=0).prod()
    try:
        # A line along an axis has no area.
        points = points * (size / np.sqrt(area if area > 0 else np.nan))
        mesh = Delaunay(points)
    except (QhullError, ValueError) as error:
        raise ValueError(
            f"found {len(points)} landmarks on a line, expected some beside it"
        ) from error
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = np.ceil(high - low).astype(int) + 1
    corner = (low + high) / 2 - (np.asarray([width, height]) - 1) / 2
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    first, second, third = points[mesh.simplices].transpose(1, 0, 2)
    # Columns: the sides from the first corner; inverted, what finds a place along both.
    along = np.linalg.inv(np.stack([second - first, third - first], axis=2))
    constant = -along @ first[:, :, None]
    alpha, beta = np.concatenate([constant, along], axis=2).transpose(1, 0, 2)
    dtype = pdm.mean_shape.dtype
    return FaceWarp(
        corner=jnp.asarray(corner[None], dtype),
        triangles=jnp.asarray(mesh.simplices[None], jnp.int32),
        alpha=jnp.asarray(alpha[None], dtype),
        beta=jnp.asarray(beta[None], dtype),
        triangle_of_pixel=jnp.asarray(
            mesh.find_simplex(pixels + corner)[None], jnp.int32
        ),
    )
