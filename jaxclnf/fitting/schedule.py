"""One model through its scales: maps, rigid phase, non-rigid phase, next scale."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage, join_reach, reach_of_areas
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.maps import maps_unless_failed
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.progress import (
    Finished,
    Progress,
    conclude_scales,
    not_run,
    report,
)
from jaxclnf.shape.pdm import PDMParams, project
from jaxclnf.solver.certificate import certify
from jaxclnf.solver.loop import nu_rlms_init, resume, resume_with_trace
from jaxclnf.solver.openface import openface_log_likelihoods
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status, is_failure, merge_status

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
    return Progress(
        origin=origin,
        start_params=params,
        params=params.moved(-origin),
        status=status,
        densities=jnp.full(model.pdm.mean_shape.shape[0], -jnp.inf, dtype),
        view=zero,
        reach=jnp.asarray([jnp.inf, jnp.inf, -jnp.inf, -jnp.inf], dtype),
        num_passes=zero,
        pass_delta=jnp.full((), jnp.nan, dtype),
        pass_status=zero,
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

    if num_phases is not None and num_phases > 2 * last:
        raise ValueError(
            f"num_phases is {num_phases}; expected at most {2 * last}, before the last "
            "scale that is run"
        )

    def run(k: int, before: Progress, phases: tuple[bool, ...]) -> Progress:
        at_scale = options.at_scale(model.experts[k].patch_scaling)
        kernel = at_scale
        if options.solver == "openface":
            # Its table knows only window sizes: the first bandwidth of each stays.
            first = model.experts[windows.index(windows[k])]
            sigma = options.at_scale(first.patch_scaling).sigma
            kernel = dataclasses.replace(at_scale, sigma=sigma)
        if before.responses is None:
            before = _with_maps(model, image, before, options, windows, k, with_trace)
        return _run_phases(model, before, kernel, at_scale, options, phases, with_trace)

    end = 2 * last if num_phases is None else num_phases
    while len(progress.phases) < end:
        k, begun = divmod(len(progress.phases), 2)
        phases = (RIGID, NON_RIGID)[begun : end - 2 * k]
        if windows[k]:
            progress = run(k, progress, phases)
        else:
            nothing = [not_run(progress.params)] * len(phases)
            progress = progress.with_phases(nothing, [None] * len(phases))
    if num_phases is not None:
        return progress
    return _to_fixed_point(
        model, lambda before: run(last, before, (RIGID, NON_RIGID)), progress, options
    )


def _with_maps(
    model: CLNFModel,
    image: GreyImage,
    before: Progress,
    options: FitOptions,
    windows: tuple[int, ...],
    k: int,
    with_trace: bool,
) -> Progress:
    """The same with the maps of scale `k`."""
    failed = is_failure(before.status)
    responses = maps_unless_failed(
        model.pdm,
        model.experts[k],
        image,
        before.params,
        before.origin.astype(jnp.int32),
        failed,
        window_size=windows[k],
        sampling=options.sampling,
        # A fit with a record may be followed by derivatives in reverse mode.
        in_turn=not with_trace,
    )
    seen = reach_of_areas(
        responses.base_shape + before.origin[None, :],
        responses.img_from_ref,
        windows[k] + model.experts[k].support - 1,
    )
    reach = jnp.where(failed, before.reach, join_reach(before.reach, seen))
    return before._replace(responses=responses, reach=reach)


def _to_fixed_point(
    model: CLNFModel,
    run: Callable[[Progress], Progress],
    before: Progress,
    options: FitOptions,
) -> Progress:
    """Passes through the last scale until one of them leaves the landmarks in place."""
    # Each pass takes the place of the one before it, its phases too.
    scale = before._replace(phases=(), traces=())

    def one_more(passes: Progress) -> Progress:
        start = scale._replace(params=passes.params, reach=passes.reach)
        end = run(start)
        moves = project(model.pdm, end.params) - project(model.pdm, start.params)
        moved = jnp.max(jnp.sqrt(jnp.sum(moves**2, axis=1)))
        at_rest = moved < jnp.asarray(options.pass_tol, moved.dtype)
        status = jnp.where(at_rest, Status.CONVERGED, Status.MAX_STEPS)
        return end._replace(
            num_passes=jnp.where(is_failure(before.status), 0, passes.num_passes + 1),
            pass_delta=jnp.where(is_failure(end.status), jnp.nan, moved),
            pass_status=status.astype(jnp.int32),
        )

    if options.max_passes == 1:
        end = one_more(scale)
    else:
        shapes = jax.eval_shape(one_more, scale)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        end = lax.while_loop(
            lambda p: (
                (p.pass_status != Status.CONVERGED)
                & ~is_failure(p.status)
                & (p.num_passes < options.max_passes)
            ),
            one_more,
            blank._replace(params=before.params, reach=before.reach),
        )
    return end._replace(
        phases=before.phases + end.phases, traces=before.traces + end.traces
    )


def _run_phases(
    model: CLNFModel,
    before: Progress,
    kernel: NURLMSOptions,
    at_scale: NURLMSOptions,
    options: FitOptions,
    phases: tuple[bool, ...],
    with_trace: bool,
) -> Progress:
    """The rigid phase of one scale, its non-rigid one, or both."""
    pdm, responses = model.pdm, before.responses
    assert responses is not None
    params, status = before.params, before.status
    states, reports, traces = [], [], []
    for rigid in phases:
        state = nu_rlms_init(pdm, responses, params, kernel, rigid=rigid)
        # After a failure nothing more is run: the phase starts in its end state.
        stopped = jnp.where(is_failure(status), status, state.status)
        state = dataclasses.replace(state, status=stopped.astype(jnp.int32))
        if with_trace:
            state, *trace = resume_with_trace(
                pdm, responses, state, kernel, rigid=rigid
            )
            traces.append(tuple(trace))
        else:
            state = resume(pdm, responses, state, kernel, rigid=rigid)
            traces.append(None)
        states.append(state)
        params = state.params
        certificate = certify(pdm, responses, state, kernel, rigid=rigid)
        reports.append(report(state, certificate, is_failure(status)))
        status = merge_status(status, state.status)
    between = phases[-1] == RIGID
    if not between:
        too_small = jnp.where(
            params.scale < options.min_scale, Status.FACE_TOO_SMALL, Status.RUNNING
        )
        status = merge_status(status, too_small)
    # What is known of the last scale that was run stays.
    skipped = is_failure(before.status)
    found = _log_densities(responses, states[-1], at_scale)
    return before._replace(
        params=params,
        status=status.astype(jnp.int32),
        densities=jnp.where(skipped, before.densities, found),
        view=jnp.where(skipped, before.view, responses.view),
        responses=responses if between else None,
    ).with_phases(reports, traces)


def _log_densities(
    responses: ResponseMaps, state: NURLMSState, options: NURLMSOptions
) -> Float[Array, " n"]:
    if options.solver == "openface":
        return openface_log_likelihoods(responses, state.previous_shape, options.sigma)
    return state.evidence.log_densities


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
