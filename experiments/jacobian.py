"""Experiment e: derivatives along Euler angles or along the tangent: does it matter?

    python experiments/jacobian.py [--shared FOLDER] [--every N] [--models NAME...]
                                   [--faces N] [--out FOLDER]

EM steps in three sorts of rotation coordinates: the package's small rotation of the
face's frame; Euler angles, derivatives and steps both; and the mixture that a careless
port makes, derivatives along Euler angles whose step is taken as a small rotation. All
from the same start and maps, with steps as they are and with steps that are refused
where F falls. First on the coarsest scale of photographs, then on made-up maps (a peak
at the true place, a false one and noise) of random faces at yaws up to 89 degrees.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from faults import Case, Fault, Replacements, injected
from made_up import WINDOW, Problem, made_up
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
from jaxclnf.shape import pdm as shape_pdm
from jaxclnf.shape.rotation import matrix_from_euler
from jaxclnf.solver import quadratic, steps

KINDS = ("tangent", "Euler angles", "mixed")
STEP_KINDS = ("plain", "guarded")
MAX_STEPS = 300
REACHED = 0.1
"""Pixels from Newton's optimum."""
YAWS = (0, 20, 40, 50, 60, 65, 70, 75, 80, 85, 89)
"""Degrees, of the made-up faces."""
PHOTOGRAPH_BINS = (0, 15, 30, 90)
"""Degrees of yaw between which photographs are counted together."""


def coordinates(kind: jax.Array) -> Replacements:
    """Replacements of the solver's derivatives and moves; `kind` counts `KINDS`."""
    tangent_columns, tangent_retract = quadratic.phase_jacobian, shape_pdm.retract

    def columns(pdm, params, rigid):
        found = tangent_columns(pdm, params, rigid)

        def turned(euler):
            rotation = matrix_from_euler(euler)
            return jaxclnf.project(pdm, dataclasses.replace(params, rotation=rotation))

        along_angles = jax.jacfwd(turned)(params.euler)
        return jnp.where(kind > 0, found.at[:, :, 1:4].set(along_angles), found)

    def retract(params, delta):
        moved = tangent_retract(params, delta)
        by_angles = matrix_from_euler(params.euler + delta[1:4])
        rotation = jnp.where(kind == 1, by_angles, moved.rotation)
        return dataclasses.replace(moved, rotation=rotation)

    return [(tangent_columns, columns), (tangent_retract, retract)]


@partial(jax.jit, static_argnames=("rigid", "step"))
@partial(jax.vmap, in_axes=(None, None, None, None, 0, None, None))
def run_kind(pdm, responses, start, options, kind, rigid: bool, step: str):
    """A phase in each sort of coordinates.

    Returns:
        The last states, and how many steps lowered F or would have.
    """
    own = dataclasses.replace(options, solver="em", max_steps=MAX_STEPS)
    first = jaxclnf.nu_rlms_init(pdm, responses, start, own, rigid=rigid)
    case = Case(pdm, responses, responses, start)
    with injected(Fault("coordinates", lambda _: coordinates(kind)), case, step) as n:

        def body(carry):
            state, falls = carry
            after = steps.STEPS[n](pdm, responses, state, own, rigid=rigid)
            rounding = 1e-6 * jnp.abs(state.objective)
            fell = after.objective < state.objective - rounding
            return after, falls + (fell | (after.step_factor < 1))

        return jax.lax.while_loop(
            lambda carry: carry[0].status == jaxclnf.Status.RUNNING,
            body,
            (first, jnp.zeros((), jnp.int32)),
        )


_project = jax.jit(jaxclnf.project)


def run(pdm: jaxclnf.PDM, problem: Problem) -> list[dict]:
    """Both phases of a problem.

    Returns:
        A dictionary per phase, sort of step and sort of coordinates.
    """
    rows = []
    start = problem.start
    kinds = jnp.arange(len(KINDS))
    for rigid in (True, False):
        args = (pdm, problem.responses, start, problem.options)
        best, _ = run_phase(*args, rigid=rigid, solver="newton", max_steps=200)
        optimum = np.asarray(_project(pdm, best.params))
        yaw = abs(float(np.rad2deg(best.params.euler[1])))
        for step in STEP_KINDS:
            ends, falls = jax.device_get(run_kind(*args, kinds, rigid, step))
            for k, kind in enumerate(KINDS):
                gap = np.linalg.norm(ends.evidence.shape[k] - optimum, axis=1).max()
                status = int(ends.status[k])
                rows.append(
                    {
                        "kind": kind,
                        "step": step,
                        "yaw": yaw,
                        "steps": int(ends.num_steps[k]),
                        "converged": status == jaxclnf.Status.CONVERGED,
                        "reached": bool(gap < REACHED),
                        "falls": int(falls[k]),
                    }
                )
        start = best.params
    return rows


