"""`fit`: faces in one image, from boxes or parameters to results."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from jaxclnf.experts.area import GreyImage, check_image
from jaxclnf.fitting.canvas import as_grey, on_canvas
from jaxclnf.fitting.cores import num_cores
from jaxclnf.fitting.face import fit_face
from jaxclnf.fitting.given import as_boxes, as_model, check_params
from jaxclnf.fitting.hypotheses import starts_from_box
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult, FitTrace
from jaxclnf.fitting.separate import fit_face_separately
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.tracing import is_traced, traced_once

_CHUNK = 64
"""Faces that an accelerator fits at once; on CPU one at a time is fastest."""


def fit(
    model: CLNFModel,
    image: GreyImage,
    boxes: Num[Array | np.ndarray, "*b 4"] | Sequence[Any] | None = None,
    *,
    params: PDMParams | None = None,
    options: FitOptions = FitOptions(),  # noqa: B008 (immutable)
) -> FitResult:
    """Fits the landmarks of one face, or of several faces in one image.

    Every scale goes once through: response maps around the present shape, a rigid phase
    (pose only), a non-rigid phase (pose and modes), each to convergence. A box gives
    several starts, of which the likeliest after the first phase are finished and the
    likeliest of those is kept. Then follow the model's parts, if it has some.
    Images of all sizes up to the next power of two share one compilation, any number of
    faces too, and models of one form; images of uint8 have one, all others another.
    Inside `jax.jit` or `jax.vmap` it works as any JAX function, and forward-mode
    derivatives go through it; for reverse mode there is `fit_with_trace`.

    Args:
        model: The model; `model.prepared(options.window_sizes)` makes it faster.
        image: Grey values, pixel centres at integer coordinates.
        boxes: `(x, y, width, height)` of one face or one per row, tight around the
            landmarks (left to right outline, brows to chin), pixels. An array, or a
            sequence.
        params: Where to start instead of boxes; with or without one leading axis.
        options: The options; `starts` is of boxes only.

    Returns:
        The result, with a leading axis if there was one. A box that is not finite, has
        no size or lies wholly outside the image gives `Status.BAD_START`, not an error.

    Raises:
        TypeError: The image is no array of real numbers, `params` are no `PDMParams`,
            or `model` is no model.
        ValueError: The model is of float64 while JAX computes in float32, the image is
            not two-dimensional or empty, boxes do not end in 4 numbers, `params` do not
            fit the model, or not exactly one of `boxes` and `params` is given; the
            options name no solver, or what a scale cannot be fitted with.

    Example:
        >>> result = fit(model, image, box, options=FitOptions(window_sizes=(7,)))
        >>> bool(result.converged)
        True
        >>> error = jnp.abs(result.landmarks - landmarks)
        >>> bool(error.max() < 4.0)
        True
    """
    return _fit(model, image, boxes, params, options, with_trace=False)[0]


def fit_with_trace(
    model: CLNFModel,
    image: GreyImage,
    boxes: Num[Array | np.ndarray, "*b 4"] | Sequence[Any] | None = None,
    *,
    params: PDMParams | None = None,
    options: FitOptions = FitOptions(),  # noqa: B008 (immutable)
) -> tuple[FitResult, FitTrace]:
    """`fit` with a record of every state of every phase; differentiable in reverse.

    Record, and memory of derivatives, grow with `options.max_steps`. Derivatives in
    reverse need `max_passes=1`, and `use_parts=False` for a model with parts; those by
    what shares a batch with a face that failed are those of the others.

    Args:
        model: The model.
        image: Grey values.
        boxes: As for `fit`.
        params: As for `fit`.
        options: The options; `max_steps` sets the length of the record.

    Returns:
        The result, that of `fit` (to the last bit with `em`, but for the certificate's
        curvature and Newton step), and the trace.

    Raises:
        TypeError: As `fit`.
        ValueError: As `fit`.

    Example:
        >>> options = FitOptions(window_sizes=(7,), max_steps=30)
        >>> result, trace = fit_with_trace(model, image, box, options=options)
        >>> slots = trace.valid.sum(-1, dtype=jnp.int32)[0]  # the start and each step
        >>> bool((slots == result.num_steps[0] + 1).all())
        True
    """
    result, trace = _fit(model, image, boxes, params, options, with_trace=True)
    assert trace is not None
    return result, trace


@traced_once("with_trace")
def _fit_one(
    model: CLNFModel,
    image: Array,
    image_size: Array,
    params: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> tuple[FitResult, FitTrace | None]:
    return fit_face(model, image, image_size, params, options, with_trace=with_trace)


@traced_once("with_trace")
def _fit_chunk(
    model: CLNFModel,
    image: Array,
    image_size: Array,
    params: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> tuple[FitResult, FitTrace | None]:
    return jax.vmap(
        lambda p: fit_face(model, image, image_size, p, options, with_trace=with_trace)
    )(params)


@traced_once("num_starts")
def _starts_from_box(pdm: PDM, box: Array, num_starts: int) -> PDMParams:
    return starts_from_box(pdm, box, num_starts)


def _fit(
    model: CLNFModel,
    image: Any,
    boxes: Any,
    params: PDMParams | None,
    options: FitOptions,
    with_trace: bool,
) -> tuple[FitResult, FitTrace | None]:
    model = as_model(model)
    check_image(image)
    if (boxes is None) == (params is None):
        raise ValueError("expected either boxes or params, not both and not neither")
    if params is None:
        boxes = as_boxes(boxes, single=True)
    else:
        check_params(model.pdm, params)
    dtype = model.pdm.mean_shape.dtype
    size = np.asarray(image.shape, np.int32)
    if is_traced():
        if params is None:
            boxes = jnp.asarray(boxes, dtype)
            start = partial(_starts_from_box, model.pdm, num_starts=options.starts)
            starts = start(boxes) if boxes.ndim == 1 else jax.vmap(start)(boxes)
        else:
            known = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
            starts = _with_starts_axis(known)
        run = _fit_one if starts.scale.ndim == 1 else _fit_chunk
        if isinstance(image, np.ndarray):
            image = as_grey(image, dtype)
        image, size = jnp.asarray(image), jnp.asarray(size)
        return run(model, image, size, starts, options, with_trace)

    image = on_canvas(np.asarray(image), dtype)
    if params is None:
        with np.errstate(over="ignore", invalid="ignore"):  # of boxes that are none
            boxes = np.asarray(boxes, dtype)
        start = _starts_from_box if boxes.ndim == 1 else _rows_of_boxes
        starts = start(model.pdm, boxes, options.starts)
    else:
        known = jax.tree.map(lambda x: np.asarray(x, dtype), params)
        starts = _with_starts_axis(known)
    run = _fit_alone if starts.scale.ndim == 1 else _fit_rows
    return run(model, image, size, starts, options, with_trace)


def _with_starts_axis(params: PDMParams) -> PDMParams:
    """Parameters with an axis of one start behind that of the faces, if any."""
    axis = params.scale.ndim
    return jax.tree.map(
        lambda x: x.reshape(*x.shape[:axis], 1, *x.shape[axis:]), params
    )


def _rows_of_boxes(pdm: PDM, boxes: np.ndarray, num_starts: int) -> PDMParams:
    rows = [jax.device_get(_starts_from_box(pdm, box, num_starts)) for box in boxes]
    if not rows:
        some = _starts_from_box(pdm, np.ones(4, boxes.dtype), num_starts)
        return jax.tree.map(lambda x: np.empty((0, *x.shape), x.dtype), some)
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def _fit_alone(
    model: CLNFModel,
    image: Array | np.ndarray,
    image_size: np.ndarray,
    starts: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> tuple[FitResult, FitTrace | None]:
    several = starts.scale.shape[0] > 1 and num_cores() > 1
    if several and jax.default_backend() == "cpu":
        image, starts = jax.device_put(image), jax.device_get(starts)
        return fit_face_separately(
            model, image, image_size, starts, options, with_trace=with_trace
        )
    return _fit_one(model, image, image_size, starts, options, with_trace)


def _fit_rows(
    model: CLNFModel,
    image: np.ndarray,
    image_size: np.ndarray,
    starts: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> tuple[FitResult, FitTrace | None]:
    """Fits any number of faces with the programs for one face, or one chunk of them."""
    count = starts.scale.shape[0]
    place = model, jax.device_put(image), image_size
    one, chunk = partial(_fit_alone, *place), partial(_fit_chunk, *place)
    if count == 0:
        shapes = jax.eval_shape(partial(chunk, with_trace=with_trace), starts, options)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if jax.default_backend() == "cpu":
        rows = [
            one(jax.tree.map(lambda x, i=i: x[i], starts), options, with_trace)
            for i in range(count)
        ]
        # Where each row is, if that was chosen by the model's place.
        some = rows[0][0].status
        place = some.sharding if some.committed else None
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), place)
    # The last chunk is filled up with faces that end at once for a bad start.
    fill = -count % _CHUNK
    padded = jax.tree.map(
        lambda x: np.concatenate([x, np.full((fill, *x.shape[1:]), np.nan, x.dtype)]),
        starts,
    )
    chunks = [
        chunk(
            jax.tree.map(lambda x, i=i: x[i : i + _CHUNK], padded), options, with_trace
        )
        for i in range(0, count, _CHUNK)
    ]
    return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[:count]), *chunks)
