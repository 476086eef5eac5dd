"""Newton's method on F: the exact Hessian, a trust region, the mode bounds.

Every step maximises the quadratic model `g . d - d . H d / 2` within the mode bounds.
`H` is the exact negative Hessian (`jaxclnf.solver.quadratic`). Where it is
not positive definite, or the step is longer than the trust region allows, a multiple of
the EM curvature is added to the whole of it: long damping gives short EM steps, which
climb. Near an optimum nothing is added, and convergence is quadratic. Trust region:
Conn, Gould, Toint, Trust-Region Methods, 2000; damping in a metric: More, The
Levenberg-Marquardt algorithm, 1978.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.batching import in_turn_on_cpu
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.loops import while_loop
from jaxclnf.pytree import select
from jaxclnf.shape.pdm import PDM, PDMParams, clamp, retract
from jaxclnf.solver.box import maximise_in_box, solve_free
from jaxclnf.solver.certificate import (
    blocked_directions,
    room,
    scaled_gradient,
    shape_displacement,
)
from jaxclnf.solver.evidence import evaluate
from jaxclnf.solver.objective import objective_terms
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import LocalQuadratic, local_quadratic, phase_jacobian
from jaxclnf.solver.state import NURLMSState, TrustRegion, gain_of
from jaxclnf.status import Status

# Chosen on phases of the wild model, boxes moved about (`experiments/steps.py`). Mean
# and largest number of steps of 664 phases: 5.55 and 16; with a first radius of 2, 5.72
# and 17. On 3952 phases a first radius of 4 made the slowest slower by a fourth, and
# one that shrinks to a quarter by a third.
_FIRST_RADIUS = 2.4
"""Trust radius at the start, in lengths of the EM step."""
_LEAST_DAMPING = 0.0125
"""No smaller one is looked for where the bare Hessian does not do."""
_FIRST_DAMPING = 0.2
"""What is tried then, where the last step says nothing. Half or twice as much takes 35
trials a fit instead of 34 (general model, 105 faces)."""
_MAX_TRIALS = 27
"""How many dampings are tried; were all too small, the last would be far beyond 1e5."""
_FASTER = 4.0
"""How much larger the next damping is while none does."""
_CLOSE = 1.25
"""How far above one that is too small a damping may be."""
_SHORT, _SLACK = 0.75, 1.2
"""Shares of the radius between which the length of a damped step is as asked for."""
_AIM = 0.9
"""The search aims at a length of the radius divided by this, between the two."""
_POOR, _GOOD = 0.25, 0.75
"""Shares of the predicted gain below which the radius shrinks, above which it grows."""
_LEAST_SHARE = 1e-4
"""Share of the predicted gain that a step must bring to be accepted."""


class _Search(NamedTuple):
    """For the damping that makes a step as long as the radius."""

    step: Float[Array, " d"]
    """That of `damping`; of the last one tried while none does."""
    damping: Float[Array, ""]
    """The smallest that does, or the last one tried."""
    pull: Float[Array, ""]
    """1 / length of that step."""
    too_small: Float[Array, ""]
    """The largest that is too small, or 0."""
    too_small_pull: Float[Array, ""]
    """1 / length of its step, 0 where it made none."""
    found: Bool[Array, ""]
    """Whether there is one that does."""
    settled: Bool[Array, ""]
    num_trials: Int[Array, ""]
    radius: Float[Array, ""]
    """The longest step, which stays; here it takes part in `while_loop`'s vector."""
    guess: Float[Array, ""]
    """The damping to try second; likewise."""


