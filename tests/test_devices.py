"""Faces spread over several devices: eight simulated ones in a process of its own."""

import inspect
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxclnf
from tests.markdown import ROOT
from tests.plugin import QUICKLY

EIGHT = """
import jax, numpy as np
from jax.sharding import Mesh
from jaxclnf.fitting import many
from jaxclnf.fitting.canvas import Canvas
from jaxclnf.fitting.chunks import Chunk
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.options import FitOptions
from tests import synthetic

assert jax.device_count() == 8
face = synthetic.example(np.float32)
model, image = face["model"], face["image"]
moves = np.random.default_rng(0).uniform(-4, 4, (19, 4)).astype(np.float32)
boxes = np.asarray(face["box"]) + moves
boxes[5] = np.nan
options = FitOptions(window_sizes=(7,), starts=1)
mesh = Mesh(np.array(jax.devices()), ("faces",))
# A model that is on one of them, and the mesh as JAX makes it, with explicit axes.
mine = jax.device_put(model, jax.devices()[3])
explicit = jax.make_mesh((8,), ("faces",))
spread = many.fit_many(mine, image, boxes, options=options, mesh=explicit, chunk=2)
alone = many.fit_many(model, image, boxes, options=options, chunk=2)
for some in (boxes[0], boxes[:2]):  # where one face is, several are
    here = fit(mine, image, some, options=options).landmarks
    assert here.devices() == {jax.devices()[3]}, here.devices()
np.testing.assert_allclose(spread.landmarks, alone.landmarks, atol=1e-3)
np.testing.assert_array_equal(spread.status, alone.status)
np.testing.assert_array_equal(spread.num_steps, alone.num_steps)
assert spread.status.tolist().count(1) == 18

# The work of each device, for 16 faces: two of them, and no word to the others.
same = np.stack([np.asarray(face["box"])] * 16)
work = many._prepared(model, image, same, None, options)
canvas = Canvas(work.windows[0].shape, image.dtype)
part = Chunk(list(range(16)), canvas, 2)
inputs = many._inputs(model, work, part, 8)
assert many._places(part, 8) == list(range(16))
lowered = many._fit_chunk.lower(model, *inputs, options=options, mesh=mesh)
compiled = lowered.compile()
text = compiled.as_text()
words = ("all-reduce", "all-gather", "all-to-all", "collective", "send(", "recv(")
assert not [word for word in words if word in text]
result = compiled(model, *inputs, options=options)
shards = result.landmarks.addressable_shards
assert len({s.device for s in shards}) == 8
assert {s.data.shape for s in shards} == {(2, 12, 2)}
"""


@pytest.mark.slow
def test_eight_devices():
    flags = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    done = subprocess.run(
        [sys.executable, "-c", EIGHT],
        cwd=ROOT,
        env=os.environ | QUICKLY | {"XLA_FLAGS": flags.strip()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_mesh_has_one_axis(example: dict):

    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("faces", "models"))
    with pytest.raises(ValueError, match="mesh has axes"):
        jaxclnf.fit_many(
            example["model"], example["image"], example["box"][None], mesh=mesh
        )


def test_a_list_of_devices_is_no_mesh(example: dict):
    place = example["model"], example["image"], example["box"][None]
    with pytest.raises(TypeError, match="mesh is a list; expected a Mesh"):
        inspect.unwrap(jaxclnf.fit_many)(*place, mesh=jax.devices())
