"""Speed of everything on this machine, as a table and as JSON, and a gate.

    python benchmarks/speed.py [--models MODEL ...] [--batches N ...] [--out FILE]
        [--reference-json FILE] [--check benchmarks/baseline.json]

Faces are that of the photograph in `docs/`, from boxes moved about at random. Times are
medians of one run and mean something only beside others of the same run; steps, lane
steps and landmarks are always the same. `--check` compares with a baseline: closely
what is always the same, loosely ratios of times; exit code 1 where something got worse.

A reference is a file `{"program": NAME, "ms": {ROW: MILLISECONDS}}` with times of
another program on this machine, a row being `MODEL, openface, 11 starts` and the like;
they are put beside ours. Runs unattended on whatever device JAX finds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from speed_video import tracking

import jaxclnf
from jaxclnf.app.media import read_image
from jaxclnf.experts.area import areas_of_interest
from jaxclnf.experts.ccnf import neuron_sum
from jaxclnf.experts.sigma import apply_sigma
from jaxclnf.experts.types import CCNFExperts
from jaxclnf.fitting.face import fit_face
from jaxclnf.solver.lanes import count_rounds, num_lanes

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH, BOX = ROOT / "docs" / "astronaut.jpg", np.array([172.0, 80.0, 96.0, 98.0])
MOVE = 0.1
"""Boxes are moved and scaled by up to this share of their size."""

OPTIONS = {
    "openface, 1 start": jaxclnf.FitOptions.openface(parts=False),
    "openface, 11 starts": jaxclnf.FitOptions.openface(parts=False, starts=11),
    "converged, 1 start": jaxclnf.FitOptions(use_parts=False, starts=1),
    "converged, 3 starts": jaxclnf.FitOptions(use_parts=False),
    "converged, 11 starts": jaxclnf.FitOptions(use_parts=False, starts=11),
}
_SOME, _MANY = 16, 4096
"""Faces from and to which cost is to grow linearly."""

SAME, LOOSE = 0.02, 0.5
"""By how much a figure may be worse than the baseline's: steps; ratios of times."""


def median_ms(function: Callable[[], Any], seconds: float = 3.0) -> float:
    """Median time of a call that was made before, milliseconds.

    Over 200 calls, or as many as that time allows, but three at least.
    """
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1e3 * seconds and len(times) < 200):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def boxes_of(count: int) -> np.ndarray:
    """Boxes moved about, always the same."""
    across, down, size = np.random.default_rng(0).uniform(-MOVE, MOVE, (3, count))
    x, y, w, h = BOX
    columns = [x + across * w, y + down * h, w * (1 + size), h * (1 + size)]
    return np.stack(columns, axis=1).astype(np.float32)


