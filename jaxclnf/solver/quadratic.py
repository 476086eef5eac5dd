"""F around some parameters to the second order, along `retract` at zero.

What every solver solves for its step, from what the response maps say there:

    slope  = J^T W v - r E^-1 q
    normal = J^T W J + r E^-1
    curved = J^T W (I - A^-1 C A / sigma^2) J + r E^-1 - sum_i W_i v_i . d2 x_i

the gradient of F, the curvature of the EM surrogate, and the exact negative Hessian,
with mean shifts `v`, the covariances `C` of the kernel-weighted maps (map frame) and
the second derivatives of the landmarks along the retraction.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.shape.pdm import (
    NUM_RIGID,
    PDM,
    PDMParams,
    jacobian,
    rigid_jacobian,
    shape_3d,
)
from jaxclnf.solver.evidence import Evidence, landmark_weights
from jaxclnf.solver.options import NURLMSOptions


class EMQuadratic(NamedTuple):
    """The EM surrogate of F around some parameters."""

    columns: Float[Array, "n 2 d"]
    """The Jacobian of the landmarks."""
    slope: Float[Array, " d"]
    """The gradient of F."""
    normal: Float[Array, "d d"]
    """The curvature of the surrogate: the metric."""


class LocalQuadratic(NamedTuple):
    """F around some parameters to the second order."""

    slope: Float[Array, " d"]
    """The gradient of F."""
    normal: Float[Array, "d d"]
    """The curvature of the EM surrogate: the metric."""
    curved: Float[Array, "d d"]
    """The exact negative Hessian of F."""


def phase_jacobian(pdm: PDM, params: PDMParams, rigid: bool) -> Float[Array, "n 2 d"]:
    """The Jacobian of the directions in which a phase moves.

    Args:
        pdm: The shape model.
        params: Where to differentiate.
        rigid: Pose only, or pose and modes.

    Returns:
        `rigid_jacobian` or `jacobian`.

    Example:
        >>> phase_jacobian(pdm, params, rigid=True).shape[2]
        6
    """
    return rigid_jacobian(pdm, params) if rigid else jacobian(pdm, params)


def prior_precision(
    pdm: PDM, options: NURLMSOptions, rigid: bool
) -> Float[Array, " d"]:
    """Diagonal of the prior's curvature: zeros for the pose, `r / E` for the modes.

    Args:
        pdm: The shape model.
        options: For the prior's weight.
        rigid: Pose only, or pose and modes.

    Returns:
        One entry per direction.

    Example:
        >>> prior_precision(pdm, NURLMSOptions(), rigid=True).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    pose = jnp.zeros(NUM_RIGID, pdm.eigen_values.dtype)
    if rigid:
        return pose
    reg = jnp.asarray(options.reg_factor, pose.dtype)
    return jnp.concatenate([pose, reg / pdm.eigen_values])


