"""What response maps say about a shape: positions in the maps, mean shifts, weights."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.pytree import pytree_dataclass
from jaxclnf.shape.pdm import PDM, PDMParams, project
from jaxclnf.shape.reference import reference_project
from jaxclnf.solver.kde import grid_kde, kde_moments, log_kde
from jaxclnf.solver.options import NURLMSOptions


@pytree_dataclass
class Evidence:
    """What the response maps say at one set of parameters."""

    shape: Float[Array, "n 2"]
    """Landmarks, image pixels."""
    log_densities: Float[Array, " n"]
    """Log kernel density at each landmark; -inf where there is no evidence."""
    mean_shifts: Float[Array, "n 2"]
    """Mean-shift vectors in the image, pixels; 0 where there is no evidence."""
    covariances: Float[Array, "n 2 2"] | None = None
    """Covariances of the kernel-weighted maps, pixels of the maps squared; with the
    second order only."""


def landmark_positions(
    responses: ResponseMaps, shape: Float[Array, "n 2"]
) -> Float[Array, "n 2"]:
    """Where landmarks lie in their response maps.

    Args:
        responses: The maps.
        shape: Landmarks, image pixels.

    Returns:
        `(column, row)` of each, real numbers, outside the map too.

    Example:
        >>> landmark_positions(responses, responses.base_shape)[0].tolist()
        [3.0, 3.0]
    """
    a = responses.ref_from_img
    moved = shape - responses.base_shape
    centre = responses.centre
    return jnp.stack(
        [
            a[0, 0] * moved[:, 0] + a[0, 1] * moved[:, 1] + centre,
            a[1, 0] * moved[:, 0] + a[1, 1] * moved[:, 1] + centre,
        ],
        axis=-1,
    )


def evaluate(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    second_order: bool | None = None,
) -> Evidence:
    """Looks up the response maps at the shape of some parameters.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For the bandwidth, and OpenFace's kernel where its step is used.
        second_order: Whether to give covariances, under the exact kernel (static); by
            default where the solver is `newton`.

    Returns:
        Shape, log densities and mean shifts in the image frame.

    Example:
        >>> evidence = evaluate(pdm, responses, params, NURLMSOptions())
        >>> evidence.mean_shifts.shape == (pdm.num_landmarks, 2)
        True
    """
    if second_order is None:
        second_order = options.solver == "newton"
    is_openface = options.solver == "openface" and not second_order
    shape = (reference_project if is_openface else project)(pdm, params)
    sigma = jnp.asarray(options.sigma, shape.dtype)
    positions = landmark_positions(responses, shape)
    covariances = None
    if second_order:
        log_densities, shifts, covariances = kde_moments(
            responses.maps, positions, sigma
        )
    else:
        log_densities, shifts = (
            grid_kde(responses.maps, positions, sigma, responses.side)
            if is_openface
            else log_kde(responses.maps, positions, sigma)
        )
    visible = has_evidence(responses)
    b = responses.img_from_ref
    shifts = jnp.stack(
        [
            b[0, 0] * shifts[:, 0] + b[0, 1] * shifts[:, 1],
            b[1, 0] * shifts[:, 0] + b[1, 1] * shifts[:, 1],
        ],
        axis=-1,
    )
    return Evidence(
        shape=shape,
        log_densities=jnp.where(visible, log_densities, -jnp.inf),
        mean_shifts=jnp.where(visible[:, None], shifts, 0),
        covariances=covariances,
    )


def mean_shifts(
    pdm: PDM, responses: ResponseMaps, params: PDMParams, options: NURLMSOptions
) -> Float[Array, "n 2"]:
    """Mean-shift vectors of the landmarks of some parameters.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For the bandwidth.

    Returns:
        Vectors in the image frame, pixels; 0 where there is no evidence.

    Example:
        >>> shifts = mean_shifts(pdm, responses, params, NURLMSOptions())
        >>> shifts.shape == (pdm.num_landmarks, 2)
        True
    """
    return evaluate(pdm, responses, params, options).mean_shifts


def landmark_weights(
    responses: ResponseMaps, options: NURLMSOptions
) -> Float[Array, " n"]:
    """Weight of each landmark in the objective.

    Args:
        responses: For confidences and visibility.
        options: For the weight factor.

    Returns:
        1 for all, or `weight_factor * confidence` where the factor is above 0; 0 for
        landmarks of no confidence, invisible ones, and those whose map has no positive
        entry.

    Example:
        >>> weights = landmark_weights(responses, NURLMSOptions(weight_factor=0.0))
        >>> bool(jnp.all((weights == 1) == responses.visibility))
        True
    """
    dtype = responses.maps.dtype
    factor = jnp.asarray(options.weight_factor, dtype)
    confidence = jnp.maximum(responses.confidence, 0)
    weights = jnp.where(factor > 0, factor * confidence, 1)
    return jnp.where(has_evidence(responses), weights, 0)


def has_evidence(responses: ResponseMaps) -> Bool[Array, " n"]:
    """Which landmarks take part: visible, and with a positive entry in their map.

    Args:
        responses: The maps.

    Returns:
        True where a landmark pulls on the shape. A map with a NaN, from an area with a
        NaN or infinite pixel, counts as no evidence.

    Example:
        >>> bool(has_evidence(responses).all())
        True
    """
    # The largest of numbers with a NaN among them is NaN.
    return responses.visibility & (jnp.max(responses.maps, axis=(1, 2)) > 0)
