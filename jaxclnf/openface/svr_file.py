"""OpenFace's SVR patch experts: text files, one per scale."""

import os
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclnf.experts.types import SVRExperts
from jaxclnf.openface.text import TextCursor
from jaxclnf.openface.views import MAX_SUPPORT, Views, check_experts, read_views

# What stands before each expert and each modality, and the modalities we know.
_EXPERT_CODE = 3
_MODALITY_CODE = 2
_MODALITIES = ("grey", "gradient")


class _Template(NamedTuple):
    modality: str
    confidence: float
    scaling: float
    bias: float
    weights: Float[np.ndarray, "p p"]


class _Expert(NamedTuple):
    view: int
    landmark: int
    templates: list[_Template]


def read_svr(path: str | os.PathLike[str], dtype: DTypeLike = np.float32) -> SVRExperts:
    """Reads the SVR patch experts of one scale.

    Args:
        path: A text file.
        dtype: Floating type of the arrays.

    Returns:
        The experts; where a landmark has none in a view, zeros.

    Raises:
        ModelFileError: If the file cannot be read, is damaged, or its experts differ
            in size or modalities.

    Mirrors:
        Multi_SVR_patch_expert::Read, and the file's header in Patch_experts. Templates
        are stored `[column, row]` and turned here.

    Example:
        >>> import pathlib, tempfile
        >>> views = "0.25  1  3 1 6 0 0 0  1 1 4 1 "
        >>> expert = "3 2 2 1  2 0 0.9 4.0 -5.0  2 2 5 1 2 3 4"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "svr.txt")
        ...     _ = file.write_text(views + expert)
        ...     experts = read_svr(file)
        >>> experts.modalities, experts.weights[0, 0, 0].tolist()
        (('grey',), [[1.0, 3.0], [2.0, 4.0]])
    """
    cursor = TextCursor.open(path)
    views = read_views(cursor)
    experts = [
        expert
        for view, landmark in np.ndindex(views.visibility.shape)
        if (expert := _read_expert(cursor, view, landmark)).templates
    ]
    cursor.finish()
    _check_consistent(cursor, views, experts)
    dense = {
        k: jax.device_put(x.astype(dtype)) for k, x in _dense(views, experts).items()
    }
    return SVRExperts(
        patch_scaling=jax.device_put(np.asarray(views.patch_scaling, dtype)),
        view_centers=jax.device_put(views.centers.astype(dtype)),
        visibility=jax.device_put(views.visibility),
        modalities=tuple(t.modality for t in experts[0].templates),
        **dense,
    )


def _read_expert(cursor: TextCursor, view: int, landmark: int) -> _Expert:
    where = f"landmark {landmark} in view {view}"
    cursor.integer(f"expert code of {where}", _EXPERT_CODE, _EXPERT_CODE)
    width = cursor.integer(f"patch width of {where}", 0, MAX_SUPPORT)
    height = cursor.integer(f"patch height of {where}", width, width)
    num_modalities = cursor.integer(
        f"number of modalities of {where}", 0, len(_MODALITIES)
    )
    templates = [_read_template(cursor, where, height) for _ in range(num_modalities)]
    return _Expert(view, landmark, templates)


def _read_template(cursor: TextCursor, where: str, side: int) -> _Template:
    cursor.integer(f"modality code of {where}", _MODALITY_CODE, _MODALITY_CODE)
    modality = cursor.integer(f"modality of {where}", 0, len(_MODALITIES) - 1)
    return _Template(
        modality=_MODALITIES[modality],
        confidence=cursor.real(f"confidence of {where}", 0.0),
        scaling=cursor.real(f"scaling of {where}"),
        bias=cursor.real(f"bias of {where}"),
        weights=cursor.real_matrix(f"template of {where}", side, side).T,
    )


def _check_consistent(cursor: TextCursor, views: Views, experts: list[_Expert]) -> None:
    kinds = sorted(
        {
            (len(e.templates[0].weights), tuple(t.modality for t in e.templates))
            for e in experts
        }
    )
    if len(kinds) != 1:
        raise cursor.error(
            "patch sizes and modalities of all experts", kinds, "the same for all"
        )
    side, modalities = kinds[0]
    if len(set(modalities)) != len(modalities):
        raise cursor.error("modalities", modalities, "each of them once")
    num_weights = len(modalities) * side**2
    check_experts(cursor, views, [(e.view, e.landmark) for e in experts], num_weights)


def _dense(views: Views, experts: list[_Expert]) -> dict[str, np.ndarray]:
    shape = views.visibility.shape
    num_modalities = len(experts[0].templates)
    side = len(experts[0].templates[0].weights)
    arrays = {
        "weights": np.zeros((*shape, num_modalities, side, side)),
        "scaling": np.zeros((*shape, num_modalities)),
        "bias": np.zeros((*shape, num_modalities)),
        "confidence": np.zeros(shape),
    }
    for expert in experts:
        at = expert.view, expert.landmark
        arrays["weights"][at] = [t.weights for t in expert.templates]
        arrays["scaling"][at] = [t.scaling for t in expert.templates]
        arrays["bias"][at] = [t.bias for t in expert.templates]
        arrays["confidence"][at] = sum(t.confidence for t in expert.templates)
    return arrays
