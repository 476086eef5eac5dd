"""The chunks that `fit_many` really runs: steps in lanes, time in the program."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import jax
import numpy as np
from speed_machine import median_ms

from jaxclnf.fitting import many
from jaxclnf.fitting.chunks import Chunk
from jaxclnf.solver.lanes import count_rounds, num_lanes


class ChunksRun:
    """What `chunks_run` has seen."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self.chunks: list[Chunk] = []
        self.run: Any = None
        """The program of one of the largest, called again."""
        self.size = 0
        """How many faces that one has room for."""
        self.faces = 0
        """And how many it had: the others ended at once."""

    def program_ms_per_face(self) -> float:
        """Time of the program of a full chunk, its inputs on the device already.

        Returns:
            Milliseconds a face; the rest of what `fit_many` takes is the host's work.
        """
        jax.block_until_ready(self.run())
        return median_ms(self.run, 1.0) / self.faces


@contextmanager
def chunks_run() -> Iterator[ChunksRun]:
    """Watches what `fit_many` runs, faces fitted again included.

    Yields:
        What it has run so far.

    Example:
        >>> with chunks_run() as seen:
        ...     _ = fit_many(model, image, box[None], options=options)
        >>> [chunk.size for chunk in seen.chunks]
        [1]
    """
    seen = ChunksRun()
    plan, program = many.plan_chunks, many._fit_chunk

    def planned(*args: Any) -> list[Chunk]:
        chunks = plan(*args)
        seen.chunks += chunks
        return chunks

    def run(model: Any, *faces: Any, **options: Any) -> Any:
        size = faces[0].shape[0]
        if size > seen.size:
            there, same = jax.device_put((faces, options))
            seen.size = size
            seen.faces = int(np.isfinite(faces[2]).all(axis=1).sum())
            seen.run = partial(program, model, *there, **same)
        return program(model, *faces, **options)

    with (
        mock.patch.object(many, "plan_chunks", planned),
        mock.patch.object(many, "_fit_chunk", run),
    ):
        yield seen


def lane_steps(num_steps: np.ndarray, chunks: list[Chunk]) -> dict:
    """Steps that are paid for over steps that are needed, all phases together.

    Args:
        num_steps: Steps of each face in each phase, with a leading axis for the faces.
        chunks: How they were run. A face that was run again is paid for twice.

    Returns:
        Number of faces, room in the largest chunk, needed steps a face; and steps paid
        for over needed ones, with the lanes, and if each face of a chunk was stepped
        until the last has ended.

    Example:
        >>> canvas = Canvas((256, 256), np.dtype(np.uint8))
        >>> pair = Chunk([0, 1], canvas, 2)
        >>> lane_steps(np.array([[4], [2]]), [pair])["plain_vmap"]
        1.333
    """
    phases = num_steps.reshape(len(num_steps), -1)
    needed = phases.sum()
    plain = lanes = 0
    for chunk in chunks:
        mine, used = phases[chunk.faces].T, num_lanes(chunk.size)
        plain += chunk.size * mine.max(axis=1).sum()
        lanes += used * sum(count_rounds(steps, used) for steps in mine)
    return {
        "faces": len(num_steps),
        "chunk": max(chunk.size for chunk in chunks),
        "steps_per_face": round(float(needed / len(num_steps)), 3),
        "plain_vmap": round(float(plain / needed), 3),
        "lanes": round(float(lanes / needed), 3),
    }
