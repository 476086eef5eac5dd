"""Start, step, stop: one phase of the optimiser, and its twin that keeps a record."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.loops import scalars_together
from jaxclnf.pytree import all_finite, held_where, select
from jaxclnf.shape.pdm import PDM, PDMParams, clamp
from jaxclnf.solver.certificate import blocked_directions, scaled_gradient
from jaxclnf.solver.evidence import evaluate, has_evidence
from jaxclnf.solver.lanes import run_to_end
from jaxclnf.solver.newton import completed, first_trust_region
from jaxclnf.solver.objective import objective_terms
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import em_quadratic, local_quadratic, phase_jacobian
from jaxclnf.solver.state import NURLMSState
from jaxclnf.solver.steps import STEPS
from jaxclnf.status import Status


@partial(jax.jit, static_argnames="rigid")
def nu_rlms_init(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """The state before the first step.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where to start, in any precision. In a non-rigid phase it is clamped
            to the mode bounds, but not by `openface`.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        A running state, or one that has already ended because nothing is visible or a
        value is not finite.

    Raises:
        ValueError: The solver's name is unknown.

    Example:
        >>> state = nu_rlms_init(pdm, responses, params, NURLMSOptions())
        >>> int(state.num_steps)
        0
    """
    _check_solver(options)
    dtype = pdm.mean_shape.dtype
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    if not rigid and options.solver != "openface":  # which clips after steps alone
        params = clamp(pdm, params, options.n_sigmas)
    evidence = evaluate(pdm, responses, params, options)
    value = jnp.sum(objective_terms(pdm, responses, params, evidence, options))
    status = jnp.where(
        jnp.isfinite(value) & jnp.all(jnp.isfinite(evidence.shape)),
        jnp.where(
            jnp.any(has_evidence(responses)), Status.RUNNING, Status.NOTHING_VISIBLE
        ),
        Status.NONFINITE,
    )
    trust = quadratic = None
    if options.solver == "newton":
        columns = phase_jacobian(pdm, params, rigid)
        quadratic = local_quadratic(pdm, responses, params, evidence, options, columns)
        trust = first_trust_region(pdm, params, quadratic, options)
    if options.solver == "openface":
        norm = jnp.full((), jnp.nan, dtype)  # as after its steps
    else:
        here = quadratic or em_quadratic(
            pdm, responses, params, evidence, options, rigid
        )
        blocked = blocked_directions(pdm, params, here.slope, options)
        norm = scaled_gradient(here.slope, jnp.diagonal(here.normal), blocked)
    return NURLMSState(
        params=params,
        evidence=evidence,
        objective=value,
        gradient_norm=norm,
        shape_delta=jnp.full((), jnp.inf, dtype),
        previous_shape=evidence.shape,
        step_factor=jnp.ones((), dtype),
        num_steps=jnp.zeros((), jnp.int32),
        status=status.astype(jnp.int32),
        trust=trust,
        quadratic=quadratic,
    )


def _check_solver(options: NURLMSOptions) -> None:
    if options.solver not in STEPS:
        raise ValueError(
            f"solver is {options.solver!r}; expected one of {', '.join(STEPS)}"
        )


@partial(jax.jit, static_argnames="rigid")
def nu_rlms_step(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """One iteration of the solver named in the options: pure and jitted.

    It steps on whatever the status is; stopping is the loop's business. A state knows
    its place in these maps, under these options: to go on with others, start again
    from its parameters, with `nu_rlms_init`.

    Args:
        pdm: The shape model.
        responses: The maps that the state was made with.
        state: The state before.
        options: The options that it was made with.
        rigid: Move the pose only.

    Returns:
        The state after, with its status.

    Raises:
        ValueError: The solver's name is unknown, or the state is another's.

    Example:
        >>> state = nu_rlms_init(pdm, responses, params, NURLMSOptions())
        >>> while state.status == Status.RUNNING:
        ...     state = nu_rlms_step(pdm, responses, state, NURLMSOptions())
        >>> Status(int(state.status)).name
        'CONVERGED'
    """
    _check_solver(options)
    if state.trust is not None and options.solver != "newton":
        raise ValueError(
            f"the state has a trust region, of newton; start it with {options.solver}"
        )
    return STEPS[options.solver](pdm, responses, state, options, rigid=rigid)


@partial(jax.jit, static_argnames="rigid")
def nu_rlms(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """Runs one phase until it converges, fails or reaches its step limit.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where to start, as for `nu_rlms_init`.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        The last state.

    Raises:
        ValueError: As `nu_rlms_init`.

    Mirrors:
        CLNF::NU_RLMS.

    Example:
        >>> state = nu_rlms(pdm, responses, params, NURLMSOptions())
        >>> bool(state.shape_delta < 0.005)
        True
    """
    return resume(
        pdm,
        responses,
        nu_rlms_init(pdm, responses, params, options, rigid=rigid),
        options,
        rigid=rigid,
    )


def resume(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """Runs a phase on from a state; one that has ended is returned as it is.

    Under `jax.vmap`, faces that have converged cost nothing: see `run_to_end`.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: Where to go on.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        The last state.

    Example:
        >>> state = nu_rlms(pdm, responses, params, NURLMSOptions(max_steps=1))
        >>> int(resume(pdm, responses, state, NURLMSOptions()).num_steps)
        1
    """
    state = completed(pdm, responses, state, options, rigid=rigid)
    return run_to_end(
        lambda shared, own, s: nu_rlms_step(shared[0], own, s, shared[1], rigid=rigid),
        lambda s: s.status == Status.RUNNING,
        (pdm, options),
        responses,
        state,
    )


@partial(jax.jit, static_argnames="rigid")
def nu_rlms_with_trace(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> tuple[NURLMSState, NURLMSState, Bool[Array, " t"]]:
    """`nu_rlms` with a record of every state; also differentiable in reverse.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where to start, as for `nu_rlms_init`.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        The last state, that of `nu_rlms` (to the last bit with `em`); all states with a
        leading axis of `max_steps + 1` slots, the start in slot 0, the last state
        repeated after the end; and which slots hold a state of their own.

    Raises:
        ValueError: As `nu_rlms_init`.

    Example:
        >>> last, states, valid = nu_rlms_with_trace(
        ...     pdm, responses, params, NURLMSOptions(max_steps=20)
        ... )
        >>> bool(valid.sum(dtype=jnp.int32) == last.num_steps + 1)
        True
    """
    pdm, responses, params, options = reversible(pdm, responses, params, options)
    first = nu_rlms_init(pdm, responses, params, options, rigid=rigid)
    return resume_with_trace(pdm, responses, first, options, rigid=rigid)


def reversible(
    pdm: PDM, responses: ResponseMaps, params: PDMParams, options: NURLMSOptions
) -> tuple[PDM, ResponseMaps, PDMParams, NURLMSOptions]:
    """What a phase starts from, so that its derivatives in reverse mode are finite.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to start.
        options: The phase's options.

    Returns:
        The same for every step, with 0 for maps with NaN, which are no evidence in
        either case; and without derivatives where the start is not finite.

    Example:
        >>> options, nan = NURLMSOptions(), responses.maps.at[0].set(jnp.nan)
        >>> blind = dataclasses.replace(responses, maps=nan)
        >>> bool(jnp.isnan(reversible(pdm, blind, params, options)[1].maps).any())
        False
    """
    nan = jnp.isnan(responses.maps).any(axis=(1, 2), keepdims=True)
    responses = dataclasses.replace(responses, maps=jnp.where(nan, 0, responses.maps))
    inputs = pdm, responses, params, options
    return held_where(~all_finite((responses.maps, params)), inputs)


def resume_with_trace(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> tuple[NURLMSState, NURLMSState, Bool[Array, " t"]]:
    """`resume` with a record of every state.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: Where to go on.
        options: The phase's options.
        rigid: Move the pose only.

    Returns:
        As `nu_rlms_with_trace`.

    Example:
        >>> first = nu_rlms_init(pdm, responses, params, NURLMSOptions())
        >>> last, _, _ = resume_with_trace(
        ...     pdm, responses, first, NURLMSOptions(max_steps=1)
        ... )
        >>> int(last.num_steps)
        1
    """

    state = completed(pdm, responses, state, options, rigid=rigid)

    packed, unpacked = scalars_together(state)

    def body(carry: list[Array], _: None) -> tuple[list[Array], tuple]:
        s = unpacked(carry)
        running = s.status == Status.RUNNING
        inputs = held_where(~running, (pdm, responses, s, options))
        after = select(running, nu_rlms_step(*inputs, rigid=rigid), s)
        return packed(after), (_recorded(after), running)

    carry, (states, valid) = lax.scan(body, packed(state), length=options.max_steps)
    states = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]), _recorded(state), states
    )
    return unpacked(carry), states, jnp.concatenate([jnp.ones((1,), bool), valid])


def _recorded(state: NURLMSState) -> NURLMSState:
    """Without what is large and follows from the rest."""
    return dataclasses.replace(state, quadratic=None)
