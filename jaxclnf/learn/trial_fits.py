"""What validators learn from: fits near faces and far off, in good pictures and bad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxclnf.fitting.face import level_of_fit
from jaxclnf.fitting.many import fit_many
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import DEFAULT_WINDOW_SIZES, FitOptions
from jaxclnf.fitting.result import FitResult
from jaxclnf.fitting.validate import Validator, validator_outputs
from jaxclnf.learn.accuracy import percent_off
from jaxclnf.learn.boxes import box_off
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.learn.options import ValidatorOptions
from jaxclnf.learn.worse import worsened
from jaxclnf.status import is_failure

_OFF = 3 * ((0.025, 0.05),) + ((0.05, 0.1),) + 2 * ((0.3, 0.3),) + 2 * ((0.8, 0.5),)
"""From where each face is fitted, see `box_off`: half of them near, half far."""

_TOGETHER = 64
"""Faces whose pictures are in memory at a time."""
_ROOM = 128
"""Their room is a multiple of it, pixels."""


class TrialFits(NamedTuple):
    """What is known of fits whose landmarks are known to be in place or lost."""

    level: Float[np.ndarray, " f"]
    """How strongly the experts respond, see `response_level`."""
    outputs: Float[np.ndarray, "f o"] | None
    """Of the network that was handed in."""
    is_near: Bool[np.ndarray, " f"]
    """Whether a fit is in place."""
    is_far: Bool[np.ndarray, " f"]
    """Whether it is lost. Those between are neither, and nor are failed ones."""

    @property
    def num_fewer(self) -> int:
        """How many there are of the kind of which there are fewer."""
        return int(min(self.is_near.sum(), self.is_far.sum()))


def trial_fits(
    model: CLNFModel,
    faces: LabelledFaces,
    scale_index: int,
    options: ValidatorOptions,
    *,
    network: Validator | None = None,
    seed: int = 0,
) -> TrialFits:
    """Fits faces from eight boxes each, in pictures some of which are made worse.

    Args:
        model: The model, without a validator.
        faces: The faces, each with two labels or more.
        scale_index: The last scale that is fitted.
        options: Which fits are in place, and which lost.
        network: What looks at the faces, if anything does.
        seed: Of boxes and pictures, which are the same at every scale.

    Returns:
        The fits, eight for each face.

    Example:
        >>> points = np.asarray(landmarks, np.float64)[None]
        >>> one = LabelledFaces(("a",), (image,), points, np.ones(points.shape[:2]))
        >>> trial_fits(model, one, 0, ValidatorOptions()).num_fewer
        4
    """
    fits = FitOptions(starts=1, window_sizes=_windows_up_to(scale_index))
    model = model.prepared(fits.window_sizes)
    level_of = jax.jit(jax.vmap(lambda x: level_of_fit(model, x, fits)))
    found: list[TrialFits] = []
    for begin in range(0, len(faces), _TOGETHER):
        index = np.arange(begin, min(begin + _TOGETHER, len(faces)))
        boxes, pictures = [], []
        for i in index:
            rng = np.random.default_rng([seed, int(i)])
            labels = faces.landmarks[i, np.isfinite(faces.spread[i])]
            for shift, growth in _OFF:
                boxes.append(box_off(rng, labels, shift, growth))
                pictures.append(worsened(rng, faces.images[i], labels, options))
        result = fit_many(model, pictures, np.reshape(boxes, (-1, 4)), options=fits)
        off = _distances(faces, np.repeat(index, len(_OFF)), result)
        level = np.asarray(level_of(result.log_likelihood))
        usable = np.asarray(~is_failure(result.status)) & np.isfinite(level)
        outputs = None
        if network is not None:
            outputs = _outputs(network, pictures, result)
            usable &= np.isfinite(outputs).all(axis=1)
        is_near = usable & (off < options.in_place_percent)
        is_far = usable & (off > options.lost_percent)
        found.append(TrialFits(level, outputs, is_near, is_far))
    if not found:
        nobody = np.zeros(0, bool)
        return TrialFits(np.zeros(0), None, nobody, nobody)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _distances(
    faces: LabelledFaces, index: np.ndarray, result: FitResult
) -> Float[np.ndarray, " f"]:
    known = np.isfinite(faces.spread)
    fitted = np.asarray(result.landmarks, np.float64)
    pairs = zip(index, fitted, strict=True)
    off = [percent_off(x[known[i]], faces.landmarks[i, known[i]]) for i, x in pairs]
    return np.asarray(off)


_all_outputs = jax.jit(jax.vmap(validator_outputs, in_axes=(None, 0, 0, 0, 0)))


def _outputs(
    network: Validator,
    pictures: list[np.ndarray],
    result: FitResult,
) -> Float[np.ndarray, "f o"]:
    # Few sizes, each of which is compiled for.
    largest = np.max([picture.shape for picture in pictures], axis=0)
    height, width = (-(-largest // _ROOM) * _ROOM).tolist()
    canvases = np.zeros((len(pictures), height, width), np.uint8)
    for canvas, picture in zip(canvases, pictures, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    euler = jax.vmap(lambda params: params.euler)(result.params)
    sizes = jnp.asarray([picture.shape for picture in pictures], jnp.int32)
    return np.asarray(_all_outputs(network, canvases, result.landmarks, euler, sizes))


def _windows_up_to(scale: int) -> tuple[int, ...]:
    """The usual windows of the scales up to one; of further ones, that of the last."""
    usual = DEFAULT_WINDOW_SIZES + DEFAULT_WINDOW_SIZES[-1:] * scale
    return usual[: scale + 1]
