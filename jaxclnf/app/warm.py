"""`jaxclnf warm`: compiles ahead what `jaxclnf fit` will need."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.app.media import MAX_SIDE
from jaxclnf.app.photo_faces import fit_photo_faces
from jaxclnf.fitting.canvas import canvas_shape
from jaxclnf.fitting.many import cuts_faces_out, window_of_face

_FACES, _PHOTOGRAPHS = (100, 200), (512, 1024)
"""Sizes for which programs are made where none are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmCommand(FaceSetup):
    """Compiles ahead what fit will need, with the same arguments.

    Programs are kept in the user's cache. Faces are cut out of their photographs: those
    up to 127, 255, 511, ... pixels share a program. OpenFace's dialect cuts nothing
    out: photographs up to 256, 512, 1024, ... pixels share one.
    """

    sizes: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(metavar="INT...", help_behavior_hint=""),
    ] = None
    """Longer sides, in pixels, of the faces to come
    (default: 100 200); with --dialect openface, of the
    photographs (default: 512 1024)."""

    def run(self) -> int:
        """Compiles.

        Returns:
            The exit code, 0.

        Raises:
            ArgumentError, ModelFileError: Because of the arguments or the model.
        """
        self.check()
        cut = cuts_faces_out(self.fit_options())
        sizes = _FACES if cut else _PHOTOGRAPHS
        if self.sizes is not None:
            sizes = self.sizes
        largest = MAX_SIDE // 2 - 1 if cut else MAX_SIDE
        if not sizes or min(sizes) < 1 or max(sizes) > largest:
            text = " ".join(map(str, sizes)) or "(none)"
            raise ArgumentError(f"--sizes {text}: must be numbers, 1 to {largest}")
        model = self.load()
        options = self.fit_options(model)
        canvases = _canvases_of_faces if cut else _canvases_of_photographs
        for side, what in canvases(sizes).items():
            begin = time.perf_counter()
            # A face of an even grey: the programs are those of any other.
            image = np.full((side, side), 128, np.uint8)
            box = np.full((1, 4), side / 4)
            box[:, 2:] = side / 4 if cut else side / 2
            result = fit_photo_faces(model, image, box, options)
            jax.block_until_ready(result)
            seconds = time.perf_counter() - begin
            print(f"{what} pixels: ready after {seconds:.1f} s")
        return 0


def _canvases_of_faces(sizes: Sequence[int]) -> dict[int, str]:
    """Sides of the canvases, and what they are for."""
    whole = MAX_SIDE, MAX_SIDE
    boxes = [np.array([0, 0, size, size], float) for size in sizes]
    sides = [window_of_face(box, whole).shape[0] for box in boxes]
    return {side: f"faces up to {side // 2 - 1}" for side in sides}


def _canvases_of_photographs(sizes: Sequence[int]) -> dict[int, str]:
    """The same for whole photographs."""
    sides = [canvas_shape((size, size))[0] for size in sizes]
    return {side: f"photographs up to {side}" for side in sides}
