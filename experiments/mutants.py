"""Experiment j: ten injected errors, four harmless changes, and what catches them.

    python experiments/mutants.py [--model MODEL] [--shared FOLDER] [--faces N]
                                  [--steps N] [--out FOLDER]

Each change of `faults.py` is put into the solver, one at a time, and both phases of the
coarsest scale are run from the box, with NU-RLMS as published ("plain") and with the
library's `em` step, which refuses steps along which its F falls ("guarded"). The table
says how each run ended, where against the sound solver, what `diagnose` says, and which
unit test fails under the change; the figure shows the length of every step.

Faces: the photograph of the documentation with its box moved about, or annotated
photographs of the reference data with `--shared`. Needs the extra `experiments`.
"""

import argparse
import collections
import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from faults import CONTROLS, MUTANTS, SOUND, STEPS, Case, Fault, injected
from sample import PHOTOGRAPH, ROOT, save_figure, save_text

import jaxclnf
from jaxclnf.app.datasets import faces_with_pts
from jaxclnf.app.media import read_image
from jaxclnf.diagnosis.diagnose import diagnose
from jaxclnf.diagnosis.findings import Diagnosis, Kind
from jaxclnf.diagnosis.trace import PhaseTrace, trace_phase

WINDOW = 11
PHASES = {"rigid": True, "non-rigid": False}


class Run(NamedTuple):
    """One phase of one face under one fault."""

    trace: PhaseTrace
    """Its valid slots, as NumPy arrays."""
    diagnosis: Diagnosis
    """What `diagnose` says."""

    @property
    def moves(self) -> np.ndarray:
        """How far each step moved the shape, pixels."""
        shapes = np.asarray(self.trace.shape)[np.asarray(self.trace.valid)]
        return np.sqrt(np.sum(np.diff(shapes, axis=0) ** 2, axis=(1, 2)))

    @property
    def comes_to_rest(self) -> bool:
        """Whether the steps ended, at an optimum of F or elsewhere."""
        ends = {Kind.CONVERGED, Kind.FALSE_CONVERGENCE}
        return bool(ends & set(self.diagnosis.kinds))

    @property
    def falls(self) -> int:
        """Steps along which the true F falls by more than rounding."""
        valid = np.asarray(self.trace.valid)
        terms = np.asarray(self.trace.truth.terms, np.float64)[valid]
        eps = np.finfo(np.asarray(self.trace.shape).dtype).eps
        terms = terms[np.isfinite(terms).all(axis=1)]
        gain = np.diff(terms, axis=0).sum(axis=1)
        return int(np.sum(gain < -16 * eps * np.abs(terms).sum(axis=1).max()))


