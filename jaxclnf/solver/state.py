"""Where an optimisation is: the state that every step maps to the next."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.evidence import Evidence
from jaxclnf.solver.quadratic import LocalQuadratic


@pytree_dataclass
class TrustRegion:
    """What `newton` remembers of the step before."""

    radius: Float[Array, ""]
    """How long the next step may be in the EM metric, pixels."""
    damping: Float[Array, ""]
    """Multiple of the EM curvature that was added for the last step that was tried; 0
    for the exact Hessian, and before the first step."""


@pytree_dataclass
class NURLMSState:
    """State of one phase. All of it describes `params`, but for the last step's traces
    `shape_delta` and `previous_shape`."""

    params: PDMParams
    """Present parameters."""
    evidence: Evidence
    """Shape, log densities and mean shifts at `params`."""
    objective: Float[Array, ""]
    """F at the start and all gains since, px^2: so it does not fall by rounding, but
    keeps that of the start. `jaxclnf.objective` is F at any parameters."""
    gradient_norm: Float[Array, ""]
    """`max_k |g_k| / sqrt(H_kk)` over the directions free to move, pixels: how far the
    gradient alone says the shape would go in any one direction. NaN after a step of
    `openface`, which does not look at it."""
    shape_delta: Float[Array, ""]
    """How far the last accepted step moved the whole shape, pixels; inf before it."""
    previous_shape: Float[Array, "n 2"]
    """Landmarks before the last accepted step, image pixels; before it, those of
    `params`. OpenFace takes its likelihood there."""
    step_factor: Float[Array, ""]
    """Share of the full step that the next one takes; 1 but after a rejected step."""
    num_steps: Int[Array, ""]
    """Steps taken, rejected ones included."""
    status: Int[Array, ""]
    """A code of `jaxclnf.status.Status`."""
    trust: TrustRegion | None = None
    """Of the solver `newton` only."""
    quadratic: LocalQuadratic | None = None
    """F to the second order at `params`, of `newton` only; it is worked out again where
    it is missing, as in a record of states."""


def gain_of(
    before: Float[Array, " t"], after: Float[Array, " t"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How much F rises from one point to another.

    Args:
        before: `objective_terms` at the one.
        after: The same at the other.

    Returns:
        The rise, and how much of it may be rounding; px^2. Summing the terms'
        differences keeps digits that a difference of sums would lose.

    Example:
        >>> gain, rounding = gain_of(jnp.asarray([1.0, 2.0]), jnp.asarray([1.5, 2.0]))
        >>> float(gain), bool(rounding < 1e-5)
        (0.5, True)
    """
    both = jnp.stack([after - before, jnp.abs(before)])
    # As a product: on CPU two sums are six calls.
    gain, size = jnp.matmul(both, jnp.ones_like(before), precision="highest")
    return gain, 8 * jnp.finfo(before.dtype).eps * size
