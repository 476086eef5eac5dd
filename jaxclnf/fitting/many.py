"""`fit_many`: any number of faces in any number of images.

A fit looks at the neighbourhood of its face only, so that each face is cut out of its
image: a large photograph costs what its faces cost. What a fit looked at is part of its
result (`FitResult.reach`); where that was more than was cut out, the face is fitted
again with more of the image. Thus the numbers are those of `fit`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from reprlib import repr as short
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Num

from jaxclnf.batching import in_turn_on_cpu
from jaxclnf.experts.area import check_array, check_image
from jaxclnf.fitting.canvas import (
    Canvas,
    Window,
    as_grey,
    cut,
    holds,
    whole_image,
    window_around,
)
from jaxclnf.fitting.chunks import Chunk, plan_chunks
from jaxclnf.fitting.cores import num_cores, on_all_cores, one_ahead
from jaxclnf.fitting.face import fit_face, unfitted_face
from jaxclnf.fitting.given import as_boxes, as_model, check_not_traced
from jaxclnf.fitting.hypotheses import starts_from_box
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.schedule import windows_of_scales
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.options import whole_number
from jaxclnf.tracing import traced_once

Numbers = Num[Array | np.ndarray, "..."]
"""Arrays whose shapes `fit_many` checks by itself: images differ in theirs."""

_MARGIN = 0.5
"""How much is cut out around a box at first, in sides of the box. On annotated faces
the starts look 0.3 beyond it, and few fits much further."""
_MOST_CHANNELS = 4
_CHUNK = {"cpu": 16}
_ACCELERATOR_CHUNK = 256


class _Work(NamedTuple):
    """Faces to fit, in the order in which they were given."""

    images: list[np.ndarray]
    boxes: np.ndarray
    image_index: np.ndarray
    windows: list[Window]


def fit_many(
    model: CLNFModel,
    images: Numbers | Sequence[Numbers],
    boxes: Numbers | Sequence[Any],
    *,
    image_index: Numbers | Sequence[int] | None = None,
    options: FitOptions = FitOptions(),  # noqa: B008 (immutable)
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> FitResult:
    """Fits any number of faces in any number of images.

    The faces of a chunk are fitted at once; on CPU as many chunks as there are cores
    run at a time. Not for use inside `jax.jit`; there `fit` under `jax.vmap` does it.

    Args:
        model: The model; `model.prepared(options.window_sizes)` makes it faster.
        images: Grey values `(height, width)` of one image, of several of any sizes, or
            of a stack `(k, height, width)`.
        boxes: `(x, y, width, height)` of one face per row, `(f, 4)`, as for `fit`.
        image_index: In which image each face is, counted from 0, `(f,)`. Default: all
            in the only image, or one face in each.
        options: The options. With `sampling="fixed_point"` no face is cut out, as that
            is defined in coordinates of the whole image.
        chunk: How many faces make up a chunk at most. Default: 16 on CPU, else 256;
            fewer where their canvases would have more than 67 million pixels, or where
            there are few (a power of two then, so that few programs are compiled).
        mesh: Devices, along one axis, over which faces are spread; a chunk for each at
            a time. Default: only the default device.

    Returns:
        The result of each face in the order of the boxes, with one leading axis, on the
        default device. A box that is not finite, has no size or lies wholly outside
        its image gives `Status.BAD_START`, not an error. The landmarks are those of
        `fit` to within rounding, and do not depend on the other faces.

    Raises:
        TypeError: An image is no array of real numbers, `mesh` no mesh or `model` no
            model; or JAX is tracing.
        ValueError: The model is of float64 while JAX computes in float32,
            an image is not two-dimensional or empty, boxes are not `(f, 4)`,
            image indices are missing or out of range, `chunk` is not positive,
            `mesh` has several axes, or the options leave no scale to fit.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> boxes = np.stack([box, np.full(4, np.nan)])
        >>> results = fit_many(model, image, boxes, options=options)
        >>> [Status(status).name for status in results.status.tolist()]
        ['CONVERGED', 'BAD_START']
    """
    check_not_traced("fit_many", "fit under jax.vmap")
    model = as_model(model)
    work = _prepared(model, images, boxes, image_index, options)
    windows_of_scales(model, options)  # refuses those that leave no scale
    if chunk is not None and whole_number("chunk", chunk) < 1:
        raise ValueError(f"chunk is {chunk}; expected 1 or more, or None")
    if mesh is not None:
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh is a {type(mesh).__name__}; expected a Mesh")
        if len(mesh.axis_names) != 1:
            raise ValueError(f"mesh has axes {mesh.axis_names}; expected one")
        on_each = NamedSharding(mesh, PartitionSpec())
        model, options = jax.device_put((model, options), on_each)
    # Rows of all chunks one below the other, and where among them each face is: with a
    # tree of rows for each face, Python would be slower than an accelerator.
    fitted: list[FitResult] = []
    row_of = np.zeros(len(work.boxes), int)
    num_rows, open_faces = 0, list(range(len(work.boxes)))
    while open_faces:
        reach = {}
        begun = _fit_windows(model, work, open_faces, options, chunk, mesh)
        for faces, places, found in begun:
            row_of[faces] = num_rows + np.array(places)
            reach.update(zip(faces, found.reach[places], strict=True))
            fitted.append(found)
            num_rows += len(found.status)
        open_faces = _enlarged(work, reach)
    if fitted:
        together = jax.tree.map(lambda *x: np.concatenate(x)[row_of], *fitted)
        return jax.device_put(together)
    one = unfitted_face(
        model,
        num_starts=options.num_starts,
        with_parts=options.use_parts,
        several_passes=options.max_passes > 1,
    )
    return jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), one)


def _prepared(
    model: CLNFModel, images: Any, boxes: Any, image_index: Any, options: FitOptions
) -> _Work:
    if not isinstance(images, Sequence):
        check_array(images, "images", "an array of grey values, or a list of such")
        # Three or four columns are the channels of a coloured image, no stack of grey.
        is_stack = images.ndim == 3 and images.shape[2] > _MOST_CHANNELS
        images = list(np.asarray(images)) if is_stack else [images]
    for k, image in enumerate(images):
        check_image(image, f"image {k}")
    dtype = np.dtype(model.pdm.mean_shape.dtype)
    grey = [as_grey(np.asarray(image), dtype) for image in images]
    boxes = np.asarray(as_boxes(boxes, single=False), np.float64)
    index = _indices(image_index, len(images), len(boxes))
    shapes = [grey[k].shape for k in index]
    windows = [
        window_of_face(box, shape) if cuts_faces_out(options) else whole_image(shape)
        for box, shape in zip(boxes, shapes, strict=True)
    ]
    return _Work(grey, boxes, index, windows)


def cuts_faces_out(options: FitOptions) -> bool:
    """Whether `fit_many` hands only the neighbourhood of a face to its fit.

    Args:
        options: How faces are fitted.

    Returns:
        False for OpenFace's sampling, which is defined in coordinates of whole images.

    Example:
        >>> cuts_faces_out(FitOptions()), cuts_faces_out(FitOptions.openface())
        (True, False)
    """
    return options.sampling == "exact"


def window_of_face(
    box: Float[np.ndarray, " 4"], image_shape: tuple[int, ...]
) -> Window:
    """What `fit_many` cuts out of an image for a face at first.

    Args:
        box: `(x, y, width, height)`, pixels.
        image_shape: Height and width of the image.

    Returns:
        The window.

    Example:
        >>> window_of_face(np.array([900.0, 800, 100, 100]), (3000, 4000)).shape
        (256, 256)
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of boxes that are none
        low, margin = box[:2], _MARGIN * np.max(box[2:])
        return window_around(low - margin, low + box[2:] + margin, image_shape)


