"""Small symmetric matrices: a system's solution, eigenvalues; safe in batches on CPU.

See `jaxclnf.batching` for what is not safe there.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float

from jaxclnf.batching import in_turn_on_cpu

_SQUARINGS = 8
"""How often the inverse is multiplied by itself for its largest eigenvalue: two that
lie close together make the result too large by .07 % of the smaller one at most."""


def solve_positive(
    matrix: Float[Array, "d d"], vector: Float[Array, " d"]
) -> Float[Array, " d"]:
    """Solves a symmetric positive definite system.

    Args:
        matrix: Symmetric positive definite.
        vector: Right-hand side.

    Returns:
        The solution; NaN if the matrix is not positive definite.

    Example:
        >>> solve_positive(jnp.diag(jnp.asarray([1.0, 4.0])), jnp.ones(2)).tolist()
        [1.0, 0.25]
    """
    # What knows the derivatives is outside: `in_turn_on_cpu` has none in reverse mode.
    return lax.custom_linear_solve(
        lambda x: jnp.matmul(matrix, x[:, None], precision="highest")[:, 0],
        vector,
        lambda _, b: _cholesky_solve(matrix, b),
        symmetric=True,
    )


@in_turn_on_cpu
def _cholesky_solve(
    matrix: Float[Array, "d d"], vector: Float[Array, " d"]
) -> Float[Array, " d"]:
    return cho_solve(cho_factor(matrix, lower=True), vector)


def inverse_positive(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, "d d"], Bool[Array, ""]]:
    """Inverts a symmetric positive definite matrix (Gauss and Jordan's sweeps).

    Args:
        matrix: Symmetric, best with a diagonal of ones: no pivots are chosen.

    Returns:
        The inverse, and whether the matrix is positive definite; without that the
        inverse means nothing.

    Example:
        >>> inverse, good = inverse_positive(jnp.asarray([[2.0, 1.0], [1.0, 1.0]]))
        >>> inverse.tolist(), bool(good)
        ([[1.0, -1.0], [-1.0, 2.0]], True)
    """
    index = jnp.arange(matrix.shape[0], dtype=jnp.int32)

    def sweep(k: Array, so_far: Any) -> tuple[Array, Array]:
        a, good = so_far
        pivot, column = a[k, k], a[:, k]
        row = a[k] / pivot
        here = index == k
        swept = a - column[:, None] * row[None, :]
        swept = jnp.where(here[:, None], row[None, :], swept)
        new_column = jnp.where(here, 1, -column) / pivot
        return jnp.where(here[None, :], new_column[:, None], swept), good & (pivot > 0)

    start = matrix, jnp.ones((), bool)
    return lax.fori_loop(0, matrix.shape[0], sweep, start)


@in_turn_on_cpu
def smallest_eigenvalue(
    matrix: Float[Array, "d d"], metric: Float[Array, "d d"]
) -> Float[Array, ""]:
    """The smallest `x . matrix x / x . metric x`.

    Of a positive definite matrix by powers of its inverse, in a quarter of the time
    that LAPACK takes for all eigenvalues on CPU; of others by these.

    Args:
        matrix: Symmetric.
        metric: Symmetric positive definite; both best with diagonals near one.

    Returns:
        The value, at most .07 % too large; its sign is certain but for rounding.
        Without derivatives in reverse mode.

    Example:
        >>> matrix, metric = jnp.diag(jnp.asarray([1.0, 6.0])), jnp.eye(2) * 2
        >>> round(float(smallest_eigenvalue(matrix, metric)), 4)
        0.5
    """
    inverse, positive = inverse_positive(matrix)
    return lax.cond(
        positive,
        lambda: _by_powers(inverse, matrix, metric),
        lambda: _by_eigenvalues(matrix, metric),
    )


def _by_powers(inverse: Array, matrix: Array, metric: Array) -> Array:
    power = jnp.matmul(inverse, metric, precision="highest")
    for _ in range(_SQUARINGS):
        power = power / jnp.max(jnp.abs(power))
        power = jnp.matmul(power, power, precision="highest")
    # All columns point along the eigenvector by now, the longest one best.
    longest = jnp.argmax(jnp.max(jnp.abs(power), axis=0))
    vector = power[:, longest] / jnp.max(jnp.abs(power))
    return _form(matrix, vector) / _form(metric, vector)


def _form(matrix: Array, x: Array) -> Array:
    return jnp.sum(x * jnp.matmul(matrix, x[:, None], precision="highest")[:, 0])


def _by_eigenvalues(matrix: Array, metric: Array) -> Array:
    # Not by a Cholesky factor of the metric: on CPU a triangular solve of this size
    # goes to several threads, whose meeting takes 2 ms.
    values, vectors = jnp.linalg.eigh(metric)
    half = vectors / jnp.sqrt(values)[None, :]
    relative = jnp.matmul(
        half.T, jnp.matmul(matrix, half, precision="highest"), precision="highest"
    )
    return jnp.linalg.eigvalsh(0.5 * (relative + relative.T))[0]
