"""OpenFace's CEN patch experts: binary files, one per scale; early termination."""

import os
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclnf.experts.types import CENExperts, CENLayer
from jaxclnf.fitting.model import EarlyTermination
from jaxclnf.openface.matrices import BinaryCursor
from jaxclnf.openface.text import TextCursor
from jaxclnf.openface.views import MAX_SUPPORT, Views, check_experts, read_views

# What stands before each expert; what the codes of activation functions mean.
_EXPERT_CODE = 6
_ACTIVATIONS = ("sigmoid", "linear", "relu", "linear")

_MAX_LAYERS = 100
_MAX_OUTPUTS = 100_000


class _Layer(NamedTuple):
    activation: str
    bias: Float[np.ndarray, " o"]
    weights: Float[np.ndarray, "o i"]


_Network = list[_Layer]


class _Networks(NamedTuple):
    """All that a file holds after its views."""

    network: Int[np.ndarray, "v n"]
    """Which of `layers` a landmark has itself; -1 if none."""
    confidence: Float[np.ndarray, "v n"]
    layers: list[_Network]


class _Mirror(NamedTuple):
    """Who is on the other side of the face."""

    landmark: Int[np.ndarray, " n"]
    view: Int[np.ndarray, " v"]


def read_cen(path: str | os.PathLike[str], dtype: DTypeLike = np.float32) -> CENExperts:
    """Reads the CEN patch experts of one scale.

    A landmark without an expert of its own is served by that of its mirror landmark in
    the mirror view (a frontal view is its own mirror). Every network is kept once.

    Args:
        path: A binary file, which OpenFace names `.dat`.
        dtype: Floating type of the arrays, whatever that of the file's matrices.

    Returns:
        The experts. A borrowed expert's confidence is the lender's unless the file
        gives the borrower one.

    Raises:
        ModelFileError: If the file cannot be read or is damaged, if its networks differ
            in the sizes of their layers, or if a visible landmark has neither an expert
            nor a mirrored one.

    Mirrors:
        CEN_patch_expert::Read, and the file's header in Patch_experts. The constant
        input of the first layer is added to its bias here, and pixels are turned from
        column by column to row by row.

    Example:
        >>> import pathlib, struct, tempfile
        >>> def matrix(code, kind, *values):
        ...     return struct.pack(f"<3i{len(values)}{kind}", 1, len(values), code,
        ...                        *values)
        >>> center = struct.pack("<3i3d", 3, 1, 6, 0, 0, 0)
        >>> visibility = struct.pack("<3i2i", 2, 1, 4, 1, 1)
        >>> mirrors = matrix(4, "i", 1, 0) + matrix(4, "i", 0)
        >>> layer = struct.pack("<i", 0) + matrix(5, "f", 2) + matrix(5, "f", 1, 3)
        >>> expert = struct.pack("<4i", 6, 1, 1, 1) + layer + struct.pack("<d", 0.9)
        >>> empty = struct.pack("<4id", 6, 1, 1, 0, 0)
        >>> views = struct.pack("<di", 0.25, 1) + center + visibility
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "cen.dat")
        ...     _ = file.write_bytes(views + mirrors + expert + empty)
        ...     experts = read_cen(file)
        >>> experts.network.tolist(), experts.mirrored.tolist()
        ([[0, 0]], [[False, True]])
        >>> experts.layers[0].weights.tolist(), experts.layers[0].bias.tolist()
        ([[[3.0]]], [[3.0]])
    """
    cursor = BinaryCursor.open(path)
    views = read_views(cursor)
    mirror = _read_mirror(cursor, views)
    networks = _read_networks(cursor, views, np.dtype(dtype))
    cursor.finish()
    _check_layers(cursor, networks.layers)
    own = networks.network >= 0
    lender = np.ix_(mirror.view, mirror.landmark)
    network = np.where(own, networks.network, networks.network[lender])
    num_weights = sum(layer.weights.size for layer in networks.layers[0])
    present = zip(*np.nonzero(network >= 0), strict=True)
    check_experts(cursor, views, [(int(v), int(i)) for v, i in present], num_weights)
    lent = ~own & (networks.confidence == 0)
    confidence = np.where(lent, networks.confidence[lender], networks.confidence)
    return CENExperts(
        patch_scaling=jax.device_put(np.asarray(views.patch_scaling, dtype)),
        view_centers=jax.device_put(views.centers.astype(dtype)),
        visibility=jax.device_put(views.visibility),
        network=jax.device_put(np.where(views.visibility, network, 0).astype(np.int32)),
        mirrored=jax.device_put(views.visibility & ~own),
        layers=tuple(_stack(layers) for layers in zip(*networks.layers, strict=True)),
        confidence=jax.device_put(confidence.astype(dtype)),
    )


