"""One face as a whole: the best of its starts, its parts, its certainty, a result."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxclnf.batching import in_turn_on_cpu
from jaxclnf.experts.area import GreyImage, join_reach
from jaxclnf.fitting.hypotheses import fit_starts
from jaxclnf.fitting.joint import JointValidator, validate_jointly
from jaxclnf.fitting.likelihood import (
    LikelihoodValidator,
    response_level,
    validate_likelihood,
)
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.parts import WithParts, fit_parts, unfitted_part, worst_status
from jaxclnf.fitting.progress import ScalesFit
from jaxclnf.fitting.pruning import BestStart
from jaxclnf.fitting.result import FitResult, FitTrace
from jaxclnf.fitting.schedule import windows_of_scales
from jaxclnf.fitting.validate import CERTAINTY_THRESHOLD, Validator, validate
from jaxclnf.fitting.warp import reach_of_warp
from jaxclnf.pytree import filled
from jaxclnf.shape.pdm import PDMParams
from jaxclnf.status import Status, is_failure


def fit_face(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    starts: PDMParams,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> tuple[FitResult, FitTrace | None]:
    """Fits one face from one or several starts: a pure function without host work.

    The whole face is fitted from each start; parts are fitted, and the landmarks
    validated, for the start with the largest log-likelihood, the first of equals.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        starts: Where to start, one leading axis.
        options: The options.
        with_trace: Whether to keep every state of the best start (static).

    Returns:
        The result, and the trace if asked for.

    Raises:
        ValueError: The options leave no scale to fit, allow no pass through it, finish
            no start or name a negative number of steps.

    Mirrors:
        LandmarkDetector::DetectLandmarksInImage. OpenFace also fits the parts of starts
        that it then drops, and validates them. After several starts its views, and the
        likelihoods of its parts, are those of the last; here they are the best's.

    Example:
        >>> starts = jax.tree.map(lambda x: x[None], params)
        >>> result, _ = fit_face(
        ...     model, jnp.asarray(image), jnp.asarray(image.shape), starts,
        ...     FitOptions(window_sizes=(7,)),
        ... )
        >>> bool(result.converged)
        True
    """
    found = fit_starts(model, image, image_size, starts, options, with_trace=with_trace)
    return conclude_face(
        model, image, image_size, found, options, with_trace=with_trace
    )


def conclude_face(
    model: CLNFModel,
    image: GreyImage,
    image_size: Int[Array, " 2"],
    found: BestStart,
    options: FitOptions,
    *,
    with_trace: bool = False,
) -> tuple[FitResult, FitTrace | None]:
    """What follows when the best start is known: the parts, the certainty, the result.

    Args:
        model: The model.
        image: Grey values; may be padded with zeros on the right and at the bottom.
        image_size: Height and width without the padding.
        found: The fit that was kept.
        options: The options.
        with_trace: Whether derivatives in reverse mode may follow (static).

    Returns:
        The result, and the trace of the fit if it has one.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> starts = jax.tree.map(lambda x: x[None], params)
        >>> place = model, jnp.asarray(image), jnp.asarray(image.shape)
        >>> found = fit_starts(*place, starts, options)
        >>> bool(conclude_face(*place, found, options)[0].converged)
        True
    """
    fitted = found.fit
    whole = WithParts(fitted.landmarks, fitted.params, {}, found.reach)
    if options.use_parts:
        whole = fit_parts(
            model,
            image,
            image_size,
            fitted.landmarks,
            fitted.params,
            ~is_failure(fitted.status),
            options,
        )
    status = worst_status(fitted.status, whole.parts)
    success = ~is_failure(status)
    reach = join_reach(found.reach, whole.reach)
    certainty = jnp.full_like(fitted.log_likelihood, jnp.nan)
    match model.validator:
        case Validator() as network:
            judge = validate if with_trace else in_turn_on_cpu(validate)
            judged = judge(
                network, image, whole.landmarks, whole.params.euler, image_size
            )
            reach = join_reach(reach, reach_of_warp(whole.landmarks))
        case LikelihoodValidator() as validator:
            level = level_of_fit(model, fitted.log_likelihood, options)
            judged = validate_likelihood(validator, last_scale(model, options), level)
        case JointValidator() as validator:
            level = level_of_fit(model, fitted.log_likelihood, options)
            last = last_scale(model, options)
            joint = lambda validator, *args: validate_jointly(validator, last, *args)
            judge = joint if with_trace else in_turn_on_cpu(joint)
            euler = whole.params.euler
            judged = judge(validator, image, whole.landmarks, euler, level, image_size)
            reach = join_reach(reach, reach_of_warp(whole.landmarks))
        case None:
            judged = None
    if judged is not None:
        certainty = jnp.where(success, judged, 0)
        success = certainty > CERTAINTY_THRESHOLD
    result = FitResult(
        landmarks=whole.landmarks,
        params=whole.params,
        status=status,
        converged=status == Status.CONVERGED,
        num_steps=fitted.num_steps,
        shape_delta=fitted.shape_delta,
        gradient_norm=fitted.gradient_norm,
        newton_distance=fitted.newton_distance,
        smallest_curvature=fitted.smallest_curvature,
        num_active_bounds=fitted.num_active_bounds,
        certified=_is_certified(fitted, options),
        phase_params=fitted.phase_params,
        start_params=fitted.start_params,
        num_passes=fitted.num_passes,
        pass_delta=fitted.pass_delta,
        pass_status=fitted.pass_status,
        pass_params=fitted.pass_params,
        log_likelihood=fitted.log_likelihood,
        landmark_log_likelihoods=fitted.landmark_log_likelihoods,
        view=fitted.view,
        parts=whole.parts,
        certainty=certainty,
        success=success,
        start=found.start,
        reach=jnp.where(jnp.isfinite(reach), reach, jnp.nan),
        start_log_likelihoods=found.log_likelihoods,
    )
    return result, found.trace


def unfitted_face(
    model: CLNFModel,
    *,
    num_starts: int = 1,
    with_parts: bool = False,
    several_passes: bool = False,
) -> FitResult:
    """What stands for a face that was not looked for: as of an unusable start.

    Args:
        model: The model.
        num_starts: Starts for which there is to be room.
        with_parts: Whether there is to be room for the model's parts.
        several_passes: Whether there is to be room for where the last pass began.

    Returns:
        A result with `Status.BAD_START`, no steps, and NaN.

    Example:
        >>> nobody = unfitted_face(model, num_starts=3)
        >>> nobody.start_log_likelihoods.shape, bool(nobody.success)
        ((3,), False)
    """
    pdm, num_scales = model.pdm, len(model.experts)
    dtype, per_phase = pdm.mean_shape.dtype, (num_scales, 2)

    def nan(*shape: int) -> Array:
        return filled(shape, np.nan, dtype)

    def zero(*shape: int) -> Array:
        return filled(shape, 0, np.int32)

    no = filled((), False, np.bool_)

    def params(*axes: int) -> PDMParams:
        return PDMParams(
            scale=nan(*axes),
            rotation=nan(*axes, 3, 3),
            translation=nan(*axes, 2),
            params_local=nan(*axes, pdm.num_modes),
        )

    return FitResult(
        landmarks=nan(pdm.num_landmarks, 2),
        params=params(),
        status=filled((), Status.BAD_START, np.int32),
        converged=no,
        num_steps=zero(*per_phase),
        shape_delta=nan(*per_phase),
        gradient_norm=nan(*per_phase),
        newton_distance=nan(*per_phase),
        smallest_curvature=nan(*per_phase),
        num_active_bounds=zero(*per_phase),
        certified=no,
        phase_params=params(*per_phase),
        start_params=params(),
        num_passes=zero(),
        pass_delta=nan(),
        pass_status=filled((), Status.BAD_START, np.int32),
        pass_params=params() if several_passes else None,
        log_likelihood=nan(),
        landmark_log_likelihoods=nan(pdm.num_landmarks),
        view=zero(),
        certainty=nan() if model.validator is None else filled((), 0, dtype),
        success=no,
        start=zero(),
        start_log_likelihoods=nan(num_starts),
        reach=nan(4),
        parts={part.name: unfitted_part(part) for part in model.parts if with_parts},
    )


def last_scale(model: CLNFModel, options: FitOptions) -> int:
    """The last scale of a model that is fitted, where its log-likelihood is from.

    Args:
        model: The model.
        options: The options.

    Returns:
        Its index.

    Raises:
        ValueError: As `windows_of_scales`.

    Example:
        >>> last_scale(model, FitOptions(window_sizes=(9, 0)))
        0
    """
    windows = windows_of_scales(model, options)
    return max(scale for scale, window in enumerate(windows) if window)


def level_of_fit(
    model: CLNFModel, log_likelihood: Float[Array, ""], options: FitOptions
) -> Float[Array, ""]:
    """How strongly the experts respond where a fit came to rest: `response_level`.

    Args:
        model: The model.
        log_likelihood: That of the fit, see `FitResult`.
        options: Its options.

    Returns:
        The level at `last_scale`.

    Raises:
        ValueError: As `windows_of_scales`.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> result = fit(model, image, box, options=options)
        >>> bool(level_of_fit(model, result.log_likelihood, options) < 0)
        True
    """
    last = last_scale(model, options)
    sigma = options.at_scale(model.experts[last].patch_scaling).sigma
    return response_level(log_likelihood, sigma, options.window_sizes[last])


def _is_certified(fitted: ScalesFit, options: FitOptions) -> Bool[Array, ""]:
    tol = jnp.asarray(options.shape_tol, fitted.newton_distance.dtype)
    near = (fitted.newton_distance < tol) | (fitted.num_steps == 0)
    return (fitted.status == Status.CONVERGED) & jnp.all(near)
