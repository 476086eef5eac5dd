"""Convergence and accuracy on every annotated face of the reference data.

    python benchmarks/faces.py [--model MODEL] [--float64] [--trace] [--out FILE.json]

Boxes come from the ground truth, one frontal start, no parts. Per face set: phases that
converged, steps (mean, largest), rejected steps and the largest fall of F between
accepted states (both with --trace), and the error over the distance of the outer eye
corners (points 36 and 45); how many fits are certified, and the largest distance to an
optimum that their certificates name.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
from annotated import converged_phases, error, face_sets, openface_model

import jaxclnf
from jaxclnf.app.datasets import AnnotatedFace
from jaxclnf.app.media import read_image


def run_set(
    model: jaxclnf.CLNFModel,
    faces: list[AnnotatedFace],
    options: jaxclnf.FitOptions,
    with_trace: bool,
) -> dict:
    """Fits every face of one set and gathers what there is to report."""
    rows = []
    for face in faces:
        grey = read_image(face.image)[1]
        box = face.box.astype(model.pdm.mean_shape.dtype)
        if with_trace:
            result, trace = jaxclnf.fit_with_trace(model, grey, box, options=options)
            extra = _trace_facts(trace)
        else:
            result, extra = jaxclnf.fit(model, grey, box, options=options), (0, 0.0)
        rows.append((face, jax.tree.map(np.asarray, result), extra))
    converged = [converged_phases(r, options) for _, r, _ in rows]
    return {
        "name": [face.name for face, _, _ in rows],
        "status": [jaxclnf.Status(int(r.status)).name for _, r, _ in rows],
        "steps": np.stack([r.num_steps for _, r, _ in rows]).tolist(),
        "converged": np.stack(converged).tolist(),
        "delta": np.stack([r.shape_delta for _, r, _ in rows]).tolist(),
        "distance": np.stack([r.newton_distance for _, r, _ in rows]).tolist(),
        "certified": [bool(r.certified) for _, r, _ in rows],
        "error68": [_error(face, r, "68") for face, r, _ in rows],
        "error51": [_error(face, r, "51") for face, r, _ in rows],
        "rejected": [extra[0] for _, _, extra in rows],
        "largest_fall": [extra[1] for _, _, extra in rows],
        "landmarks": [r.landmarks.tolist() for _, r, _ in rows],
    }


def _error(face: AnnotatedFace, result: jaxclnf.FitResult, points: str) -> float | None:
    if not np.isfinite(face.landmarks).all():
        return None
    return error(result.landmarks, face.landmarks, points)


def _trace_facts(trace: jaxclnf.FitTrace) -> tuple[int, float]:
    """Rejected steps, and the largest fall of F from one valid slot to the next."""
    valid = np.asarray(trace.valid)[..., 1:]
    change = np.diff(np.asarray(trace.states.objective), axis=-1)
    rejected = (np.asarray(trace.states.step_factor)[..., 1:] < 1) & valid
    return int(rejected.sum()), float(np.max(np.where(valid, -change, 0)))


def summary(name: str, report: dict) -> str:
    """One line of the table."""
    steps = np.asarray(report["steps"])
    ran = steps > 0
    good = np.asarray(report["converged"])
    errors68 = np.asarray([e for e in report["error68"] if e is not None])
    errors51 = np.asarray([e for e in report["error51"] if e is not None])
    return (
        f"{name:20} faces {len(steps):4}  phases below tolerance {good.sum()}/"
        f"{steps.size}  certified {np.mean(report['certified']):.1%}, at most "
        f"{np.asarray(report['distance'])[ran].max():.1e} px away  "
        f"steps mean {steps[ran].mean():.2f} max {steps.max()}  "
        f"68: mean {errors68.mean():.4f} median {np.median(errors68):.4f}  "
        f"51: mean {errors51.mean():.4f} median {np.median(errors51):.4f}  "
        f"above 0.1: {np.mean(errors68 > 0.1):.1%}  "
        f"rejected {sum(report['rejected'])}  "
        f"largest fall of F {max(report['largest_fall']):.1e} px^2"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: OpenFace's general model")
    parser.add_argument("--wild", action="store_true")
    parser.add_argument("--shipped", action="store_true", help="the embedded model")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    jax.config.update("jax_enable_x64", args.float64)
    options = jaxclnf.FitOptions.wild() if args.wild else jaxclnf.FitOptions()
    options = dataclasses.replace(options, use_parts=False, starts=1)
    dtype = np.float64 if args.float64 else np.float32
    path = None if args.shipped else args.model or openface_model()
    model = jaxclnf.load_model(path, dtype=dtype)
    model = model.prepared(options.window_sizes)
    reports = {}
    for name, faces in face_sets().items():
        begin = time.perf_counter()
        reports[name] = run_set(model, faces[:: args.every], options, args.trace)
        seconds = time.perf_counter() - begin
        print(f"{summary(name, reports[name])}  {seconds:.0f} s", flush=True)
    if args.out:
        args.out.write_text(json.dumps(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
