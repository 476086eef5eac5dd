"""One phase with every quantity of every step, beside the truth about each."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.diagnosis.truth import Truth, truth_at
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.pytree import pytree_dataclass, static
from jaxclnf.shape.pdm import PDM, PDMParams, mode_bounds
from jaxclnf.solver import evidence as solver_evidence
from jaxclnf.solver import loop as solver_loop
from jaxclnf.solver import quadratic as solver_quadratic
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState


@pytree_dataclass
class PhaseTrace:
    """Every step of one phase. Leading axis `t`: `max_steps + 1` slots, the start in
    slot 0, the last state repeated after the end.

    What the solver said is here, what is true of the same parameters in `truth`.
    """

    pdm: PDM
    """The shape model."""
    responses: ResponseMaps
    """The maps that were given to the phase."""
    options: NURLMSOptions
    """The phase's options."""
    rigid: bool = static()
    """Whether only the pose moved."""
    params: PDMParams
    """Parameters at each slot."""
    shape: Float[Array, "*b t n 2"]
    """Landmarks as the solver had them, image pixels."""
    positions: Float[Array, "*b t n 2"]
    """Where the solver's own function sees them in their maps, `(column, row)`."""
    mean_shifts: Float[Array, "*b t n 2"]
    """The solver's mean shifts in the image, pixels."""
    objective: Float[Array, "*b t"]
    """F as the solver had it, px^2."""
    gradient: Float[Array, "*b t d"]
    """The right-hand side that the solver's own functions make of these mean shifts."""
    gradient_norm: Float[Array, "*b t"]
    """The solver's scaled gradient, pixels; see `NURLMSState`."""
    shape_delta: Float[Array, "*b t"]
    """How far the solver says its last accepted step moved the shape, pixels."""
    step: Float[Array, "*b t d"]
    """The tangent step from the slot before, recovered from the parameters: `retract`
    of the slot before along it gives this slot. 0 in slot 0 and where a step was
    rejected."""
    at_bound: Int[Array, "*b t m"]
    """1 for a mode at or beyond its upper bound, -1 at or beyond the lower one."""
    status: Int[Array, "*b t"]
    """Codes of `jaxclnf.status.Status`."""
    valid: Bool[Array, "*b t"]
    """Which slots hold a state of their own."""
    truth: Truth
    """The same from the definitions; NaN in slots that are not valid."""

    @property
    def window_size(self) -> int:
        """Side of the response maps."""
        return self.responses.maps.shape[-1]


@partial(jax.jit, static_argnames="rigid")
def trace_phase(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> PhaseTrace:
    """Runs one phase and keeps everything about it.

    For debugging: F's derivatives are taken automatically at every step, some hundred
    times the work of the phase itself.

    Args:
        pdm: The shape model.
        responses: The maps of the scale.
        params: Where to start.
        options: The phase's options; `max_steps` sets the length of the record.
        rigid: Move the pose only.

    Returns:
        The trace; give it to `diagnose`.

    Example:
        >>> options = NURLMSOptions(solver="em", max_steps=40)
        >>> trace = trace_phase(pdm, responses, params, options)
        >>> bool(jnp.allclose(trace.gradient[0], trace.truth.gradient[0]))
        True
    """
    _, states, valid = solver_loop.nu_rlms_with_trace(
        pdm, responses, params, options, rigid=rigid
    )
    return phase_trace(pdm, responses, states, valid, options, rigid=rigid)


def phase_trace(
    pdm: PDM,
    responses: ResponseMaps,
    states: NURLMSState,
    valid: Bool[Array, " t"],
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> PhaseTrace:
    """The trace of a phase whose states were recorded, by whatever solver.

    Args:
        pdm: The shape model.
        responses: The maps that the phase should have used.
        states: States with a leading axis of slots, as `nu_rlms_with_trace` returns
            them.
        valid: Which slots hold a state of their own, the first ones.
        options: The phase's options.
        rigid: Whether only the pose moved.

    Returns:
        The trace.

    Example:
        >>> options = NURLMSOptions(solver="em", max_steps=2)
        >>> _, states, valid = nu_rlms_with_trace(pdm, responses, params, options)
        >>> look = jax.jit(phase_trace)
        >>> trace = look(pdm, responses, states, valid, options)
        >>> trace.step.shape == (3, 6 + pdm.num_modes)
        True
    """

    def one(slot: tuple[NURLMSState, Array]) -> tuple[Array, Array, Truth]:
        state, is_valid = slot
        look = partial(_look, pdm, responses, options=options, rigid=rigid)
        shapes = jax.eval_shape(look, state)
        return lax.cond(
            is_valid,
            look,
            lambda _: jax.tree.map(
                lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes
            ),
            state,
        )

    # Slot by slot, as the second derivatives of all at once would fill the memory.
    positions, slopes, truth = lax.map(one, (states, valid))
    bounds = mode_bounds(pdm, options.n_sigmas)
    nearly = bounds * (1 - 8 * jnp.finfo(bounds.dtype).eps)
    local = states.params.params_local
    at_bound = jnp.where(jnp.abs(local) >= nearly[None, :], jnp.sign(local), 0)
    return PhaseTrace(
        pdm=pdm,
        responses=responses,
        options=options,
        rigid=rigid,
        params=states.params,
        shape=states.evidence.shape,
        positions=positions,
        mean_shifts=states.evidence.mean_shifts,
        objective=states.objective,
        gradient=slopes,
        gradient_norm=states.gradient_norm,
        shape_delta=states.shape_delta,
        step=_steps(states.params, rigid),
        at_bound=at_bound.astype(jnp.int32),
        status=states.status,
        valid=valid,
        truth=truth,
    )


def _look(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    rigid: bool,
) -> tuple[Array, Array, Truth]:
    slope = solver_quadratic.em_quadratic(
        pdm, responses, state.params, state.evidence, options, rigid
    ).slope
    positions = solver_evidence.landmark_positions(responses, state.evidence.shape)
    truth = truth_at(pdm, responses, state.params, options, rigid=rigid)
    return positions, slope, truth


def tangent_step(
    before: PDMParams, after: PDMParams, *, rigid: bool = False
) -> Float[Array, " d"]:
    """The tangent step between two parameters: the inverse of `retract`.

    Args:
        before: Where the step began.
        after: Where it ended, turned by less than 90 degrees.
        rigid: Pose only, or pose and modes.

    Returns:
        `d` with `retract(before, d) = after`.

    Example:
        >>> d = jnp.asarray([0.1, 0.2, -0.3, 0.4, 5.0, 6.0])
        >>> bool(jnp.allclose(tangent_step(params, retract(params, d), rigid=True), d))
        True
    """
    turn = jnp.matmul(before.rotation.T, after.rotation, precision="highest")
    sine = 0.5 * jnp.stack(
        [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
    )
    cosine = 0.5 * (jnp.trace(turn) - 1)
    parts = [
        (after.scale - before.scale)[None],
        sine / cosine,
        after.translation - before.translation,
    ]
    if not rigid:
        parts.append(after.params_local - before.params_local)
    return jnp.concatenate(parts)


def _steps(params: PDMParams, rigid: bool) -> Float[Array, "t d"]:
    before = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:-1]]), params)
    return jax.vmap(partial(tangent_step, rigid=rigid))(before, params)
