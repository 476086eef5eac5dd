"""`benchmarks/speed.py`: nothing measured is lost, and its figures mean what they say.

No times here: only what is done with them.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import speed
import speed_machine
import speed_video
from speed_chunks import chunks_run, lane_steps
from speed_record import REST, Record, error_text, errors
from speed_stages import Work, floors, stage_work, stages
from speed_table import problems, ratios, table

import jaxclnf
from jaxclnf.experts.sigma import sigma_matrices
from jaxclnf.fitting import many
from jaxclnf.fitting.canvas import Canvas
from jaxclnf.fitting.chunks import Chunk

BASELINE = Path(speed.__file__).with_name("baseline.json")
CANVAS = Canvas((256, 256), np.dtype(np.uint8))


@pytest.fixture
def baseline() -> dict:
    return json.loads(BASELINE.read_text())


def no_memory() -> dict:
    raise MemoryError("RESOURCE_EXHAUSTED:\n  out of memory")


def test_a_row_that_fails_costs_no_other(tmp_path: Path, capsys: Any):
    out = tmp_path / "speed.json"
    record, rows = Record(out), {}
    record.note("batches", rows)

    def last() -> dict:
        written = json.loads(out.read_text())["batches"]
        assert written == {"small": {"ms": 1}, "large": rows["large"]}
        return {"ms": 3}

    parts: dict[str, Callable[[], dict]] = {
        "small": lambda: {"ms": 1},
        "large": no_memory,
        "last": last,
    }
    record.fill("batches: ", rows, parts.items())
    error = {"error": "MemoryError: RESOURCE_EXHAUSTED: out of memory"}
    assert rows == {"small": {"ms": 1}, "large": error, "last": {"ms": 3}}
    assert json.loads(out.read_text()) == {"batches": rows}
    assert errors(record.report) == [f"batches: large: {error['error']}"]
    assert list(tmp_path.iterdir()) == [out]
    said = capsys.readouterr().err
    assert "batches: small ...\n    ms 1\n" in said and error["error"] in said


def test_rows_that_cannot_be_found_are_an_error():
    def parts() -> Iterator:
        yield "one", lambda: {"ms": 1}
        raise OSError("no video")

    record = Record()
    record.fill("", record.report, parts())
    assert record.report == {"one": {"ms": 1}, REST: {"error": "OSError: no video"}}


def test_what_stops_the_process_leaves_whole_rows(tmp_path: Path):
    out = tmp_path / "speed.json"
    record = Record(out)

    def stopped() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.fill("", record.report, [("one", lambda: {"ms": 1}), ("two", stopped)])
    assert json.loads(out.read_text()) == {"one": {"ms": 1}}


def test_a_name_that_cannot_be_written_fails_at_once(tmp_path: Path):
    with pytest.raises(OSError):
        Record(tmp_path / "missing" / "speed.json")


def test_what_cannot_be_written_now_may_be_later(tmp_path: Path, capsys: Any):
    folder = tmp_path / "folder"
    folder.mkdir()
    record = Record(folder / "speed.json")
    (folder / "speed.json").unlink()
    folder.rmdir()
    record.fill("", record.report, [("one", lambda: {"ms": 1})])
    assert "not written: FileNotFoundError" in capsys.readouterr().err
    folder.mkdir()
    record.write()
    assert json.loads((folder / "speed.json").read_text()) == {"one": {"ms": 1}}


def test_a_program_that_fails_says_why():
    code = "raise SystemExit('no such module')"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
    assert error_text(caught.value) == "CalledProcessError: no such module"


def test_lane_steps_are_those_of_the_chunks():
    steps = np.array([[9, 1], [1, 1], [1, 1]] * 8)
    few = [Chunk([3 * k, 3 * k + 1, 3 * k + 2], CANVAS, 4) for k in range(8)]
    found = lane_steps(steps, few)
    # Four faces have a lane each, the fourth nothing to do.
    assert found["lanes"] == found["plain_vmap"] == round(8 * 4 * (9 + 1) / 112, 3)
    assert (found["faces"], found["chunk"]) == (24, 4)
    assert found["steps_per_face"] == round(112 / 24, 3)
    # One lane takes up to eight faces; here eight lanes take 24 of a chunk for 32.
    at_once = lane_steps(steps, [Chunk(list(range(24)), CANVAS, 32)])
    assert at_once["lanes"] < found["lanes"]
    twice = lane_steps(steps, few + few)
    assert twice["lanes"] == pytest.approx(2 * found["lanes"], abs=2e-3)


def test_chunks_are_those_that_are_run(monkeypatch: Any, example: dict):
    model, image, box = example["model"], example["image"], example["box"]

    def fitted(model: Any, crops: Any, *_: Any, **__: Any) -> jaxclnf.FitResult:
        one = many.unfitted_face(model, num_starts=1, with_parts=False)
        return jax.tree.map(lambda x: np.stack([x] * len(crops)), one)

    monkeypatch.setattr(many, "_fit_chunk", fitted)
    boxes, options = np.stack([box] * 5), jaxclnf.FitOptions(starts=1, use_parts=False)
    with chunks_run() as seen:
        jaxclnf.fit_many(model, image, boxes, options=options, chunk=2)
    assert [chunk.faces for chunk in seen.chunks] == [[0, 1], [2, 3], [4]]
    assert seen.size == 2 and seen.run().status.shape == (2,)
    assert many._fit_chunk is fitted


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_sigma_counts_what_is_kept(example: dict, whole: bool):
    experts = example["model"].prepared((7,), whole_sigma=whole).experts[0]
    n = sigma_matrices(experts, 0, 7).shape[0]
    kept = n * (7**4 if whole else 4 * 4**4)
    basis = 0 if whole else 64 * 49
    work = stage_work(experts, 7, 1, True)["sigma"]
    assert work.numbers == kept + basis + 2 * n * 49
    assert work.flops == 2 * kept + 4 * n * basis
    views = experts.weights.shape[0]
    work = stage_work(experts, 7, 10, False)["sigma"]
    assert work.numbers == views * kept + basis + 10 * 2 * n * 49
    assert "sigma" not in stage_work(experts, 5, 1, True)


@pytest.mark.parametrize("faces", [1, 3], ids=["cpu", "accelerator"])
def test_stages_without_rates_have_no_floors(
    monkeypatch: Any, example: dict, faces: int
):
    monkeypatch.setattr("speed_stages.median_ms", lambda *_: 2.0)
    monkeypatch.setattr("speed_stages.on_cpu", lambda: faces == 1)
    monkeypatch.setattr("speed_stages.MANY", faces)
    boxes = np.stack([example["box"]] * 3)
    rows = stages(example["model"], example["image"], boxes, {"error": "none"})
    name, measure = next(iter(rows))
    assert name == "sampling, scale 0, window 11"
    assert measure() == {"faces": faces, "ms": 2.0}


def test_a_floor_is_the_larger_of_two():
    work = Work(flops=10**6, numbers=10**6)
    found = floors(8.0, work, {"gflops": 1.0, "gbytes_per_s": 1.0})
    assert found == {"flops_floor_ms": 1, "bytes_floor_ms": 4, "times_floor": 2}


class Device:
    """One that knows its memory, or does not."""

    def __init__(self, stats: dict | None) -> None:
        self.stats = stats

    def memory_stats(self) -> dict | None:
        return self.stats


@pytest.mark.parametrize("stats", [None, {}, {"peak_bytes_in_use": 5}])
def test_memory_is_the_devices_where_it_knows(monkeypatch: Any, stats: dict | None):
    monkeypatch.setattr(speed_machine.jax, "devices", lambda: [Device(stats)])
    peak, whose = speed_machine.peak_memory()
    if stats:
        assert (peak, whose) == (5.0, "device")
        return
    assert whose == "process" and peak
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert speed_machine.peak_memory() == (None, "nothing")


def test_the_baseline_is_no_worse_than_itself(baseline: dict):
    assert problems(baseline, baseline) == [] == errors(baseline)
    assert ratios(baseline) == pytest.approx(baseline["ratios"], rel=0.02)
    for row in baseline["models"]["default"]["stages"].values():
        assert row["times_floor"] >= 1
    text = table(baseline, {"program": "C++", "ms": {"default, converged, 1 start": 4}})
    assert "Peak of process so far, GB" in text and "C++, ms" in text


def test_lanes_are_compared_in_chunks_of_one_size(baseline: dict):
    worse = json.loads(json.dumps(baseline))
    row = worse["models"]["default"]["batches"]["converged, 1 start, 4096 faces"]
    row["lanes"]["lanes"] *= 1.1
    assert len(problems(worse, baseline)) == 1
    row["lanes"]["chunk"] = 256
    assert problems(worse, baseline) == []
    row["lanes"]["steps_per_face"] *= 1.1
    assert len(problems(worse, baseline)) == 1


def test_ratios_are_compared_on_one_kind_of_device(baseline: dict):
    worse = json.loads(json.dumps(baseline))
    worse["ratios"] = {name: 2 * value for name, value in worse["ratios"].items()}
    assert len(problems(worse, baseline)) == len(baseline["ratios"])
    worse["machine"]["device"] = "NVIDIA H200"
    assert problems(worse, baseline) == []


def test_one_part_fails_and_the_rest_is_there(
    monkeypatch: Any, tmp_path: Path, capsys: Any, example: dict
):
    def load(name: str | None) -> jaxclnf.CLNFModel:
        if name == "nonesuch":
            raise jaxclnf.ModelFileError("found no model")
        info = dataclasses.replace(example["model"].info, name="default")
        return dataclasses.replace(example["model"], info=info)

    def batches(*_: Any) -> Iterator:
        yield (
            "converged, 1 start, 16 faces",
            lambda: {"ms_per_face": 1.5},
        )
        yield "converged, 1 start, 16384 faces", no_memory

    def latency(*_: Any) -> Iterator:
        row = {"ms": 3.0, "steps": 27, "trace_s": 1.0, "compile_s": 9.0}
        yield "converged, 1 start", lambda: row

    class NoWriter:
        def __init__(self, *_: Any) -> None:
            raise OSError("found no video writer")

    monkeypatch.setattr(jaxclnf, "load_model", load)
    monkeypatch.setattr(speed, "batches", batches)
    monkeypatch.setattr(speed, "latency", latency)
    monkeypatch.setattr(speed_video, "OverlayWriter", NoWriter)
    monkeypatch.setattr(speed_video, "NUM_FRAMES", 2)
    out = tmp_path / "speed.json"
    args = ["--models", "default", "nonesuch", "--out", str(out)]
    args += ["--check", str(BASELINE), "--parts", "video", "batches", "latency"]
    assert speed.main(args) == 1
    report, printed = json.loads(out.read_text()), capsys.readouterr()
    model = report["models"]["default"]
    assert list(model) == ["latency", "batches", "video"]
    assert model["video"]["converged, video"] == {
        "error": "OSError: found no video writer"
    }
    assert report["models"]["nonesuch"]["error"].endswith("found no model")
    assert report["ratios"] == {"default: one of 16 faces / alone": 0.5}
    assert "| converged, 1 start, 16384 faces | failed: MemoryError" in printed.out
    assert "| converged, 1 start, 16 faces | 1.5 |" in printed.out
    assert printed.err.count("failed: models:") == 4  # with both videos
