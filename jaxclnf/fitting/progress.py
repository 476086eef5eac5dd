"""How far a fit through the scales has come, and what it has come to in the end."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.result import FitTrace
from jaxclnf.pytree import held_where
from jaxclnf.shape.pdm import PDMParams, project
from jaxclnf.solver.certificate import Certificate
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status, is_failure, merge_status

PhaseTrace = tuple[NURLMSState, Array]
"""Every state of a phase, and which slots hold one."""


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
    pass_params: PDMParams | None


class Finished(NamedTuple):
    """What a fit has come to, with its trace if asked for; or those of many."""

    fit: ScalesFit
    """The fit."""
    trace: FitTrace | None
    """Its states."""


class PhaseReport(NamedTuple):
    """How a phase ended; `params` are relative to the origin of the progress."""

    num_steps: Int[Array, ""]
    shape_delta: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    certificate: Certificate
    params: PDMParams


class Progress(NamedTuple):
    """How far a fit has come; or those of many, with a leading axis.

    The number of phases, and whether there are maps, are static: they say where a fit
    goes on.
    """

    origin: Float[Array, " 2"]
    """What is added to the coordinates of `params` and of the maps, whole pixels."""
    start_params: PDMParams
    """Where it started, in the image."""
    params: PDMParams
    """Where it is."""
    status: Int[Array, ""]
    densities: Float[Array, " n"]
    """Log kernel density at each landmark."""
    view: Int[Array, ""]
    """View of the last scale that was run."""
    reach: Float[Array, " 4"]
    """The part of the image that was looked at."""
    num_passes: Int[Array, ""]
    """How often the last scale was run; the next two as in `FitResult`."""
    pass_delta: Float[Array, ""]
    pass_status: Int[Array, ""]
    pass_params: PDMParams | None = None
    """Where the last pass through a scale began; None where there is but one."""
    phases: tuple[PhaseReport, ...] = ()
    """Two for each scale so far; one for the last where it is between its phases."""
    traces: tuple[PhaseTrace | None, ...] = ()
    """Of each of these, if asked for; None: not run."""
    responses: ResponseMaps | None = None
    """The maps of a scale between its phases."""

    @property
    def log_likelihood(self) -> Float[Array, "*b"]:
        """Mean of the densities over the landmarks that have evidence.

        Example:
            >>> float(progress.log_likelihood)
            -inf
        """
        used = jnp.isfinite(self.densities)
        count = jnp.sum(used, axis=-1, dtype=self.densities.dtype)
        total = jnp.sum(jnp.where(used, self.densities, 0), axis=-1)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), -jnp.inf)

    def with_phases(
        self, reports: Sequence[PhaseReport], traces: Sequence[PhaseTrace | None]
    ) -> "Progress":
        """The same with further phases.

        Args:
            reports: How they ended.
            traces: Their states.

        Returns:
            The progress.

        Example:
            >>> further = progress.with_phases([not_run(progress.params)], [None])
            >>> len(further.phases) - len(progress.phases)
            1
        """
        return self._replace(
            phases=self.phases + tuple(reports), traces=self.traces + tuple(traces)
        )


def report(state: NURLMSState, certificate: Certificate, failed: Array) -> PhaseReport:
    """What is kept of a phase.

    Args:
        state: Its last state.
        certificate: How far that is from an optimum.
        failed: Whether the fit had failed before.

    Returns:
        The report; after a failure that of a phase that was not run.

    Example:
        >>> state = nu_rlms(pdm, responses, params, NURLMSOptions())
        >>> certificate = certify(pdm, responses, state, NURLMSOptions())
        >>> int(report(state, certificate, jnp.asarray(True)).num_steps)
        0
    """
    found = PhaseReport(
        num_steps=state.num_steps,
        shape_delta=state.shape_delta,
        gradient_norm=state.gradient_norm,
        certificate=certificate,
        params=state.params,
    )
    nothing = not_run(state.params)
    return jax.tree.map(lambda a, b: jnp.where(failed, b, a), found, nothing)


def not_run(params: PDMParams) -> PhaseReport:
    """The report of a phase that was not run.

    Args:
        params: Where it would have started.

    Returns:
        No steps and NaN.

    Example:
        >>> int(not_run(params).num_steps)
        0
    """
    nothing = jnp.full((), jnp.nan, params.scale.dtype)
    zero = jnp.zeros((), jnp.int32)
    return PhaseReport(
        num_steps=zero,
        shape_delta=nothing,
        gradient_norm=nothing,
        certificate=Certificate(
            newton_distance=nothing, smallest_curvature=nothing, num_active_bounds=zero
        ),
        params=params,
    )


def conclude_scales(model: CLNFModel, progress: Progress) -> Finished:
    """What a fit has come to.

    Args:
        model: The model.
        progress: How far it has come; what is missing counts as not run.

    Returns:
        The fit, and the trace if it has one.

    Example:
        >>> fitted, trace = conclude_scales(model, progress)
        >>> int(fitted.num_steps.sum()), trace
        (0, None)
    """
    num_scales = len(model.experts)
    missing = 2 * num_scales - len(progress.phases)
    progress = progress.with_phases(
        [not_run(progress.params)] * missing, [None] * missing
    )
    phases = jax.tree.map(
        lambda *x: jnp.stack(x).reshape(num_scales, 2, *x[0].shape), *progress.phases
    )
    origin, status, last = progress.origin, progress.status, progress.pass_params
    if last is not None:  # several passes, to a fixed point
        status = merge_status(status, progress.pass_status).astype(jnp.int32)
    pdm = held_where(status == Status.BAD_START, model.pdm)
    fitted = ScalesFit(
        landmarks=project(pdm, progress.params) + origin[None, :],
        params=progress.params.moved(origin),
        status=status,
        num_steps=phases.num_steps,
        shape_delta=phases.shape_delta,
        gradient_norm=phases.gradient_norm,
        newton_distance=phases.certificate.newton_distance,
        smallest_curvature=phases.certificate.smallest_curvature,
        num_active_bounds=phases.certificate.num_active_bounds,
        phase_params=phases.params.moved(origin),
        start_params=progress.start_params,
        log_likelihood=progress.log_likelihood,
        landmark_log_likelihoods=progress.densities,
        view=progress.view,
        reach=progress.reach,
        num_passes=progress.num_passes,
        pass_delta=progress.pass_delta,
        pass_status=jnp.where(is_failure(status), status, progress.pass_status),
        pass_params=last and last.moved(origin),
    )
    return Finished(fitted, _join_traces(progress.traces, origin))


def _join_traces(
    traces: tuple[PhaseTrace | None, ...], origin: Float[Array, " 2"]
) -> FitTrace | None:
    """Stacks the phases, empty ones for those not run, and undoes the shift."""
    some = next((trace for trace in traces if trace), None)
    if some is None:
        return None
    empty = jax.tree.map(jnp.zeros_like, some)
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x).reshape(-1, 2, *x[0].shape),
        *(trace or empty for trace in traces),
    )
    states, valid = stacked
    evidence = dataclasses.replace(
        states.evidence, shape=states.evidence.shape + origin[None, None, None, None]
    )
    params = states.params.moved(origin)
    return FitTrace(
        states=dataclasses.replace(states, params=params, evidence=evidence),
        valid=valid,
    )
