"""OpenFace's face detector: a list of three files, each a network (MTCNN)."""

import math
import os
from pathlib import Path

import numpy as np

from jaxclnf.detect.mtcnn_network import (
    MTCNN,
    ONET_SIDE,
    PNET_SIDE,
    PNET_STRIDE,
    RNET_SIDE,
    Convolution,
    Dense,
    Layer,
    MaxPooling,
    PReLU,
    pooled_size,
)
from jaxclnf.errors import ModelFileError, read_bytes
from jaxclnf.openface.directives import Directive, only
from jaxclnf.openface.matrices import BinaryCursor
from jaxclnf.openface.text import read_text

LIST_NAME, LIST_FOLDER = "MTCNN_detector.txt", "mtcnn_detector"
"""Name of the list of the three files, and of its folder in OpenFace's model folder."""

_NETWORKS = ("PNet", "RNet", "ONet")

# Two scores and four corrections.
_MIN_OUTPUTS = 6
_COLOURS = 3

_MAX_LAYERS = 100
_MAX_MAPS = 10_000
_MAX_KERNEL = 100


# Height, width and number of maps between two layers.
_Shape = tuple[int, int, int]


def load_mtcnn(path: str | os.PathLike[str]) -> MTCNN:
    """Loads the face detector of an OpenFace installation.

    Args:
        path: `MTCNN_detector.txt`, its folder, or OpenFace's model folder.

    Returns:
        The networks, for `detect_faces_mtcnn`.

    Raises:
        ModelFileError: If there is no such detector, or one of its files is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         load_mtcnn(folder)
        ...     except ModelFileError as error:
        ...         print(str(error).removeprefix(folder))
        : found no MTCNN_detector.txt, expected it here or in mtcnn_detector/
    """
    path = Path(path)
    if not os.path.isdir(path):
        return read_mtcnn(path)
    for folder in (path, path / LIST_FOLDER):
        if os.path.isfile(folder / LIST_NAME):
            return read_mtcnn(folder / LIST_NAME)
    raise ModelFileError(
        f"{path}: found no {LIST_NAME}, expected it here or in {LIST_FOLDER}/"
    )


def read_mtcnn(path: str | os.PathLike[str]) -> MTCNN:
    """Reads the three networks of a face detector.

    Args:
        path: The list: on each line `PNet`, `RNet` or `ONet` and the file's name,
            relative to the list.

    Returns:
        The networks, whose layers fit each other and the squares that each network
        sees.

    Raises:
        ModelFileError: If a file cannot be read, is damaged or does not fit.

    Mirrors:
        FaceDetectorMTCNN::Read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"PNet absent.dat")
        ...     file.flush()
        ...     try:
        ...         read_mtcnn(file.name)
        ...     except ModelFileError as error:
        ...         print(str(error).removeprefix(file.name))
        , line 1, PNet: found 'absent.dat', no such file, expected an existing file
    """
    lines = _read_list(Path(path))
    pnet, rnet, onet = (only(lines, name).target() for name in _NETWORKS)
    return MTCNN(
        pnet=_read_network(pnet, PNET_SIDE, slides=True),
        rnet=_read_network(rnet, RNET_SIDE),
        onet=_read_network(onet, ONET_SIDE),
    )


def _read_list(path: Path) -> list[Directive]:
    lines = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, *rest = line.split(maxsplit=1) or ["#"]
        if name.startswith("#"):
            continue
        if name not in _NETWORKS:
            raise ModelFileError(
                f"{path}, line {number}: found {name[:30]!r}, expected one of"
                f" {', '.join(_NETWORKS)}"
            )
        lines.append(Directive(path, number, name, "".join(rest).strip()))
    if not lines:
        raise ModelFileError(
            f"{path}: found no line, expected each of {', '.join(_NETWORKS)}"
        )
    return lines


class _LayerCursor(BinaryCursor):
    """A cursor over the layers of a network file."""

    def matrix32(
        self, what: str, rows: int | None = None, cols: int | None = None
    ) -> np.ndarray:
        """The next matrix, as float32."""
        return self.real_matrix(what, rows, cols).astype(np.float32)


