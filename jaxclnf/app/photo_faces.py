"""Faces of one photograph, fitted with as few programs as there can be."""

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxclnf.fitting.canvas import canvas_shape
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.many import cuts_faces_out, fit_many, window_of_face
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

    Cut out, faces of photographs of all sizes share a program, and several faces the
    cores of a CPU, or a chunk on another device. Where none may be cut out, `fit`
    shares the starts among the cores instead.

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
        one_by_one = 1 if jax.default_backend() == "cpu" else None
        return fit_many(model, image, boxes, options=options, chunk=one_by_one)
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
        A mark of each program that is needed at least: a face whose fit looks beyond
        what was cut out at first takes one more.

    Example:
        >>> boxes = np.array([[9.0, 9, 90, 90], [9, 9, 80, 80], [9, 9, 900, 900]])
        >>> sorted(programs_of_photo((3000, 4000), boxes, FitOptions()))
        [(256, 256), (2048, 2048)]
        >>> programs_of_photo((3000, 4000), boxes, FitOptions.openface())
        {(3, 4096, 4096)}
    """
    if cuts_faces_out(options):
        return {window_of_face(box, image_shape).shape for box in boxes}
    return {(len(boxes), *canvas_shape(image_shape))}
