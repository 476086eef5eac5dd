"""Experiment f, second part: from how far away does a fit still find the face?

    python experiments/basin.py [--shared FOLDER] [--models NAME...] [--out FOLDER]

The pose of a converged frontal fit is moved, the modes set to zero, and the face fitted
again from there. The figure shows how far from the fit from the undisturbed pose the
fits end; the table how far along each direction alone they come back, and what three
and eleven starts do from poses that are moved in everything at once.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import jax
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
from scipy.spatial.transform import Rotation

import jaxclnf
from jaxclnf.fitting.hypotheses import START_ROTATIONS
from jaxclnf.status import is_failure

NEAR = (0.01, 0.05)
"""How near a fit ends, share of the distance of the eyes: the same place; the face."""
RANGES = {
    "shift x": (0.6, "distance of the eyes"),
    "shift y": (0.6, "distance of the eyes"),
    "scale": (0.75, "powers of two"),
    "yaw": (60.0, "degrees"),
    "roll": (45.0, "degrees"),
}
"""How far a pose is moved either way, and in what unit."""
MAPS = (("shift x", "shift y"), ("yaw", "scale"), ("yaw", "roll"))
SIDE = 15
"""Starts along a side of a map, odd."""
NUM_RANDOM = 20
"""Poses per face, for several starts."""
RANDOM_SHARE = 0.5
"""Part of the ranges from which they are drawn."""
COUNTS = (1, 3, 11)
GOOD = 0.05
"""Annotated faces are taken only if their frontal fit has a smaller error."""


def three_faces(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face]
) -> list[Face]:
    """The first face of each of three sets that is fitted well, or the photograph's."""
    if faces[0].landmarks is None:
        return with_truth(faces, model, options)[:1]
    found: dict[str, Face] = {}
    for face in faces:
        if face.set_name not in found and len(found) < 3:
            end = fit_starts(model, options, face, 1)
            if face.error(end.landmarks[0]) < GOOD:
                found[face.set_name] = face
    return list(found.values())


def moved_pose(
    params: jaxclnf.PDMParams, moves: np.ndarray, eyes: float
) -> jaxclnf.PDMParams:
    """Poses moved by rows in the order of `RANGES`, turned about the camera's axes."""
    turns = Rotation.from_euler("yz", moves[:, 3:], degrees=True).as_matrix()
    poses = jaxclnf.PDMParams(
        scale=params.scale * 2.0 ** moves[:, 2],
        rotation=turns @ params.rotation,
        translation=params.translation + moves[:, :2] * eyes,
        params_local=np.zeros((len(moves), params.params_local.shape[-1])),
    )
    return jax.tree.map(lambda x: x.astype(params.scale.dtype), poses)


def grid(across: str, down: str) -> np.ndarray:
    """Moves of one map, row by row of the figure."""
    names = list(RANGES)
    unit = np.linspace(-1, 1, SIDE)
    moves = np.zeros((SIDE, SIDE, len(names)))
    moves[..., names.index(across)] = RANGES[across][0] * unit[None, :]
    moves[..., names.index(down)] = RANGES[down][0] * unit[:, None]
    return moves.reshape(-1, len(names))


def distances(ends: jaxclnf.FitResult, home: np.ndarray, eyes: float) -> np.ndarray:
    """Mean distance of landmarks from `home`; inf after a failure."""
    apart = np.linalg.norm(ends.landmarks - home, axis=-1).mean(axis=-1) / eyes
    return np.where(is_failure(ends.status) | np.isnan(apart), np.inf, apart)


def run(model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, face: Face) -> dict:
    """Maps of distances for one face, and those of several starts."""
    again = partial(jaxclnf.fit, model, face.grey, options=options)
    fit = lambda params: jax.device_get(again(params=params))
    first = fit_starts(model, options, face, 1)
    pose = jax.tree.map(lambda x: x[0], first.params)
    eyes = float(np.linalg.norm(first.landmarks[0, 36] - first.landmarks[0, 45]))
    origin = fit(moved_pose(pose, np.zeros((1, len(RANGES))), eyes))
    home, score = origin.landmarks[0], origin.log_likelihood[0]

    found: dict = {"maps": [], "likelier": 0}
    for across, down in MAPS:
        ends = fit(moved_pose(pose, grid(across, down), eyes))
        apart = distances(ends, home, eyes)
        found["maps"].append(apart.reshape(SIDE, SIDE))
        better = (apart > NEAR[1]) & (ends.log_likelihood > score)
        found["likelier"] += int(better[np.isfinite(apart)].sum())

    rng = np.random.default_rng(0)
    limits = np.array([limit for limit, _ in RANGES.values()])
    moves = rng.uniform(-1, 1, (NUM_RANDOM, len(RANGES))) * RANDOM_SHARE * limits
    found["random"] = {count: [] for count in COUNTS}
    for move in moves:
        poses = moved_pose(pose, np.repeat(move[None], len(START_ROTATIONS), 0), eyes)
        turns = Rotation.from_euler("XYZ", START_ROTATIONS).as_matrix()
        turned = (turns @ poses.rotation).astype(pose.scale.dtype)
        ends = fit(dataclasses.replace(poses, rotation=turned))
        apart = distances(ends, home, eyes)
        for count in COUNTS:
            rows = jax.tree.map(lambda x, k=count: x[:k], ends)
            found["random"][count].append(apart[likeliest(rows)])
    return found


