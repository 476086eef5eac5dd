"""The objective and its derivatives once more, from their definitions alone.

Nothing of `jaxclnf.solver` is used here, and no analytic derivative: F is written out,
its gradient, its curvature and the Jacobian come from automatic differentiation through
`retract`. That is slow, and it is the point: an error in the solver shows as a
disagreement.

For `openface` the mean shift is the one of its table, as described in
`jaxclnf.solver.kde.grid_kde`, and the gradient is what follows from it; F and the
curvature are those of the exact kernel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import NUM_RIGID, PDM, PDMParams, project, retract
from jaxclnf.solver.options import NURLMSOptions


@pytree_dataclass
class Truth:
    """What F is at some parameters. In a trace every array has a leading axis."""

    shape: Float[Array, "*b n 2"]
    """Landmarks, image pixels."""
    positions: Float[Array, "*b n 2"]
    """Where they lie in their maps, `(column, row)`."""
    mean_shifts: Float[Array, "*b n 2"]
    """Mean shifts in the image, pixels; 0 without evidence."""
    terms: Float[Array, "*b t"]
    """Summands of F: one per landmark, then one per mode; px^2."""
    gradient: Float[Array, "*b d"]
    """Gradient of F along `retract`."""
    metric: Float[Array, "*b d d"]
    """`J^T W J + r E^-1`, the metric of an EM step."""
    gradient_norm: Float[Array, "*b"]
    """`max_k |g_k| / sqrt(metric_kk)` over the directions free to move, pixels."""
    smallest_curvature: Float[Array, "*b"]
    """Smallest eigenvalue of `-grad^2 F` relative to the metric over those directions:
    1 where nothing but the prior acts, negative where F bends upwards. NaN where the
    metric is singular."""

    @property
    def objective(self) -> Float[Array, "*b"]:
        """F, px^2."""
        return jnp.sum(self.terms, axis=-1)


def weights_of(responses: ResponseMaps, options: NURLMSOptions) -> Float[Array, " n"]:
    """Weight of each landmark: 0 where it is invisible or its map has nothing in it.

    Args:
        responses: The maps.
        options: For the weight factor.

    Returns:
        1 or `weight_factor * confidence`, or 0.

    Example:
        >>> weights_of(responses, NURLMSOptions())[:2].tolist()
        [1.0, 1.0]
    """
    dtype = responses.maps.dtype
    factor = jnp.asarray(options.weight_factor, dtype)
    given = jnp.where(factor > 0, factor * responses.confidence, jnp.ones((), dtype))
    has_some = responses.visibility & jnp.any(responses.maps > 0, axis=(1, 2))
    return jnp.where(has_some, given, 0)


def positions_of(
    responses: ResponseMaps, shape: Float[Array, "n 2"]
) -> Float[Array, "n 2"]:
    """`A (x - x0) + (w - 1) / 2`: where landmarks lie in their maps.

    Args:
        responses: The maps.
        shape: Landmarks, image pixels.

    Returns:
        `(column, row)` of each.

    Example:
        >>> positions_of(responses, responses.base_shape)[0].tolist()
        [3.0, 3.0]
    """
    moved = jnp.einsum(
        "ab,nb->na",
        responses.ref_from_img,
        shape - responses.base_shape,
        precision="highest",
    )
    return moved + (responses.maps.shape[-1] - 1) / 2


def terms_of(
    pdm: PDM, responses: ResponseMaps, params: PDMParams, options: NURLMSOptions
) -> Float[Array, " t"]:
    """The summands of F with the exact kernel.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For bandwidth, weights and prior.

    Returns:
        One per landmark, one per mode, px^2.

    Example:
        >>> terms = jax.jit(terms_of)(pdm, responses, params, NURLMSOptions())
        >>> bool(jnp.isclose(terms.sum(), objective(pdm, responses, params,
        ...     NURLMSOptions())))
        True
    """
    maps, a = responses.maps, responses.ref_from_img
    sigma = jnp.asarray(options.sigma, maps.dtype)
    logs = _log_kernel_maps(
        maps, positions_of(responses, project(pdm, params)), 0.5 / sigma**2
    )
    # Without evidence a map counts as flat, so that no infinity meets a derivative.
    weights = weights_of(responses, options)
    used = weights > 0
    logs = jnp.where(used[:, None], logs, 0)
    unit = sigma**2 / (a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0])
    data = weights * unit * jax.nn.logsumexp(logs, axis=1)
    reg = jnp.asarray(options.reg_factor, maps.dtype)
    prior = -reg / 2 * params.params_local**2 / pdm.eigen_values
    return jnp.concatenate([jnp.where(used, data, 0), prior])


def truth_at(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Truth:
    """Everything about F at some parameters.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: The phase's options.
        rigid: Pose only, or pose and modes.

    Returns:
        The truth.

    Example:
        >>> truth = jax.jit(truth_at)(pdm, responses, params, NURLMSOptions())
        >>> slope = gradient(pdm, responses, params, NURLMSOptions())
        >>> bool(jnp.allclose(truth.gradient, slope, rtol=1e-6, atol=1e-6))
        True
    """
    size = NUM_RIGID if rigid else NUM_RIGID + pdm.num_modes
    zero = jnp.zeros(size, responses.maps.dtype)

    def climbed(step: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(terms_of(pdm, responses, retract(params, step), options))

    columns = jax.jacfwd(lambda step: project(pdm, retract(params, step)))(zero)
    weights = weights_of(responses, options)
    precision, pull = zero, zero
    if not rigid:
        reg = jnp.asarray(options.reg_factor, zero.dtype)
        precision = zero.at[NUM_RIGID:].set(reg / pdm.eigen_values)
        pull = zero.at[NUM_RIGID:].set(reg * params.params_local / pdm.eigen_values)
    metric = jnp.einsum(
        "nad,n,nae->de", columns, weights, columns, precision="highest"
    ) + jnp.diag(precision)
    shape = project(pdm, params)
    shifts = _mean_shifts(responses, shape, weights, options)
    if options.solver == "openface":
        slope = (
            jnp.einsum("nad,n,na->d", columns, weights, shifts, precision="highest")
            - pull
        )
    else:
        slope = jax.grad(climbed)(zero)
    free = _free(pdm, params, slope, options, rigid)
    diagonal = jnp.diagonal(metric)
    scaled = jnp.abs(slope) / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    return Truth(
        shape=shape,
        positions=positions_of(responses, shape),
        mean_shifts=shifts,
        terms=terms_of(pdm, responses, params, options),
        gradient=slope,
        metric=metric,
        gradient_norm=jnp.max(jnp.where(free, scaled, 0)),
        smallest_curvature=_smallest(-jax.hessian(climbed)(zero), metric, free),
    )


def _log_kernel_maps(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    factor: Float[Array, ""],
) -> Float[Array, "n ww"]:
    """`log(map(u) exp(-factor |d - u|^2))`, -inf where the map is not positive."""
    w = maps.shape[-1]
    grid = jnp.arange(w, dtype=maps.dtype)
    across = (grid[None, None, :] - positions[:, 0, None, None]) ** 2
    down = (grid[None, :, None] - positions[:, 1, None, None]) ** 2
    positive = maps > 0
    logs = jnp.log(jnp.where(positive, maps, 1)) - factor * (across + down)
    return jnp.where(positive, logs, -jnp.inf).reshape(maps.shape[0], w * w)


def _mean_shifts(
    responses: ResponseMaps,
    shape: Float[Array, "n 2"],
    weights: Float[Array, " n"],
    options: NURLMSOptions,
) -> Float[Array, "n 2"]:
    maps, positions = responses.maps, positions_of(responses, shape)
    centres = positions
    if options.solver == "openface":
        tenth = jnp.asarray(0.1, maps.dtype)
        positions = jnp.clip(positions, 0, maps.shape[-1] - tenth)
        centres = jnp.floor(positions / tenth + 0.5) * tenth
    sigma = jnp.asarray(options.sigma, maps.dtype)
    logs = _log_kernel_maps(maps, centres, 0.5 / sigma**2)
    share = jax.nn.softmax(jnp.where((weights > 0)[:, None], logs, 0), axis=1)
    share = share.reshape(maps.shape)
    grid = jnp.arange(maps.shape[-1], dtype=maps.dtype)
    column = jnp.sum(share * grid[None, None, :], axis=(1, 2))
    row = jnp.sum(share * grid[None, :, None], axis=(1, 2))
    shift = jnp.stack([column, row], axis=-1) - positions
    in_image = jnp.einsum(
        "ab,nb->na", responses.img_from_ref, shift, precision="highest"
    )
    return jnp.where((weights > 0)[:, None], in_image, 0)


def _free(
    pdm: PDM,
    params: PDMParams,
    slope: Float[Array, " d"],
    options: NURLMSOptions,
    rigid: bool,
) -> Array:
    """Directions that no bound blocks."""
    if rigid:
        return jnp.ones(NUM_RIGID, bool)
    bound = jnp.asarray(options.n_sigmas, pdm.eigen_values.dtype) * jnp.sqrt(
        pdm.eigen_values
    )
    at = jnp.abs(params.params_local) >= bound * (1 - 8 * jnp.finfo(bound.dtype).eps)
    outwards = slope[NUM_RIGID:] * params.params_local > 0
    # Of a bound of 0 both sides are outwards.
    blocked = at & (outwards | (bound <= 0))
    return jnp.concatenate([jnp.ones(NUM_RIGID, bool), ~blocked])


def _smallest(
    bend: Float[Array, "d d"], metric: Float[Array, "d d"], free: Array
) -> Float[Array, ""]:
    """Smallest eigenvalue of `bend x = l metric x` over the free directions."""
    diagonal = jnp.diagonal(metric)
    unit = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    both = free[:, None] & free[None, :]
    identity = jnp.eye(free.shape[0], dtype=metric.dtype)

    def reduced(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return jnp.where(both, matrix * unit[:, None] * unit[None, :], identity)

    lower = jnp.linalg.cholesky(reduced(metric))
    half = jax.scipy.linalg.solve_triangular(lower, reduced(bend), lower=True)
    whole = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True)
    finite = jnp.all(jnp.isfinite(whole))
    # A blocked direction counts as one where only the prior acts: eigenvalue 1.
    values = jnp.linalg.eigvalsh(jnp.where(finite, (whole + whole.T) / 2, identity))
    return jnp.where(finite, values[0], jnp.nan)
