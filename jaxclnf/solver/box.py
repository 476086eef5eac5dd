"""The largest value of a concave quadratic inside a box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.linalg import solve_positive
from jaxclnf.pytree import all_finite

_MAX_ROUNDS = 10
"""Changes of the active set before the last solution is taken as it is."""


class _Round(NamedTuple):
    x: Float[Array, " d"]
    at_lower: Bool[Array, " d"]
    at_upper: Bool[Array, " d"]
    settled: Bool[Array, ""]
    num_rounds: Int[Array, ""]


def solve(
    matrix: Float[Array, "d d"], vector: Float[Array, " d"]
) -> Float[Array, " d"]:
    """Solves a symmetric positive definite system.

    The unknowns are scaled to a unit diagonal first: a pixel of translation and a
    radian differ by orders of magnitude, which float32 would pay for.

    Args:
        matrix: Symmetric positive definite.
        vector: Right-hand side.

    Returns:
        The solution; NaN if the matrix is not positive definite.

    Example:
        >>> x = solve(jnp.diag(jnp.asarray([2.0, 4.0])), jnp.ones(2))
        >>> bool(jnp.allclose(x, jnp.asarray([0.5, 0.25])))
        True
    """
    scale = 1 / jnp.sqrt(jnp.diagonal(matrix))
    scaled = matrix * scale[:, None] * scale[None, :]
    return scale * solve_positive(scaled, scale * vector)


def solve_free(
    matrix: Float[Array, "d d"],
    vector: Float[Array, " d"],
    fixed: Float[Array, " d"],
    free: Bool[Array, " d"],
) -> Float[Array, " d"]:
    """Solves for some of the unknowns where the others are known.

    Args:
        matrix: Symmetric positive definite.
        vector: Right-hand side; that of the known ones is not looked at.
        fixed: The known values, 0 where `free`.
        free: Which are unknown.

    Returns:
        The solution, with the known values in their places.

    Example:
        >>> matrix = jnp.asarray([[2.0, 1.0], [1.0, 2.0]])
        >>> known = jnp.asarray([0.0, 3.0]), jnp.asarray([True, False])
        >>> x = solve_free(matrix, jnp.asarray([5.0, 0.0]), *known)
        >>> bool(jnp.allclose(x, jnp.asarray([1.0, 3.0])))
        True
    """
    reduced = jnp.where(
        free[:, None] & free[None, :], matrix, jnp.diag(jnp.where(free, 0, 1))
    )
    pull = vector - jnp.matmul(matrix, fixed, precision="highest")
    return solve(reduced, jnp.where(free, pull, 0)) + fixed


@jax.custom_jvp
def maximise_in_box(
    matrix: Float[Array, "d d"],
    vector: Float[Array, " d"],
    lower: Float[Array, " d"] | None,
    upper: Float[Array, " d"] | None,
) -> Float[Array, " d"]:
    """The point of a box where `vector . x - x . matrix x / 2` is largest.

    A primal-dual active set method (Hintermueller, Ito, Kunisch 2002): fix the entries
    at bounds that push outwards, solve for the others, look again. Where no bound is
    active, that is one solve; a start that was already optimal stays where it is, which
    clipping the free solution would not achieve.

    Args:
        matrix: Symmetric positive definite.
        vector: The slope at zero.
        lower: Lower bounds, at most 0; -inf for none, or None where there are none.
        upper: Upper bounds, at least 0; likewise.

    Returns:
        The solution, inside the box; NaN, with derivatives of 0, if the matrix is not
        positive definite.

    Example:
        >>> box = jnp.asarray([0.0, 0.0]), jnp.asarray([jnp.inf, 1.0])
        >>> matrix = jnp.asarray([[2.0, 1.0], [1.0, 2.0]])
        >>> x = maximise_in_box(matrix, jnp.asarray([3.0, 9.0]), *box)
        >>> bool(jnp.allclose(x, jnp.asarray([1.0, 1.0])))
        True
    """
    if lower is None or upper is None:
        return solve(matrix, vector)

    def one_round(state: _Round) -> _Round:
        at_lower, at_upper = state.at_lower, state.at_upper
        free = ~(at_lower | at_upper)
        fixed = jnp.where(at_upper, upper, jnp.where(at_lower, lower, 0))
        x = solve_free(matrix, vector, fixed, free)
        push = vector - jnp.matmul(matrix, x, precision="highest")
        now_lower = jnp.where(free, x < lower, at_lower & (push < 0))
        now_upper = jnp.where(free, x > upper, at_upper & (push > 0))
        settled = jnp.all((now_lower == at_lower) & (now_upper == at_upper))
        return _Round(x, now_lower, now_upper, settled, state.num_rounds + 1)

    start = _Round(
        jnp.zeros_like(vector),
        (lower >= 0) & (vector < 0),
        (upper <= 0) & (vector > 0),
        jnp.zeros((), bool),
        jnp.zeros((), jnp.int32),
    )
    end = lax.while_loop(
        lambda s: ~s.settled & (s.num_rounds < _MAX_ROUNDS), one_round, start
    )
    return jnp.clip(end.x, lower, upper)


@maximise_in_box.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # That of the last solve: the active set does not change along a small move. A loop
    # could not be differentiated in reverse.
    matrix, _, lower, upper = primals
    d_matrix, d_vector, d_lower, d_upper = tangents
    x = maximise_in_box(*primals)
    # None where there is no solution: in a batch that would be NaN for all.
    solved = all_finite(x)
    matrix = jnp.where(solved, matrix, jnp.eye(x.shape[0], dtype=x.dtype))
    inner = jnp.where(solved, x, 0)
    if lower is None or upper is None:
        free, d_fixed = jnp.ones_like(x, bool), jnp.zeros_like(x)
    else:
        at_upper, free = x >= upper, (x > lower) & (x < upper)
        d_fixed = jnp.where(free, 0, jnp.where(at_upper, d_upper, d_lower))
    d_pull = d_vector - jnp.matmul(d_matrix, inner, precision="highest")
    return x, solve_free(matrix, d_pull, d_fixed, free)
