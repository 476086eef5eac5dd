"""How sure an end point is: what is left to climb, and in which directions F bends.

A small step is not a small distance: EM's steps shrink by a constant factor, and when
one of them is first below 0.005 px the shape is still 0.02 px from the optimum. The
certified distance is that of a full Newton step.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.linalg import smallest_eigenvalue
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, mode_bounds
from jaxclnf.solver.evidence import Evidence, evaluate
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import em_quadratic, local_quadratic, phase_jacobian
from jaxclnf.solver.state import NURLMSState


@pytree_dataclass
class Certificate:
    """What is known of the end of one phase."""

    newton_distance: Float[Array, "*b"]
    """How far a full Newton step in the directions free to move would still move the
    landmark that moves most, pixels; inf where the curvature is indefinite."""
    smallest_curvature: Float[Array, "*b"]
    """Smallest eigenvalue of the curvature of F relative to that of the EM surrogate,
    over the directions free to move: 1 where one EM step would arrive, near 0 where EM
    crawls, not positive where the end is no strict maximum; at most 1 where a mode is
    held by its bound."""
    num_active_bounds: Int[Array, "*b"]
    """Modes at a bound that F pushes against."""


def room(
    pdm: PDM, params: PDMParams, options: NURLMSOptions, rigid: bool
) -> tuple[Float[Array, " d"], Float[Array, " d"]] | tuple[None, None]:
    """How far a tangent step may go in each direction within the mode bounds.

    Args:
        pdm: The shape model.
        params: Where the step begins, within the bounds.
        options: For the bounds.
        rigid: Pose only, or pose and modes.

    Returns:
        Lower limits, at most 0, and upper limits; infinite for the pose, and None where
        there is nothing else.

    Example:
        >>> lower, upper = room(pdm, params, NURLMSOptions(), rigid=False)
        >>> bool(jnp.all((lower <= 0) & (upper >= 0)))
        True
    """
    if rigid:
        return None, None
    pose = jnp.full(NUM_RIGID, jnp.inf, params.scale.dtype)
    bounds = mode_bounds(pdm, options.n_sigmas)
    down = jnp.minimum(-bounds - params.params_local, 0)
    up = jnp.maximum(bounds - params.params_local, 0)
    return jnp.concatenate([-pose, down]), jnp.concatenate([pose, up])


def blocked_directions(
    pdm: PDM, params: PDMParams, slope: Float[Array, " d"], options: NURLMSOptions
) -> Bool[Array, " d"]:
    """Modes at a bound that the gradient pushes against.

    Args:
        pdm: The shape model.
        params: Where the gradient was taken.
        slope: The gradient of F; of the pose alone in a rigid phase.
        options: For the bounds.

    Returns:
        One flag per direction, False for the pose.

    Example:
        >>> slope = gradient(pdm, responses, params, NURLMSOptions())
        >>> int(blocked_directions(pdm, params, slope, NURLMSOptions()).sum())
        0
    """
    pose = jnp.zeros(NUM_RIGID, bool)
    if slope.shape[0] == NUM_RIGID:
        return pose
    bounds = mode_bounds(pdm, options.n_sigmas)
    nearly = bounds * (1 - 8 * jnp.finfo(bounds.dtype).eps)
    local, push = params.params_local, slope[NUM_RIGID:]
    at_bound = ((local >= nearly) & (push > 0)) | ((local <= -nearly) & (push < 0))
    return jnp.concatenate([pose, at_bound])


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
    here = em_quadratic(pdm, responses, params, evidence, options, rigid)
    blocked = blocked_directions(pdm, params, here.slope, options)
    return scaled_gradient(here.slope, jnp.diagonal(here.normal), blocked)


def scaled_gradient(
    slope: Float[Array, " d"], diagonal: Float[Array, " d"], blocked: Bool[Array, " d"]
) -> Float[Array, ""]:
    """`gradient_norm` from its ingredients.

    Args:
        slope: The gradient of F.
        diagonal: That of the curvature of the EM surrogate.
        blocked: Directions that do not count.

    Returns:
        Pixels.

    Example:
        >>> blocked = jnp.asarray([False, True])
        >>> float(scaled_gradient(jnp.ones(2), jnp.asarray([4.0, 1.0]), blocked))
        0.5
    """
    scaled = jnp.abs(slope) / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    return jnp.max(jnp.where(blocked, 0, scaled))


def displacements(
    columns: Float[Array, "n 2 d"], step: Float[Array, " d"]
) -> Float[Array, " n"]:
    """How far a small step moves each landmark.

    From the Jacobian: differences of coordinates far from the origin would resolve no
    more than 5e-4 px in float32.

    Args:
        columns: The Jacobian.
        step: A tangent step.

    Returns:
        Pixels.

    Example:
        >>> shift = jnp.zeros(6).at[4].set(3.0)
        >>> displacements(rigid_jacobian(pdm, params), shift)[0].tolist()
        3.0
    """
    moved = jnp.matmul(columns, step[:, None], precision="highest")[..., 0]
    return jnp.sqrt(jnp.sum(moved**2, axis=1))


def shape_displacement(
    columns: Float[Array, "n 2 d"], step: Float[Array, " d"]
) -> Float[Array, ""]:
    """How far a small step moves all landmarks together, from the Jacobian.

    Args:
        columns: The Jacobian.
        step: A tangent step.

    Returns:
        Euclidean norm of all coordinates' changes, pixels.

    Example:
        >>> shift = jnp.zeros(6).at[4].set(3.0)
        >>> moved = shape_displacement(rigid_jacobian(pdm, params), shift)
        >>> bool(jnp.allclose(moved, 3 * pdm.num_landmarks**0.5))
        True
    """
    moved = jnp.matmul(columns.reshape(-1, len(step)), step, precision="highest")
    square = jnp.vdot(moved, moved, precision="highest")
    # A step of 0 has no derivative of its length; NaN would be that of a whole fit.
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), square)


@partial(jax.jit, static_argnames="rigid")
def certify(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Certificate:
    """Judges the end of a phase by the exact curvature of F there.

    Args:
        pdm: The shape model.
        responses: The maps of the phase.
        state: Its last state, of which only the parameters count.
        options: The phase's options.
        rigid: Whether the phase moved the pose only.

    Returns:
        The certificate, without derivatives; NaN and 0 for `openface`, whose steps
        climb no objective.

    Example:
        >>> options = NURLMSOptions()
        >>> state = nu_rlms(pdm, responses, params, options)
        >>> found = certify(pdm, responses, state, options)
        >>> bool((found.newton_distance < 0.005) & (found.smallest_curvature > 0))
        True
    """
    state = dataclasses.replace(state, quadratic=None)
    return certify_end(pdm, responses, state, options, rigid=rigid)


def certify_end(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Certificate:
    """`certify`, with F to the second order as the state remembers it.

    Args:
        pdm: The shape model.
        responses: The maps that the state was made with.
        state: The last state of a phase.
        options: The options that it was made with.
        rigid: Whether the phase moved the pose only.

    Returns:
        As `certify`, which works it out again.

    Example:
        >>> options = NURLMSOptions()
        >>> state = nu_rlms(pdm, responses, params, options)
        >>> found = certify_end(pdm, responses, state, options)
        >>> bool(found.newton_distance < 0.005)
        True
    """
    params = state.params
    if options.solver == "openface":
        unknown = jnp.full_like(state.objective, jnp.nan)
        return Certificate(
            newton_distance=unknown,
            smallest_curvature=unknown,
            num_active_bounds=jnp.zeros((), jnp.int32),
        )
    here = state.quadratic
    if here is None:
        # Not woven into what comes before or after: a fit and its twin that keeps a
        # record give the same bits.
        params, responses = jax.lax.optimization_barrier((params, responses))
        columns = phase_jacobian(pdm, params, rigid)
        evidence = evaluate(pdm, responses, params, options, second_order=True)
        here = local_quadratic(pdm, responses, params, evidence, options, columns)
    else:
        columns = phase_jacobian(pdm, params, rigid)
    # Not followed by derivatives, whose rule divides by differences of eigenvalues.
    (slope, normal, curved), columns = jax.lax.stop_gradient((here, columns))
    blocked = blocked_directions(pdm, params, slope, options)
    smallest, inverse = relative_curvature(curved, normal, blocked)
    # At an optimum no other mode comes to its bound on the way.
    step = jnp.matmul(inverse, slope, precision="highest")
    distance = jnp.max(displacements(columns, step))
    return Certificate(
        newton_distance=jnp.where(smallest > 0, distance, jnp.inf),
        smallest_curvature=smallest,
        num_active_bounds=jnp.sum(blocked, dtype=jnp.int32),
    )


def relative_curvature(
    curved: Float[Array, "d d"],
    normal: Float[Array, "d d"],
    blocked: Bool[Array, " d"],
) -> tuple[Float[Array, ""], Float[Array, "d d"]]:
    """The smallest eigenvalue of one matrix relative to another, and the inverse.

    Args:
        curved: A symmetric matrix.
        normal: A symmetric positive definite matrix.
        blocked: Directions to leave out.

    Returns:
        The smallest `x . curved x / x . normal x`, at most 1 if there are blocked ones,
        to .07 %, see `smallest_eigenvalue`; and the inverse of `curved`, 0 along those
        left out, NaN if it is not positive definite.

    Example:
        >>> curved = jnp.diag(jnp.asarray([1.0, 6.0]))
        >>> normal = jnp.diag(jnp.asarray([2.0, 4.0]))
        >>> none = jnp.zeros(2, bool)
        >>> smallest, inverse = relative_curvature(curved, normal, none)
        >>> bool(jnp.allclose(smallest, 0.5)), bool(jnp.allclose(inverse[0, 0], 1.0))
        (True, True)
    """
    free = ~blocked[:, None] & ~blocked[None, :]
    one = jnp.diag(jnp.ones_like(normal[0]))
    scale = 1 / jnp.sqrt(jnp.diagonal(normal))
    both = scale[:, None] * scale[None, :]
    normal = jnp.where(free, normal * both, one)
    curved = jnp.where(free, curved * both, one)
    smallest, inverse = smallest_eigenvalue(curved, normal)
    return smallest, jnp.where(free, inverse * both, 0)
