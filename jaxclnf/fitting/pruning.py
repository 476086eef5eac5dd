"""One start of several: begun, chosen or dropped, finished, and compared."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.fitting.model import CLNFModel, EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.progress import (
    Finished,
    Progress,
    ScalesFit,
    conclude_scales,
)
from jaxclnf.fitting.result import FitTrace
from jaxclnf.fitting.schedule import (
    begin_scales,
    run_scales,
    windows_of_scales,
)
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import is_failure

_NUM_COMPLETED = 3
"""Starts that OpenFace completes where none was good enough to stop early."""


class Chosen(NamedTuple):
    """The starts that go on, the best ones first; every field has one leading axis."""

    order: Int[Array, " k"]
    """Which they are."""
    modes: Float[Array, "k m"]
    """Mode weights with which they go on."""
    goes_on: Bool[Array, " k"]
    """Whether they do; the others are not looked at again."""


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
    """Whether some starts are dropped on the way.

    Args:
        model: The model.
        num_starts: How many starts there are.
        options: The options.

    Returns:
        False where all are finished.

    Raises:
        ValueError: The options finish no start, leave no scale to fit, or allow no
            pass through it.

    Example:
        >>> is_pruned(model, 3, FitOptions(window_sizes=(9, 7), finished_starts=2))
        True
    """
    finished = options.finished_starts
    if finished is not None and finished < 1:
        raise ValueError(f"finished_starts is {finished}; expected 1 or more, or None")
    windows = windows_of_scales(model, options)
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
    with_trace: bool = False,
) -> Progress:
    """Runs one start as far as the choice of those that go on.

    That is after the rigid phase of the first scale: to wait for the whole scale
    changes the failures on annotated faces by no more than one or two of 479
    (`experiments/starts.py`). Where OpenFace's search stops early it is after the whole
    scale.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        start: Where to start.
        options: The options.
        with_trace: Whether to keep every state (static).

    Returns:
        How far it has come.

    Raises:
        ValueError: As `fit_scales`; or there is no further scale.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> len(begin_start(*place, params, options).phases)
        1
    """
    windows = windows_of_scales(model, options)
    first = next(k for k, window in enumerate(windows) if window)
    whole_scale = early_termination(model, options) is not None
    return run_scales(
        model,
        image,
        begin_scales(model, image_size, start, options),
        options,
        num_phases=2 * first + 1 + whole_scale,
        with_trace=with_trace,
    )


def choose_starts(
    cutoffs: EarlyTermination | None, begun: Progress, options: FitOptions
) -> Chosen:
    """Which starts go on.

    Args:
        cutoffs: When a start is good enough, if the search stops early; see
            `early_termination`.
        begun: How far each has come, one leading axis.
        options: The options.

    Returns:
        As many as may have to be finished.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7), finished_starts=1)
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options)
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), begun)
        >>> choose_starts(None, two, options).order.tolist()
        [0]
    """
    if cutoffs is not None:
        return _choose_early(cutoffs, begun)
    failed = is_failure(begun.status)
    # At the end of the scale a face that is too small will fail.
    lost = failed | (begun.params.scale < options.min_scale)
    scores = jnp.where(lost, -jnp.inf, begun.log_likelihood)
    order = jnp.argsort(-scores, stable=True)[: options.finished_starts]
    order = order.astype(jnp.int32)
    return Chosen(order, begun.params.params_local[order], ~failed[order])


def _choose_early(cutoffs: EarlyTermination, begun: Progress) -> Chosen:
    count = begun.view.shape[0]
    view, log_likelihood = begun.view, begun.log_likelihood
    scores = cutoffs.weights[view] * log_likelihood + cutoffs.biases[view]
    good = scores > cutoffs.cutoffs[view]
    comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    order = jnp.argsort(-comparable, stable=True)[:_NUM_COMPLETED].astype(jnp.int32)
    # The remembered modes share memory with the model, which the next start sets to
    # zero: only the last start still has its own. The first good one goes on at once.
    local = begun.params.params_local
    modes = jnp.where(order[:, None] == count - 1, local[order], 0)
    first, alone = jnp.argmax(good).astype(jnp.int32), jnp.any(good)
    order = order.at[0].set(jnp.where(alone, first, order[0]))
    modes = modes.at[0].set(jnp.where(alone, local[first], modes[0]))
    return Chosen(order, modes, ~alone | (jnp.arange(order.shape[0]) == 0))


def finish_start(
    model: CLNFModel,
    image: GreyImage,
    begun: Progress,
    modes: Float[Array, " m"],
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> Finished:
    """Fits a face on to the end.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        begun: How far the start has come.
        modes: Mode weights with which it goes on.
        options: The options.
        with_trace: Whether to keep every state (static).

    Returns:
        The whole fit.

    Raises:
        ValueError: As `fit_scales`.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options)
        >>> done = finish_start(*place[:2], begun, begun.params.params_local, options)
        >>> bool((done.fit.num_steps > 0).all())
        True
    """
    params = dataclasses.replace(begun.params, params_local=modes)
    begun = begun._replace(params=params)
    end = run_scales(model, image, begun, options, with_trace=with_trace)
    return conclude_scales(model, end)


def keep_likeliest(
    begun: Progress | None,
    order: Int[Array, " k"],
    finished: Finished,
    goes_on: Bool[Array, " k"] | None,
    options: FitOptions,
) -> BestStart:
    """The likeliest of finished fits.

    Args:
        begun: How far every start had come when some were chosen, one leading axis;
            None: all were finished.
        order: Which of them were finished.
        finished: What they came to, one leading axis.
        goes_on: Which of these are to be looked at; None: all.
        options: The options.

    Returns:
        The first of equals.

    Example:
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> begun = begin_start(*place, params, options)
        >>> done = finish_start(*place[:2], begun, begun.params.params_local, options)
        >>> two = jax.tree.map(lambda x: jnp.stack([x, x]), done)
        >>> int(keep_likeliest(None, jnp.arange(2), two, None, options).start)
        0
    """
    scores = finished.fit.log_likelihood
    if goes_on is not None:
        scores = jnp.where(goes_on, scores, jnp.nan)
    if options.solver != "openface":
        scores = jnp.where(is_failure(finished.fit.status), jnp.nan, scores)
    best = _likeliest(scores)
    kept = _pick(finished, best)
    count = order.shape[0] if begun is None else begun.status.shape[0]
    place = order if goes_on is None else jnp.where(goes_on, order, count)
    everything = jnp.full(count, jnp.nan, scores.dtype)
    everything = everything.at[place].set(scores, mode="drop")
    reach = finished.fit.reach
    if begun is not None:
        reach = jnp.concatenate([begun.reach, reach])
    start = order[best].astype(jnp.int32)
    return BestStart(kept.fit, kept.trace, start, everything, _reach_of_all(reach))


def _reach_of_all(reaches: Float[Array, "k 4"]) -> Float[Array, " 4"]:
    low, high = jnp.nanmin(reaches[:, :2], axis=0), jnp.nanmax(reaches[:, 2:], axis=0)
    return jnp.concatenate([low, high])


def _likeliest(scores: Float[Array, " k"]) -> Int[Array, ""]:
    comparable = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.argmax(comparable).astype(jnp.int32)


def _pick(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: x[index], tree)
