"""Small symmetric matrices: a system's solution, eigenvalues; safe in batches on CPU.

See `jaxclnf.batching` for what is not safe there.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from jaxclnf.batching import in_turn_on_cpu

_SQUARINGS = 8
"""How often the inverse is multiplied by itself for its largest eigenvalue: two that
lie close together make the result too large by .07 % of the smaller one at most."""
_BETWEEN = 3
"""Squarings from one division by the trace to the next: eigenvalues that add up to 1
are then still far from float32's smallest numbers."""


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


def inverse_positive(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Inverts a symmetric positive definite matrix (Gauss and Jordan's sweeps).

    Args:
        matrix: Symmetric, best with a diagonal of ones: no pivots are chosen.

    Returns:
        The inverse; NaN if the matrix is not positive definite.

    Example:
        >>> inverse_positive(jnp.asarray([[2.0, 1.0], [1.0, 1.0]])).tolist()
        [[1.0, -1.0], [-1.0, 2.0]]
    """
    index = jnp.arange(matrix.shape[0], dtype=jnp.int32)

    def sweep(k: Array, a: Array) -> Array:
        pivot, column = a[k, k], a[:, k]
        # NaN goes from a pivot into every entry.
        pivot = jnp.where(pivot > 0, pivot, jnp.nan)
        row = a[k] / pivot
        here = index == k
        swept = a - column[:, None] * row[None, :]
        swept = jnp.where(here[:, None], row[None, :], swept)
        new_column = jnp.where(here, 1, -column) / pivot
        return jnp.where(here[None, :], new_column[:, None], swept)

    return lax.fori_loop(0, matrix.shape[0], sweep, matrix)


@in_turn_on_cpu
def smallest_eigenvalue(
    matrix: Float[Array, "d d"], metric: Float[Array, "d d"]
) -> tuple[Float[Array, ""], Float[Array, "d d"]]:
    """The smallest `x . matrix x / x . metric x`, and the inverse that it comes from.

    Of a positive definite matrix by powers of its inverse, in a quarter of the time
    that LAPACK takes for all eigenvalues on CPU; of others by these.

    Args:
        matrix: Symmetric.
        metric: Symmetric positive definite; both best with diagonals near one.

    Returns:
        The value, at most .07 % too large; its sign is certain but for rounding. And
        the inverse of `matrix`, NaN where that is not positive definite. Without
        derivatives in reverse mode.

    Example:
        >>> matrix, metric = jnp.diag(jnp.asarray([1.0, 8.0])), jnp.eye(2) * 2
        >>> smallest, inverse = smallest_eigenvalue(matrix, metric)
        >>> round(float(smallest), 4), jnp.diagonal(inverse).tolist()
        (0.5, [1.0, 0.125])
    """
    inverse = inverse_positive(matrix)
    smallest = lax.cond(
        jnp.isfinite(inverse[0, 0]),
        lambda: _by_powers(inverse, matrix, metric),
        lambda: _by_eigenvalues(matrix, metric),
    )
    return smallest, inverse


def _by_powers(inverse: Array, matrix: Array, metric: Array) -> Array:
    power = jnp.matmul(inverse, metric, precision="highest")
    for k in range(_SQUARINGS):
        if k % _BETWEEN == 0:
            power = power / jnp.trace(power)
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
