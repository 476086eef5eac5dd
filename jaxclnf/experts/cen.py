"""CEN patch experts: a small fully connected network looks at each support region.

The region is made zero-mean and unit-norm and goes through the layers
`y = activation(W x + b)` to one number (Zadeh, Lim, Baltrusaitis, Morency:
Convolutional experts constrained local model for 3D facial landmark detection,
ICCVW 2017). The networks are large, so every second position of the window is left out
and filled in from its neighbours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclnf.experts.types import CENExperts, CENLayer

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "linear": lambda x: x,
}


def cen_responses(
    experts: CENExperts,
    view: Int[Array, ""],
    areas: Float[Array, "n a a"],
    *,
    dense: bool = False,
) -> Float[Array, "n w w"]:
    """Response maps of one view's experts.

    Args:
        experts: The experts of one scale.
        view: Which view's experts to use.
        areas: Area of interest around each landmark.
        dense: Asks the networks at every position of the window, which takes twice as
            long. Otherwise, as OpenFace does, only at every second one, like the white
            squares of a chessboard; the others are the mean of those around them.

    Returns:
        Alignment scores, as the last layer gives them (after a sigmoid: between 0 and
        1); zero where the view has no expert. Gain and offset of the grey values do not
        matter. A region without contrast counts as one of zeros.

    Mirrors:
        CEN_patch_expert::ResponseSparse and its mirrored and joint forms; Response for
        `dense`. The sparse form adds up the pixels of a region one by one, row by row,
        and so do we: in float32 the order can be seen in the fifth decimal.

    Example:
        >>> layer = CENLayer(
        ...     weights=jnp.eye(3).reshape(1, 1, 9), bias=jnp.zeros((1, 1)),
        ...     activation=jnp.zeros(1, jnp.int32), activations=("sigmoid",))
        >>> experts = CENExperts(
        ...     patch_scaling=jnp.asarray(0.5), view_centers=jnp.zeros((1, 3)),
        ...     visibility=jnp.ones((1, 1), bool), confidence=jnp.ones((1, 1)),
        ...     network=jnp.zeros((1, 1), jnp.int32),
        ...     mirrored=jnp.zeros((1, 1), bool), layers=(layer,))
        >>> area = jnp.zeros((1, 5, 5)).at[0, 1:4, 1:4].set(jnp.eye(3))
        >>> maps = cen_responses(experts, jnp.asarray(0), area, dense=True)
        >>> bool(maps[0].argmax() == 4)  # the middle of the 3 x 3 window
        True
        >>> maps = cen_responses(experts, jnp.asarray(0), area)
        >>> bool(jnp.isclose(maps[0, 1, 1], maps[0, [0, 1, 1, 2], [1, 0, 2, 1]].mean()))
        True
    """
    n, a, _ = areas.shape
    window = a - experts.support + 1
    mirrored = experts.mirrored[view][:, None, None]
    areas = jnp.where(mirrored, areas[:, :, ::-1], areas)
    sparse = not dense and window > 1
    positions = np.arange(window**2)[1::2] if sparse else np.arange(window**2)
    values = _regions(areas, experts.support, positions)
    values = _normalised(values, in_order=sparse)
    network = experts.network[view]
    for layer in experts.layers:
        values = _through(layer, network, values)
    response = values[:, 0]
    if sparse:
        filled_in = sparse_interpolation(window).astype(areas.dtype)
        response = jnp.matmul(response, filled_in, precision="highest")
    maps = response.reshape(n, window, window)
    maps = jnp.where(mirrored, maps[:, :, ::-1], maps)
    return jnp.where(experts.visibility[view][:, None, None], maps, 0)


def sparse_interpolation(window_size: int) -> Float[np.ndarray, "m ww"]:
    """From the positions that are computed to the whole window.

    The positions, row by row, with numbers 1, 3, 5 ... are computed; column by column
    it would be the same ones. All others are the mean of their neighbours above, below,
    left and right that are.

    Args:
        window_size: Side of the window, odd, at least 3.

    Returns:
        A matrix to multiply a row of computed scores with, float64.

    Raises:
        ValueError: `window_size` is even or below 3.

    Mirrors:
        interpolationMatrix in CEN_patch_expert.

    Example:
        >>> (np.array([1.0, 2, 3, 4]) @ sparse_interpolation(3)).reshape(3, 3).tolist()
        [[1.5, 1.0, 2.0], [2.0, 2.5, 3.0], [3.0, 4.0, 3.5]]
    """
    if window_size < 3 or window_size % 2 == 0:
        raise ValueError(f"window_size is {window_size}; expected an odd number from 3")
    row, column = np.divmod(np.arange(window_size**2), window_size)
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    takes = (distance[1::2] <= 1).astype(np.float64)
    return takes / takes.sum(axis=0)


def _regions(
    areas: Float[Array, "n a a"], side: int, positions: np.ndarray
) -> Float[Array, "n pp m"]:
    """The support regions at some positions of the window, each row by row."""
    n, a, _ = areas.shape
    corner_row, corner_column = np.divmod(positions, a - side + 1)
    row, column = np.divmod(np.arange(side**2), side)
    index = (row[:, None] + corner_row) * a + (column[:, None] + corner_column)
    return areas.reshape(n, a * a)[:, index.astype(np.int32)]


def _normalised(
    regions: Float[Array, "n pp m"], *, in_order: bool
) -> Float[Array, "n pp m"]:
    """Regions with zero mean and unit norm; zeros where there is no contrast.

    `in_order` takes the mean as the reference's sparse form does.
    """
    num_pixels = regions.shape[1]
    largest = jnp.max(jnp.abs(regions), axis=1, keepdims=True)
    if in_order:
        total = regions[:, :1]
        for i in range(1, num_pixels):
            total = total + regions[:, i : i + 1]
        # XLA would turn a constant divisor into a product, often one bit off.
        regions = regions - total / jnp.where(largest > 0, num_pixels, 1)
    else:
        regions = regions - regions[:, num_pixels // 2][:, None]
        regions = regions - regions.mean(axis=1, keepdims=True)
    squares = jnp.sum(regions**2, axis=1, keepdims=True)
    # Whatever rounding has left in the mean is no contrast.
    contrast = squares - jnp.sum(regions, axis=1, keepdims=True) ** 2 / num_pixels
    flat = contrast <= (32 * jnp.finfo(regions.dtype).eps * largest) ** 2
    return regions * jnp.where(flat, 0, 1 / jnp.sqrt(jnp.where(flat, 1, squares)))


def _through(
    layer: CENLayer, network: Int[Array, " n"], values: Float[Array, "n i m"]
) -> Float[Array, "n o m"]:
    """One layer of each landmark's network."""
    # Weights before values: a third faster on a CPU than the other way round.
    values = jnp.matmul(layer.weights[network], values, precision="highest")
    values = values + layer.bias[network][:, :, None]
    first, *others = (_ACTIVATIONS[name](values) for name in layer.activations)
    kind = layer.activation[network][:, None, None]
    for i, other in enumerate(others, start=1):
        first = jnp.where(kind == i, other, first)
    return first
