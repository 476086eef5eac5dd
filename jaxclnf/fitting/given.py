"""What a fit or a track is asked to begin with: checked, and boxes as arrays."""

from reprlib import repr as short
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclnf.fitting.model import CLNFModel, without_words
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.same_face import SAME_FACE, box_of, box_on, overlap
from jaxclnf.fitting.track_options import TrackOptions
from jaxclnf.fitting.track_state import TrackerState
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.tracing import is_traced

_ROTATION_ERROR = 1e-2
"""How far a matrix times its transpose may be from the identity in a rotation."""

_WAITS_FOR_ITS_FACE = 4
"""Failures in a row from which on a track may go on with any face."""

_MOST_TRIED = 3
"""Boxes that are tried in one frame."""


def as_model(model: CLNFModel) -> CLNFModel:
    """A model as programs take it: without the words about it.

    Those are static, so that models of one form would have programs of their own.

    Args:
        model: What is given as a model.

    Returns:
        The model; nothing that is computed depends on what it lacks.

    Raises:
        TypeError: It is none.
        ValueError: It is of float64, which JAX now takes for float32.

    Example:
        >>> as_model(model).info.name
        'unnamed'
    """
    if not isinstance(model, CLNFModel):
        raise TypeError(
            f"the model is a {type(model).__name__}; expected a CLNFModel, such as"
            " load_model gives"
        )
    dtype = np.dtype(model.pdm.mean_shape.dtype)
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "the model is of float64, but JAX computes in float32; expected a model"
            " of float32, or jax.config.update('jax_enable_x64', True) before"
        )
    return without_words(model)


def check_not_traced(what: str, instead: str) -> None:
    """Refuses to be part of a program.

    Args:
        what: The function that cannot be.
        instead: What there is for that.

    Raises:
        TypeError: JAX is tracing.

    Example:
        >>> check_not_traced("fit_many", "fit under jax.vmap")
    """
    if is_traced():
        raise TypeError(
            f"{what} works on arrays that are known, not inside jax.jit, jax.vmap or"
            f" derivatives; expected {instead} there"
        )


def boxes_to_track(
    found: Any, followed: FitResult, state: TrackerState, options: TrackOptions
) -> list[Any]:
    """The boxes where a face may be that is tracked, of those that a detector found.

    Args:
        found: None, one box, or one per row, the one to track first.
        followed: The face, followed into this frame.
        state: The state after the last frame.
        options: The options.

    Returns:
        Boxes `(4,)` to try in turn: of a face that was followed well the one that
        covers it most, by half or more, as a track is not to jump to another face. Of
        one that is lost those that touch its last place first; for a few frames only
        those, if others were seen when it was begun. With `options.trust_first`,
        OpenFace's way, the first of all.

    Raises:
        ValueError: They are not numbers, or not of such a shape.

    Example:
        >>> options = TrackOptions()
        >>> state = start_tracking(model, options)
        >>> lost = follow_face(model, image, state, options)
        >>> boxes_to_track([(1, 2, 3, 4)], lost, state, options)
        [array([1., 2., 3., 4.])]
    """
    if found is None:
        return []
    rows = as_boxes(found, single=True)
    rows = list(rows[None] if rows.ndim == 1 else rows)
    if followed.success:
        on_it, share = box_on(box_of(followed.landmarks), rows)
        return [] if on_it is None or share < SAME_FACE else [rows[on_it]]
    if options.trust_first:
        return rows[:1]
    place = box_of(state.landmarks)
    shares = [float(overlap(place, np.asarray(box))) for box in rows]
    order = sorted(range(len(rows)), key=lambda i: -shares[i])  # keeps equals in order
    waits = int(state.failures_in_a_row) + 1 < _WAITS_FOR_ITS_FACE
    if state.initialised and state.not_alone and waits:
        order = [i for i in order if shares[i] > 0]
    return [rows[i] for i in order[:_MOST_TRIED]]


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


def as_box(box: Any) -> Any:
    """One box as an array, whatever sequence it is.

    Args:
        box: As for `as_boxes`.

    Returns:
        `(4,)`.

    Raises:
        ValueError: It is not four numbers.

    Example:
        >>> as_box((10, 20, 30, 40)).shape
        (4,)
    """
    found = as_boxes(box, single=True)
    if found.ndim != 1:
        raise ValueError(f"the box has shape {found.shape}; expected (4,), one face")
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
    leading = check_shapes(pdm, params)
    if not is_traced():
        _check_rotations(np.asarray(params.rotation, np.float64).reshape(-1, 3, 3))
    return leading


def check_shapes(pdm: PDM, params: Any, name: str = "params") -> tuple[int, ...]:
    """`check_params` without a look at the numbers.

    Args:
        pdm: The shape model.
        params: What is given as parameters.
        name: What to call them.

    Returns:
        Their leading axes, one at most.

    Raises:
        TypeError: They are no `PDMParams`.
        ValueError: Their arrays do not fit together or do not fit the model.

    Example:
        >>> check_shapes(pdm, params)
        ()
    """
    if not isinstance(params, PDMParams):
        raise TypeError(f"{name} are a {type(params).__name__}; expected PDMParams")
    leading = np.shape(params.scale)
    if len(leading) > 1:
        raise ValueError(f"{name} have leading axes {leading}; expected one at most")
    shapes = {
        "rotation": (3, 3),
        "translation": (2,),
        "params_local": (pdm.num_modes,),
    }
    for field, shape in shapes.items():
        found = np.shape(getattr(params, field))
        if found != leading + shape:
            raise ValueError(
                f"{name}.{field} has shape {found}; expected {leading + shape}, as "
                f"{name}.scale has {leading}"
            )
    return leading


def check_tracking(model: CLNFModel, state: Any, options: Any) -> None:
    """Refuses a state or options with which a face cannot be followed.

    Args:
        model: The model.
        state: What is given as the state.
        options: What is given as the options.

    Raises:
        TypeError: They are none.
        ValueError: The state is of several faces, of another model, or without room for
            the template that the options ask for; or a number of frames means nothing.

    Example:
        >>> state = start_tracking(model, TrackOptions())
        >>> check_tracking(model, state, TrackOptions())
    """
    if not isinstance(options, TrackOptions):
        raise TypeError(f"options are {type(options).__name__}; expected TrackOptions")
    if not isinstance(state, TrackerState):
        raise TypeError(
            f"state is a {type(state).__name__}; expected a TrackerState, as that of"
            " start_tracking"
        )
    if leading := np.shape(state.initialised):
        raise ValueError(
            f"state has leading axes {leading}; expected the state of one face, or"
            " jax.vmap of track_step"
        )
    check_shapes(model.pdm, state.params, "state.params")
    for name, least in (("reinit_every", 1), ("recheck_every", 0)):
        if getattr(options, name) < least:
            raise ValueError(
                f"{name} is {getattr(options, name)}; expected {least} or more frames"
            )
    if options.use_template and 0 in np.shape(state.template.pixels):
        raise ValueError(
            "state has no room for a template; expected one that start_tracking made"
            " with these options"
        )


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
