"""`jaxclnf warm`: compiles ahead what `jaxclnf fit` and `jaxclnf track` will need."""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.face_rows import openface_row
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.app.media import MAX_SIDE
from jaxclnf.app.photo_faces import fit_photo_faces
from jaxclnf.app.track import TrackCommand
from jaxclnf.fitting.canvas import canvas_shape
from jaxclnf.fitting.many import cuts_faces_out, window_of_face
from jaxclnf.fitting.model import CLNFModel
from jaxclnf.fitting.track import track_frame
from jaxclnf.fitting.track_state import start_tracking

_FACES, _PHOTOGRAPHS = (100, 200), (512, 1024)
"""Sizes for which programs are made where none are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmCommand(FaceSetup):
    """Compiles ahead what fit and track will need, with the same arguments.

    Programs are kept in the user's cache. Faces are cut out of their photographs: those
    up to 127, 255, 511, ... pixels share a program. OpenFace's dialect cuts nothing
    out: photographs up to 256, 512, 1024, ... pixels share one. With --videos only
    track's programs are made, unless --sizes is there too.
    """

    sizes: Annotated[
        tuple[int, ...] | None,
        tyro.conf.arg(metavar="INT...", help_behavior_hint=""),
    ] = None
    """Longer sides, in pixels, of the faces to come
    (default: 100 200); with --dialect openface, of the
    photographs (default: 512 1024)."""
    videos: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="WIDTHxHEIGHT...", help_behavior_hint=""),
    ] = ()
    """Sizes of the videos to come, for instance 640x480."""

    def run(self) -> int:
        """Compiles.

        Returns:
            The exit code, 0.

        Raises:
            ArgumentError, ModelFileError: Because of the arguments or the model.
        """
        self.check()
        shapes = [_frame_shape(size) for size in self.videos]
        cut = cuts_faces_out(self.fit_options())
        sizes = self._sizes(cut)
        model = self.load()
        canvases = _canvases_of_faces if cut else _canvases_of_photographs
        for side, what in canvases(sizes).items():
            self._say_ready(what, lambda side=side: self._warm_fit(model, side, cut))
        for size, shape in zip(self.videos, shapes, strict=True):
            what = f"videos of {size}"
            self._say_ready(what, lambda shape=shape: self._warm_track(model, shape))
        return 0

    def _sizes(self, cut: bool) -> tuple[int, ...]:
        sizes = _FACES if cut else _PHOTOGRAPHS
        if self.sizes is None and self.videos:
            return ()
        if self.sizes is not None:
            sizes = self.sizes
        largest = MAX_SIDE // 2 - 1 if cut else MAX_SIDE
        if not sizes or min(sizes) < 1 or max(sizes) > largest:
            text = " ".join(map(str, sizes)) or "(none)"
            raise ArgumentError(f"--sizes {text}: must be numbers, 1 to {largest}")
        return sizes

    def _warm_fit(self, model: CLNFModel, side: int, cut: bool) -> None:
        # A face of an even grey: the programs are those of any other.
        image = np.full((side, side), 128, np.uint8)
        box = np.full((1, 4), side / 4)
        box[:, 2:] = side / 4 if cut else side / 2
        options = self.fit_options(model)
        result = fit_photo_faces(model, image, box, options)
        face = jax.tree.map(lambda x: x[0], result)
        openface_row(model, face, self.camera(side, side), dialect=self.dialect)

    def _warm_track(self, model: CLNFModel, shape: tuple[int, int]) -> None:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(FaceSetup)}
        track = TrackCommand(videos=(), **given)
        options = track.track_options(model)
        model = track.prepared(model, *options.window_sizes)
        image = np.full(shape, 128, np.uint8)
        height, width = shape
        box = np.array([width / 3, height / 3, width / 4, width / 4])
        box = box.astype(model.pdm.mean_shape.dtype)
        state = start_tracking(model, options)
        # A new face, one that was there in the last frame, one that was lost there.
        for was_good in (None, True, False):
            if was_good is not None:
                state = dataclasses.replace(state, success=jnp.asarray(was_good))
            state, result = track_frame(model, image, state, options, lambda: box)
            openface_row(model, result, self.camera(*shape), dialect=self.dialect)

    @staticmethod
    def _say_ready(what: str, warm: Callable[[], None]) -> None:
        begin = time.perf_counter()
        warm()
        print(f"{what} pixels: ready after {time.perf_counter() - begin:.1f} s")


def _frame_shape(size: str) -> tuple[int, int]:
    """Height and width of `WIDTHxHEIGHT`."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ArgumentError(
            f"--videos {size}: must be sizes like 640x480, each side 1 to {MAX_SIDE}"
        )
    return height, width


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
