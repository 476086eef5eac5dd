"""Kernel density estimate over a response map: its log, mean shift and covariance.

With the map `pi(u)` on the window's grid, a position `d` in it and a bandwidth `sigma`:

    density(d)    = sum_u pi(u) exp(-|d - u|^2 / (2 sigma^2))
    mean shift    = E[u] - d,   covariance = E[(u - E u)(u - E u)^T]

under the weights `pi(u) exp(...)`, normalised. The kernel is exact and taken at the
true position, inside the window or not; the largest exponent is taken out first, so
that nothing underflows far away. `sigma^2 * grad log density` is the mean shift.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


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


def _grid_features(w: int, dtype: jnp.dtype) -> Float[Array, "ww 3"]:
    centred = jnp.arange(w, dtype=dtype) - (w - 1) / 2
    u = jnp.broadcast_to(centred[None, :], (w, w))
    return jnp.stack([jnp.ones((w, w), dtype), u, u.T], axis=-1).reshape(w * w, 3)


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
    weights, largest = kernel_weights(maps, positions, sigma)
    w = maps.shape[-1]
    sums = jnp.matmul(weights, _grid_features(w, maps.dtype), precision="highest")
    empty = sums[:, 0] == 0
    total = jnp.where(empty, 1, sums[:, 0])
    log_density = jnp.where(empty, -jnp.inf, jnp.log(total) + largest)
    mean = sums[:, 1:] / total[:, None]
    shift = jnp.where(empty[:, None], 0, mean - (positions - (w - 1) / 2))
    return log_density, shift


def kde_covariance(
    maps: Float[Array, "n w w"],
    positions: Float[Array, "n 2"],
    sigma: Float[Array, ""],
) -> Float[Array, "n 2 2"]:
    """Covariance of the position under the kernel-weighted map.

    It gives the curvature of the log density at hand:
    `hessian(log density) = (covariance / sigma^2 - I) / sigma^2`.

    Args:
        maps: Response maps, not negative.
        positions: Where each landmark is in its map, `(column, row)`.
        sigma: Kernel bandwidth, pixels of the map.

    Returns:
        One matrix per landmark, pixels of the map squared; 0 for a map of zeros.

    Example:
        >>> flat = jnp.ones((1, 41, 41))
        >>> centre = jnp.asarray([[20.0, 20.0]])
        >>> covariance = kde_covariance(flat, centre, jnp.asarray(2.0))
        >>> bool(jnp.allclose(covariance[0], 4 * jnp.eye(2), atol=1e-3))
        True
    """
    weights, _ = kernel_weights(maps, positions, sigma)
    features = _grid_features(maps.shape[-1], maps.dtype)
    total = jnp.sum(weights, axis=1)
    share = weights / jnp.where(total == 0, 1, total)[:, None]
    mean = jnp.matmul(share, features[:, 1:], precision="highest")
    centred = features[None, :, 1:] - mean[:, None, :]
    return jnp.einsum("np,npa,npb->nab", share, centred, centred, precision="highest")
