"""One scale of a fit: its options, its maps, and the phases that are run on them."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage, join_reach, reach_of_areas
from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.maps import maps_unless_failed
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.progress import PhaseReport, PhaseTrace, Progress, report
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.solver.certificate import certify_end
from jaxclnf.solver.loop import (
    nu_rlms_init,
    resume,
    resume_with_trace,
    reversible,
)
from jaxclnf.solver.openface import openface_log_likelihoods
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status, is_failure, merge_status


class ScaleOptions(NamedTuple):
    """What is chosen for one scale; or for several, with a leading axis."""

    phases: NURLMSOptions
    """Options of its phases, for a face of the size `FitOptions.reg_scale`."""
    patch_scaling: Float[Array, "*b"]
    """Its experts' scale, pixels per millimetre."""
    sigma: Float[Array, "*b"]
    """Bandwidth of the densities that are reported, reference pixels."""
    max_passes: Int[Array, "*b"]
    """How often it is run at most."""


def options_of_scale(
    model: CLNFModel, options: FitOptions, windows: tuple[int, ...], k: int
) -> ScaleOptions:
    """What is chosen for scale `k`.

    Args:
        model: The model.
        options: The options of the fit.
        windows: See `windows_of_scales`.
        k: Which scale, one that is run.

    Returns:
        Its options.

    Example:
        >>> options = FitOptions(max_passes=9)
        >>> int(options_of_scale(model, options, (7, 5), 1).max_passes)
        9
    """
    patch_scaling = model.experts[k].patch_scaling
    at_scale = options.at_scale(patch_scaling)
    phases = at_scale
    if options.solver == "openface":
        # Its table knows only window sizes: the first bandwidth of each stays.
        first = model.experts[windows.index(windows[k])]
        sigma = options.at_scale(first.patch_scaling).sigma
        phases = dataclasses.replace(at_scale, sigma=sigma)
    is_last = not any(windows[k + 1 :])
    return ScaleOptions(
        phases=phases,
        patch_scaling=patch_scaling,
        sigma=jnp.asarray(at_scale.sigma),
        max_passes=jnp.asarray(options.max_passes if is_last else 1, jnp.int32),
    )


def maps_of_scale(
    model: CLNFModel,
    image: GreyImage,
    before: Progress,
    options: FitOptions,
    window_size: int,
    k: int,
    *,
    with_trace: bool,
) -> tuple[ResponseMaps, Float[Array, " 4"]]:
    """The maps of scale `k` around where a fit is.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        before: How far the fit has come.
        options: The options of the fit.
        window_size: Side of each map, odd.
        k: Which scale.
        with_trace: Whether derivatives in reverse mode may follow (static).

    Returns:
        The maps, and the part of the image that has been looked at by now.

    Example:
        >>> place = model, jnp.asarray(image), progress
        >>> maps, reach = maps_of_scale(*place, FitOptions(), 7, 0, with_trace=False)
        >>> maps.maps.shape[1:], bool(jnp.isfinite(reach).all())
        ((7, 7), True)
    """
    failed = is_failure(before.status)
    responses = maps_unless_failed(
        model.pdm,
        model.experts[k],
        image,
        before.params,
        before.origin.astype(jnp.int32),
        failed,
        window_size=window_size,
        sampling=options.sampling,
        in_turn=not with_trace,
    )
    seen = reach_of_areas(
        responses.base_shape + before.origin[None, :],
        responses.img_from_ref,
        window_size + model.experts[k].support - 1,
    )
    return responses, jnp.where(failed, before.reach, join_reach(before.reach, seen))


class PhaseEnd(NamedTuple):
    """Where a fit is after a phase."""

    params: PDMParams
    status: Int[Array, ""]
    """That of the fit so far."""
    report: PhaseReport
    trace: PhaseTrace | None
    """If asked for."""


def run_phase(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    status: Int[Array, ""],
    options: NURLMSOptions,
    *,
    rigid: bool,
    with_trace: bool = False,
) -> tuple[NURLMSState, PhaseEnd]:
    """Runs one phase of a fit, unless that has failed.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where the fit is.
        status: Its status so far.
        options: The phase's options.
        rigid: Move the pose only.
        with_trace: Whether to keep every state (static).

    Returns:
        The solver's last state, and the end of the phase.

    Example:
        >>> running = jnp.asarray(Status.RUNNING)
        >>> _, end = run_phase(
        ...     pdm, responses, params, running, NURLMSOptions(), rigid=True
        ... )
        >>> Status(int(end.status)).name
        'CONVERGED'
    """
    failed = is_failure(status)
    if with_trace:  # derivatives in reverse mode may follow
        pdm, responses, params, options = reversible(pdm, responses, params, options)
    state = nu_rlms_init(pdm, responses, params, options, rigid=rigid)
    # After a failure nothing more is run: the phase starts in its end state.
    stopped = jnp.where(failed, status, state.status)
    state = dataclasses.replace(state, status=stopped.astype(jnp.int32))
    trace = None
    if with_trace:
        state, states, valid = resume_with_trace(
            pdm, responses, state, options, rigid=rigid
        )
        trace = states, valid
    else:
        state = resume(pdm, responses, state, options, rigid=rigid)
    certificate = certify_end(pdm, responses, state, options, rigid=rigid)
    return state, PhaseEnd(
        params=state.params,
        status=merge_status(status, state.status).astype(jnp.int32),
        report=report(state, certificate, failed),
        trace=trace,
    )


def after_phases(
    before: Progress,
    responses: ResponseMaps,
    state: NURLMSState,
    ends: list[PhaseEnd],
    sigma: Float[Array, ""],
    options: FitOptions,
) -> Progress:
    """What is known of a fit after phases of one scale.

    Args:
        before: How far it had come before them.
        responses: The maps that they used.
        state: The solver's state after the last of them.
        ends: How each ended.
        sigma: Bandwidth of the densities that are reported.
        options: The options of the fit.

    Returns:
        The progress, without maps.

    Example:
        >>> state, end = run_phase(
        ...     pdm, responses, params, progress.status, NURLMSOptions(), rigid=True
        ... )
        >>> sigma = jnp.asarray(1.5)
        >>> end = after_phases(progress, responses, state, [end], sigma, FitOptions())
        >>> len(end.phases), bool(end.log_likelihood > progress.log_likelihood)
        (1, True)
    """
    # What is known of the last scale that was run stays.
    skipped = is_failure(before.status)
    if options.solver == "openface":
        found = openface_log_likelihoods(responses, state.previous_shape, sigma)
    else:
        found = state.evidence.log_densities
    return before._replace(
        params=ends[-1].params,
        status=ends[-1].status,
        densities=jnp.where(skipped, before.densities, found),
        view=jnp.where(skipped, before.view, responses.view),
        responses=None,
    ).with_phases([end.report for end in ends], [end.trace for end in ends])


def unless_too_small(progress: Progress, options: FitOptions) -> Progress:
    """What becomes of a fit at the end of a scale: a face that is too small fails.

    Args:
        progress: How far it has come.
        options: The options of the fit.

    Returns:
        The same with its status.

    Example:
        >>> end = unless_too_small(progress, FitOptions(min_scale=1000.0))
        >>> Status(int(end.status)).name
        'FACE_TOO_SMALL'
    """
    too_small = jnp.where(
        progress.params.scale < options.min_scale,
        Status.FACE_TOO_SMALL,
        Status.RUNNING,
    )
    status = merge_status(progress.status, too_small)
    return progress._replace(status=status.astype(jnp.int32))
