"""One start of several: begun, chosen or dropped, finished, and compared."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.model import CLNFModel, EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitTrace
from jaxclnf.fitting.schedule import ScalesFit, fit_scales
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import is_failure, merge_status

_NUM_COMPLETED = 3
"""Starts that OpenFace completes where none was good enough to stop early."""


class Begun(NamedTuple):
    """What a start has come to, with its trace if asked for; or those of many."""

    fit: ScalesFit
    """The fit so far."""
    trace: FitTrace | None
    """Its states."""


class Chosen(NamedTuple):
    """The starts that go on after the first scale, the best ones first."""

    order: Int[Array, " k"]
    """Which they are."""
    params: PDMParams
    """Where they go on, one leading axis."""
    goes_on: Bool[Array, " k"]
    """Whether they do; what has begun of the others stays as it is."""


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


def is_pruned(model: CLNFModel, num_starts: int, options: FitOptions) -> bool:
    """Whether only the first scale is run from each start, and some do not go on.

    Args:
        model: The model.
        num_starts: How many starts there are.
        options: The options.

    Returns:
        False where all are finished.

    Raises:
        ValueError: The options finish no start.

    Example:
        >>> is_pruned(model, 3, FitOptions(window_sizes=(9, 7), finished_starts=2))
        True
    """
    finished = options.finished_starts
    if finished is not None and finished < 1:
        raise ValueError(f"finished_starts is {finished}; expected 1 or more, or None")
    windows = options.window_sizes[: len(model.experts)]
    several = num_starts > 1 and sum(window > 0 for window in windows) > 1
    if early_termination(model, options) is not None:
        return several
    return several and finished is not None and finished < num_starts


def early_termination(model: CLNFModel, options: FitOptions) -> EarlyTermination | None:
    """When a start is good enough to be finished alone.

    Args:
        model: The model.
        options: The options.

    Returns:
        What the model knows about it, if the solver asks.

    Mirrors:
        The early termination of LandmarkDetector::DetectLandmarksInImage.

    Example:
        >>> early_termination(model, FitOptions()) is None
        True
    """
    begins = options.window_sizes[:1] not in ((), (0,))
    asks = options.solver == "openface" and begins
    return model.early_termination if asks else None


def begin_start(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    start: PDMParams,
    options: FitOptions,
    *,
    pruned: bool,
    with_trace: bool = False,
) -> Begun:
    """Fits a face from one start: its first scale, or all of them.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        start: Where to start.
        options: The options.
        pruned: Whether to end after the first scale (static); see `is_pruned`.
        with_trace: Whether to keep every state (static).

    Returns:
        The fit.

    Raises:
        ValueError: As `fit_scales`.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options, pruned=True)
        >>> [bool(steps.any()) for steps in begun.fit.num_steps]
        [True, False]
    """
    return _fit(
        model,
        image,
        image_size,
        start,
        _divided(options)[0] if pruned else options,
        with_trace,
    )


def choose_starts(
    cutoffs: EarlyTermination | None, fits: ScalesFit, options: FitOptions
) -> Chosen:
    """Which starts go on after the first scale.

    Args:
        cutoffs: When a start is good enough, if the search stops early; see
            `early_termination`.
        fits: What each has come to, one leading axis.
        options: The options.

    Returns:
        As many as may have to be finished.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7), finished_starts=1)
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options, pruned=True)
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), begun.fit)
        >>> choose_starts(None, two, options).order.tolist()
        [0]
    """
    if cutoffs is not None:
        return _choose_early(cutoffs, fits)
    failed = is_failure(fits.status)
    scores = jnp.where(failed, -jnp.inf, fits.log_likelihood)
    order = jnp.argsort(-scores, stable=True)[: options.finished_starts]
    order = order.astype(jnp.int32)
    return Chosen(order, _pick(fits.params, order), ~failed[order])


def _choose_early(cutoffs: EarlyTermination, fits: ScalesFit) -> Chosen:
    count = fits.view.shape[0]
    view = fits.view
    scores = cutoffs.weights[view] * fits.log_likelihood + cutoffs.biases[view]
    good = scores > cutoffs.cutoffs[view]
    comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    order = jnp.argsort(-comparable, stable=True)[:_NUM_COMPLETED].astype(jnp.int32)
    # The remembered modes share memory with the model, which the next start sets to
    # zero: only the last start still has its own. The first good one goes on at once.
    local = fits.params.params_local
    modes = jnp.where(order[:, None] == count - 1, local[order], 0)
    first, alone = jnp.argmax(good).astype(jnp.int32), jnp.any(good)
    order = order.at[0].set(jnp.where(alone, first, order[0]))
    modes = modes.at[0].set(jnp.where(alone, local[first], modes[0]))
    params = dataclasses.replace(_pick(fits.params, order), params_local=modes)
    return Chosen(order, params, ~alone | (jnp.arange(order.shape[0]) == 0))


def finish_start(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    begun: Begun,
    params: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> Begun:
    """Fits a face on through the scales after the first.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        begun: What the start has come to.
        params: Where to go on.
        options: The options.
        with_trace: Whether to keep every state (static).

    Returns:
        The whole fit.

    Raises:
        ValueError: As `fit_scales`.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options, pruned=True)
        >>> done = finish_start(*place, begun, begun.fit.params, options)
        >>> [bool(steps.any()) for steps in done.fit.num_steps]
        [True, True]
    """
    _, later, split = _divided(options)
    rest = _fit(model, image, image_size, params, later, with_trace)
    return _joined(begun, rest, split)


def keep_likeliest(
    begun: ScalesFit,
    order: Int[Array, " k"],
    finished: Begun,
    goes_on: Bool[Array, " k"] | None,
    options: FitOptions,
) -> BestStart:
    """The likeliest of finished fits.

    Args:
        begun: What every start came to at first, one leading axis.
        order: Which of them were finished.
        finished: What they came to, one leading axis.
        goes_on: Which of these are to be looked at; None: all.
        options: The options.

    Returns:
        The first of equals.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options, pruned=False)
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), begun)
        >>> int(keep_likeliest(two.fit, jnp.arange(2), two, None, options).start)
        0
    """
    scores = finished.fit.log_likelihood
    if goes_on is not None:
        scores = jnp.where(goes_on, scores, jnp.nan)
    if options.solver != "openface":
        scores = jnp.where(is_failure(finished.fit.status), jnp.nan, scores)
    best = _likeliest(scores)
    kept = _pick(finished, best)
    count = begun.log_likelihood.shape[0]
    place = order if goes_on is None else jnp.where(goes_on, order, count)
    everything = jnp.full(count, jnp.nan, scores.dtype)
    everything = everything.at[place].set(scores, mode="drop")
    reach = jnp.concatenate([begun.reach, finished.fit.reach])
    start = order[best].astype(jnp.int32)
    return BestStart(kept.fit, kept.trace, start, everything, _reach_of_all(reach))


def _fit(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    start: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> Begun:
    return Begun(
        *fit_scales(
            model,
            image,
            image_size,
            start,
            options,
            anywhere=options.window_sizes[:1] == (0,),
            with_trace=with_trace,
        )
    )


def _reach_of_all(reaches: Float[Array, "k 4"]) -> Float[Array, " 4"]:
    low, high = jnp.nanmin(reaches[:, :2], axis=0), jnp.nanmax(reaches[:, 2:], axis=0)
    return jnp.concatenate([low, high])


def _likeliest(scores: Float[Array, " k"]) -> Int[Array, ""]:
    comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.argmax(comparable).astype(jnp.int32)


def _pick(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)


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


def _joined(begun: Begun, rest: Begun, split: int) -> Begun:
    """A fit, with its trace, of which the first scales were run before the others."""

    def join(early: Array, late: Array) -> Array:
        return jnp.concatenate([early[:split], late[split:]])

    early, late = begun.fit, rest.fit
    fitted = late._replace(
        status=merge_status(early.status, late.status).astype(jnp.int32),
        start_params=early.start_params,
        reach=join_reach(early.reach, late.reach),
        **{
            name: jax.tree.map(join, getattr(early, name), getattr(late, name))
            for name in _PER_PHASE
        },
    )
    return Begun(fitted, jax.tree.map(join, begun.trace, rest.trace))
