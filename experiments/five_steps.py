"""Experiment i, first part: what do OpenFace's five steps a phase cost in accuracy?

    python experiments/five_steps.py [--shared FOLDER] [--every N] [--models NAME...]
                                     [--out FOLDER]

Faces are fitted from one frontal start, with the same windows, by OpenFace's steps and
by `newton`, cut off after so many steps a phase or run to the end. `jitter.py` does the
same on videos.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from sample import (
    Face,
    add_arguments,
    chosen_models,
    known_faces,
    save_figure,
    save_text,
    with_truth,
)

import jaxclnf

TO_THE_END = 1000
OPENFACE = jaxclnf.FitOptions(
    solver="openface", sampling="fixed_point", shape_tol=0.01, max_steps=TO_THE_END
)
NEWTON = jaxclnf.FitOptions(max_steps=TO_THE_END)
VARIANTS = {
    "openface, 5 steps": (OPENFACE, 5),
    "openface, to the end": (OPENFACE, TO_THE_END),
    "newton, 1 step": (NEWTON, 1),
    "newton, 2 steps": (NEWTON, 2),
    "newton, 3 steps": (NEWTON, 3),
    "newton, 5 steps": (NEWTON, 5),
    "newton, to the end": (NEWTON, TO_THE_END),
}
"""Options, and the limit of every phase."""
REFERENCE = "newton, to the end"
LEAST_CHANGE = 0.002
LIMITS = (0.08, 0.10)

Ends = tuple[jaxclnf.PDMParams, np.ndarray, np.ndarray]
"""Parameters, landmarks, and the steps of every phase."""


@jax.jit
def fit_with_limit(
    model: jaxclnf.CLNFModel,
    image: jax.Array,
    params: jaxclnf.PDMParams,
    options: jaxclnf.FitOptions,
    limit: jax.Array,
) -> tuple[jaxclnf.PDMParams, jax.Array, jax.Array]:
    """A fit with a limit of steps that can change without compiling again."""
    counts = []
    for experts, window in zip(model.experts, options.window_sizes, strict=False):
        if not window:
            continue
        responses = jaxclnf.response_maps(
            model.pdm, experts, image, params, window, sampling=options.sampling
        )
        at_scale = options.at_scale(experts.patch_scaling, responses.img_from_ref)
        for rigid in (True, False):
            args = (model.pdm, responses)
            end = lax.while_loop(
                lambda s: (s.status == jaxclnf.Status.RUNNING) & (s.num_steps < limit),
                lambda s, args=args, options=at_scale, rigid=rigid: (
                    jaxclnf.nu_rlms_step(*args, s, options, rigid=rigid)
                ),
                jaxclnf.nu_rlms_init(*args, params, at_scale, rigid=rigid),
            )
            params = end.params
            counts.append(end.num_steps)
    return params, jaxclnf.project(model.pdm, params), jnp.stack(counts)


def fit_by(
    variant: str,
    model: jaxclnf.CLNFModel,
    image: np.ndarray,
    params: jaxclnf.PDMParams,
    windows: tuple[int, ...] = NEWTON.window_sizes,
) -> Ends:
    """A fit by one of `VARIANTS`."""
    options, limit = VARIANTS[variant]
    options = dataclasses.replace(options, window_sizes=windows)
    return jax.device_get(
        fit_with_limit(model, image, params, options, np.int32(limit))
    )


_start = jax.jit(jaxclnf.params_from_box)


def frontal_start(model: jaxclnf.CLNFModel, box: np.ndarray) -> jaxclnf.PDMParams:
    """The mean face in a box."""
    return jax.device_get(_start(model.pdm, box.astype(model.pdm.mean_shape.dtype)))


def run(model: jaxclnf.CLNFModel, faces: list[Face]) -> dict[str, dict]:
    """Errors, ends and steps of every variant on every face."""
    rows: dict = {v: {"error": [], "end": [], "steps": []} for v in VARIANTS}
    for face in faces:
        start = frontal_start(model, face.box)
        for variant, found in rows.items():
            _, landmarks, steps = fit_by(variant, model, face.grey, start)
            found["error"].append(face.error(landmarks))
            found["end"].append(landmarks)
            found["steps"].append(steps)
    return {v: {k: np.array(x) for k, x in r.items()} for v, r in rows.items()}


def lines(rows: dict[str, dict]) -> list[str]:
    """A row of the table for every variant."""
    text = []
    final = rows[REFERENCE]
    eyes = np.linalg.norm(final["end"][:, 36] - final["end"][:, 45], axis=-1)
    for variant, found in rows.items():
        error, steps = found["error"], found["steps"]
        apart = np.linalg.norm(found["end"] - final["end"], axis=-1).mean(axis=-1)
        change = error - final["error"]
        cut = np.mean(steps >= VARIANTS[variant][1])
        shares = " | ".join(f"{np.mean(error > x):.1%}" for x in LIMITS)
        text.append(
            f"| {variant} | {np.median(error):.4f} | {error.mean():.4f} | {shares} | "
            f"{np.sum(change < -LEAST_CHANGE)} / {np.sum(change > LEAST_CHANGE)} | "
            f"{np.median(100 * apart / eyes):.2f} | {steps.sum(axis=1).mean():.0f} | "
            f"{cut:.1%} |"
        )
    return text


def report(results: dict[str, dict], num_faces: int, truth: str) -> str:
    """The tables as Markdown."""
    text = [
        "# Five steps, and convergence\n",
        f"{num_faces} faces, boxes moved at random, one frontal start, windows "
        f"{NEWTON.window_sizes}, float32, without parts. Errors against {truth}, over "
        "the distance of the outer eye corners. *Better / worse*: faces whose error is "
        f"lower / higher by more than {LEAST_CHANGE:g} than that of *{REFERENCE}*; "
        "*apart*: mean distance from its landmarks, median of the faces, % of the "
        "distance of the eyes; *steps* of all phases together; *cut off*: share of "
        "phases that came to the limit.",
    ]
    heads = ["Variant", "Median error", "Mean", "> .08", "> .10"]
    heads += ["Better / worse", "Apart", "Steps", "Cut off"]
    for name, rows in results.items():
        text += [
            f"\n## {name}\n",
            "| " + " | ".join(heads) + " |",
            "|---" * len(heads) + "|",
            *lines(rows),
        ]
    return "\n".join(text) + "\n"


def draw_bars(columns: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for every label, in it a bar for every model and variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3.2 * len(columns) + 1.8, 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    places = np.arange(len(VARIANTS))[::-1]
    for axis, (label, models) in zip(axes[0], columns.items(), strict=True):
        height = 0.8 / len(models)
        for k, (name, values) in enumerate(models.items()):
            axis.barh(places - k * height, values, height, label=name)
        middle = places - height * (len(models) - 1) / 2
        axis.set(xlabel=label, yticks=middle, yticklabels=list(VARIANTS))
        axis.grid(axis="x", alpha=0.3)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    args = parser.parse_args()

    faces, _ = known_faces(args.shared, args.every)
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        single = dataclasses.replace(options, use_parts=False, starts=1)
        results[name] = run(model, with_truth(faces, model, single))
    truth = "annotations" if args.shared else "the fit from the exact box"
    text = report(results, len(faces), truth)
    print(text)
    save_text(args.out / "five_steps.md", text)
    errors = {n: [rows[v]["error"] for v in VARIANTS] for n, rows in results.items()}
    columns = {
        "median error, % of the eyes": {
            n: [100 * float(np.median(e)) for e in found] for n, found in errors.items()
        },
        "errors above .08, %": {
            n: [100 * float(np.mean(e > LIMITS[0])) for e in found]
            for n, found in errors.items()
        },
    }
    draw_bars(columns, args.out / "five_steps.png")


if __name__ == "__main__":
    main()
