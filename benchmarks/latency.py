"""Time of one fit on this machine: compilation, fixed step budget, to convergence.

    python benchmarks/latency.py [--model MODEL] [--image IMAGE --box X Y W H]

Medians and minima over many runs of the compiled program, the image already on the
device; `fit` as a user calls it (copying the image and Python's part included) apart.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxclnf
from jaxclnf.app.datasets import faces_with_pts
from jaxclnf.app.media import read_image
from jaxclnf.fitting.face import fit_face


def measure(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and smallest time of a call, milliseconds."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times)), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: OpenFace's general model")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--box", type=float, nargs=4)
    parser.add_argument("--repeats", type=int, default=300)
    args = parser.parse_args()
    shared = Path(os.environ.get("JAXCLNF_SHARED", "../shared"))
    main_file = shared / "openface-model" / "model" / "main_clnf_general.txt"
    model = jaxclnf.load_model(args.model or main_file)
    if args.image is None:
        face = faces_with_pts(shared / "faces" / "lfpw_test")[0]
        args.image, args.box = face.image, face.box
    grey = read_image(args.image)[1]
    box = np.asarray(args.box, np.float32)

    size = jnp.asarray(grey.shape, jnp.int32)
    image = jnp.asarray(np.pad(grey, [(0, 512 - s if s < 512 else 0) for s in size]))
    start = jaxclnf.starts_from_box(model.pdm, jnp.asarray(box), 1)
    to_the_end = jaxclnf.FitOptions(use_parts=False, starts=1)
    five = dataclasses.replace(to_the_end, max_steps=5)
    openface = jaxclnf.FitOptions.openface(parts=False)
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {os.cpu_count()} cores"
    )
    for name, options in (
        ("5 + 5 steps a scale", five),
        ("to convergence", to_the_end),
        ("openface dialect", openface),
        ("openface dialect with parts", jaxclnf.FitOptions.openface()),
    ):
        run = jax.jit(lambda m, i, s, p, o: fit_face(m, i, s, p, o)[0])
        inputs = (model, image, size, start, options)
        begin = time.perf_counter()
        lowered = run.lower(*inputs)
        traced = time.perf_counter()
        compiled = lowered.compile()
        built = time.perf_counter()
        median, least = measure(lambda c=compiled, i=inputs: c(*i), args.repeats)
        steps = np.asarray(compiled(*inputs).num_steps)
        whole, _ = measure(
            lambda o=options: jaxclnf.fit(model, grey, box, options=o), args.repeats
        )
        print(
            f"{name} ({steps.sum()} steps): median {median:.2f} ms, min {least:.2f}; "
            f"fit() {whole:.2f} ms; tracing {traced - begin:.1f} s, compilation "
            f"{built - traced:.1f} s"
        )


if __name__ == "__main__":
    main()
