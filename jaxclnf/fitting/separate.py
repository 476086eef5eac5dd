"""A face whose starts are shared out among the cores of a CPU.

What XLA spreads over threads within one program of this size gains little; several
programs at a time do.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxclnf.experts.area import GreyImage
from jaxclnf.fitting.cores import num_cores, on_all_cores
from jaxclnf.fitting.face import conclude_face
from jaxclnf.fitting.hypotheses import over_starts
from jaxclnf.fitting.model import CLNFModel, EarlyTermination
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.pruning import (
    Begun,
    Chosen,
    begin_start,
    choose_starts,
    early_termination,
    finish_start,
    is_pruned,
    keep_likeliest,
)
from jaxclnf.fitting.result import FitResult, FitTrace
from jaxclnf.shape.pdm import PDMParams


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
        ValueError: The options leave no scale to fit, allow no pass through it or
            finish no start.

    Example:
        >>> starts = jax.tree.map(lambda x: np.stack([x, x]), params)
        >>> result, _ = fit_face_separately(
        ...     model, jnp.asarray(image), np.array(image.shape), starts,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> bool(result.converged), int(result.start)
        (True, 0)
    """
    count = starts.scale.shape[0]
    pruned = is_pruned(model, count, options)
    place = model, image, image_size
    shares = _shares(starts, num_cores())
    begun = on_all_cores(
        lambda share: _begin(*place, share, options, pruned, with_trace), shares
    )
    chosen = None
    if pruned:
        chosen, going = _choose(
            early_termination(model, options), begun, options, count
        )
        rows = zip(going, chosen.goes_on.tolist(), strict=True)
        finished = on_all_cores(
            lambda row: (
                _finish(*place, *row[0], options, with_trace) if row[1] else row[0][0]
            ),
            rows,
        )
    else:
        finished = begun
    return _conclude(*place, begun, chosen, finished, options, count)


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


@partial(jax.jit, static_argnames=("pruned", "with_trace"))
def _begin(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    starts: PDMParams,
    options: FitOptions,
    pruned: bool,
    with_trace: bool,
) -> Begun:
    return over_starts(
        lambda start: begin_start(
            model,
            image,
            image_size,
            start,
            options,
            pruned=pruned,
            with_trace=with_trace,
        ),
        starts,
    )


@partial(jax.jit, static_argnames="count")
def _choose(
    cutoffs: EarlyTermination | None,
    begun: list[Begun],
    options: FitOptions,
    count: int,
) -> tuple[Chosen, list[tuple[Begun, PDMParams]]]:
    """Which starts go on; what each has come to, and where it goes on."""
    together = _joined(begun, count)
    chosen = choose_starts(cutoffs, together.fit, options)

    def row(k: int) -> tuple[Begun, PDMParams]:
        mine = jax.tree.map(lambda x: x[chosen.order[k]], together)
        return mine, jax.tree.map(lambda x: x[k], chosen.params)

    return chosen, [row(k) for k in range(chosen.order.shape[0])]


@partial(jax.jit, static_argnames="with_trace")
def _finish(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    begun: Begun,
    params: PDMParams,
    options: FitOptions,
    with_trace: bool,
) -> Begun:
    return finish_start(
        model, image, image_size, begun, params, options, with_trace=with_trace
    )


@partial(jax.jit, static_argnames="count")
def _conclude(
    model: CLNFModel,
    image: GreyImage,
    image_size: Any,
    begun: list[Begun],
    chosen: Chosen | None,
    finished: list[Begun],
    options: FitOptions,
    count: int,
) -> tuple[FitResult, FitTrace | None]:
    together = _joined(begun, count)
    if chosen is None:
        order, goes_on, ended = jnp.arange(count), None, together
    else:
        order, goes_on = chosen.order, chosen.goes_on
        ended = jax.tree.map(lambda *x: jnp.stack(x), *finished)
    found = keep_likeliest(together.fit, order, ended, goes_on, options)
    return conclude_face(model, image, image_size, found, options)


def _joined(shares: list[Begun], count: int) -> Begun:
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *shares)
