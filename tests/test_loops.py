"""The loop whose scalars travel together does what `lax.while_loop` does."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array

from jaxclnf.loops import while_loop


class State(NamedTuple):
    """Scalars of several types between arrays."""

    turns: Array
    value: Array
    shape: Array
    is_even: Array
    single: Array
    rest: dict
    largest: Array


def start_at(value: Array | float) -> State:
    """A state with a value in it."""
    return State(
        turns=jnp.asarray(0, jnp.int32),
        value=jnp.asarray(value, jnp.float64),
        shape=jnp.arange(6.0).reshape(2, 3),
        is_even=jnp.asarray(True),
        single=jnp.asarray(0.1, jnp.float32),
        rest={"none": None, "total": jnp.asarray(0.0, jnp.float64)},
        largest=jnp.asarray(2**31 - 1, jnp.int32),
    )


def one_more(state: State) -> State:
    """Reads and changes all of it."""
    return State(
        turns=state.turns + 1,
        value=jnp.where(state.is_even, jnp.sin(state.value), 2 * state.value),
        shape=state.shape + state.value,
        is_even=~state.is_even,
        single=state.single * 3,
        rest={"none": None, "total": state.rest["total"] + state.shape[1, 2]},
        largest=state.largest - state.turns,
    )


def goes_on(state: State) -> Array:
    """Until a number of turns that depends on a scalar."""
    return (state.turns < 7) & (state.value < 10)


def run(loop, value: Array | float) -> State:
    return loop(goes_on, one_more, start_at(value))


@pytest.mark.parametrize("value", [0.3, -4.0, 9.9, 20.0])
def test_results_are_those_of_jax(value: float) -> None:
    found, expected = run(while_loop, value), run(lax.while_loop, value)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_equal(found, expected)


def test_it_can_be_mapped() -> None:
    values = jnp.asarray([0.3, -4.0, 9.9, 20.0])
    found, expected = (
        jax.vmap(partial(run, loop))(values) for loop in (while_loop, lax.while_loop)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert found.turns.tolist() == expected.turns.tolist()


def test_derivatives_in_forward_mode() -> None:
    found, expected = (
        jax.jacfwd(lambda x, loop=loop: run(loop, x).shape)(0.3)
        for loop in (while_loop, lax.while_loop)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_scalars_are_one_array_for_each_type() -> None:
    jaxpr = jax.make_jaxpr(partial(run, while_loop))(0.3)
    (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive is lax.while_p)
    shapes = sorted((str(x.aval.dtype), x.aval.shape) for x in loop.outvars)
    assert shapes == [
        ("float32", (1,)),
        ("float64", (2,)),
        ("float64", (2, 3)),
        ("int32", (3,)),
    ]


def test_arrays_alone_travel_as_they_are() -> None:
    end = while_loop(
        lambda x: x[0] < 5, lambda x: x + jnp.ones(2), jnp.asarray([0.0, 9.0])
    )
    assert end.tolist() == [5.0, 14.0]
