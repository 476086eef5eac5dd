"""Experiment l: the parameter update: prior, bounds and damping.

    python experiments/update.py [--shared FOLDER] [--every N] [--models NAME...]
                                 [--out FOLDER]

Whole fits by Newton's method with other weights of the prior and other bounds of the
modes: steps, modes at their bounds, and errors against annotated landmarks. Then every
phase of the fit as it is by NU-RLMS (`em`) with a constant share of each step, from a
quarter to nearly two, whose optimum is the same and whose steps are not. A refused step
is halved until it is accepted.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sample import (
    Face,
    add_arguments,
    chosen_models,
    load_faces,
    phases,
    run_phase,
    save_figure,
    save_text,
)

import jaxclnf
from jaxclnf.solver.steps import em_step

PRIORS = (0.0, 1.0, 5.0, 25.0, 100.0)
"""Weights of the prior, px^2, the same at all scales."""
BOUNDS = (1.0, 2.0, 3.0, 10.0)
"""Standard deviations."""
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 1.9)
"""Shares of a step."""
EM_STEPS = 2000
CONVERGED = jaxclnf.Status.CONVERGED
DEFAULT = "default: prior 25, less by 15 per octave, bound 3"

_project = jax.jit(jaxclnf.project)


def settings() -> dict[str, dict[str, float]]:
    """Changes of the options of every phase by their name in the table."""
    priors = {f"prior {r:g} at all scales": {"reg_factor": r} for r in PRIORS}
    return {DEFAULT: {}} | priors | {f"bound {b:g}": {"n_sigmas": b} for b in BOUNDS}


def fit(model, options: jaxclnf.FitOptions, face: Face, changes: dict) -> dict:
    """A fit by Newton's method under changed options.

    Returns:
        Totals over its non-rigid phases, the error, the phases themselves.
    """
    dtype = model.pdm.mean_shape.dtype
    changes = {name: jnp.asarray(value, dtype) for name, value in changes.items()}
    found: dict = {"phases": [], "steps": [], "bounds": [], "certified": []}
    steps = phases(model, options, face)
    phase = next(steps)
    while True:
        own = dataclasses.replace(phase.options, **changes)
        args = (model.pdm, phase.responses, phase.start, own)
        end, certificate = run_phase(
            *args, rigid=phase.rigid, solver="newton", max_steps=200
        )
        found["phases"].append((phase, end.params))
        if not phase.rigid:
            found["steps"].append(int(end.num_steps))
            found["bounds"].append(int(certificate.num_active_bounds))
            near = bool(certificate.newton_distance < own.shape_tol)
            found["certified"].append(near and int(end.status) == CONVERGED)
        try:
            phase = steps.send(end.params)
        except StopIteration:
            shape = np.asarray(_project(model.pdm, end.params))
            found["error"] = phase.face.error(shape)
            deviations = end.params.params_local / jnp.sqrt(model.pdm.eigen_values)
            found["largest"] = float(jnp.abs(deviations).max())
            return found


@partial(jax.jit, static_argnames="rigid")
def damped(pdm, responses, start, options, factor, *, rigid: bool):
    """A phase of `em` that takes the same share of every step.

    Returns:
        The last state, and how many steps were refused. It stops where the full step
        would move the shape by less than the tolerance.
    """
    own = dataclasses.replace(options, solver="em", max_steps=EM_STEPS)

    def runs(carry):
        state, _ = carry
        small = state.shape_delta < factor * own.shape_tol
        return (state.status == jaxclnf.Status.RUNNING) & ~small

    def body(carry):
        state, refused = carry
        # 1 after an accepted step; half of what was tried after a refused one.
        share = jnp.where(state.step_factor == 1, factor, state.step_factor)
        state = dataclasses.replace(state, step_factor=share)
        after = em_step(pdm, responses, state, own, rigid=rigid)
        return after, refused + (after.step_factor < 1)

    first = jaxclnf.nu_rlms_init(pdm, responses, start, own, rigid=rigid)
    return jax.lax.while_loop(runs, body, (first, jnp.zeros((), jnp.int32)))


def run_damped(model: jaxclnf.CLNFModel, fitted: list[dict]) -> dict[float, list[dict]]:
    """All phases of some fits with every share of a step."""
    rows: dict[float, list] = {factor: [] for factor in FACTORS}
    dtype = model.pdm.mean_shape.dtype
    for fit_ in fitted:
        for phase, best in fit_["phases"]:
            optimum = np.asarray(_project(model.pdm, best))
            for factor in FACTORS:
                args = (phase.responses, phase.start, phase.options)
                share = jnp.asarray(factor, dtype)
                end, refused = jax.device_get(
                    damped(model.pdm, *args, share, rigid=phase.rigid)
                )
                gap = np.linalg.norm(end.evidence.shape - optimum, axis=1).max()
                row = {"steps": int(end.num_steps), "refused": int(refused)}
                rows[factor].append(row | {"apart": float(gap)})
    return rows


def fit_table(results: dict[str, list[dict]]) -> list[str]:
    """Lines of the table of priors and bounds."""
    lines = [
        "| Setting | Certified, non-rigid phases | Steps of one, mean / largest | "
        "Phases with a mode at its bound | Largest mode weight at the end, standard "
        "deviations: median | Error: median / mean | > .08 |\n" + "|---" * 7 + "|"
    ]
    for name, fits in results.items():
        steps = np.concatenate([f["steps"] for f in fits])
        bounds = np.concatenate([f["bounds"] for f in fits])
        certified = np.concatenate([f["certified"] for f in fits])
        error = np.array([f["error"] for f in fits])
        known = np.isfinite(error)
        errors = "not known | "
        if known.any():
            errors = (
                f"{np.median(error[known]):.4f} / {error[known].mean():.4f} | "
                f"{np.mean(error[known] > 0.08):.1%} "
            )
        lines.append(
            f"| {name} | {certified.mean():.1%} | {steps.mean():.2f} / {steps.max()} | "
            f"{np.mean(bounds > 0):.1%} | "
            f"{np.median([f['largest'] for f in fits]):.2f} | {errors}|"
        )
    return lines


def damping_table(rows: dict[float, list[dict]]) -> list[str]:
    """Lines of the table of shares of a step."""
    lines = [
        "| Share of a step (`em`) | Phases | Steps, mean / 99 % / largest | Of which "
        "refused | From Newton's optimum, px: median / 99 % | Farther than 0.1 px |\n"
        + "|---" * 6
        + "|"
    ]
    for factor, found in rows.items():
        steps = np.array([r["steps"] for r in found])
        gap = np.array([r["apart"] for r in found])
        refused = sum(r["refused"] for r in found) / steps.sum()
        lines.append(
            f"| {factor:g} | {len(found)} | {steps.mean():.1f} / "
            f"{np.percentile(steps, 99):.0f} / {steps.max()} | {refused:.2%} | "
            f"{np.median(gap):.2g} / {np.percentile(gap, 99):.2g} | "
            f"{np.mean(gap > 0.1):.1%} |"
        )
    return lines


def draw(results: dict[str, tuple[dict, dict]], path: Path) -> None:
    """Error, or the largest mode weight, over the prior; steps over the share."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3))
    for colour, (model, (fits, rows)) in enumerate(results.items()):
        look = {"color": f"C{colour}", "marker": "."}
        found = [fits[f"prior {r:g} at all scales"] for r in PRIORS]
        error = [[f["error"] for f in some] for some in found]
        if np.isfinite(error).any():
            medians = np.nanmedian(error, axis=1)
            axes[0].plot(PRIORS, medians, label=f"{model}, median", **look)
            means = np.nanmean(error, axis=1)
            axes[0].plot(PRIORS, means, "--", label=f"{model}, mean", **look)
            axes[0].set_ylabel("error / distance of the eyes")
        else:
            largest = [np.median([f["largest"] for f in some]) for some in found]
            axes[0].plot(PRIORS, largest, label=model, **look)
            axes[0].set_ylabel("largest mode weight, std. deviations")
        steps = [np.mean([r["steps"] for r in rows[f]]) for f in FACTORS]
        axes[1].plot(FACTORS, steps, label=model, **look)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set(xlabel="weight of the prior at all scales, px²", xlim=(-0.1, 130))
    axes[1].set(xlabel="share of an `em` step", ylabel="steps of a phase, mean")
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.float64)
    dtype = np.float64 if args.float64 else np.float32
    faces = load_faces(args.shared, args.every)
    text = [
        "# The parameter update: prior, bounds, damping\n",
        f"{len(faces)} faces, one start from boxes moved by up to 10 %, "
        f"{np.dtype(dtype).name}, 0.005 px.",
    ]
    results = {}
    for name, model, options in chosen_models(args, dtype):
        fits = {
            setting: [fit(model, options, face, changes) for face in faces]
            for setting, changes in settings().items()
        }
        rows = run_damped(model, fits[DEFAULT])
        results[name] = fits, rows
        text += [f"\n## {name}\n", *fit_table(fits), "", *damping_table(rows)]
    print(*text, sep="\n")
    save_text(args.out / "update.md", "\n".join(text) + "\n")
    draw(results, args.out / "update.png")


if __name__ == "__main__":
    main()
