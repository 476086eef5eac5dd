"""Labels that must not be learnt from."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxclnf.learn.faces import LabelledFaces


def mask_far_outline(
    faces: LabelledFaces,
    yaw: Float[np.ndarray, " f"],
    outline: Sequence[int],
    limit: float,
) -> LabelledFaces:
    """Leaves out the far half of the outline of faces that look to the side.

    There the outline that one sees is no longer that of the ears and the jaw, and
    labels made from a 3D mesh follow the latter.

    Under the model's rotation `Rx Ry Rz`, with x to the right and z away from the
    camera, a positive yaw takes the image's right half of the face towards the camera
    and turns the nose to the left: the left half of the outline is then the far one.

    Args:
        faces: Faces.
        yaw: Yaw of each as the shape model has it, radians; where it is NaN, nothing is
            left out.
        outline: Landmarks of the outline from the image's left to its right, as they
            are on a frontal face. The middle one of an odd number belongs to neither
            half. None: nothing is left out.
        limit: Largest yaw to either side with which all labels are used, radians.

    Returns:
        The faces, with an infinite spread at the labels that are left out.

    Raises:
        ValueError: There is not one yaw per face, or an outline landmark is none of
            the faces' landmarks.

    Example:
        >>> one = LabelledFaces(("a",), (image,), np.zeros((1, 3, 2)), np.ones((1, 3)))
        >>> mask_far_outline(one, np.array([0.6]), (0, 1, 2), limit=0.35).spread
        array([[inf,  1.,  1.]])
    """
    num_faces, num_landmarks = faces.spread.shape
    if yaw.shape != (num_faces,):
        raise ValueError(f"found {yaw.shape} angles of yaw for {num_faces} faces")
    indices = np.asarray(outline, np.int64)
    if np.any((indices < 0) | (indices >= num_landmarks)):
        raise ValueError(
            f"found outline landmarks {indices.tolist()}, expected 0 to"
            f" {num_landmarks - 1}"
        )
    half = len(indices) // 2
    spread = faces.spread.copy()
    for is_far, side in (
        (yaw > limit, indices[:half]),
        (yaw < -limit, indices[len(indices) - half :]),
    ):
        spread[np.ix_(is_far, side)] = np.inf
    return dataclasses.replace(faces, spread=spread)


def floor_spread(faces: LabelledFaces, percent: float) -> LabelledFaces:
    """Takes no label for more exact than labels can be.

    A spread from repeated measurements does not see what they have in common.

    Args:
        faces: Faces.
        percent: Smallest spread, in percent of the larger side of the box around the
            labels of a face that are in use.

    Returns:
        The faces, with that spread where it was smaller.

    Example:
        >>> points = np.array([[[0.0, 0.0], [100.0, 30.0]]])
        >>> one = LabelledFaces(("a",), (image,), points, np.array([[0.2, 3.0]]))
        >>> floor_spread(one, 0.5).spread
        array([[0.5, 3. ]])
    """
    known = np.isfinite(faces.spread)[..., None]
    low = np.where(known, faces.landmarks, np.inf).min(axis=1)
    high = np.where(known, faces.landmarks, -np.inf).max(axis=1)
    # Where nothing is known, the difference is minus infinity, and no matter.
    size = np.maximum(high - low, 0).max(axis=1)
    spread = np.maximum(faces.spread, percent / 100 * size[:, None])
    return dataclasses.replace(faces, spread=spread)
