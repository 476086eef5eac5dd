"""OpenFace's landmark detection validators: binary files, all views in one."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxclnf.errors import read_bytes
from jaxclnf.fitting.validate import (
    Convolution,
    FullyConnected,
    Layer,
    MaxPooling,
    ReLU,
    Sigmoid,
    Validator,
)
from jaxclnf.fitting.warp import FaceWarp
from jaxclnf.openface.matrices import BinaryCursor
from jaxclnf.openface.views import MAX_LANDMARKS, MAX_SUPPORT, MAX_VIEWS

_CODE = 3  # of validators that are convolutional networks, the only kind we know
_CONVOLUTION, _POOLING, _DENSE, _RELU, _SIGMOID = range(5)
_WITHOUT_DATA = {_POOLING: MaxPooling, _RELU: ReLU, _SIGMOID: Sigmoid}

_MAX_DEPTH = 100
_MAX_MAPS = 1000
_MAX_PIXELS = 1_000_000
_MAX_TRIANGLES = 10_000
_MAX_DISTANCE = 1e6

_Shape = tuple[int, ...]
"""`(maps, rows, columns)`, or `(values,)` after a fully connected layer."""


class _Layer(NamedTuple):
    kind: int
    weights: Float[np.ndarray, "..."]
    """`[input map, kernel, row, column]` or `[input, output]`; empty without data."""
    bias: Float[np.ndarray, " k"]


class _View(NamedTuple):
    mean: Float[np.ndarray, " p"]
    std: Float[np.ndarray, " p"]
    layers: list[_Layer]
    corner: tuple[float, float]
    num_landmarks: int
    triangles: Int[np.ndarray, "t 3"]
    triangle_of_pixel: Int[np.ndarray, "h w"]
    alpha: Float[np.ndarray, "t 3"]
    beta: Float[np.ndarray, "t 3"]


def read_validator(
    path: str | os.PathLike[str],
    dtype: DTypeLike = np.float32,
    *,
    num_landmarks: int | None = None,
) -> Validator:
    """Reads a landmark detection validator.

    Args:
        path: A binary file (although OpenFace names it `.txt`).
        dtype: Floating type of the arrays.
        num_landmarks: Number of landmarks that it has to be for, if that is known.

    Returns:
        The validator.

    Raises:
        ModelFileError: If the file cannot be read, is damaged, is for another number of
            landmarks, or its views have networks of different form.

    Mirrors:
        DetectionValidator::Read.

    Example:
        >>> import struct, tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(struct.pack("<2i", 2, 7))
        ...     file.flush()
        ...     try:
        ...         read_validator(file.name)
        ...     except ValueError as error:
        ...         print(str(error).removeprefix(file.name))
        , byte 0: type of validator: found 2, expected 3
    """
    cursor = BinaryCursor(read_bytes(path), os.fspath(path))
    cursor.integer("type of validator", _CODE, _CODE)
    num_views = cursor.integer("number of views", 1, MAX_VIEWS)
    centers = [
        cursor.real_matrix(f"centre of view {v}", rows=3, cols=1)[:, 0]
        for v in range(num_views)
    ]
    views: list[_View] = []
    for v in range(num_views):
        view = _read_view(cursor, f"view {v}", views[0] if views else None)
        if num_landmarks is not None and view.num_landmarks != num_landmarks:
            raise cursor.error(
                f"landmarks of view {v}",
                view.num_landmarks,
                f"{num_landmarks}, as in the model",
            )
        views.append(view)
    cursor.finish()
    layers = _stack_layers(cursor, views, np.dtype(dtype))
    return _validator(np.deg2rad(np.stack(centers)), views, layers, np.dtype(dtype))


def _read_view(cursor: BinaryCursor, where: str, first: _View | None) -> _View:
    mean = cursor.real_matrix(f"mean of {where}", rows=1)[0]
    std = cursor.real_matrix(f"deviation of {where}", rows=1, cols=len(mean))[0]
    if not (std > 0).all():
        raise cursor.error(f"deviation of {where}", std.min(), "positive numbers")
    depth = cursor.integer(f"number of layers of {where}", 1, _MAX_DEPTH)
    layers = [_read_layer(cursor, f"layer {i} of {where}") for i in range(depth)]
    if first is not None and _form(layers) != _form(first.layers):
        raise cursor.error(
            f"layers of {where}",
            _form(layers),
            f"{_form(first.layers)}, as in view 0",
        )
    return _read_warp(cursor, where, first, mean, std, layers)


def _form(layers: list[_Layer]) -> list[tuple[int, _Shape]]:
    """Kind and size of each layer."""
    return [(layer.kind, layer.weights.shape) for layer in layers]


def _read_layer(cursor: BinaryCursor, where: str) -> _Layer:
    kind = cursor.integer(f"kind of {where}", _CONVOLUTION, _SIGMOID)
    if kind == _CONVOLUTION:
        num_in = cursor.integer(f"input maps of {where}", 1, _MAX_MAPS)
        num_out = cursor.integer(f"kernels of {where}", 1, _MAX_MAPS)
        bias = cursor.reals32(f"biases of {where}", num_out).astype(np.float64)
        kernels = cursor.real_matrices(f"kernel of {where}", num_in * num_out)
        height, width = kernels.shape[1:]
        if max(height, width) > MAX_SUPPORT:
            raise cursor.error(
                f"kernel of {where}", f"{height} x {width}", f"at most {MAX_SUPPORT}"
            )
        weights = kernels.reshape(num_in, num_out, height, width)
        return _Layer(kind, weights, bias)
    if kind == _DENSE:
        bias = cursor.real_matrix(f"biases of {where}", cols=1)[:, 0]
        weights = cursor.real_matrix(f"weights of {where}", cols=len(bias))
        return _Layer(kind, weights, bias)
    return _Layer(kind, np.zeros(0), np.zeros(0))


def _read_warp(
    cursor: BinaryCursor,
    where: str,
    first: _View | None,
    mean: np.ndarray,
    std: np.ndarray,
    layers: list[_Layer],
) -> _View:
    cursor.integer(f"number of pixels of {where}", len(mean), len(mean))
    corner = (
        cursor.real(f"left edge of {where}", -_MAX_DISTANCE, _MAX_DISTANCE),
        cursor.real(f"upper edge of {where}", -_MAX_DISTANCE, _MAX_DISTANCE),
    )
    num_coordinates = None if first is None else 2 * first.num_landmarks
    points = cursor.real_matrix(f"points of {where}", num_coordinates, cols=1)
    num_landmarks, odd = divmod(len(points), 2)
    if odd or not 3 <= num_landmarks <= MAX_LANDMARKS:
        raise cursor.error(
            f"points of {where}",
            f"{len(points)} coordinates",
            f"two for each of 3 to {MAX_LANDMARKS} landmarks",
        )
    triangles = cursor.integer_matrix(
        f"triangles of {where}", cols=3, low=0, high=num_landmarks - 1
    )
    num_triangles = len(triangles)
    if num_triangles > _MAX_TRIANGLES:
        raise cursor.error(
            f"triangles of {where}", num_triangles, f"at most {_MAX_TRIANGLES}"
        )
    size = (None, None) if first is None else first.triangle_of_pixel.shape
    triangle_of_pixel = cursor.integer_matrix(
        f"triangle of each pixel of {where}", *size, low=-1, high=num_triangles - 1
    )
    if triangle_of_pixel.size > _MAX_PIXELS:
        raise cursor.error(
            f"triangle of each pixel of {where}",
            f"{triangle_of_pixel.size} pixels",
            f"at most {_MAX_PIXELS}",
        )
    used = triangle_of_pixel >= 0
    mask = cursor.integer_matrix(f"mask of {where}", *used.shape, low=0, high=255)
    if not np.array_equal(mask > 0, used) or used.sum() != len(mean):
        raise cursor.error(
            f"mask of {where}",
            f"{(mask > 0).sum()} pixels",
            f"the {len(mean)} that have a mean, all with a triangle",
        )
    alpha, beta = (
        cursor.real_matrix(f"{what} of {where}", num_triangles, 3)
        for what in ("alpha", "beta")
    )
    return _View(
        mean,
        std,
        layers,
        corner,
        num_landmarks,
        triangles,
        triangle_of_pixel,
        alpha,
        beta,
    )


def _stack_layers(
    cursor: BinaryCursor, views: list[_View], dtype: np.dtype
) -> tuple[Layer, ...]:
    """The layers with all views' weights; makes sure that one fits on the other."""
    shape: _Shape = (1, *views[0].triangle_of_pixel.shape)
    stacked: list[Layer] = []
    for i, layers in enumerate(zip(*(view.layers for view in views), strict=True)):
        kind = layers[0].kind
        weights = np.stack([layer.weights for layer in layers])
        bias = jax.device_put(np.stack([layer.bias for layer in layers]).astype(dtype))
        if len(shape) == 1 and kind in (_CONVOLUTION, _POOLING):
            raise cursor.error(f"layer {i}", "maps", "no maps after a vector")
        if kind == _CONVOLUTION:
            weights, shape = _fitted_kernels(cursor, f"layer {i}", weights, shape)
            layer = Convolution(
                weights=jax.device_put(weights.astype(dtype)), bias=bias
            )
        elif kind == _DENSE:
            weights, shape = _fitted_matrix(cursor, f"layer {i}", weights, shape)
            layer = FullyConnected(
                weights=jax.device_put(weights.astype(dtype)), bias=bias
            )
        else:
            layer = _WITHOUT_DATA[kind]()
            if kind == _POOLING:
                shape = _pooled(shape)
        stacked.append(layer)
    if len(shape) != 1 or shape[0] < 2:
        raise cursor.error("outputs of the last layer", shape, "at least two bins")
    return tuple(stacked)


