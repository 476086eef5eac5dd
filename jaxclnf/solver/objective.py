"""The objective F that NU-RLMS climbs, with its gradient and curvatures.

    F(p) = sum_i W_i / det(A) sigma^2 log density_i(d_i(p))  -  r/2 sum_j q_j^2 / E_j
    d_i(p) = A (x_i(p) - x0_i) + (w - 1) / 2,   A = ref_from_img

in px^2, over the landmarks that have evidence (an expert, and a map with a positive
entry). Only differences of F mean something: scaling a map adds a constant. All
derivatives are along `retract` at zero. NU-RLMS: Saragih, Lucey, Cohn, Deformable model
fitting by regularized landmark mean-shift, IJCV 2011.
"""

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
from jaxclnf.solver.evidence import Evidence, evaluate, landmark_weights
from jaxclnf.solver.options import NURLMSOptions


def objective_terms(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    evidence: Evidence,
    options: NURLMSOptions,
) -> Float[Array, " t"]:
    """The summands of F: one per landmark, then one per mode.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where `evidence` was taken.
        evidence: What `evaluate` found there.
        options: For bandwidth, weights and prior.

    Returns:
        Terms in px^2; `t = n + m`.

    Example:
        >>> options = NURLMSOptions()
        >>> evidence = evaluate(pdm, responses, params, options)
        >>> terms = objective_terms(pdm, responses, params, evidence, options)
        >>> terms.shape == (pdm.num_landmarks + pdm.num_modes,)
        True
    """
    weights = landmark_weights(responses, options)
    a, b = responses.ref_from_img[0, 0], responses.ref_from_img[1, 0]
    scale = jnp.asarray(options.sigma, weights.dtype) ** 2 / (a**2 + b**2)
    used = weights > 0
    data = jnp.where(used, weights * jnp.where(used, evidence.log_densities, 0), 0)
    reg = jnp.asarray(options.reg_factor, weights.dtype)
    prior = -0.5 * reg * params.params_local**2 / pdm.eigen_values
    return jnp.concatenate([scale * data, prior])


def objective(
    pdm: PDM, responses: ResponseMaps, params: PDMParams, options: NURLMSOptions
) -> Float[Array, ""]:
    """The objective F, to be made large.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For bandwidth, weights and prior.

    Returns:
        F in px^2; only differences at the same maps mean something.

    Example:
        >>> options = NURLMSOptions()
        >>> climb = lambda d: objective(pdm, responses, retract(params, d), options)
        >>> automatic = jax.jit(jax.grad(climb))(jnp.zeros(6 + pdm.num_modes))
        >>> analytic = gradient(pdm, responses, params, options)
        >>> bool(jnp.allclose(automatic, analytic, rtol=1e-6, atol=1e-6))
        True
    """
    evidence = evaluate(pdm, responses, params, options)
    return jnp.sum(objective_terms(pdm, responses, params, evidence, options))


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


