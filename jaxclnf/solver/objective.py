"""The objective F that NU-RLMS climbs, with its gradient and curvatures.

    F(p) = sum_i W_i / det(A) sigma^2 log density_i(d_i(p))  -  r/2 sum_j q_j^2 / E_j
    d_i(p) = A (x_i(p) - x0_i) + (w - 1) / 2,   A = ref_from_img

in px^2, over the landmarks that have evidence (an expert, and a map with a positive
entry). Only differences of F mean something: scaling a map adds a constant. All
derivatives are along `retract` at zero. NU-RLMS: Saragih, Lucey, Cohn, Deformable model
fitting by regularized landmark mean-shift, IJCV 2011.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.solver.evidence import Evidence, evaluate, landmark_weights
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import em_quadratic, local_quadratic, phase_jacobian


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


@jax.jit
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


@partial(jax.jit, static_argnames="rigid")
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
    return em_quadratic(pdm, responses, params, evidence, options, rigid).slope


@partial(jax.jit, static_argnames="rigid")
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
    evidence = evaluate(pdm, responses, params, options)
    return em_quadratic(pdm, responses, params, evidence, options, rigid).normal


@partial(jax.jit, static_argnames="rigid")
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
    columns = phase_jacobian(pdm, params, rigid)
    return local_quadratic(pdm, responses, params, evidence, options, columns).curved
