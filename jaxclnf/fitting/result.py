"""What a fit returns."""

from jaxtyping import Array, Bool, Float, Int

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.state import NURLMSState


@pytree_dataclass
class FitResult:
    """A fitted face. With many boxes every array has their leading axis.

    Per-phase arrays `(s, 2)` are per scale, rigid then non-rigid; phases that were not
    run (a scale with window 0, or anything after a failure) have 0 steps and NaN.
    """

    landmarks: Float[Array, "*b n 2"]
    """Landmarks `(x, y)`, image pixels; those of the last state before a failure, NaN
    where the start was unusable."""
    params: PDMParams
    """Pose and mode weights of the landmarks; scale and translation are NaN where the
    start was unusable."""
    status: Int[Array, "*b"]
    """A code of `jaxclnf.status.Status`: the first failure, or else the worst phase."""
    converged: Bool[Array, "*b"]
    """Whether every phase converged."""
    num_steps: Int[Array, "*b s 2"]
    """Steps of each phase."""
    shape_delta: Float[Array, "*b s 2"]
    """How far the last accepted step of each phase moved the whole shape, pixels."""
    gradient_norm: Float[Array, "*b s 2"]
    """Scaled gradient at the end of each phase, pixels; see `NURLMSState`."""
    log_likelihood: Float[Array, "*b"]
    """Mean of `landmark_log_likelihoods` over the landmarks that have evidence."""
    landmark_log_likelihoods: Float[Array, "*b n"]
    """Log kernel density of the last scale's maps at the landmarks; -inf where a
    landmark has no evidence there."""
    view: Int[Array, "*b"]
    """View used at the last scale."""


@pytree_dataclass
class FitTrace:
    """Every state of a fit: leading axes scale, phase (rigid, non-rigid), slot.

    Slot 0 is the start of the phase and `max_steps + 1` slots are kept; after the end
    the last state is repeated.
    """

    states: NURLMSState
    """The states, in image coordinates as in `FitResult`."""
    valid: Bool[Array, "*b s 2 t"]
    """Which slots hold a state of their own. A phase not run after a failure has its
    start only, a scale with window 0 none (and zeros for states)."""
