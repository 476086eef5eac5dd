"""OpenFace's own NU-RLMS step: its kernel table, its clamps, its Euler angles.

The step of the `openface` dialect, for people who need the numbers of the C++ program.
It differs from `em` in this:

- the kernel is centred on a 0.1 px grid inside the window, while the mean shift is
  measured from the true position, clamped to the window (`grid_kde`);
- modes are clipped after each step, in the rigid phase too, and not before the first;
- the pose goes through float32 Euler angles, see `jaxclnf.shape.reference`;
- the stop test looks at the change of the shape only; F is not looked at, so it may
  fall, and `gradient_norm` is not known.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclnf.experts.types import ResponseMaps
from jaxclnf.pytree import all_finite, select
from jaxclnf.shape.pdm import PDM, clamp, retract
from jaxclnf.shape.reference import reference_turn
from jaxclnf.solver.box import maximise_in_box
from jaxclnf.solver.evidence import evaluate, landmark_positions
from jaxclnf.solver.kde import kernel_sums
from jaxclnf.solver.objective import objective_terms
from jaxclnf.solver.options import NURLMSOptions
from jaxclnf.solver.quadratic import em_quadratic
from jaxclnf.solver.state import NURLMSState
from jaxclnf.status import Status

_LEAST_LIKELIHOOD = 1e-8
"""What OpenFace adds to a density before it takes the logarithm."""


def openface_step(
    pdm: PDM,
    responses: ResponseMaps,
    state: NURLMSState,
    options: NURLMSOptions,
    *,
    rigid: bool = False,
) -> NURLMSState:
    """One iteration as OpenFace makes it.

    Args:
        pdm: The shape model.
        responses: The maps of this scale.
        state: The state before; its mean shifts are those of `grid_kde`.
        options: The phase's options; `solver` must be `"openface"`.
        rigid: Move the pose only, without prior.

    Returns:
        The state after. It has converged if the shape moved by less than `shape_tol`;
        it has not moved if too few landmarks are visible to tell where to.

    Mirrors:
        The body of CLNF::NU_RLMS.

    Example:
        >>> options = NURLMSOptions(solver="openface", max_steps=5, shape_tol=0.01)
        >>> before = nu_rlms_init(pdm, responses, params, options)
        >>> after = openface_step(pdm, responses, before, options)
        >>> int(after.num_steps)
        1
    """
    params = state.params
    here = em_quadratic(pdm, responses, params, state.evidence, options, rigid)
    step = maximise_in_box(here.normal, here.slope, None, None)
    solved = all_finite(step)
    step = jnp.where(solved, step, 0)
    moved = dataclasses.replace(
        clamp(pdm, retract(params, step), options.n_sigmas),
        rotation=reference_turn(params.rotation, step[1:4]),
    )
    moved = select(solved, moved, params)  # A turn by 0 rounds.
    evidence = evaluate(pdm, responses, moved, options)
    terms = objective_terms(pdm, responses, moved, evidence, options)
    shape_delta = jnp.sqrt(jnp.sum((evidence.shape - state.evidence.shape) ** 2))
    num_steps = state.num_steps + 1
    status = jnp.where(
        shape_delta < options.shape_tol,
        Status.CONVERGED,
        jnp.where(num_steps >= options.max_steps, Status.MAX_STEPS, Status.RUNNING),
    )
    finite = solved & jnp.isfinite(shape_delta)
    status = jnp.where(finite, status, Status.NONFINITE)
    return NURLMSState(
        params=moved,
        evidence=evidence,
        objective=jnp.sum(terms),
        gradient_norm=jnp.full_like(shape_delta, jnp.nan),
        shape_delta=shape_delta,
        previous_shape=state.evidence.shape,
        step_factor=jnp.ones_like(shape_delta),
        num_steps=num_steps,
        status=status.astype(jnp.int32),
    )


def openface_log_likelihoods(
    responses: ResponseMaps,
    shape: Float[Array, "n 2"],
    sigma: Float[Array, ""] | float,
) -> Float[Array, " n"]:
    """OpenFace's log-likelihood of each landmark.

    Args:
        responses: The maps of the last scale.
        shape: Landmarks, image pixels; OpenFace takes those before the last step.
        sigma: Bandwidth of the kernel, reference pixels.

    Returns:
        `log(sum_u map(u) kernel(u) + 1e-8)` with the kernel at the true position, -inf
        for landmarks without an expert (OpenFace writes -1e8).

    Mirrors:
        The end of CLNF::NU_RLMS.

    Example:
        >>> logs = openface_log_likelihoods(responses, responses.base_shape, 1.5)
        >>> bool(jnp.isfinite(logs).all())
        True
    """
    positions = landmark_positions(responses, shape)
    sums = kernel_sums(responses.maps, positions, jnp.asarray(sigma, shape.dtype))
    logs = jnp.log(sums[:, 0] + _LEAST_LIKELIHOOD)
    return jnp.where(responses.visibility, logs, -jnp.inf)