def _indices(image_index: Any, num_images: int, num_faces: int) -> np.ndarray:
    if image_index is None:
        if num_faces and num_images not in (1, num_faces):
            raise ValueError(
                f"found {num_faces} boxes for {num_images} images; expected one box "
                "for each, or image_index"
            )
        one_each = np.arange(num_faces)
        return one_each if num_images == num_faces else np.zeros_like(one_each)
    try:
        index = np.asarray(image_index)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"image_index is {short(image_index)}; expected one whole number for each"
            f" of {num_faces} boxes"
        ) from error
    index = index.astype(int) if not index.size else index
    if index.shape != (num_faces,) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"image_index has shape {index.shape} and type {index.dtype}; expected "
            f"one whole number for each of {num_faces} boxes"
        )
    wrong = np.flatnonzero((index < 0) | (index >= num_images))
    if wrong.size:
        if not num_images:
            raise ValueError(f"found no image for {num_faces} boxes")
        raise ValueError(
            f"image_index[{wrong[0]}] is {index[wrong[0]]}; expected 0 to "
            f"{num_images - 1}"
        )
    return index


def _enlarged(work: _Work, reach: dict[int, np.ndarray]) -> list[int]:
    """Widens the windows that were too small for their faces, and tells which."""
    too_small = []
    for face, seen in reach.items():
        window = work.windows[face]
        shape = work.images[work.image_index[face]].shape
        seen = seen.astype(np.float64)
        if holds(window, seen, shape):
            continue
        corner = np.array([window.left, window.top], float)
        low = np.fmin(seen[:2], corner)
        high = np.fmax(seen[2:], corner + window.shape[::-1])
        work.windows[face] = window_around(low, high, shape)
        too_small.append(face)
    return too_small


