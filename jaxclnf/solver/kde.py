"""Kernel density estimate over a response map: its log, mean shift and covariance.

With the map `pi(u)` on the window's grid, a position `d` in it and a bandwidth `sigma`:

    density(d)    = sum_u pi(u) exp(-|d - u|^2 / (2 sigma^2))
    mean shift    = E[u] - d,   covariance = E[(u - E u)(u - E u)^T]

under the weights `pi(u) exp(...)`, normalised. The kernel is exact and taken at the
true position, inside the window or not; the largest exponent is taken out first, so
that nothing underflows far away. `sigma^2 * grad log density` is the mean shift.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.batching import in_turn_on_cpu


def kernel_weights(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, "n ww"], Float[Array, " n"]]:
    """The kernel-weighted maps, each scaled so that its largest kernel value is 1.

    Args:
        maps: Response maps, not negative, `[landmark, row, column]`.
        positions: Where each landmark is in its map, `(column, row)`, any real numbers.
        sigma: Kernel bandwidth, pixels of the map.

    Returns:
        Weights `pi(u) exp(k(u) - k_max)`, row by row, and `k_max`, the largest log
        kernel value among positive map entries (0 for a map without any).

    Example:
        >>> weights, _ = kernel_weights(
        ...     jnp.ones((1, 3, 3)), jnp.asarray([[1e3, 1.0]]), jnp.asarray(1.0)
        ... )
        >>> weights.reshape(3, 3)[1].tolist()  # the nearest pixel, however far
        [0.0, 0.0, 1.0]
    """
    n, w, _ = maps.shape
    grid = jnp.arange(w, dtype=maps.dtype)[None, :]
    scale = -0.5 / sigma**2
    across = scale * (grid - positions[:, :1]) ** 2
    down = scale * (grid - positions[:, 1:]) ** 2
    log_kernel = (down[:, :, None] + across[:, None, :]).reshape(n, w * w)
    maps = maps.reshape(n, w * w)
    positive = maps > 0
    largest = jnp.max(jnp.where(positive, log_kernel, -jnp.inf), axis=1)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    exponent = jnp.where(positive, log_kernel - largest[:, None], 0)
    return jnp.where(positive, maps * jnp.exp(exponent), 0), largest


def log_kde(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, "n 2"]]:
    """Log density and mean shift of each landmark.

    Args:
        maps: Response maps, not negative.
        positions: Where each landmark is in its map, `(column, row)`.
        sigma: Kernel bandwidth, pixels of the map.

    Returns:
        The log densities, -inf for a map of zeros, and the mean shifts `(x, y)` in
        pixels of the map, 0 there.

    Mirrors:
        CLNF::NonVectorisedMeanShift_precalc_kde, without its table, snapping, clamping.

    Example:
        >>> peak = jnp.zeros((1, 5, 5)).at[0, 1, 4].set(1.0)
        >>> _, shift = log_kde(peak, jnp.asarray([[2.0, 2.0]]), jnp.asarray(1.5))
        >>> shift.tolist()
        [[2.0, -1.0]]
    """
    log_density, shift, _ = _moments(maps, positions, sigma, False)
    return log_density, shift


def kde_moments(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, "n 2"], Float[Array, "n 2 2"]]:
    """Log density, mean shift and covariance of each landmark, all in one pass.

    The covariance is that of the position under the kernel-weighted map. It gives the
    curvature of the log density at hand:
    `hessian(log density) = (covariance / sigma^2 - I) / sigma^2`.

    Args:
        maps: Response maps, not negative.
        positions: Where each landmark is in its map, `(column, row)`.
        sigma: Kernel bandwidth, pixels of the map.

    Returns:
        The first two as `log_kde` has them; one covariance per landmark, pixels of the
        map squared, 0 for a map of zeros.

    Example:
        >>> flat = jnp.ones((1, 41, 41))
        >>> centre = jnp.asarray([[20.0, 20.0]])
        >>> _, shift, covariance = kde_moments(flat, centre, jnp.asarray(2.0))
        >>> bool(jnp.allclose(covariance[0], 4 * jnp.eye(2), atol=1e-3))
        True
    """
    log_density, shift, (cxx, cxy, cyy) = _moments(maps, positions, sigma, True)
    rows = [jnp.stack([cxx, cxy], axis=-1), jnp.stack([cxy, cyy], axis=-1)]
    return log_density, shift, jnp.stack(rows, axis=-2)


class _Moments(NamedTuple):
    log_density: Float[Array, " n"]
    shift: Float[Array, "n 2"]
    squares: tuple[Float[Array, " n"], ...]
    """Covariances xx, xy and yy, if asked for."""


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _moments(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
    second_order: bool,
) -> _Moments:
    """Row by row where that does, else pixel by pixel.

    On CPU the exponentials of all pixels, and sums along the fastest axis, took a third
    of a Newton step; at once on an accelerator they cost nothing.
    """

    def one_face(maps: Array, positions: Array, sigma: Array) -> _Moments:
        fast, is_exact = _by_rows(maps, positions, sigma, second_order)
        return lax.cond(
            is_exact,
            lambda: fast,
            lambda: _by_pixels(maps, positions, sigma, second_order),
        )

    at_once = partial(_by_pixels, second_order=second_order)
    return in_turn_on_cpu(one_face, at_once=at_once)(maps, positions, sigma)


@_moments.defjvp
def _derivatives(second_order: bool, primals: tuple, tangents: tuple) -> tuple:
    found = _moments(*primals, second_order)
    by_pixels = partial(_by_pixels, second_order=second_order)
    return found, jax.jvp(by_pixels, primals, tangents)[1]


def _by_rows(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
    second_order: bool,
) -> tuple[_Moments, Bool[Array, ""]]:
    """The moments, and whether they are exact to rounding.

    The kernel is the product of one along the columns and one along the rows, each 1 at
    the pixel next to the landmark. Where the map has no positive entry for many
    bandwidths around that pixel, all that is left underflows.
    """
    w = maps.shape[-1]
    nearest = jnp.clip(jnp.round(positions), 0, w - 1)
    off = nearest - positions
    steps = jnp.arange(w, dtype=maps.dtype)[None, None, :] - nearest[:, :, None]
    # |u - d|^2 less that of the nearest pixel: no digits are lost far away.
    scale = -0.5 / sigma**2
    kernel = jnp.exp(scale * steps * (steps + 2 * off[:, :, None]))
    maps = jnp.where(maps > 0, maps, 0)
    across, down = kernel[:, 0], kernel[:, 1]
    x, y = steps[:, 0], steps[:, 1]

    def sum_rows(factor: Array) -> Array:
        return jnp.sum(maps * factor[:, :, None], axis=1)

    def sum_columns(rows: Array, factor: Array) -> Array:
        return jnp.sum(rows * factor, axis=1)

    rows, rows_y = sum_rows(down), sum_rows(down * y)
    found = sum_columns(rows, across)
    empty = found == 0
    total = jnp.where(empty, 1, found)
    mean_x = sum_columns(rows, across * x) / total
    mean_y = sum_columns(rows_y, across) / total
    shift = jnp.stack([mean_x, mean_y], axis=-1) + off
    largest = scale * jnp.sum(off**2, axis=1)
    moments = _Moments(
        log_density=jnp.where(empty, -jnp.inf, jnp.log(total) + largest),
        shift=jnp.where(empty[:, None], 0, shift),
        squares=(),
    )
    if second_order:
        # Around the nearest pixel, to which a landmark is close: float32 keeps the
        # digits that squares around the window's centre would lose.
        xx = sum_columns(rows, across * x**2) / total - mean_x**2
        xy = sum_columns(rows_y, across * x) / total - mean_x * mean_y
        yy = sum_columns(sum_rows(down * y**2), across) / total - mean_y**2
        moments = moments._replace(squares=(xx, xy, yy))
    # What underflowed was less than the smallest number for each pixel.
    tiny, eps = jnp.finfo(maps.dtype).tiny, jnp.finfo(maps.dtype).eps
    peak = jnp.max(maps, axis=(1, 2))
    is_exact = jnp.all((found > w**2 * tiny / eps * peak) | (peak == 0))
    return moments, is_exact


def _by_pixels(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
    second_order: bool,
) -> _Moments:
    """The moments from a kernel value for each pixel."""
    weights, largest = kernel_weights(maps, positions, sigma)
    w = maps.shape[-1]
    centred = jnp.arange(w, dtype=maps.dtype) - (w - 1) / 2
    grid = jnp.stack(jnp.meshgrid(centred, centred), axis=-1).reshape(w * w, 2)
    total = jnp.sum(weights, axis=1)
    empty = total == 0
    share = weights / jnp.where(empty, 1, total)[:, None]
    mean = jnp.matmul(share, grid, precision="highest")
    log_density = jnp.where(
        empty, -jnp.inf, jnp.log(jnp.where(empty, 1, total)) + largest
    )
    shift = jnp.where(empty[:, None], 0, mean - (positions - (w - 1) / 2))
    squares = ()
    if second_order:
        # Squares around the mean, not the mean of squares: float32 would lose digits.
        off = grid[None, :, :] - mean[:, None, :]
        x, y = off[..., 0], off[..., 1]
        squares = tuple(jnp.sum(share * z, axis=1) for z in (x**2, x * y, y**2))
    return _Moments(log_density, shift, squares)


GRID_STEP = 0.1
"""Spacing of the positions at which OpenFace tabulates its kernel, pixels."""


def kernel_sums(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
) -> Float[Array, "n 3"]:
    """Sums of `map(u) k(u)`, of these times the column, and times the row.

    Args:
        maps: Response maps.
        positions: Where the kernel of each is centred, `(column, row)`.
        sigma: Kernel bandwidth, pixels of the map.

    Returns:
        Three sums for each landmark, the kernel 1 at its centre. Far from the window
        they underflow to 0.

    Example:
        >>> peak = jnp.zeros((1, 5, 5)).at[0, 1, 4].set(2.0)
        >>> kernel_sums(peak, jnp.asarray([[4.0, 1.0]]), jnp.asarray(1.5)).tolist()
        [[2.0, 8.0, 2.0]]
    """
    w = maps.shape[-1]
    grid = jnp.arange(w, dtype=maps.dtype)
    scale = -0.5 / sigma**2
    kernel = jnp.exp(scale * (grid[None, None, :] - positions[:, :, None]) ** 2)
    across, down = kernel[:, 0, :], kernel[:, 1, :]

    # As a product: JAX 0.12 leaves sums as large as these to a library on CPU, which
    # takes five times as long.
    def sum_columns(factor: Array) -> Array:
        return jnp.einsum("nij,nj->ni", maps, factor, precision="highest")

    rows, rows_x = sum_columns(across), sum_columns(across * grid[None, :])
    return jnp.stack(
        [
            jnp.sum(down * rows, axis=1),
            jnp.sum(down * rows_x, axis=1),
            jnp.sum(down * grid[None, :] * rows, axis=1),
        ],
        axis=-1,
    )


def grid_kde(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
    side: Int[Array, ""] | None = None,
) -> tuple[Float[Array, " n"], Float[Array, "n 2"]]:
    """Log density and mean shift as OpenFace takes them from its table.

    Positions are clamped to `[0, side - 0.1]`; the kernel is centred on the nearest of
    the positions 0, 0.1, 0.2, ..., but the shift is measured from the clamped one.

    Args:
        maps: Response maps, not negative.
        positions: Where each landmark is in its map, `(column, row)`.
        sigma: Kernel bandwidth, pixels of the map.
        side: Side of what was looked at; see `ResponseMaps`.

    Returns:
        The log densities of the kernel on the grid, -inf for a map of zeros or NaNs,
        and the mean shifts `(x, y)` in pixels of the map, 0 there.

    Mirrors:
        CLNF::NonVectorisedMeanShift_precalc_kde.

    Example:
        >>> peak = jnp.zeros((1, 5, 5)).at[0, 1, 4].set(1.0)
        >>> _, shift = grid_kde(peak, jnp.asarray([[7.0, 2.0]]), jnp.asarray(1.5))
        >>> shift.round(3).tolist()  # from (4.9, 2), the window's edge
        [[-0.9, -1.0]]
    """
    step = jnp.asarray(GRID_STEP, maps.dtype)
    end = jnp.asarray(maps.shape[-1] if side is None else side, maps.dtype)
    clamped = jnp.clip(positions, 0, end - step)
    cells = clamped / step
    # Not floor(cells + 0.5): the sum would round.
    whole = jnp.floor(cells)
    nearest = whole + (cells - whole >= 0.5).astype(maps.dtype)
    sums = kernel_sums(maps, nearest * step, sigma)
    empty = ~(sums[:, 0] > 0)  # a map of NaNs too
    total = jnp.where(empty, 1, sums[:, 0])
    shift = jnp.where(empty[:, None], 0, sums[:, 1:] / total[:, None] - clamped)
    return jnp.where(empty, -jnp.inf, jnp.log(total)), shift
