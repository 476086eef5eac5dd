"""Do models know when they are lost? Their validators on annotated faces.

    python benchmarks/validators.py [--models MODEL...] [--sets FOLDER...] [--every N]

Every model fits every face from the ground truth's tight box, from one a tenth off,
from one that is off by half the face, and from one somewhere in the picture, with one
frontal start and each set of options; no parts. A fit is in place if its mean distance
from the ground truth is below 6 % of the face's size (the square root of the area of
its box), lost from 12 % on. Prints Markdown: how many of both are trusted
(`FitResult.success`).
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from annotated import openface_model, set_folders

import jaxclnf
from jaxclnf.app.datasets import AnnotatedFace, faces_with_pts
from jaxclnf.app.media import read_image
from jaxclnf.learn.accuracy import percent_off
from jaxclnf.learn.boxes import box_off

IN_PLACE, LOST = 6.0, 12.0
"""Percent of the face's size."""

OPTIONS = {
    "default": jaxclnf.FitOptions(starts=1),
    "wild": jaxclnf.FitOptions.wild(),
    "openface": jaxclnf.FitOptions.openface(parts=False),
    "default, following": jaxclnf.TrackOptions().follow,
    "openface, following": jaxclnf.TrackOptions.openface(parts=False).follow,
}
"""Options by the name in the table; one start and no parts for all."""


def boxes_around(
    face: AnnotatedFace, image_shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Where a face is fitted from: four boxes, on it, near it, off it and anywhere."""
    size = face.box[2:]
    anywhere = rng.uniform(size=2) * image_shape[::-1] - size / 2
    return np.stack(
        [
            face.box,
            box_off(rng, face.landmarks, 0.1, 0.1),
            box_off(rng, face.landmarks, 0.6, 0.4),
            np.concatenate([anywhere, size]),
        ]
    )


def trusted(
    model: jaxclnf.CLNFModel,
    faces: list[AnnotatedFace],
    greys: list[np.ndarray],
    options: jaxclnf.FitOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits all faces from all boxes.

    Returns:
        Distance from the ground truth in percent, and whether each fit is trusted.
    """
    rng = np.random.default_rng(0)
    boxes = [
        boxes_around(face, grey.shape, rng)
        for face, grey in zip(faces, greys, strict=True)
    ]
    index = np.repeat(np.arange(len(faces)), len(boxes[0]))
    result = jaxclnf.fit_many(
        model.prepared(options.window_sizes),
        greys,
        np.concatenate(boxes),
        image_index=index,
        options=options,
    )
    landmarks = np.asarray(result.landmarks, np.float64)
    off = [
        percent_off(fitted, faces[i].landmarks)
        for i, fitted in zip(index, landmarks, strict=True)
    ]
    return np.asarray(off), np.asarray(result.success)


def main() -> None:
    """Runs all models with all options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["default", str(openface_model())]
    )
    parser.add_argument("--sets", nargs="+", type=Path, default=set_folders())
    parser.add_argument("--every", type=int, default=1, help="use every so many faces")
    args = parser.parse_args()
    faces = [f for folder in args.sets for f in faces_with_pts(folder)[:: args.every]]
    greys = [read_image(face.image)[1] for face in faces]
    jaxclnf.keep_programs()
    print(
        "| Model | Options | In place | Trusted | Lost | Trusted | Between | Trusted |"
        "\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name in args.models:
        model = jaxclnf.load_model(name)
        for title, options in OPTIONS.items():
            one = dataclasses.replace(options, starts=1, use_parts=False)
            off, success = trusted(model, faces, greys, one)
            kinds = (off < IN_PLACE, off >= LOST, (off >= IN_PLACE) & (off < LOST))
            cells = (f"{k.sum()} | {100 * success[k].mean():.1f}%" for k in kinds)
            print(f"| {Path(name).stem} | {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
