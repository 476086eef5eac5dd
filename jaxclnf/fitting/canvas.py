"""Images of all sizes on canvases of a few, so that few programs are compiled.

Outside the image counts as 0 anyway, so zeros on the right and at the bottom change no
result.
"""

from typing import NamedTuple

import numpy as np

_SMALLEST = 256


class Window(NamedTuple):
    """A part of an image, on a canvas of its own."""

    left: int
    """First column of the image."""
    top: int
    """First row."""
    shape: tuple[int, int]
    """Height and width of the canvas, which may reach beyond the image."""


class Canvas(NamedTuple):
    """What a program is compiled for: the size and the type of cut-out images."""

    shape: tuple[int, int]
    """Height and width."""
    dtype: np.dtype
    """Type of the grey values."""

    @property
    def area(self) -> int:
        """Its pixels."""
        return self.shape[0] * self.shape[1]


def canvas_shape(image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the canvas for a whole image.

    A square with a power of two as its side: photographs of all but the oddest
    proportions need one compilation per power of two. Strips, four times as long as
    wide or more, keep a short side of their own to save memory.

    Args:
        image_shape: Height and width of the image.

    Returns:
        Those of its canvas.

    Example:
        >>> canvas_shape((600, 800)), canvas_shape((300, 4000))
        ((1024, 1024), (512, 4096))
    """
    longest = max(image_shape)
    height, width = (
        max(_SMALLEST, _power_of_two(longest if 4 * side > longest else side))
        for side in image_shape
    )
    return height, width


def whole_image(image_shape: tuple[int, ...]) -> Window:
    """The window that holds a whole image.

    Args:
        image_shape: Height and width of the image.

    Returns:
        The window.

    Example:
        >>> whole_image((600, 800))
        Window(left=0, top=0, shape=(1024, 1024))
    """
    return Window(0, 0, canvas_shape(image_shape))


def window_around(low: np.ndarray, high: np.ndarray, image_shape: tuple) -> Window:
    """The smallest window around a part of an image.

    Args:
        low: Left and top of the part, image pixels.
        high: Right and bottom.
        image_shape: Height and width of the image.

    Returns:
        A square window with a power of two as its side, as far as possible inside the
        image; the whole image where the square would not be smaller. For a part that is
        not finite, or far away, the smallest window in the nearest corner.

    Example:
        >>> window_around(np.array([900, 30]), np.array([1200, 330]), (3000, 4000))
        Window(left=794, top=0, shape=(512, 512))
    """
    far = 4.0 * max(image_shape)
    low, high = (np.clip(np.nan_to_num(x), -far, far) for x in (low, high))
    side = max(_SMALLEST, _power_of_two(int(np.ceil((high - low).max())) + 1))
    whole = whole_image(image_shape)
    if side**2 >= whole.shape[0] * whole.shape[1]:
        return whole
    room = np.maximum(np.array(image_shape[::-1]) - side, 0)
    corner = np.clip(np.round((low + high - side) / 2), 0, room).astype(int)
    return Window(int(corner[0]), int(corner[1]), (side, side))


def holds(window: Window, reach: np.ndarray, image_shape: tuple) -> bool:
    """Whether a window has all of an image that was looked at.

    Args:
        window: The window.
        reach: `(left, top, right, bottom)` in the image; NaN for nothing at all.
        image_shape: Height and width of the image.

    Returns:
        Whether nothing of the image lies in the reach but outside the window.

    Example:
        >>> window = Window(0, 100, (256, 256))
        >>> holds(window, np.array([-9, 120, 50, 300.0]), (600, 800))
        True
        >>> holds(window, np.array([-9, 80, 50, 300.0]), (600, 800))
        False
    """
    begin = np.array([window.left, window.top])
    end = begin + window.shape[::-1]
    before = (begin > 0) & (reach[:2] < begin)
    behind = (end < image_shape[::-1]) & (reach[2:] > end - 1)
    return not bool(np.any(before | behind))


def cut(image: np.ndarray, window: Window, canvas: np.ndarray) -> tuple[int, int]:
    """Copies the part of an image in a window.

    Args:
        image: Grey values.
        window: The window.
        canvas: Where to: zeros, as large as the window at least. It is changed.

    Returns:
        The height and width that come from the image.

    Example:
        >>> canvas = np.zeros((256, 256))
        >>> cut(image, Window(200, 0, (256, 256)), canvas), image.shape
        ((240, 60), (240, 260))
    """
    rows, columns = window.shape
    part = image[window.top : window.top + rows, window.left : window.left + columns]
    height, width = part.shape
    canvas[:height, :width] = part
    return height, width


def on_canvas(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A whole image on its canvas.

    Args:
        image: Grey values of any type.
        dtype: Floating type of the model.

    Returns:
        The canvas, in a type that programs are compiled for; always a copy, as JAX may
        work with it after the image has been overwritten.

    Example:
        >>> on_canvas(np.zeros((600, 800), np.uint8), np.dtype(np.float32)).shape
        (1024, 1024)
    """
    grey, whole = as_grey(image, dtype), whole_image(image.shape)
    canvas = np.zeros(whole.shape, grey.dtype)
    cut(grey, whole, canvas)
    return canvas


def as_grey(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Grey values in a type that programs are compiled for.

    Args:
        image: Grey values of any type.
        dtype: Floating type of the model.

    Returns:
        Bytes as they are, everything else in the model's type.

    Example:
        >>> as_grey(np.zeros((2, 2), np.uint16), np.dtype(np.float32)).dtype
        dtype('float32')
    """
    return image if image.dtype == np.uint8 else image.astype(dtype, copy=False)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
