"""The certificate of a fit once more: in float64, from the definitions, on the host."""

import dataclasses
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxclnf.diagnosis.truth import terms_of, weights_of
from jaxclnf.experts.area import Sampling, check_image
from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import PatchExperts
from jaxclnf.fitting.canvas import on_canvas
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.pytree import with_reals_as
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, project, retract
from jaxclnf.status import Status

AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is true of the end of each phase: arrays `(s, 2)`, scale and phase (rigid,
    non-rigid); NaN and 0 for scales that were skipped."""

    newton_distance: Float[np.ndarray, "s 2"]
    """How far a full Newton step within the bounds would move the landmark that moves
    most, pixels; inf where F is not concave in the free directions."""
    gradient_norm: Float[np.ndarray, "s 2"]
    """`max_k |g_k| / sqrt(H_EM,kk)` over the free directions, pixels."""
    smallest_curvature: Float[np.ndarray, "s 2"]
    """Smallest curvature of F relative to that of EM in the free directions."""
    num_active_bounds: Int[np.ndarray, "s 2"]
    """Modes held by their bounds."""
    ran: Bool[np.ndarray, "s 2"]
    """Which phases took steps."""
    shape_tol: float
    """The tolerance that was asked for, pixels."""
    status: Status
    """How the fit ended."""

    @property
    def certified(self) -> bool:
        """Whether every phase ended within the tolerance of an optimum.

        A fit that failed is at none, wherever the phases before that ended.

        Example:
            >>> result = fit(model, image, box, options=FitOptions(window_sizes=(7,)))
            >>> found = verify(model, image, result, FitOptions(window_sizes=(7,)))
            >>> found.certified
            True
        """
        if self._failed or not self.ran.any():
            return False
        return bool((self._distances() < self.shape_tol).all())

    @property
    def _failed(self) -> bool:
        return self.status >= Status.NONFINITE

    def _distances(self) -> np.ndarray:
        return self.newton_distance[self.ran]

    def __str__(self) -> str:
        if not self.ran.any():
            return "not certified: no phase was run"
        verdict = "certified" if self.certified else "not certified"
        if self._failed:
            verdict = f"not certified, {self.status.name}"
        return (
            f"{verdict}: {self.ran.sum()} phases, at most "
            f"{self._distances().max(initial=0):.2g} px from their optima (tolerance "
            f"{self.shape_tol:g}), smallest curvature "
            f"{self.smallest_curvature[self.ran].min(initial=1):.2g} of EM's, "
            f"{self.num_active_bounds.sum()} bounds active"
        )


class _Phase(NamedTuple):
    distance: float
    gradient_norm: float
    smallest: float
    num_active: int


def verify(
    model: CLNFModel,
    image: Num[Array | np.ndarray, "h w"],
    result: FitResult,
    options: FitOptions = FitOptions(),  # noqa: B008 (immutable)
) -> Verification:
    """Checks the certificate of one face from its result alone.

    The response maps are computed again in float64 where the result says that each
    scale began, and F is judged where it says that each phase ended: its gradient and
    its Hessian come from automatic differentiation of its definition, not from the
    solver. The maps' own rounding in float32 moves an optimum by some 1e-4 px.

    Args:
        model: The model that was fitted, in any precision.
        image: The grey image that was fitted.
        result: The result for one face, of any solver.
        options: The options of the fit; they say which maps to make.

    Returns:
        What was found; `found.certified` says it in a word.

    Raises:
        TypeError: The image is no array of real numbers.
        ValueError: The image is not two-dimensional or empty, or the result is of
            several faces, or has other scales than the options make of the model.

    Example:
        >>> options = FitOptions(window_sizes=(7,), solver="em", max_steps=2)
        >>> early = fit(model, image, box, options=options)
        >>> print(str(verify(model, image, early, options)).split(":")[0])
        not certified
    """
    check_image(image)
    if result.status.ndim != 0:
        raise ValueError(
            f"the result has leading axes {result.status.shape}; expected one face"
        )
    num_scales = len(model.experts)
    if result.num_steps.shape != (num_scales, 2):
        raise ValueError(
            f"the result has phases {result.num_steps.shape}; expected "
            f"{(num_scales, 2)} for the model's scales"
        )
    windows = (*options.window_sizes, *(0,) * num_scales)[:num_scales]
    ran = np.asarray(result.num_steps) > 0
    rows: list[list[_Phase]] = []
    with jax.enable_x64(True):
        double = partial(with_reals_as, dtype=np.float64)
        pdm, base = double(model.pdm), double(result.start_params)
        last = max((k for k, window in enumerate(windows) if window), default=0)
        # On a canvas, as `fit` has it: one program for images of many sizes.
        canvas = on_canvas(np.asarray(image, np.float64), np.dtype(np.float64))
        grey = jnp.asarray(canvas)
        for scale, window in enumerate(windows):
            rows.append([_Phase(np.nan, np.nan, np.nan, 0)] * 2)
            if not ran[scale].any():
                continue
            if scale == last and result.pass_params is not None:
                base = double(result.pass_params)
            experts = double(model.experts[scale])
            phase_options = double(options.at_scale(experts.patch_scaling))
            ends = [
                double(jax.tree.map(itemgetter((scale, phase)), result.phase_params))
                for phase in (0, 1)
            ]
            for phase, end in enumerate(ends):
                slope, curved, metric, columns = _derivatives(
                    (pdm, experts, grey, base, end, options),
                    window,
                    options.sampling,
                    rigid=phase == 0,
                )
                bounds = phase_options.n_sigmas * jnp.sqrt(pdm.eigen_values)
                rows[-1][phase] = _newton(
                    slope, curved, metric, columns, end.params_local, bounds
                )
            base = ends[1]
    numbers = np.array(rows, np.float64)
    return Verification(
        newton_distance=numbers[..., 0],
        gradient_norm=numbers[..., 1],
        smallest_curvature=numbers[..., 2],
        num_active_bounds=numbers[..., 3].astype(np.int64),
        ran=ran,
        shape_tol=float(np.asarray(options.shape_tol)),
        status=Status(int(result.status)),
    )


@partial(jax.jit, static_argnames=("window", "sampling", "rigid"))
def _derivatives(
    problem: tuple[PDM, PatchExperts, Array, PDMParams, PDMParams, FitOptions],
    window: int,
    sampling: Sampling,
    rigid: bool,
) -> tuple[Array, Array, Array, Array]:
    """Gradient and negative Hessian of F, EM's metric, and the Jacobian."""
    pdm, experts, image, base, end, fit_options = problem
    responses = response_maps(pdm, experts, image, base, window, sampling=sampling)
    options = fit_options.at_scale(experts.patch_scaling, responses.img_from_ref)
    zero = jnp.zeros(NUM_RIGID + (0 if rigid else pdm.num_modes))

    def climbed(step: Array) -> Array:
        return jnp.sum(terms_of(pdm, responses, retract(end, step), options))

    columns = jax.jacfwd(lambda step: project(pdm, retract(end, step)))(zero)
    weights = weights_of(responses, options)
    metric = jnp.einsum("nad,n,nae->de", columns, weights, columns)
    if not rigid:
        prior = options.reg_factor / pdm.eigen_values
        metric = metric + jnp.diag(zero.at[NUM_RIGID:].set(prior))
    return jax.grad(climbed)(zero), -jax.hessian(climbed)(zero), metric, columns


