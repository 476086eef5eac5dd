"""Experiment b: does it matter whether response maps are normalised?

    python experiments/normalisation.py [--shared FOLDER] [--every N] [--models NAME...]
                                        [--out FOLDER]

Whole fits are run by `newton` on maps as they are and on those of `map_changes.py`:
multiplied by constants, divided by maxima or sums, stretched to [0, 1], raised. At the
coarsest scale `em` and OpenFace's step run too, from the same start. The tables have
steps, certificates, errors and distances of the ends; the figure the lengths of the
steps of NU-RLMS as published, sound and with errors that keep it from converging.
"""

import argparse
import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from faults import MUTANTS, SOUND, Case, Fault, injected
from map_changes import CHANGES, PLAIN, RAISED, STRETCHED, with_maps
from sample import (
    Face,
    Phase,
    add_arguments,
    chosen_models,
    known_faces,
    panels,
    phases,
    run_phase,
    save_figure,
    save_text,
    with_truth,
)

import jaxclnf

SHOWN = (PLAIN, "over largest", STRETCHED, RAISED)
"""Maps of the figure."""
LIMITS = {"newton": 200, "em": 3000, "openface": 1000}
FAULTS = (SOUND, MUTANTS[0], MUTANTS[1])
FAULTY_STEPS = 80
FAULTY_FACES = 12
"""The first so many faces are run with errors in the mean shift."""

_project = jax.jit(jaxclnf.project)
_trace = jax.jit(partial(jaxclnf.nu_rlms_with_trace, rigid=True))


def run_one(model: jaxclnf.CLNFModel, phase: Phase, name: str, solver: str):
    """A phase on changed maps: its end, shape and certificate."""
    end, certificate = run_phase(
        model.pdm,
        with_maps(phase.responses, name),
        phase.start,
        phase.options,
        rigid=phase.rigid,
        solver=solver,
        max_steps=LIMITS[solver],
    )
    return jax.device_get((end, _project(model.pdm, end.params), certificate))


def fit_one(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face: Face, name: str
) -> dict:
    """A whole fit by `newton` with every map changed."""
    steps, certified = [], []
    run = phases(model, options, face)
    phase = next(run)
    while True:
        end, shape, certificate = run_one(model, phase, name, "newton")
        steps.append(int(end.num_steps))
        certified.append(bool(certificate.newton_distance < options.shape_tol))
        try:
            phase = run.send(end.params)
        except StopIteration:
            break
    error = phase.face.error(shape)
    return {"steps": steps, "certified": certified, "shape": shape, "error": error}


def same_start(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face: Face
) -> list[tuple]:
    """Both phases of the coarsest scale by every solver on all maps.

    The second phase starts for all where `newton` ended on the maps as they are.

    Returns:
        Solver, maps, steps, whether it converged, and distance from the end on the maps
        as they are.
    """
    rows = []
    run = phases(model, options, face)
    phase = next(run)
    for _ in range(2):
        follow = run_one(model, phase, PLAIN, "newton")[0].params
        for solver in LIMITS:
            plain = run_one(model, phase, PLAIN, solver)[1]
            for name in CHANGES:
                end, shape, _ = run_one(model, phase, name, solver)
                rests = end.status == jaxclnf.Status.CONVERGED
                apart = np.linalg.norm(shape - plain, axis=1).max()
                rows.append((solver, name, int(end.num_steps), rests, apart))
        phase = run.send(follow)
    return rows


def lengths(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face]
) -> dict[tuple[str, str], np.ndarray]:
    """Lengths of the published steps of the first phase, `(face, step)`, pixels."""
    found, limits = {}, {"max_steps": FAULTY_STEPS, "shape_tol": 0.0}
    starts = [next(phases(model, options, face)) for face in faces[:FAULTY_FACES]]
    for fault in FAULTS:
        first = starts[0]
        case = Case(model.pdm, first.responses, first.responses, first.start)
        with injected(fault, case, "plain") as solver:
            for name in SHOWN:
                rows = []
                for phase in starts:
                    own = dataclasses.replace(phase.options, solver=solver, **limits)
                    responses = with_maps(phase.responses, name)
                    states = _trace(model.pdm, responses, phase.start, own)[1]
                    rows.append(np.asarray(states.shape_delta)[1:])
                found[fault.name, name] = np.array(rows)
    return found