def _fitted_kernels(
    cursor: BinaryCursor, where: str, weights: np.ndarray, shape: _Shape
) -> tuple[np.ndarray, _Shape]:
    maps, rows, columns = shape
    _, num_in, num_out, height, width = weights.shape
    if num_in != maps or height > rows or width > columns:
        raise cursor.error(
            f"kernels of {where}",
            f"{num_in} maps and {height} x {width} pixels",
            f"{maps} maps and at most {rows} x {columns} pixels",
        )
    shape = (num_out, rows - height + 1, columns - width + 1)
    return weights.swapaxes(1, 2), shape


def _pooled(shape: _Shape) -> _Shape:
    maps, rows, columns = shape
    return maps, (rows + 1) // 2, (columns + 1) // 2


def _fitted_matrix(
    cursor: BinaryCursor, where: str, weights: np.ndarray, shape: _Shape
) -> tuple[np.ndarray, _Shape]:
    num_views, num_in, num_out = weights.shape
    if num_in != np.prod(shape):
        raise cursor.error(f"inputs of {where}", num_in, f"{np.prod(shape)}")
    if len(shape) == 3:
        # In the file: map by map, and each of them column by column.
        maps, rows, columns = shape
        by_row = weights.reshape(num_views, maps, columns, rows, num_out)
        weights = by_row.swapaxes(2, 3).reshape(weights.shape)
    return weights, (num_out,)


