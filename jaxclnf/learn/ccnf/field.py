"""The conditional neural field of one landmark as a Gaussian, and its likelihood.

    h_k(u) = sigmoid(theta_k . patch(u) + b_k)      response of neuron k at pixel u
    Lambda = 2 (sum_k a_k I + sum_j beta_j S_j)     precision of the response map
    mu     = Lambda^-1 2 sum_k a_k h_k              its mean
    y      ~ N(mu, Lambda^-1)                       what the map should be

That is the CCNF of Baltrusaitis, Robinson and Morency 2013 (equations 1 to 9), with its
potentials written as one quadratic form. `a` and `beta` are kept positive by
learning their logarithms, so `Lambda` is always positive definite.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.lib.stride_tricks import sliding_window_view

from jaxclnf.experts.windows import inverse_norms
from jaxclnf.pytree import pytree_dataclass


@pytree_dataclass
class FieldParams:
    """What is learnt of each landmark's field; all numbers are free."""

    filters: Float[Array, "n k p p"]
    """Filter of each neuron with its gain, `theta`."""
    bias: Float[Array, "n k"]
    """Offset of each neuron."""
    log_alpha: Float[Array, "n k"]
    """Logarithm of each neuron's weight."""
    log_beta: Float[Array, "n c"]
    """Logarithm of each neighbour matrix's weight."""


def precision_matrices(
    params: FieldParams, neighbours: Float[Array, "c ww ww"]
) -> Float[Array, "n ww ww"]:
    """The precision of each landmark's response map.

    Args:
        params: The fields.
        neighbours: Neighbour matrices of the window.

    Returns:
        `2 (sum_k alpha_k I + sum_j beta_j S_j)`.

    Example:
        >>> fields = FieldParams(filters=jnp.ones((1, 2, 3, 3)),
        ...     bias=jnp.zeros((1, 2)), log_alpha=jnp.zeros((1, 2)),
        ...     log_beta=jnp.zeros((1, 1)))
        >>> precision_matrices(fields, jnp.eye(4)[None])[0, 0].tolist()
        [6.0, 0.0, 0.0, 0.0]
    """
    alpha = jnp.exp(params.log_alpha).sum(axis=1)
    identity = jnp.eye(neighbours.shape[-1], dtype=alpha.dtype)
    coupling = jnp.einsum(
        "nc,cij->nij", jnp.exp(params.log_beta), neighbours, precision="highest"
    )
    return 2 * (alpha[:, None, None] * identity[None] + coupling)


