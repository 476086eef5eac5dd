"""What all files of patch experts begin with: the scale and the views."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxclnf.openface.matrices import Cursor

MAX_VIEWS = 100
"""More views than any file of experts has."""
MAX_LANDMARKS = 10_000
"""More landmarks than any file of experts has."""
MAX_SUPPORT = 101
"""Side of a support region larger than in any file of experts."""
MAX_WEIGHTS = 1 << 27
"""More filter weights than any file of experts has: a gigabyte of them."""


class Views(NamedTuple):
    """The views of one scale."""

    patch_scaling: float
    """Size of the reference frame, pixels per millimetre."""
    centers: Float[np.ndarray, "v 3"]
    """Pitch, yaw and roll in the middle of each view, radians."""
    visibility: Bool[np.ndarray, "v n"]
    """Whether a landmark is visible in a view."""


def read_views(cursor: Cursor) -> Views:
    """The scale, the view centres and the visibilities, in file order.

    Args:
        cursor: At the beginning of a file of experts; afterwards at its first expert.

    Returns:
        The views, with angles turned from degrees into radians.

    Raises:
        ModelFileError: If the file holds something else.

    Example:
        >>> from jaxclnf.openface.text import TextCursor
        >>> text = "0.25  1  3 1 6 0 90 0  2 1 4 1 0"
        >>> views = read_views(TextCursor(text, "experts.txt"))
        >>> views.patch_scaling, views.centers.tolist(), views.visibility.tolist()
        (0.25, [[0.0, 1.5707963267948966, 0.0]], [[True, False]])
    """
    patch_scaling = cursor.real("patch scaling", 1e-3, 1e3)
    num_views = cursor.integer("number of views", 1, MAX_VIEWS)
    centers = [
        cursor.real_matrix(f"centre of view {v}", rows=3, cols=1)[:, 0]
        for v in range(num_views)
    ]
    visibility = []
    num_landmarks = None
    for v in range(num_views):
        visible = cursor.integer_matrix(
            f"visibility in view {v}", rows=num_landmarks, cols=1, low=0, high=1
        )[:, 0]
        num_landmarks = len(visible)
        visibility.append(visible.astype(bool))
    if len(visibility[0]) > MAX_LANDMARKS:
        raise cursor.error(
            "number of landmarks", len(visibility[0]), f"at most {MAX_LANDMARKS}"
        )
    return Views(patch_scaling, np.deg2rad(np.stack(centers)), np.stack(visibility))


def check_experts(
    cursor: Cursor, views: Views, present: Iterable[tuple[int, int]], num_weights: int
) -> None:
    """Makes sure that experts fit their views, and memory when made into one array.

    Args:
        cursor: The file they come from.
        views: The views.
        present: View and landmark of each expert.
        num_weights: Filter weights of one expert.

    Raises:
        ModelFileError: If a visible landmark has no expert, or there are too many
            weights.

    Example:
        >>> from jaxclnf.openface.text import TextCursor
        >>> views = Views(0.25, np.zeros((1, 3)), np.ones((1, 2), bool))
        >>> check_experts(TextCursor("", "experts.txt"), views, [(0, 0), (0, 1)], 121)
    """
    total = views.visibility.size * num_weights
    if total > MAX_WEIGHTS:
        raise cursor.error("weights of all experts", total, f"at most {MAX_WEIGHTS}")
    missing = views.visibility.copy()
    for view, landmark in present:
        missing[view, landmark] = False
    if missing.any():
        view, landmark = np.argwhere(missing)[0]
        what = f"landmark {landmark} in view {view}"
        raise cursor.error(what, "no expert", "one, as it is marked as visible")
