"""What `jax.vmap` does on CPU: in turn, and no LAPACK routine for a batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax import lax

from jaxclnf.batching import in_turn_on_cpu, map_batch
from jaxclnf.linalg import inverse_positive, smallest_eigenvalue, solve_positive

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


def test_inverses():
    inverse = both(inverse_positive, 2)(MATRICES)
    np.testing.assert_allclose(inverse, np.linalg.inv(MATRICES), rtol=1e-7)
    singular, unknown = jnp.diag(jnp.asarray([1.0, 0.0])), jnp.full((2, 2), jnp.nan)
    for bad in (-MATRICES[0, 0], singular, unknown):
        assert np.isnan(inverse_positive(bad)).all()


def test_smallest_eigenvalues():
    metrics = MATRICES[:, ::-1]
    # The last one is indefinite.
    matrices = MATRICES.at[1, 2].add(-2 * metrics[1, 2])
    found, inverse = both(smallest_eigenvalue, 2)(matrices, metrics)
    for index in np.ndindex(2, 3):
        pair = matrices[index], metrics[index]
        every = scipy.linalg.eigh(*pair, eigvals_only=True)
        np.testing.assert_allclose(found[index], every[0], rtol=1e-9)
        alone, _ = jax.jit(smallest_eigenvalue)(*pair)
        np.testing.assert_allclose(found[index], alone, rtol=1e-9)
    assert found[1, 2] < 0
    assert (np.isnan(inverse).all(axis=(-2, -1)) == (found < 0)).all()
    np.testing.assert_allclose(inverse[0, 0], np.linalg.inv(matrices[0, 0]), rtol=1e-7)


@pytest.mark.parametrize("dtype, rounding", [(np.float64, 1e-9), (np.float32, 2e-5)])
@pytest.mark.parametrize("apart", [0.0, 1e-4, 2e-3, 4e-3, 0.02, 0.5])
def test_close_eigenvalues(apart: float, dtype, rounding: float):
    draw = np.random.default_rng(1)
    turn = np.linalg.qr(draw.normal(size=(40, 40)))[0]
    values = np.concatenate([[0.03, 0.03 * (1 + apart)], np.linspace(0.1, 1, 38)])
    matrix = turn @ np.diag(values) @ turn.T
    found, _ = smallest_eigenvalue(jnp.asarray(matrix, dtype), jnp.eye(40, dtype=dtype))
    assert found.dtype == dtype
    assert -rounding <= found / 0.03 - 1 <= 7.2e-4 + rounding


@pytest.mark.parametrize("function", [solve_positive, smallest_eigenvalue])
@pytest.mark.parametrize("depth", [1, 2])
def test_no_lapack_routine_sees_a_batch(function, depth: int):
    args = MATRICES, VECTORS if function is solve_positive else MATRICES
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