def fit_rows(fits: dict[str, list[dict]]) -> list[str]:
    """Lines of the table of whole fits, one for each change of the maps."""
    lines = []
    for name, rows in fits.items():
        steps = np.concatenate([row["steps"] for row in rows])
        certified = np.concatenate([row["certified"] for row in rows])
        error = np.array([row["error"] for row in rows])
        apart = [
            np.linalg.norm(row["shape"] - plain["shape"], axis=1).max()
            for row, plain in zip(rows, fits[PLAIN], strict=True)
        ]
        lines.append(
            f"| {name} | {certified.mean():.2%} | {steps.mean():.2f} | {steps.max()} | "
            f"{np.median(apart):.1e} | {np.max(apart):.1e} | {np.median(error):.4f} | "
            f"{np.mean(error > 0.1):.1%} |"
        )
    return lines


def phase_rows(rows: list[tuple]) -> list[str]:
    """Lines of the table of single phases, one for each change of the maps."""
    lines = []
    for name in CHANGES:
        cells = []
        for solver in LIMITS:
            own = np.array([row[2:] for row in rows if row[:2] == (solver, name)])
            steps, rest, apart = own.T
            cells += [f"{rest.mean():.1%}", f"{steps.mean():.2f}"]
            cells += [f"{np.median(apart):.1e} / {apart.max():.1e}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def last_steps(found: dict[tuple[str, str], np.ndarray], fault: Fault) -> list[str]:
    """Median length of the last step, one for each of the maps shown."""
    return [f"{np.median(found[fault.name, name][:, -1]):.3g}" for name in SHOWN]


def report(results: dict[str, tuple], what: str) -> str:
    """The tables as Markdown."""
    text = [
        "# Normalised response maps\n",
        f"{what}, float32, one frontal start, no parts. Distances are those of "
        "the landmark that is farthest from where it is on the maps as they are.",
    ]
    for name, (fits, rows, found) in results.items():
        faces = next(iter(found.values())).shape[0]
        text += [
            f"\n## {name}\n",
            "Whole fits by `newton`:\n",
            "| Maps | Phases certified | Steps a phase, mean | Largest | Distance, px: "
            "median | largest | Median error | > .10 |\n" + "|---" * 8 + "|",
            *fit_rows(fits),
            "\nBoth phases of the coarsest scale from the same start; distance, px: "
            "median / largest:\n",
            "| Maps | "
            + " | ".join(f"{s}: converged | steps | distance" for s in LIMITS)
            + " |\n|"
            + "---|" * (1 + 3 * len(LIMITS)),
            *phase_rows(rows),
            f"\nStep {FAULTY_STEPS} of NU-RLMS as published, norm over all landmarks, "
            f"px, median of {faces} faces, rigid phase of the coarsest scale:\n",
            "| Mean shift | " + " | ".join(SHOWN) + " |\n|" + "---|" * (1 + len(SHOWN)),
            *[
                f"| {fault.name} | {' | '.join(last_steps(found, fault))} |"
                for fault in FAULTS
            ],
        ]
    return "\n".join(text) + "\n"


def draw(results: dict[str, tuple]) -> Any:
    """Lengths of steps for some of the maps, one panel for each error."""
    name, (_, _, found) = list(results.items())[-1]
    figure, axes = panels(len(FAULTS), 3.2)
    for axis, fault in zip(axes, FAULTS, strict=True):
        for kind, style in zip(SHOWN, ("-", "--", ":", "-"), strict=True):
            steps = np.median(found[fault.name, kind], axis=0)
            axis.plot(np.arange(1, len(steps) + 1), steps, style, label=kind)
        axis.axhline(0.005, color="grey", linewidth=0.8, linestyle=":")
        axis.set(yscale="log", xlabel="step", title=fault.name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"length of the step, px\n(median of faces, {name} model)")
    axes[-1].legend(title="maps", fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    args = parser.parse_args()

    faces, what = known_faces(args.shared, args.every)
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        known = with_truth(faces, model, options)
        fits = {
            change: [fit_one(model, options, face, change) for face in known]
            for change in CHANGES
        }
        rows = [row for face in faces for row in same_start(model, options, face)]
        results[name] = (fits, rows, lengths(model, options, faces))
    text = report(results, what)
    print(text)
    save_text(args.out / "normalisation.md", text)
    save_figure(draw(results), args.out / "normalisation.png")


if __name__ == "__main__":
    main()
