"""Experiment m: do response maps point at the landmarks?

    python experiments/maps.py [--shared FOLDER] [--every N] [--models NAME...]
                               [--out FOLDER]

Maps are made around the model's shape nearest to the annotated landmarks, moved as a
whole by a random amount, once with Sigma and once with the neurons alone. The tables
give, for each group of landmarks, how far the largest entry of a map, and the largest
density under the solver's kernel, are from the true landmark, against a pixel of the
map picked at random; and how Sigma changes height and width of the peaks.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sample import (
    Face,
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
from scipy.ndimage import gaussian_filter1d

import jaxclnf
from jaxclnf.solver.evidence import landmark_positions

GROUPS = {
    "jaw": slice(0, 17),
    "brows": slice(17, 27),
    "nose": slice(27, 36),
    "eyes": slice(36, 48),
    "mouth": slice(48, 68),
}
WINDOWS = (11, 15, 21)
SIGMA_WINDOWS = (11, 15)
"""Those for which all models have neighbour matrices."""
MOVE = 3.0
"""Shapes are moved by up to this in x and in y, pixels of the maps."""
NEAR = 2.0
"""Peaks within this count as hits, pixels of the maps."""
KERNEL = 1.5
"""Bandwidth of the smoothed peaks, pixels of the maps."""

_maps = jax.jit(jaxclnf.response_maps, static_argnames="window_size")
_params = jax.jit(jaxclnf.params_from_landmarks)
_positions = jax.jit(landmark_positions)


def measure(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face], scale: int
) -> dict[str, np.ndarray]:
    """Distances and peaks of all maps of one scale.

    Returns:
        Arrays `(face, landmark)`, NaN where a landmark has no expert or lies outside
        the window: distances from the true landmark, pixels, named by window and kind
        (`raw`, `Sigma`, `random`); at the first window also of the peaks under the
        kernel, `smoothed`, and `contrast` and `width` of the peaks; `gain`, the
        largest entry of a raw map over that with Sigma.
    """
    own = dataclasses.replace(options, window_sizes=(WINDOWS[0],) * len(model.experts))
    windows = [(window,) * len(model.experts) for window in SIGMA_WINDOWS]
    kinds = {"Sigma": model.prepared(*windows), "raw": without_sigma(model, own)}
    rng = np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {}
    for face in faces:
        truth = jnp.asarray(face.landmarks, jnp.float32)
        params = _params(model.pdm, truth)
        size = params.scale / model.experts[scale].patch_scaling
        shift = jnp.asarray(rng.uniform(-MOVE, MOVE, 2), jnp.float32) * size
        start = dataclasses.replace(params, translation=params.translation + shift)
        largest = {}
        for window in WINDOWS:
            for kind, changed in kinds.items():
                if kind == "Sigma" and window not in SIGMA_WINDOWS:
                    continue
                experts = changed.experts[scale]
                found = _maps(model.pdm, experts, face.grey, start, window)
                maps = np.asarray(found.maps)
                where = np.asarray(_positions(found, truth))
                inside = np.abs(where - (window - 1) / 2).max(axis=1) <= window / 2
                used = np.asarray(found.visibility) & inside
                row = {f"{window} {kind}": _peak_distance(maps, where)}
                if kind == "raw":
                    row[f"{window} random"] = _random_distance(where, window)
                if window == WINDOWS[0]:
                    row[f"smoothed {kind}"] = _peak_distance(_smoothed(maps), where)
                    largest[kind] = maps.max((1, 2))
                    row[f"contrast {kind}"] = largest[kind] / maps.mean((1, 2))
                    row[f"width {kind}"] = peak_width(maps)
                    if len(largest) == len(kinds):
                        row["gain"] = largest["raw"] / largest["Sigma"]
                for name, values in row.items():
                    rows.setdefault(name, []).append(np.where(used, values, np.nan))
    return {name: np.array(values) for name, values in rows.items()}


def _peak_distance(maps: np.ndarray, where: np.ndarray) -> np.ndarray:
    n, w, _ = maps.shape
    row, column = np.divmod(maps.reshape(n, -1).argmax(axis=1), w)
    return np.hypot(column - where[:, 0], row - where[:, 1])


def _random_distance(where: np.ndarray, window: int) -> np.ndarray:
    """Mean distance of a window's pixels from the true landmarks."""
    grid = np.arange(window)
    across = (grid[None, :] - where[:, :1]) ** 2
    down = (grid[None, :] - where[:, 1:]) ** 2
    return np.sqrt(down[:, :, None] + across[:, None, :]).mean((1, 2))


