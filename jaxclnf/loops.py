"""A loop whose scalars travel together.

On CPU each array that a loop starts from, computes or keeps is a call of its own. Where
more than eight calls could be made next, XLA wakes another thread for some of them and
then waits for it, which may take as long as a Newton step (`ThunkExecutor` in jaxlib
0.10; of 92 calls of a step up to 16 waited, now of 83 up to 11).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

State = TypeVar("State")

_ALONE = ""


def while_loop(
    goes_on: Callable[[State], Bool[Array, ""]],
    one_more: Callable[[State], State],
    start: State,
) -> State:
    """`lax.while_loop`, its scalars in one vector for each type of number.

    Args:
        goes_on: Whether a state is to be stepped on.
        one_more: The next state.
        start: A pytree of arrays. Truth values among its scalars travel as int32.

    Returns:
        The last state.

    Example:
        >>> end = while_loop(
        ...     lambda s: s["turns"] < 3,
        ...     lambda s: {"turns": s["turns"] + 1, "value": 2 * s["value"]},
        ...     {"turns": jnp.asarray(0, jnp.int32), "value": jnp.asarray(1.0)},
        ... )
        >>> int(end["turns"]), float(end["value"])
        (3, 8.0)
    """
    packed, unpacked = scalars_together(start)
    end = lax.while_loop(
        lambda carry: goes_on(unpacked(carry)),
        lambda carry: packed(one_more(unpacked(carry))),
        packed(start),
    )
    return unpacked(end)


def scalars_together(
    example: State,
) -> tuple[Callable[[State], list[Array]], Callable[[list[Array]], State]]:
    """Packs a state's scalars into one vector for each type, and back, as `while_loop`.

    Args:
        example: A state.

    Returns:
        From a state like it to one vector for each type of its scalars, then its other
        arrays; and back.

    Example:
        >>> state = {"turns": jnp.asarray(2, jnp.int32), "rows": jnp.zeros((2, 3))}
        >>> packed, unpacked = scalars_together(state)
        >>> [x.shape for x in packed(state)], int(unpacked(packed(state))["turns"])
        ([(1,), (2, 3)], 2)
    """
    leaves, tree = jax.tree.flatten(example)
    vectors = [_vector_of(x) for x in leaves]
    names = sorted(set(vectors) - {_ALONE})

    def packed(state: State) -> list[Array]:
        both = list(zip(jax.tree.leaves(state), vectors, strict=True))
        together = [
            jnp.stack([x.astype(name) for x, vector in both if vector == name])
            for name in names
        ]
        return together + [x for x, vector in both if vector == _ALONE]

    def unpacked(carry: list[Array]) -> State:
        rest = {_ALONE: iter(carry[len(names) :])}
        for name, vector in zip(names, carry, strict=False):
            rest[name] = iter([vector[k] for k in range(len(vector))])
        both = zip(leaves, vectors, strict=True)
        return tree.unflatten([next(rest[v]).astype(x.dtype) for x, v in both])

    return packed, unpacked


def _vector_of(x: Array) -> str:
    """The type of the vector as part of which a value travels."""
    if x.ndim:
        return _ALONE
    return "int32" if x.dtype == bool else str(x.dtype)
