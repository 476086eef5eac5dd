"""Parts of the face: their own models, fitted after the whole, and the whole refitted.

OpenFace calls them hierarchical models: the inner face and both eyes, whose experts
look at more pixels than those of the whole face.
"""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.batching import map_batch
from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.model import CLNFModel, CLNFPart, ModelInfo
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.part_settings import PART_SETTINGS
from jaxclnf.fitting.result import PartFit
from jaxclnf.fitting.schedule import fit_scales
from jaxclnf.pytree import filled
from jaxclnf.shape.initial import params_from_landmarks
from jaxclnf.shape.pdm import PDM, PDMParams, project
from jaxclnf.status import Status

_LEAST_RESOLUTION = 0.9
"""A part is fitted if the face has more pixels per millimetre than this share of the
part's first scale."""


class WithParts(NamedTuple):
    """A whole face after its parts."""

    landmarks: Float[Array, "n 2"]
    params: PDMParams
    parts: dict[str, PartFit]
    reach: Float[Array, " 4"]
    """The part of the image that was looked at for the parts."""


def fit_parts(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    landmarks: Float[Array, "n 2"],
    params: PDMParams,
    usable: Bool[Array, ""],
    options: FitOptions,
) -> WithParts:
    """Fits the parts of a fitted face, and then the whole face to them.

    Every part starts from the landmarks that it shares with the whole face. If any of
    them had enough pixels to be fitted, the landmarks of the parts, in their order,
    replace those of the whole face, whose parameters are estimated anew.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        landmarks: Landmarks of the whole face, image pixels.
        params: Their parameters.
        usable: Whether the face was fitted at all; if not, nothing is done.
        options: The options of the whole face.

    Returns:
        The whole face and its parts.

    Mirrors:
        The hierarchical part of CLNF::DetectLandmarks.

    Example:
        >>> found = fit_parts(
        ...     with_part, jnp.asarray(image), jnp.asarray(image.shape), landmarks,
        ...     params, jnp.asarray(True), FitOptions(window_sizes=(7,)),
        ... )
        >>> list(found.parts)
        ['part']
    """
    reach = jnp.full(4, jnp.nan, landmarks.dtype)
    if not model.parts:
        return WithParts(landmarks, params, {}, reach)
    groups: dict[Hashable, list[CLNFPart]] = {}
    for part in model.parts:
        groups.setdefault(_kind(part), []).append(part)
    parts: dict[str, PartFit] = {}
    for group in groups.values():
        own = options.for_part(group[0].name)
        shared = (image, image_size, landmarks, params, usable, own)
        for part, (fitted, seen) in zip(group, _fit_alike(group, shared), strict=True):
            parts[part.name] = fitted
            reach = join_reach(reach, seen)
    any_fitted = jnp.any(jnp.stack([fitted.fitted for fitted in parts.values()]))
    merged = landmarks
    for part in model.parts:
        own = parts[part.name].landmarks[part.part_index]
        good = jnp.all(jnp.isfinite(own))
        merged = merged.at[part.main_index].set(
            jnp.where(good, own, merged[part.main_index])
        )

    def refit() -> tuple[Array, PDMParams]:
        found = _estimate(model.pdm, merged, None, params, options)
        return project(model.pdm, found), found

    landmarks, params = lax.cond(any_fitted, refit, lambda: (landmarks, params))
    return WithParts(landmarks, params, parts, reach)


def unfitted_part(part: CLNFPart) -> PartFit:
    """What stands for a part that was not looked for.

    Args:
        part: The part.

    Returns:
        Not fitted, no steps, and NaN.

    Example:
        >>> bool(unfitted_part(with_part.parts[0]).fitted)
        False
    """
    pdm, num_scales = part.model.pdm, len(part.model.experts)
    dtype = pdm.mean_shape.dtype

    def nothing(*shape: int) -> Array:
        return filled(shape, np.nan, dtype)

    return PartFit(
        landmarks=nothing(pdm.num_landmarks, 2),
        params=PDMParams(
            scale=nothing(),
            rotation=nothing(3, 3),
            translation=nothing(2),
            params_local=nothing(pdm.num_modes),
        ),
        fitted=filled((), False, np.bool_),
        status=filled((), Status.RUNNING, np.int32),
        num_steps=filled((num_scales, 2), 0, np.int32),
        shape_delta=nothing(num_scales, 2),
        newton_distance=nothing(num_scales, 2),
        log_likelihood=nothing(),
    )


