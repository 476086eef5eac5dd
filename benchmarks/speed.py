"""Speed of everything on this machine, as a table and as JSON, and a gate.

    python benchmarks/speed.py [--models MODEL ...] [--batches N ...] [--out FILE]
        [--parts PART ...] [--reference-json FILE] [--check benchmarks/baseline.json]

Faces are that of the photograph in `docs/`, from boxes moved about at random. Times are
medians of one run and mean something only beside others of the same run; steps, lane
steps and landmarks are always the same. `--check` compares with a baseline: closely
what is always the same, loosely ratios of times.

A reference is a file `{"program": NAME, "ms": {ROW: MILLISECONDS}}` with times of
another program on this machine, a row being `MODEL, openface, 11 starts` and the like;
they are put beside ours.

Runs unattended on whatever device JAX finds. `--out` is written after each row, which
is also said at once. A row that fails becomes an error in the table and in the JSON,
and the rest goes on; exit code 1 where one failed or something got worse. Compilation
is timed rightly only without JAX's cache of programs.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from speed_chunks import chunks_run, lane_steps
from speed_machine import machine, median_ms, on_cpu, peak_memory, rates, start_up
from speed_record import Record, Rows, error_text, errors
from speed_stages import MANY as STAGES_MANY
from speed_stages import stages
from speed_table import MANY, problems, ratios, table
from speed_video import tracking

import jaxclnf
from jaxclnf.app.media import read_image
from jaxclnf.fitting.face import fit_face

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
BATCHED = "openface, 1 start", "converged, 1 start", "converged, 3 starts"
PARTS = "latency", "batches", "stages", "start_up", "video"
"""What is measured, in this order: what matters most, and is cheap, comes first."""


def boxes_of(count: int) -> np.ndarray:
    """Boxes moved about, always the same.

    Args:
        count: How many.

    Returns:
        `(x, y, width, height)` of each.

    Example:
        >>> boxes_of(3).shape
        (3, 4)
    """
    across, down, size = np.random.default_rng(0).uniform(-MOVE, MOVE, (3, count))
    x, y, w, h = BOX
    columns = [x + across * w, y + down * h, w * (1 + size), h * (1 + size)]
    return np.stack(columns, axis=1).astype(np.float32)


def latency(model: jaxclnf.CLNFModel, grey: np.ndarray) -> Rows:
    """One fit with each of the options.

    The time is that of the program, all inputs on the device; from several starts on
    CPU that of `fit`, which shares them among the cores.

    Args:
        model: The model.
        grey: The photograph.

    Yields:
        A name, and what measures it.
    """
    for name, options in OPTIONS.items():
        yield name, partial(_latency, model, grey, options)


def _latency(
    model: jaxclnf.CLNFModel, grey: np.ndarray, options: jaxclnf.FitOptions
) -> dict:
    size = jnp.asarray(grey.shape, jnp.int32)
    image, box = jnp.asarray(grey), boxes_of(1)[0]
    starts = jaxclnf.starts_from_box(model.pdm, jnp.asarray(box), options.starts)
    # Numbers of the options that are on the host would be sent with each call.
    inputs = jax.device_put((model, image, size, starts, options))
    begin = time.perf_counter()
    lowered = jax.jit(lambda m, i, s, p, o: fit_face(m, i, s, p, o)[0]).lower(*inputs)
    traced = time.perf_counter()
    compiled = lowered.compile()
    built = time.perf_counter()
    result = compiled(*inputs)
    steps = int(result.num_steps.sum())
    run = partial(compiled, *inputs)
    if options.starts > 1 and on_cpu():
        run = partial(jaxclnf.fit, model, grey, box, options=options)
        jax.block_until_ready(run())
    return {
        "ms": round(median_ms(run), 3),
        "steps": steps,
        "trace_s": round(traced - begin, 2),
        "compile_s": round(built - traced, 2),
    }


def batches(model: jaxclnf.CLNFModel, grey: np.ndarray, counts: list[int]) -> Rows:
    """Many faces at once: `fit_many` with all that the host does for it.

    From one start, also steps in lanes. Not on CPU, where chunks share the cores, also
    the program of a full chunk alone.

    Args:
        model: The model.
        grey: The photograph.
        counts: Numbers of faces; small ones come first, as memory's peak never falls.

    Yields:
        A name, and what measures it.
    """
    for count in sorted(set(counts)):
        for name in BATCHED:
            yield f"{name}, {count} faces", partial(_batch, model, grey, count, name)


def _batch(model: jaxclnf.CLNFModel, grey: np.ndarray, count: int, name: str) -> dict:
    run = partial(jaxclnf.fit_many, model, grey, boxes_of(count), options=OPTIONS[name])
    with chunks_run() as seen:
        result = jax.device_get(run())
    row: dict = {"ms_per_face": round(median_ms(run) / count, 4)}
    if not on_cpu():
        row["program_ms_per_face"] = round(seen.program_ms_per_face(), 4)
    peak = peak_memory()[0]
    if peak is not None:
        row["peak_gb"] = round(peak / 1e9, 2)
    in_turn = on_cpu() and model.early_termination is not None  # without lanes
    if name == "converged, 1 start" and not in_turn:
        lanes = lane_steps(result.num_steps, seen.chunks)
        away = result.landmarks - np.median(result.landmarks, axis=0)
        off = float(np.median(np.linalg.norm(away, axis=2)))
        row["lanes"] = lanes | {"px_from_median": round(off, 6)}
    return row


def load(names: list[str | None], record: Record) -> dict[str, jaxclnf.CLNFModel]:
    """The models to measure, each with a place in the report.

    Args:
        names: As `load_model` takes them; None for the embedded one.
        record: The report. Of a model that cannot be loaded it gets the error.

    Returns:
        The models by their names in the report.
    """
    models, places = {}, {}
    for name in names:
        try:
            model = jaxclnf.load_model(name)
        except Exception as error:
            places[name or "default"] = {"error": error_text(error)}
            continue
        # Two files may hold models of one name.
        own = model.info.name if model.info.name not in models else str(name)
        models[own], places[own] = model, {}
    record.note("models", places)
    return models


def measure(
    models: dict[str, jaxclnf.CLNFModel],
    counts: list[int],
    parts: Sequence[str],
    record: Record,
) -> None:
    """Measures everything, a part for all models before the next part.

    Args:
        models: The models by their names in the report.
        counts: Numbers of faces.
        parts: Which of `PARTS`.
        record: Where it is put, row by row.
    """
    report, grey = record.report, read_image(PHOTOGRAPH)[1]
    for part in (part for part in PARTS if part in parts):
        if part == "start_up":
            record.fill("", report, [("start_up", partial(start_up, PHOTOGRAPH))])
            continue
        if part == "stages":
            record.fill("", report, [("rates", rates)])
        for name, model in models.items():
            rows = {
                "latency": partial(latency, model, grey),
                "batches": partial(batches, model, grey, counts),
                "stages": lambda model=model: stages(
                    model, grey, boxes_of(STAGES_MANY), report["rates"]
                ),
                "video": partial(tracking, model, PHOTOGRAPH, BOX),
            }[part]
            into = report["models"][name].setdefault(part, {})
            record.fill(f"{name}, {part}: ", into, rows())


def main(args: Sequence[str] | None = None) -> int:
    """Measures, prints, compares.

    Args:
        args: The command line without the program; default: the process's own.

    Returns:
        The exit code: 1 where a row failed or something got worse, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="default: the embedded model")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16, 64, 256, 1024, MANY]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--reference-json", type=Path)
    parser.add_argument("--check", type=Path, metavar="BASELINE")
    chosen = parser.parse_args(args)
    reference = chosen.reference_json and json.loads(chosen.reference_json.read_text())
    baseline = chosen.check and json.loads(chosen.check.read_text())
    record = Record(chosen.out)
    record.note("machine", machine())
    models = load(chosen.models or [None], record)
    measure(models, chosen.batches, chosen.parts, record)
    record.report["ratios"] = ratios(record.report)
    failed = errors(record.report)
    worse = problems(record.report, baseline) if baseline else []
    try:
        record.write()
    finally:
        print(table(record.report, reference), flush=True)
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
        for line in worse:
            print(f"worse: {line}", file=sys.stderr)
    return 1 if failed or worse else 0


if __name__ == "__main__":
    sys.exit(main())