def _newton(
    slope: AnyArray,
    curved: AnyArray,
    metric: AnyArray,
    columns: AnyArray,
    local: AnyArray,
    bounds: AnyArray,
) -> _Phase:
    """The Newton step of a phase, by elimination of the modes at their bounds."""
    slope, curved, metric, columns = map(np.asarray, (slope, curved, metric, columns))
    blocked = np.zeros(len(slope), bool)
    if len(slope) > NUM_RIGID:
        local, bounds = np.asarray(local), np.asarray(bounds)
        # The result may have been rounded to float32 at the bound.
        at_bound = np.abs(local) >= bounds * (1 - 1e-6)
        # Of a bound of 0 both sides are outwards.
        outwards = (local * slope[NUM_RIGID:] > 0) | (bounds <= 0)
        blocked[NUM_RIGID:] = at_bound & outwards
    free = ~blocked
    curved, metric = curved[np.ix_(free, free)], metric[np.ix_(free, free)]
    scaled = np.abs(slope[free]) / np.sqrt(np.diagonal(metric))
    smallest, distance = np.nan, np.inf
    if np.linalg.matrix_rank(metric, hermitian=True) == len(metric):
        smallest = np.linalg.eigvals(np.linalg.solve(metric, curved)).real.min()
    if smallest > 0:
        step = np.linalg.solve(curved, slope[free])
        distance = np.linalg.norm(columns[..., free] @ step, axis=-1).max()
    return _Phase(distance, scaled.max(), smallest, int(blocked.sum()))
