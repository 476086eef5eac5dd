"""Two ways of doing a thing, of which the one that is not lowered is not traced."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxclnf.by_platform import by_platform
from tests.plugin import QUICKLY

X = jnp.linspace(0.5, 2.0, 6).reshape(3, 2)


def both(x, count):
    """Ways with different results, so that it is seen which one ran."""
    return by_platform(
        x,
        {"count": count},
        cpu=lambda x, d: (jnp.sin(x) * d["count"], d["count"] + 1),
        default=lambda x, d: (jnp.cos(x) * d["count"], d["count"] + 1),
    )


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_runs_the_way_of_this_platform(wrap):
    found, count = wrap(both)(X, jnp.asarray(2))
    np.testing.assert_allclose(found, 2 * jnp.sin(X), rtol=1e-12)
    assert int(count) == 3


def test_other_way_is_traced_only_where_it_is_lowered():
    traces = []

    def elsewhere(x):
        traces.append(x.shape)
        return 2 * x

    run = jax.jit(lambda x: by_platform(x, cpu=lambda x: x + x, default=elsewhere))
    traced = jax.jit(jax.vmap(run)).trace(X)
    assert "stablehlo.multiply" not in traced.lower().as_text()
    assert not traces
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert traces == [(2,)] and "stablehlo.multiply" in cuda
    several = traced.lower(lowering_platforms=("cpu", "cuda", "tpu")).as_text()
    assert "stablehlo.multiply" in several and "stablehlo.add" in several


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (0, 0)])
def test_vmap(axes: tuple):
    count = jnp.asarray(2.0) if axes[1] is None else jnp.asarray([1.0, 2.0, 3.0])
    x = X if axes[0] is not None else X[0]
    found = jax.vmap(both, in_axes=axes)(x, count)
    expected = jax.vmap(lambda x, c: (jnp.sin(x) * c, c + 1), in_axes=axes)(x, count)
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_derivatives_in_both_modes():
    def ours(x, count):
        return both(x, count)[0].sum()

    count = jnp.asarray(2)
    for way in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.jit(f))):
        np.testing.assert_allclose(way(ours)(X, count), 2 * jnp.cos(X), rtol=1e-12)
    curved = jax.hessian(ours)(X[0], count)
    np.testing.assert_allclose(curved, -2 * jnp.diag(jnp.sin(X[0])), rtol=1e-12)
    rows = jax.vmap(jax.grad(ours), in_axes=(0, None))(X, count)
    np.testing.assert_allclose(rows, 2 * jnp.cos(X), rtol=1e-12)


def test_within_loops_and_conditions():
    def step(x, _):
        x = lax.cond(x.sum() > 0, lambda x: both(x, jnp.asarray(1))[0], lambda x: x, x)
        return x, x.sum()

    last, sums = jax.jit(lambda x: lax.scan(step, x, length=3))(X)
    np.testing.assert_allclose(last, jnp.sin(jnp.sin(jnp.sin(X))), rtol=1e-12)
    assert sums.shape == (3,)


def test_what_is_traced_must_be_an_argument():
    def hidden(x):
        return by_platform(X, cpu=lambda y: y + x, default=lambda y: y - x)

    with pytest.raises(ValueError, match="expected all that is traced among the arg"):
        jax.jit(hidden)(1.0)


def test_ways_have_results_of_the_same_shapes():
    traced = jax.jit(lambda x: by_platform(x, cpu=jnp.sin, default=jnp.sum)).trace(X)
    traced.lower()
    message = r"found results float64\[\] of `default`; .* `cpu`, float64\[3, 2\]"
    with pytest.raises(ValueError, match=message):
        traced.lower(lowering_platforms=("cuda",))


def test_it_works_where_jit_is_disabled():
    double = lambda x: by_platform(x, cpu=lambda x: 2 * x, default=lambda x: x + x)
    with jax.disable_jit():
        assert double(jnp.ones(2)).tolist() == [2.0, 2.0]
        assert jax.vmap(double)(jnp.ones((3, 2))).shape == (3, 2)


WITHOUT_JIT = """
import jax
import jax.numpy as jnp
import numpy as np
from jaxclnf import response_maps
from tests.synthetic import example

names = example(np.float32)
args = names["pdm"], names["model"].experts[0], jnp.asarray(names["image"])
expected = response_maps(*args, names["params"], 7).maps
with jax.disable_jit():
    found = response_maps(*args, names["params"], 7).maps
np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.slow
def test_maps_without_jit_are_the_same():
    """In a process of its own: the tests' type checks take a loop's int for wrong."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_JIT],
        cwd=Path(__file__).parents[1],
        env=os.environ | QUICKLY,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
