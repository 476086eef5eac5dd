"""`jaxclnf warm`: compiles ahead what `jaxclnf fit` will need."""

import dataclasses
import time
from typing import Annotated

import jax
import numpy as np
import tyro

from jaxclnf.app.errors import ArgumentError
from jaxclnf.app.faces_setup import FaceSetup
from jaxclnf.app.media import MAX_SIDE
from jaxclnf.fitting.canvas import canvas_shape
from jaxclnf.fitting.fit import fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmCommand(FaceSetup):
    """Compiles ahead what fit will need, with the same arguments.

    Programs are kept in the user's cache. Photographs up to the next power of two of
    their longer side share one.
    """

    sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT...")] = (512, 1024)
    """Longer sides of the photographs to come, pixels."""

    def run(self) -> int:
        """Compiles.

        Returns:
            The exit code, 0.

        Raises:
            ArgumentError, ModelFileError: Because of the arguments or the model.
        """
        self.check()
        if not self.sizes or min(self.sizes) < 1 or max(self.sizes) > MAX_SIDE:
            text = " ".join(map(str, self.sizes)) or "(none)"
            raise ArgumentError(f"--sizes {text}: must be numbers, 1 to {MAX_SIDE}")
        model = self.load()
        options = self.fit_options(model)
        for shape in dict.fromkeys(canvas_shape((size, size)) for size in self.sizes):
            begin = time.perf_counter()
            # A face of an even grey: the programs are those of any other.
            image = np.full(shape, 128, np.uint8)
            box = np.array([shape[1] / 4, shape[0] / 4, shape[1] / 2, shape[0] / 2])
            jax.block_until_ready(fit(model, image, box[None], options=options))
            print(
                f"photographs up to {shape[1]} pixels: ready after"
                f" {time.perf_counter() - begin:.1f} s"
            )
        return 0
