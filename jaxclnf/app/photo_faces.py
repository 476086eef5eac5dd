"""Faces of one photograph, fitted with as few programs as there can be."""

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxclnf.fitting.canvas import Canvas, canvas_shape
from jaxclnf.fitting.chunks import plan_chunks
from jaxclnf.fitting.cores import num_cores
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.many import (
    cuts_faces_out,
    fit_many,
    window_of_face,
)
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult


def fit_photo_faces(
    model: CLNFModel,
    image: UInt8[np.ndarray, "h w"],
    boxes: Float[np.ndarray, "f 4"],
    options: FitOptions,
) -> FitResult:
    """Fits the faces of one photograph, however many there are and whatever its size.

    Cut out, one by one, faces of photographs of all sizes share a program, and several
    faces the cores; a chunk of each number of faces would be another program, and take
    longer to compile than it saves. Where none may be cut out, `fit` shares the starts
    among the cores instead.

    Args:
        model: The model.
        image: Grey values.
        boxes: `(x, y, width, height)`, one face per row, pixels.
        options: The options.

    Returns:
        The results, with one leading axis.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> grey = np.asarray(image).astype(np.uint8)
        >>> fit_photo_faces(model, grey, np.stack([box, box]), options).status.shape
        (2,)
    """
    if cuts_faces_out(options):
        return fit_many(model, image, boxes, options=options, chunk=1)
    return fit(model, image, boxes, options=options)


def programs_of_photo(
    image_shape: tuple[int, ...], boxes: Float[np.ndarray, "f 4"], options: FitOptions
) -> set[tuple[int, ...]]:
    """Tells the programs apart that `fit_photo_faces` needs.

    Args:
        image_shape: Height and width of the photograph.
        boxes: `(x, y, width, height)`, one face per row, pixels.
        options: The options.

    Returns:
        A mark of each program that is needed at first: a face whose fit looks beyond
        what was cut out takes one more.

    Example:
        >>> boxes = np.array([[9.0, 9, 90, 90], [9, 9, 80, 80]])
        >>> programs_of_photo((3000, 4000), boxes, FitOptions())
        {(256, 256)}
        >>> programs_of_photo((3000, 4000), boxes, FitOptions.openface())
        {(4096, 4096)}
    """
    if cuts_faces_out(options):
        canvases = {
            i: Canvas(window_of_face(box, image_shape).shape, np.dtype(np.uint8))
            for i, box in enumerate(boxes)
        }
        workers = num_cores() if jax.default_backend() == "cpu" else 1
        planned = plan_chunks(canvases, most=1, workers=workers, devices=1)
        return {chunk.canvas.shape for chunk in planned}
    return {canvas_shape(image_shape)}
