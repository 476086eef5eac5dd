"""Experiment f, first part: from how many poses to start, and how many fits to finish?

    python experiments/starts.py [--shared FOLDER] [--every N] [--models NAME...]
                                 [--out FOLDER]

Every face is fitted to the end from each of OpenFace's eleven rotations. From the
log-likelihoods after the first phase, after the coarsest scale and at the end, and from
the errors, the table says what would have come of smaller sets of starts of which only
the likeliest few were finished, and what that costs in phases that are run. Errors in
the photograph of the documentation are from the fit in its exact box.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sample import (
    MOVE,
    add_arguments,
    chosen_models,
    fit_starts,
    known_faces,
    save_text,
    with_truth,
)

import jaxclnf
from jaxclnf.fitting.pruning import begin_start
from jaxclnf.status import is_failure

SUBSETS = {
    "frontal": (0,),
    "frontal, yaw 30": (0, 1, 2),
    "frontal, yaw 30 and 55": (0, 1, 2, 3, 4),
    "frontal, yaw 30, roll 30": (0, 1, 2, 5, 6),
    "frontal, yaw 30 and 55, roll 30": (0, 1, 2, 3, 4, 5, 6),
    "all eleven": tuple(range(11)),
}
"""Rows of `START_ROTATIONS`."""
FINISHED = (1, 2, 3, 4)
CHOSEN = {"rigid": "first phase", "first": "coarsest scale"}
"""After what the starts are chosen that are finished."""

_begin = jax.jit(jax.vmap(begin_start, in_axes=(None, None, None, 0, None)))


def run(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list
) -> dict[str, np.ndarray]:
    """Scores and errors, one row per face, one column per start.

    Returns:
        `rigid`, `first` and `last`, the log-likelihoods after the first phase, after
        the coarsest scale and at the end, -inf after a failure; `error`; `certified`.
    """
    options = dataclasses.replace(options, use_parts=False, starts=1)
    first = dataclasses.replace(options, window_sizes=options.window_sizes[:1])
    names = (*CHOSEN, "last", "error", "certified")
    rows: dict[str, list] = {name: [] for name in names}
    for face in faces:
        size = jnp.asarray(face.grey.shape)
        box = jnp.asarray(face.box, model.pdm.mean_shape.dtype)
        starts = jaxclnf.starts_from_box(model.pdm, box, 11)
        begun = _begin(model, face.grey, size, starts, options)
        early = fit_starts(model, first, face, 11)
        late = fit_starts(model, options, face, 11)
        for name, result in (("rigid", begun), ("first", early), ("last", late)):
            score = np.where(
                is_failure(result.status), -np.inf, np.asarray(result.log_likelihood)
            )
            rows[name].append(score)
        rows["error"].append([face.error(x) for x in np.asarray(late.landmarks)])
        rows["certified"].append(np.asarray(late.certified))
    return {name: np.array(values) for name, values in rows.items()}


def chosen(found: dict, by: str, subset: tuple[int, ...], finished: int) -> np.ndarray:
    """The start that is kept for each face; some go on by one of `CHOSEN`."""
    columns = np.array(subset)
    order = np.argsort(-found[by][:, columns], axis=1, kind="stable")
    kept = columns[order[:, :finished]]
    last = np.take_along_axis(found["last"], kept, axis=1)
    best = np.argmax(last, axis=1)
    return kept[np.arange(len(kept)), best]


def report(results: dict[str, dict], sets: np.ndarray) -> str:
    """The tables as Markdown."""
    text = ["# Starts, and how many of them to finish\n"]
    for name, found in results.items():
        scales = found["scales"]
        text += [
            f"\n## {name}\n",
            "| Starts | Finished | Chosen after | Phases run | Median error: "
            + " / ".join(dict.fromkeys(sets))
            + " | Mean | > .08 | > .10 | Same as finishing all |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for label, subset in SUBSETS.items():
            everything = chosen(found, "first", subset, len(subset))
            choices = [(n, by) for n in FINISHED for by in CHOSEN if n < len(subset)]
            for finished, by in [*choices, (len(subset), None)]:
                index = (
                    everything if by is None else chosen(found, by, subset, finished)
                )
                error = found["error"][np.arange(len(index)), index]
                medians = " / ".join(
                    f"{np.median(error[sets == s]):.4f}" for s in dict.fromkeys(sets)
                )
                begun = 0 if by is None else 1 + (by == "first")
                cost = len(subset) * begun + finished * (2 * scales - begun)
                text.append(
                    f"| {label} | {finished} | {CHOSEN[by] if by else ''} | {cost} | "
                    f"{medians} | {error.mean():.4f} | {np.mean(error > 0.08):.1%} | "
                    f"{np.mean(error > 0.1):.1%} | {np.mean(index == everything):.1%} |"
                )
        good = found["certified"][np.isfinite(found["last"])]
        text.append(f"\nCertified: {good.mean():.2%} of all fits that did not fail.")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--npz", type=Path, help="where to keep the figures themselves")
    args = parser.parse_args()

    faces, _ = known_faces(args.shared, args.every, 0.0 if args.shared else MOVE)
    sets = np.array([face.set_name for face in faces])
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        single = dataclasses.replace(options, use_parts=False, starts=1)
        results[name] = run(model, options, with_truth(faces, model, single))
        results[name]["scales"] = np.sum(
            np.array(options.window_sizes[: len(model.experts)]) > 0
        )
        if args.npz:
            np.savez(args.npz, sets=sets, **results[name])
    text = report(results, sets)
    print(text)
    save_text(args.out / "starts.md", text)


if __name__ == "__main__":
    main()