@jax.custom_jvp
@in_turn_on_cpu  # Each face makes its own trials, not as many as its neighbours.
def damped_step(
    curved: Float[Array, "d d"],
    normal: Float[Array, "d d"],
    slope: Float[Array, " d"],
    lower: Float[Array, " d"] | None,
    upper: Float[Array, " d"] | None,
    radius: Float[Array, ""],
    last_damping: Float[Array, ""],
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """The best step in a box with a damping that keeps it within a radius.

    Tries no damping, then that of the step before; four times as much while that is too
    little. From then on it looks between one that is too small and one that is not, as
    if 1 / length were linear in the damping, which it nearly is (More and Sorensen,
    Computing a trust region step, 1983), until the step is about as long as the radius.

    Args:
        curved: Curvature of the model, symmetric, perhaps indefinite.
        normal: The metric, symmetric positive definite.
        slope: The slope at zero.
        lower: Lower bounds of the step, at most 0, or None.
        upper: Upper bounds, at least 0, or None.
        radius: Longest step in the metric, give or take a fifth.
        last_damping: That of the step before; 0 where there was none.

    Returns:
        The step, and the multiple of `normal` that was added to `curved`. NaN where no
        damping made a step.

    Example:
        >>> curved, zero = jnp.diag(jnp.asarray([-1.0, 2.0])), jnp.asarray(0.0)
        >>> step, damping = damped_step(
        ...     curved, jnp.eye(2), jnp.ones(2), None, None, jnp.asarray(1.0), zero
        ... )
        >>> bool(damping > 1), bool(jnp.linalg.norm(step) < 1.2)
        (True, True)
    """

    def next_damping(search: _Search) -> Float[Array, ""]:
        width = search.damping - search.too_small
        along = (_AIM / search.radius - search.too_small_pull) / (
            search.pull - search.too_small_pull
        )
        between = search.too_small + width * jnp.clip(along, 0.1, 0.9)
        larger = jnp.maximum(_FASTER * search.too_small, search.guess)
        damping = jnp.where(search.found, between, larger)
        return jnp.where(search.num_trials == 0, 0, damping)

    def one_more(search: _Search) -> _Search:
        damping = next_damping(search)
        step = maximise_in_box(curved + damping * normal, slope, lower, upper)
        length = metric_length(normal, step)
        # False for NaN too: the sum was not positive definite.
        fits = length <= _SLACK * search.radius
        pull = jnp.where(length > 0, 1 / length, 0)
        long_enough = (length >= _SHORT * search.radius) | (damping <= _LEAST_DAMPING)
        too_small = jnp.where(fits, search.too_small, damping)
        better = fits | ~search.found
        smallest = jnp.where(better, damping, search.damping)
        found = fits | search.found
        return _Search(
            step=jnp.where(better, step, search.step),
            damping=smallest,
            pull=jnp.where(better, pull, search.pull),
            too_small=too_small,
            too_small_pull=jnp.where(fits, search.too_small_pull, pull),
            found=found,
            settled=(fits & long_enough) | (found & (smallest <= _CLOSE * too_small)),
            num_trials=search.num_trials + 1,
            radius=search.radius,
            guess=search.guess,
        )

    zero, no = jnp.zeros_like(radius), jnp.zeros((), bool)
    start = _Search(
        step=jnp.zeros_like(slope),
        damping=zero,
        pull=zero,
        too_small=zero,
        too_small_pull=zero,
        found=no,
        settled=no,
        num_trials=jnp.zeros((), jnp.int32),
        radius=radius,
        guess=jnp.where(last_damping > 0, last_damping, _FIRST_DAMPING),
    )
    end = while_loop(
        lambda search: ~search.settled & (search.num_trials < _MAX_TRIALS),
        one_more,
        start,
    )
    return end.step, end.damping


@damped_step.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    # At the damping that was found; a loop could not be differentiated in reverse.
    curved, normal, slope, lower, upper, *_ = primals
    step, damping = damped_step(*primals)
    damped = curved + damping * normal
    d_damped = tangents[0] + damping * tangents[1]
    _, d_step = jax.jvp(
        maximise_in_box, (damped, slope, lower, upper), (d_damped, *tangents[2:5])
    )
    return (step, damping), (d_step, jnp.zeros_like(damping))


def metric_length(
    normal: Float[Array, "d d"], step: Float[Array, " d"]
) -> Float[Array, ""]:
    """Length of a step in a metric.

    Args:
        normal: The metric, symmetric positive definite.
        step: The step.

    Returns:
        `sqrt(step . normal step)`.

    Example:
        >>> float(metric_length(4 * jnp.eye(2), jnp.asarray([0.0, 3.0])))
        6.0
    """
    # Products, also where a sum would do: on CPU that is three calls instead of one.
    along = jnp.matmul(normal, step, precision="highest")
    return jnp.sqrt(jnp.maximum(jnp.vdot(step, along, precision="highest"), 0))


def first_trust_region(
    pdm: PDM,
    params: PDMParams,
    here: LocalQuadratic,
    options: NURLMSOptions,
) -> TrustRegion:
    """The trust region that a phase begins with: two EM steps.

    Args:
        pdm: The shape model.
        params: Where the phase begins.
        here: F there.
        options: The phase's options.

    Returns:
        The region.

    Example:
        >>> options = NURLMSOptions(solver="newton")
        >>> evidence = evaluate(pdm, responses, params, options)
        >>> columns = phase_jacobian(pdm, params, rigid=True)
        >>> here = local_quadratic(pdm, responses, params, evidence, options, columns)
        >>> first = first_trust_region(pdm, params, here, options)
        >>> bool(first.radius > 0), float(first.damping)
        (True, 0.0)
    """
    slope, normal, _ = here
    free = ~blocked_directions(pdm, params, slope, options)
    em_step = solve_free(normal, slope, jnp.zeros_like(slope), free)
    radius = lax.stop_gradient(_FIRST_RADIUS * metric_length(normal, em_step))
    return TrustRegion(radius=radius, damping=jnp.zeros_like(radius))


def completed(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """A state from which a phase can go on: one from a record lacks what is large.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: The state; that of another solver than `newton` is returned as it is.
        options: The phase's options.
        rigid: Pose only, or pose and modes.

    Returns:
        The state with F to the second order.

    Example:
        >>> options = NURLMSOptions(solver="newton")
        >>> state = nu_rlms_init(pdm, responses, params, options)
        >>> recorded = dataclasses.replace(state, quadratic=None)
        >>> completed(pdm, responses, recorded, options).quadratic is None
        False
    """
    if options.solver != "newton" or state.quadratic is not None:
        return state
    columns = phase_jacobian(pdm, state.params, rigid)
    here = local_quadratic(
        pdm, responses, state.params, state.evidence, options, columns
    )
    return dataclasses.replace(state, quadratic=here)


def newton_step(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """One step of Newton's method: a quadratic model of F, its step, a look at F there.

    A step is accepted if F rises, or falls by no more than rounding where no more than
    rounding was to be gained. The phase has converged when an undamped step was
    accepted that moved the shape by less than `shape_tol`: what is then left is of the
    order of its square. `certify` measures it.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: The state before, with its trust region.
        options: The phase's options; `solver` must be `"newton"`.
        rigid: Move the pose only, without prior.

    Returns:
        The state after.

    Raises:
        ValueError: The state has no trust region: it was made for another solver.

    Example:
        >>> options = NURLMSOptions(solver="newton")
        >>> before = nu_rlms_init(pdm, responses, params, options)
        >>> after = newton_step(pdm, responses, before, options)
        >>> bool(after.objective >= before.objective)
        True
    """
    if state.trust is None:
        raise ValueError("the state has no trust region; start it with newton")
    state = completed(pdm, responses, state, options, rigid=rigid)
    assert state.trust is not None and state.quadratic is not None
    trust, (slope, normal, curved) = state.trust, state.quadratic
    radius = trust.radius
    limits = room(pdm, state.params, options, rigid)
    step, damping = damped_step(curved, normal, slope, *limits, radius, trust.damping)
    push = slope - 0.5 * jnp.matmul(curved, step, precision="highest")
    predicted = lax.stop_gradient(jnp.vdot(step, push, precision="highest"))
    length = lax.stop_gradient(metric_length(normal, step))
    # A trial that is not finite was only too long; a model that is not has no step.
    finite = jnp.isfinite(predicted)
    step = jnp.where(finite, step, 0)

    candidate = retract(state.params, step)
    if not rigid:
        candidate = clamp(pdm, candidate, options.n_sigmas)
    evidence = evaluate(pdm, responses, candidate, options, second_order=True)
    before = objective_terms(pdm, responses, state.params, state.evidence, options)
    after = objective_terms(pdm, responses, candidate, evidence, options)
    gain, rounding = gain_of(before, after)
    small = predicted <= rounding
    share = jnp.where(small, 1, gain / jnp.where(small, 1, predicted))
    accepted = jnp.where(small, gain >= -rounding, share > _LEAST_SHARE)
    longer = jnp.maximum(radius, 2 * length)
    shorter = 0.5 * jnp.minimum(radius, length)
    radius = jnp.where((share > _GOOD) & (damping > 0), longer, radius)
    radius = jnp.where((share < _POOR) | ~accepted, shorter, radius)

    columns = phase_jacobian(pdm, candidate, rigid)
    there = local_quadratic(pdm, responses, candidate, evidence, options, columns)
    blocked = blocked_directions(pdm, candidate, there.slope, options)
    diagonal = jnp.diagonal(there.normal)
    # By the Jacobian at the end; of the step it is as good as that at the beginning.
    moves = shape_displacement(columns, step)
    trust = TrustRegion(radius=radius, damping=damping)
    num_steps = state.num_steps + 1
    at_rest = accepted & (damping == 0) & (moves < options.shape_tol)
    status = jnp.where(num_steps >= options.max_steps, Status.MAX_STEPS, Status.RUNNING)
    status = jnp.where(at_rest, Status.CONVERGED, status)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    new = NURLMSState(
        params=candidate,
        evidence=evidence,
        objective=state.objective + gain,
        gradient_norm=scaled_gradient(there.slope, diagonal, blocked),
        shape_delta=moves,
        previous_shape=state.evidence.shape,
        step_factor=state.step_factor,
        num_steps=num_steps,
        status=status,
        trust=trust,
        quadratic=there,
    )
    old = dataclasses.replace(state, num_steps=num_steps, status=status, trust=trust)
    return select(accepted, new, old)
