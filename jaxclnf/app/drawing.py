"""Pictures: what was found, drawn over the photograph."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxclnf.app.tables import Face
from jaxclnf.status import Status

PARTS_68 = {
    "jaw": (range(0, 17), False),
    "right brow": (range(17, 22), False),
    "left brow": (range(22, 27), False),
    "nose bridge": (range(27, 31), False),
    "nostrils": (range(31, 36), False),
    "right eye": (range(36, 42), True),
    "left eye": (range(42, 48), True),
    "outer lips": (range(48, 60), True),
    "inner lips": (range(60, 68), True),
}
"""Landmarks of each part of a 68-point face, and whether its line is closed."""

_READABLE_SIDE = 800
"""Photographs whose longer side is smaller are enlarged to it, pixels."""

GOOD, UNCERTAIN, FAILED = (110, 230, 90), (40, 190, 255), (70, 70, 255)
"""Colours of faces: blue, green, red."""
DARK, LIGHT = (20, 20, 20), (245, 245, 245)
"""Of rims and of dots."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX

_OUTLINED_RADIUS = 1.5
"""Smaller dots have no dark rim, which would be all that is seen of them."""

_FAR = 2**20
"""No picture has as many pixels from side to side."""

SHIFT = 4
"""Fractional bits of the coordinates handed to OpenCV: a sixteenth of a pixel."""