def worst_status(status: Int[Array, ""], parts: dict[str, PartFit]) -> Int[Array, ""]:
    """The status of a whole face with its parts.

    Args:
        status: Status of the whole face alone.
        parts: Its parts.

    Returns:
        `status`, but `MAX_STEPS` for a converged face of which a part did not converge.

    Example:
        >>> int(worst_status(jnp.asarray(1), {}))
        1
    """
    for part in parts.values():
        open_end = part.fitted & (part.status != Status.CONVERGED)
        status = jnp.where(
            open_end & (status == Status.CONVERGED), Status.MAX_STEPS, status
        )
    return status.astype(jnp.int32)


def _kind(part: CLNFPart) -> Hashable:
    """What parts have in common that one program can fit: the eyes, for instance."""
    leaves, tree = jax.tree.flatten(_nameless(part))
    sizes = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return PART_SETTINGS.get(part.name), tree, sizes


def _nameless(part: CLNFPart) -> CLNFPart:
    model = dataclasses.replace(part.model, info=ModelInfo(name=""))
    return dataclasses.replace(part, model=model, name="")


def _fit_alike(
    group: list[CLNFPart], shared: tuple
) -> list[tuple[PartFit, Float[Array, " 4"]]]:
    """Fits parts of one kind, whose program is compiled once however many there are."""
    if len(group) == 1:
        return [_fit_part(*shared, part=group[0])]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(_nameless, group))
    rows = map_batch(_fit_part, stacked, shared=shared)
    leaves, tree = jax.tree.flatten(rows)
    return [tree.unflatten(row) for row in zip(*leaves, strict=True)]


def _fit_part(
    image: GreyImage,
    image_size: Int[Array, " 2"],
    landmarks: Float[Array, "n 2"],
    params: PDMParams,
    usable: Bool[Array, ""],
    options: FitOptions,
    part: CLNFPart,
) -> tuple[PartFit, Float[Array, " 4"]]:
    model = part.model
    n = model.pdm.num_landmarks
    target = jnp.zeros((n, 2), landmarks.dtype)
    target = target.at[part.part_index].set(landmarks[part.main_index])
    shared = jnp.zeros(n, bool).at[part.part_index].set(True)
    start = _estimate(model.pdm, target, shared, params, options)
    least = _LEAST_RESOLUTION * model.experts[0].patch_scaling
    needed = usable & (params.scale > least)
    windows = options.window_sizes[: len(model.experts)]
    placed = dataclasses.replace(
        unfitted_part(part), landmarks=project(model.pdm, start), params=start
    )
    nowhere = jnp.full(4, jnp.nan, landmarks.dtype)
    if not any(windows):
        return placed, nowhere
    # A start that is not usable costs next to nothing, and makes no copies of the model
    # under `jax.vmap`, as `lax.cond` would.
    begin = jax.tree.map(lambda x: jnp.where(needed, x, jnp.nan), start)
    fitted, _ = fit_scales(model, image, image_size, begin, options, anywhere=True)
    done = PartFit(
        landmarks=fitted.landmarks,
        params=fitted.params,
        fitted=jnp.ones((), bool),
        status=fitted.status,
        num_steps=fitted.num_steps,
        shape_delta=fitted.shape_delta,
        newton_distance=fitted.newton_distance,
        log_likelihood=fitted.log_likelihood,
    )
    return jax.tree.map(
        lambda a, b: jnp.where(needed, a, b), (done, fitted.reach), (placed, nowhere)
    )


def _estimate(
    pdm: PDM,
    landmarks: Float[Array, "n 2"],
    visible: Bool[Array, " n"] | None,
    whole: PDMParams,
    options: FitOptions,
) -> PDMParams:
    # OpenFace begins with a frontal face, whatever the pose of the whole.
    is_openface = options.solver == "openface"
    return params_from_landmarks(
        pdm,
        landmarks,
        visible=visible,
        rotation=None if is_openface else whole.rotation,
        dialect="openface" if is_openface else "converged",
    )
