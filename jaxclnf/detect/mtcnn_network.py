"""The layers of small convolutional networks, and how they are applied.

Everything is float32 NumPy on the host: the detector's pictures come in ever new sizes,
each of which JAX would compile anew.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from jaxclnf.pytree import pytree_dataclass, static

PNET_SIDE, RNET_SIDE, ONET_SIDE = 12, 24, 48
"""Sides of the squares that the three networks see, pixels."""

PNET_STRIDE = 2
"""Distance of neighbouring squares that the first network sees, pixels."""


@pytree_dataclass
class Convolution:
    """Correlates the maps with kernels; the result is smaller by a kernel less one."""

    weights: Float32[np.ndarray, "height width maps_in maps_out"]
    """Kernels, `[row, column]`, not flipped."""
    bias: Float32[np.ndarray, " maps_out"]
    """Added to each map."""


@pytree_dataclass
class MaxPooling:
    """The largest value of each window, map by map."""

    kernel: tuple[int, int] = static()
    """Height and width of the windows."""
    stride: tuple[int, int] = static()
    """Distance of neighbouring windows, down and across; at most the kernel."""


@pytree_dataclass
class Dense:
    """A matrix: for the maps at each position, or for all positions at once."""

    weights: Float32[np.ndarray, "inputs outputs"]
    """Where `inputs` is the number of maps, every position is on its own; otherwise
    they are all in it, row by row, then column, then map."""
    bias: Float32[np.ndarray, " outputs"]
    """Added to the outputs."""


@pytree_dataclass
class PReLU:
    """Keeps what is positive and scales what is negative."""

    slope: Float32[np.ndarray, " maps"]
    """Factor for negative values of each map."""


Layer = Convolution | MaxPooling | Dense | PReLU
"""One layer of a network."""


@pytree_dataclass
class MTCNN:
    """The three networks of the cascade.

    The outputs of each begin with the scores of "no face" and "face" and with how far
    the left, top, right and bottom edges are off, as fractions of the box's side.
    """

    pnet: tuple[Layer, ...]
    """Proposes boxes: slides over the picture, sees 12 x 12 pixels every 2 pixels."""
    rnet: tuple[Layer, ...]
    """Refines the proposals: sees 24 x 24 pixels."""
    onet: tuple[Layer, ...]
    """Decides: sees 48 x 48 pixels."""


def pooled_size(size: int, kernel: int, stride: int) -> int:
    """How many windows of a pooling layer fit along one side.

    The number is rounded, so that the last window may reach beyond the end, or leave
    out what is there.

    Args:
        size: Side of the maps.
        kernel: Side of the windows, at most `size`.
        stride: Distance of neighbouring windows.

    Returns:
        The number of windows.

    Example:
        >>> pooled_size(22, 3, 2), pooled_size(9, 3, 2)
        (11, 4)
    """
    return math.floor((size - kernel) / stride + 0.5) + 1


def apply_network(
    layers: Sequence[Layer], maps: Float32[np.ndarray, "b height width maps_in"]
) -> Float32[np.ndarray, "b *positions outputs"]:
    """Applies a network to several pictures of the same size.

    Args:
        layers: The network.
        maps: The pictures, colours last; large enough for all kernels.

    Returns:
        The outputs: for each position, or for the whole picture if a dense layer took
        all positions at once. Not finite where float32 does not suffice.

    Mirrors:
        CNN::Inference of OpenFace's face detector.

    Example:
        >>> halve = MaxPooling(kernel=(2, 2), stride=(2, 2))
        >>> apply_network((halve,), np.ones((1, 4, 6, 3), np.float32)).shape
        (1, 2, 3, 3)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in layers:
            match layer:
                case Convolution():
                    maps = _convolve(layer, maps)
                case MaxPooling():
                    maps = _pool(layer, maps)
                case Dense():
                    maps = _multiply(layer, maps)
                case PReLU():
                    maps = np.where(maps > 0, maps, layer.slope * maps)
    return maps


def _convolve(layer: Convolution, maps: np.ndarray) -> np.ndarray:
    height, width, _, num_out = layer.weights.shape
    windows = np.lib.stride_tricks.sliding_window_view(maps, (height, width), (1, 2))
    positions = windows.shape[:3]
    # Rows of a window are contiguous in this order, which makes the copy fast.
    unfolded = windows.transpose(0, 1, 2, 4, 5, 3).reshape(math.prod(positions), -1)
    result = unfolded @ layer.weights.reshape(-1, num_out) + layer.bias
    return result.reshape(*positions, num_out)


def _pool(layer: MaxPooling, maps: np.ndarray) -> np.ndarray:
    rows, columns = (
        _window_starts(size, kernel, stride)
        for size, kernel, stride in zip(
            maps.shape[1:3], layer.kernel, layer.stride, strict=True
        )
    )
    # The first window item of every window, then the second, ...; those beyond the end
    # are the last of the maps again, which changes no maximum.
    down = _largest(maps, rows, layer.kernel[0], axis=1)
    return _largest(down, columns, layer.kernel[1], axis=2)


def _window_starts(
    size: int, kernel: int, stride: int
) -> Shaped[np.ndarray, " windows"]:
    return stride * np.arange(pooled_size(size, kernel, stride))


def _largest(
    maps: np.ndarray, starts: np.ndarray, kernel: int, axis: int
) -> np.ndarray:
    last = maps.shape[axis] - 1
    result = maps.take(starts, axis)
    for i in range(1, kernel):
        np.maximum(result, maps.take(np.minimum(starts + i, last), axis), out=result)
    return result


def _multiply(layer: Dense, maps: np.ndarray) -> np.ndarray:
    if maps.shape[-1] != len(layer.weights):
        maps = maps.reshape(len(maps), len(layer.weights))
    return maps @ layer.weights + layer.bias
