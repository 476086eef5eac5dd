"""Several starts for one face: where they are, and which of their fits is kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.batching import map_batch
from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.progress import Finished, Progress, conclude_scales
from jaxclnf.fitting.pruning import (
    BestStart,
    Chosen,
    begin_start,
    choose_starts,
    early_termination,
    finish_start,
    is_pruned,
    keep_likeliest,
)
from jaxclnf.fitting.schedule import fit_scales
from jaxclnf.pytree import all_finite, held_where
from jaxclnf.shape.initial import params_from_box
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.shape.rotation import matrix_from_euler

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
    pdm = held_where(~all_finite(box), pdm)
    return jax.vmap(lambda e: params_from_box(pdm, box, matrix_from_euler(e)))(angles)


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

    Where `options.finished_starts` is smaller than their number, only the rigid phase
    of the first scale is run from each, and only the likeliest so many fits go on.

    A model with data for early termination, in the `openface` dialect and from several
    starts, runs only the first scale from each: the first start whose score exceeds
    the cut-off is completed alone, or else the three with the best scores are, without
    their modes.

    With `options.short_search` a search of so many steps a phase comes first, and where
    it ends is the last start.

    Those who run each start by itself use `begin_start`, `choose_starts`,
    `finish_start` or `conclude_scales`, and `keep_likeliest`; where all are finished,
    `fit_scales` and `keep_likeliest`.

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
        ValueError: The options leave no scale to fit, allow no pass through it, finish
            no start or name a negative number of steps.

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
    place = model, image, image_size
    if not options.searches_twice(starts.scale.shape[0]):
        return _search(*place, starts, options, with_trace)
    # With a trace, too, as derivatives in reverse mode may follow.
    short = _search(*place, starts, options.of_short_search(), with_trace)
    best = _search(*place, with_end(starts, short), options, with_trace)
    return best._replace(reach=join_reach(short.reach, best.reach))


def with_end(starts: PDMParams, short: BestStart) -> PDMParams:
    """Starts, and where a short search from them ended.

    Args:
        starts: Where to start, one leading axis.
        short: What the short search came to.

    Returns:
        One start more.

    Example:
        >>> starts = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> few_steps = FitOptions(window_sizes=(7,), short_search=1).of_short_search()
        >>> short = fit_starts(*place, starts, few_steps)
        >>> with_end(starts, short).scale.shape
        (3,)
    """
    end = short.fit.params
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), starts, end)


def _search(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    starts: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> BestStart:
    """One search: begun from each start, the best ones finished, the likeliest kept."""
    count = starts.scale.shape[0]
    place = model, image, image_size
    if not is_pruned(model, count, options):
        done = run_each(fit_scales, *place, starts, options, with_trace=with_trace)
        return keep_likeliest(None, jnp.arange(count), done, None, options)
    begun = run_each(begin_start, *place, starts, options, with_trace=with_trace)
    cutoffs = early_termination(model, options)
    chosen = choose_starts(cutoffs, begun, options)

    def finish(
        model: CLNFModel,
        image: GreyImage,
        begun: Progress,
        options: FitOptions,
        chosen: Chosen,
    ) -> Finished:
        mine = jax.tree.map(lambda x: x[chosen.order], begun)
        args = model, image, mine, chosen.modes, options
        if cutoffs is None:
            # No condition: under `jax.vmap` it would copy the model for each face, and
            # a start that failed makes no steps.
            return finish_start(*args, with_trace=with_trace)
        return lax.cond(
            chosen.goes_on,
            lambda: finish_start(*args, with_trace=with_trace),
            lambda: conclude_scales(model, mine),
        )

    shared = model, image, begun, options
    if cutoffs is None:
        finished = over_starts(finish, chosen, shared)
    else:
        # In turn, a start that does not go on costs nothing.
        finished = lax.map(partial(finish, *shared), chosen)
    return keep_likeliest(begun, chosen.order, finished, chosen.goes_on, options)


def run_each(
    run: Callable,
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    starts: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> Any:
    """What `fit_scales` or `begin_start` makes of each start; see `over_starts`.

    Args:
        run: One of the two.
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        starts: Where to start, one leading axis.
        options: The options.
        with_trace: Whether to keep every state (static).

    Returns:
        Its results, with a leading axis.

    Example:
        >>> starts = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> options = FitOptions(window_sizes=(9, 7))
        >>> begun = run_each(begin_start, *place, starts, options)
        >>> begun.status.shape
        (2,)
    """

    def one(
        model: CLNFModel,
        image: GreyImage,
        image_size: Array,
        options: FitOptions,
        start: PDMParams,
    ) -> Any:
        return run(model, image, image_size, start, options, with_trace=with_trace)

    return over_starts(one, starts, (model, image, image_size, options))


def over_starts(function: Callable, starts: Any, shared: tuple = ()) -> Any:
    """Calls a function for each start: in turn on CPU, and at once elsewhere.

    Args:
        function: Of what is shared and one start; what it refers to from outside may
            not be traced.
        starts: With a leading axis.
        shared: What is the same for all.

    Returns:
        Its results, with a leading axis.

    Example:
        >>> over_starts(lambda x: x + 1, jnp.arange(3.0)).tolist()
        [1.0, 2.0, 3.0]
    """
    if jax.tree.leaves(starts)[0].shape[0] == 1:
        only = function(*shared, jax.tree.map(lambda x: x[0], starts))
        return jax.tree.map(lambda x: x[None], only)
    return map_batch(function, starts, shared=shared)