def evidence_sums(
    params: FieldParams, areas: Float[Array, "f n a a"]
) -> Float[Array, "f n ww"]:
    """What the neurons say before the neighbours couple it: `2 sum_k a_k h_k`.

    Args:
        params: The fields.
        areas: Area of interest of each face and landmark.

    Returns:
        One row per face and landmark, the window's pixels row by row.

    Example:
        >>> fields = FieldParams(filters=jnp.ones((1, 2, 3, 3)),
        ...     bias=jnp.zeros((1, 2)), log_alpha=jnp.zeros((1, 2)),
        ...     log_beta=jnp.zeros((1, 1)))
        >>> evidence_sums(fields, jnp.ones((5, 1, 4, 4)))[0, 0].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    f, n, a, _ = areas.shape
    side = params.filters.shape[-1]
    regions, scale = _support_regions(areas, side)
    filters = params.filters - params.filters.mean(axis=(2, 3), keepdims=True)
    linear = jnp.einsum(
        "nkp,nmp->nkm", filters.reshape(n, -1, side**2), regions, precision="highest"
    )
    neurons = jax.nn.sigmoid(linear * scale[:, None] + params.bias[:, :, None])
    sums = 2 * jnp.sum(jnp.exp(params.log_alpha)[:, :, None] * neurons, axis=1)
    return jnp.moveaxis(sums.reshape(n, f, (a - side + 1) ** 2), 1, 0)


def _support_regions(
    areas: Float[Array, "f n a a"], side: int
) -> tuple[Float[Array, "n fww pp"], Float[Array, "n fww"]]:
    """Every support region of every face, and what makes it unit-norm.

    For one face `normalised_correlation` is faster; here a landmark's filters meet the
    regions of a whole batch in one large product, which costs a third, most of all for
    the gradient.
    """
    f, n, a, _ = areas.shape
    window = a - side + 1
    pixels = np.arange(a * a).reshape(a, a)
    index = sliding_window_view(pixels, (side, side)).reshape(window**2, side**2)
    areas = jnp.moveaxis(areas, 1, 0)
    scale = inverse_norms(areas.reshape(n * f, a, a), side)
    regions = areas.reshape(n, f, a * a)[:, :, index]
    return (
        regions.reshape(n, f * window**2, side**2),
        scale.reshape(n, f * window**2),
    )


def field_means(
    params: FieldParams,
    areas: Float[Array, "f n a a"],
    neighbours: Float[Array, "c ww ww"],
) -> Float[Array, "f n ww"]:
    """The expected response maps.

    Args:
        params: The fields.
        areas: Area of interest of each face and landmark.
        neighbours: Neighbour matrices of the window.

    Returns:
        `mu`, one row per face and landmark; what `response_maps` gives before a
        negative minimum is taken away.

    Example:
        >>> fields = FieldParams(filters=jnp.ones((1, 2, 3, 3)),
        ...     bias=jnp.zeros((1, 2)), log_alpha=jnp.zeros((1, 2)),
        ...     log_beta=jnp.full((1, 1), -jnp.inf))
        >>> field_means(fields, jnp.ones((5, 1, 4, 4)), jnp.eye(4)[None])[0, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    sigma, _ = _inverse(precision_matrices(params, neighbours))
    return _times(sigma, evidence_sums(params, areas))


def log_likelihood(
    params: FieldParams,
    areas: Float[Array, "f n a a"],
    targets: Float[Array, "f n ww"],
    neighbours: Float[Array, "c ww ww"],
) -> Float[Array, "f n"]:
    """Exact logarithm of the probability of response maps, per pixel.

    Args:
        params: The fields.
        areas: Area of interest of each face and landmark.
        targets: What the maps should be.
        neighbours: Neighbour matrices of the window.

    Returns:
        `log N(y; mu, Lambda^-1) / w^2` of each face and landmark.

    Example:
        >>> fields = FieldParams(filters=jnp.ones((1, 2, 3, 3)),
        ...     bias=jnp.zeros((1, 2)), log_alpha=jnp.zeros((1, 2)),
        ...     log_beta=jnp.full((1, 1), -jnp.inf))  # variance 1/4 around 1/2
        >>> logs = log_likelihood(fields, jnp.ones((1, 1, 4, 4)),
        ...     jnp.full((1, 1, 4), 0.5), jnp.eye(4)[None])
        >>> bool(jnp.isclose(logs[0, 0], 0.5 * np.log(4 / (2 * np.pi))))
        True
    """
    precision = precision_matrices(params, neighbours)
    sigma, half_log_det = _inverse(precision)
    error = targets - _times(sigma, evidence_sums(params, areas))
    squared = jnp.sum(error * _times(precision, error), axis=-1)
    pixels = targets.shape[-1]
    return (half_log_det[None] - squared / 2) / pixels - 0.5 * jnp.log(2 * jnp.pi)


@jax.custom_vjp
def _inverse(
    precision: Float[Array, "n ww ww"],
) -> tuple[Float[Array, "n ww ww"], Float[Array, " n"]]:
    """Sigma, and half the logarithm of the precision's determinant.

    Sigma comes by Newton's iteration (Schulz 1933), matrix products alone: XLA's CPU
    runtime (0.10.1, two threads) can deadlock when large batches of LAPACK's
    triangular solves run beside products. For the gradient the determinant is not
    needed, and its factorisation is then removed as dead code.
    """
    identity = jnp.eye(precision.shape[-1], dtype=precision.dtype)
    upper = jnp.max(jnp.sum(jnp.abs(precision), axis=2), axis=1)
    rounding = 8 * precision.shape[-1] * jnp.finfo(precision.dtype).eps

    def residual(sigma: Array) -> Array:
        return identity[None] - jnp.matmul(sigma, precision, precision="highest")

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        sigma, rest, rounds = state
        sigma = sigma + jnp.matmul(rest, sigma, precision="highest")
        return sigma, residual(sigma), rounds + 1

    start = identity[None] / upper[:, None, None]
    # Each round squares the residual: 20 are enough for condition numbers up to 5e4.
    sigma, _, _ = jax.lax.while_loop(
        # Of a landmark gone to NaN nothing compares, and the others go on.
        lambda s: jnp.any(jnp.abs(s[1]) > rounding) & (s[2] < 20),
        improve,
        (start, residual(start), jnp.zeros((), jnp.int32)),
    )
    factor = jnp.linalg.cholesky(precision)
    return sigma, jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)


def _inverse_forward(precision: Array) -> tuple[tuple[Array, Array], Array]:
    sigma, half_log_det = _inverse(precision)
    return (sigma, half_log_det), sigma


def _inverse_backward(sigma: Array, cotangents: tuple[Array, Array]) -> tuple[Array]:
    sigma_bar, half_log_det_bar = cotangents
    inner = jnp.matmul(sigma, sigma_bar, precision="highest")
    turned = jnp.matmul(inner, sigma, precision="highest")
    return (0.5 * half_log_det_bar[:, None, None] * sigma - turned,)


_inverse.defvjp(_inverse_forward, _inverse_backward)


def _times(
    matrices: Float[Array, "n ww ww"], vectors: Float[Array, "f n ww"]
) -> Float[Array, "f n ww"]:
    return jnp.einsum("nij,fnj->fni", matrices, vectors, precision="highest")
