"""One face through all scales: maps, rigid phase, non-rigid phase, next scale."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage
from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult, FitTrace
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDMParams, project
from jaxclnf.solver.loop import nu_rlms_init, resume, resume_with_trace
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status, is_failure, merge_status


@pytree_dataclass
class _PhaseReport:
    num_steps: Int[Array, ""]
    shape_delta: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def fit_face(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    params: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> tuple[FitResult, FitTrace | None]:
    """Fits one face from given parameters: a pure function without any host work.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        params: Where to start.
        options: The options.
        with_trace: Whether to keep every state (static).

    Returns:
        The result, and the trace if asked for.

    Raises:
        ValueError: The options leave no scale to fit.

    Mirrors:
        CLNF::Fit.

    Example:
        >>> result, _ = fit_face(
        ...     model, jnp.asarray(image), jnp.asarray(image.shape), params,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> bool(result.converged)
        True
    """
    windows = (tuple(options.window_sizes) + (0,) * len(model.experts))[
        : len(model.experts)
    ]
    if not any(windows):
        raise ValueError(
            f"window_sizes {options.window_sizes} leave none of the model's "
            f"{len(model.experts)} scales to fit; expected an odd size for at least one"
        )
    pdm = model.pdm
    status = _start_status(model, params, image_size)
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
        origin = jax.lax.stop_gradient(origin)
    else:
        origin = jnp.zeros_like(params.translation)
    params = _shifted(params, -origin)

    reports: list[list[_PhaseReport]] = []
    traces: list[tuple[NURLMSState, Array]] = []
    state, responses = None, None
    for experts, window in zip(model.experts, windows, strict=True):
        if window == 0:
            reports.append([_not_run(params.scale.dtype)] * 2)
            continue
        phase_options = options.at_scale(experts.patch_scaling)
        responses = response_maps(
            pdm,
            experts,
            image,
            params,
            window,
            sampling=options.sampling,
            origin=origin.astype(jnp.int32),
        )
        scale_reports = []
        for rigid in (True, False):
            state, trace = _run_phase(
                model, responses, params, phase_options, status, rigid, with_trace
            )
            params = state.params
            scale_reports.append(_report(state, status))
            status = merge_status(status, state.status)
            if trace is not None:
                traces.append(trace)
        too_small = jnp.where(
            params.scale < options.min_scale, Status.FACE_TOO_SMALL, Status.RUNNING
        )
        status = merge_status(status, too_small).astype(jnp.int32)
        reports.append(scale_reports)
    assert state is not None and responses is not None

    densities = state.evidence.log_densities
    used = jnp.isfinite(densities)
    count = jnp.sum(used, dtype=densities.dtype)
    mean = jnp.sum(jnp.where(used, densities, 0)) / jnp.maximum(count, 1)
    result = FitResult(
        landmarks=project(pdm, params) + origin[None, :],
        params=_shifted(params, origin),
        status=status,
        converged=status == Status.CONVERGED,
        num_steps=_stack_phases(reports, "num_steps"),
        shape_delta=_stack_phases(reports, "shape_delta"),
        gradient_norm=_stack_phases(reports, "gradient_norm"),
        log_likelihood=jnp.where(count > 0, mean, -jnp.inf),
        landmark_log_likelihoods=densities,
        view=responses.view,
    )
    return result, _join_traces(traces, windows, origin) if with_trace else None


def _run_phase(
    model: CLNFModel,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    status: Int[Array, ""],
    rigid: bool,
    with_trace: bool,
) -> tuple[NURLMSState, tuple[NURLMSState, Array] | None]:
    pdm = model.pdm
    state = nu_rlms_init(pdm, responses, params, options, rigid=rigid)
    # After a failure nothing more is run: the phase starts in its end state.
    stopped = jnp.where(is_failure(status), status, state.status)
    state = dataclasses.replace(state, status=stopped.astype(jnp.int32))
    if not with_trace:
        return resume(pdm, responses, state, options, rigid=rigid), None
    last, states, valid = resume_with_trace(pdm, responses, state, options, rigid=rigid)
    return last, (states, valid)


def _start_status(
    model: CLNFModel, params: PDMParams, image_size: Int[Array, " 2"]
) -> Int[Array, ""]:
    landmarks = project(model.pdm, params)
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    # A pixel reaches half a pixel around its centre.
    limits = image_size[::-1].astype(low.dtype) - 0.5
    inside = jnp.all((high >= -0.5) & (low <= limits))
    usable = jnp.all(jnp.isfinite(landmarks)) & (params.scale > 0) & inside
    return jnp.where(usable, Status.RUNNING, Status.BAD_START).astype(jnp.int32)


def _report(state: NURLMSState, status_before: Int[Array, ""]) -> _PhaseReport:
    skipped = is_failure(status_before)
    return _PhaseReport(
        num_steps=state.num_steps,
        shape_delta=jnp.where(skipped, jnp.nan, state.shape_delta),
        gradient_norm=jnp.where(skipped, jnp.nan, state.gradient_norm),
    )


def _not_run(dtype: jnp.dtype) -> _PhaseReport:
    nothing = jnp.full((), jnp.nan, dtype)
    return _PhaseReport(
        num_steps=jnp.zeros((), jnp.int32), shape_delta=nothing, gradient_norm=nothing
    )


def _stack_phases(reports: list[list[_PhaseReport]], field: str) -> Array:
    rows = [jnp.stack([getattr(phase, field) for phase in row]) for row in reports]
    return jnp.stack(rows)


def _shifted(params: PDMParams, by: Float[Array, " 2"]) -> PDMParams:
    return dataclasses.replace(params, translation=params.translation + by)


def _join_traces(
    traces: list[tuple[NURLMSState, Array]],
    windows: tuple[int, ...],
    origin: Float[Array, " 2"],
) -> FitTrace:
    """Stacks the phases, empty ones for skipped scales, and undoes the shift."""
    empty = jax.tree.map(lambda x: jnp.zeros_like(x), traces[0])
    remaining = iter(traces)
    rows = []
    for window in windows:
        pair = [next(remaining) if window else empty for _ in range(2)]
        rows.append(jax.tree.map(lambda *x: jnp.stack(x), *pair))
    states, valid = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    evidence = dataclasses.replace(
        states.evidence, shape=states.evidence.shape + origin[None, None, None, None]
    )
    params = dataclasses.replace(
        states.params,
        translation=states.params.translation + origin[None, None, None],
    )
    states = dataclasses.replace(states, params=params, evidence=evidence)
    return FitTrace(states=states, valid=valid)
