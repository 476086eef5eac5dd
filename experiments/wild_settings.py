"""Experiment g, second part: what prior, bandwidth and weights do wild experts want?

    python experiments/wild_settings.py --shared FOLDER [--out FOLDER]

OpenFace's switch `-wild` has numbers of its own, which serve ten steps towards the
optimum. Here every annotated face is fitted to the optimum, with the default starts,
for a grid of such numbers. They are chosen on LFPW and HELEN, by the mean of the two
medians; AFW was not looked at for that, and tells whether the choice holds. The figure
shows both.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sample import save_figure, save_text

import jaxclnf
from jaxclnf.app.datasets import AnnotatedFace, faces_with_pts, interocular_error
from jaxclnf.app.media import read_image

CHOICE, CHECK = ("lfpw_test", "helen_test"), ("afw",)
OPENFACE = (35.0, 1.25, 2.5)
GRID = (
    OPENFACE,
    *((reg, 1.25, 2.5) for reg in (20.0, 70.0)),
    *((reg, 1.5, weight) for reg in (17.0, 20.0, 25.0) for weight in (0.0, 1.0, 2.5)),
    *((reg, 1.75, weight) for reg in (20.0, 25.0, 35.0) for weight in (1.0, 2.5)),
)
"""Prior (px^2), bandwidth (px) and weights at the coarsest scale."""
LIMITS = (0.08, 0.10)


class Album(NamedTuple):
    """Faces and the photographs that they are in."""

    faces: list[AnnotatedFace]
    images: list[np.ndarray]
    index: list[int]
    sets: np.ndarray


def album_of(folder: Path) -> Album:
    """Every annotated face of all sets."""
    by_set = {name: faces_with_pts(folder / name) for name in (*CHOICE, *CHECK)}
    faces = [face for found in by_set.values() for face in found]
    paths = sorted({face.image for face in faces})
    return Album(
        faces,
        [read_image(path)[1] for path in paths],
        [paths.index(face.image) for face in faces],
        np.array([name for name, found in by_set.items() for _ in found]),
    )


def fit_all(
    model: jaxclnf.CLNFModel, album: Album, options: jaxclnf.FitOptions
) -> tuple[np.ndarray, jaxclnf.FitResult]:
    """The error of each face, and its fit."""
    boxes = np.array([face.box for face in album.faces])
    result = jaxclnf.fit_many(
        model, album.images, boxes, image_index=album.index, options=options
    )
    errors = [
        interocular_error(landmarks, np.asarray(face.landmarks))
        for landmarks, face in zip(
            np.asarray(result.landmarks), album.faces, strict=True
        )
    ]
    return np.array(errors), result


def medians(errors: np.ndarray, album: Album, sets: tuple[str, ...]) -> list[float]:
    """Median error of each set."""
    return [float(np.median(errors[album.sets == name])) for name in sets]


def report(found: dict[tuple, tuple], album: Album) -> str:
    """The table as Markdown, best choice first."""
    head = ["Prior", "Bandwidth", "Weights", "Mean of two", *CHOICE, *CHECK]
    head += [*(f"> {limit:.2f}" for limit in LIMITS), "Certified", "Most steps"]
    lines = [
        "# Numbers for the wild experts\n",
        f"{len(album.faces)} faces, boxes from the annotations, float32, `newton`, the "
        "default starts, no parts. Median errors over the distance of the outer eye "
        "corners. Chosen by the mean of the first two sets' medians; the third set is "
        f"the check. OpenFace's numbers are {OPENFACE}.\n",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for numbers, (errors, result) in sorted(
        found.items(), key=lambda item: np.mean(medians(item[1][0], album, CHOICE))
    ):
        mine = medians(errors, album, CHOICE)
        cells = [*(f"{x:g}" for x in numbers), f"{np.mean(mine):.4f}"]
        cells += [f"{x:.4f}" for x in mine + medians(errors, album, CHECK)]
        cells += [f"{np.mean(errors > limit):.1%}" for limit in LIMITS]
        cells += [f"{np.mean(result.certified):.1%}", f"{np.max(result.num_steps)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: dict[tuple, tuple], album: Album, path: Path) -> None:
    """The sets of the choice against the set of the check."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 4.2))
    for numbers, (errors, _) in found.items():
        x = np.mean(medians(errors, album, CHOICE))
        (y,) = medians(errors, album, CHECK)
        axis.plot(x, y, "r*" if numbers == OPENFACE else "k.")
        axis.annotate(
            "{:g}, {:g}, {:g}".format(*numbers),
            (x, y),
            xytext=(4, 2),
            textcoords="offset points",
            fontsize=7,
        )
    axis.set_xlabel("mean of the medians of LFPW and HELEN (the choice)")
    axis.set_ylabel("median of AFW (the check)")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    options = dataclasses.replace(jaxclnf.FitOptions.wild(), use_parts=False)
    path = args.shared / "openface-model" / "model" / "main_clnf_wild.txt"
    model = jaxclnf.load_model(path).prepared(options.window_sizes)
    album = album_of(args.shared / "faces")
    found = {}
    for reg, sigma, weight in GRID:
        changed = dataclasses.replace(
            options, reg_factor=reg, sigma=sigma, weight_factor=weight
        )
        found[reg, sigma, weight] = fit_all(model, album, changed)
        print(reg, sigma, weight, "done", flush=True)
    save_text(args.out / "wild_settings.md", report(found, album))
    draw(found, album, args.out / "wild_settings.png")


if __name__ == "__main__":
    main()
