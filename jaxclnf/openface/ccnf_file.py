"""OpenFace's CCNF patch experts: binary files, one per scale."""

import os
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclnf.experts.types import CCNFExperts
from jaxclnf.openface.matrices import BinaryCursor, Matrix, Number
from jaxclnf.openface.views import MAX_SUPPORT, Views, check_experts, read_views

# What stands before each expert and each neuron, and the kind of neuron we know.
_EXPERT_CODE = 5
_NEURON_CODE = 2
_GREY = 0

_MAX_NEURONS = 1000
_MAX_WINDOW = 101
_MAX_COMPONENTS = 100


class _Expert(NamedTuple):
    view: int
    landmark: int
    weights: Float[np.ndarray, "neurons p p"]
    norm_weights: Float[np.ndarray, " neurons"]
    bias: Float[np.ndarray, " neurons"]
    alpha: Float[np.ndarray, " neurons"]
    beta: Float[np.ndarray, " k"]
    confidence: float


def read_ccnf(
    path: str | os.PathLike[str], dtype: DTypeLike = np.float32
) -> CCNFExperts:
    """Reads the CCNF patch experts of one scale.

    Experts with fewer neurons than others get neurons with `alpha = 0`, and so do
    landmarks without an expert. Neurons with a tiny `alpha` stay as they are.

    Args:
        path: A binary file (although OpenFace names it `.txt`).
        dtype: Floating type of the arrays.

    Returns:
        The experts, without Sigma matrices.

    Raises:
        ModelFileError: If the file cannot be read, is damaged, or has neurons for
            anything but grey images.

    Mirrors:
        CCNF_patch_expert::Read, and the file's header in Patch_experts. OpenFace uses
        the components of the scale read last for all; each scale keeps its own here.

    Example:
        >>> import pathlib, struct, tempfile
        >>> center = struct.pack("<3i3d", 3, 1, 6, 0, 0, 0)
        >>> visibility = struct.pack("<4i", 1, 1, 4, 1)
        >>> neuron = struct.pack("<2i3d3if", 2, 0, 1.0, 2.0, 3.0, 1, 1, 5, 0.5)
        >>> expert = struct.pack("<4i", 5, 1, 1, 1) + neuron + struct.pack("<d", 0.9)
        >>> views = struct.pack("<di", 0.25, 1) + center + visibility
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "ccnf.txt")
        ...     _ = file.write_bytes(views + struct.pack("<i", 0) + expert)
        ...     read_ccnf(file).alpha.tolist()
        [[[3.0]]]
    """
    cursor = BinaryCursor.open(path)
    views = read_views(cursor)
    components = _read_components(cursor)
    num_betas = len(next(iter(components.values()), []))
    experts = [
        expert
        for view, landmark in np.ndindex(views.visibility.shape)
        if (expert := _read_expert(cursor, view, landmark, num_betas))
    ]
    cursor.finish()
    _check_consistent(cursor, views, experts)
    dense = {
        k: jax.device_put(x.astype(dtype)) for k, x in _dense(views, experts).items()
    }
    return CCNFExperts(
        patch_scaling=jax.device_put(np.asarray(views.patch_scaling, dtype)),
        view_centers=jax.device_put(views.centers.astype(dtype)),
        visibility=jax.device_put(views.visibility),
        neighbours={
            window_size: jax.device_put(np.stack(matrices).astype(dtype))
            for window_size, matrices in components.items()
            if matrices
        },
        sigma={},
        **dense,
    )


def _read_components(cursor: BinaryCursor) -> dict[int, list[np.ndarray]]:
    num_sizes = cursor.integer("number of window sizes", 0, _MAX_WINDOW)
    components: dict[int, list[np.ndarray]] = {}
    num_components = None
    for _ in range(num_sizes):
        size = cursor.integer("window size", 1, _MAX_WINDOW)
        if size in components:
            raise cursor.error("window size", f"{size} again", "another size")
        what = f"neighbour matrices of window size {size}"
        # One beta serves the same component in all sizes, so their number is common.
        low, high = (
            (0, _MAX_COMPONENTS)
            if num_components is None
            else (num_components, num_components)
        )
        num_components = cursor.integer(f"number of {what}", low, high)
        components[size] = [
            cursor.real_matrix(what, size**2, size**2) for _ in range(num_components)
        ]
    return components


def _read_expert(
    cursor: BinaryCursor, view: int, landmark: int, num_betas: int
) -> _Expert | None:
    where = f"landmark {landmark} in view {view}"
    cursor.integer(f"expert code of {where}", _EXPERT_CODE, _EXPERT_CODE)
    width = cursor.integer(f"patch width of {where}", 0, MAX_SUPPORT)
    height = cursor.integer(f"patch height of {where}", width, width)
    num_neurons = cursor.integer(f"number of neurons of {where}", 0, _MAX_NEURONS)
    if num_neurons == 0:
        cursor.integer(f"end of the empty expert of {where}", -(2**31), 2**31 - 1)
        return None
    of = f"of {where}"
    *_, norm_weights, bias, alpha, weights = cursor.records(
        num_neurons,
        [
            Number.integer(f"neuron code {of}", _NEURON_CODE, _NEURON_CODE),
            Number.integer(f"neuron type {of} (only grey is supported)", _GREY, _GREY),
            Number(f"norm weight {of}"),
            Number(f"bias {of}"),
            Number(f"alpha {of}"),
            Matrix(f"neuron weights {of}", width, height),
        ],
    )
    beta, confidence = cursor.records(
        1,
        [
            Number(f"beta {of}", shape=(num_betas,)),
            Number(f"confidence {of}", 0.0),
        ],
    )
    return _Expert(
        view,
        landmark,
        weights=weights,
        norm_weights=norm_weights,
        bias=bias,
        alpha=alpha,
        beta=beta[0],
        confidence=float(confidence[0]),
    )


def _check_consistent(
    cursor: BinaryCursor, views: Views, experts: list[_Expert]
) -> None:
    sides = sorted({expert.weights.shape[-1] for expert in experts})
    if len(sides) != 1:
        raise cursor.error("patch sizes of all experts", sides, "exactly one size")
    num_neurons = max(len(expert.weights) for expert in experts)
    check_experts(
        cursor,
        views,
        [(e.view, e.landmark) for e in experts],
        num_neurons * sides[0] ** 2,
    )


def _dense(views: Views, experts: list[_Expert]) -> dict[str, np.ndarray]:
    shape = views.visibility.shape
    num_neurons = max(len(expert.weights) for expert in experts)
    side = experts[0].weights.shape[-1]
    arrays = {
        "weights": np.zeros((*shape, num_neurons, side, side)),
        "norm_weights": np.zeros((*shape, num_neurons)),
        "bias": np.zeros((*shape, num_neurons)),
        "alpha": np.zeros((*shape, num_neurons)),
        "beta": np.zeros((*shape, len(experts[0].beta))),
        "confidence": np.zeros(shape),
    }
    for expert in experts:
        at = expert.view, expert.landmark
        num = len(expert.weights)
        for name in ("weights", "norm_weights", "bias", "alpha"):
            arrays[name][at][:num] = getattr(expert, name)
        arrays["beta"][at] = expert.beta
        arrays["confidence"][at] = expert.confidence
    return arrays
