"""The response maps of one scale for a fit: of one face, or of those of a batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxclnf.batching import in_turn_on_cpu
from jaxclnf.experts.area import GreyImage, Sampling
from jaxclnf.experts.responses import response_maps
from jaxclnf.experts.types import PatchExperts, ResponseMaps
from jaxclnf.pytree import all_finite, select
from jaxclnf.shape.pdm import PDM, PDMParams


def maps_unless_failed(
    pdm: PDM,
    experts: PatchExperts,
    image: GreyImage,
    params: PDMParams,
    origin: Int[Array, " 2"],
    failed: Bool[Array, ""],
    *,
    window_size: int,
    sampling: Sampling,
    in_turn: bool,
) -> ResponseMaps:
    """The maps of a face; in turn, for one that failed no work is done.

    Args:
        pdm: The shape model.
        experts: Patch experts of one scale.
        image: Grey values of any type.
        params: The shape around which to look.
        origin: Whole pixels to add to the landmarks.
        failed: Whether the fit has failed.
        window_size: Side of each map, odd.
        sampling: As for `response_maps`.
        in_turn: Under `jax.vmap` on CPU, one face after the other (static): 4 MB of
            patches a face leave the cache where there are many. Without derivatives in
            reverse mode.

    Returns:
        What `response_maps` gives; after a failure, in turn, zeros.

    Example:
        >>> def maps(failed):
        ...     return maps_unless_failed(
        ...         pdm, model.experts[0], jnp.asarray(image), params,
        ...         jnp.zeros(2, jnp.int32), failed,
        ...         window_size=7, sampling="exact", in_turn=True,
        ...     ).maps
        >>> found = jax.vmap(maps)(jnp.asarray([False, True]))
        >>> found.shape[2:], bool(found[0].any())
        ((7, 7), True)
    """
    # For one face alone there is no condition, with a trace or without: another program
    # would round in another way.
    args = pdm, experts, image, params, origin, failed

    def found(*args: Any) -> ResponseMaps:
        pdm, experts, image, params, origin, _ = args
        return response_maps(
            pdm, experts, image, params, window_size, sampling=sampling, origin=origin
        )

    def unless_failed(*args: Any) -> ResponseMaps:
        shapes = jax.eval_shape(found, *args)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.cond(args[-1], lambda: zeros, lambda: found(*args))

    if in_turn:
        return in_turn_on_cpu(found, turn=unless_failed)(*args)
    # Maps from NaN would leave the model no derivatives in reverse mode.
    somewhere = jax.tree.map(jnp.zeros_like, params)
    somewhere = dataclasses.replace(
        somewhere,
        scale=jnp.ones_like(params.scale),
        rotation=jnp.eye(3, dtype=params.scale.dtype),
    )
    params = select(all_finite(params), params, somewhere)
    return found(pdm, experts, image, params, *args[4:])
