"""OpenFace's step with switches for the habits of its kernel, and what a run tells."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxclnf
from jaxclnf.shape.pdm import mode_bounds
from jaxclnf.solver import evidence
from jaxclnf.solver.kde import GRID_STEP, log_kde
from jaxclnf.solver.objective import objective_terms
from jaxclnf.solver.openface import openface_step
from jaxclnf.solver.state import gain_of

VARIANTS = {
    "grid and clamp (OpenFace)": (True, True),
    "grid alone": (True, False),
    "clamp alone": (False, True),
    "neither": (False, False),
}
"""Whether the kernel sits on the grid, and whether positions are clamped."""
STEPS = 300
OWN_STEPS, OWN_TOL = 5, 0.01
"""OpenFace's step limit and its threshold for the change of the shape, pixels."""
REST = 1e-3
"""Pixels; what moves less in the last hundred steps is at rest."""


@contextmanager
def kernel(snaps: jax.Array, clamps: jax.Array) -> Iterator[None]:
    """Replaces OpenFace's kernel by one whose habits are switches, while tracing."""

    def kde(maps: jax.Array, positions: jax.Array, sigma: jax.Array):
        last = maps.shape[-1] - GRID_STEP
        position = jnp.where(clamps, jnp.clip(positions, 0, last), positions)
        centre = jnp.where(snaps, jnp.round(position / GRID_STEP) * GRID_STEP, position)
        log_density, shift = log_kde(maps, centre, sigma)
        return log_density, shift + centre - position

    original = evidence.grid_kde
    evidence.grid_kde = kde
    try:
        yield
    finally:
        evidence.grid_kde = original


@partial(jax.jit, static_argnames="rigid")
@partial(jax.vmap, in_axes=(None, None, None, None, 0, 0, None))
def record(pdm, responses, start, options, snaps, clamps, rigid: bool):
    """Three hundred steps under each kernel.

    Returns:
        The last parameters; the shapes, the start first; for each step the rise of F
        under the exact kernel and its rounding, and both under the step's own kernel;
        whether a landmark ends outside its window, and a mode at its bound.
    """
    own = dataclasses.replace(options, solver="openface", max_steps=STEPS)
    exact = dataclasses.replace(options, solver="em")

    def terms(params, found, how):
        return objective_terms(pdm, responses, params, found, how)

    def body(state, _):
        after = openface_step(pdm, responses, state, own, rigid=rigid)
        rises = []
        for how in (exact, own):
            pair = [
                terms(s.params, evidence.evaluate(pdm, responses, s.params, how), how)
                for s in (state, after)
            ]
            rise, rounding = gain_of(*pair)
            rises += [rise, rounding]
        return after, (after.evidence.shape, *rises)

    first = jaxclnf.nu_rlms_init(pdm, responses, start, own, rigid=rigid)
    with kernel(snaps, clamps):
        found = evidence.evaluate(pdm, responses, start, own)
        first = dataclasses.replace(first, evidence=found)
        last, (shapes, *rises) = jax.lax.scan(body, first, length=STEPS)
    shapes = jnp.concatenate([found.shape[None], shapes])
    positions = evidence.landmark_positions(responses, shapes[-1])
    outside = (positions < 0) | (positions > responses.maps.shape[-1] - GRID_STEP)
    outside = jnp.any(outside, axis=1) & evidence.has_evidence(responses)
    bounds = mode_bounds(pdm, options.n_sigmas)
    at_bound = jnp.any(jnp.abs(last.params.params_local) > 0.999 * bounds)
    return last.params, shapes, rises, jnp.any(outside), at_bound


def cycle(shapes: np.ndarray) -> tuple[int, float]:
    """How the last hundred shapes repeat themselves.

    Args:
        shapes: Shapes after each step.

    Returns:
        The period, 1 for rest and 0 for none up to 50, and how far the landmark that
        moves most is from its last position, pixels.
    """
    tail = shapes[-100:]
    size = float(np.linalg.norm(tail - tail[-1], axis=-1).max())
    if size < REST:
        return 1, size
    move = np.linalg.norm(np.diff(tail, axis=0), axis=-1).max()
    for period in range(2, 51):  # a slow creep is no cycle: it moves on all the time
        gap = np.linalg.norm(tail[period:] - tail[:-period], axis=-1).max()
        if gap < 0.1 * move:
            return period, size
    return 0, size


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Largest distance of a landmark of two shapes, pixels."""
    return float(np.linalg.norm(one - other, axis=-1).max())


def measures(shapes: np.ndarray, rises: list[np.ndarray], optimum: np.ndarray) -> dict:
    """What one run of a phase tells."""
    moves = np.sqrt(np.sum(np.diff(shapes, axis=0) ** 2, axis=(1, 2)))
    stops = np.flatnonzero(moves < OWN_TOL)
    count = int(stops[0]) + 1 if len(stops) else STEPS
    exact, rounding, own, own_rounding = rises
    period, size = cycle(shapes)
    return {
        "steps": count,
        "stops": bool(len(stops)),
        "falls": int(np.sum(exact[:count] < -rounding[:count])),
        "own_falls": int(np.sum(own[:count] < -own_rounding[:count])),
        "fallen": float(-np.minimum(exact[:count], 0).sum()),
        "risen": float(exact[:count].sum()),
        "period": period,
        "size": size,
        "rest": apart(shapes[-1], optimum),
        "stopped": apart(shapes[count], optimum),
        "five": apart(shapes[min(OWN_STEPS, count)], optimum),
    }
