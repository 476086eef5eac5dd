"""Accuracy of models on annotated faces, in one run with the same options.

    python benchmarks/accuracy.py [--models MODEL...] [--sets FOLDER...] [--out FOLDER]

Every model fits every face twice: from the ground truth's tight box, and from the box
of the package's face detector, under the model's own box calibration. The package's
options (three starts, of which two are finished), but no parts. Prints Markdown: errors
over the distance of the outer eye corners (points 36 and 45) for the 68 points, the 51
inner ones and the jaw, for all faces and for near-frontal ones, convergence, the same
by yaw, and the first model against the second. --out also writes the tables,
`accuracy.json` with every face, and pictures of the worst and of typical faces.

Yaw is that of one shape model for all, OpenFace's, fitted to the ground truth. A
detected square belongs to a face if its box, under OpenFace's calibration for all
models, overlaps the ground truth's: the faces are the same for every model.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_report import FittedFace, draw_examples, report, write_json
from annotated import POINTS, converged_phases, error, openface_model, set_folders

import jaxclnf
from jaxclnf.app.datasets import AnnotatedFace, faces_with_pts
from jaxclnf.app.media import read_image
from jaxclnf.app.tables import faces_of
from jaxclnf.detect.haar import OPENFACE_CALIBRATION, boxes_from_haar, face_squares
from jaxclnf.storage.load import load_pdm

LEAST_OVERLAP = 0.4
"""Intersection over union from which a detected box is that of a face."""


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    low = np.maximum(box[:2], other[:2])
    high = np.minimum(box[:2] + box[2:], other[:2] + other[2:])
    common = np.prod(np.maximum(high - low, 0))
    return float(common / (np.prod(box[2:]) + np.prod(other[2:]) - common))


def detected_square(
    grey: np.ndarray, face: AnnotatedFace, min_face: int
) -> np.ndarray | None:
    """The detector's square of a face, if there is one."""
    squares = face_squares(grey, min_size=min_face)
    if not len(squares):
        return None
    overlaps = [
        overlap(boxes_from_haar(square[None], OPENFACE_CALIBRATION)[0], face.box)
        for square in squares
    ]
    best = int(np.argmax(overlaps))
    return squares[best] if overlaps[best] >= LEAST_OVERLAP else None


def fit_face(
    label: str,
    model: jaxclnf.CLNFModel,
    face: AnnotatedFace,
    grey: np.ndarray,
    box: np.ndarray,
    options: jaxclnf.FitOptions,
) -> FittedFace:
    """Fits one face from one box and measures the result."""
    boxes = box[None].astype(model.pdm.mean_shape.dtype)
    result = jaxclnf.fit(model, grey, boxes, options=options)
    (fitted,) = faces_of(box[None], result)
    sizes = options.window_sizes[: len(model.experts)]
    return FittedFace(
        model=label,
        boxes="",
        set="",
        annotated=face,
        yaw_deg=0.0,
        errors={name: error(fitted.landmarks, face.landmarks, name) for name in POINTS},
        num_phases=2 * sum(size > 0 for size in sizes),
        num_converged=int(converged_phases(result, options).sum()),
        fitted=fitted,
    )


def run_set(
    models: dict[str, jaxclnf.CLNFModel],
    pose_pdm: jaxclnf.PDM,
    folder: Path,
    options: jaxclnf.FitOptions,
    *,
    every: int,
    min_face: int,
) -> list[FittedFace]:
    """Fits the faces of one folder, by every model and from both boxes."""
    pose_of = jax.jit(jaxclnf.params_from_landmarks)
    rows = []
    for face in faces_with_pts(folder)[::every]:
        grey = read_image(face.image)[1]
        truth = jnp.asarray(face.landmarks, pose_pdm.mean_shape.dtype)
        yaw = float(np.degrees(pose_of(pose_pdm, truth).euler[1]))
        square = detected_square(grey, face, min_face)
        for label, model in models.items():
            boxes = {"truth": face.box}
            if square is not None:
                boxes["detector"] = boxes_from_haar(
                    square[None], model.box_calibration
                )[0]
            for kind, box in boxes.items():
                row = fit_face(label, model, face, grey, box, options)
                rows.append(
                    dataclasses.replace(row, boxes=kind, set=folder.name, yaw_deg=yaw)
                )
    return rows


def load_models(
    names: list[str], options: jaxclnf.FitOptions
) -> dict[str, jaxclnf.CLNFModel]:
    """The models under short names."""
    short = [Path(name).stem for name in names]
    labels = short if len(set(short)) == len(short) else names
    models = {}
    for label, name in zip(labels, names, strict=True):
        model = jaxclnf.load_model(name)
        if model.pdm.num_landmarks != 68:
            sys.exit(f"{name}: found {model.pdm.num_landmarks} landmarks, expected 68")
        models[label] = model.prepared(options.window_sizes)
    return models


def options_of(args: argparse.Namespace) -> jaxclnf.FitOptions:
    """The options of all fits."""
    options = jaxclnf.FitOptions.wild() if args.wild else jaxclnf.FitOptions()
    options = dataclasses.replace(options, use_parts=False)
    if args.window_sizes:
        options = dataclasses.replace(options, window_sizes=tuple(args.window_sizes))
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["default", str(openface_model())],
        metavar="MODEL",
        help="files or names; default: the embedded model and OpenFace's general one",
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        type=Path,
        default=set_folders(),
        metavar="FOLDER",
        help="photographs with .pts files; default: LFPW test, Helen test and AFW",
    )
    parser.add_argument(
        "--pose-model",
        default=str(openface_model()),
        metavar="MODEL",
        help="shape model that yaw is measured with; default: OpenFace's general one",
    )
    parser.add_argument("--wild", action="store_true", help="the preset of that name")
    parser.add_argument("--window-sizes", type=int, nargs="+", metavar="INT")
    parser.add_argument("--min-face", type=int, default=50, help="detector, pixels")
    parser.add_argument("--every", type=int, default=1, help="every n-th face of a set")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures")
    args = parser.parse_args()

    options = options_of(args)
    models = load_models(args.models, options)
    pose_pdm = load_pdm(args.pose_model)
    rows = []
    for folder in args.sets:
        begin = time.perf_counter()
        found = run_set(
            models,
            pose_pdm,
            folder,
            options,
            every=args.every,
            min_face=args.min_face,
        )
        if not found:
            sys.exit(f"{folder}: found no photograph with a .pts file")
        rows += found
        seconds = time.perf_counter() - begin
        print(f"{folder.name}: {len(found)} fits, {seconds:.0f} s", file=sys.stderr)
    text = report(rows, list(models), options)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "accuracy.md").write_text(text + "\n", encoding="utf-8")
        write_json(args.out / "accuracy.json", rows, list(models), options)
        draw_examples(args.out, rows)


if __name__ == "__main__":
    main()
