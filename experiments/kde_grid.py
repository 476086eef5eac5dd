"""Experiment d: what do OpenFace's kernel grid and its clamp of offsets do to the fit?

    python experiments/kde_grid.py [--shared FOLDER] [--every N] [--models NAME...]
                                   [--out FOLDER]

OpenFace centres its kernel on a grid of 0.1 pixels of the map and clamps positions to
the window. Every phase is run from the same start and maps by OpenFace's step, 300
times whatever it says, with both habits, with either, and with neither. The table
counts steps that lower F and phases that end in a cycle, and gives the distance from
the optimum that Newton's method finds from where each run ends.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from kernels import VARIANTS, apart, measures, record
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

_project = jax.jit(jaxclnf.project)


def run(model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list) -> dict:
    """All phases under all kernels.

    Returns:
        For each variant a list of dictionaries, one per phase.
    """
    switches = [jnp.asarray(s) for s in zip(*VARIANTS.values(), strict=True)]
    rows: dict[str, list] = {name: [] for name in VARIANTS}
    newton = partial(run_phase, model.pdm, solver="newton", max_steps=200)
    for face in faces:
        steps = phases(model, options, face)
        phase = next(steps)
        while phase is not None:
            args = (phase.responses, phase.start, phase.options)
            end, _ = newton(*args, rigid=phase.rigid)
            from_start = np.asarray(_project(model.pdm, end.params))
            last, shapes, rises, outside, at_bound = jax.device_get(
                record(model.pdm, *args, *switches, phase.rigid)
            )
            a = np.asarray(phase.responses.ref_from_img)
            for k, name in enumerate(VARIANTS):
                there = jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), last)
                best, certificate = newton(
                    phase.responses, there, phase.options, rigid=phase.rigid
                )
                optimum = np.asarray(_project(model.pdm, best.params))
                rows[name].append(
                    measures(shapes[k], [r[k] for r in rises], optimum)
                    | {
                        "outside": bool(outside[k]),
                        "at_bound": bool(at_bound[k])
                        or int(certificate.num_active_bounds) > 0,
                        "px_map": float(np.hypot(*a[0])),
                        "error": phase.face.error(shapes[k][-1]),
                        "error_optimum": phase.face.error(optimum),
                        "same_optimum": apart(optimum, from_start) < 0.05,
                        "scale": phase.scale,
                        "rigid": phase.rigid,
                    }
                )
            try:
                phase = steps.send(end.params)
            except StopIteration:
                phase = None
    return rows


HEADER = (
    "| Kernel | Stop at 0.01 px | Steps, median / largest | Phases in which F falls "
    "| Steps along which F falls | The same by the kernel's own F | Still moving after "
    "300 steps | of which in a cycle (periods) | From the optimum at rest, px: median "
    "/ 99 % / largest | When stopped at 0.01 px | After five steps |\n"
    + "|---" * 11
    + "|"
)


def summary(rows: dict[str, list[dict]], at_bound: bool) -> list[str]:
    """The table of the phases with, or without, a mode at its bound at the end."""
    lines = [HEADER]
    for name, every in rows.items():
        found = [row for row in every if row["at_bound"] == at_bound]
        if not found:
            continue
        get = {key: np.array([row[key] for row in found]) for key in found[0]}
        moving = get["period"] != 1
        periods = get["period"][moving & (get["period"] > 0)]
        kinds = ", ".join(str(p) for p in np.unique(periods)) or "none"
        total = get["steps"].sum()
        lines.append(
            f"| {name} | {get['stops'].mean():.1%} | {np.median(get['steps']):.0f} / "
            f"{get['steps'].max()} | {np.mean(get['falls'] > 0):.1%} | "
            f"{get['falls'].sum() / total:.1%} | {get['own_falls'].sum() / total:.1%} "
            f"| {np.sum(moving)} of {len(found)} | {len(periods)} ({kinds}) | "
            + " | ".join(
                f"{np.median(get[k]):.2g} / {np.percentile(get[k], 99):.2g} / "
                f"{get[k].max():.2g}"
                for k in ("rest", "stopped", "five")
            )
            + " |"
        )
    return lines


def remarks(rows: dict[str, list[dict]]) -> list[str]:
    """What the table has no column for."""
    found = rows["grid and clamp (OpenFace)"]
    fallen = sum(r["fallen"] for r in found) / sum(r["risen"] for r in found)
    sizes = [r["size"] for every in rows.values() for r in every if r["period"] != 1]
    in_map = np.median([r["rest"] * r["px_map"] for r in found])
    outside = [r["outside"] for r in found]
    ends = [r for r in found if not r["rigid"] and r["scale"] == found[-1]["scale"]]
    lines = [
        f"\nOpenFace's kernel: falls add up to {fallen:.1e} of what F rises; at rest "
        f"the median distance is {in_map:.2g} pixels of the map; a landmark lies "
        f"outside its window in {np.mean(outside):.1%} of the phases. The optimum "
        f"next to its end is the one that Newton's method finds from the start in "
        f"{np.mean([r['same_optimum'] for r in found]):.1%}.",
    ]
    if sizes:
        lines.append(
            f"Phases still moving in the last hundred steps, under all kernels, do so "
            f"by {np.median(sizes):.2g} px (median), {max(sizes):.2g} px (largest)."
        )
    if any(np.isfinite(row["error"]) for row in ends):
        pair = [np.array([r[k] for r in ends]) for k in ("error", "error_optimum")]
        pair = [error[np.isfinite(error)] for error in pair]
        lines.append(
            "Error after the last scale, median / mean: "
            + ", ".join(
                f"{np.median(error):.5f} / {error.mean():.5f} {where}"
                for error, where in zip(
                    pair, ("at rest", "at the optimum"), strict=True
                )
            )
        )
    return lines


def draw(results: dict[str, dict], path: Path) -> None:
    """Distance from the optimum at rest and after five steps, as shares of phases."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(4.4 * len(results), 3.6), squeeze=False, sharey=True
    )
    for axis, (model, rows) in zip(axes[0], results.items(), strict=True):
        share = np.linspace(0, 1, len(next(iter(rows.values()))))
        for colour, (name, found) in enumerate(rows.items()):
            rest = np.sort([max(row["rest"], 1e-5) for row in found])
            width = 4 - colour  # the later lines often lie on the earlier ones
            axis.plot(rest, share, color=f"C{colour}", linewidth=width, label=name)
        five = np.sort([row["five"] for row in rows["neither"]])
        axis.plot(five, share, color="0.3", linestyle="--", label="after five steps")
        axis.axvline(0.005, color="grey", linewidth=0.8, linestyle=":")
        axis.set(
            xscale="log",
            xlabel="largest distance of a landmark from the optimum, px",
            title=model,
            xlim=(1e-5, 30),
            ylim=(0, 1.02),
        )
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of phases")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, fontsize=8, ncols=5, loc="lower center")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.float64)
    faces = load_faces(args.shared, args.every)
    dtype = np.float64 if args.float64 else np.float32
    text = [
        "# OpenFace's kernel grid and clamp\n",
        f"{len(faces)} faces, one start from boxes moved by up to 10 %, "
        f"{np.dtype(dtype).name}. The next phase starts at Newton's optimum.",
    ]
    results = {}
    for name, model, options in chosen_models(args, dtype):
        results[name] = run(model, options, faces)
        text += [f"\n## {name}\n", "No mode at its bound:\n"]
        text += [*summary(results[name], False), "\nA mode at its bound:\n"]
        text += [*summary(results[name], True), *remarks(results[name])]
    print(*text, sep="\n")
    save_text(args.out / "kde_grid.md", "\n".join(text) + "\n")
    draw(results, args.out / "kde_grid.png")


if __name__ == "__main__":
    main()