def _validator(
    centers: Float[np.ndarray, "v 3"],
    views: list[_View],
    layers: tuple[Layer, ...],
    dtype: np.dtype,
) -> Validator:
    def real(arrays: list[np.ndarray]) -> jnp.ndarray:
        return jax.device_put(np.stack(arrays).astype(dtype))

    most = max(len(view.triangles) for view in views)

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, most - len(array)), (0, 0)])

    used = [view.triangle_of_pixel >= 0 for view in views]
    pairs = list(zip(views, used, strict=True))
    return Validator(
        view_centers=jax.device_put(centers.astype(dtype)),
        warp=FaceWarp(
            corner=real([np.array(view.corner) for view in views]),
            triangles=jax.device_put(
                np.stack([padded(view.triangles) for view in views])
            ),
            alpha=real([padded(view.alpha) for view in views]),
            beta=real([padded(view.beta) for view in views]),
            triangle_of_pixel=jax.device_put(
                np.stack([view.triangle_of_pixel for view in views])
            ),
        ),
        mean=real([_on_grid(view.mean, mask, 0.0) for view, mask in pairs]),
        std=real([_on_grid(view.std, mask, 1.0) for view, mask in pairs]),
        layers=layers,
    )


def _on_grid(
    values: Float[np.ndarray, " p"], used: Bool[np.ndarray, "h w"], elsewhere: float
) -> Float[np.ndarray, "h w"]:
    """Puts the used pixels, stored column by column, where they belong."""
    grid = np.full(used.T.shape, elsewhere)
    grid[used.T] = values
    return grid.T