def _read_network(path: Path, side: int, *, slides: bool = False) -> tuple[Layer, ...]:
    """A network whose input is a square; one that `slides` takes larger ones too."""
    cursor = _LayerCursor(read_bytes(path), os.fspath(path))
    num_layers = cursor.integer("number of layers", 1, _MAX_LAYERS)
    layers: list[Layer] = []
    shape: _Shape = (side, side, _COLOURS)
    for i in range(num_layers):
        where = f"layer {i}"
        kind = cursor.integer(f"kind of {where}", min(_READERS), max(_READERS))
        layer, new_shape = _READERS[kind](cursor, where, shape)
        if slides and isinstance(layer, Dense) and len(layer.weights) != shape[2]:
            expected = f"{shape[2]}, one for each map"
            raise cursor.error(f"inputs of {where}", len(layer.weights), expected)
        layers.append(layer)
        shape = new_shape
    cursor.finish()
    if shape[:2] != (1, 1) or shape[2] < _MIN_OUTPUTS:
        raise cursor.error(
            f"outputs for {side} x {side} pixels",
            " x ".join(map(str, shape)),
            f"1 x 1 x {_MIN_OUTPUTS} or more",
        )
    if slides:
        _check_stride(cursor, layers)
    return tuple(layers)


def _check_stride(cursor: _LayerCursor, layers: list[Layer]) -> None:
    strides = [layer.stride for layer in layers if isinstance(layer, MaxPooling)]
    total = tuple(math.prod(along) for along in zip((1, 1), *strides, strict=True))
    if total != (PNET_STRIDE, PNET_STRIDE):
        expected = f"{PNET_STRIDE} down and across"
        raise cursor.error("strides of all pooling layers", total, expected)


def _read_convolution(
    cursor: _LayerCursor, where: str, shape: _Shape
) -> tuple[Layer, _Shape]:
    height, width, maps = shape
    cursor.integer(f"input maps of {where}", maps, maps)
    num_out = cursor.integer(f"kernels of {where}", 1, _MAX_MAPS)
    bias = cursor.reals32(f"biases of {where}", num_out)
    kernels = cursor.real_matrices(f"kernel of {where}", maps * num_out)
    rows, columns = kernels.shape[1:]
    if rows > height or columns > width:
        raise cursor.error(
            f"kernel of {where}", f"{rows} x {columns}", f"at most {height} x {width}"
        )
    weights = kernels.astype(np.float32).reshape(maps, num_out, rows, columns)
    layer = Convolution(weights=weights.transpose(2, 3, 0, 1).copy(), bias=bias)
    return layer, (height - rows + 1, width - columns + 1, num_out)


def _read_pooling(
    cursor: _LayerCursor, where: str, shape: _Shape
) -> tuple[Layer, _Shape]:
    height, width, maps = shape
    across = cursor.integer(f"kernel width of {where}", 1, min(width, _MAX_KERNEL))
    down = cursor.integer(f"kernel height of {where}", 1, min(height, _MAX_KERNEL))
    # Steps beyond the kernel could leave the last window without a single pixel.
    step_across = cursor.integer(f"stride across of {where}", 1, across)
    step_down = cursor.integer(f"stride down of {where}", 1, down)
    pooled = (
        pooled_size(height, down, step_down),
        pooled_size(width, across, step_across),
        maps,
    )
    return MaxPooling(kernel=(down, across), stride=(step_down, step_across)), pooled


def _read_dense(
    cursor: _LayerCursor, where: str, shape: _Shape
) -> tuple[Layer, _Shape]:
    height, width, maps = shape
    bias = cursor.matrix32(f"biases of {where}", cols=1)[:, 0]
    weights = cursor.matrix32(f"weights of {where}", cols=len(bias))
    if len(weights) == maps:
        return Dense(weights=weights, bias=bias), (height, width, len(bias))
    if len(weights) != math.prod(shape):
        raise cursor.error(
            f"inputs of {where}", len(weights), f"{maps} or {math.prod(shape)}"
        )
    # In the file: map by map, and each of them column by column.
    by_position = weights.reshape(maps, width, height, -1).transpose(2, 1, 0, 3)
    weights = by_position.reshape(weights.shape)
    return Dense(weights=weights, bias=bias), (1, 1, len(bias))


def _read_prelu(
    cursor: _LayerCursor, where: str, shape: _Shape
) -> tuple[Layer, _Shape]:
    slope = cursor.matrix32(f"slopes of {where}", shape[2], 1)[:, 0]
    return PReLU(slope=slope), shape


_READERS = {
    0: _read_convolution,
    1: _read_pooling,
    2: _read_dense,
    3: _read_prelu,
}
