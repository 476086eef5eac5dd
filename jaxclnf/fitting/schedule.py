"""One model through its scales: maps, rigid phase, non-rigid phase, next scale."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.experts.types import ResponseMaps, filled_up
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.phases import (
    PhaseEnd,
    ScaleOptions,
    after_phases,
    maps_of_scale,
    options_of_scale,
    run_phase,
    unless_too_small,
)
from jaxclnf.fitting.prior import reg_for_size
from jaxclnf.fitting.progress import Finished, Progress, conclude_scales, not_run
from jaxclnf.shape.pdm import PDMParams, project
from jaxclnf.status import Status, is_failure

RIGID, NON_RIGID = True, False
"""The phases of a scale in their order: `rigid` of `nu_rlms`."""


def fit_scales(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    params: PDMParams,
    options: FitOptions,
    *,
    anywhere: bool = False,
    with_trace: bool = False,
) -> Finished:
    """Fits one model, parts apart, from given parameters.

    `begin_scales`, `run_scales` and `conclude_scales` are its parts, for those who
    look at a fit on its way.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        params: Where to start.
        options: The options.
        anywhere: Whether a start wholly outside the image is fitted too (static); it is
            where the first scale is left out, as when a face is followed.
        with_trace: Whether to keep every state (static).

    Returns:
        The fit, and the trace if asked for.

    Raises:
        ValueError: The options leave no scale to fit, or allow no pass through it.

    Mirrors:
        CLNF::Fit.

    Example:
        >>> fitted, _ = fit_scales(
        ...     model, jnp.asarray(image), jnp.asarray(image.shape), params,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> Status(int(fitted.status)).name
        'CONVERGED'
    """
    start = begin_scales(model, image_size, params, options, anywhere=anywhere)
    end = run_scales(model, image, start, options, with_trace=with_trace)
    return conclude_scales(model, end)


def windows_of_scales(model: CLNFModel, options: FitOptions) -> tuple[int, ...]:
    """Side of the response maps at each of a model's scales; 0: the scale is left out.

    Args:
        model: The model.
        options: The options.

    Returns:
        As many as the model has scales.

    Raises:
        ValueError: The options leave no scale to fit, or allow no pass through it.

    Example:
        >>> windows_of_scales(model, FitOptions(window_sizes=(9,)))
        (9, 0)
    """
    count = len(model.experts)
    windows = (tuple(options.window_sizes) + (0,) * count)[:count]
    if not any(windows):
        raise ValueError(
            f"window_sizes {options.window_sizes} leave none of the model's {count} "
            "scales to fit; expected an odd size for at least one"
        )
    if options.max_passes < 1:
        raise ValueError(f"max_passes is {options.max_passes}; expected 1 or more")
    return windows


def begin_scales(
    model: CLNFModel,
    image_size: Int[Array, " 2"],
    params: PDMParams,
    options: FitOptions,
    *,
    anywhere: bool = False,
) -> Progress:
    """A fit before its first scale.

    Args:
        model: The model.
        image_size: Height and width of the image without padding.
        params: Where to start.
        options: The options.
        anywhere: Whether a start wholly outside the image is fitted too (static); it is
            where the first scale is left out, as when a face is followed.

    Returns:
        The progress; a start that cannot be used has failed and is NaN.

    Example:
        >>> size = jnp.asarray(image.shape)
        >>> begun = begin_scales(model, size, params, FitOptions())
        >>> Status(int(begun.status)).name, begun.phases
        ('RUNNING', ())
    """
    anywhere = anywhere or options.window_sizes[:1] == (0,)
    status = _start_status(model, params, image_size, anywhere)
    # An unusable start becomes NaN, so that nothing made from it looks like a result.
    usable = status != Status.BAD_START
    params = dataclasses.replace(
        params,
        scale=jnp.where(usable, params.scale, jnp.nan),
        translation=jnp.where(usable, params.translation, jnp.nan),
    )
    # Coordinates near zero keep float32 digits that large photographs would cost. The
    # fixed-point sampling is defined in absolute ones.
    if options.sampling == "exact":
        origin = jnp.nan_to_num(jnp.round(params.translation), posinf=0, neginf=0)
        origin = lax.stop_gradient(origin)
    else:
        origin = jnp.zeros_like(params.translation)
    dtype, zero = params.scale.dtype, jnp.zeros((), jnp.int32)
    moved = params.moved(-origin)
    return Progress(
        origin=origin,
        start_params=params,
        params=moved,
        status=status,
        densities=jnp.full(model.pdm.mean_shape.shape[0], -jnp.inf, dtype),
        view=zero,
        reach=jnp.asarray([jnp.inf, jnp.inf, -jnp.inf, -jnp.inf], dtype),
        num_passes=zero,
        pass_delta=jnp.full((), jnp.nan, dtype),
        pass_status=zero,
        pass_params=moved if options.max_passes > 1 else None,
    )


def run_scales(
    model: CLNFModel,
    image: GreyImage,
    progress: Progress,
    options: FitOptions,
    *,
    num_phases: int | None = None,
    with_trace: bool = False,
) -> Progress:
    """Runs a fit on from where it is.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        progress: How far the fit has come.
        options: The options.
        num_phases: After how many phases to stop, counted from the first scale, two for
            each, those left out too; before the last scale that is run. Default: none.
        with_trace: Whether to keep every state (static).

    Returns:
        The progress.

    Raises:
        ValueError: The options leave no scale to fit, or allow no pass through it; or
            `num_phases` lies within the last scale.

    Example:
        >>> options, size = FitOptions(window_sizes=(9, 7)), jnp.asarray(image.shape)
        >>> begun = begin_scales(model, size, params, options)
        >>> begun = run_scales(model, jnp.asarray(image), begun, options, num_phases=1)
        >>> len(begun.phases), begun.responses is None
        (1, False)
        >>> end = run_scales(model, jnp.asarray(image), begun, options)
        >>> Status(int(end.status)).name
        'CONVERGED'
    """
    windows = windows_of_scales(model, options)
    last = max(k for k, window in enumerate(windows) if window)
    if num_phases is None:
        return _run_to_end(model, image, progress, options, windows, with_trace)
    if num_phases > 2 * last:
        raise ValueError(
            f"num_phases is {num_phases}; expected at most {2 * last}, before the last "
            "scale that is run"
        )
    while len(progress.phases) < num_phases:
        k, begun = divmod(len(progress.phases), 2)
        phases = (RIGID, NON_RIGID)[begun : num_phases - 2 * k]
        if not windows[k]:
            nothing = [not_run(progress.params)] * len(phases)
            progress = progress.with_phases(nothing, [None] * len(phases))
            continue
        responses, reach = progress.responses, progress.reach
        if responses is None:
            responses, reach = maps_of_scale(
                model, image, progress, options, windows[k], k, with_trace=with_trace
            )
        scale = options_of_scale(model, options, windows, k)
        run = _phases_on(model, responses, scale, options, with_trace)
        ran = [run(progress.params, progress.status, rigid=phases[0])]
        for rigid in phases[1:]:
            ran.append(run(ran[-1][1].params, ran[-1][1].status, rigid=rigid))
        before = progress._replace(reach=reach)
        ends = [end for _, end in ran]
        progress = after_phases(
            before, responses, ran[-1][0], ends, scale.sigma, options
        )
        if phases[-1] == RIGID:
            progress = progress._replace(responses=responses)
        else:
            progress = unless_too_small(progress, options)
    return progress


def _run_to_end(
    model: CLNFModel,
    image: GreyImage,
    progress: Progress,
    options: FitOptions,
    windows: tuple[int, ...],
    with_trace: bool,
) -> Progress:
    """The scales that are left, one after the other.

    They are turns of one loop, so that their phases are compiled once; only the maps
    are each scale's own, filled up with zeros to one size.
    """
    first = len(progress.phases) // 2
    left = [k for k in range(first, len(windows)) if windows[k]]
    several = len(left) > 1
    at_hand = progress.responses
    begun = progress.phases[2 * first :], progress.traces[2 * first :]

    def maps_of(k: int) -> Callable:
        def maps(before: Progress) -> tuple[ResponseMaps, Array]:
            responses, reach = at_hand, before.reach
            if responses is None or k != first:
                responses, reach = maps_of_scale(
                    model, image, before, options, windows[k], k, with_trace=with_trace
                )
            largest = max(windows[k] for k in left)
            return (filled_up(responses, largest) if several else responses), reach

        return maps

    def one_pass(
        before: Progress, turn: Int[Array, ""], scale: ScaleOptions
    ) -> Progress:
        branches = [maps_of(k) for k in left]
        responses, reach = (
            lax.switch(turn, branches, before) if several else branches[0](before)
        )
        before = before._replace(reach=reach)
        run = _phases_on(model, responses, scale, options, with_trace)
        where = before.params, before.status
        if at_hand is None:
            _, middle = run(*where, rigid=RIGID)
        else:
            # The first turn goes on where the rigid phase has been run.
            middle = lax.cond(
                turn == 0,
                lambda: PhaseEnd(*where, begun[0][0], begun[1][0]),
                lambda: run(*where, rigid=RIGID)[1],
            )
        state, end = run(middle.params, middle.status, rigid=NON_RIGID)
        after = after_phases(
            before, responses, state, [middle, end], scale.sigma, options
        )
        return unless_too_small(after, options)

    def one_scale(before: Progress, turn: tuple) -> tuple[Progress, tuple]:
        end = _to_fixed_point(model, one_pass, before, turn, options)
        return end._replace(phases=(), traces=()), (end.phases, end.traces)

    scales = [options_of_scale(model, options, windows, k) for k in left]
    start = progress._replace(phases=(), traces=(), responses=None)
    if several:
        turns = jnp.arange(len(left), dtype=jnp.int32)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *scales)
        end, ran = lax.scan(one_scale, start, (turns, stacked))
        ran = [jax.tree.map(lambda x, i=i: x[i], ran) for i in range(len(left))]
    else:
        end, ran = one_scale(start, (jnp.zeros((), jnp.int32), scales[0]))
        ran = [ran]
    done = progress._replace(
        phases=progress.phases[: 2 * first], traces=progress.traces[: 2 * first]
    )
    for k in range(first, left[-1] + 1):
        if windows[k]:
            done = done.with_phases(*ran.pop(0))
        else:
            where = done.phases[-1].params if done.phases else progress.params
            done = done.with_phases([not_run(where)] * 2, [None] * 2)
    return end._replace(phases=done.phases, traces=done.traces)


def _phases_on(
    model: CLNFModel,
    responses: ResponseMaps,
    scale: ScaleOptions,
    options: FitOptions,
    with_trace: bool,
) -> Callable:
    """What runs a phase on maps that were made."""
    reg_factor = reg_for_size(
        jnp.asarray(scale.phases.reg_factor),
        options.reg_scale,
        scale.patch_scaling,
        responses.img_from_ref,
    )
    phases = dataclasses.replace(scale.phases, reg_factor=reg_factor)
    return partial(
        run_phase, model.pdm, responses, options=phases, with_trace=with_trace
    )


def _to_fixed_point(
    model: CLNFModel,
    run: Callable[[Progress, Array, ScaleOptions], Progress],
    before: Progress,
    turn: tuple[Array, ScaleOptions],
    options: FitOptions,
) -> Progress:
    """Passes through a scale until one of them leaves the landmarks in place."""

    def one_more(passes: Progress) -> Progress:
        start = before._replace(params=passes.params, reach=passes.reach)
        end = run(start, *turn)
        moves = project(model.pdm, end.params) - project(model.pdm, start.params)
        # Only a report: without derivatives, which a landmark at rest does not have.
        moved = jnp.max(jnp.sqrt(jnp.sum(lax.stop_gradient(moves) ** 2, axis=1)))
        at_rest = moved < jnp.asarray(options.pass_tol, moved.dtype)
        status = jnp.where(at_rest, Status.CONVERGED, Status.MAX_STEPS)
        return end._replace(
            pass_params=None if passes.pass_params is None else start.params,
            num_passes=jnp.where(is_failure(before.status), 0, passes.num_passes + 1),
            pass_delta=jnp.where(is_failure(end.status), jnp.nan, moved),
            pass_status=status.astype(jnp.int32),
        )

    if options.max_passes == 1:
        return one_more(before._replace(num_passes=jnp.zeros_like(before.num_passes)))
    shapes = jax.eval_shape(one_more, before)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.while_loop(
        lambda p: (
            (p.pass_status != Status.CONVERGED)
            & ~is_failure(p.status)
            & (p.num_passes < turn[1].max_passes)
        ),
        one_more,
        blank._replace(params=before.params, reach=before.reach),
    )


def _start_status(
    model: CLNFModel, params: PDMParams, image_size: Int[Array, " 2"], anywhere: bool
) -> Int[Array, ""]:
    landmarks = project(model.pdm, params)
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    # A pixel reaches half a pixel around its centre.
    limits = image_size[::-1].astype(low.dtype) - 0.5
    inside = jnp.all((high >= -0.5) & (low <= limits))
    usable = jnp.all(jnp.isfinite(landmarks)) & (params.scale > 0)
    usable = usable & (inside | anywhere)
    return jnp.where(usable, Status.RUNNING, Status.BAD_START).astype(jnp.int32)
