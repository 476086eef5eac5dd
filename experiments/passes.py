"""Convergence across scales: what does a fixed point of the maps bring?

    python experiments/passes.py [--shared FOLDER] [--every N] [--models NAME...]
                                 [--out FOLDER]

A fit goes once through its scales, so that it ends at an optimum on maps that were
made where the last scale began. Here the last scale is run again and again, each time
on maps made where it ended (`FitOptions.max_passes`), until no landmark moves by a
tolerance: how often that is reached, in how many passes, and what it does to errors
and, on the videos of `jitter.py`, to how much the landmarks tremble.
"""

import argparse
import dataclasses

import jax
import numpy as np
from jitter import WINDOWS, Clip, apart, jitter, made_clip, sample_clip
from sample import (
    Face,
    add_arguments,
    chosen_models,
    known_faces,
    panels,
    save_figure,
    save_text,
    with_truth,
)

import jaxclnf

LIMIT = 50
VARIANTS = {
    "1 pass": (1, 0.05),
    "2 passes": (2, 0.0),
    "until < 0.5 px": (LIMIT, 0.5),
    "until < 0.05 px": (LIMIT, 0.05),
    "until < 0.005 px": (LIMIT, 0.005),
}
"""Limit of passes, and the tolerance in pixels."""
SINGLE = "1 pass"
LIMITS = (0.08, 0.10)


def with_passes(options: jaxclnf.FitOptions, variant: str) -> jaxclnf.FitOptions:
    """Options of one of `VARIANTS`."""
    limit, tol = VARIANTS[variant]
    return dataclasses.replace(options, max_passes=limit, pass_tol=np.float32(tol))


def run(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face]
) -> dict[str, dict[str, np.ndarray]]:
    """Errors, ends, passes and movements of every variant on every face."""
    rows: dict = {v: {} for v in VARIANTS}
    for variant, found in rows.items():
        results = [
            jax.device_get(
                jaxclnf.fit(
                    model,
                    face.grey,
                    np.asarray(face.box, np.float32),
                    options=with_passes(options, variant),
                )
            )
            for face in faces
        ]
        pairs = list(zip(faces, results, strict=True))
        found["error"] = np.array([face.error(r.landmarks) for face, r in pairs])
        found["end"] = np.stack([r.landmarks for r in results])
        found["passes"] = np.array([r.num_passes for r in results])
        found["moved"] = np.array([r.pass_delta for r in results])
        found["settled"] = np.array([r.pass_status == 1 for r in results])
        found["certified"] = np.array([r.certified for r in results])
    return rows


def follow(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, clip: Clip, variant: str
) -> np.ndarray:
    """Landmarks of every frame, each fitted from the last one's end."""
    box = np.asarray(clip.box, np.float32)
    params = jaxclnf.fit(model, clip.frames[0], box, options=options).params
    own = with_passes(dataclasses.replace(options, window_sizes=WINDOWS), variant)
    track = []
    for frame in clip.frames:
        result = jaxclnf.fit(model, frame, params=params, options=own)
        params = result.params
        track.append(np.asarray(result.landmarks))
    return np.stack(track) - clip.motion[:, None]


def report(
    results: dict[str, dict], tracks: dict[str, dict], what: str, clips: dict
) -> str:
    """The tables as Markdown."""
    text = [
        "# One pass through the last scale, and a fixed point\n",
        f"{what}, default starts, float32, without parts. *Settled*: the last pass "
        f"moved no landmark by the tolerance, within {LIMIT} passes; *moved*: how far "
        "the last pass moved the landmark that moves most, px, median; *from the "
        "single pass*: mean distance of the landmarks, median of the faces, % of the "
        "distance of the eyes. *Jitter* as in [jitter.md](jitter.md), % of that of the "
        f"eyes, on the videos: {', '.join(clips)}.",
    ]
    heads = ["Passes", "Mean number", "Largest", "Settled", "Moved", "Median error"]
    heads += ["Mean", "> .08", "> .10", "From the single pass", "Certified"]
    heads += [f"Jitter, {label}" for label in clips]
    for name, rows in results.items():
        text += [
            f"\n## {name}\n",
            "| " + " | ".join(heads) + " |",
            "|---" * len(heads) + "|",
        ]
        single = rows[SINGLE]["end"]
        for variant, found in rows.items():
            error = found["error"]
            shares = " | ".join(f"{np.mean(error > x):.1%}" for x in LIMITS)
            away = [
                apart(a[None], b[None])
                for a, b in zip(found["end"], single, strict=True)
            ]
            trembles = [f"{jitter(tracks[name][c][variant]):.3f}" for c in clips]
            text.append(
                f"| {variant} | {found['passes'].mean():.1f} | "
                f"{found['passes'].max()} | {found['settled'].mean():.1%} | "
                f"{np.median(found['moved']):.3f} | {np.median(error):.4f} | "
                f"{error.mean():.4f} | {shares} | {np.median(away):.2f} | "
                f"{found['certified'].mean():.1%} | {' | '.join(trembles)} |"
            )
    return "\n".join(text) + "\n"


def draw(results: dict[str, dict]):
    """The share of faces that have settled after so many passes."""
    figure, axes = panels(len(results), 4.2)
    for axis, (name, rows) in zip(axes, results.items(), strict=True):
        for variant, found in rows.items():
            if VARIANTS[variant][0] != LIMIT:
                continue
            counts = np.where(found["settled"], found["passes"], np.inf)
            budget = np.arange(1, LIMIT + 1)
            share = [100 * np.mean(counts <= b) for b in budget]
            axis.plot(budget, share, label=variant)
        axis.set(title=name, xlabel="passes through the last scale", xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("faces that have settled, %")
    axes[0].legend()
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    args = parser.parse_args()

    faces, what = known_faces(args.shared, args.every)
    clips = {"made of the photograph": made_clip()}
    if args.shared:
        clips["OpenFace's sample"] = sample_clip(args.shared)
    results, tracks = {}, {}
    for name, model, options in chosen_models(args, np.float32):
        options = dataclasses.replace(options, use_parts=False)
        results[name] = run(model, options, with_truth(faces, model, options))
        tracks[name] = {
            label: {v: follow(model, options, clip, v) for v in VARIANTS}
            for label, clip in clips.items()
        }
    text = report(results, tracks, what, clips)
    print(text)
    save_text(args.out / "passes.md", text)
    save_figure(draw(results), args.out / "passes.png")


if __name__ == "__main__":
    main()
