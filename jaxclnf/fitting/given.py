"""What a fit is asked to start from, boxes or parameters: checked, as arrays."""

from reprlib import repr as short
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.tracing import is_traced

_ROTATION_ERROR = 1e-2
"""How far a matrix times its transpose may be from the identity in a rotation."""


def as_boxes(boxes: Any, *, single: bool) -> Any:
    """Boxes as an array, whatever sequence they are.

    Args:
        boxes: An array or a sequence of numbers, traced or not; nothing: no box.
        single: Whether a single box `(4,)` will do.

    Returns:
        `(faces, 4)`, or `(4,)`: an array of NumPy in float64, or as it was given.

    Raises:
        ValueError: They are not numbers, or not of such a shape.

    Example:
        >>> as_boxes([(10, 20, 30, 40)], single=False).shape
        (1, 4)
    """
    expected = "(x, y, width, height), or rows of such"
    if not single:
        expected = "rows of (x, y, width, height)"
    found = boxes
    if not hasattr(boxes, "ndim"):
        try:
            found = jnp.asarray(boxes) if is_traced() else np.asarray(boxes, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"boxes are {short(boxes)}; expected {expected}"
            ) from error
    if found.dtype.kind not in "fiub" and not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"boxes are of type {found.dtype}; expected numbers")
    if found.shape == (0,):
        found = np.zeros((0, 4))
    if found.ndim not in ((1, 2) if single else (2,)) or found.shape[-1] != 4:
        shapes = "(4,) or (faces, 4)" if single else "(faces, 4)"
        raise ValueError(
            f"boxes have shape {found.shape}; expected {shapes}, each "
            "(x, y, width, height)"
        )
    return found


def check_params(pdm: PDM, params: Any) -> tuple[int, ...]:
    """Refuses parameters that are none of a shape model's.

    Args:
        pdm: The shape model.
        params: What is given as parameters.

    Returns:
        Their leading axes, one at most.

    Raises:
        TypeError: They are no `PDMParams`.
        ValueError: Their arrays do not fit together or do not fit the model; or a
            matrix, where its numbers are known and finite, is no rotation.

    Example:
        >>> check_params(pdm, params)
        ()
    """
    if not isinstance(params, PDMParams):
        raise TypeError(f"params are a {type(params).__name__}; expected PDMParams")
    leading = np.shape(params.scale)
    if len(leading) > 1:
        raise ValueError(f"params have leading axes {leading}; expected one at most")
    shapes = {
        "rotation": (3, 3),
        "translation": (2,),
        "params_local": (pdm.num_modes,),
    }
    for name, shape in shapes.items():
        found = np.shape(getattr(params, name))
        if found != leading + shape:
            raise ValueError(
                f"params.{name} has shape {found}; expected {leading + shape}, as "
                f"params.scale has {leading}"
            )
    if not is_traced():
        _check_rotations(np.asarray(params.rotation, np.float64).reshape(-1, 3, 3))
    return leading


def _check_rotations(rotations: np.ndarray) -> None:
    known = np.all(np.isfinite(rotations), axis=(1, 2))
    rotations = np.where(known[:, None, None], rotations, np.eye(3))
    off = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
    wrong = np.flatnonzero((off > _ROTATION_ERROR) | (np.linalg.det(rotations) < 0))
    if wrong.size:
        first = rotations[wrong[0]]
        raise ValueError(
            f"params.rotation has {np.round(first, 4).tolist()}; expected a rotation"
        )
