"""Made-up response maps of random faces, for poses that photographs seldom show."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxclnf
from jaxclnf.shape.pdm import shape_3d
from jaxclnf.shape.similarity import align_shapes, inverse_similarity

WINDOW = 11
PATCH_SCALING = 0.25
"""Pixels of the maps per millimetre."""


class Problem(NamedTuple):
    """Maps with a place to start from."""

    responses: jaxclnf.ResponseMaps
    start: jaxclnf.PDMParams
    options: jaxclnf.NURLMSOptions


def made_up(pdm: jaxclnf.PDM, yaw: float, rng: np.random.Generator) -> Problem:
    """A random face near a yaw, a start some degrees away, and maps around that.

    Args:
        pdm: The shape model.
        yaw: Degrees; pitch and roll are up to ten, the start is six away or so.
        rng: For all the rest.

    Returns:
        Maps of 11 pixels at 0.25 pixels per millimetre, all landmarks visible.
    """
    dtype = pdm.mean_shape.dtype
    deviations = np.sqrt(np.asarray(pdm.eigen_values))
    pitch, roll = rng.uniform(-10, 10, 2)
    angles = np.deg2rad([pitch, yaw, roll])
    pose = np.concatenate([[1.0], angles, [150.0, 150.0]])
    weights = 0.7 * deviations * rng.standard_normal(len(deviations))
    true = jaxclnf.PDMParams.from_global(
        jnp.asarray(pose, dtype), jnp.asarray(weights, dtype)
    )
    away = np.concatenate(
        [[0.05], np.full(3, np.deg2rad(6)), [4.0, 4.0]]
    ) * rng.standard_normal(6)
    start = jaxclnf.retract(true, jnp.asarray(away, dtype))
    start = dataclasses.replace(start, params_local=jnp.zeros_like(true.params_local))
    base = jaxclnf.project(pdm, start)
    reference = PATCH_SCALING * shape_3d(pdm, start.params_local)[:, :2]
    ref_from_img = align_shapes(base, reference)
    moved = (jaxclnf.project(pdm, true) - base) @ ref_from_img.T
    true_peak = np.asarray(moved) + (WINDOW - 1) / 2
    false_peak = rng.uniform(0, WINDOW - 1, true_peak.shape)
    u = np.arange(WINDOW)
    maps = 0.05 * rng.uniform(size=(len(true_peak), WINDOW, WINDOW))
    for peak, height in ((true_peak, 1.0), (false_peak, 0.5)):
        across = (u[None, None, :] - peak[:, 0, None, None]) ** 2
        down = (u[None, :, None] - peak[:, 1, None, None]) ** 2
        maps += height * np.exp(-0.5 * (across + down))
    n = len(maps)
    responses = jaxclnf.ResponseMaps(
        maps=jnp.asarray(maps, dtype),
        base_shape=base,
        ref_from_img=ref_from_img,
        img_from_ref=inverse_similarity(ref_from_img),
        visibility=jnp.ones(n, bool),
        confidence=jnp.ones(n, dtype),
        view=jnp.zeros((), jnp.int32),
    )
    options = jaxclnf.FitOptions().at_scale(jnp.asarray(PATCH_SCALING, dtype))
    return Problem(responses, start, options)
