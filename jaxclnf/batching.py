"""What `jax.vmap` does where doing everything at once is not the best.

On CPU a large batch leaves the cache. And LAPACK routines for a batch may hang there:
each spreads its matrices over XLA's threads and waits on one of them; two at the same
time on two threads wait for each other for ever (jaxlib 0.10, `ParallelBatchMap` in its
LAPACK kernels; seen with a fit of 16 faces on two cores).
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
from jax import lax
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap

from jaxclnf.by_platform import by_platform


def map_batch(function: Callable, *args: Any, shared: tuple = ()) -> Any:
    """Applies a function along leading axes: in turn on CPU, elsewhere at once.

    Args:
        function: Of what is shared, then of arguments without the axis; what it refers
            to from outside may not be traced.
        *args: Pytrees with it.
        shared: Pytrees that are the same for all.

    Returns:
        Its results, with a leading axis.

    Example:
        >>> map_batch(lambda x, y: x + y, jnp.arange(3.0), jnp.ones(3)).tolist()
        [1.0, 2.0, 3.0]
    """
    return _map_batch(function, function, shared, args)


def _map_batch(in_turn: Callable, at_once: Callable, shared: tuple, args: tuple) -> Any:
    return by_platform(
        shared,
        args,
        cpu=lambda shared, args: lax.map(lambda row: in_turn(*shared, *row), args),
        default=lambda shared, args: jax.vmap(partial(at_once, *shared))(*args),
    )


def in_turn_on_cpu(
    function: Callable,
    turn: Callable | None = None,
    at_once: Callable | None = None,
) -> Callable:
    """A function that `jax.vmap` applies in turn on CPU, elsewhere at once.

    Derivatives in forward mode are as usual; in reverse mode there are none.

    Args:
        function: Of pytrees of arrays, by position.
        turn: What to do instead in each turn, with all that varies as arguments. The
            place for `lax.cond` and `lax.switch`, which at once give each row a copy of
            all that they use.
        at_once: What to do instead where all are done at once.

    Returns:
        The function.

    Example:
        >>> double = in_turn_on_cpu(lambda x: 2 * x)
        >>> jax.vmap(jax.vmap(double))(jnp.ones((2, 3))).shape
        (2, 3)
    """

    @wraps(function)
    def with_explicit_constants(*args: Any) -> Any:
        # What a function refers to from outside becomes an argument, which may be
        # batched, as inside `lax.cond`; `custom_vmap` forbids that for the rest.
        leaves, tree = jax.tree.flatten(args)
        closed, shape = jax.make_jaxpr(
            lambda *leaves: function(*tree.unflatten(leaves)), return_shape=True
        )(*leaves)

        def evaluated(constants: list, leaves: list) -> list:
            return eval_jaxpr(closed.jaxpr, constants, *leaves)

        def one_turn(constants: list, leaves: list) -> list:
            del constants
            return jax.tree.leaves((turn or function)(*tree.unflatten(leaves)))

        def one_of_many(constants: list, leaves: list) -> list:
            del constants
            return jax.tree.leaves((at_once or function)(*tree.unflatten(leaves)))

        many = one_of_many if at_once else evaluated
        in_turn = _in_turn_on_cpu(one_turn, many) if turn else None
        mapped = _in_turn_on_cpu(evaluated, many, in_turn)
        return jax.tree.structure(shape).unflatten(mapped(closed.consts, leaves))

    return with_explicit_constants


def _in_turn_on_cpu(
    alone: Callable, at_once: Callable, in_turn: Callable | None = None
) -> Callable:
    mapped = custom_vmap(alone)

    @mapped.def_vmap
    def _(size: int, batched: Sequence, *args: Any) -> tuple:
        del size
        leaves, tree = jax.tree.flatten(args)
        flags = jax.tree.leaves(list(batched))
        both = list(zip(leaves, flags, strict=True))
        rows = [x for x, flag in both if flag]
        rest = [x for x, flag in both if not flag]

        def on_row(function: Callable, rest: list, *row: Any) -> Any:
            sources = {True: iter(row), False: iter(rest)}
            return function(*tree.unflatten(next(sources[flag]) for flag in flags))

        if not rows:
            # `jax.jacfwd`: derivatives in many directions, of one face.
            results = alone(*args)
        else:
            # Inside another `jax.vmap` what follows in turn comes here again.
            results = _map_batch(
                partial(on_row, in_turn or mapped),
                partial(on_row, at_once),
                (rest,),
                tuple(rows),
            )
        return results, jax.tree.map(lambda _: bool(rows), results)

    return mapped
