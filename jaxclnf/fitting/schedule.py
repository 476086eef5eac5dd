"""One model through its scales: maps, rigid phase, non-rigid phase, next scale."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage, join_reach, reach_of_areas
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.maps import maps_unless_failed
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitTrace
from jaxclnf.shape.pdm import PDM, PDMParams, project
from jaxclnf.solver.certificate import Certificate, certify
from jaxclnf.solver.loop import nu_rlms_init, resume, resume_with_trace
from jaxclnf.solver.openface import openface_log_likelihoods
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status, is_failure, merge_status


class ScalesFit(NamedTuple):
    """Where one model came to through its scales; the fields are as in `FitResult`."""

    landmarks: Float[Array, "n 2"]
    params: PDMParams
    status: Int[Array, ""]
    num_steps: Int[Array, "s 2"]
    shape_delta: Float[Array, "s 2"]
    gradient_norm: Float[Array, "s 2"]
    newton_distance: Float[Array, "s 2"]
    smallest_curvature: Float[Array, "s 2"]
    num_active_bounds: Int[Array, "s 2"]
    phase_params: PDMParams
    start_params: PDMParams
    log_likelihood: Float[Array, ""]
    landmark_log_likelihoods: Float[Array, " n"]
    view: Int[Array, ""]
    reach: Float[Array, " 4"]
    num_passes: Int[Array, ""]
    pass_delta: Float[Array, ""]
    pass_status: Int[Array, ""]


class _PhaseReport(NamedTuple):
    num_steps: Int[Array, ""]
    shape_delta: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    certificate: Certificate
    params: PDMParams


class _ScaleEnd(NamedTuple):
    """Where a pass through one scale ended."""

    params: PDMParams
    status: Int[Array, ""]
    phases: tuple[_PhaseReport, ...]
    densities: Float[Array, " n"]
    view: Int[Array, ""]
    reach: Float[Array, " 4"]
    traces: tuple[tuple[NURLMSState, Array], ...]


class _Passes(NamedTuple):
    """Passes through the last scale: where they ended, and what moved in the last."""

    end: _ScaleEnd
    num_passes: Int[Array, ""]
    moved: Float[Array, ""]
    status: Int[Array, ""]


def fit_scales(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    params: PDMParams,
    options: FitOptions,
    *,
    anywhere: bool = False,
    with_trace: bool = False,
) -> tuple[ScalesFit, FitTrace | None]:
    """Fits one model, parts apart, from given parameters.

    Args:
        model: The model; its parts are not looked at.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        params: Where to start.
        options: The options.
        anywhere: Whether a start wholly outside the image is fitted too (static).
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
    windows = (tuple(options.window_sizes) + (0,) * len(model.experts))[
        : len(model.experts)
    ]
    if not any(windows):
        raise ValueError(
            f"window_sizes {options.window_sizes} leave none of the model's "
            f"{len(model.experts)} scales to fit; expected an odd size for at least one"
        )
    if options.max_passes < 1:
        raise ValueError(f"max_passes is {options.max_passes}; expected 1 or more")
    pdm = model.pdm
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
    start = params
    params = params.moved(-origin)

    def run_scale(k: int, before: _ScaleEnd) -> _ScaleEnd:
        at_scale = options.at_scale(model.experts[k].patch_scaling)
        kernel = at_scale
        if options.solver == "openface":
            # Its table knows only window sizes: the first bandwidth of each stays.
            first = model.experts[windows.index(windows[k])]
            sigma = options.at_scale(first.patch_scaling).sigma
            kernel = dataclasses.replace(at_scale, sigma=sigma)
        place = before.params, origin.astype(jnp.int32), is_failure(before.status)
        responses = maps_unless_failed(
            pdm,
            model.experts[k],
            image,
            *place,
            window_size=windows[k],
            sampling=options.sampling,
            # A fit with a record may be followed by derivatives in reverse mode.
            in_turn=not with_trace,
        )
        seen = reach_of_areas(
            responses.base_shape + origin[None, :],
            responses.img_from_ref,
            windows[k] + model.experts[k].support - 1,
        )
        before = before._replace(
            reach=jnp.where(
                is_failure(before.status), before.reach, join_reach(before.reach, seen)
            )
        )
        return _run_phases(
            pdm, responses, before, kernel, at_scale, options.min_scale, with_trace
        )

    end = _ScaleEnd(
        params=params,
        status=status,
        phases=(_not_run(params), _not_run(params)),
        densities=jnp.full(pdm.mean_shape.shape[0], -jnp.inf, params.scale.dtype),
        view=jnp.zeros((), jnp.int32),
        reach=jnp.asarray([jnp.inf, jnp.inf, -jnp.inf, -jnp.inf], params.scale.dtype),
        traces=(),
    )
    last = max(k for k, window in enumerate(windows) if window)
    ends: list[_ScaleEnd | None] = []
    for k, window in enumerate(windows[:last]):
        if window:
            end = run_scale(k, end)
        ends.append(end if window else None)
    passes = _to_fixed_point(pdm, lambda before: run_scale(last, before), end, options)
    ends += [passes.end] + [None] * (len(windows) - last - 1)

    phases = _per_phase(ends, start=params)
    densities = passes.end.densities
    used = jnp.isfinite(densities)
    count = jnp.sum(used, dtype=densities.dtype)
    mean = jnp.sum(jnp.where(used, densities, 0)) / jnp.maximum(count, 1)
    fitted = ScalesFit(
        landmarks=project(pdm, passes.end.params) + origin[None, :],
        params=passes.end.params.moved(origin),
        status=passes.end.status,
        num_steps=phases.num_steps,
        shape_delta=phases.shape_delta,
        gradient_norm=phases.gradient_norm,
        newton_distance=phases.certificate.newton_distance,
        smallest_curvature=phases.certificate.smallest_curvature,
        num_active_bounds=phases.certificate.num_active_bounds,
        phase_params=phases.params.moved(origin),
        start_params=start,
        log_likelihood=jnp.where(count > 0, mean, -jnp.inf),
        landmark_log_likelihoods=densities,
        view=passes.end.view,
        reach=passes.end.reach,
        num_passes=passes.num_passes,
        pass_delta=passes.moved,
        pass_status=passes.status,
    )
    return fitted, _join_traces(ends, origin) if with_trace else None


