"""A loop that many faces run together without waiting for the slowest of them.

`jax.vmap` of a `lax.while_loop` steps every face until the last one has ended, which
costs 2.4 to 5.2 times the steps that are needed. Here few lanes work through many
faces: a lane whose face has ended takes up the next one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int

from jaxclnf.loops import while_loop

Step = Callable[[Any, Any, Any], Any]
"""From what all faces share, what one face has of its own, and its state to the next
state."""

_FACES_PER_LANE = 8
"""With more the lanes end at more equal times, but there are fewer to fill a device."""


def num_lanes(num_faces: int) -> int:
    """How many lanes work through so many faces.

    Args:
        num_faces: Number of faces, at least 1.

    Returns:
        An eighth of them, but one each where they are few.

    Example:
        >>> num_lanes(3), num_lanes(256)
        (3, 32)
    """
    return max(min(num_faces, _FACES_PER_LANE), -(-num_faces // _FACES_PER_LANE))


def run_to_end(
    step: Step,
    is_running: Callable[[Any], Bool[Array, ""]],
    shared: Any,
    own: Any,
    state: Any,
) -> Any:
    """Steps while a face is running; under `jax.vmap`, many faces in few lanes.

    Args:
        step: Makes one step.
        is_running: Whether a state is to be stepped on.
        shared: What all faces share.
        own: What a face has of its own.
        state: Its state; one that is not running is returned as it is.

    Returns:
        The last state.

    Example:
        >>> count = partial(
        ...     run_to_end, lambda by, _, x: x + by, lambda x: x < 10, jnp.asarray(3.0)
        ... )
        >>> jax.vmap(count)(jnp.zeros(4), jnp.arange(4.0)).tolist()
        [12.0, 10.0, 11.0, 12.0]
    """

    # Lists of arrays: of a tree that holds a None, `custom_vmap` has no derivatives.
    arrays, (of_shared, of_own, of_state) = zip(
        *map(jax.tree.flatten, (shared, own, state)), strict=True
    )

    def next_arrays(shared: list, own: list, state: list) -> list:
        args = of_shared.unflatten(shared), of_own.unflatten(own)
        return jax.tree.leaves(step(*args, of_state.unflatten(state)))

    def goes_on(state: list) -> Bool[Array, ""]:
        return is_running(of_state.unflatten(state))

    @custom_vmap
    def one(shared: list, own: list, state: list) -> list:
        return while_loop(goes_on, lambda s: next_arrays(shared, own, s), state)

    @custom_vmap
    def many(shared: list, own: list, states: list) -> list:
        lanes = num_lanes(states[0].shape[0])
        return run_in_lanes(next_arrays, goes_on, shared, own, states, lanes)[0]

    @one.def_vmap
    def _(size: int, batched: Sequence, shared: Any, own: Any, state: Any) -> tuple:
        if _is_plain(batched):
            return _plain(one.fun, batched, shared, own, state)
        own, state = (
            jax.tree.map(partial(_with_axis, size), tree, flags)
            for tree, flags in ((own, batched[1]), (state, batched[2]))
        )
        ended = many(shared, own, state)
        return ended, jax.tree.map(lambda _: True, ended)

    @many.def_vmap
    def _(size: int, batched: Sequence, shared: Any, own: Any, states: Any) -> tuple:
        if _is_plain(batched):
            return _plain(many.fun, batched, shared, own, states)
        own, states = (
            jax.tree.map(
                lambda x, flag: _with_axis(size, x, flag).reshape(
                    -1, *x.shape[flag + 1 :]
                ),
                tree,
                flags,
            )
            for tree, flags in ((own, batched[1]), (states, batched[2]))
        )
        ended = many(shared, own, states)
        ended = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), ended)
        return ended, jax.tree.map(lambda _: True, ended)

    return of_state.unflatten(one(*arrays))


def _with_axis(size: int, x: Any, has_it: bool) -> Array:
    x = jnp.asarray(x)
    return x if has_it else jnp.broadcast_to(x[None], (size, *x.shape))


def _is_plain(batched: Sequence) -> bool:
    # Nothing is batched where `jax.jacfwd` asks: derivatives in many directions, of one
    # face.
    own = any(jax.tree.leaves(batched[1:]))
    return any(jax.tree.leaves(batched[0])) or not own


def _plain(function: Callable, batched: Sequence, *args: Any) -> tuple:
    """As `jax.vmap` would do it: where faces share nothing."""
    if not any(jax.tree.leaves(batched)):
        ended = function(*args)
        return ended, jax.tree.map(lambda _: False, ended)
    axes = jax.tree.map(lambda flag: 0 if flag else None, tuple(batched))
    ended = jax.vmap(function, in_axes=axes)(*args)
    return ended, jax.tree.map(lambda _: True, ended)


def run_in_lanes(
    step: Step,
    is_running: Callable[[Any], Bool[Array, ""]],
    shared: Any,
    own: Any,
    states: Any,
    lanes: int,
) -> tuple[Any, Int[Array, ""]]:
    """Steps many faces to their ends, so many at a time.

    Args:
        step: Makes one step of one face.
        is_running: Whether a state is to be stepped on.
        shared: What all faces share.
        own: What each has of its own, with a leading axis.
        states: Their states, with a leading axis.
        lanes: How many faces are stepped at a time, at most as many as there are.

    Returns:
        The last states, and how often all lanes were stepped.

    Raises:
        ValueError: There are no lanes, or more than faces.

    Example:
        >>> ended, rounds = run_in_lanes(
        ...     lambda by, _, x: x + by, lambda x: x < 3, jnp.asarray(1.0),
        ...     jnp.zeros(4), jnp.arange(4.0), 2,
        ... )
        >>> ended.tolist(), int(rounds)  # 3 and 2 steps, then 1 and none
        ([3.0, 3.0, 3.0, 3.0], 3)
    """
    count = jax.tree.leaves(states)[0].shape[0]
    if count == 0:
        return states, jnp.zeros((), jnp.int32)
    if not 1 <= lanes <= count:
        raise ValueError(f"lanes is {lanes}; expected 1 to {count}")

    def all_running(states: Any) -> Bool[Array, " k"]:
        return jax.vmap(is_running)(states)

    all_stepped = jax.vmap(partial(step, shared))

    def until_one_ends(carry: tuple) -> tuple:
        states, face, waiting, rounds = carry
        # Only here, not in each round, are states and what faces have of their own,
        # 30 KB of maps, carried to the lanes and back.
        mine, in_lanes = jax.tree.map(lambda x: x[face], (own, states))
        # All step on together: what a lane without a face comes to is thrown away.
        working = all_running(in_lanes)
        # Under a plain `jax.vmap` there may be none at work any more.
        some = jnp.any(working)
        in_lanes, rounds = lax.while_loop(
            lambda carry: some & jnp.all(all_running(carry[0]) | ~working),
            lambda carry: (all_stepped(mine, carry[0]), carry[1] + 1),
            (in_lanes, rounds),
        )
        place = jnp.where(working, face, count)
        states = jax.tree.map(
            lambda x, y: x.at[place].set(y, mode="drop"), states, in_lanes
        )
        free = ~working | ~all_running(in_lanes)
        # Free lanes take the faces that wait, in order; those that find none stay.
        rank = jnp.cumsum(free.astype(jnp.int32))
        found = free & (waiting + rank <= count)
        face = jnp.where(found, waiting + rank - 1, face)
        return states, face, jnp.minimum(waiting + rank[-1], count), rounds

    # Faces that have ended already take up no lane.
    order = jnp.argsort(~all_running(states), stable=True)
    ordered, own = jax.tree.map(lambda x: x[order], (states, own))
    start = (
        ordered,
        jnp.arange(lanes, dtype=jnp.int32),
        jnp.asarray(lanes, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    ended, *_, rounds = lax.while_loop(
        lambda carry: jnp.any(all_running(carry[0])[carry[1]]), until_one_ends, start
    )
    back = jax.tree.map(lambda x, y: x.at[order].set(y), states, ended)
    return back, rounds


def count_rounds(num_steps: np.ndarray, lanes: int) -> int:
    """How often all lanes are stepped for faces that need so many steps.

    Args:
        num_steps: Steps that each face needs, in the order of the faces.
        lanes: Number of lanes.

    Returns:
        The rounds of `run_in_lanes`; `lanes` times as many steps are paid for.

    Example:
        >>> count_rounds(np.array([3, 2, 1, 0]), 2)
        3
    """
    free_at = np.zeros(lanes, int)
    for steps in np.asarray(num_steps).ravel():
        free_at[np.argmin(free_at)] += steps
    return int(free_at.max())
