"""Several starts for one face: where they are, and which of their fits is kept."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.batching import map_batch
from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.model import CLNFModel, EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitTrace
from jaxclnf.fitting.schedule import ScalesFit, fit_scales
from jaxclnf.shape.initial import params_from_box
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.shape.rotation import matrix_from_euler
from jaxclnf.status import is_failure, merge_status

START_ROTATIONS = (
    (0.0, 0.0, 0.0),
    (0.0, -0.5236, 0.0),
    (0.0, 0.5236, 0.0),
    (0.0, -0.96, 0.0),
    (0.0, 0.96, 0.0),
    (0.0, 0.0, 0.5236),
    (0.0, 0.0, -0.5236),
    (0.0, -1.57, 0.0),
    (0.0, 1.57, 0.0),
    (0.0, -1.22, 0.698),
    (0.0, 1.22, -0.698),
)
"""Pitch, yaw and roll of OpenFace's multi-view starts, radians; first the frontal."""


def starts_from_box(pdm: PDM, box: Float[Array, " 4"], num_starts: int) -> PDMParams:
    """The poses from which a face in a box is fitted.

    Args:
        pdm: The shape model.
        box: `(x, y, width, height)` tight around the landmarks, pixels.
        num_starts: How many of `START_ROTATIONS`: 1 is the frontal one, 3 are that and
            yaw to either side, 11 OpenFace's multi-view.

    Returns:
        Parameters with one leading axis. A box with a side that is not positive gives a
        NaN scale.

    Raises:
        ValueError: There are not that many.

    Mirrors:
        The start of LandmarkDetector::DetectLandmarksInImage.

    Example:
        >>> starts_from_box(pdm, jnp.asarray(box), 11).scale.shape
        (11,)
    """
    if not 1 <= num_starts <= len(START_ROTATIONS):
        raise ValueError(
            f"starts is {num_starts}; expected 1 to {len(START_ROTATIONS)}"
        )
    angles = jnp.asarray(np.array(START_ROTATIONS[:num_starts]), box.dtype)
    # One negative side would still give a positive scale.
    box = jnp.where(jnp.all(box[2:] > 0), box, jnp.nan)
    return jax.vmap(lambda e: params_from_box(pdm, box, matrix_from_euler(e)))(angles)


_NUM_COMPLETED = 3
"""Starts that OpenFace completes where none was good enough to stop early."""


class BestStart(NamedTuple):
    """The fit that was kept."""

    fit: ScalesFit
    """The fit."""
    trace: FitTrace | None
    """Its trace, if asked for."""
    start: Int[Array, ""]
    """Which start it came from."""
    log_likelihoods: Float[Array, " k"]
    """Log-likelihood from each start; NaN where it was not completed, or failed."""
    reach: Float[Array, " 4"]
    """The part of the image that was looked at from all starts together."""


