"""Rows of OpenFace's table, made of fitted faces."""

import math
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.pose import Camera, head_pose, landmarks_3d
from jaxclnf.fitting.result import FitResult
from jaxclnf.openface.csv_table import OpenFaceRow
from jaxclnf.shape.pdm import PDM, PDMParams
from jaxclnf.status import Status
from jaxclnf.tracing import traced_once

Dialect = Literal["converged", "openface"]
"""Fits to convergence, or OpenFace's numbers."""

EYE_PARTS = ("left_eye_28", "right_eye_28")
"""Parts whose landmarks are OpenFace's columns of the eyes, in their order."""

_EYE_LANDMARKS = 28


def has_eyes(model: CLNFModel) -> bool:
    """Whether a model has the parts for OpenFace's columns of the eyes.

    Args:
        model: The model.

    Returns:
        True if there are a left and a right eye of 28 landmarks.

    Example:
        >>> has_eyes(model)
        False
    """
    found = {part.name: part.model.pdm.num_landmarks for part in model.parts}
    return all(found.get(name) == _EYE_LANDMARKS for name in EYE_PARTS)


def is_of_openface(model: CLNFModel) -> bool:
    """Whether a model was read from OpenFace's files, be it converted since.

    Args:
        model: The model.

    Returns:
        What its provenance says.

    Example:
        >>> is_of_openface(model)
        False
    """
    return model.info.provenance.startswith("OpenFace ")


def openface_row(
    model: CLNFModel,
    result: FitResult,
    camera: Camera,
    *,
    dialect: Dialect = "converged",
    frame: int = 0,
    face_id: int = 0,
    timestamp: float = 0.0,
) -> OpenFaceRow:
    """What is known of one fitted face, off the device, for a table.

    Args:
        model: The model.
        result: Its fit, without a leading axis.
        camera: The camera, for everything in millimetres.
        dialect: How the head's pose is found, as in `head_pose`.
        frame: Number of the frame, from 1; no matter for a photograph.
        face_id: Number of the face.
        timestamp: Time of the frame, seconds.

    Returns:
        The row. Its confidence is the validator's certainty, None where the model has
        no validator; landmarks of the eyes are None where it has no eyes.

    Example:
        >>> options = FitOptions(window_sizes=(7,))
        >>> result = fit(model, image, box, options=options)
        >>> row = openface_row(model, result, Camera.for_image(*image.shape))
        >>> row.status.name, row.landmarks_3d.shape
        ('CONVERGED', (12, 3))
    """
    names = EYE_PARTS if has_eyes(model) and result.parts else ()
    eye_pdms = {p.name: p.model.pdm for p in model.parts if p.name in names}
    eyes = [result.parts[name] for name in names]
    found = _geometry(
        model.pdm,
        tuple(eye_pdms[name] for name in names),
        result.params,
        tuple(eye.params for eye in eyes),
        result.landmarks,
        camera,
        dialect=dialect,
    )
    found, host = jax.tree.map(np.asarray, (found, result))
    certainty = float(host.certainty)
    return OpenFaceRow(
        frame=frame,
        face_id=face_id,
        timestamp=timestamp,
        confidence=certainty if math.isfinite(certainty) else None,
        success=bool(host.success),
        eye_landmarks_2d=np.concatenate([host.parts[n].landmarks for n in names])
        if names
        else None,
        eye_landmarks_3d=np.concatenate(found.eyes_3d) if names else None,
        pose=found.pose,
        landmarks=host.landmarks,
        landmarks_3d=found.landmarks_3d,
        params_global=found.params_global,
        params_local=host.params.params_local,
        status=Status(int(host.status)),
        steps=int(np.sum(host.num_steps)),
        log_likelihood=float(host.log_likelihood),
        certified=bool(host.certified),
    )


class _Geometry(NamedTuple):
    params_global: Float[Array, " 6"]
    pose: Float[Array, " 6"]
    landmarks_3d: Float[Array, "n 3"]
    eyes_3d: tuple[Float[Array, "e 3"], ...]


@traced_once("dialect")
def _geometry(
    pdm: PDM,
    eye_pdms: tuple[PDM, ...],
    params: PDMParams,
    eye_params: tuple[PDMParams, ...],
    landmarks: Float[Array, "n 2"],
    camera: Camera,
    *,
    dialect: Dialect,
) -> _Geometry:
    return _Geometry(
        params_global=params.params_global,
        pose=head_pose(pdm, params, camera, landmarks, dialect=dialect),
        landmarks_3d=landmarks_3d(pdm, params, camera),
        eyes_3d=tuple(
            landmarks_3d(eye_pdm, eye, camera)
            for eye_pdm, eye in zip(eye_pdms, eye_params, strict=True)
        ),
    )