def machine() -> dict:
    """What runs, and what it can do: the two floors of every stage."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(1536, 1536)), jnp.float32)
    much = jnp.zeros(1 << 26, jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a)).lower(a).compile()
    copy = jax.jit(lambda x: x + 1).lower(much).compile()
    flops = 2 * a.shape[0] ** 3 / median_ms(lambda: product(a)) * 1e3
    rate = 2 * much.nbytes / median_ms(lambda: copy(much)) * 1e3
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "gflops": round(flops / 1e9, 1),
        "gbytes_per_s": round(rate / 1e9, 1),
    }


def start_up() -> dict:
    """Time to import, seconds: JAX alone, and the package with all that `fit` needs."""

    def seconds(statement: str) -> float:
        code = f"import time; t = time.perf_counter(); {statement}"
        code += "; print(time.perf_counter() - t)"
        runs = [
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            for _ in range(5)
        ]
        return min(float(run.stdout) for run in runs)

    jax_alone = seconds("import jax, jax.numpy")
    ours = seconds("import jax, jax.numpy, jaxclnf; jaxclnf.fit")
    return {"import jax": round(jax_alone, 3), "beyond it": round(ours - jax_alone, 3)}


def latency(model: jaxclnf.CLNFModel, grey: np.ndarray) -> dict[str, dict]:
    """One fit with each of the options.

    From one start, the time is that of the program; from several, that of `fit`, which
    on CPU shares them among the cores.
    """
    size = jnp.asarray(grey.shape, jnp.int32)
    image, box = jnp.asarray(grey), boxes_of(1)[0]
    rows = {}
    for name, options in OPTIONS.items():
        starts = jaxclnf.starts_from_box(model.pdm, jnp.asarray(box), options.starts)
        inputs = (model, image, size, starts, options)
        _say(name)
        begin = time.perf_counter()
        lowered = jax.jit(lambda m, i, s, p, o: fit_face(m, i, s, p, o)[0]).lower(
            *inputs
        )
        traced = time.perf_counter()
        compiled = lowered.compile()
        built = time.perf_counter()
        result = compiled(*inputs)
        run = partial(compiled, *inputs)
        if options.starts > 1:
            run = partial(jaxclnf.fit, model, grey, box, options=options)
            run()
        rows[name] = {
            "ms": round(median_ms(run), 3),
            "steps": int(result.num_steps.sum()),
            "trace_s": round(traced - begin, 2),
            "compile_s": round(built - traced, 2),
        }
    return rows


def batches(
    model: jaxclnf.CLNFModel, grey: np.ndarray, counts: list[int]
) -> tuple[dict[str, dict], dict]:
    """Many faces at once, milliseconds a face; and their steps in lanes."""
    rows: dict[str, dict] = {}
    lanes: dict = {}
    for name in ("openface, 1 start", "converged, 1 start", "converged, 3 starts"):
        for count in counts:
            run = partial(
                jaxclnf.fit_many, model, grey, boxes_of(count), options=OPTIONS[name]
            )
            _say(f"{name}, {count} faces")
            result = run()
            rows[f"{name}, {count} faces"] = {
                "ms_per_face": round(median_ms(run) / count, 3),
                "peak_gb": round(_peak_bytes() / 1e9, 2),
            }
        if name == "converged, 1 start":
            lanes = _lane_steps(np.asarray(result.num_steps))
            centre = np.median(np.asarray(result.landmarks), axis=0)
            away = np.linalg.norm(np.asarray(result.landmarks) - centre, axis=2)
            lanes["px_from_median"] = round(float(np.median(away)), 4)
    return rows, lanes


def _say(row: str) -> None:
    print(f"{row} ...", file=sys.stderr, flush=True)


def _lane_steps(num_steps: np.ndarray) -> dict:
    """Steps that are paid for over steps that are needed, for all phases together."""
    phases = num_steps.reshape(len(num_steps), -1).T
    needed = phases.sum()
    used = num_lanes(len(num_steps))
    return {
        "faces": len(num_steps),
        "steps_per_face": round(float(needed / len(num_steps)), 3),
        "plain_vmap": round(
            float(len(num_steps) * phases.max(axis=1).sum() / needed), 3
        ),
        "lanes": round(
            float(used * sum(count_rounds(x, used) for x in phases) / needed), 3
        ),
    }


def _peak_bytes() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stages(model: jaxclnf.CLNFModel, grey: np.ndarray, rates: dict) -> dict[str, dict]:
    """The stages of each scale's response maps, beside what flops and bytes allow."""
    image, rows = jnp.asarray(grey), {}
    pdm = model.pdm
    box = jnp.asarray(boxes_of(1)[0])
    params = jax.tree.map(lambda x: x[0], jaxclnf.starts_from_box(pdm, box, 1))
    shape = jaxclnf.project(pdm, params)
    n, view = shape.shape[0], jnp.zeros((), jnp.int32)
    windows = jaxclnf.FitOptions().window_sizes
    for experts, window in zip(model.experts, windows, strict=False):
        if not isinstance(experts, CCNFExperts):
            continue
        side = experts.support
        frame = jnp.eye(2) * params.scale / experts.patch_scaling
        area = window + side - 1
        sample = jax.jit(partial(areas_of_interest, size=area))
        areas = sample(image, shape, frame)
        neurons, smooth = jax.jit(neuron_sum), jax.jit(apply_sigma)
        field = neurons(experts, view, areas)
        filters = experts.weights.shape[2]
        # For each stage: what it does, its operations, and the numbers that it must
        # read and write.
        patches = n * area**2
        work = {
            "sampling": (
                partial(sample, image, shape, frame),
                8 * patches,
                5 * patches,
            ),
            "neurons": (
                partial(neurons, experts, view, areas),
                2 * n * filters * side**2 * window**2,
                patches + n * (filters * side**2 + window**2),
            ),
            "sigma": (
                partial(smooth, experts, view, field),
                2 * n * window**4,
                n * (window**4 + 2 * window**2),
            ),
        }
        for stage, (function, flops, numbers) in work.items():
            floors = (
                flops / rates["gflops"] / 1e6,
                4 * numbers / rates["gbytes_per_s"] / 1e6,
            )
            jax.block_until_ready(function())
            ms = median_ms(function, 1.0)
            rows[f"{stage}, window {window}"] = {
                "ms": round(ms, 4),
                "flops_floor_ms": round(floors[0], 4),
                "bytes_floor_ms": round(floors[1], 4),
                "times_floor": round(ms / max(floors), 1),
            }
    return rows


