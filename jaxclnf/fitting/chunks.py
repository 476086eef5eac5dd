"""Which faces of many are fitted together: few programs, full chunks, all cores."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxclnf.fitting.canvas import Canvas

_MOST_PIXELS = 1 << 26
"""Pixels of the canvases of one chunk; chunks of large ones are smaller."""


class Chunk(NamedTuple):
    """Faces that are fitted by one run of a program."""

    faces: list[int]
    """Which they are."""
    canvas: Canvas
    """The canvas of each, which may be larger than the face's own."""
    size: int
    """How many faces each device has room for."""


def plan_chunks(
    canvases: Mapping[int, Canvas], most: int, workers: int, devices: int
) -> list[Chunk]:
    """Divides faces into chunks.

    A program is compiled for each canvas and size of a chunk, which takes much longer
    than to fit the faces. So the few faces of a small canvas go to a larger one, where
    they cost memory but no time, and a size is `most` or a power of two.

    Args:
        canvases: The canvas that each face needs at least.
        most: How many faces a device takes at most.
        workers: How many chunks run at a time.
        devices: Over how many devices each chunk is spread.

    Returns:
        The chunks; every face is in one of them.

    Example:
        >>> small, large = (Canvas((k, k), np.dtype(np.uint8)) for k in (256, 512))
        >>> chunks = plan_chunks({7: small, 8: large, 9: large}, 16, 1, 1)
        >>> [(chunk.faces, chunk.canvas.shape, chunk.size) for chunk in chunks]
        [([8, 9, 7], (512, 512), 4)]
    """
    groups: dict[Canvas, list[int]] = {}
    for face, canvas in canvases.items():
        groups.setdefault(canvas, []).append(face)
    full = most * workers * devices
    for canvas in sorted(groups, key=lambda canvas: canvas.area):
        fits = [other for other in groups if _has_room(other, canvas, most)]
        if len(groups[canvas]) < full and fits:
            other = min(fits, key=lambda canvas: canvas.area)
            groups[other] += groups.pop(canvas)
    chunks = []
    for canvas, faces in groups.items():
        limit = max(1, min(most, _MOST_PIXELS // canvas.area))
        # A chunk may hold fewer faces than it could: every core gets some.
        held = min(limit, -(-len(faces) // (workers * devices)))
        size = min(limit, 1 << (held - 1).bit_length())
        held *= devices
        chunks += [
            Chunk(faces[k : k + held], canvas, size) for k in range(0, len(faces), held)
        ]
    return chunks


def _has_room(other: Canvas, canvas: Canvas, most: int) -> bool:
    """Whether a canvas can take the place of another without smaller chunks."""
    (height, width), (least_height, least_width) = other.shape, canvas.shape
    larger = height >= least_height and width >= least_width and other != canvas
    return larger and other.dtype == canvas.dtype and most * other.area <= _MOST_PIXELS