def _fit_windows(
    model: CLNFModel,
    work: _Work,
    faces: list[int],
    options: FitOptions,
    chunk: int | None,
    mesh: Mesh | None,
) -> Iterator[tuple[list[int], list[int], FitResult]]:
    """Fits faces in their windows: chunks of those whose canvases are alike.

    Of each chunk: its faces, their places in it, and its results.
    """
    backend = jax.default_backend()
    devices = 1 if mesh is None else mesh.size
    one_cpu = backend == "cpu" and mesh is None
    workers = num_cores() if one_cpu else 1
    canvases = {
        i: Canvas(work.windows[i].shape, work.images[work.image_index[i]].dtype)
        for i in faces
    }
    most = chunk or _CHUNK.get(backend, _ACCELERATOR_CHUNK)
    chunks = plan_chunks(canvases, most, workers, devices)

    def begin(part: Chunk) -> FitResult:
        inputs = _inputs(model, work, part, devices)
        if mesh is not None:
            spread = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
            inputs = jax.device_put(inputs, spread)
        return _fit_chunk(model, *inputs, options=options, mesh=mesh)

    begun = on_all_cores(begin, chunks) if one_cpu else one_ahead(begin, chunks)
    for part, found in zip(chunks, begun, strict=True):
        yield part.faces, _places(part, devices), jax.device_get(found)


def _inputs(
    model: CLNFModel, work: _Work, part: Chunk, devices: int
) -> tuple[np.ndarray, ...]:
    """Canvases, their image sizes, boxes and corners, filled up with faces that end at
    once for a bad start."""
    size = part.size * devices
    dtype = np.dtype(model.pdm.mean_shape.dtype)
    crops = np.zeros((size, *part.canvas.shape), part.canvas.dtype)
    sizes = np.ones((size, 2), np.int32)
    boxes = np.full((size, 4), np.nan, dtype)
    corners = np.zeros((size, 2), dtype)
    for k, i in zip(_places(part, devices), part.faces, strict=True):
        window = work.windows[i]
        sizes[k] = cut(work.images[work.image_index[i]], window, crops[k])
        corners[k] = window.left, window.top
        with np.errstate(over="ignore", invalid="ignore"):  # of boxes that are none
            boxes[k] = work.boxes[i] - np.array([window.left, window.top, 0, 0])
    return crops, sizes, boxes, corners


def _places(part: Chunk, devices: int) -> list[int]:
    """Where each face is in a chunk for each device."""
    share = -(-len(part.faces) // devices)
    return [k // share * part.size + k % share for k in range(len(part.faces))]


@traced_once("mesh")
def _fit_chunk(
    model: CLNFModel,
    crops: Num[Array, "k height width"],
    sizes: Int[Array, "k 2"],
    boxes: Float[Array, "k 4"],
    corners: Float[Array, "k 2"],
    options: FitOptions,
    mesh: Mesh | None = None,
) -> FitResult:
    faces = (crops, sizes, boxes, corners)
    if mesh is None:
        return _at_once(model, options, faces)
    mine = PartitionSpec(*mesh.axis_names)
    # Each device goes through its own faces: nothing is to be said to the others.
    spread = jax.shard_map(
        _at_once,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), mine),
        out_specs=mine,
        check_vma=False,
    )
    return spread(model, options, faces)


def _at_once(model: CLNFModel, options: FitOptions, faces: tuple) -> FitResult:
    def one(
        crop: Num[Array, "height width"],
        size: Int[Array, " 2"],
        box: Float[Array, " 4"],
        corner: Float[Array, " 2"],
    ) -> FitResult:
        starts = starts_from_box(model.pdm, box, options.starts)
        result, _ = fit_face(model, crop, size, starts, options)
        return _moved(result, corner)

    if faces[0].shape[0] == 1:  # `vmap` would prepare for faces that end apart
        return jax.tree.map(lambda x: x[None], one(*(x[0] for x in faces)))
    if model.early_termination is not None:
        # It asks with `lax.cond`, which would make a copy of the model for each face.
        one = in_turn_on_cpu(one)
    return jax.vmap(one)(*faces)


def _moved(result: FitResult, by: Float[Array, " 2"]) -> FitResult:
    """The same fit in an image that reaches further to the left and to the top."""
    parts = {
        name: dataclasses.replace(
            part, landmarks=part.landmarks + by[None, :], params=part.params.moved(by)
        )
        for name, part in result.parts.items()
    }
    params = {k: x for k, x in vars(result).items() if isinstance(x, PDMParams)}
    return dataclasses.replace(
        result,
        landmarks=result.landmarks + by[None, :],
        reach=result.reach + jnp.tile(by, 2),
        parts=parts,
        **{name: value.moved(by) for name, value in params.items()},
    )
