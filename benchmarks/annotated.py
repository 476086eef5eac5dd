"""Annotated faces of the reference data, and how fits of them are measured."""

import os
from pathlib import Path

import numpy as np

import jaxclnf
from jaxclnf.app.datasets import (
    AnnotatedFace,
    faces_of_list,
    faces_with_pts,
    interocular_error,
)

SETS = ("lfpw_test", "helen_test", "afw")
"""Folders of photographs with 68 landmarks each."""

POINTS = {"68": slice(0, 68), "51": slice(17, 68), "jaw": slice(0, 17)}
"""All landmarks, those inside the face, and the outline of the jaw."""


def shared_folder() -> Path:
    """Folder of the reference data."""
    return Path(os.environ.get("JAXCLNF_SHARED") or "../shared")


def openface_model() -> Path:
    """OpenFace's general model."""
    return shared_folder() / "openface-model" / "model" / "main_clnf_general.txt"


def set_folders() -> list[Path]:
    """Folders of the annotated sets."""
    return [shared_folder() / "faces" / name for name in SETS]


def face_sets() -> dict[str, list[AnnotatedFace]]:
    """All faces of the reference data by set, with those of the reference arrays."""
    sets = {folder.name: faces_with_pts(folder) for folder in set_folders()}
    name = "openface_reference"
    sets[name] = faces_of_list(shared_folder() / "faces" / name / "faces.json")
    return sets


def error(landmarks: np.ndarray, truth: np.ndarray, points: str) -> float:
    """Mean distance over that of the outer eye corners.

    Args:
        landmarks: Landmarks `(68, 2)` that were found.
        truth: Ground truth.
        points: Which of them, a key of `POINTS`.

    Returns:
        The error; NaN if something is unknown.
    """
    return interocular_error(landmarks, truth, POINTS[points])


def converged_phases(
    result: jaxclnf.FitResult, options: jaxclnf.FitOptions
) -> np.ndarray:
    """Which phases were run and converged.

    Args:
        result: A result, or several.
        options: Options of the fit.

    Returns:
        A mask of the shape of `result.num_steps`.
    """
    ran = np.asarray(result.num_steps) > 0
    return ran & (np.asarray(result.shape_delta) < float(options.shape_tol))
