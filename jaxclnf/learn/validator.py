"""When a fit is to be trusted: learnt from fits that came to rest on faces and off.

The fits are those of the model itself, from boxes near the face and far from it, in
good pictures and in bad ones, see `trial_fits.py`. A network learns to tell the warped
faces apart, on the faces that the experts were learnt from; what it says and how well
the experts respond are then weighed by a logistic regression for each scale, on faces
that neither of them has seen.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.optimize import minimize
from jaxtyping import Array, Bool, Float

from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.validate import CERTAINTY_THRESHOLD, Validator
from jaxclnf.learn.accuracy import as_loaded
from jaxclnf.learn.chain import Say
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.network import learn_network, mirrored_pictures, no_network
from jaxclnf.learn.options import ValidatorOptions
from jaxclnf.learn.trial_fits import TrialFits, trial_fits

_FEWEST = 5
"""Fits that are needed of each kind."""
_EXPECTED = f"expected {_FEWEST} of each"
_CURE = "more faces held out have more"

_RIDGE = 1e-5
"""Penalty on squared weights, which keeps them finite where all fits can be told
apart."""


class LearntValidator(NamedTuple):
    """A validator, and how often it is right about the held-out faces' fits, on which
    all but its network was learnt."""

    validator: JointValidator | LikelihoodValidator
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
    is_held_out: Bool[np.ndarray, " f"],
    options: ValidatorOptions,
    *,
    symmetric: bool = True,
    seed: int = 0,
    say: Say = lambda text: None,
) -> LearntValidator | None:
    """Learns a validator for each scale at which a fit may end.

    Args:
        model: The model; its own validator is not looked at.
        faces: All faces.
        is_held_out: Those that the experts have not seen.
        options: Which fits are in place and which lost, and what the network is like.
        symmetric: Whether each face's mirror image is a face, too, to the network.
        seed: Of the boxes, of what makes pictures worse, and of the network.
        say: Shows progress.

    Returns:
        The validator, without a network if the faces to learn from have too few fits in
        place or lost; None if the held-out ones do.

    Example:
        >>> points = np.asarray(landmarks, np.float64)[None]
        >>> one = LabelledFaces(("a",), (image,), points, np.ones(points.shape[:2]))
        >>> held_out, alone = np.ones(1, bool), ValidatorOptions(num_hidden=0)
        >>> learn_validator(model, one, held_out, alone, say=print)
        no validator: found 4 fits in place and 4 lost at scale 0, expected 5 of each \
(more faces held out have more)
    """
    model = dataclasses.replace(as_loaded(model), parts=(), validator=None)
    # Two labels or more have a box.
    has_box = np.isfinite(faces.spread).sum(axis=1) > 1
    unseen = faces.pick(has_box & is_held_out)
    network = None
    if options.num_hidden and len(unseen):
        taught = faces.pick(has_box & ~is_held_out)
        network = _network(model, taught, options, symmetric, seed, say)
    weights, biases, in_place, lost = [], [], [], []
    for scale in range(len(model.experts)):
        fits = trial_fits(model, unseen, scale, options, network=network, seed=seed)
        if fits.num_fewer < _FEWEST:
            say(f"no validator: {_found(fits)} at scale {scale}, {_EXPECTED} ({_CURE})")
            return None
        # What is looked at: the level, and what the network says.
        x = fits.level[:, None]
        if fits.outputs is not None:
            x = np.concatenate([x, fits.outputs], axis=1)
        used = fits.is_near | fits.is_far
        weight, bias = fit_logistic(jnp.asarray(x[used]), fits.is_near[used])
        weights.append(weight)
        biases.append(bias)
        trusted = np.asarray(jax.nn.sigmoid(x @ weight + bias)) > CERTAINTY_THRESHOLD
        in_place.append(round(float(trusted[fits.is_near].mean()), 4))
        lost.append(round(float(trusted[fits.is_far].mean()), 4))
    level, *output = jnp.stack(weights, axis=1)
    validator = LikelihoodValidator(weights=level, biases=jnp.stack(biases))
    if network is not None:
        validator = JointValidator(
            network=network, network_weights=output[0], likelihood=validator
        )
    return LearntValidator(validator, in_place, lost)


def _network(
    model: CLNFModel,
    taught: LabelledFaces,
    options: ValidatorOptions,
    symmetric: bool,
    seed: int,
    say: Say,
) -> Validator | None:
    """Learns the network from fits that end at the last scale."""
    blank = no_network(model.pdm, options.picture_size)
    last = len(model.experts) - 1
    fits = trial_fits(model, taught, last, options, network=blank, seed=seed)
    if fits.num_fewer < _FEWEST or fits.outputs is None:
        say(f"validator without a network: {_found(fits)} to learn from, {_EXPECTED}")
        return None
    used = fits.is_near | fits.is_far
    say(f"validator: {used.sum()} fits to learn from")
    pictures, is_near = fits.outputs[used], fits.is_near[used]
    if symmetric:
        pictures = np.concatenate([pictures, mirrored_pictures(blank, pictures)])
        is_near = np.concatenate([is_near, is_near])
    return learn_network(
        blank,
        pictures,
        is_near,
        num_hidden=options.num_hidden,
        num_epochs=options.num_epochs,
        seed=seed,
    )


def _found(fits: TrialFits) -> str:
    return f"found {fits.is_near.sum()} fits in place and {fits.is_far.sum()} lost"


def fit_logistic(
    x: Float[Array, "f d"], is_good: Bool[np.ndarray, " f"]
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """A logistic regression for which both kinds count the same.

    Args:
        x: What is known of each, finite.
        is_good: Of which kind each is; there are some of each.

    Returns:
        Weights and bias of `sigmoid(weights . x + bias)`, the probability of a good
        one.

    Example:
        >>> x = jnp.asarray([0.0, 1.0, 2.0, 1.0, 2.0, 3.0])[:, None]
        >>> (weight,), bias = fit_logistic(x, np.asarray([False] * 3 + [True] * 3))
        >>> round(float(-bias / weight), 3)  # half way between the kinds
        1.5
    """
    good = jnp.asarray(is_good)
    share = np.where(is_good, 0.5 / is_good.sum(), 0.5 / (~is_good).sum())
    share = jnp.asarray(share, x.dtype)
    middle, spread = share @ x, jnp.std(x, axis=0)
    spread = jnp.where(spread > 0, spread, 1)

    def loss(theta: Float[Array, " p"]) -> Float[Array, ""]:
        score = ((x - middle[None]) / spread[None]) @ theta[:-1] + theta[-1]
        losses = jax.nn.softplus(jnp.where(good, -score, score))
        return share @ losses + _RIDGE * theta[:-1] @ theta[:-1]

    start = jnp.zeros(x.shape[1] + 1, x.dtype)
    found = minimize(loss, start, method="BFGS").x
    weights = found[:-1] / spread
    return weights, found[-1] - weights @ middle