def gradient_from(
    pdm: PDM,
    params: PDMParams,
    columns: Float[Array, "n 2 d"],
    weights: Float[Array, " n"],
    shifts: Float[Array, "n 2"],
    precision: Float[Array, " d"],
) -> Float[Array, " d"]:
    """`J^T W v - r E^-1 q` from its ingredients.

    Args:
        pdm: The shape model.
        params: Where everything was evaluated.
        columns: The Jacobian.
        weights: Weight of each landmark.
        shifts: Mean-shift vectors in the image frame.
        precision: Diagonal of the prior's curvature.

    Returns:
        The gradient of F along `retract`.

    Example:
        >>> columns = rigid_jacobian(pdm, params)
        >>> n = pdm.num_landmarks
        >>> gradient_from(pdm, params, columns, jnp.ones(n), jnp.zeros((n, 2)),
        ...     jnp.zeros(6)).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    data = jnp.einsum(
        "nad,na->d", columns, weights[:, None] * shifts, precision="highest"
    )
    if columns.shape[-1] == NUM_RIGID:
        return data
    position = jnp.concatenate([jnp.zeros_like(data[:NUM_RIGID]), params.params_local])
    return data - precision * position


def gradient(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Float[Array, " d"]:
    """Gradient of F along `retract`: the right-hand side of a NU-RLMS step.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For bandwidth, weights and prior.
        rigid: Only the six pose directions.

    Returns:
        One entry per column of `jacobian`.

    Example:
        >>> gradient(pdm, responses, params, NURLMSOptions(), rigid=True).shape
        (6,)
    """
    evidence = evaluate(pdm, responses, params, options)
    return gradient_from(
        pdm,
        params,
        phase_jacobian(pdm, params, rigid),
        landmark_weights(responses, options),
        evidence.mean_shifts,
        prior_precision(pdm, options, rigid),
    )


def em_curvature(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Float[Array, "d d"]:
    """Curvature of the EM surrogate: the normal matrix `J^T W J + r E^-1` of NU-RLMS.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For weights and prior.
        rigid: Only the six pose directions.

    Returns:
        A symmetric positive semidefinite matrix.

    Example:
        >>> em_curvature(pdm, responses, params, NURLMSOptions(), rigid=True).shape
        (6, 6)
    """
    columns = phase_jacobian(pdm, params, rigid)
    return normal_matrix(
        columns,
        landmark_weights(responses, options),
        prior_precision(pdm, options, rigid),
    )


def normal_matrix(
    columns: Float[Array, "n 2 d"],
    weights: Float[Array, " n"],
    precision: Float[Array, " d"],
) -> Float[Array, "d d"]:
    """`J^T W J + diag(precision)`.

    Args:
        columns: The Jacobian.
        weights: Weight of each landmark.
        precision: Diagonal of the prior's curvature.

    Returns:
        The matrix of the weighted normal equations.

    Example:
        >>> columns = rigid_jacobian(pdm, params)
        >>> ones = jnp.ones(pdm.num_landmarks)
        >>> normal = normal_matrix(columns, ones, jnp.zeros(6))
        >>> bool(jnp.allclose(normal[4:, 4:], pdm.num_landmarks * jnp.eye(2)))
        True
    """
    flat = columns.reshape(-1, columns.shape[-1])
    doubled = jnp.repeat(weights, 2)[:, None]
    normal = jnp.matmul(flat.T, doubled * flat, precision="highest")
    return normal + jnp.diag(precision)


def curvature(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> Float[Array, "d d"]:
    """The exact negative Hessian of F along `retract`.

    `sum_i W_i J_i^T (I - A^-1 C_i A / sigma^2) J_i + r E^-1 - sum_i W_i v_i . d2 x_i`
    with the covariances `C_i` of the kernel-weighted maps (map frame) and the second
    derivative of the landmarks along the retraction.

    Args:
        pdm: The shape model.
        responses: The maps.
        params: Where to evaluate.
        options: For bandwidth, weights and prior.
        rigid: Only the six pose directions.

    Returns:
        A symmetric matrix; positive definite near a strict maximum.

    Example:
        >>> options = NURLMSOptions()
        >>> climb = lambda d: objective(pdm, responses, retract(params, d), options)
        >>> automatic = -jax.jit(jax.hessian(climb))(jnp.zeros(6 + pdm.num_modes))
        >>> analytic = curvature(pdm, responses, params, options)
        >>> bool(jnp.allclose(automatic, analytic, rtol=1e-6, atol=1e-4))
        True
    """
    evidence = evaluate(pdm, responses, params, options, second_order=True)
    return curvature_from(
        pdm,
        responses,
        params,
        phase_jacobian(pdm, params, rigid),
        landmark_weights(responses, options),
        evidence,
        prior_precision(pdm, options, rigid),
        options,
    )


def curvature_from(
    pdm: PDM,
    responses: ResponseMaps,
    params: PDMParams,
    columns: Float[Array, "n 2 d"],
    weights: Float[Array, " n"],
    evidence: Evidence,
    precision: Float[Array, " d"],
    options: NURLMSOptions,
) -> Float[Array, "d d"]:
    """`curvature` from its ingredients.

    Args:
        pdm: The shape model.
        responses: For the frames.
        params: Where everything was evaluated.
        columns: The Jacobian.
        weights: Weight of each landmark.
        evidence: What `evaluate` found there, with covariances.
        precision: Diagonal of the prior's curvature.
        options: For the bandwidth.

    Returns:
        The exact negative Hessian of F along `retract`.

    Raises:
        ValueError: The evidence has no covariances.

    Example:
        >>> options = NURLMSOptions(solver="newton")
        >>> evidence = evaluate(pdm, responses, params, options)
        >>> weights = jnp.ones(pdm.num_landmarks)
        >>> columns, none = rigid_jacobian(pdm, params), jnp.zeros(6)
        >>> curvature_from(pdm, responses, params, columns, weights, evidence, none,
        ...     options).shape
        (6, 6)
    """
    if evidence.covariances is None:
        raise ValueError("the evidence has no covariances; expected second_order=True")
    sigma = jnp.asarray(options.sigma, weights.dtype)
    a, b = responses.ref_from_img, responses.img_from_ref
    in_image = jnp.einsum(
        "ij,njk,kl->nil", b, evidence.covariances, a, precision="highest"
    )
    metric = jnp.eye(2, dtype=sigma.dtype)[None] - in_image / sigma**2
    # `a` is a similarity, so the metric is symmetric; what rounding leaves is not kept.
    weighted = 0.5 * weights[:, None, None] * (metric + jnp.swapaxes(metric, 1, 2))
    size = columns.shape[-1]
    pulled = jnp.einsum("nab,nbe->nae", weighted, columns, precision="highest")
    data = jnp.matmul(
        columns.reshape(-1, size).T, pulled.reshape(-1, size), precision="highest"
    )
    bend = _second_order(pdm, params, weights[:, None] * evidence.mean_shifts)
    curved = data + jnp.diag(precision) - bend[:size, :size]
    return 0.5 * (curved + curved.T)


def _second_order(
    pdm: PDM, params: PDMParams, pull: Float[Array, "n 2"]
) -> Float[Array, "d d"]:
    """`sum_i pull_i . d2 x_i`, the second derivative along `retract` at zero.

    `x = (s + ds) R[:2] Q(w) (X + V dq) + t + dt` with `Q = I + [w] + [w]^2 / 2 + ...`;
    only pairs with scale or rotation bend.
    """
    n, m = pdm.num_landmarks, pdm.num_modes
    shape = shape_3d(pdm, params.params_local)
    r = params.rotation
    force = pull[:, :1] * r[0][None, :] + pull[:, 1:] * r[1][None, :]
    torque = jnp.sum(jnp.cross(shape, force), axis=0)
    mode_force = jnp.einsum("nbm,nb->m", pdm.princ_comp, force, precision="highest")
    swapped = jnp.moveaxis(pdm.princ_comp, 2, 1)
    mode_torque = jnp.sum(
        jnp.cross(swapped, jnp.broadcast_to(force[:, None, :], (n, m, 3))), axis=0
    )
    moment = jnp.matmul(force.T, shape, precision="highest")
    twist = 0.5 * (moment + moment.T) - jnp.trace(moment) * jnp.eye(3, dtype=r.dtype)
    size = NUM_RIGID + m
    upper = jnp.zeros((size, size), r.dtype)
    upper = upper.at[0, 1:4].set(torque).at[0, NUM_RIGID:].set(mode_force)
    upper = upper.at[1:4, NUM_RIGID:].set(params.scale * mode_torque.T)
    bend = upper + upper.T
    return bend.at[1:4, 1:4].set(params.scale * twist)