def reach(found: list[dict], name: str, near: float) -> tuple[float, float]:
    """How far down and up one direction alone every fit of every face ends near."""
    place = next(k for k, pair in enumerate(MAPS) if name in pair)
    maps = np.stack([f["maps"][place] for f in found])
    middle = SIDE // 2
    is_across = MAPS[place][0] == name
    line = maps[:, middle] if is_across else maps[:, :, middle]
    bad = np.flatnonzero(np.any(line >= near, axis=0))
    low = max(bad[bad < middle], default=-1) + 1
    high = min(bad[bad > middle], default=SIDE) - 1
    values = np.linspace(-1, 1, SIDE) * RANGES[name][0]
    return values[low], values[high]


def report(results: dict[str, list[dict]], faces: dict[str, list[Face]]) -> str:
    """The tables as Markdown."""
    limits = [limit * RANDOM_SHARE for limit, _ in RANGES.values()]
    text = [
        "# The basin of attraction\n",
        "float32, `newton`, without parts, modes at zero at the start. A fit ends "
        f"*near* if its landmarks are in the mean within {NEAR[0]:g}, or {NEAR[1]:g}, "
        "of the distance of the eyes of those of the fit from the undisturbed pose.",
    ]
    shares = lambda apart: " | ".join(f"{np.mean(apart < x):.1%}" for x in NEAR)
    heads = " | ".join(f"near ({x:g})" for x in NEAR)
    for name, found in results.items():
        maps = np.stack([f["maps"] for f in found])
        named = ", ".join(f"{f.set_name} {f.name}" for f in faces[name])
        likelier = sum(f["likelier"] for f in found)
        text += [
            f"\n## {name}\n",
            f"Faces: {named}. Of {maps.size} starts {likelier} end farther than "
            f"{NEAR[1]:g} away at a larger log-likelihood.\n",
            f"| Moved alone | All faces {heads} | Grid step |",
            "|---|---|---|---|",
        ]
        for way, (limit, unit) in RANGES.items():
            ends = [reach(found, way, near) for near in NEAR]
            spans = " | ".join(f"{low:.2g} to {high:.2g}" for low, high in ends)
            text.append(f"| {way}, {unit} | {spans} | {2 * limit / (SIDE - 1):.2g} |")
        text += [
            f"\nThe starts of the figure, and {NUM_RANDOM} poses per face moved in "
            f"everything at once (shifts up to {limits[0]:g}, scale {limits[2]:.2g}, "
            f"yaw {limits[3]:.2g}, roll {limits[4]:.2g}), all starts finished:\n",
            f"| Starts | Ends {heads} |",
            "|---|---|---|",
            f"| figure, 1 | {shares(maps)} |",
        ]
        for count in COUNTS:
            apart = np.array([f["random"][count] for f in found])
            text.append(f"| at random, {count} | {shares(apart)} |")
    return "\n".join(text) + "\n"


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """Maps of the distance, the median of the faces."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colors
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(results),
        len(MAPS),
        figsize=(9.6, 2.9 * len(results)),
        squeeze=False,
        layout="constrained",
    )
    norm = colors.LogNorm(0.002, 1.0)
    for row, (name, found) in zip(axes, results.items(), strict=True):
        for k, (across, down) in enumerate(MAPS):
            apart = np.median([f["maps"][k] for f in found], axis=0)
            (x, unit_x), (y, unit_y) = RANGES[across], RANGES[down]
            edges = np.linspace(-1, 1, SIDE + 1) * SIDE / (SIDE - 1)
            image = row[k].pcolormesh(
                x * edges, y * edges, np.clip(apart, 0.002, 1), norm=norm
            )
            row[k].plot(0, 0, marker="+", color="red")
            row[k].set(xlabel=f"{across}, {unit_x}", ylabel=f"{down}, {unit_y}")
        row[1].set_title(f"{name}, median of {len(found)} face(s)")
    figure.colorbar(
        image, ax=axes, label="distance of the end / distance of the eyes", shrink=0.8
    )
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    args = parser.parse_args()

    found, _ = known_faces(args.shared, args.every, 0.0)
    results, faces = {}, {}
    for name, model, options in chosen_models(args, np.float32):
        options = dataclasses.replace(options, use_parts=False, starts=1)
        faces[name] = three_faces(model, options, found)
        results[name] = [run(model, options, f) for f in faces[name]]
    text = report(results, faces)
    print(text)
    save_text(args.out / "basin.md", text)
    draw(results, args.out / "basin.png")


if __name__ == "__main__":
    main()
