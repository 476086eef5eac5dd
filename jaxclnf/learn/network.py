"""A small network that tells warped faces from what else fits come to rest on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxclnf.fitting.validate import FullyConnected, ReLU, Validator
from jaxclnf.learn.mean_face import mean_face_warp
from jaxclnf.shape.pdm import PDM

_BATCH = 256
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 1e-2
_DROPOUT = 0.4
"""Share of the pixels that each fit is learnt without."""

Layers = Any
"""`FullyConnected`, `ReLU`, `FullyConnected`; optax's types know no dataclasses."""


def no_network(pdm: PDM, picture_size: int) -> Validator:
    """A network without layers: its outputs are the pixels of the warped face.

    Args:
        pdm: The shape model.
        picture_size: Size of the warped face, see `mean_face_warp`.

    Returns:
        The network, of one view.

    Example:
        >>> from jaxclnf.fitting.validate import validator_outputs
        >>> blank = no_network(pdm, 16)
        >>> pixels = validator_outputs(blank, image, project(pdm, params), params.euler)
        >>> pixels.shape == (blank.mean.size,)
        True
    """
    warp = mean_face_warp(pdm, picture_size)
    shape, dtype = warp.triangle_of_pixel.shape, pdm.mean_shape.dtype
    return Validator(
        view_centers=jnp.zeros((1, 3), dtype),
        warp=warp,
        mean=jnp.zeros(shape, dtype),
        std=jnp.ones(shape, dtype),
        layers=(),
    )


def mirrored_pictures(
    blank: Validator, pictures: Float[np.ndarray, "f hw"]
) -> Float[np.ndarray, "f hw"]:
    """The other way round, left to right.

    Args:
        blank: What `no_network` returns, of a model that looks the same in a mirror.
        pictures: Its outputs.

    Returns:
        What its outputs for the mirror images would be, but for where triangles meet.

    Example:
        >>> blank = no_network(pdm, 16)
        >>> numbers = np.arange(float(blank.mean.size))[None]
        >>> width = blank.mean.shape[2]
        >>> mirrored_pictures(blank, numbers)[0, :width].tolist() == [
        ...     *range(width - 1, -1, -1)
        ... ]
        True
    """
    _, height, width = blank.mean.shape
    upright = pictures.reshape(len(pictures), height, width)
    return upright[:, :, ::-1].reshape(pictures.shape)


def learn_network(
    blank: Validator,
    pictures: Float[np.ndarray, "f hw"],
    is_near: Bool[np.ndarray, " f"],
    *,
    num_hidden: int,
    num_epochs: int,
    seed: int = 0,
) -> Validator:
    """Learns to tell fits in place from lost ones, both kinds counting the same.

    Args:
        blank: What `no_network` returns.
        pictures: Its outputs for many fits.
        is_near: Which of them are in place; there are some of each kind.
        num_hidden: Units of the hidden layer.
        num_epochs: How often each fit is seen.
        seed: Of the first weights, the order of the fits, and the dropout.

    Returns:
        The network; its one output is large for fits in place. Weights are rounded to
        half precision, in which they may be stored.

    Example:
        >>> blank = no_network(pdm, 16)
        >>> is_near = np.arange(200) % 2 == 0
        >>> noise = np.random.default_rng(0).normal(size=(200, blank.mean.size))
        >>> pictures = noise + is_near[:, None]
        >>> how = {"num_hidden": 2, "num_epochs": 9}
        >>> network = learn_network(blank, pictures, is_near, **how)
        >>> [layer.bias.shape for layer in network.layers[::2]]
        [(1, 2), (1, 1)]
    """
    dtype = blank.mean.dtype
    mean = pictures.mean(axis=0)
    batch = min(_BATCH, len(pictures))
    num_batches = len(pictures) // batch
    steps = optax.cosine_decay_schedule(_LEARNING_RATE, num_epochs * num_batches)
    optimiser = optax.adamw(steps, weight_decay=_WEIGHT_DECAY)
    shares = np.where(is_near, 0.5 / is_near.mean(), 0.5 / (~is_near).mean())
    data = jax.device_put(
        ((pictures - mean).astype(dtype), is_near, shares.astype(dtype))
    )
    key, own = jax.random.split(jax.random.key(seed))
    layers = _first_layers(own, pictures.shape[1], num_hidden, dtype)
    state = optimiser.init(layers)
    order = np.random.default_rng(seed)

    def loss(layers: Layers, rows: Any, key: Array) -> Array:
        seen, near, share = rows
        kept = jax.random.bernoulli(key, 1 - _DROPOUT, seen.shape)
        seen = jnp.where(kept, seen / (1 - _DROPOUT), 0)
        output = _outputs(layers, seen)
        return jnp.mean(share * jax.nn.softplus(jnp.where(near, -output, output)))

    @jax.jit
    def one_epoch(carry: Any, batches: Array, data: Any) -> Any:
        def step(carry: Any, index: Array) -> tuple[Any, None]:
            layers, state, key = carry
            key, own = jax.random.split(key)
            slope = jax.grad(loss)(layers, jax.tree.map(lambda x: x[index], data), own)
            # optax mixes float and integer types.
            with jax.numpy_dtype_promotion("standard"):
                change, state = optimiser.update(slope, state, layers)
            return (jax.tree.map(jnp.add, layers, change), state, key), None

        return jax.lax.scan(step, carry, batches)[0]

    carry = layers, state, key
    for _ in range(num_epochs):
        index = order.permutation(len(pictures))[: num_batches * batch]
        carry = one_epoch(carry, jnp.asarray(index.reshape(num_batches, batch)), data)
    rounded = lambda x: x.astype(jnp.float16).astype(dtype)
    return dataclasses.replace(
        blank,
        mean=jnp.asarray(mean.reshape(blank.mean.shape), dtype),
        layers=jax.tree.map(rounded, carry[0]),
    )


def _first_layers(key: Array, num_pixels: int, num_hidden: int, dtype: Any) -> Layers:
    one, other = jax.random.split(key)

    def drawn(key: Array, inputs: int, outputs: int) -> FullyConnected:
        weights = jax.random.normal(key, (1, inputs, outputs), dtype)
        return FullyConnected(
            weights=weights / np.sqrt(inputs).astype(dtype),
            bias=jnp.zeros((1, outputs), dtype),
        )

    return drawn(one, num_pixels, num_hidden), ReLU(), drawn(other, num_hidden, 1)


def _outputs(layers: Layers, pictures: Float[Array, "f hw"]) -> Float[Array, " f"]:
    """What `run_layers` gives for each, as products: it is made for one picture."""
    hidden, _, last = layers
    units = jax.nn.relu(pictures @ hidden.weights[0] + hidden.bias)
    return (units @ last.weights[0] + last.bias)[:, 0]
