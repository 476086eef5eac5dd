"""Experiment h: is float32 enough, and is the end of Newton's method quadratic?

    python experiments/precision.py [--shared FOLDER] [--every N] [--models NAME...]
                                    [--out FOLDER]

Every phase is run in float32, and from the same start and maps in float64, once to the
usual 0.005 px and once to 1e-8 px; beside it runs a fit that is float64 throughout,
maps included. The table says how far apart the ends are and how many steps it took, the
figure how long each step was. With OpenFace's general model all scales are run, with
the others the coarsest one: each window and precision is compiled for itself.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from kernels import apart
from sample import (
    add_arguments,
    chosen_models,
    load_faces,
    load_models,
    phases,
    save_figure,
    save_text,
)

import jaxclnf

TOL, FINE_TOL = 0.005, 1e-8
MAX_STEPS = 30
FULL_MODEL = "general"
RUNS = ("float32", "float32, 1e-8", "float64", "float64, 1e-8")


@partial(jax.jit, static_argnames="rigid")
def record(pdm, responses, start, options, tol, rigid: bool):
    """A phase by Newton's method.

    Returns:
        Parameters, shape, status and steps at the end, the certificate there, and the
        length of every accepted step, NaN elsewhere.
    """
    own = dataclasses.replace(
        options, solver="newton", max_steps=MAX_STEPS, shape_tol=tol
    )
    last, states, valid = jaxclnf.nu_rlms_with_trace(
        pdm, responses, start, own, rigid=rigid
    )
    first = jaxclnf.nu_rlms_init(pdm, responses, last.params, own, rigid=rigid)
    certificate = jaxclnf.certify(pdm, responses, first, own, rigid=rigid)
    lengths = states.shape_delta[1:]
    accepted = valid[1:] & (lengths != states.shape_delta[:-1])
    return {
        "params": last.params,
        "shape": last.evidence.shape,
        "converged": last.status == jaxclnf.Status.CONVERGED,
        "steps": last.num_steps,
        "distance": certificate.newton_distance,
        "lengths": jnp.where(accepted, lengths, jnp.nan),
    }


def in_float64(tree):
    """The same numbers in double precision."""
    return jax.tree.map(
        lambda x: x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        tree,
    )


def run(single, double, options: jaxclnf.FitOptions, faces: list) -> dict:
    """All phases in both precisions.

    Args:
        single: The model in float32.
        double: The same in float64.
        options: For windows and numbers.
        faces: The faces.

    Returns:
        Lists with an entry per phase: the runs by name, and `throughout`, how far the
        float32 fit is from one in float64 with maps of its own.
    """
    found: dict = {name: [] for name in (*RUNS, "rigid", "throughout", "last")}
    for face in faces:
        pair = phases(single, options, face), phases(double, options, face)
        phase, phase64 = (next(steps) for steps in pair)
        while phase is not None:
            args = (single.pdm, phase.responses, phase.start, phase.options)
            cast = (double.pdm, *in_float64(args[1:]))
            own = (double.pdm, phase64.responses, phase64.start, phase64.options)
            runs = []
            for where in (args, cast):
                for tol in (TOL, FINE_TOL):
                    tol = jnp.asarray(tol, where[0].mean_shape.dtype)
                    runs.append(record(*where, tol, phase.rigid))
            alone = record(*own, jnp.asarray(TOL, jnp.float64), phase.rigid)
            for name, end in zip(RUNS, runs, strict=True):
                kept = {k: np.asarray(v) for k, v in end.items() if k != "params"}
                found[name].append(kept)
            gap = apart(np.asarray(runs[0]["shape"]), np.asarray(alone["shape"]))
            found["throughout"].append(gap)
            found["rigid"].append(phase.rigid)
            try:
                phase = pair[0].send(runs[0]["params"])
                phase64 = pair[1].send(alone["params"])
            except StopIteration:
                phase = None
                found["last"].append(len(found["rigid"]) - 1)
    return found


def order(lengths: np.ndarray) -> float:
    """How fast the last steps shrink: 1 linearly, 2 quadratically.

    Args:
        lengths: Lengths of the steps of a phase, in float64.

    Returns:
        `log(d3) / log(d2)` of the last two lengths above rounding relative to 1 px;
        NaN if there are none between 1e-11 and 0.1 px.
    """
    good = lengths[np.isfinite(lengths)]
    pairs = [(a, b) for a, b in zip(good, good[1:], strict=False) if a < 0.1]
    found = [np.log(b) / np.log(a) for a, b in pairs if b > 1e-11]
    return found[-1] if found else np.nan


HEADER = (
    "| Run | Phases | Converged | Steps, mean / largest | Distance to the optimum, px: "
    "median / largest | From the float64 end at 1e-8, px: median / 99 % / largest |\n"
    + "|---" * 6
    + "|"
)


def summary(found: dict) -> list[str]:
    """The table of a model."""
    lines = [HEADER]
    best = found[RUNS[-1]]
    for name in RUNS:
        ends = found[name]
        steps = np.array([int(e["steps"]) for e in ends])
        distance = np.array([float(e["distance"]) for e in ends])
        gap = [apart(e["shape"], b["shape"]) for e, b in zip(ends, best, strict=True)]
        away = (
            f"{np.median(gap):.1e} / {np.percentile(gap, 99):.1e} / {max(gap):.1e}"
            if name != RUNS[-1]
            else "-"
        )
        lines.append(
            f"| {name} | {len(ends)} | {np.mean([e['converged'] for e in ends]):.1%} | "
            f"{steps.mean():.2f} / {steps.max()} | {np.median(distance):.1e} / "
            f"{distance.max():.1e} | {away} |"
        )
    orders = [order(e["lengths"]) for e in best]
    pairs = zip(found[RUNS[0]], found[RUNS[2]], strict=True)
    same = np.mean([int(a["steps"]) == int(b["steps"]) for a, b in pairs])
    last = np.array([found["throughout"][k] for k in found["last"]])
    lines.append(
        f"\nExponent by which the last lengths shrink (`log d[k+1] / log d[k]`, 2 if "
        f"quadratic): median {np.nanmedian(orders):.2f}, tenth percentile "
        f"{np.nanpercentile(orders, 10):.2f}. The number of steps to 0.005 px is the "
        f"same in both precisions in {same:.1%} of the phases."
    )
    lines.append(
        f"Float32 throughout against float64 throughout, at the end of the "
        f"last scale that was run: median {np.median(last):.1e} px, largest "
        f"{last.max():.1e} px; more than 0.05 px in {np.sum(last > 0.05)} of "
        f"{len(last)} faces."
    )
    return lines


def draw(results: dict[str, dict], path: Path) -> None:
    """Length of every step of some non-rigid phases, in both precisions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(3.1 * len(results), 3.3), squeeze=False, sharey=True
    )
    looks = {"float64, 1e-8": ("C0", 10), "float32, 1e-8": ("C1", 12)}
    for axis, (model, found) in zip(axes[0], results.items(), strict=True):
        chosen = np.flatnonzero(~np.array(found["rigid"]))
        chosen = chosen[:: max(1, len(chosen) // 15)]
        for name, (colour, most) in looks.items():
            for k in chosen:
                lengths = found[name][k]["lengths"][:most]
                there = np.flatnonzero(lengths > 0)
                axis.plot(
                    there + 1,
                    lengths[there],
                    color=colour,
                    alpha=0.35,
                    linewidth=0.8,
                    label=name.split(",")[0] if k == chosen[0] else None,
                )
        axis.axhline(TOL, color="0.4", linestyle=":", linewidth=1)
        axis.set(yscale="log", ylim=(1e-15, 1e3), xlabel="step", title=model)
        axis.set(xlim=(0.5, 12.5), xticks=range(2, 13, 2))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("shape moved by, px")
    for line in axes[0, 0].legend(fontsize=8).get_lines():
        line.set(alpha=1, linewidth=1.5)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    faces = load_faces(args.shared, args.every)
    double = load_models(args.shared, np.float64)
    text = [
        "# Float32 and float64\n",
        f"{len(faces)} faces, one start from boxes moved by up to 10 %. Runs named "
        "1e-8 stop at 1e-8 px or after 30 steps, the others at 0.005 px. All four "
        "runs of a phase have the same start and the float32 maps.",
    ]
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        full = name == FULL_MODEL
        windows = options.window_sizes[: None if full else 1]
        options = dataclasses.replace(options, window_sizes=windows)
        scales = "all scales" if full else "coarsest scale"
        results[name] = run(model, double[name][0], options, faces)
        text += [f"\n## {name}, {scales}\n", *summary(results[name])]
    save_text(args.out / "precision.md", "\n".join(text) + "\n")
    draw(results, args.out / "precision.png")


if __name__ == "__main__":
    main()