HEADER = (
    "| Yaw, degrees | Coordinates | Phases "
    + "".join(
        f"| {step}: converged | within 0.1 px of the optimum | steps, median / largest "
        f"| phases with a step along which F falls "
        for step in ("Plain", "Guarded")
    )
    + "|\n"
    + "|---" * 11
    + "|"
)


def summary(yaw: str, rows: list[dict]) -> list[str]:
    """Lines of a table, one per sort of coordinates."""
    lines = []
    for kind in KINDS:
        line = f"| {yaw} | {kind} | {len(rows) // len(KINDS) // len(STEP_KINDS)} |"
        for step in STEP_KINDS:
            here = [r for r in rows if (r["step"], r["kind"]) == (step, kind)]
            count = np.array([r["steps"] for r in here])
            line += (
                f" {np.mean([r['converged'] for r in here]):.1%} | "
                f"{np.mean([r['reached'] for r in here]):.1%} | "
                f"{np.median(count):.0f} / {count.max()} | "
                f"{np.mean([r['falls'] > 0 for r in here]):.1%} |"
            )
        lines.append(line)
    return lines


def draw(by_yaw: dict[int, list[dict]], path: Path) -> None:
    """Steps, and share that reaches the optimum, over yaw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    for colour, kind in enumerate(KINDS):
        for step, style in zip(STEP_KINDS, ("-", "--"), strict=True):
            here = [
                [r for r in rows if (r["step"], r["kind"]) == (step, kind)]
                for rows in by_yaw.values()
            ]
            look: dict = {"color": f"C{colour}", "linestyle": style, "marker": "."}
            look["linewidth"] = 4.5 - 1.5 * colour  # they lie on one another
            count = [np.mean([r["steps"] for r in some]) for some in here]
            reached = [np.mean([r["reached"] for r in some]) for some in here]
            axes[0].plot(list(by_yaw), count, label=f"{kind}, {step}", **look)
            axes[1].plot(list(by_yaw), reached, **look)
    axes[0].set(yscale="log", ylabel=f"steps, mean (limit {MAX_STEPS})")
    axes[0].legend(fontsize=7.5)
    axes[1].set(ylabel=f"share within {REACHED} px of the optimum", ylim=(-0.02, 1.02))
    for axis in axes:
        axis.set_xlabel("yaw of the made-up face, degrees")
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--faces", type=int, default=20, help="made-up ones per yaw")
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.float64)
    dtype = np.float64 if args.float64 else np.float32
    faces = load_faces(args.shared, args.every)
    text = [
        "# Euler angles or the tangent\n",
        f"Coarsest scale (window {WINDOW}), rigid and non-rigid phase, "
        f"{np.dtype(dtype).name}, 0.005 px, at most {MAX_STEPS} steps. *Mixed*: "
        "derivatives along Euler angles, step taken as a small rotation. *Plain*: "
        "NU-RLMS as published, modes clipped after the step. *Guarded*: the package's "
        "`em`, within the bounds, a step along which F would fall refused and halved.",
    ]
    for name, model, options in chosen_models(args, dtype):
        rows = []
        for face in faces:
            phase = next(phases(model, options, face))
            at = phase.options
            rows += run(model.pdm, Problem(phase.responses, phase.start, at))
        text += [f"\n## Photographs, model {name}: {len(faces)} faces\n", HEADER]
        for low, high in zip(PHOTOGRAPH_BINS, PHOTOGRAPH_BINS[1:], strict=False):
            here = [r for r in rows if low <= r["yaw"] < high]
            if here:
                text += summary(f"{low} to {high}", here)

    pdm = jaxclnf.load_model(dtype=dtype).pdm
    rng = np.random.default_rng(0)
    text += [f"\n## Made-up maps, shipped shape model: {args.faces} faces per yaw\n"]
    text.append(HEADER)
    by_yaw = {}
    for yaw in YAWS:
        problems = [made_up(pdm, yaw, rng) for _ in range(args.faces)]
        by_yaw[yaw] = [row for problem in problems for row in run(pdm, problem)]
        text += summary(str(yaw), by_yaw[yaw])
    print(*text, sep="\n")
    save_text(args.out / "jacobian.md", "\n".join(text) + "\n")
    draw(by_yaw, args.out / "jacobian.png")


if __name__ == "__main__":
    main()
