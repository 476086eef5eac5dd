"""What `jax.vmap` does on CPU: in turn, and no LAPACK routine for a batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxclnf.batching import in_turn_on_cpu, map_batch
from jaxclnf.linalg import eigh, eigvalsh, solve_positive

rng = np.random.default_rng(0)
FACTORS = rng.normal(size=(2, 3, 5, 5))
MATRICES = jnp.asarray(FACTORS @ np.swapaxes(FACTORS, -1, -2) + 0.1 * np.eye(5))
VECTORS = jnp.asarray(rng.normal(size=(2, 3, 5)))


def both(function, depth: int):
    for _ in range(depth):
        function = jax.vmap(function)
    return jax.jit(function)


def test_solutions():
    expected = np.linalg.solve(MATRICES, np.asarray(VECTORS)[..., None])[..., 0]
    np.testing.assert_allclose(
        both(solve_positive, 2)(MATRICES, VECTORS), expected, rtol=1e-9
    )
    shared = jax.vmap(solve_positive, in_axes=(None, 0))(MATRICES[0, 0], VECTORS[0])
    np.testing.assert_allclose(shared[0], expected[0, 0], rtol=1e-9)
    assert np.isnan(solve_positive(-MATRICES[0, 0], VECTORS[0, 0])).all()


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_a_solution(derivative):
    matrix, vector = MATRICES[0, 0], VECTORS[0, 0]
    inverse = np.linalg.inv(matrix)
    by_vector = derivative(solve_positive, argnums=1)(matrix, vector)
    np.testing.assert_allclose(by_vector, inverse, rtol=1e-9)
    change = jnp.asarray(np.diag(np.arange(5.0)))
    along = derivative(lambda t: solve_positive(matrix + t * change, vector))(0.0)
    np.testing.assert_allclose(
        along, -inverse @ np.diag(np.arange(5.0)) @ inverse @ vector, rtol=1e-9
    )


def test_eigenvalues():
    expected = np.linalg.eigvalsh(MATRICES)
    values, vectors = both(eigh, 2)(MATRICES)
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    np.testing.assert_allclose(both(eigvalsh, 2)(MATRICES), expected, rtol=1e-9)
    again = np.einsum("...ij,...j,...kj->...ik", vectors, values, vectors)
    np.testing.assert_allclose(again, MATRICES, atol=1e-12)


@pytest.mark.parametrize("function", [solve_positive, eigh, eigvalsh])
@pytest.mark.parametrize("depth", [1, 2])
def test_no_lapack_routine_sees_a_batch(function, depth: int):
    args = (MATRICES, VECTORS) if function is solve_positive else (MATRICES,)
    args = args if depth == 2 else tuple(x[0] for x in args)
    text = both(function, depth).lower(*args).as_text()
    calls = re.findall(r"@(lapack_\w+)\(.*? : \((.*?)\) ->", text)
    assert calls
    for routine, operands in calls:
        matrix = operands.split(",")[0]
        assert re.match(r"tensor<(1x)?5x5x", matrix), (routine, operands)


def test_unbatched_arguments_stay_whole():
    seen = []

    def add(table, index):
        seen.append(table.shape)
        return table[index]

    table, index = jnp.arange(12.0).reshape(4, 3), jnp.asarray([3, 0])
    taken = jax.vmap(in_turn_on_cpu(add), in_axes=(None, 0))(table, index)
    np.testing.assert_array_equal(taken, table[index])
    assert set(seen) == {(4, 3)}
    alone = jax.vmap(lambda x: in_turn_on_cpu(add)(table, index[0]) + x)(table)
    np.testing.assert_array_equal(alone, table[3][None] + table)


def test_turns_have_their_own_way():
    def doubled(x, skip):
        del skip
        return 2 * x

    def unless_skipped(x, skip):
        return lax.cond(skip, jnp.zeros_like, lambda x: 2 * x, x)

    function = in_turn_on_cpu(doubled, turn=unless_skipped)
    x, skip = jnp.arange(1.0, 7).reshape(2, 3), jnp.asarray([[True, False, True]] * 2)
    twice = jax.vmap(jax.vmap(function))
    np.testing.assert_array_equal(twice(x, skip), jnp.where(skip, 0, 2 * x))
    np.testing.assert_array_equal(function(x[0, 0], skip[0, 0]), 2)
    assert "cond" not in str(jax.make_jaxpr(function)(x[0, 0], skip[0, 0]))
    traced = jax.jit(twice).trace(x, skip)
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.select" not in cuda  # nothing done for both and thrown away
    slope = jax.jacfwd(lambda x: twice(x, skip).sum(axis=1))(x)
    np.testing.assert_array_equal(slope.sum(axis=0), jnp.where(skip, 0, 2))


def test_in_turn_is_a_loop_on_cpu_alone():
    run = jax.jit(jax.vmap(in_turn_on_cpu(jnp.sin)))
    x = jnp.linspace(0, 1, 7)
    np.testing.assert_allclose(run(x), jnp.sin(x), rtol=1e-12)
    traced = run.trace(x)
    texts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    assert "while" in texts["cpu"] and "while" not in texts["cuda"]
    np.testing.assert_allclose(map_batch(jnp.sin, x), jnp.sin(x), rtol=1e-12)


def test_forward_derivatives_pass_through():
    slope = jax.jacfwd(lambda x: jax.vmap(in_turn_on_cpu(jnp.sin))(x))(jnp.zeros(3))
    np.testing.assert_allclose(slope, np.eye(3))


def test_what_is_done_at_once_may_be_something_else():
    """On CPU nothing is; the program for another backend has it."""
    changed = in_turn_on_cpu(lambda x: x + 1, at_once=lambda x: x + 1000)
    rows = jnp.arange(3.0)
    np.testing.assert_array_equal(changed(rows), rows + 1)
    np.testing.assert_array_equal(jax.vmap(changed)(rows), rows + 1)
    lowered = jax.jit(jax.vmap(changed)).trace(rows).lower(lowering_platforms=("cuda",))
    assert "1.000000e+03" in lowered.as_text()
