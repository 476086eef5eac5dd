"""What a fit returns."""

import dataclasses

from jaxtyping import Array, Bool, Float, Int

from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.solver.state import NURLMSState


@pytree_dataclass
class PartFit:
    """A fitted part of the face. With many boxes every array has their leading axis."""

    landmarks: Float[Array, "*b n 2"]
    """The part's own landmarks, image pixels."""
    params: PDMParams
    """Their pose and mode weights."""
    fitted: Bool[Array, "*b"]
    """Whether the part's experts were used. Where the face is too small for them the
    part is only placed on the landmarks of the whole face."""
    status: Int[Array, "*b"]
    """A code of `jaxclnf.status.Status`; `RUNNING` where the part was not fitted."""
    num_steps: Int[Array, "*b s 2"]
    """Steps of each phase."""
    shape_delta: Float[Array, "*b s 2"]
    """How far the last accepted step of each phase moved the part, pixels."""
    newton_distance: Float[Array, "*b s 2"]
    """Distance to the optimum at the end of each phase, as in `FitResult`."""
    log_likelihood: Float[Array, "*b"]
    """Mean over the part's landmarks, as in `FitResult`; NaN where not fitted."""


@pytree_dataclass
class FitResult:
    """A fitted face. With many boxes every array has their leading axis.

    Per-phase arrays `(s, 2)` are of the whole face, per scale, rigid then non-rigid;
    phases that were not run (a scale with window 0, or anything after a failure) have 0
    steps and NaN. Together they are the certificate of the fit. Of several starts
    everything describes the best.
    """

    landmarks: Float[Array, "*b n 2"]
    """Landmarks `(x, y)`, image pixels; those of the last state before a failure, NaN
    where the start was unusable. Where parts were fitted, the whole face refitted to
    them."""
    params: PDMParams
    """Pose and mode weights of the landmarks; scale and translation are NaN where the
    start was unusable."""
    status: Int[Array, "*b"]
    """A code of `jaxclnf.status.Status`: the first failure, or else the worst phase,
    those of parts included; a part that failed counts as `MAX_STEPS`, and so do passes
    that did not come to rest, where more than one was allowed."""
    converged: Bool[Array, "*b"]
    """Whether every phase converged, those of parts included, and several passes."""
    num_steps: Int[Array, "*b s 2"]
    """Steps of each phase; at the last scale those of its last pass."""
    shape_delta: Float[Array, "*b s 2"]
    """How far the last accepted step of each phase moved the whole shape, pixels."""
    gradient_norm: Float[Array, "*b s 2"]
    """Scaled gradient at the end of each phase, pixels; see `NURLMSState`."""
    newton_distance: Float[Array, "*b s 2"]
    """How far a full Newton step would still move the landmark that moves most, at the
    end of each phase, pixels; inf where F is not concave there; NaN with `openface`."""
    smallest_curvature: Float[Array, "*b s 2"]
    """Smallest curvature of F relative to that of EM, at the end of each phase; see
    `Certificate`."""
    num_active_bounds: Int[Array, "*b s 2"]
    """Modes held by their bounds at the end of each phase."""
    certified: Bool[Array, "*b"]
    """Whether every phase of the whole face ended at an optimum: it converged, and its
    `newton_distance` is below the tolerance too. `verify` checks it once more."""
    phase_params: PDMParams
    """Parameters at the end of each phase, leading axes `(*b, s, 2)`; those of a phase
    that was not run are where it would have started."""
    start_params: PDMParams
    """Where the fit started; the maps of the first scale were made there."""
    num_passes: Int[Array, "*b"]
    """How often the last scale was run; 0 after a failure before it."""
    pass_delta: Float[Array, "*b"]
    """How far the last pass through the last scale moved the landmark that moves most,
    pixels; NaN after a failure."""
    pass_status: Int[Array, "*b"]
    """`CONVERGED` where that was less than `FitOptions.pass_tol`, else `MAX_STEPS`: a
    single pass mostly ends there, as the maps were made elsewhere. Or the failure."""
    log_likelihood: Float[Array, "*b"]
    """Mean of `landmark_log_likelihoods` over the landmarks that have evidence."""
    landmark_log_likelihoods: Float[Array, "*b n"]
    """Log kernel density of the last scale's maps at the landmarks; -inf where a
    landmark has no evidence there."""
    view: Int[Array, "*b"]
    """View used at the last scale."""
    pass_params: PDMParams | None = None
    """Where the last pass through the last scale began, as its maps were made there;
    None where `max_passes` is 1: there it is where the scale before ended."""
    parts: dict[str, PartFit] = dataclasses.field(default_factory=dict)
    """The model's parts by name; none where `FitOptions.use_parts` is off."""
    certainty: Float[Array, "*b"]
    """How sure the model's validator is of the landmarks, 0 to 1; 0 after a failure,
    NaN where the model has none."""
    success: Bool[Array, "*b"]
    """Whether the fit is to be trusted: the certainty is above 0.725, or, without a
    validator, there was no failure."""
    start: Int[Array, "*b"]
    """Which start the fit came from, counted from 0; the end of a short search is the
    last."""
    start_log_likelihoods: Float[Array, "*b k"]
    """Log-likelihood of the fit from each start, NaN after a failure."""
    reach: Float[Array, "*b 4"]
    """The part of the image that was looked at, from all starts: `(left, top, right,
    bottom)`, pixels. What lies elsewhere has no influence. NaN where nothing was looked
    at."""


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