def load_faces(shared: Path | None, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Grey pictures with boxes.

    Args:
        shared: Folder of the reference data; the photograph of the documentation if
            None.
        count: How many.

    Returns:
        Pairs of a picture and a box `(x, y, width, height)`.
    """
    if shared is not None:
        annotated = faces_with_pts(shared / "faces" / "helen_test")
        chosen = annotated[:: max(1, len(annotated) // count)][:count]
        return [(read_image(face.image)[1], face.box) for face in chosen]
    grey = read_image(PHOTOGRAPH)[1]
    calibration = jaxclnf.load_model().box_calibration
    box = jaxclnf.detect_faces(grey, calibration=calibration)[0]
    rng = np.random.default_rng(0)
    moves = rng.uniform(-0.06, 0.06, (count, 2)) * box[2:]
    sizes = rng.uniform(0.94, 1.06, (count, 1)) * box[2:]
    return [
        (grey, np.concatenate([box[:2] + move, size]))
        for move, size in zip(moves, sizes, strict=True)
    ]


def make_case(model: jaxclnf.CLNFModel, grey: np.ndarray, box: np.ndarray) -> Case:
    """The first scale of a face, and maps of where it was before."""
    dtype = model.pdm.mean_shape.dtype
    start = jaxclnf.params_from_box(model.pdm, jnp.asarray(box, dtype))
    moved = start.translation + jnp.asarray([0.05, -0.04], dtype) * box[2]
    before = dataclasses.replace(start, translation=moved)
    look = jax.jit(jaxclnf.response_maps, static_argnames="window_size")
    responses, earlier = (
        look(model.pdm, model.experts[0], jnp.asarray(grey), params, WINDOW)
        for params in (start, before)
    )
    return Case(model.pdm, responses, earlier, start)


def run(fault: Fault, case: Case, step: str, rigid: bool, max_steps: int) -> Run:
    """One phase under one fault."""
    with injected(fault, case, step) as solver:
        options = jaxclnf.NURLMSOptions(
            solver=solver,  # pyright: ignore[reportArgumentType]
            max_steps=max_steps,
            **fault.changes,
        )
        trace = trace_phase(case.pdm, case.responses, case.params, options, rigid=rigid)
        trace = jax.tree.map(np.asarray, jax.block_until_ready(trace))
    return Run(trace, diagnose(trace))


Runs = dict[str, list[Run]]
"""Runs of one fault by step and phase, one per face."""


def run_all(fault: Fault, cases: list[Case], max_steps: int) -> Runs:
    """Every step and phase of every face under one fault."""
    return {
        f"{step}, {phase}": [run(fault, case, step, rigid, max_steps) for case in cases]
        for step in STEPS
        for phase, rigid in PHASES.items()
    }


def is_caught(fault: Fault, runs: Runs, sound: Runs) -> bool:
    """Whether `diagnose` finds, under the fault, what it does not find without."""
    return any(
        set(run.diagnosis.kinds) - set(other.diagnosis.kinds)
        for key in runs
        for run, other in zip(runs[key], sound[key], strict=True)
        if run.diagnosis.problems
    )


def rows(fault: Fault, runs: Runs, sound: Runs) -> list[str]:
    """Rows of the table, one per step and phase."""
    lines = []
    for key, here in runs.items():
        last = [r.moves[-1] if len(r.moves) else np.nan for r in here]
        away = [
            np.linalg.norm(r.trace.shape[-1] - s.trace.shape[-1], axis=-1).mean()
            for r, s in zip(here, sound[key], strict=True)
        ]
        steps = [len(r.moves) for r in here]
        falls = sum(r.falls for r in here)
        counted = collections.Counter(
            finding.kind.value for r in here for finding in r.diagnosis.findings
        )
        causes = {  # those that differ in a number only, once
            re.sub(r"[\d.]+", "", finding.evidence["cause"]): finding.evidence["cause"]
            for r in here
            for finding in r.diagnosis.findings
            if finding.evidence.get("cause")
        }
        said = ", ".join(
            kind if count == len(here) else f"{kind} ({count} of {len(here)})"
            for kind, count in counted.items()
        )
        if causes:
            said += ". Cause: " + "; or ".join(sorted(causes.values()))
        cells = [
            fault.name,
            key,
            f"{np.median(steps):.0f}",
            f"{np.median(last):.2g}",
            "never falls" if not falls else f"falls {falls} times",
            f"{np.median(away):.2g}",
            said,
        ]
        cells = [cell.replace("|", r"\|") for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


HEADER = (
    "| Change | Step, phase | Steps | Last step, px | True F | "
    "From the sound end, px | What `diagnose` says |\n|---|---|---|---|---|---|---|"
)


def report(results: dict[str, Runs], faces: int, max_steps: int) -> str:
    """The Markdown file."""
    sound = results[SOUND.name]
    verdicts = []
    for fault in MUTANTS + CONTROLS:
        runs = results[fault.name]
        flat = [run for some in runs.values() for run in some]
        ends = sum(run.comes_to_rest for run in flat)
        verdicts.append(
            f"| {fault.name} | {'control' if fault.is_control else 'fault'} | "
            f"{'yes' if is_caught(fault, runs, sound) else 'no'} | "
            f"{ends} of {len(flat)} | "
            f"{f'`tests/{fault.caught_by}`' if fault.caught_by else '-'} |"
        )
    table = [HEADER]
    for fault in (SOUND, *MUTANTS, *CONTROLS):
        table += rows(fault, results[fault.name], sound)
    return "\n".join(
        [
            "# Ten faults and four harmless changes of the solver",
            "",
            f"Made by `python experiments/mutants.py --faces {faces} --steps "
            f"{max_steps}`: both phases of the coarsest scale, at most {max_steps} "
            f"steps. Medians over the {faces} faces.",
            "",
            "| Change | Kind | `diagnose` notices | Runs that come to rest | Unit test "
            "that fails under it |\n|---|---|---|---|---|",
            *verdicts,
            "",
            "*Plain* is NU-RLMS as published; *guarded* is the library's `em`, which "
            "refuses steps along which the F that it computes falls. A change that "
            "leaves a phase as it was (the prior has no part in the rigid one) is "
            "rightly not noticed there.",
            "",
            *table,
            "",
            "![Length of every step](mutants.png)",
            "",
        ]
    )


def draw(results: dict[str, Runs], path: Path) -> None:
    """The figure: length of every step of the first face, non-rigid phase."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 5, figsize=(15, 8.5), sharex=True, sharey=True)
    sound = results[SOUND.name]["plain, non-rigid"][0]
    for ax, fault in zip(axes.flat, (SOUND, *MUTANTS, *CONTROLS), strict=True):
        ax.semilogy(
            np.arange(1, len(sound.moves) + 1), sound.moves, color="0.75", linewidth=4
        )
        for step, colour in (("plain", "tab:red"), ("guarded", "tab:blue")):
            one = results[fault.name][f"{step}, non-rigid"][0]
            moves = np.where(one.moves > 0, one.moves, np.nan)
            ax.semilogy(
                np.arange(1, len(moves) + 1),
                moves,
                color=colour,
                marker=".",
                markersize=4,
                linewidth=1,
                label=step,
            )
        ax.axhline(0.005, color="0.4", linestyle=":", linewidth=1)
        kind = "" if fault is SOUND else "control: " if fault.is_control else ""
        ax.set_title(kind + fault.name, fontsize=10)
        ax.set_ylim(1e-4, 1e4)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("shape moved by, px")
    axes.flat[0].legend(fontsize=9)
    figure.suptitle(
        "Length of every step, non-rigid phase, first face. Grey: the sound plain "
        "step. Dotted: tolerance. Refused steps have no point."
    )
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--shared", type=Path, help="folder of the reference data")
    parser.add_argument("--faces", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")
    args = parser.parse_args()

    model = jaxclnf.load_model(args.model)
    cases = [make_case(model, *face) for face in load_faces(args.shared, args.faces)]
    results = {}
    for fault in (SOUND, *MUTANTS, *CONTROLS):
        results[fault.name] = run_all(fault, cases, args.steps)
        print("\n".join(rows(fault, results[fault.name], results[SOUND.name])))
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, args.out / "mutants.png")
    text = report(results, len(cases), args.steps)
    save_text(args.out / "mutants.md", text)


if __name__ == "__main__":
    main()
