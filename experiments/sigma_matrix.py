"""Experiment c: what does Sigma, which couples the pixels of a map, do for a fit?

    python experiments/sigma_matrix.py [--shared FOLDER] [--every N] [--models NAME...]
                                       [--out FOLDER]

Every face is fitted from its box with the model as it is and with `Sigma = I / (2 sum
alpha)`, that is by the neurons alone. As Sigma and the kernel of the density estimate
both spread a map, each is done under several bandwidths. The tables compare steps,
certificates and errors, and the maps at the end of the fit; the figure shows errors and
steps against the bandwidth.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sample import (
    add_arguments,
    chosen_models,
    known_faces,
    panels,
    peak_width,
    save_figure,
    save_text,
    with_truth,
    without_sigma,
)

import jaxclnf
from jaxclnf.experts.sigma import sigma_matrices

KINDS = ("with Sigma", "without")
FACTORS = (0.75, 1.0, 1.5, 2.0)
"""Bandwidths over the default."""
_maps = jax.jit(jaxclnf.response_maps, static_argnames="window_size")


def run(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list
) -> dict[tuple[str, float], list[dict]]:
    """Fits of all faces, one list for each kind of map and bandwidth."""
    options = dataclasses.replace(options, use_parts=False)
    found = {}
    for kind in KINDS:
        own = model if kind == KINDS[0] else without_sigma(model, options)
        for factor in FACTORS:
            sigma = jnp.asarray(factor * options.sigma, jnp.float32)
            changed = dataclasses.replace(options, sigma=sigma)
            found[kind, factor] = [fit_one(own, changed, face) for face in faces]
    return found


def fit_one(model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face) -> dict:
    """One fit: landmarks, steps and certificate, and its error."""
    box = np.asarray(face.box, np.float32)
    result = jax.device_get(jaxclnf.fit(model, face.grey, box, options=options))
    eyes = np.linalg.norm(result.landmarks[36] - result.landmarks[45])
    return {
        "landmarks": result.landmarks,
        "params": result.params,
        "eyes": eyes,
        "steps": result.num_steps[result.num_steps > 0],
        "certified": result.certified,
        "error": face.error(result.landmarks),
    }


def map_rows(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list, ends: list[dict]
) -> list[str]:
    """Lines of the table of maps around the ends of the fits, one per scale."""
    bare = without_sigma(model, options)
    lines = []
    for scale, window in enumerate(options.window_sizes[: len(model.experts)]):
        experts = model.experts[scale]
        width, contrast = {}, {}
        for kind, own in zip(KINDS, (model, bare), strict=True):
            maps = []
            for face, end in zip(faces, ends, strict=True):
                here = (face.grey, end["params"], window)
                found = _maps(model.pdm, own.experts[scale], *here)
                maps.append(np.asarray(found.maps)[np.asarray(found.visibility)])
            maps = np.concatenate(maps)
            width[kind] = np.median(peak_width(maps))
            contrast[kind] = np.median(maps.max((1, 2)) / maps.mean((1, 2)))
        lines.append(
            f"| {window} | {float(experts.patch_scaling):.2f} | "
            f"{condition(experts, window)} | {row_sums(experts, window)} | "
            + " | ".join(f"{x[k]:.2f}" for x in (width, contrast) for k in KINDS)
            + " |"
        )
    return lines


def matrices(experts, window: int) -> np.ndarray:
    """Sigma of every expert of all views."""
    views = range(len(experts.sigma[window]))
    found = np.stack([sigma_matrices(experts, view, window) for view in views])
    return found[np.asarray(experts.visibility)]


def condition(experts, window: int) -> str:
    """Median and largest condition number of Sigma; none where it has no neighbours."""
    if window not in experts.sigma:
        return "none"
    values = np.linalg.eigvalsh(matrices(experts, window))
    ratio = values[:, -1] / values[:, 0]
    return f"{np.median(ratio):.2f} / {ratio.max():.2f}"


def row_sums(experts, window: int) -> str:
    """What Sigma makes of a map of ones (1 without it): in the middle, in a corner."""
    if window not in experts.sigma:
        return "1 / 1"
    alpha = np.asarray(experts.alpha, np.float64)[np.asarray(experts.visibility)]
    sums = matrices(experts, window).sum(axis=-1) * 2 * alpha.sum(axis=-1)[:, None]
    middle, corner = np.median(sums, axis=0)[[window**2 // 2, 0]]
    return f"{middle:.2f} / {corner:.2f}"


def fit_row(kind: str, factor: float, options: jaxclnf.FitOptions, rows: list) -> str:
    """A line of the table of fits."""
    steps = np.concatenate([row["steps"] for row in rows])
    error = np.array([row["error"] for row in rows])
    certified = np.mean([row["certified"] for row in rows])
    return (
        f"| {factor * options.sigma:.2f} | {kind} | {certified:.1%} | "
        f"{steps.mean():.2f} | {steps.max()} | {np.median(error):.4f} | "
        f"{np.mean(error > 0.08):.1%} | {np.mean(error > 0.1):.1%} |"
    )


def paired(found: dict) -> str:
    """How far the two ends of each face are apart, and which is the better one."""
    with_it, without = (found[kind, 1.0] for kind in KINDS)
    gap = [
        np.linalg.norm(a["landmarks"] - b["landmarks"], axis=1).mean() / a["eyes"]
        for a, b in zip(with_it, without, strict=True)
    ]
    gain = np.array(
        [b["error"] - a["error"] for a, b in zip(with_it, without, strict=True)]
    )
    spread = gain.std() / np.sqrt(len(gain))
    return (
        f"Ends with and without Sigma, default bandwidth: {np.median(gap):.4f} of the "
        f"distance of the eyes apart in the median, {np.max(gap):.4f} at most. Errors "
        f"without minus errors with Sigma: mean {gain.mean():.4f} +- {spread:.4f}, "
        f"median {np.median(gain):.4f}; lower with Sigma for {np.mean(gain > 0):.0%} "
        "of the faces."
    )


def report(results: dict, what: str) -> str:
    """The tables as Markdown."""
    text = [
        "# Fits with and without Sigma\n",
        f"{what}, float32, `newton`, three starts of which two are "
        "finished, no parts. Errors are shares of the distance of the eye corners.",
    ]
    for name, (options, found, maps) in results.items():
        text += [
            f"\n## {name}\n",
            "| Bandwidth, px | Maps | Fits certified | Steps a phase, mean | Largest | "
            "Median error | > .08 | > .10 |\n" + "|---" * 8 + "|",
            *[fit_row(k, f, options, rows) for (k, f), rows in found.items()],
            "\n" + paired(found),
            "\nMaps around the ends; condition number of Sigma, median / largest; what "
            "it makes of a map of ones, in the middle / in a corner:\n",
            "| Window | px per mm | Condition | Map of ones | Peak width, px: with | "
            "without | Peak over mean: with | without |\n" + "|---" * 8 + "|",
            *maps,
        ]
    return "\n".join(text) + "\n"


def draw(results: dict) -> Any:
    """Errors and steps against the bandwidth."""
    figure, axes = panels(2, 4.2, share=False)
    for colour, (name, (options, found, _)) in enumerate(results.items()):
        for kind, style in zip(KINDS, ("o-", "s--"), strict=True):
            rows = [found[kind, factor] for factor in FACTORS]
            widths = np.array(FACTORS) * options.sigma
            error = [np.median([row["error"] for row in some]) for some in rows]
            steps = [np.concatenate([r["steps"] for r in some]).mean() for some in rows]
            label = f"{name}, {kind}"
            axes[0].plot(widths, error, style, color=f"C{colour}", label=label)
            axes[1].plot(widths, steps, style, color=f"C{colour}", label=label)
    axes[0].set_ylabel("median error / distance of the eyes")
    axes[1].set_ylabel("Newton steps of a phase, mean")
    for axis in axes:
        axis.set_xlabel("bandwidth at the coarsest scale, px of the map")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    faces, what = known_faces(args.shared, args.every)
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        found = run(model, options, with_truth(faces, model, options))
        maps = map_rows(model, options, faces, found[KINDS[0], 1.0])
        results[name] = (options, found, maps)
    text = report(results, what)
    print(text)
    save_text(args.out / "sigma_matrix.md", text)
    save_figure(draw(results), args.out / "sigma_matrix.png")


if __name__ == "__main__":
    main()
