"""From an image and a shape to the response maps of all landmarks."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxclnf.experts.area import GreyImage, Sampling, areas_of_interest
from jaxclnf.experts.ccnf import ccnf_responses
from jaxclnf.experts.cen import cen_responses
from jaxclnf.experts.svr import svr_responses
from jaxclnf.experts.types import (
    CCNFExperts,
    CENExperts,
    PatchExperts,
    ResponseMaps,
)
from jaxclnf.shape.pdm import PDM, PDMParams, project, shape_3d
from jaxclnf.shape.reference import reference_frame, reference_project
from jaxclnf.shape.similarity import align_shapes, inverse_similarity


def choose_view(
    view_centers: Float[Array, "v 3"], euler: Float[Array, " 3"]
) -> Int[Array, ""]:
    """The view whose centre is nearest to a pose.

    Args:
        view_centers: Pitch, yaw and roll of each view, radians.
        euler: Pitch, yaw and roll of the face, radians.

    Returns:
        Index of the nearest centre in squared angle distance; the first one of equals.

    Mirrors:
        Patch_experts::GetViewIdx.

    Example:
        >>> centers = jnp.asarray([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
        >>> int(choose_view(centers, jnp.asarray([0.1, 0.4, 0.0])))
        1
    """
    distance = jnp.sum((view_centers - euler[None, :]) ** 2, axis=1)
    return jnp.argmin(distance).astype(jnp.int32)


@partial(jax.jit, static_argnames=("window_size", "sampling"))
def response_maps(
    pdm: PDM,
    experts: PatchExperts,
    image: GreyImage,
    params: PDMParams,
    window_size: int,
    *,
    sampling: Sampling = "exact",
    origin: Int[Array, " 2"] | None = None,
) -> ResponseMaps:
    """Response maps of every landmark around its present position.

    The reference frame is that of the present shape seen from the front at
    `patch_scaling` pixels per millimetre; the similarity to it undoes the face's size
    and in-plane rotation.

    Args:
        pdm: The shape model.
        experts: Patch experts of one scale.
        image: Grey values of any type.
        params: The shape around which to look.
        window_size: Side of each map, odd.
        sampling: How grey values between pixels are found; see `areas_of_interest`.
        origin: Whole pixels to add to the landmarks; see `areas_of_interest`.

    Returns:
        The maps with all that a solver needs to know about them.

    Raises:
        ValueError: `window_size` is even or not positive.

    Mirrors:
        Patch_experts::Response.

    Example:
        >>> responses = response_maps(pdm, model.experts[0], image, params, 7)
        >>> responses.maps.shape == (pdm.num_landmarks, 7, 7)
        True
    """
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size is {window_size}; expected an odd number")
    if sampling == "fixed_point":
        base_shape = reference_project(pdm, params)
        ref_from_img, img_from_ref = reference_frame(
            pdm, params, base_shape, experts.patch_scaling
        )
    else:
        base_shape = project(pdm, params)
        reference = experts.patch_scaling * shape_3d(pdm, params.params_local)[:, :2]
        ref_from_img = align_shapes(base_shape, reference)
        img_from_ref = inverse_similarity(ref_from_img)
    view = choose_view(experts.view_centers, params.euler)
    areas = areas_of_interest(
        image,
        base_shape,
        img_from_ref,
        window_size + experts.support - 1,
        sampling=sampling,
        origin=origin,
    )
    if isinstance(experts, CCNFExperts):
        maps = ccnf_responses(experts, view, areas)
    elif isinstance(experts, CENExperts):
        maps = cen_responses(experts, view, areas)
    else:
        maps = svr_responses(experts, view, areas)
    return ResponseMaps(
        maps=maps,
        base_shape=base_shape,
        ref_from_img=ref_from_img,
        img_from_ref=img_from_ref,
        visibility=experts.visibility[view],
        confidence=experts.confidence[view],
        view=view,
    )
