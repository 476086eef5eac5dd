"""What `jax.vmap` does where doing everything at once is not the best.

On CPU a large batch leaves the cache. And LAPACK routines for a batch may hang there:
each spreads its matrices over XLA's threads and waits on one of them; two at the same
time on two threads wait for each other for ever (jaxlib 0.10, `ParallelBatchMap` in its
LAPACK kernels; seen with a fit of 16 faces on two cores).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap


def map_batch(function: Callable, *args: Any) -> Any:
    """Applies a function along leading axes: in turn on CPU, elsewhere at once.

    Args:
        function: Of arguments without the axis.
        *args: Pytrees with it.

    Returns:
        Its results, with a leading axis.

    Example:
        >>> map_batch(lambda x, y: x + y, jnp.arange(3.0), jnp.ones(3)).tolist()
        [1.0, 2.0, 3.0]
    """
    return _map_batch(function, function, args)


def _map_batch(in_turn: Callable, at_once: Callable, args: tuple) -> Any:
    return lax.platform_dependent(
        *args,
        cpu=lambda *args: lax.map(lambda row: in_turn(*row), args),
        default=jax.vmap(at_once),
    )


def in_turn_on_cpu(function: Callable) -> Callable:
    """A function that `jax.vmap` applies with `map_batch`.

    Derivatives in forward mode are as usual; in reverse mode there are none.

    Args:
        function: Of pytrees of arrays, by position.

    Returns:
        The function.

    Example:
        >>> double = in_turn_on_cpu(lambda x: 2 * x)
        >>> jax.vmap(jax.vmap(double))(jnp.ones((2, 3))).shape
        (2, 3)
    """
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def _(size: int, batched: Sequence, *args: Any) -> tuple:
        del size
        leaves, tree = jax.tree.flatten(args)
        flags = jax.tree.leaves(list(batched))
        rows = [x for x, flag in zip(leaves, flags, strict=True) if flag]

        def on_row(function: Callable, *row: Any) -> Any:
            rest = iter(row)
            both = zip(leaves, flags, strict=True)
            return function(*tree.unflatten(next(rest) if f else x for x, f in both))

        if not rows:
            # `jax.jacfwd`: derivatives in many directions, of one face.
            results = function(*args)
        else:
            # Inside another `jax.vmap` what follows in turn comes here again.
            results = _map_batch(
                partial(on_row, mapped), partial(on_row, function), tuple(rows)
            )
        return results, jax.tree.map(lambda _: bool(rows), results)

    return mapped
