"""What a training run has done so far, on disk."""

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclnf.app.train_archives import ARCHIVE_ERRORS
from jaxclnf.learn.faces import LabelledFaces


@dataclasses.dataclass(frozen=True)
class FolderStore:
    """Checkpoints as `.npz` files of one folder; a `learn.chain.Store`."""

    folder: Path
    """Where they are; made when something is saved."""

    def load(self, name: str, like: Any) -> Any:
        """Reads a tree of arrays.

        Args:
            name: What it was saved as.
            like: A tree of the same structure.

        Returns:
            The tree, or None where there is none, or none that fits: it is then made
            again.
        """
        file = self._file(name)
        leaves, structure = jax.tree.flatten(like)
        try:
            with file.open("rb") as opened, np.load(opened) as arrays:
                found = [arrays[str(i)] for i in range(len(leaves))]
        except (KeyError, *ARCHIVE_ERRORS):
            return None
        fits = [
            a.shape == leaf.shape and a.dtype == leaf.dtype
            for a, leaf in zip(found, leaves, strict=True)
        ]
        if not all(fits):
            return None
        return jax.tree.unflatten(structure, [jnp.asarray(a) for a in found])

    def save(self, name: str, tree: Any) -> None:
        """Writes a tree of arrays; an older one is replaced as a whole or not at all.

        Args:
            name: What to save it as.
            tree: The tree.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        leaves: dict[str, Any] = {
            str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))
        }
        temporary = self.folder / f".{uuid.uuid4().hex}.npz"
        try:
            np.savez(temporary, **leaves)
            os.replace(temporary, self._file(name))
        finally:
            temporary.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def fingerprint(
    options: Any, faces: LabelledFaces, arrays: Mapping[str, np.ndarray] | None = None
) -> str:
    """Tells runs apart that must not go on from each other's checkpoints.

    Args:
        options: All options that decide what is learnt, with a full `repr`.
        faces: The faces, names, labels and pictures.
        arrays: What else is learnt from.

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> none = LabelledFaces((), (), np.zeros((0, 3, 2)), np.zeros((0, 3)))
        >>> fingerprint("a", none) == fingerprint("b", none)
        False
    """
    digest = hashlib.sha256(repr(options).encode())
    digest.update(repr(faces.names).encode())
    others = sorted((arrays or {}).items())
    kinds = [(key, array.dtype.str, array.shape) for key, array in others]
    digest.update(repr(kinds).encode())
    others = [array for _, array in others]
    for array in (faces.landmarks, faces.spread, *faces.images, *others):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]
