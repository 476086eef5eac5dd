"""A face whose starts are shared out among the cores of a CPU.

What XLA spreads over threads within one program of this size gains little; several
programs at a time do.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.cores import num_cores, on_all_cores
from jaxclnf.fitting.face import conclude_face
from jaxclnf.fitting.hypotheses import run_each, with_end
from jaxclnf.fitting.model import CLNFModel, EarlyTermination
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
from jaxclnf.fitting.result import FitResult, FitTrace
from jaxclnf.fitting.schedule import fit_scales
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.tracing import traced_once


class _Searched(NamedTuple):
    """What one search came to."""

    begun: list[Progress]
    """Each core's share of the starts, where some were chosen."""
    chosen: Chosen | None
    """Those that went on; None: all."""
    finished: list[Finished]
    """What these came to: each by itself, or each core's share of all."""


def fit_face_separately(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    starts: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> tuple[FitResult, FitTrace | None]:
    """`fit_face` with a program for each core's share of the starts.

    Not for use inside `jax.jit`.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        starts: Where to start, one leading axis.
        options: The options.
        with_trace: Whether to keep every state of the best start.

    Returns:
        The result, and the trace if asked for; to rounding those of `fit_face`.

    Raises:
        ValueError: The options leave no scale to fit, allow no pass through it, finish
            no start or name a negative number of steps.

    Example:
        >>> starts = jax.tree.map(lambda x: np.stack([x, x]), params)
        >>> result, _ = fit_face_separately(
        ...     model, jnp.asarray(image), np.array(image.shape), starts,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> bool(result.converged), int(result.start)
        (True, 0)
    """
    place = model, image, image_size
    count, seen = starts.scale.shape[0], None
    if options.searches_twice(count):
        few_steps = options.of_short_search()
        searched = _search(*place, starts, few_steps, False)
        seen, starts = _with_end(starts, searched, few_steps, count)
    searched = _search(*place, starts, options, with_trace)
    return _conclude(*place, searched, seen, options, starts.scale.shape[0])


def _search(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    starts: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> _Searched:
    count = starts.scale.shape[0]
    # Fits with parts and without share what comes before them.
    model = dataclasses.replace(model, parts=(), validator=None)
    options = dataclasses.replace(options, use_parts=False)
    shares = _shares(starts, num_cores())

    def each(run: Callable, share: PDMParams) -> Any:
        place = model, image, image_size
        return _each(run, *place, share, options, with_trace=with_trace)

    if not is_pruned(model, count, options):
        done = on_all_cores(partial(each, fit_scales), shares)
        return _Searched([], None, done)
    begun = on_all_cores(partial(each, begin_start), shares)
    cutoffs = early_termination(model, options)
    chosen, going = _choose(cutoffs, begun, options, count)
    rows = zip(going, chosen.goes_on.tolist(), strict=True)
    finished = on_all_cores(
        lambda row: (
            _finish(model, image, *row[0], options, with_trace)
            if cutoffs is None or row[1]
            else _drop(model, row[0][0])
        ),
        rows,
    )
    return _Searched(begun, chosen, finished)


def _shares(starts: PDMParams, cores: int) -> list[PDMParams]:
    """Equal shares, the last filled up with starts that end at once."""
    count = starts.scale.shape[0]
    each = -(-count // min(count, cores))

    def share(x: Array | np.ndarray, begin: int) -> np.ndarray:
        part = np.asarray(x[begin : begin + each])
        fill = np.full((each - len(part), *part.shape[1:]), np.nan, part.dtype)
        return np.concatenate([part, fill])

    return [
        jax.tree.map(lambda x, k=k: share(x, k), starts) for k in range(0, count, each)
    ]


_each = traced_once("run", "with_trace")(run_each)


@traced_once("count")
def _choose(
    cutoffs: EarlyTermination | None,
    begun: list[Progress],
    options: FitOptions,
    count: int,
) -> tuple[Chosen, list[tuple[Progress, Float[Array, " m"]]]]:
    """Which starts go on; how far each has come, and its modes."""
    together = _joined(begun, count)
    chosen = choose_starts(cutoffs, together, options)

    def row(k: int) -> tuple[Progress, Float[Array, " m"]]:
        mine = jax.tree.map(lambda x: x[chosen.order[k]], together)
        return mine, chosen.modes[k]

    return chosen, [row(k) for k in range(chosen.order.shape[0])]


@traced_once("with_trace")
def _finish(
    model: CLNFModel,
    image: GreyImage,
    begun: Progress,
    modes: Float[Array, " m"],
    options: FitOptions,
    with_trace: bool,
) -> Finished:
    return finish_start(model, image, begun, modes, options, with_trace=with_trace)


_drop = traced_once()(conclude_scales)


@traced_once("count")
def _with_end(
    starts: PDMParams, searched: _Searched, options: FitOptions, count: int
) -> tuple[Float[Array, " 4"], PDMParams]:
    """What a short search has looked at, and the starts with its end."""
    short = _best(searched, options, count)
    return short.reach, with_end(starts, short)


@traced_once("count")
def _conclude(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    searched: _Searched,
    seen_before: Float[Array, " 4"] | None,
    options: FitOptions,
    count: int,
) -> tuple[FitResult, FitTrace | None]:
    found = _best(searched, options, count)
    if seen_before is not None:
        found = found._replace(reach=join_reach(seen_before, found.reach))
    return conclude_face(model, image, image_size, found, options)


def _best(searched: _Searched, options: FitOptions, count: int) -> BestStart:
    chosen = searched.chosen
    if chosen is None:
        done = _joined(searched.finished, count)
        return keep_likeliest(None, jnp.arange(count), done, None, options)
    begun = _joined(searched.begun, count)
    done = jax.tree.map(lambda *x: jnp.stack(x), *searched.finished)
    return keep_likeliest(begun, chosen.order, done, chosen.goes_on, options)


def _joined(shares: list[Any], count: int) -> Any:
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *shares)
