"""The weight of the shape prior: alike for a face in pictures of any resolution."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def reg_for_size(
    reg_factor: Float[Array, ""],
    reg_scale: Float[Array, ""] | float | None,
    patch_scaling: Float[Array, ""],
    img_from_ref: Float[Array, "2 2"],
) -> Float[Array, ""]:
    """The weight of the prior on given response maps.

    Mean shifts and their Jacobian are in pixels of the image, so that what pulls at the
    shape grows with the square of the face's size. With a weight that does so too, both
    terms of F grow alike: it has the same optimum for a face of any size.

    Args:
        reg_factor: The weight on a face of the size `reg_scale`, px^2.
        reg_scale: Pixels per millimetre; None: the weight is the same on all faces.
        patch_scaling: Pixels per millimetre in the reference frame of the maps.
        img_from_ref: From that frame to the image, scale times rotation.

    Returns:
        The weight, px^2 of the image.

    Example:
        >>> double = 2 * jnp.eye(2)  # a face of 1 pixel per millimetre
        >>> reg = reg_for_size(jnp.asarray(10.0), 0.5, jnp.asarray(0.5), double)
        >>> float(reg)
        40.0
    """
    if reg_scale is None:
        return reg_factor
    turn, usual = img_from_ref, jnp.asarray(reg_scale, img_from_ref.dtype)
    area = turn[0, 0] * turn[1, 1] - turn[0, 1] * turn[1, 0]
    # A face that failed has no size; derivatives by what all share stay finite.
    area = jnp.where(jnp.isfinite(area), area, 1)
    size = area * (patch_scaling / usual) ** 2
    # A scale that means nothing leaves none to fit.
    size = jnp.where(usual > 0, size, jnp.nan)
    return reg_factor * size
