"""What people do to response maps before the mean shift looks at them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxclnf

PLAIN = "as they are"
STRETCHED = "minus least, over largest"
RAISED = "plus largest"


def _largest(maps: jax.Array) -> jax.Array:
    return jnp.max(maps, axis=(1, 2), keepdims=True)


def _over(maps: jax.Array, size: jax.Array) -> jax.Array:
    return maps / jnp.where(size > 0, size, 1)


def _own_factors(maps: jax.Array) -> jax.Array:
    exponents = np.random.default_rng(0).uniform(-3, 3, (maps.shape[0], 1, 1))
    return maps * jnp.asarray(10.0**exponents, maps.dtype)


def _stretched(maps: jax.Array) -> jax.Array:
    lowered = maps - jnp.min(maps, axis=(1, 2), keepdims=True)
    return _over(lowered, _largest(lowered))


CHANGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    PLAIN: lambda maps: maps,
    "times 1024": lambda maps: maps * 1024,
    "times 1000": lambda maps: maps * 1000,
    "times 1e-30": lambda maps: maps * 1e-30,
    "times 10^-3 to 10^3, by landmark": _own_factors,
    "over largest": lambda maps: _over(maps, _largest(maps)),
    "over sum": lambda maps: _over(maps, jnp.sum(maps, axis=(1, 2), keepdims=True)),
    STRETCHED: _stretched,
    "plus a tenth of largest": lambda maps: maps + 0.1 * _largest(maps),
    RAISED: lambda maps: maps + _largest(maps),
}
"""What is done to the maps. The first seven multiply by a positive constant."""

_changed = {name: jax.jit(change) for name, change in CHANGES.items()}


def with_maps(responses: jaxclnf.ResponseMaps, name: str) -> jaxclnf.ResponseMaps:
    """The responses with changed maps; those of invisible landmarks stay zero."""
    maps = _changed[name](responses.maps)
    maps = jnp.where(responses.visibility[:, None, None], maps, 0)
    return dataclasses.replace(responses, maps=maps)