def _to_fixed_point(
    pdm: PDM,
    run: Callable[[_ScaleEnd], _ScaleEnd],
    before: _ScaleEnd,
    options: FitOptions,
) -> _Passes:
    """Passes through the last scale until one of them leaves the landmarks in place."""

    def one_more(passes: _Passes) -> _Passes:
        start = before._replace(params=passes.end.params, reach=passes.end.reach)
        end = run(start)
        moves = project(pdm, end.params) - project(pdm, start.params)
        moved = jnp.max(jnp.sqrt(jnp.sum(moves**2, axis=1)))
        at_rest = moved < jnp.asarray(options.pass_tol, moved.dtype)
        status = jnp.where(at_rest, Status.CONVERGED, Status.MAX_STEPS)
        failed = is_failure(end.status)
        return _Passes(
            end,
            jnp.where(is_failure(before.status), 0, passes.num_passes + 1),
            jnp.where(failed, jnp.nan, moved),
            jnp.where(failed, end.status, status).astype(jnp.int32),
        )

    unknown = jnp.full_like(before.params.scale, jnp.nan)
    zero = jnp.zeros((), jnp.int32)
    if options.max_passes == 1:
        return one_more(_Passes(before, zero, unknown, zero))
    shapes = jax.eval_shape(run, before)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.while_loop(
        lambda p: (
            (p.status != Status.CONVERGED)
            & ~is_failure(p.status)
            & (p.num_passes < options.max_passes)
        ),
        one_more,
        _Passes(
            blank._replace(params=before.params, reach=before.reach),
            zero,
            unknown,
            zero,
        ),
    )


def _run_phases(
    pdm: PDM,
    responses: ResponseMaps,
    before: _ScaleEnd,
    kernel: NURLMSOptions,
    at_scale: NURLMSOptions,
    min_scale: Float[Array, ""] | float,
    with_trace: bool,
) -> _ScaleEnd:
    """The rigid and the non-rigid phase of one scale."""
    params, status = before.params, before.status
    reports, traces = [], []
    for rigid in (True, False):
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
        params = state.params
        certificate = certify(pdm, responses, state, kernel, rigid=rigid)
        reports.append(_report(state, certificate, status))
        status = merge_status(status, state.status)
    too_small = jnp.where(
        params.scale < min_scale, Status.FACE_TOO_SMALL, Status.RUNNING
    )
    # What is known of the last scale that was run stays.
    skipped = is_failure(before.status)
    found = _log_densities(responses, state, at_scale)
    return _ScaleEnd(
        params=params,
        status=merge_status(status, too_small).astype(jnp.int32),
        phases=(reports[0], reports[1]),
        densities=jnp.where(skipped, before.densities, found),
        view=jnp.where(skipped, before.view, responses.view),
        reach=before.reach,
        traces=tuple(traces),
    )


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


def _report(
    state: NURLMSState, certificate: Certificate, status_before: Int[Array, ""]
) -> _PhaseReport:
    skipped = is_failure(status_before)
    found = _PhaseReport(
        num_steps=state.num_steps,
        shape_delta=state.shape_delta,
        gradient_norm=state.gradient_norm,
        certificate=certificate,
        params=state.params,
    )
    nothing = _not_run(state.params)
    return jax.tree.map(lambda a, b: jnp.where(skipped, b, a), found, nothing)


def _not_run(params: PDMParams) -> _PhaseReport:
    nothing = jnp.full((), jnp.nan, params.scale.dtype)
    zero = jnp.zeros((), jnp.int32)
    return _PhaseReport(
        num_steps=zero,
        shape_delta=nothing,
        gradient_norm=nothing,
        certificate=Certificate(
            newton_distance=nothing, smallest_curvature=nothing, num_active_bounds=zero
        ),
        params=params,
    )


def _per_phase(ends: list[_ScaleEnd | None], start: PDMParams) -> _PhaseReport:
    """The reports of all phases, leading axes scale and phase."""
    reports, params = [], start
    for end in ends:
        reports += end.phases if end else (_not_run(params),) * 2
        params = end.params if end else params
    return jax.tree.map(
        lambda *x: jnp.stack(x).reshape(len(ends), 2, *x[0].shape), *reports
    )


def _join_traces(ends: list[_ScaleEnd | None], origin: Float[Array, " 2"]) -> FitTrace:
    """Stacks the phases, empty ones for skipped scales, and undoes the shift."""
    some = next(end.traces for end in ends if end)
    empty = jax.tree.map(jnp.zeros_like, some)
    rows = []
    for end in ends:
        pair = end.traces if end else empty
        rows.append(jax.tree.map(lambda *x: jnp.stack(x), *pair))
    states, valid = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    evidence = dataclasses.replace(
        states.evidence, shape=states.evidence.shape + origin[None, None, None, None]
    )
    params = states.params.moved(origin)
    states = dataclasses.replace(states, params=params, evidence=evidence)
    return FitTrace(states=states, valid=valid)