def normal_equations(
    params: PDMParams,
    columns: Float[Array, "n 2 d"],
    weights: Float[Array, " n"],
    shifts: Float[Array, "n 2"],
    precision: Float[Array, " d"],
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """The normal equations of a NU-RLMS step from their ingredients.

    Args:
        params: Where everything was evaluated.
        columns: The Jacobian.
        weights: Weight of each landmark.
        shifts: Mean-shift vectors in the image frame.
        precision: Diagonal of the prior's curvature.

    Returns:
        The right-hand side `J^T W v - r E^-1 q`, and the matrix `J^T W J + r E^-1`.

    Mirrors:
        The normal equations in CLNF::NU_RLMS.

    Example:
        >>> columns = rigid_jacobian(pdm, params)
        >>> n = pdm.num_landmarks
        >>> ones, still = jnp.ones(n), jnp.zeros((n, 2))
        >>> slope, normal = normal_equations(params, columns, ones, still, jnp.zeros(6))
        >>> slope.tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        >>> bool(jnp.allclose(normal[4:, 4:], n * jnp.eye(2)))
        True
    """
    # Two products, as the reference has: rounded in another way, more landmarks snap to
    # other cells of its kernel's grid.
    pull = weights[:, None] * shifts
    data = jnp.einsum("nad,na->d", columns, pull, precision="highest")
    flat = columns.reshape(-1, columns.shape[-1])
    doubled = jnp.repeat(weights, 2)[:, None]
    normal = jnp.matmul(flat.T, doubled * flat, precision="highest")
    return data - _prior_slope(params, precision), normal + jnp.diag(precision)


def em_quadratic(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    evidence: Evidence,
    options: NURLMSOptions,
    rigid: bool,
) -> EMQuadratic:
    """What a NU-RLMS step solves.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where `evidence` was taken.
        evidence: What `evaluate` found there.
        options: The phase's options.
        rigid: Pose only, or pose and modes.

    Returns:
        Jacobian, slope and curvature.

    Example:
        >>> options = NURLMSOptions()
        >>> evidence = nu_rlms_init(pdm, responses, params, options).evidence
        >>> here = em_quadratic(pdm, responses, params, evidence, options, True)
        >>> here.slope.shape, here.normal.shape
        ((6,), (6, 6))
    """
    columns = phase_jacobian(pdm, params, rigid)
    weights = landmark_weights(responses, options)
    precision = prior_precision(pdm, options, rigid)
    slope, normal = normal_equations(
        params, columns, weights, evidence.mean_shifts, precision
    )
    return EMQuadratic(columns, slope, normal)


def local_quadratic(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    evidence: Evidence,
    options: NURLMSOptions,
    columns: Float[Array, "n 2 d"],
) -> LocalQuadratic:
    """All derivatives of F at some parameters, from the evidence there.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        params: Where `evidence` was taken.
        evidence: What `evaluate` found there, with covariances.
        options: The phase's options.
        columns: The Jacobian there, which says what moves; see `phase_jacobian`.

    Returns:
        The derivatives.

    Raises:
        ValueError: The evidence has no covariances.

    Example:
        >>> options = NURLMSOptions(solver="newton")
        >>> evidence = nu_rlms_init(pdm, responses, params, options).evidence
        >>> columns = phase_jacobian(pdm, params, rigid=True)
        >>> here = local_quadratic(pdm, responses, params, evidence, options, columns)
        >>> here.slope.shape, here.curved.shape
        ((6,), (6, 6))
    """
    rigid = columns.shape[-1] == NUM_RIGID
    weights = landmark_weights(responses, options)
    precision = prior_precision(pdm, options, rigid)
    pull = weights[:, None] * evidence.mean_shifts
    metric = _landmark_metric(responses, evidence, options)
    bent = metric[..., :1] * columns[:, None, 0] + metric[..., 1:] * columns[:, None, 1]
    data, normal, curved = _times_jacobian(
        columns,
        pull,
        weights[:, None, None] * columns,
        weights[:, None, None] * bent,
    )
    bend = _second_order(pdm, params, pull, rigid)
    curved = curved.at[: len(bend)].set(curved[: len(bend)] - 2 * bend)
    return LocalQuadratic(
        slope=data - _prior_slope(params, precision),
        normal=normal + jnp.diag(precision),
        # The product is symmetric but for rounding, which is not kept.
        curved=0.5 * (curved + curved.T) + jnp.diag(precision),
    )


def _times_jacobian(
    columns: Float[Array, "n 2 d"],
    pull: Float[Array, "n 2"],
    *others: Float[Array, "n 2 d"],
) -> tuple[Array, ...]:
    """`J^T` times a vector and some matrices, all in one product: on CPU several of
    this size take twice as long."""
    size = columns.shape[-1]
    right = jnp.concatenate([*others, pull[..., None]], axis=2)
    products = jnp.matmul(
        columns.reshape(-1, size).T,
        right.reshape(-1, right.shape[-1]),
        precision="highest",
    )
    squares = [products[:, k * size : (k + 1) * size] for k in range(len(others))]
    return products[:, -1], *squares


def _prior_slope(
    params: PDMParams, precision: Float[Array, " d"]
) -> Float[Array, " d"]:
    pose = jnp.zeros_like(precision[:NUM_RIGID])
    if precision.shape[0] == NUM_RIGID:
        return pose
    return precision * jnp.concatenate([pose, params.params_local])


def _landmark_metric(
    responses: ResponseMaps, evidence: Evidence, options: NURLMSOptions
) -> Float[Array, "n 2 2"]:
    """`I - A^-1 C A / sigma^2` of each landmark.

    `A` is a similarity: it turns the part of `C` that is not isotropic by twice its
    angle. Written out, what comes is symmetric to the last bit.
    """
    if evidence.covariances is None:
        raise ValueError("the evidence has no covariances; expected second_order=True")
    a, b = responses.ref_from_img[0, 0], responses.ref_from_img[1, 0]
    cosine, sine = (a**2 - b**2) / (a**2 + b**2), 2 * a * b / (a**2 + b**2)
    sigma = jnp.asarray(options.sigma, a.dtype)
    c = evidence.covariances / sigma**2
    mean, half = 0.5 * (c[:, 0, 0] + c[:, 1, 1]), 0.5 * (c[:, 0, 0] - c[:, 1, 1])
    mixed = c[:, 0, 1]
    half, mixed = cosine * half + sine * mixed, cosine * mixed - sine * half
    rows = [[1 - mean - half, -mixed], [-mixed, 1 - mean + half]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _second_order(
    pdm: PDM, params: PDMParams, pull: Float[Array, "n 2"], rigid: bool
) -> Float[Array, "4 d"]:
    """`sum_i pull_i . d2 x_i`, the second derivative along `retract` at zero.

    The rows of scale and rotation of a matrix that, with its transpose, adds up to it.

    `x = (s + ds) R[:2] Q(w) (X + V dq) + t + dt` with `Q = I + [w] + [w]^2 / 2 + ...`;
    only pairs with scale or rotation bend.
    """
    r = params.rotation
    force = pull[:, :1] * r[0][None, :] + pull[:, 1:] * r[1][None, :]
    shape = shape_3d(pdm, params.params_local)
    moment = jnp.matmul(force.T, shape, precision="highest")
    twist = 0.5 * (moment + moment.T) - jnp.trace(moment) * jnp.eye(3, dtype=r.dtype)
    zero = jnp.zeros((1, 1), r.dtype)
    scale_row = [zero, _turning(moment)[None], jnp.zeros((1, 2), r.dtype)]
    half = 0.5 * params.scale * twist
    rotation_rows = [jnp.zeros((3, 1), r.dtype), half, jnp.zeros((3, 2), r.dtype)]
    if not rigid:
        n, m = pdm.num_landmarks, pdm.num_modes
        moments = jnp.matmul(
            force.T, pdm.princ_comp.reshape(n, 3 * m), precision="highest"
        ).reshape(3, 3, m)
        scale_row.append((moments[0, 0] + moments[1, 1] + moments[2, 2])[None])
        rotation_rows.append(params.scale * _turning(moments))
    rows = [jnp.concatenate(row, axis=1) for row in (scale_row, rotation_rows)]
    return jnp.concatenate(rows)


def _turning(moment: Float[Array, "3 3 *k"]) -> Float[Array, " 3 *k"]:
    """The torque `sum x * f` from the moments `sum f_i x_j`."""
    return jnp.stack(
        [
            moment[2, 1] - moment[1, 2],
            moment[0, 2] - moment[2, 0],
            moment[1, 0] - moment[0, 1],
        ]
    )
