"""Small symmetric matrices: a system's solution, eigenvalues; safe in batches on CPU.

See `jaxclnf.batching` for what is not safe there.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float

from jaxclnf.batching import in_turn_on_cpu


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


@in_turn_on_cpu
def eigh(matrix: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, smallest first, and eigenvectors of a symmetric matrix.

    Args:
        matrix: Symmetric.

    Returns:
        The eigenvalues, and their eigenvectors in columns. Without derivatives in
        reverse mode.

    Example:
        >>> eigh(jnp.diag(jnp.asarray([2.0, 1.0])))[0].tolist()
        [1.0, 2.0]
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@in_turn_on_cpu
def eigvalsh(matrix: Float[Array, "d d"]) -> Float[Array, " d"]:
    """Eigenvalues of a symmetric matrix, smallest first; see `eigh`.

    Args:
        matrix: Symmetric.

    Returns:
        The eigenvalues.

    Example:
        >>> eigvalsh(jnp.diag(jnp.asarray([2.0, 1.0]))).tolist()
        [1.0, 2.0]
    """
    return jnp.linalg.eigvalsh(matrix)