def _smoothed(maps: np.ndarray) -> np.ndarray:
    for axis in (1, 2):
        maps = gaussian_filter1d(maps, KERNEL, axis=axis, mode="constant")
    return maps


def distance_rows(found: dict[str, np.ndarray]) -> list[str]:
    """Lines of the table of distances, one per group of landmarks."""
    columns = ["11 raw", "11 Sigma", "smoothed Sigma", "11 random"]
    columns += ["15 raw", "15 Sigma", "15 random", "21 raw", "21 random"]
    lines = []
    for group, points in {**GROUPS, "all": slice(None)}.items():
        values = [np.nanmedian(found[c][:, points]) for c in columns]
        near = found["11 Sigma"][:, points]
        share = np.mean(near[np.isfinite(near)] < NEAR)
        lines.append(
            f"| {group} | "
            + " | ".join(f"{v:.2f}" for v in values)
            + f" | {share:.0%} |"
        )
    return lines


def peak_line(found: dict[str, np.ndarray]) -> str:
    """What Sigma does to the peaks, in a sentence."""
    names = ("contrast raw", "contrast Sigma", "width raw", "width Sigma")
    a, b, c, d = (np.nanmedian(found[name]) for name in names)
    ratio = np.nanmedian(found["contrast Sigma"] / found["contrast raw"])
    return (
        f"Sigma, window {WINDOWS[0]}: peak over mean {a:.2f} without, {b:.2f} with "
        f"(ratio {ratio:.2f} in the median), peak width {c:.2f} px without, {d:.2f} px "
        f"with; the largest entry is {np.nanmedian(found['gain']):.2f} times smaller. "
        f"Distances to the true landmark with Sigma minus without: mean "
        f"{np.nanmean(found['11 Sigma'] - found['11 raw']):+.3f} px."
    )


def report(results: dict[str, dict], what: str) -> str:
    """The tables as Markdown."""
    text = [
        "# From the peaks of the maps to the true landmarks\n",
        f"{what}, float32; maps around the model's shape nearest to the "
        f"landmarks, moved by up to {MOVE:g} px in x and y. Median distances in pixels "
        "of the maps, by window side: `raw`, the neurons alone; `Sigma`, the map; "
        f"`smoothed`, the map under a kernel of {KERNEL:g} px; `random`, any pixel. "
        f"Last column: share of `11 Sigma` within {NEAR:g} px.",
    ]
    for name, scales in results.items():
        for scaling, found in scales.items():
            used = np.mean(np.isfinite(found["11 raw"]))
            text += [
                f"\n## {name}, {scaling:.2f} px per mm\n",
                "| Landmarks | 11 raw | Sigma | smoothed | random | 15 raw | Sigma | "
                "random | 21 raw | random | Near |\n" + "|---" * 11 + "|",
                *distance_rows(found),
                "\n" + peak_line(found),
                f"{1 - used:.1%} of the landmarks are left out: no expert, or outside "
                "the window of 11.",
            ]
    return "\n".join(text) + "\n"


def draw(results: dict[str, dict]) -> Any:
    """Median distances of the raw maps' peaks at the coarsest scale, against chance."""
    names = list(results)
    figure, axes = panels(len(names), 3.8)
    place = np.arange(len(GROUPS))
    for axis, name in zip(axes, names, strict=True):
        scaling, found = next(iter(results[name].items()))
        for k, window in enumerate(WINDOWS):
            left = place + 0.27 * (k - 1)
            for kind in ("raw", "random"):
                heights = [
                    np.nanmedian(found[f"{window} {kind}"][:, s])
                    for s in GROUPS.values()
                ]
                if kind == "raw":
                    axis.bar(left, heights, 0.25, label=f"peak of {window} x {window}")
                else:
                    label = "random pixel of it" if k == 0 else None
                    axis.plot(left, heights, "k_", markersize=9, label=label)
        axis.set_xticks(place, list(GROUPS))
        axis.set_title(f"{name}, {scaling:.2f} px per mm")
    axes[0].set_ylabel("distance to the true landmark,\nmedian, px of the map")
    axes[0].set_ylim(0, 11)
    axes[0].legend(fontsize=8, ncols=2, loc="upper center")
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    faces, what = known_faces(args.shared, args.every, 0.0)
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        known = with_truth(faces, model, options)
        results[name] = {
            float(model.experts[scale].patch_scaling): measure(
                model, options, known, scale
            )
            for scale in (0, len(model.experts) - 1)
        }
    text = report(results, what)
    print(text)
    save_text(args.out / "maps.md", text)
    save_figure(draw(results), args.out / "maps.png")


if __name__ == "__main__":
    main()