def ratios(report: dict) -> dict[str, float]:
    """Times of one run over one another, which machines share."""
    found = {}
    for name, model in report["models"].items():
        ms = {row: figures["ms"] for row, figures in model["latency"].items()}
        one = ms["converged, 1 start"]
        found[f"{name}: converged / openface"] = one / ms["openface, 1 start"]
        found[f"{name}: 11 starts / 1"] = ms["converged, 11 starts"] / one
        own = {
            int(row.split(", ")[-1].removesuffix(" faces")): x["ms_per_face"]
            for row, x in model["batches"].items()
            if row.startswith("converged, 1 ")
        }
        for count, each in own.items():
            found[f"{name}: one of {count} faces / alone"] = each / one
        if {_SOME, _MANY} <= own.keys():
            grown = own[_MANY] / own[_SOME]
            found[f"{name}: one of {_MANY} faces / one of {_SOME}"] = grown
    return {name: round(value, 3) for name, value in found.items()}


def problems(report: dict, baseline: dict) -> list[str]:
    """What is worse than in the baseline; what is new, or missing in it, is not."""
    found = []

    def compare(what: str, now: float, then: float, slack: float) -> None:
        if now > then * (1 + slack):
            found.append(f"{what}: {now}, was {then}, allowed {slack:.0%} more")

    for name, model in report["models"].items():
        then = baseline["models"].get(name)
        if then is None:
            continue
        for row, figures in model["latency"].items():
            if row in then["latency"]:
                before = then["latency"][row]["steps"]
                compare(f"{name}: {row}: steps", figures["steps"], before, SAME)
        if model["lanes"]["faces"] == then["lanes"]["faces"]:
            for key in ("steps_per_face", "lanes", "px_from_median"):
                now, before = model["lanes"][key], then["lanes"][key]
                compare(f"{name}: {key}", now, before, SAME)
    for name, value in report["ratios"].items():
        if name in baseline["ratios"]:
            compare(name, value, baseline["ratios"][name], LOOSE)
    return found


def table(report: dict, reference: dict | None) -> str:
    """The report in Markdown."""
    where = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [where, "", f"Start-up, seconds: {report['start_up']}", ""]
    program, times = "", {}
    if reference:
        program, times = reference["program"], reference["ms"]
    for name, model in report["models"].items():
        head = "| Row | ms | Steps | Trace, s | Compile, s |"
        lines += [
            f"## {name}",
            "",
            head + (f" {program}, ms | Ratio |" if times else ""),
        ]
        lines.append("|---" * (7 if times else 5) + "|")
        for row, x in model["latency"].items():
            cells = [row, x["ms"], x["steps"], x["trace_s"], x["compile_s"]]
            lines.append(_row(cells, x["ms"], times, f"{name}, {row}"))
        head = "| Batch | ms a face | Peak, GB |"
        lines += ["", head + (f" {program}, ms | Ratio |" if times else "")]
        lines.append("|---" * (5 if times else 3) + "|")
        for row, x in model["batches"].items():
            cells = [row, x["ms_per_face"], x["peak_gb"]]
            lines.append(_row(cells, x["ms_per_face"], times, f"{name}, {row}"))
        lines += ["", "| Video | Frames/s | With files and drawing | Succeeded |"]
        lines.append("|---" * 4 + "|")
        for row, x in model["video"].items():
            lines.append(_row([row, *x.values()], 0, {}, ""))
        lines += ["", f"Lane steps over needed ones: {model['lanes']}", ""]
        lines += ["| Stage | ms | Flops allow | Bytes allow | Times the floor |"]
        lines += ["|---|---|---|---|---|"]
        for row, x in model["stages"].items():
            lines.append(_row([row, *x.values()], 0, {}, ""))
        lines.append("")
    lines += [f"- {name}: {value}" for name, value in report["ratios"].items()]
    return "\n".join(lines) + "\n"


def _row(cells: list, ms: float, times: dict, key: str) -> str:
    if times:
        # A batch of faces from one start is compared with one of them.
        theirs = times.get(key, times.get(key.rsplit(", ", 1)[0]))
        cells += [theirs, round(ms / theirs, 2)] if theirs else ["", ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="default: the embedded model")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16, 64, 256, 1024, _MANY]
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--reference-json", type=Path)
    parser.add_argument("--check", type=Path, metavar="BASELINE")
    args = parser.parse_args()
    reference = args.reference_json and json.loads(args.reference_json.read_text())
    baseline = args.check and json.loads(args.check.read_text())
    grey = read_image(PHOTOGRAPH)[1]
    rates = machine()
    report: dict = {"machine": rates, "start_up": start_up(), "models": {}}
    for name in args.models or [None]:
        model = jaxclnf.load_model(name) if name else jaxclnf.load_model()
        rows, lanes = batches(model, grey, args.batches)
        report["models"][model.info.name] = {
            "latency": latency(model, grey),
            "batches": rows,
            "lanes": lanes,
            "stages": stages(model, grey, rates),
            "video": tracking(model, PHOTOGRAPH, BOX),
        }
    report["ratios"] = ratios(report)
    print(table(report, reference))
    if args.out:
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.out)
    found = problems(report, baseline) if baseline else []
    for problem in found:
        print(f"worse: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