def read_early_termination(
    path: str | os.PathLike[str], num_views: int, dtype: DTypeLike = np.float32
) -> EarlyTermination:
    """Reads when a fit from one start is good enough to try no other.

    Args:
        path: A text file.
        num_views: Number of views of the coarsest scale.
        dtype: Floating type of the arrays.

    Returns:
        Weights, biases and cutoffs.

    Raises:
        ModelFileError: If the file cannot be read, is damaged, or is for another number
            of views.

    Mirrors:
        The EarlyTermination part of Patch_experts::Read.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "early.txt")
        ...     _ = file.write_text("1.0 1.5  0.0 -0.25  0.5 0.75")
        ...     early = read_early_termination(file, num_views=2)
        >>> early.biases.tolist(), early.cutoffs.tolist()
        ([0.0, -0.25], [0.5, 0.75])
    """
    cursor = TextCursor.open(path)
    rows = [
        [cursor.real(f"{what} of view {v}") for v in range(num_views)]
        for what in ("weight", "bias", "cutoff")
    ]
    cursor.finish()
    weights, biases, cutoffs = (jax.device_put(np.array(row, dtype)) for row in rows)
    return EarlyTermination(weights=weights, biases=biases, cutoffs=cutoffs)


def _read_mirror(cursor: BinaryCursor, views: Views) -> _Mirror:
    num_views, num_landmarks = views.visibility.shape
    landmark = _read_indices(cursor, "mirror landmarks", num_landmarks)
    view = _read_indices(cursor, "mirror views", num_views)
    frontal = views.centers[:, 1] == 0
    return _Mirror(landmark, np.where(frontal, np.arange(num_views), view))


def _read_indices(cursor: BinaryCursor, what: str, num: int) -> np.ndarray:
    indices = cursor.integer_matrix(what, low=0, high=num - 1)
    if 1 not in indices.shape or indices.size != num:
        raise cursor.error(what, f"a matrix of {indices.shape}", f"{num} in a row")
    return indices.reshape(-1)


def _read_networks(cursor: BinaryCursor, views: Views, dtype: np.dtype) -> _Networks:
    network = np.full(views.visibility.shape, -1)
    confidence = np.zeros(views.visibility.shape)
    layers = []
    for at in np.ndindex(network.shape):
        where = f"landmark {at[1]} in view {at[0]}"
        found = _read_network(cursor, where)
        confidence[at] = cursor.real(f"confidence of {where}", 0.0)
        if found:
            network[at] = len(layers)
            # At once, as the networks fill most of a model.
            layers.append([_as_type(layer, dtype) for layer in found])
    return _Networks(network, confidence, layers)


def _read_network(cursor: BinaryCursor, where: str) -> _Network:
    cursor.integer(f"expert code of {where}", _EXPERT_CODE, _EXPERT_CODE)
    width = cursor.integer(f"patch width of {where}", 0, MAX_SUPPORT)
    height = cursor.integer(f"patch height of {where}", width, width)
    most = _MAX_LAYERS if width else 0
    num_layers = cursor.integer(f"number of layers of {where}", 0, most)
    layers = []
    num_inputs = width * height + 1
    for i in range(num_layers):
        layer = _read_layer(cursor, f"layer {i} of {where}", num_inputs)
        num_inputs = len(layer.bias)
        layers.append(layer)
    if not layers:
        return []
    if num_inputs != 1:
        raise cursor.error(f"outputs of {where}", num_inputs, "1")
    first = layers[0]
    constant, pixels = first.weights[:, 0], first.weights[:, 1:]
    by_row = pixels.reshape(-1, width, height).transpose(0, 2, 1)
    layers[0] = first._replace(
        bias=first.bias + constant, weights=by_row.reshape(pixels.shape)
    )
    return layers


def _read_layer(cursor: BinaryCursor, what: str, num_inputs: int) -> _Layer:
    code = cursor.integer(f"activation of {what}", 0, len(_ACTIVATIONS) - 1)
    bias = cursor.real_matrix(f"bias of {what}")
    num_outputs = bias.size
    if 1 not in bias.shape or num_outputs > _MAX_OUTPUTS:
        raise cursor.error(
            f"bias of {what}",
            f"a matrix of {bias.shape}",
            "one column of sensible size",
        )
    weights = cursor.real_matrix(f"weights of {what}", num_outputs, num_inputs)
    return _Layer(_ACTIVATIONS[code], bias.reshape(-1), weights)


def _check_layers(cursor: BinaryCursor, networks: list[_Network]) -> None:
    sizes = {tuple(layer.weights.shape[::-1] for layer in one) for one in networks}
    if len(sizes) != 1:
        words = [
            "-".join(str(num) for num in (one[0][0], *(out for _, out in one)))
            for one in sorted(sizes)
        ]
        raise cursor.error(
            "layer sizes of all experts",
            ", ".join(words[:4]) or "no expert",
            "the same for all",
        )


def _as_type(layer: _Layer, dtype: np.dtype) -> _Layer:
    bias, weights = layer.bias.astype(dtype), layer.weights.astype(dtype)
    return layer._replace(bias=bias, weights=weights)


def _stack(layers: tuple[_Layer, ...]) -> CENLayer:
    """One layer of all networks."""
    names = sorted({layer.activation for layer in layers})
    activation = [names.index(layer.activation) for layer in layers]
    return CENLayer(
        weights=jax.device_put(np.stack([x.weights for x in layers])),
        bias=jax.device_put(np.stack([x.bias for x in layers])),
        activation=jax.device_put(np.array(activation, np.int32)),
        activations=tuple(names),
    )
