"""Do models know when they are lost? Their validators on annotated faces.

    python benchmarks/validators.py [--models MODEL...] [--sets FOLDER...] [--every N]

Every model fits every face from the ground truth's tight box, from one a tenth off,
from one that is off by half the face, and from one somewhere in the picture, with one
frontal start and each set of options; no parts. A fit is in place if its mean distance
from the ground truth is below 6 % of the face's size (the square root of the area of
its box), lost from 12 % on. Prints Markdown: how many of both are trusted
(`FitResult.success`); and, in pictures that were made worse, how many of the lost ones,
and of those in place from the true box, by yaw.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
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
    "default, prior 4 times as stiff": jaxclnf.FitOptions(reg_factor=100.0),
    "default, twice the bandwidth": jaxclnf.FitOptions(sigma=3.0),
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


Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Makes a picture worse; the face's box in it is given."""


def blurred(share: float) -> Change:
    """Blurs a picture; a Gaussian of that share of the face's size."""
    return lambda grey, box: cv2.GaussianBlur(
        grey, (0, 0), share * float(np.sqrt(box[2:].prod()))
    )


def noisy(sigma: float) -> Change:
    """Adds noise of a standard deviation, grey values."""

    def noise(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
        drawn = np.random.default_rng(0).normal(0, sigma, grey.shape)
        return np.clip(grey + drawn, 0, 255).astype(np.uint8)

    return noise


def lit_from_the_right(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A fifth as light at the face's left border as at its right one."""
    light = np.clip((np.arange(grey.shape[1]) - box[0]) / box[2], 0.2, 1)
    return (grey * light).astype(np.uint8)


def cut_off_below(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
    """As if the picture ended where the lowest fifth of the face begins."""
    rows = np.arange(grey.shape[0])[:, None]
    return np.where(rows < box[1] + 0.8 * box[3], grey, 0).astype(np.uint8)


def with_eyes_covered(grey: np.ndarray, box: np.ndarray) -> np.ndarray:
    """With a dark bar over the eyes."""
    left, top = np.maximum(box[:2] + [0.1, 0.12] * box[2:], 0).astype(int)
    right, bottom = (box[:2] + [0.9, 0.33] * box[2:]).astype(int)
    grey = grey.copy()
    grey[top:bottom, left:right] = 20
    return grey


PICTURES: dict[str, Change] = {
    "as they are": lambda grey, box: grey,
    "blurred by 2 % of the face": blurred(0.02),
    "blurred by 4 %": blurred(0.04),
    "blurred by 6 %": blurred(0.06),
    "noise of 25 grey values": noisy(25.0),
    "noise of 50": noisy(50.0),
    "light from one side": lit_from_the_right,
    "lowest fifth cut off": cut_off_below,
    "eyes covered": with_eyes_covered,
}
"""What is done to the pictures, by its name in the table."""

YAW_DEG = (0, 10, 20, 30, 90)


def cut_out(grey: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A face with as much around it on each side, and where the picture begins."""
    low = np.maximum(np.floor(box[:2] - box[2:]), 0).astype(int)
    high = np.ceil(box[:2] + 2 * box[2:]).astype(int)
    return grey[low[1] : high[1], low[0] : high[0]], low


def fitted(
    model: jaxclnf.CLNFModel,
    faces: list[AnnotatedFace],
    greys: list[np.ndarray],
    boxes: np.ndarray,
    options: jaxclnf.FitOptions,
) -> tuple[np.ndarray, jaxclnf.FitResult]:
    """Fits all faces, each from as many boxes.

    Args:
        model: The model.
        faces: The faces.
        greys: The picture of each.
        boxes: The boxes of each, `(f, k, 4)`.
        options: The options; one start is used, and no parts.

    Returns:
        Distance from the ground truth in percent of each face's size, and the fits,
        with one leading axis.
    """
    options = dataclasses.replace(options, starts=1, use_parts=False)
    index = np.repeat(np.arange(len(faces)), boxes.shape[1])
    result = jaxclnf.fit_many(
        model.prepared(options.window_sizes),
        greys,
        boxes.reshape(-1, 4),
        image_index=index,
        options=options,
    )
    landmarks = np.asarray(result.landmarks, np.float64)
    off = [
        percent_off(found, faces[i].landmarks)
        for i, found in zip(index, landmarks, strict=True)
    ]
    return np.asarray(off), result


def cell(success: np.ndarray, which: np.ndarray) -> str:
    """How many of some fits are trusted."""
    if not which.any():
        return "none"
    return f"{100 * success[which].mean():.1f} % of {which.sum()}"


def report_options(
    name: str,
    model: jaxclnf.CLNFModel,
    faces: list[AnnotatedFace],
    greys: list[np.ndarray],
) -> None:
    """All options, from boxes on the face, near it and off it."""
    rng = np.random.default_rng(0)
    boxes = np.stack(
        [
            boxes_around(face, grey.shape, rng)
            for face, grey in zip(faces, greys, strict=True)
        ]
    )
    for title, options in OPTIONS.items():
        off, result = fitted(model, faces, greys, boxes, options)
        kinds = (off < IN_PLACE, off >= LOST, (off >= IN_PLACE) & (off < LOST))
        cells = (cell(np.asarray(result.success), kind) for kind in kinds)
        print(f"| {name} | {title} | {' | '.join(cells)} |", flush=True)


def report_pictures(
    name: str,
    model: jaxclnf.CLNFModel,
    faces: list[AnnotatedFace],
    greys: list[np.ndarray],
) -> None:
    """Good and bad pictures: from the true box, by yaw of the fit, and from off it."""
    rng = np.random.default_rng(0)
    cuts = [cut_out(grey, face.box) for face, grey in zip(faces, greys, strict=True)]
    moved = [
        dataclasses.replace(
            face, landmarks=face.landmarks - low, box=face.box - [*low, 0, 0]
        )
        for face, (_, low) in zip(faces, cuts, strict=True)
    ]
    boxes = np.stack(
        [[face.box, box_off(rng, face.landmarks, 0.6, 0.4)] for face in moved]
    )
    from_truth = np.tile([True, False], len(moved))
    for title, change in PICTURES.items():
        pictures = [
            change(grey, face.box) for face, (grey, _) in zip(moved, cuts, strict=True)
        ]
        off, result = fitted(model, moved, pictures, boxes, OPTIONS["default"])
        yaw = np.degrees(np.abs(np.asarray(jax.vmap(lambda p: p.euler)(result.params))))
        ranges = zip(YAW_DEG[:-1], YAW_DEG[1:], strict=True)
        kinds = [(yaw[:, 1] >= low) & (yaw[:, 1] < high) for low, high in ranges]
        success, in_place = np.asarray(result.success), from_truth & (off < IN_PLACE)
        wanted = [off >= LOST, in_place, *(in_place & kind for kind in kinds)]
        cells = (cell(success, which) for which in wanted)
        print(f"| {name} | {title} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Runs all models with all options and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    models = ["default", str(openface_model())]
    parser.add_argument("--models", nargs="+", default=models)
    parser.add_argument("--sets", nargs="+", type=Path, default=set_folders())
    parser.add_argument("--every", type=int, default=1, help="use every so many faces")
    args = parser.parse_args()
    faces = [f for folder in args.sets for f in faces_with_pts(folder)[:: args.every]]
    greys = [read_image(face.image)[1] for face in faces]
    jaxclnf.keep_programs()
    loaded = {Path(name).stem: jaxclnf.load_model(name) for name in args.models}
    print("| Model | Options | In place | Lost | Between |\n|---|---|---|---|---|")
    for name, model in loaded.items():
        report_options(name, model, faces, greys)
    ranges = zip(YAW_DEG[:-1], YAW_DEG[1:], strict=True)
    columns = " | ".join(f"Yaw {low} to {high}" for low, high in ranges)
    print(f"\n| Model | Pictures | Lost | In place | {columns} |\n" + 8 * "|---" + "|")
    for name, model in loaded.items():
        report_pictures(name, model, faces, greys)


if __name__ == "__main__":
    main()
