"""Experiment g: how much do prior, bandwidth, weights and windows matter?

    python experiments/settings.py [--shared FOLDER] [--every N] [--models NAME...]
                                   [--windows] [--out FOLDER]

One number at a time is changed from the defaults, and every face fitted from three
starts, of which the likeliest end is kept. The table gives errors, failures, steps and
the share of certified fits, and on how many faces the error fell or rose by more than
.002. The figure shows errors and failures. The sample is one of test faces: it may say
whether the defaults are sensible, not what they should be.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
from sample import (
    Face,
    add_arguments,
    chosen_models,
    fit_starts,
    known_faces,
    likeliest,
    save_figure,
    save_text,
    with_truth,
)

import jaxclnf

SWEEPS = {
    "reg_factor": (5, 12, 25, 50, 100),
    "sigma": (0.75, 1.0, 1.5, 2.0, 3.0),
    "weight_factor": (0.0, 1.0, 2.5, 5.0),
}
UNITS = {"reg_factor": "px²", "sigma": "px", "weight_factor": "0: all weigh 1"}
WINDOWS = ((9, 7, 5, 5), (15, 13, 11, 11))
NUM_STARTS = 3
LEAST_CHANGE = 0.002
LIMITS = (0.08, 0.10)


def settings(
    options: jaxclnf.FitOptions, with_windows: bool
) -> dict[tuple, jaxclnf.FitOptions]:
    """Everything that is tried, by the name of the option and its value."""
    tried = {("default", ""): options}
    for name, values in SWEEPS.items():
        for value in values:
            if value != getattr(options, name):
                tried[name, value] = dataclasses.replace(
                    options, **{name: float(value)}
                )
    for windows in WINDOWS if with_windows else ():
        tried["window_sizes", windows] = dataclasses.replace(
            options, window_sizes=windows
        )
    return tried


def run(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face]
) -> dict[str, np.ndarray]:
    """Error, mean steps of a phase, and certificate of every face."""
    rows: dict[str, list] = {"error": [], "steps": [], "certified": []}
    for face in faces:
        result = fit_starts(model, options, face, NUM_STARTS)
        best = likeliest(result)
        steps = result.num_steps[best]
        rows["error"].append(face.error(result.landmarks[best]))
        rows["steps"].append(steps[steps > 0].mean())
        rows["certified"].append(result.certified[best])
    return {name: np.array(values) for name, values in rows.items()}


def line(label: str, rows: dict, default: dict) -> str:
    """A row of the table."""
    error = rows["error"]
    change = error - default["error"]
    shares = " | ".join(f"{np.mean(error > x):.1%}" for x in LIMITS)
    return (
        f"| {label} | {np.median(error):.4f} | {error.mean():.4f} | {shares} | "
        f"{np.sum(change < -LEAST_CHANGE)} / {np.sum(change > LEAST_CHANGE)} | "
        f"{rows['steps'].mean():.2f} | {rows['certified'].mean():.1%} |"
    )


def report(results: dict[str, dict], num_faces: int, truth: str) -> str:
    """The tables as Markdown."""
    text = [
        "# Prior, bandwidth, weights and windows\n",
        f"{num_faces} faces, boxes moved at random; float32, `newton`, {NUM_STARTS} "
        "starts all finished, without parts; one option changed at a time, scales "
        f"refined as usual. Errors against {truth}, over the distance of the outer eye "
        "corners. *Better / worse*: faces whose error fell / rose by more than "
        f"{LEAST_CHANGE:g} against the default. These are test faces: no default was, "
        "or should be, chosen by this table.",
    ]
    for name, found in results.items():
        default = found["default", ""]
        text += [
            f"\n## {name}\n",
            "| Option | Median error | Mean | > .08 | > .10 | Better / worse | "
            "Steps a phase | Certified |",
            "|---" * 8 + "|",
        ]
        for (option, value), rows in found.items():
            label = f"`{option}` {value}" if value != "" else "defaults"
            text.append(line(label, rows, default))
    return "\n".join(text) + "\n"


def curve(found: dict, option: str, default: float) -> tuple[list, list[np.ndarray]]:
    """Values of an option in order, the default among them, and the errors."""
    errors = {value: rows["error"] for (o, value), rows in found.items() if o == option}
    errors[default] = found["default", ""]["error"]
    values = sorted(errors)
    return values, [errors[v] for v in values]


def draw(results: dict[str, dict], path: Path) -> None:
    """Median error and failures along every sweep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(SWEEPS), figsize=(3.4 * len(SWEEPS), 5.2), sharex="col", sharey="row"
    )
    defaults = jaxclnf.FitOptions()
    for column, option in enumerate(SWEEPS):
        default = float(getattr(defaults, option))
        top, bottom = axes[:, column]
        for name, found in results.items():
            values, errors = curve(found, option, default)
            (plotted,) = top.plot(
                values, [np.median(e) for e in errors], marker=".", label=name
            )
            bottom.plot(
                values,
                [100 * np.mean(e > LIMITS[0]) for e in errors],
                marker=".",
                color=plotted.get_color(),
            )
        for axis in (top, bottom):
            axis.axvline(default, color="grey", linewidth=0.8, linestyle=":")
            axis.grid(alpha=0.3)
        if option == "reg_factor":
            bottom.set_xscale("log")
        bottom.set_xlabel(f"{option} ({UNITS[option]})")
    axes[0, 0].set_ylabel("median error / distance of eyes")
    axes[1, 0].set_ylabel("errors above .08, %")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    parser.add_argument(
        "--windows", action="store_true", help="other windows too, each compiled anew"
    )
    args = parser.parse_args()

    faces, _ = known_faces(args.shared, args.every)
    truth = "annotations" if args.shared else "the fit from the exact box"
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        options = dataclasses.replace(options, use_parts=False, starts=1)
        judged = with_truth(faces, model, options)
        results[name] = {}
        for key, changed in settings(options, args.windows).items():
            begin = time.perf_counter()
            prepared = model.prepared(changed.window_sizes)
            rows = run(prepared, changed, judged)
            results[name][key] = rows
            seconds = time.perf_counter() - begin
            print(line(f"{name} {key}", rows, rows), f"{seconds:.0f} s", flush=True)
        save_text(args.out / "settings.md", report(results, len(faces), truth))
        draw(results, args.out / "settings.png")


if __name__ == "__main__":
    main()
