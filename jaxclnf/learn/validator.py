"""When a fit is to be trusted: learnt from fits that came to rest on faces and off.

The fits are those of the model itself, on faces that its experts have not seen, from
boxes near the face and far from it, in good pictures and in bad ones. What tells them
apart is how well the experts respond, see `jaxclnf.fitting.likelihood`; a logistic
regression for each scale says how well is well enough.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize
from jaxtyping import Array, Bool, Float, UInt8

from jaxclnf.fitting.face import level_of_fit
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.many import fit_many
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import DEFAULT_WINDOW_SIZES, FitOptions
from jaxclnf.fitting.validate import CERTAINTY_THRESHOLD
from jaxclnf.learn.accuracy import as_loaded, percent_off
from jaxclnf.learn.boxes import box_off
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.options import ValidatorOptions
from jaxclnf.status import is_failure

_OFF = 3 * ((0.025, 0.05),) + ((0.05, 0.1),) + 2 * ((0.3, 0.3),) + 2 * ((0.8, 0.5),)
"""From where each face is fitted, see `box_off`: half of them near, half far."""

_FEWEST = 5
"""Fits that are needed of each kind at every scale."""

_RIDGE = 1e-5
"""Penalty on the squared weight, which keeps it finite where a level tells all fits
apart."""


class LearntValidator(NamedTuple):
    """A validator, and how often it is right about the fits that it is learnt from."""

    validator: LikelihoodValidator
    """The validator."""
    trusted_in_place: list[float]
    """Share of the fits in place that are trusted, at each scale."""
    trusted_lost: list[float]
    """Share of the lost fits that are trusted."""

    def __str__(self) -> str:
        """One line for people, about the last scale."""
        return (
            f"trusts {self.trusted_in_place[-1]:.1%} of the fits in place and"
            f" {self.trusted_lost[-1]:.1%} of the lost ones"
        )


def learn_validator(
    model: CLNFModel,
    faces: LabelledFaces,
    options: ValidatorOptions,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> LearntValidator | None:
    """Learns a validator for each scale at which a fit may end.

    Args:
        model: The model; its own validator is not looked at.
        faces: Faces that its experts have not seen.
        options: Which fits are in place, and which lost.
        seed: Of the boxes, and of what makes pictures worse.
        say: Shows progress.

    Returns:
        The validator; None where too few fits are in place or too few are lost.

    Example:
        >>> points = np.asarray(landmarks, np.float64)[None]
        >>> one = LabelledFaces(("a",), (image,), points, np.ones(points.shape[:2]))
        >>> learn_validator(model, one, ValidatorOptions(), say=print)
        no validator: found 4 fits in place and 4 lost at scale 0, expected 5 of each
    """
    model = dataclasses.replace(as_loaded(model), parts=(), validator=None)
    # Two labels or more have a box.
    faces = faces.pick(np.isfinite(faces.spread).sum(axis=1) > 1)
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(len(faces)), len(_OFF))
    known = np.isfinite(faces.spread)
    boxes, pictures = [], []
    for image, labels, is_known in zip(
        faces.images, faces.landmarks, known, strict=True
    ):
        for off in _OFF:
            boxes.append(box_off(rng, labels[is_known], *off))
            pictures.append(worsened(rng, image, labels[is_known], options))
    weights, biases, in_place, lost = [], [], [], []
    for scale in range(len(model.experts)):
        fits = FitOptions(starts=1, window_sizes=_windows_up_to(scale))
        result = fit_many(
            model.prepared(fits.window_sizes),
            pictures,
            np.reshape(boxes, (-1, 4)),
            options=fits,
        )
        off = np.asarray(
            [
                percent_off(fitted[known[i]], faces.landmarks[i, known[i]])
                for i, fitted in zip(index, np.asarray(result.landmarks), strict=True)
            ]
        )
        # A default argument: a function in a loop would see its last options.
        level_of = lambda x, fits=fits: level_of_fit(model, x, fits)
        level = jax.vmap(level_of)(result.log_likelihood)
        usable = np.asarray(~is_failure(result.status) & jnp.isfinite(level))
        is_near = usable & (off < options.in_place_percent)
        is_far = usable & (off > options.lost_percent)
        if min(is_near.sum(), is_far.sum()) < _FEWEST:
            say(
                f"no validator: found {is_near.sum()} fits in place and {is_far.sum()}"
                f" lost at scale {scale}, expected {_FEWEST} of each"
            )
            return None
        used = is_near | is_far
        weight, bias = fit_logistic(level[used], is_near[used])
        weights.append(weight)
        biases.append(bias)
        trusted = np.asarray(jax.nn.sigmoid(weight * level + bias))
        trusted = trusted > CERTAINTY_THRESHOLD
        in_place.append(round(float(trusted[is_near].mean()), 4))
        lost.append(round(float(trusted[is_far].mean()), 4))
    validator = LikelihoodValidator(
        weights=jnp.stack(weights), biases=jnp.stack(biases)
    )
    return LearntValidator(validator, in_place, lost)


def worsened(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "h w"],
    landmarks: Float[np.ndarray, "n 2"],
    options: ValidatorOptions,
) -> UInt8[np.ndarray, "h w"]:
    """A picture as it is, blurred, or with noise: a third of the times each.

    Args:
        rng: Draws what is done, and how much of it.
        image: The picture.
        landmarks: Landmarks of the face in it, pixels.
        options: How much at most.

    Returns:
        The picture.

    Example:
        >>> points = np.asarray(landmarks, np.float64)
        >>> rng, picture = np.random.default_rng(0), image.astype(np.uint8)
        >>> options = ValidatorOptions(max_blur_percent=0.0, max_noise=0.0)
        >>> bool((worsened(rng, picture, points, options) == picture).all())
        True
    """
    kind, much = rng.integers(3), rng.uniform()
    if kind == 1:
        size = np.sqrt(np.ptp(landmarks, axis=0).prod())
        # OpenCV refuses 0; so little changes nothing.
        sigma = max(much * options.max_blur_percent / 100 * size, 0.01)
        return cv2.GaussianBlur(image, (0, 0), sigma).astype(np.uint8)
    if kind == 2:
        noise = rng.normal(0, much * options.max_noise, image.shape)
        return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)
    return image


def fit_logistic(
    x: Float[Array, " f"], is_good: Bool[np.ndarray, " f"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A logistic regression on one number, for which both kinds count the same.

    Args:
        x: The number, finite.
        is_good: Of which kind each is; there are some of each.

    Returns:
        Weight and bias of `sigmoid(weight * x + bias)`, the probability of a good one.

    Example:
        >>> x = jnp.asarray([0.0, 1.0, 2.0, 1.0, 2.0, 3.0])
        >>> weight, bias = fit_logistic(x, np.asarray([False] * 3 + [True] * 3))
        >>> round(float(-bias / weight), 3)  # half way between the kinds
        1.5
    """
    good = jnp.asarray(is_good)
    share = np.where(is_good, 0.5 / is_good.sum(), 0.5 / (~is_good).sum())
    share = jnp.asarray(share, x.dtype)
    middle, spread = jnp.sum(share * x), jnp.std(x)
    spread = jnp.where(spread > 0, spread, 1)

    def loss(theta: Float[Array, " 2"]) -> Float[Array, ""]:
        score = theta[0] * (x - middle) / spread + theta[1]
        losses = jax.nn.softplus(jnp.where(good, -score, score))
        return jnp.sum(share * losses) + _RIDGE * theta[0] ** 2

    found = minimize(loss, jnp.zeros(2, x.dtype), method="BFGS").x
    weight = found[0] / spread
    return weight, found[1] - weight * middle


def _windows_up_to(scale: int) -> tuple[int, ...]:
    """The usual windows of the scales up to one; of further ones, that of the last."""
    usual = DEFAULT_WINDOW_SIZES + DEFAULT_WINDOW_SIZES[-1:] * scale
    return usual[: scale + 1]
