"""Where an optimisation is: the state that every step maps to the next."""

from jaxtyping import Array, Float, Int

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.evidence import Evidence


@pytree_dataclass
class NURLMSState:
    """State of one phase. All of it describes `params`, but for `shape_delta`."""

    params: PDMParams
    """Present parameters."""
    evidence: Evidence
    """Shape, log densities and mean shifts at `params`."""
    objective: Float[Array, ""]
    """F at `params`, px^2."""
    gradient_norm: Float[Array, ""]
    """`max_k |g_k| / sqrt(H_kk)` over the directions free to move, pixels: how far the
    gradient alone says the shape would go in any one direction."""
    shape_delta: Float[Array, ""]
    """How far the last accepted step moved the whole shape, pixels; inf before it."""
    step_factor: Float[Array, ""]
    """Share of the full step that the next one takes; 1 but after a rejected step."""
    num_steps: Int[Array, ""]
    """Steps taken, rejected ones included."""
    status: Int[Array, ""]
    """A code of `jaxclnf.status.Status`."""
