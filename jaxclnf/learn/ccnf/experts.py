"""From learnt fields to patch experts: both halves of the face, all views."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.experts.types import CCNFExperts
from jaxclnf.learn.ccnf.field import FieldParams
from jaxclnf.learn.ccnf.neighbours import neighbour_matrices


@dataclasses.dataclass(frozen=True)
class ViewFields:
    """The learnt fields of all landmarks in one view."""

    center: tuple[float, float, float]
    """Pitch, yaw and roll in the middle of the view, radians."""
    fields: FieldParams
    """One field for each landmark."""
    confidence: Float[Array, " n"]
    """How far each is to be trusted."""
    visible: Bool[np.ndarray, " n"]
    """Which landmarks were learnt in this view."""


def mirrored_view(view: ViewFields, mirror: Int[np.ndarray, " n"]) -> ViewFields:
    """The view from the other side of a symmetric face.

    Args:
        view: A view.
        mirror: The partner of every landmark on the other side of the face.

    Returns:
        The view with yaw and roll of opposite sign, every field that of the landmark's
        partner with its filters reflected.

    Example:
        >>> fields = FieldParams(filters=jnp.arange(9.0).reshape(1, 1, 3, 3),
        ...     bias=jnp.zeros((1, 1)), log_alpha=jnp.zeros((1, 1)),
        ...     log_beta=jnp.zeros((1, 3)))
        >>> view = ViewFields((0.0, 0.5, 0.0), fields, jnp.ones(1), np.ones(1, bool))
        >>> other = mirrored_view(view, np.zeros(1, int))
        >>> other.center[1], other.fields.filters[0, 0, 0].tolist()
        (-0.5, [2.0, 1.0, 0.0])
    """
    pitch, yaw, roll = view.center
    return ViewFields(
        center=(pitch, -yaw, -roll),
        fields=reflected(view.fields, mirror),
        confidence=view.confidence[mirror],
        visible=view.visible[mirror],
    )


def reflected(fields: FieldParams, partner: Int[np.ndarray, " m"]) -> FieldParams:
    """Fields of the landmarks' partners on the other side of the face.

    Args:
        fields: Fields.
        partner: For each new field, the one whose mirror image it is.

    Returns:
        The fields in the new order, filters reflected left to right.

    Example:
        >>> fields = FieldParams(filters=jnp.arange(9.0).reshape(1, 1, 3, 3),
        ...     bias=jnp.zeros((1, 1)), log_alpha=jnp.zeros((1, 1)),
        ...     log_beta=jnp.zeros((1, 3)))
        >>> reflected(fields, np.asarray([0, 0])).filters.shape
        (2, 1, 3, 3)
    """
    return FieldParams(
        filters=fields.filters[partner, :, :, ::-1],
        bias=fields.bias[partner],
        log_alpha=fields.log_alpha[partner],
        log_beta=fields.log_beta[partner],
    )


def assemble_experts(
    patch_scaling: float, views: Sequence[ViewFields], window_sizes: Sequence[int]
) -> CCNFExperts:
    """Patch experts of one scale.

    Args:
        patch_scaling: Pixels per millimetre of the reference frame.
        views: The learnt views.
        window_sizes: Window sizes for which the experts hold neighbour matrices.

    Returns:
        The experts. Filters are stored zero-mean and unit-norm with their gain apart.

    Example:
        >>> fields = FieldParams(filters=2.0 * jnp.eye(3)[None, None],
        ...     bias=jnp.zeros((1, 1)), log_alpha=jnp.zeros((1, 1)),
        ...     log_beta=jnp.zeros((1, 3)))
        >>> view = ViewFields((0.0, 0.0, 0.0), fields, jnp.ones(1), np.ones(1, bool))
        >>> experts = assemble_experts(0.5, [view], (5, 7))
        >>> gain = experts.norm_weights.item()  # of the filter less its mean
        >>> experts.weights.shape, bool(jnp.isclose(gain, 8**0.5))
        ((1, 1, 1, 3, 3), True)
    """
    dtype = views[0].fields.filters.dtype
    visible = np.stack([view.visible for view in views])

    def stack(arrays: list[Array]) -> Array:
        stacked = jnp.stack(arrays)
        mask = visible.reshape(visible.shape + (1,) * (stacked.ndim - 2))
        return jnp.where(mask, stacked, 0)

    # The mean of a filter does nothing: the regions it meets are zero-mean.
    filters = stack([view.fields.filters for view in views])
    filters = filters - filters.mean(axis=(3, 4), keepdims=True)
    gain = jnp.sqrt(jnp.sum(filters**2, axis=(3, 4)))
    unit = filters / jnp.where(gain > 0, gain, 1)[..., None, None]
    return CCNFExperts(
        patch_scaling=jnp.asarray(patch_scaling, dtype),
        view_centers=jnp.asarray([view.center for view in views], dtype),
        visibility=jnp.asarray(visible),
        weights=unit,
        norm_weights=gain,
        bias=stack([view.fields.bias for view in views]),
        alpha=stack([jnp.exp(view.fields.log_alpha) for view in views]),
        beta=stack([jnp.exp(view.fields.log_beta) for view in views]),
        confidence=stack([view.confidence for view in views]),
        neighbours={
            window: jnp.asarray(neighbour_matrices(window), dtype)
            for window in window_sizes
        },
        sigma={},
    )
