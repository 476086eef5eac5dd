"""Immutable dataclasses that JAX transformations see through."""

import dataclasses
import typing
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool

_T = TypeVar("_T")


def static(**kwargs: Any) -> Any:
    """Marks a dataclass field as compile-time configuration, not an array.

    A static field takes part in the jit cache key, so it must be hashable and a new
    value means a new compilation.

    Args:
        **kwargs: Passed on to `dataclasses.field`.

    Returns:
        The field.

    Example:
        >>> @pytree_dataclass
        ... class Options:
        ...     sigma: float = 1.5
        ...     max_steps: int = static(default=300)
        >>> jax.tree.leaves(Options())
        [1.5]
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    eq_default=False,
    field_specifiers=(dataclasses.field, static),
)
def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Turns a class into a frozen, keyword-only dataclass and registers it as a pytree.

    Args:
        cls: A class with annotated fields; those made by `static` are metadata.

    Returns:
        The class, registered with `jax.tree_util`. Its `__post_init__`, if it has one,
        sees what people construct, not what JAX does.

    Example:
        >>> @pytree_dataclass
        ... class Point:
        ...     x: jax.Array
        >>> float(jax.tree.map(lambda x: 2 * x, Point(x=jnp.asarray(3.0))).x)
        6.0
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    # JAX rebuilds instances around tracers and placeholder objects, so run-time type
    # checkers must leave the generated constructor alone.
    cls.__init__ = typing.no_type_check(cls.__init__)
    if hasattr(cls, "__post_init__"):
        return _registered_unchecked(cls)
    return jax.tree_util.register_dataclass(cls)


def _registered_unchecked(cls: type[_T]) -> type[_T]:
    """Registers a dataclass that checks its values; a pytree of its form may have any.

    A gradient by some options, or the axes over which they are batched, has their form
    and none of their ranges.
    """
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(tree: _T) -> tuple[list[Any], tuple[Any, ...]]:
        values = vars(tree)
        return [values[name] for name in data], tuple(values[name] for name in meta)

    def flatten_with_keys(tree: _T) -> tuple[list[Any], tuple[Any, ...]]:
        values, static_values = flatten(tree)
        return list(zip(keys, values, strict=True)), static_values

    def unflatten(static_values: tuple[Any, ...], values: Any) -> _T:
        tree = object.__new__(cls)
        vars(tree).update(zip(meta, static_values, strict=True))
        vars(tree).update(zip(data, values, strict=True))
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def filled(
    shape: tuple[int, ...],
    value: bool | int | float,
    dtype: np.dtype | type[np.generic],
) -> Array:
    """An array of one value, made without a program for its shape.

    Args:
        shape: Its shape.
        value: The value.
        dtype: Its type.

    Returns:
        The array.

    Example:
        >>> filled((2, 1), 7, np.int32).tolist()
        [[7], [7]]
    """
    return jax.device_put(np.full(shape, value, dtype))


def select(keep: Bool[Array, ""], new: _T, old: _T) -> _T:
    """One of two pytrees, leaf by leaf.

    Args:
        keep: Whether to take `new`.
        new: One pytree of arrays.
        old: The other, of the same form.

    Returns:
        `new` where `keep`, else `old`.

    Example:
        >>> chosen = select(jnp.asarray(False), {"a": jnp.ones(2)}, {"a": jnp.zeros(2)})
        >>> chosen["a"].tolist()
        [0.0, 0.0]
    """
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def held_where(held: Bool[Array, ""], tree: _T) -> _T:
    """The same numbers, through which no derivative passes where they are held.

    Where the outcome of a step is not taken, its derivative in reverse mode is 0 times
    those of the step, and these may be NaN: for one face of a batch that has failed,
    all of the batch's options would have no derivative.

    Args:
        held: Where.
        tree: A pytree of arrays and numbers.

    Returns:
        The pytree.

    Example:
        >>> def root(x):
        ...     held = jnp.asarray(True)
        ...     return jnp.where(held, 0.0, jnp.sqrt(held_where(held, x)))
        >>> float(jax.grad(root)(0.0))
        0.0
    """
    return jax.tree.map(lambda x: jnp.where(held, lax.stop_gradient(x), x), tree)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether there is no NaN and no infinity in a pytree.

    Args:
        tree: A pytree of arrays.

    Returns:
        The answer.

    Example:
        >>> bool(all_finite({"a": jnp.ones(3), "b": jnp.asarray(jnp.nan)}))
        False
    """
    found = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(found))


def with_reals_as(tree: _T, dtype: DTypeLike) -> _T:
    """A tree whose floating-point arrays have another type.

    Args:
        tree: A pytree of arrays, none of them traced.
        dtype: The floating type.

    Returns:
        The tree; what is not floating stays. Nothing is compiled.

    Example:
        >>> tree = with_reals_as((jnp.ones(2), jnp.arange(2, dtype=jnp.int8)), "f4")
        >>> [str(x.dtype) for x in tree]
        ['float32', 'int8']
    """

    def cast(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jax.device_put(np.asarray(leaf).astype(dtype))

    return jax.tree.map(cast, tree)
