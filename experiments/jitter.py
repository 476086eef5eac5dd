"""Experiment i, second part: do five steps a phase make landmarks tremble in a video?

    python experiments/jitter.py [--shared FOLDER] [--models NAME...] [--out FOLDER]

The variants of `five_steps.py` follow a face from frame to frame, each frame from the
last one's end: in a video made of the photograph by shifts of fractions of a pixel and
noise, whose known motion is taken off before anything is measured, and in OpenFace's
sample where it is there. Jitter is the RMS over time of the second difference of a
landmark, the median of all landmarks, as a share of the distance of the eyes.
"""

import argparse
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from five_steps import REFERENCE, VARIANTS, draw_bars, fit_by, frontal_start
from sample import (
    PHOTOGRAPH,
    PHOTOGRAPH_BOX,
    Face,
    add_arguments,
    chosen_models,
    cropped,
    save_text,
)
from scipy.ndimage import shift as shifted

import jaxclnf
from jaxclnf.app.media import read_image
from jaxclnf.app.video import frames_of, open_video

WINDOWS = (0, 9, 7, 7)
"""From frame to frame."""
NUM_FRAMES = 100
SIDE = 512
"""Videos are cut to a square of this side around the face."""
AMPLITUDE, PERIOD, NOISE = 3.0, 40, 2.0
"""Of the circle on which the photograph moves: pixels, frames; grey levels."""


class Clip(NamedTuple):
    """Frames of a video, the first box, and the motion that is known."""

    frames: list[np.ndarray]
    box: np.ndarray
    motion: np.ndarray


def made_clip() -> Clip:
    """The photograph on a circle, with noise."""
    grey = read_image(PHOTOGRAPH)[1].astype(np.float32)
    box = np.array(PHOTOGRAPH_BOX)
    face = cropped(Face("astronaut", "", grey, box, np.zeros((1, 2))))
    angle = 2 * np.pi * np.arange(NUM_FRAMES) / PERIOD
    motion = AMPLITUDE * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rng = np.random.default_rng(0)
    frames = []
    for x, y in motion:
        moved = shifted(face.grey, (y, x), order=3, mode="nearest")
        noisy = moved + rng.normal(0, NOISE, moved.shape)
        frames.append(on_square(np.clip(np.round(noisy), 0, 255)))
    return Clip(frames, face.box + [*motion[0], 0, 0], motion)


def sample_clip(shared: Path) -> Clip:
    """The sample video of OpenFace, cut to the square around the face."""
    video = open_video(shared / "faces" / "openface_reference" / "default.wmv")
    pictures = [frame.grey for frame in islice(frames_of(video), NUM_FRAMES)]
    box = jaxclnf.detect_faces(pictures[0])[0]
    left, top = np.maximum(box[:2] + box[2:] / 2 - SIDE / 2, 0).astype(int)
    frames = [on_square(picture[top:, left:]) for picture in pictures]
    return Clip(frames, box - [left, top, 0, 0], np.zeros((len(frames), 2)))


def on_square(grey: np.ndarray) -> np.ndarray:
    """The picture's corner on a square of one size."""
    canvas = np.zeros((SIDE, SIDE), np.float32)
    grey = grey[:SIDE, :SIDE]
    canvas[: grey.shape[0], : grey.shape[1]] = grey
    return canvas


def follow(model: jaxclnf.CLNFModel, clip: Clip) -> dict[str, np.ndarray]:
    """Landmarks of every frame by every variant, known motion taken off."""
    start = frontal_start(model, clip.box)
    first, _, _ = fit_by(REFERENCE, model, clip.frames[0], start)
    tracks = {}
    for variant in VARIANTS:
        params, track = first, []
        for frame in clip.frames:
            params, landmarks, _ = fit_by(variant, model, frame, params, WINDOWS)
            track.append(landmarks)
        tracks[variant] = np.stack(track) - clip.motion[:, None]
    return tracks


def eyes_of(track: np.ndarray) -> float:
    """Distance of the outer eye corners, pixels, mean of the frames."""
    return float(np.linalg.norm(track[:, 36] - track[:, 45], axis=-1).mean())


def jitter(track: np.ndarray) -> float:
    """In percent of the distance of the eyes; see the top of this file."""
    bend = track[2:] - 2 * track[1:-1] + track[:-2]
    rms = np.sqrt((bend**2).sum(axis=-1).mean(axis=0))
    return float(100 * np.median(rms) / eyes_of(track))


def apart(track: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two tracks, percent of the distance of the eyes."""
    return float(100 * np.linalg.norm(track - other, axis=-1).mean() / eyes_of(other))


def report(results: dict[str, dict], clips: dict[str, Clip]) -> str:
    """The tables as Markdown."""
    text = [
        "# Jitter from frame to frame\n",
        f"Videos of {NUM_FRAMES} frames, windows {WINDOWS}, every variant from the "
        "same first fit, each frame from the last one's end; float32, without parts. "
        "*Jitter*: RMS second difference in time, median of the landmarks; *apart*: "
        f"mean distance from the landmarks of *{REFERENCE}*; both in % of the distance "
        "of the eyes. The video made of the photograph moves on a circle of "
        f"{AMPLITUDE:g} px in {PERIOD} frames with noise of {NOISE:g} grey levels, and "
        "that motion is taken off; in any other video the face's own motion is in it.",
    ]
    for name, found in results.items():
        heads = [f"{label}: jitter | apart" for label in clips]
        text += [
            f"\n## {name}\n",
            "| Variant | " + " | ".join(heads) + " |",
            "|---" * (1 + 2 * len(clips)) + "|",
        ]
        for variant in VARIANTS:
            tracks = [found[label] for label in clips]
            cells = [
                f"{jitter(t[variant]):.3f} | {apart(t[variant], t[REFERENCE]):.2f}"
                for t in tracks
            ]
            text.append(f"| {variant} | " + " | ".join(cells) + " |")
        sizes = ", ".join(f"{eyes_of(found[c][REFERENCE]):.0f} px" for c in clips)
        text.append(f"\nDistance of the eyes: {sizes}.")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, ["shipped", "general"])
    args = parser.parse_args()

    clips = {"made of the photograph": made_clip()}
    if args.shared:
        clips["OpenFace's sample"] = sample_clip(args.shared)
    results = {}
    for name, model, _ in chosen_models(args, np.float32):
        results[name] = {label: follow(model, clip) for label, clip in clips.items()}
    text = report(results, clips)
    print(text)
    save_text(args.out / "jitter.md", text)
    columns = {
        f"jitter, % of the eyes\n({label})": {
            name: [jitter(found[label][v]) for v in VARIANTS]
            for name, found in results.items()
        }
        for label in clips
    }
    draw_bars(columns, args.out / "jitter.png")


if __name__ == "__main__":
    main()