def fit_starts(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    starts: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> BestStart:
    """Fits a face, parts apart, from each start and keeps the likeliest fit.

    Where `options.finished_starts` is smaller than their number, only the first scale
    is run from each, and only the likeliest so many fits go on to the others.

    A model with data for early termination, in the `openface` dialect and from several
    starts, runs only the first scale from each: the first start whose score exceeds
    the cut-off is completed alone, or else the three with the best scores are, without
    their modes.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        starts: Where to start, one leading axis.
        options: The options.
        with_trace: Whether to keep every state of the best start (static).

    Returns:
        The likeliest fit, the first of equals. A fit that failed is kept only if all
        did; `openface` does not ask.

    Raises:
        ValueError: The options leave no scale to fit, allow no pass through it or
            finish no start.

    Mirrors:
        The loop over rotation hypotheses in LandmarkDetector::DetectLandmarksInImage.

    Example:
        >>> starts = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        >>> best = fit_starts(
        ...     model, jnp.asarray(image), jnp.asarray(image.shape), starts,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> int(best.start), best.log_likelihoods.shape
        (0, (2,))
    """

    def fit(start: PDMParams, options: FitOptions) -> Any:
        return fit_scales(
            model,
            image,
            image_size,
            start,
            options,
            anywhere=options.window_sizes[:1] == (0,),
            with_trace=with_trace,
        )

    is_openface = options.solver == "openface"
    if options.finished_starts is not None and options.finished_starts < 1:
        raise ValueError(
            f"finished_starts is {options.finished_starts}; expected 1 or more, or None"
        )
    windows = options.window_sizes[: len(model.experts)]
    several = starts.scale.shape[0] > 1 and sum(window > 0 for window in windows) > 1
    if is_openface and model.early_termination is not None and several and windows[0]:
        return _stop_early(model.early_termination, fit, starts, options)
    finished = options.finished_starts
    if several and finished is not None and finished < starts.scale.shape[0]:
        return _finish_likeliest(fit, starts, options)
    fits, traces = _over_starts(lambda start: fit(start, options), starts)
    scores = fits.log_likelihood
    if not is_openface:
        scores = jnp.where(is_failure(fits.status), jnp.nan, scores)
    best = _likeliest(scores)
    kept, trace = _pick((fits, traces), best)
    return BestStart(kept, trace, best, scores, _reach_of_all(fits.reach))


def _reach_of_all(reaches: Float[Array, "k 4"]) -> Float[Array, " 4"]:
    low, high = jnp.nanmin(reaches[:, :2], axis=0), jnp.nanmax(reaches[:, 2:], axis=0)
    return jnp.concatenate([low, high])


def _likeliest(scores: Float[Array, " k"]) -> Int[Array, ""]:
    comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.argmax(comparable).astype(jnp.int32)


def _pick(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


def _over_starts(function, starts: PDMParams):
    """One after the other on CPU, where that is faster, and at once elsewhere."""
    if starts.scale.shape[0] == 1:
        only = function(jax.tree.map(lambda x: x[0], starts))
        return jax.tree.map(lambda x: x[None], only)
    return map_batch(function, starts)


def _stop_early(
    cutoffs: EarlyTermination,
    fit: Callable[[PDMParams, FitOptions], Any],
    starts: PDMParams,
    options: FitOptions,
) -> BestStart:
    count = starts.scale.shape[0]
    first, later, split = _divided(options)
    fits, traces = _over_starts(lambda start: fit(start, first), starts)
    view = fits.view
    scores = cutoffs.weights[view] * fits.log_likelihood + cutoffs.biases[view]
    good = scores > cutoffs.cutoffs[view]

    def complete(index: Array, params_local: Array) -> Any:
        begun = _pick(fits, index)
        return fit(dataclasses.replace(begun.params, params_local=params_local), later)

    def only_the_first_good_one() -> tuple:
        index = jnp.argmax(good).astype(jnp.int32)
        done = complete(index, fits.params.params_local[index])
        values = jnp.full(count, jnp.nan, scores.dtype)
        values = values.at[index].set(done[0].log_likelihood)
        return index, done, values, done[0].reach

    def the_three_best() -> tuple:
        comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        order = jnp.argsort(-comparable, stable=True)[:_NUM_COMPLETED]
        order = order.astype(jnp.int32)
        # The remembered modes share memory with the model, which the next start sets
        # to zero: only the last start still has its own.
        modes = jnp.where(
            order[:, None] == count - 1, fits.params.params_local[order], 0
        )
        done = lax.map(lambda pair: complete(*pair), (order, modes))
        values = done[0].log_likelihood
        best = _likeliest(values)
        everything = jnp.full(count, jnp.nan, scores.dtype).at[order].set(values)
        seen = _reach_of_all(done[0].reach)
        return order[best], _pick(done, best), everything, seen

    index, (rest, rest_trace), values, seen = lax.cond(
        jnp.any(good), only_the_first_good_one, the_three_best
    )
    begun, begun_trace = _pick((fits, traces), index)
    fitted, trace = _joined((begun, begun_trace), (rest, rest_trace), split)
    seen = join_reach(_reach_of_all(fits.reach), seen)
    return BestStart(fitted, trace, index, values, seen)


def _finish_likeliest(
    fit: Callable[[PDMParams, FitOptions], Any],
    starts: PDMParams,
    options: FitOptions,
) -> BestStart:
    count = starts.scale.shape[0]
    first, later, split = _divided(options)
    begun = _over_starts(lambda start: fit(start, first), starts)
    seen = _reach_of_all(begun[0].reach)
    failed = is_failure(begun[0].status)
    scores = jnp.where(failed, -jnp.inf, begun[0].log_likelihood)
    order = jnp.argsort(-scores, stable=True)[: options.finished_starts]
    order = order.astype(jnp.int32)
    begun, failed = _pick((begun, failed), order)
    rest = _over_starts(lambda start: fit(start, later), begun[0].params)
    seen = join_reach(seen, _reach_of_all(rest[0].reach))
    # After a failure nothing more is run: what had begun stays as it is.
    done = jax.tree.map(
        lambda a, b: jnp.where(failed.reshape(-1, *(1,) * (a.ndim - 1)), a, b),
        begun,
        jax.vmap(lambda a, b: _joined(a, b, split))(begun, rest),
    )
    likelihoods = jnp.where(is_failure(done[0].status), jnp.nan, done[0].log_likelihood)
    best = _likeliest(likelihoods)
    kept, trace = _pick(done, best)
    everything = jnp.full(count, jnp.nan, scores.dtype).at[order].set(likelihoods)
    return BestStart(kept, trace, order[best], everything, seen)


def _divided(options: FitOptions) -> tuple[FitOptions, FitOptions, int]:
    """Options for the first scale that is run, for those after it, and their border."""
    windows = options.window_sizes
    split = 1 + next(k for k, window in enumerate(windows) if window)
    first = dataclasses.replace(options, window_sizes=windows[:split], max_passes=1)
    later = dataclasses.replace(
        options, window_sizes=(0,) * split + tuple(windows[split:])
    )
    return first, later, split


_PER_PHASE = (
    "num_steps",
    "shape_delta",
    "gradient_norm",
    "newton_distance",
    "smallest_curvature",
    "num_active_bounds",
    "phase_params",
)


def _joined(begun: tuple, rest: tuple, split: int) -> tuple:
    """A fit, with its trace, of which the first scales were run before the others."""

    def join(early: Array, late: Array) -> Array:
        return jnp.concatenate([early[:split], late[split:]])

    (early, early_trace), (late, late_trace) = begun, rest
    fitted = late._replace(
        status=merge_status(early.status, late.status).astype(jnp.int32),
        start_params=early.start_params,
        reach=join_reach(early.reach, late.reach),
        **{
            name: jax.tree.map(join, getattr(early, name), getattr(late, name))
            for name in _PER_PHASE
        },
    )
    return fitted, jax.tree.map(join, early_trace, late_trace)
