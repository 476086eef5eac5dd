"""Experiment a: how many steps to a certified optimum, and do all solvers agree on it?

    python experiments/steps.py [--shared FOLDER] [--every N] [--float64] [--tol PX]
                                [--out FOLDER]

Every phase of every fit is run from the same start and maps by `newton`, by `em` and by
the `openface` step without its limit of five; the next phase starts where `newton`
ended. The table counts certified phases and steps, and compares the ends: F, distance,
and the error against annotated landmarks where the ends differ. The figure shows the
share of phases that have converged within a budget of steps.
"""

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from sample import (
    add_arguments,
    chosen_models,
    load_faces,
    phases,
    run_phase,
    save_figure,
    save_text,
)

import jaxclnf

SOLVERS = {"newton": 200, "em": 3000, "openface": 1000}
"""Step limits."""
OPENFACE_TOL = 0.01
"""OpenFace's own threshold, pixels."""
LEAST_SHARE = 1e-3
"""Share of EM's rise of F by which another end counts as worse or better."""

_project = jax.jit(jaxclnf.project)


def run(model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list, tol: float):
    """All phases by all solvers.

    Returns:
        One dictionary per phase.
    """
    rows = []
    for face in faces:
        steps = phases(model, options, face)
        phase = next(steps)
        while phase is not None:
            row: dict = {
                "set": face.set_name,
                "name": face.name,
                "scale": phase.scale,
                "rigid": phase.rigid,
            }
            shapes = {}
            for solver, limit in SOLVERS.items():
                own_tol = OPENFACE_TOL if solver == "openface" else tol
                end, certificate = jax.device_get(
                    run_phase(
                        model.pdm,
                        phase.responses,
                        phase.start,
                        dataclasses.replace(
                            phase.options,
                            shape_tol=np.asarray(own_tol, model.pdm.mean_shape.dtype),
                        ),
                        rigid=phase.rigid,
                        solver=solver,
                        max_steps=limit,
                    )
                )
                shapes[solver] = np.asarray(_project(model.pdm, end.params))
                row[solver] = {
                    "steps": int(end.num_steps),
                    "converged": int(end.status) == jaxclnf.Status.CONVERGED,
                    "F": float(end.objective),
                    "delta": float(end.shape_delta),
                    "distance": float(certificate.newton_distance),
                    "curvature": float(certificate.smallest_curvature),
                    "bounds": int(certificate.num_active_bounds),
                    "error": phase.face.error(shapes[solver]),
                }
                if solver == "newton":
                    after = end.params
            row["F_start"] = _start_objective(model, phase)
            gap = shapes["newton"] - shapes["em"]
            row["apart"] = float(np.linalg.norm(gap, axis=1).max())
            rows.append(row)
            try:
                phase = steps.send(after)
            except StopIteration:
                phase = None
    return rows


_objective = jax.jit(jaxclnf.objective)


def _start_objective(model: jaxclnf.CLNFModel, phase) -> float:
    args = (model.pdm, phase.responses, phase.start, phase.options)
    return float(_objective(*args))


def summary(rows: list[dict], tol: float) -> list[str]:
    """Lines of the table, one per solver."""
    lines = []
    for solver in SOLVERS:
        ends = [row[solver] for row in rows]
        steps = np.array([e["steps"] for e in ends])
        good = np.array([e["converged"] for e in ends])
        distance = np.array([e["distance"] for e in ends])
        lines.append(
            f"| {solver} | {len(rows)} | {good.mean():.2%} | "
            f"{np.mean(distance < tol):.2%} | {steps.mean():.2f} | "
            f"{np.percentile(steps, 99):.0f} | {steps.max()} | "
            f"{np.median(distance):.1e} | {np.max(distance):.1e} |"
        )
    return lines


def basins(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Phases in which `newton` ended lower, and higher, than `em`, beyond noise."""
    worse, better = [], []
    for row in rows:
        rise = row["em"]["F"] - row["F_start"]
        gap = row["newton"]["F"] - row["em"]["F"]
        # F itself is known to some float32 digits only.
        least = LEAST_SHARE * max(rise, 0) + 1e-6 * abs(row["em"]["F"])
        if gap < -least:
            worse.append(row)
        elif gap > least:
            better.append(row)
    return worse, better


def report(results: dict[str, list[dict]], tol: float) -> str:
    """The tables as Markdown."""
    text = [f"# Steps to less than {tol:g} px\n"]
    header = (
        "| Solver | Phases | Converged | Certified | Steps, mean | 99 % | Largest |"
        " Distance to the optimum, px: median | largest |\n" + "|---" * 9 + "|"
    )
    for name, rows in results.items():
        text += [f"\n## {name}\n", header, *summary(rows, tol)]
        by_set = defaultdict(list)
        for row in rows:
            by_set[row["set"]].append(row["newton"]["steps"])
        sets = ", ".join(f"{s} {np.mean(k):.2f} ({max(k)})" for s, k in by_set.items())
        text.append(f"\n`newton` by set, mean (largest): {sets}.")
        bounds = np.mean(
            [row["newton"]["bounds"] > 0 for row in rows if not row["rigid"]]
        )
        text.append(f"A mode ends at its bound in {bounds:.1%} of non-rigid phases.")
        worse, better = basins(rows)
        text.append(
            f"\nEnds in another optimum than `em`, of {len(rows)} phases: lower F in "
            f"{len(worse)} ({len(worse) / len(rows):.2%}), higher in {len(better)}."
        )
        for kind, found in (("lower", worse), ("higher", better)):
            for row in found:
                text.append(
                    f"- {kind}: {row['set']} {row['name']}, scale {row['scale']}, "
                    f"{'rigid' if row['rigid'] else 'non-rigid'}: F - F_start "
                    f"{row['newton']['F'] - row['F_start']:.4g} against "
                    f"{row['em']['F'] - row['F_start']:.4g}, {row['apart']:.2g} px "
                    f"apart, error {row['newton']['error']:.4f} against "
                    f"{row['em']['error']:.4f}"
                )
    return "\n".join(text) + "\n"


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """Share of phases that have converged within a budget of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.4), squeeze=False, sharey=True
    )
    budget = np.unique(np.geomspace(1, 1000, 200).astype(int))
    for axis, (name, rows) in zip(axes[0], results.items(), strict=True):
        for solver in SOLVERS:
            steps = np.array(
                [
                    row[solver]["steps"] if row[solver]["converged"] else np.inf
                    for row in rows
                ]
            )
            share = [np.mean(steps <= b) for b in budget]
            axis.step(budget, share, where="post", label=solver)
        axis.axvline(5, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", xlabel="steps of a phase", title=name, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of phases that have converged")
    axes[0, 0].legend(loc="lower right")
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--tol", type=float, default=0.005, help="pixels")
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.float64)
    faces = load_faces(args.shared, args.every)
    results = {}
    dtype = np.float64 if args.float64 else np.float32
    for name, model, options in chosen_models(args, dtype):
        results[name] = run(model, options, faces, args.tol)
        print("\n".join(summary(results[name], args.tol)), flush=True)
    stem = "steps_float64" if args.float64 else "steps"
    save_text(args.out / f"{stem}.md", report(results, args.tol))
    draw(results, args.out / f"{stem}.png")


if __name__ == "__main__":
    main()
