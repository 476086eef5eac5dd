"""One pure step of each solver, `state -> state`.

Add a solver by writing its step here and naming it in `STEPS` and in
`jaxclnf.solver.options.SolverName`; start, loop, trace and stop test are shared.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, clamp, mode_bounds, retract
from jaxclnf.solver.box import maximise_in_box, solve
from jaxclnf.solver.evidence import Evidence, evaluate, landmark_weights
from jaxclnf.solver.objective import (
    gradient_from,
    normal_matrix,
    objective_terms,
    phase_jacobian,
    prior_precision,
)
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status


def em_step(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """One NU-RLMS step: Gauss-Newton on the EM surrogate of F, within the mode bounds.

    Solves `(J^T W J + r E^-1) d = J^T W v - r E^-1 q` for the tangent step `d`, over
    the box of the mode bounds, so that fixed points are constrained optima of F. Should
    F fall by more than rounding, the step is rejected and halved.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: The state before.
        options: The phase's options.
        rigid: Move the pose only, without prior.

    Returns:
        The state after.

    Mirrors:
        The body of CLNF::NU_RLMS, which clips the modes after the step instead.

    Example:
        >>> before = nu_rlms_init(pdm, responses, params, NURLMSOptions())
        >>> after = em_step(pdm, responses, before, NURLMSOptions())
        >>> bool(after.objective >= before.objective)
        True
    """
    params = state.params
    columns = phase_jacobian(pdm, params, rigid)
    weights = landmark_weights(responses, options)
    precision = prior_precision(pdm, options, rigid)
    slope = gradient_from(
        pdm, params, columns, weights, state.evidence.mean_shifts, precision
    )
    normal = normal_matrix(columns, weights, precision)
    if rigid:
        full_step = solve(normal, slope)
    else:
        bounds = mode_bounds(pdm, options.n_sigmas)
        pose = jnp.full(NUM_RIGID, jnp.inf, slope.dtype)
        room_up = jnp.concatenate([pose, bounds - params.params_local])
        room_down = jnp.concatenate([-pose, -bounds - params.params_local])
        full_step = maximise_in_box(normal, slope, room_down, room_up)
    step = state.step_factor * full_step
    # The change of shape from the Jacobian: differences of coordinates far from the
    # origin would resolve no more than 5e-4 px in float32.
    moved = jnp.sqrt(jnp.sum(jnp.sum(columns * step[None, None, :], axis=-1) ** 2))
    candidate = retract(params, step)
    if not rigid:
        candidate = clamp(pdm, candidate, options.n_sigmas)
    return _accept_or_halve(pdm, responses, state, candidate, moved, options, rigid)


STEPS: dict[str, Callable[..., NURLMSState]] = {"em": em_step}
"""The step of each solver by its name."""


def _accept_or_halve(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    candidate: PDMParams,
    moved: Float[Array, ""],
    options: NURLMSOptions,
    rigid: bool,
) -> NURLMSState:
    evidence = evaluate(pdm, responses, candidate, options)
    before = objective_terms(pdm, responses, state.params, state.evidence, options)
    after = objective_terms(pdm, responses, candidate, evidence, options)
    # Summing the terms' differences keeps digits that differences of sums lose.
    gain = jnp.sum(after - before)
    rounding = 8 * jnp.finfo(gain.dtype).eps * jnp.sum(jnp.abs(before))
    accepted = gain >= -rounding
    finite = jnp.isfinite(gain) & jnp.all(jnp.isfinite(evidence.shape))
    num_steps = state.num_steps + 1
    at_rest = accepted & (state.step_factor == 1) & (moved < options.shape_tol)
    status = jnp.where(num_steps >= options.max_steps, Status.MAX_STEPS, Status.RUNNING)
    status = jnp.where(at_rest, Status.CONVERGED, status)
    status = jnp.where(finite, status, Status.NONFINITE)
    new = NURLMSState(
        params=candidate,
        evidence=evidence,
        objective=state.objective + gain,
        gradient_norm=gradient_norm(
            pdm, responses, candidate, evidence, options, rigid
        ),
        shape_delta=moved,
        step_factor=jnp.ones_like(moved),
        num_steps=num_steps,
        status=status.astype(jnp.int32),
    )
    old = NURLMSState(
        params=state.params,
        evidence=state.evidence,
        objective=state.objective,
        gradient_norm=state.gradient_norm,
        shape_delta=state.shape_delta,
        step_factor=state.step_factor / 2,
        num_steps=num_steps,
        status=status.astype(jnp.int32),
    )
    return select(accepted, new, old)


def select(keep: Bool[Array, ""], new: NURLMSState, old: NURLMSState) -> NURLMSState:
    """One of two states, leaf by leaf.

    Args:
        keep: Whether to take `new`.
        new: One state.
        old: The other.

    Returns:
        `new` where `keep`, else `old`.

    Example:
        >>> state = nu_rlms_init(pdm, responses, params, NURLMSOptions())
        >>> int(select(jnp.asarray(True), state, state).num_steps)
        0
    """
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def gradient_norm(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    evidence: Evidence,
    options: NURLMSOptions,
    rigid: bool,
) -> Float[Array, ""]:
    """The scaled gradient of F: `max_k |g_k| / sqrt(H_kk)` over the free directions.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where `evidence` was taken.
        evidence: What `evaluate` found there.
        options: The phase's options.
        rigid: Pose only, or pose and modes.

    Returns:
        Pixels; modes at a bound that the gradient pushes against do not count.

    Example:
        >>> evidence = evaluate(pdm, responses, params, NURLMSOptions())
        >>> here = (pdm, responses, params, evidence, NURLMSOptions())
        >>> bool(gradient_norm(*here, rigid=False) >= gradient_norm(*here, rigid=True))
        True
    """
    columns = phase_jacobian(pdm, params, rigid)
    weights = landmark_weights(responses, options)
    precision = prior_precision(pdm, options, rigid)
    slope = gradient_from(
        pdm, params, columns, weights, evidence.mean_shifts, precision
    )
    diagonal = jnp.sum(weights[:, None, None] * columns**2, axis=(0, 1)) + precision
    scaled = jnp.abs(slope) / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    if not rigid:
        bounds = mode_bounds(pdm, options.n_sigmas)
        nearly = bounds * (1 - 8 * jnp.finfo(bounds.dtype).eps)
        local, push = params.params_local, slope[NUM_RIGID:]
        blocked = ((local >= nearly) & (push > 0)) | ((local <= -nearly) & (push < 0))
        scaled = scaled.at[NUM_RIGID:].set(jnp.where(blocked, 0, scaled[NUM_RIGID:]))
    return jnp.max(scaled)
