"""Few lanes for many faces: the same ends, in no more rounds than there must be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxclnf.solver.lanes import count_rounds, num_lanes, run_in_lanes, run_to_end


def halve(shared: jax.Array, own: jax.Array, state: tuple) -> tuple:
    """A step towards `own`; `shared` is the share of the way that is left."""
    x, steps = state
    return own + shared * (x - own), steps + 1


def is_far(limit: float, state: tuple) -> jax.Array:
    return jnp.abs(state[0]) > limit


def loop(shared: jax.Array, own: jax.Array, state: tuple) -> tuple:
    return lax.while_loop(partial(is_far, 1e-3), lambda s: halve(shared, own, s), state)


run = partial(run_to_end, halve, partial(is_far, 1e-3))
SHARE = jnp.asarray(0.5)


def starts(*shape: int) -> tuple:
    values = np.exp(np.random.default_rng(1).uniform(-9, 9, shape))
    return jnp.asarray(values), jnp.zeros(shape, jnp.int32)


def same(one: tuple, other: tuple) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_face_is_a_plain_loop():
    first = jnp.asarray(7.0), jnp.asarray(0, jnp.int32)
    none = jnp.asarray(0.0)
    assert same(run(SHARE, none, first), loop(SHARE, none, first))


@pytest.mark.parametrize("count", [0, 1, 5, 8, 9, 100])
def test_lanes_end_where_a_plain_vmap_does(count: int):
    own = jnp.linspace(-1e-4, 1e-4, count)
    first = starts(count)
    over_faces = partial(jax.vmap, in_axes=(None, 0, 0))
    found = jax.jit(over_faces(run))(SHARE, own, first)
    assert same(found, jax.jit(over_faces(loop))(SHARE, own, first))


def test_what_is_not_batched_is_shared_or_repeated():
    none, first = jnp.asarray(0.0), starts(20)
    axes = (None, None, 0)
    found = jax.vmap(run, in_axes=axes)(SHARE, none, first)
    assert same(found, jax.vmap(loop, in_axes=axes)(SHARE, none, first))
    shares = jnp.linspace(0.2, 0.8, 20)
    found = jax.vmap(run, in_axes=(0, None, 0))(shares, none, first)
    assert same(found, jax.vmap(loop, in_axes=(0, None, 0))(shares, none, first))


def test_nested_vmaps_are_one():
    own, first = jnp.linspace(-1e-4, 1e-4, 6), starts(6, 7)

    def nested(function):
        inner = jax.vmap(function, in_axes=(None, None, 0))
        return jax.vmap(inner, in_axes=(None, 0, 0))

    found = jax.jit(nested(run))(SHARE, own, first)
    assert same(found, jax.jit(nested(loop))(SHARE, own, first))
    # One loop over all 42, and in it one of rounds, in 6 lanes; not six loops or a loop
    # of six.
    text = str(jax.make_jaxpr(nested(run))(SHARE, own, first))
    assert text.count("while[") == 2 and "f64[42]" in text and "f64[6]" in text


def test_nested_vmaps_over_what_is_shared():
    none, first = jnp.asarray(0.0), starts(4, 5)
    shares = jnp.linspace(0.2, 0.8, 4)

    def nested(function):
        inner = jax.vmap(function, in_axes=(None, None, 0))
        return jax.vmap(inner, in_axes=(0, None, 0))

    found = nested(run)(shares, none, first)
    assert same(found, nested(loop)(shares, none, first))


def test_forward_derivatives_pass():
    first = starts(10)
    none = jnp.zeros(10)

    def end(share: jax.Array) -> jax.Array:
        return jax.vmap(run, in_axes=(None, 0, 0))(share, none, first)[0]

    _, slope = jax.jvp(end, (SHARE,), (jnp.ones(()),))
    ends, steps = map(np.asarray, jax.vmap(run, (None, 0, 0))(SHARE, none, first))
    expected = steps * ends / 0.5  # d(x 0.5^k) = k x 0.5^k / 0.5
    assert np.allclose(slope, expected, rtol=1e-12)


def test_derivatives_in_many_directions_pass():
    first, none = starts(10), jnp.zeros(10)
    one = jnp.asarray(7.0), jnp.asarray(0, jnp.int32)

    def along(share: jax.Array, where: jax.Array) -> jax.Array:
        return run(share, jnp.asarray(0.0), (where, one[1]))[0]

    slopes = jax.jacfwd(along, argnums=(0, 1))(SHARE, one[0])
    end, steps = run(SHARE, jnp.asarray(0.0), one)
    assert np.allclose(slopes[0], steps.astype(float) * end / 0.5, rtol=1e-12)
    assert np.allclose(slopes[1], end / one[0], rtol=1e-12)

    def all_of_them(where: jax.Array) -> jax.Array:
        return jax.vmap(run, (None, 0, 0))(SHARE, none, (where, first[1]))[0]

    each = jax.vmap(jax.jacfwd(along, argnums=1), (None, 0))(SHARE, first[0])
    assert np.allclose(jax.jacfwd(all_of_them)(first[0]), np.diag(each), rtol=1e-12)


@given(
    needs=st.lists(st.integers(0, 12), min_size=1, max_size=40), lanes=st.integers(1, 9)
)
@settings(deadline=None, max_examples=60)
def test_rounds_are_as_counted(needs: list[int], lanes: int):
    lanes = min(lanes, len(needs))
    left = jnp.asarray(needs, jnp.int32)
    ended, rounds = jax.jit(run_in_lanes, static_argnums=(0, 1, 5))(
        _count_down, _is_open, jnp.ones((), jnp.int32), left, (left, left * 0), lanes
    )
    assert ended[0].tolist() == [0] * len(needs)
    assert ended[1].tolist() == needs
    # Faces with nothing to do take no lane: their place in the order is the last.
    busy = [n for n in needs if n]
    assert int(rounds) == count_rounds(np.array(busy, int), lanes)
    assert int(rounds) * lanes >= sum(needs)


def _count_down(by: jax.Array, _: jax.Array, state: tuple) -> tuple:
    return state[0] - by, state[1] + by


def _is_open(state: tuple) -> jax.Array:
    return state[0] > 0


def test_a_nan_face_leaves_the_others_alone():
    first = starts(30)
    none = jnp.zeros(30)
    over_faces = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
    clean = over_faces(SHARE, none, first)
    spoilt = over_faces(SHARE, none, (first[0].at[4].set(jnp.nan), first[1]))
    others = np.arange(30) != 4
    assert np.isnan(spoilt[0][4]) and spoilt[1][4] == 0
    assert same(tuple(x[others] for x in spoilt), tuple(x[others] for x in clean))


def test_steps_behind_the_end_are_thrown_away():
    needs = jnp.asarray([1, 9, 2, 7, 3, 8, 1, 1, 6, 5, 2, 4])

    def run_down(share: jax.Array, left: jax.Array) -> jax.Array:
        def step(share: jax.Array, _: jax.Array, state: tuple) -> tuple:
            left, value = state
            return left - 1, value * share * jnp.sqrt(left - 0.5)  # NaN for none left

        state = left.astype(float), jnp.ones(())
        return run_to_end(step, lambda s: s[0] > 0, share, left, state)[1]

    values, slopes = jax.jvp(
        lambda share: jax.vmap(run_down, (None, 0))(share, needs),
        (SHARE,),
        (jnp.ones(()),),
    )
    powers = np.asarray(needs, float)
    roots = [np.prod(np.sqrt(np.arange(n) + 0.5)) for n in needs.tolist()]
    np.testing.assert_allclose(values, 0.5**powers * roots, rtol=1e-12)
    np.testing.assert_allclose(slopes, 2 * powers * values, rtol=1e-12)


@pytest.mark.parametrize("lanes", [0, 4])
def test_lanes_are_one_for_each_face_at_most(lanes: int):
    left = jnp.ones(3, jnp.int32)
    with pytest.raises(ValueError, match=f"lanes is {lanes}; expected 1 to 3"):
        run_in_lanes(_count_down, _is_open, left[0], left, (left, left), lanes)


def test_lane_steps_are_near_what_is_needed():
    # Newton's steps a phase as measured: 5 in the mean, 14 at most, a long tail.
    steps = np.minimum(3 + np.random.default_rng(0).geometric(0.4, 1024), 14)
    for count in (64, 256, 1024):
        needed = steps[:count].sum()
        lanes = num_lanes(count)
        assert lanes * count_rounds(steps[:count], lanes) < 1.3 * needed
        assert count * steps[:count].max() > 1.8 * needed  # what a plain vmap pays
