"""One pure step of each solver, `state -> state`.

Add a solver by naming its step in `STEPS`; start, loop, trace and stop test are shared.
One that the package is to have is named in `jaxclnf.solver.options.SolverName` too.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.pytree import all_finite, select
from jaxclnf.shape.pdm import PDM, PDMParams, clamp, retract
from jaxclnf.solver.box import maximise_in_box
from jaxclnf.solver.certificate import (
    gradient_norm,
    room,
    shape_displacement,
)
from jaxclnf.solver.evidence import evaluate
from jaxclnf.solver.newton import newton_step
from jaxclnf.solver.objective import (
    objective_terms,
)
from jaxclnf.solver.openface import openface_step
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import em_quadratic
from jaxclnf.solver.state import NURLMSState, gain_of
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
        >>> options = NURLMSOptions(solver="em")
        >>> before = nu_rlms_init(pdm, responses, params, options)
        >>> after = em_step(pdm, responses, before, options)
        >>> bool(after.objective >= before.objective)
        True
    """
    params = state.params
    columns, slope, normal = em_quadratic(
        pdm, responses, params, state.evidence, options, rigid
    )
    full_step = maximise_in_box(normal, slope, *room(pdm, params, options, rigid))
    solved = all_finite(full_step)
    step = jnp.where(solved, state.step_factor * full_step, 0)
    moved = shape_displacement(columns, step)
    candidate = retract(params, step)
    if not rigid:
        candidate = clamp(pdm, candidate, options.n_sigmas)
    return _accept_or_halve(
        pdm, responses, state, candidate, moved, solved, options, rigid
    )


STEPS: dict[str, Callable[..., NURLMSState]] = {
    "newton": newton_step,
    "em": em_step,
    "openface": openface_step,
}
"""The step of each solver by its name."""


def _accept_or_halve(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    candidate: PDMParams,
    moved: Float[Array, ""],
    solved: Bool[Array, ""],
    options: NURLMSOptions,
    rigid: bool,
) -> NURLMSState:
    evidence = evaluate(pdm, responses, candidate, options)
    before = objective_terms(pdm, responses, state.params, state.evidence, options)
    after = objective_terms(pdm, responses, candidate, evidence, options)
    gain, rounding = gain_of(before, after)
    accepted = gain >= -rounding
    finite = solved & jnp.isfinite(gain) & jnp.all(jnp.isfinite(evidence.shape))
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
        previous_shape=state.evidence.shape,
        step_factor=jnp.ones_like(moved),
        num_steps=num_steps,
        status=status.astype(jnp.int32),
    )
    old = dataclasses.replace(
        state,
        step_factor=state.step_factor / 2,
        num_steps=num_steps,
        status=new.status,
    )
    return select(accepted, new, old)