def draw_fits(
    bgr: UInt8[np.ndarray, "h w 3"], faces: Sequence[Face]
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws faces over a photograph.

    Each face has its start box, its landmarks (joined by part where there are 68) and
    a label: its number, how the fit ended, how many steps it took. Green has converged
    and is trusted, amber has not or is not, red has failed and shows no landmarks.

    Args:
        bgr: Photograph with channels blue, green, red; left as it is.
        faces: What was found in it.

    Returns:
        A new picture of the same shape, or larger where the photograph is small.

    Example:
        >>> draw_fits(np.zeros((60, 80, 3), np.uint8), []).shape
        (600, 800, 3)
    """
    canvas, zoom = _enlarged(bgr)
    height, width = canvas.shape[:2]
    unit = max(width, height) / _READABLE_SIDE
    for face in faces:
        _draw_face(canvas, face, zoom, unit)
    # Labels come last: no line may cross them.
    drawn = [_surroundings(face, zoom) for face in faces]
    taken: list[_Rectangle] = []
    for index, face in enumerate(faces):
        _draw_label(canvas, index, face, drawn, unit, taken)
    return canvas


def _enlarged(bgr: np.ndarray) -> tuple[np.ndarray, float]:
    zoom = _READABLE_SIDE / max(bgr.shape[:2])
    if zoom <= 1:
        return bgr.copy(), 1.0
    height, width = (max(1, round(zoom * side)) for side in bgr.shape[:2])
    resized = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized, zoom


def _color(face: Face) -> tuple[int, int, int]:
    if face.status == Status.CONVERGED and face.success:
        return GOOD
    return FAILED if face.failed else UNCERTAIN


def _draw_face(canvas: np.ndarray, face: Face, zoom: float, unit: float) -> None:
    color = _color(face)
    # Lines and dots that suit the picture would bury a small face in a large one.
    size = face.box[2] * zoom if np.isfinite(face.box[2]) else 0.0
    thickness = int(np.clip(size / 150, 1, max(1, round(1.5 * unit))))
    radius = float(np.clip(size / 120, 0.8, 1.5 * thickness))

    x, y, width, height = face.box
    corners = np.array(
        [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    )
    _draw_lines(
        canvas,
        [(_to_canvas(corners, zoom), True)],
        color if face.failed else LIGHT,
        (thickness + 1) // 2,
    )
    if face.failed:
        return
    points = _to_canvas(face.landmarks, zoom)
    if len(points) == 68:
        lines = [(points[list(part)], closed) for part, closed in PARTS_68.values()]
        _draw_lines(canvas, lines, color, thickness)
    visible = points[_finite(points)]
    if radius >= _OUTLINED_RADIUS:
        _draw_dots(canvas, visible, DARK, radius + 1)
    _draw_dots(canvas, visible, LIGHT, radius)


def _draw_lines(
    canvas: np.ndarray,
    lines: Sequence[tuple[np.ndarray, bool]],
    color: tuple[int, int, int],
    thickness: int,
) -> None:
    # All outlines before all lines, so that no outline cuts a neighbour's line.
    for ink, extra in ((DARK, 2), (color, 0)):
        for points, closed in lines:
            if _finite(points).all():
                cv2.polylines(
                    canvas,
                    [_fixed_point(points, canvas)],
                    closed,
                    ink,
                    thickness + extra,
                    cv2.LINE_AA,
                    SHIFT,
                )


def _draw_dots(
    canvas: np.ndarray, points: np.ndarray, color: tuple[int, int, int], radius: float
) -> None:
    for x, y in _fixed_point(points, canvas).tolist():
        cv2.circle(
            canvas,
            (x, y),
            round(radius * 2**SHIFT),
            color,
            cv2.FILLED,
            cv2.LINE_AA,
            SHIFT,
        )


class _Rectangle(NamedTuple):
    """Of whole pixels of the drawn picture."""

    left: int
    top: int
    width: int
    height: int

    def shared_area(self, other: "_Rectangle") -> int:
        """Pixels that are in both."""
        across, down = (
            min(self[i] + self[i + 2], other[i] + other[i + 2]) - max(self[i], other[i])
            for i in (0, 1)
        )
        return max(0, across) * max(0, down)


def _surroundings(face: Face, zoom: float) -> _Rectangle:
    """Of the box and the landmarks that are drawn; at the top left if they are nowhere.

    Numbers beyond the picture are moved nearer, as for OpenCV.
    """
    x, y, width, height = face.box
    points = np.array([[x, y], [x + width, y + height]])
    if not face.failed:
        points = np.concatenate([points, face.landmarks])
    points = _to_canvas(points, zoom)
    points = points[_finite(points)]
    if not len(points):
        return _Rectangle(0, 0, 0, 0)
    low, high = np.clip([points.min(0), points.max(0)], -_FAR, _FAR).astype(int)
    return _Rectangle(*low.tolist(), *(high - low).tolist())


def _draw_label(
    canvas: np.ndarray,
    index: int,
    face: Face,
    drawn: Sequence[_Rectangle],
    unit: float,
    taken: list[_Rectangle],
) -> None:
    status = face.status.name.lower().replace("_", " ")
    text = f"{index}: {status}, {face.steps} steps"
    if not (face.success or face.failed):
        text += ", not trusted"
    font_scale, thickness = 0.45 * unit, max(1, round(unit))
    (text_width, text_height), descent = cv2.getTextSize(
        text, _FONT, font_scale, thickness
    )
    margin = max(2, round(4 * unit))
    size = text_width + 2 * margin, text_height + descent + 2 * margin
    place = _place_label(size, drawn[index], drawn, taken, canvas.shape)
    taken.append(place)

    left, top, width, height = place
    patch = canvas[top : top + height, left : left + width]
    patch[:] = patch // 4  # darkened, so that the text can be read on any photograph
    cv2.putText(
        canvas,
        text,
        (left + margin, top + margin + text_height),
        _FONT,
        font_scale,
        _color(face),
        thickness,
        cv2.LINE_AA,
    )


def _place_label(
    size: tuple[int, int],
    own: _Rectangle,
    drawn: Sequence[_Rectangle],
    taken: Sequence[_Rectangle],
    shape: tuple[int, ...],
) -> _Rectangle:
    """Above or below its face, left or right, where it hides least of all faces.

    Inside the picture in any case (where it fits), and on no other label.
    """
    width, height = size
    places = []
    for y in (own.top - height, own.top + own.height):
        for x in (own.left, own.left + own.width - width):
            left = int(np.clip(x, 0, max(0, shape[1] - width)))
            top = int(np.clip(y, 0, max(0, shape[0] - height)))
            place = _Rectangle(left, top, width, height)
            while blocking := [box for box in taken if place.shared_area(box)]:
                place = place._replace(
                    top=max(box.top + box.height for box in blocking)
                )
            places.append(place)
    inside = [place for place in places if place.top + height <= shape[0]]
    return min(inside or places, key=lambda place: sum(map(place.shared_area, drawn)))


def _to_canvas(points: Float[np.ndarray, "k 2"], zoom: float) -> np.ndarray:
    # Pixel centres are at integers in both pictures.
    return (points.astype(np.float64) + 0.5) * zoom - 0.5


def _finite(points: Float[np.ndarray, "k 2"]) -> Bool[np.ndarray, " k"]:
    return np.logical_and(*np.isfinite(points).T)


def _fixed_point(points: Float[np.ndarray, "k 2"], canvas: np.ndarray) -> np.ndarray:
    # Points far outside are moved nearer: OpenCV's integers would overflow.
    limit = 4 * max(canvas.shape[:2])
    return np.round(np.clip(points, -limit, limit) * 2**SHIFT).astype(np.int32)
