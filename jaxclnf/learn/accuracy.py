"""How well a learnt model fits faces that it has not seen."""

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.options import FitOptions
from jaxclnf.learn.boxes import box_off
from jaxclnf.learn.faces import LabelledFaces
from jaxclnf.pytree import with_reals_as

NEAR_FRONTAL = np.radians(20.0)
"""Yaw up to which a face counts as near-frontal, radians."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Distances between fits and labels, in percent of the size of the face: the
    square root of the area of its labels' box."""

    num_faces: int
    """Near-frontal faces that were fitted."""
    mean: float
    """Mean over the faces of the mean distance."""
    median: float
    """Median over the faces."""
    worst_tenth: float
    """What a tenth of the faces exceeds."""
    converged: float
    """Share of the fits that converged."""

    def __str__(self) -> str:
        """One line for people."""
        if not self.num_faces:
            return "none is near-frontal, so none was fitted"
        return (
            f"{self.num_faces} near-frontal, distance to labels {self.median:.2f} %"
            f" median, {self.mean:.2f} % mean, a tenth above {self.worst_tenth:.2f} %"
            f" of the face's size; {self.converged:.1%} converged"
        )


def held_out_accuracy(
    model: CLNFModel,
    faces: LabelledFaces,
    yaw: Float[np.ndarray, " f"],
    *,
    options: FitOptions = FitOptions(),  # noqa: B008 (immutable)
    jitter: float = 0.05,
    seed: int = 0,
) -> Accuracy:
    """Fits near-frontal faces from boxes a little off and compares with the labels.

    Args:
        model: The model.
        faces: Faces that it has not seen.
        yaw: Yaw of each, radians.
        options: Options of the fits.
        jitter: Standard deviation of the boxes' logarithmic size; they are shifted by
            half as much of their size along each axis.
        seed: Of the boxes.

    Returns:
        The distances; NaN if no face is near-frontal.

    Example:
        >>> points = np.asarray(landmarks, np.float64)[None]
        >>> one = LabelledFaces(("a",), (image,), points, np.ones(points.shape[:2]))
        >>> held_out_accuracy(model, one, np.zeros(1),
        ...     options=FitOptions(window_sizes=(7, 7))).num_faces
        1
    """
    rng = np.random.default_rng(seed)
    model = as_loaded(model).prepared(options.window_sizes)
    distances, converged = [], []
    for i in np.nonzero(np.abs(yaw) < NEAR_FRONTAL)[0]:
        known = np.isfinite(faces.spread[i])
        labels = faces.landmarks[i, known]
        box = box_off(rng, labels, jitter / 2, jitter)
        result = fit(model, faces.images[i], box, options=options)
        fitted = np.asarray(result.landmarks, np.float64)[known]
        distances.append(percent_off(fitted, labels))
        converged.append(bool(result.converged))
    found = np.asarray(distances) if distances else np.asarray([np.nan])
    return Accuracy(
        num_faces=len(distances),
        mean=round(float(found.mean()), 4),
        median=round(float(np.median(found)), 4),
        worst_tenth=round(float(np.quantile(found, 0.9)), 4),
        converged=round(float(np.mean(converged or [np.nan])), 4),
    )


def percent_off(
    landmarks: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"]
) -> float:
    """How far landmarks are from their labels.

    Args:
        landmarks: Landmarks, pixels.
        labels: Where they should be.

    Returns:
        The mean distance in percent of the face's size, as in `Accuracy`.

    Example:
        >>> labels = np.asarray([[0.0, 0.0], [50.0, 200.0]])
        >>> percent_off(labels + (3.0, 4.0), labels)
        5.0
    """
    distance = np.linalg.norm(landmarks - labels, axis=1).mean()
    return float(100 * distance / np.sqrt(np.ptp(labels, axis=0).prod()))


def as_loaded(model: CLNFModel) -> CLNFModel:
    """A model with all its arrays in its shape's precision.

    Args:
        model: A model, with filters in half precision perhaps.

    Returns:
        The model as `load_model` would give it.

    Example:
        >>> as_loaded(model).experts[0].weights.dtype == model.pdm.mean_shape.dtype
        True
    """
    return with_reals_as(model, model.pdm.mean_shape.dtype)
