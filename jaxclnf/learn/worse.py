"""Pictures made worse: blurred, noisy, lit from one side, cut off, partly covered."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from jaxclnf.learn.options import ValidatorOptions

_Picture = UInt8[np.ndarray, "h w"]

_SHADED = 1 / 3
"""Share of the pictures that are lit from one side."""
_LONGEST = 3.0
"""How much longer than wide what covers a face is at most."""


class _Box(NamedTuple):
    """Where the face is."""

    low: Float[np.ndarray, " 2"]
    """Its left upper corner `(x, y)`, pixels."""
    size: Float[np.ndarray, " 2"]
    """Its width and height."""


def worsened(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "h w"],
    landmarks: Float[np.ndarray, "n 2"],
    options: ValidatorOptions,
) -> UInt8[np.ndarray, "h w"]:
    """A picture as it is, or worse in one of four ways, all equally often.

    A third of them is lit from one side, whatever else is done.

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
        >>> options = ValidatorOptions(
        ...     max_blur_percent=0.0, max_noise=0.0, max_shadow_percent=0.0,
        ...     max_hidden_percent=0.0,
        ... )
        >>> bool((worsened(rng, picture, points, options) == picture).all())
        True
    """
    face = _Box(landmarks.min(axis=0), np.ptp(landmarks, axis=0))
    if rng.uniform() < _SHADED:
        percent = rng.uniform() * options.max_shadow_percent
        image = _shaded(rng, image, face, percent)
    kind, much = rng.integers(5), rng.uniform()
    match kind:
        case 1:
            share = much * options.max_blur_percent / 100
            # OpenCV refuses 0; so little changes nothing.
            sigma = max(share * float(np.sqrt(face.size.prod())), 0.01)
            return cv2.GaussianBlur(image, (0, 0), sigma).astype(np.uint8)
        case 2:
            return _rounded(
                image + rng.normal(0, much * options.max_noise, image.shape)
            )
        case 3:
            return _cut_off(rng, image, face, much * options.max_hidden_percent)
        case 4:
            return _covered(rng, image, face, much * options.max_hidden_percent)
    return image


def _rounded(image: Float[np.ndarray, "h w"]) -> _Picture:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _shaded(
    rng: np.random.Generator, image: _Picture, face: _Box, percent: float
) -> _Picture:
    """Darker from one side of the face to the other, by so much at the dark end."""
    angle = rng.uniform(0, 2 * np.pi)
    towards = np.asarray([np.cos(angle), np.sin(angle)])
    y, x = np.indices(image.shape)
    middle = face.low + face.size / 2
    along = (x - middle[0]) * towards[0] + (y - middle[1]) * towards[1]
    # From 0 to 1 over the face's box, whatever the direction.
    share = np.clip(along / (np.abs(towards) @ face.size) + 0.5, 0, 1)
    return _rounded(image * (1 - percent / 100 * share))


def _cut_off(
    rng: np.random.Generator, image: _Picture, face: _Box, percent: float
) -> _Picture:
    """As if the picture ended within the face: outside of pictures all is 0."""
    if not percent:
        return image
    axis, from_end = rng.integers(2, size=2)
    low, size = face.low[axis], face.size[axis]
    inset = percent / 100 * size
    border = low + (size - inset if from_end else inset)
    places = np.arange(image.shape[1 - axis])
    inside = places <= border if from_end else places >= border
    return np.where(inside[None, :] if axis == 0 else inside[:, None], image, 0)


def _covered(
    rng: np.random.Generator, image: _Picture, face: _Box, percent: float
) -> _Picture:
    """With an even rectangle somewhere over the face, of so much of its box's area."""
    stretch = _LONGEST ** rng.uniform(-0.5, 0.5)
    sides = np.sqrt(percent / 100) * np.asarray([stretch, 1 / stretch]) * face.size
    middle = face.low + rng.uniform(size=2) * face.size
    first, last = np.round(middle - sides / 2), np.round(middle + sides / 2)
    (left, top), (right, bottom) = np.maximum([first, last], 0).astype(int)
    covered = image.copy()
    covered[top:bottom, left:right] = rng.integers(256)
    return covered
