"""`fit` and `fit_many` can be made ready on a CPU for the devices of others."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxclnf.fitting import many
from jaxclnf.fitting.canvas import Canvas
from jaxclnf.fitting.chunks import Chunk
from jaxclnf.fitting.fit import fit
from jaxclnf.fitting.joint import JointValidator
from jaxclnf.fitting.likelihood import LikelihoodValidator
from jaxclnf.fitting.options import FitOptions
from jaxclnf.fitting.validate import FullyConnected
from jaxclnf.learn.network import no_network
from tests import synthetic

PLATFORMS = ("cpu", "cuda", "tpu")
OPTIONS = {
    "newton": FitOptions(window_sizes=(9, 7), starts=3, finished_starts=1),
    "em": FitOptions(solver="em", window_sizes=(7,), starts=1),
    "openface": FitOptions.openface(starts=3),
}


@pytest.fixture(scope="module")
def face() -> dict:
    """The example in float32, without the double precision that the tests run with."""
    return synthetic.example(np.float32)


@pytest.fixture(autouse=True)
def _users_setting() -> Iterator[None]:
    with jax.enable_x64(False):
        yield


def assert_portable(exported: export.Exported, *, double: bool = False) -> None:
    """All platforms, no call back into Python, no double precision but if told so."""
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "callback" not in text
    assert bool(re.search(r"\bf64\b|xf64>", text)) == double


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_fit(face: dict, name: str):
    run = jax.jit(
        lambda model, image, boxes: fit(model, image, boxes, options=OPTIONS[name])
    )
    boxes = np.stack([np.asarray(face["box"])] * 4)
    exporter = export.export(run, platforms=PLATFORMS)
    ones = jnp.ones(2, np.float32)
    blank = no_network(face["pdm"], 12)
    last = jnp.ones((1, blank.mean.size, 1), np.float32)
    layers = (FullyConnected(weights=last, bias=jnp.ones((1, 1), np.float32)),)
    validator = JointValidator(
        network=dataclasses.replace(blank, layers=layers),
        network_weights=ones,
        likelihood=LikelihoodValidator(weights=ones, biases=ones),
    )
    model = dataclasses.replace(face["with_part"], validator=validator)
    exported = exporter(model, face["image"], boxes)
    # OpenFace's float32 geometry, to its last bit, is computed in double precision.
    assert_portable(exported, double=name == "openface")


@pytest.mark.slow
def test_fit_many(face: dict):
    model, boxes = face["model"], np.stack([np.asarray(face["box"])] * 4)
    options = OPTIONS["newton"]
    work = many._prepared(model, face["image"], boxes, None, options)
    canvas = Canvas(work.windows[0].shape, face["image"].dtype)
    inputs = many._inputs(model, work, Chunk([0, 1, 2, 3], canvas, 4), 1)
    exporter = export.export(many._fit_chunk, platforms=PLATFORMS)
    assert_portable(exporter(model, *inputs, options))


@pytest.mark.slow
def test_an_exported_fit_runs_here(face: dict):
    options = FitOptions(window_sizes=(7,), starts=1)
    run = jax.jit(lambda *args: fit(*args, options=options).landmarks)
    args = face["model"], face["image"], face["box"]
    landmarks = export.export(run)(*args).call(*args)
    assert np.abs(np.asarray(landmarks - run(*args))).max() < 1e-3
