"""Labelled faces in memory: what every part of the training looks at."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64


@dataclasses.dataclass(frozen=True)
class LabelledFaces:
    """Faces with landmarks. Each face has its own picture, cut out around it."""

    names: tuple[str, ...]
    """Name of each face, unique; it decides whether a face is held out."""
    images: tuple[np.ndarray, ...]
    """Grey pictures, uint8 `[row, column]`, of any sizes."""
    landmarks: Float64[np.ndarray, "f n 2"]
    """Labels in pixels of the face's picture; 0 where unknown."""
    spread: Float64[np.ndarray, "f n"]
    """Standard deviation of each label as far as known, pixels; infinite for a label
    that is unknown or must not be used."""

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.names)

    def pick(self, which: np.ndarray) -> "LabelledFaces":
        """Some of the faces.

        Args:
            which: Indices, or a mask.

        Returns:
            Those faces, in that order.
        """
        index = np.arange(len(self))[which]
        return LabelledFaces(
            names=tuple(self.names[i] for i in index),
            images=tuple(self.images[i] for i in index),
            landmarks=self.landmarks[index],
            spread=self.spread[index],
        )


def held_out(names: Sequence[str], share: float = 0.1) -> Bool[np.ndarray, " f"]:
    """Chooses faces for validation by their names alone.

    Adding or removing other faces, or changing their order, moves no face from one side
    to the other.

    Args:
        names: Name of each face.
        share: Expected share of held-out faces.

    Returns:
        Whether each face is held out.

    Example:
        >>> held_out(["a.jpg", "b.jpg"], share=1.0).tolist()
        [True, True]
    """
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    fractions = [int.from_bytes(digest[:8], "big") / 2**64 for digest in digests]
    return np.asarray(fractions) < share


def tight_box(landmarks: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " 4"]:
    """The smallest box around some landmarks.

    Args:
        landmarks: Points `(n, 2)`.

    Returns:
        `(x, y, width, height)`.

    Example:
        >>> tight_box(np.asarray([[1.0, 2.0], [4.0, 8.0]])).tolist()
        [1.0, 2.0, 3.0, 6.0]
    """
    low = landmarks.min(axis=0)
    return np.concatenate([low, landmarks.max(axis=0) - low])
