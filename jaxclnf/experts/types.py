"""The arrays of trained patch experts, one object per scale."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.pytree import pytree_dataclass, static


@pytree_dataclass
class CCNFExperts:
    """Continuous conditional neural field experts of one scale, all views.

    Where a landmark has no expert in a view (it is invisible there), `alpha` is zero.
    """

    patch_scaling: Float[Array, ""]
    """Size of the reference frame, pixels per millimetre."""
    view_centers: Float[Array, "v 3"]
    """Pitch, yaw and roll in the middle of each view, radians."""
    visibility: Bool[Array, "v n"]
    """Whether a landmark has an expert in a view."""
    weights: Float[Array, "v n k p p"]
    """Filter of each neuron, `[row, column]`."""
    norm_weights: Float[Array, "v n k"]
    """Gain of each neuron's filter."""
    bias: Float[Array, "v n k"]
    """Offset of each neuron."""
    alpha: Float[Array, "v n k"]
    """Weight of each neuron in the field."""
    beta: Float[Array, "v n c"]
    """Weight of each neighbour matrix."""
    confidence: Float[Array, "v n"]
    """How far an expert is to be trusted (validation correlation)."""
    neighbours: dict[int, Float[Array, "c _ _"]]
    """Neighbour matrices of a `w x w` window for each size they were trained with:
    `(c, w * w, w * w)`, both grid axes flattened row by row."""
    sigma: dict[int, tuple[Float[Array, "n ..."], ...]]
    """Covariance of the response map for each window size prepared by `with_sigma`, one
    array per view: blocks `(n, 4, q, q)` in the basis of `mirror_basis`, or whole,
    `(n, w * w, w * w)`; zero where there is no expert."""

    @property
    def support(self) -> int:
        """Side of the region that a filter sees, reference pixels."""
        return self.weights.shape[-1]


@pytree_dataclass
class SVRExperts:
    """Support vector regression experts of one scale, all views."""

    patch_scaling: Float[Array, ""]
    """Size of the reference frame, pixels per millimetre."""
    view_centers: Float[Array, "v 3"]
    """Pitch, yaw and roll in the middle of each view, radians."""
    visibility: Bool[Array, "v n"]
    """Whether a landmark has an expert in a view."""
    weights: Float[Array, "v n k p p"]
    """Template of each modality, `[row, column]`."""
    scaling: Float[Array, "v n k"]
    """Gain of each modality's correlation."""
    bias: Float[Array, "v n k"]
    """Offset of each modality."""
    confidence: Float[Array, "v n"]
    """How far an expert is to be trusted, summed over modalities."""
    modalities: tuple[str, ...] = static()
    """What each template is compared with: `"grey"` or `"gradient"`."""

    @property
    def support(self) -> int:
        """Side of the region that a template sees, reference pixels."""
        return self.weights.shape[-1]


@pytree_dataclass
class CENLayer:
    """One fully connected layer of each of `e` networks."""

    weights: Float[Array, "e o i"]
    """What each of `o` outputs takes from each of `i` inputs."""
    bias: Float[Array, "e o"]
    """Offset of each output."""
    activation: Int[Array, " e"]
    """What each network does with its outputs: an index into `activations`."""
    activations: tuple[str, ...] = static()
    """The functions that occur: `"sigmoid"`, `"relu"` or `"linear"`."""


@pytree_dataclass
class CENExperts:
    """Convolutional experts (CE-CLM) of one scale, all views.

    The `e` networks are stored once each. A landmark that has none of its own is served
    by the network of the landmark on the other side of the face, which sees its region
    flipped left to right.
    """

    patch_scaling: Float[Array, ""]
    """Size of the reference frame, pixels per millimetre."""
    view_centers: Float[Array, "v 3"]
    """Pitch, yaw and roll in the middle of each view, radians."""
    visibility: Bool[Array, "v n"]
    """Whether a landmark has an expert in a view, its own or a mirrored one."""
    network: Int[Array, "v n"]
    """Which of the `e` networks serves a landmark; 0 where it is not visible."""
    mirrored: Bool[Array, "v n"]
    """Whether that network is made for the other side of the face."""
    layers: tuple[CENLayer, ...]
    """Layers from the region's pixels, row by row, to one output."""
    confidence: Float[Array, "v n"]
    """How far an expert is to be trusted."""

    @property
    def support(self) -> int:
        """Side of the region that a network sees, reference pixels."""
        return math.isqrt(self.layers[0].weights.shape[-1])


PatchExperts = CCNFExperts | SVRExperts | CENExperts
"""Any family of experts; all have the fields up to `visibility`, and `confidence`."""


@pytree_dataclass
class ResponseMaps:
    """What the experts of one scale say about the neighbourhood of a shape."""

    maps: Float[Array, "n w w"]
    """Alignment scores, `[row, column]` in the reference frame, not negative."""
    base_shape: Float[Array, "n 2"]
    """Landmarks at the centres of the maps, image pixels."""
    ref_from_img: Float[Array, "2 2"]
    """Image to reference frame, scale times rotation."""
    img_from_ref: Float[Array, "2 2"]
    """Its inverse."""
    visibility: Bool[Array, " n"]
    """Whether a landmark has an expert in the view used; maps of others are zero."""
    confidence: Float[Array, " n"]
    """Confidence of the experts used."""
    view: Array
    """Index of the view used, int32."""
    side: Int[Array, ""] | None = None
    """Side of what was looked at, reference pixels, from the first row and column of
    the maps on; beyond it they are zero. None: all of them."""

    @property
    def centre(self) -> Array:
        """Row and column of the maps that `base_shape` is at, in their dtype.

        Example:
            >>> float(responses.centre)
            3.0
        """
        side = self.maps.shape[-1] if self.side is None else self.side
        return (jnp.asarray(side, self.maps.dtype) - 1) / 2


def filled_up(responses: ResponseMaps, size: int) -> ResponseMaps:
    """The same with maps of another size, zero beyond what was looked at.

    Args:
        responses: The maps, `(n, w, w)`; they may have been filled up before.
        size: Their new side, reference pixels, at least `w`.

    Returns:
        Maps `(n, size, size)` that say the same: one program serves several sizes.

    Raises:
        ValueError: `size` is less than `w`.

    Example:
        >>> larger = filled_up(responses, 9)
        >>> larger.maps.shape[1:], int(larger.side)
        ((9, 9), 7)
    """
    present = responses.maps.shape[-1]
    if size < present:
        raise ValueError(f"size is {size}; expected {present} or more")
    more = (0, size - present)
    side = present if responses.side is None else responses.side
    return dataclasses.replace(
        responses,
        maps=jnp.pad(responses.maps, ((0, 0), more, more)),
        side=jnp.asarray(side, jnp.int32),
    )
