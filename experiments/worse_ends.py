"""Experiment i, third part: where convergence is worse than OpenFace's steps, why?

    python experiments/worse_ends.py [--shared FOLDER] [--every N] [--models NAME...]
                                     [--out FOLDER]

Every face is fitted from eleven starts by OpenFace's steps, cut off as OpenFace cuts
them off, and to convergence; then once more to convergence from where OpenFace's steps
ended. If that comes to a likelier and better end than any of the eleven starts did, the
search has failed; if not, the objective prefers the worse end. Last come the fits with
`FitOptions.short_search`, which looks for such ends.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from sample import (
    MOVE,
    SETS,
    Face,
    add_arguments,
    chosen_models,
    load_faces,
    on_one_canvas,
    panels,
    save_figure,
    save_text,
    with_truth,
)
from scipy.stats import binomtest

import jaxclnf

LIMITS = (0.08, 0.10)
LEAST = 0.01
"""Errors that differ by less are equal."""
LIKELIER = 0.01
"""A mean log-likelihood that is larger by this says that an end is likelier."""
KINDS = {
    "better": "tab:green",
    "equal": "lightgrey",
    "worse, objective": "tab:orange",
    "worse, search": "tab:red",
}
"""What convergence did to a face, and its colour."""


class Ends(NamedTuple):
    """Errors and mean log-likelihoods, one entry per face."""

    error: np.ndarray
    score: np.ndarray


class Compared(NamedTuple):
    """Both ways to fit, convergence from the end of the first, and both searches."""

    openface: Ends
    converged: Ends
    again: Ends
    twice: Ends

    @property
    def likelier(self) -> Ends:
        """The likelier of both converged ends."""
        again = self.again.score > self.converged.score
        pairs = zip(self.again, self.converged, strict=True)
        return Ends(*(np.where(again, x, y) for x, y in pairs))

    @property
    def kinds(self) -> np.ndarray:
        """One of `KINDS` for each face."""
        change = self.converged.error - self.openface.error
        gain = self.again.score - self.converged.score
        found = (gain > LIKELIER) & (self.again.error < self.converged.error - LEAST)
        worse = np.where(found, "worse, search", "worse, objective")
        same_or_worse = np.where(change > LEAST, worse, "equal")
        return np.where(change < -LEAST, "better", same_or_worse)


def openface_options(name: str) -> jaxclnf.FitOptions:
    """OpenFace's options for a model, from eleven starts."""
    if name == "wild":
        return jaxclnf.FitOptions.openface_wild(parts=False, starts=11)
    return jaxclnf.FitOptions.openface(parts=False, starts=11)


def run(
    model: jaxclnf.CLNFModel,
    ours: jaxclnf.FitOptions,
    theirs: jaxclnf.FitOptions,
    faces: list[Face],
) -> Compared:
    """Fits every face in the four ways."""

    def fit_all(options: jaxclnf.FitOptions) -> list[jaxclnf.FitResult]:
        # One by one, on one canvas: few programs are compiled.
        return [
            jax.device_get(jaxclnf.fit(model, face.grey, face.box, options=options))
            for face in faces
        ]

    first, second = fit_all(theirs), fit_all(ours)
    single = dataclasses.replace(ours, starts=1)
    third = [
        jaxclnf.fit(model, face.grey, params=row.params, options=single)
        for face, row in zip(faces, first, strict=True)
    ]
    fourth = fit_all(dataclasses.replace(ours, short_search=theirs.step_limit))
    return Compared(*(_ends(faces, rows) for rows in (first, second, third, fourth)))


def _ends(faces: list[Face], results: list[jaxclnf.FitResult]) -> Ends:
    errors = [
        face.error(np.asarray(result.landmarks))
        for face, result in zip(faces, results, strict=True)
    ]
    return Ends(np.array(errors), np.array([float(r.log_likelihood) for r in results]))


def lines(faces: list[Face], found: Compared) -> list[str]:
    """The tables of one model."""
    sets = np.array([face.set_name for face in faces])
    names = list(dict.fromkeys(sets))
    text = [
        "| Steps | Median error: " + " / ".join(names) + " | Mean | > .08 | > .10 |",
        "|---|---|---|---|---|",
    ]
    rows = {
        "OpenFace's": found.openface,
        "converged": found.converged,
        "converged from OpenFace's end": found.again,
        "the likelier of the two": found.likelier,
        "converged, with a short search": found.twice,
    }
    for label, (error, _) in rows.items():
        medians = " / ".join(f"{np.median(error[sets == s]):.4f}" for s in names)
        counts = " | ".join(str(np.sum(error > x)) for x in LIMITS)
        text.append(f"| {label} | {medians} | {error.mean():.4f} | {counts} |")
    for limit in LIMITS:
        theirs, ours = (e.error > limit for e in (found.openface, found.converged))
        only = int(np.sum(theirs & ~ours)), int(np.sum(ours & ~theirs))
        chance = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
        text.append(
            f"\nOnly OpenFace's steps end above {limit:g}: {only[0]}; only convergence "
            f"does: {only[1]}. A fair coin is as uneven with probability {chance:.2f}."
        )
    kinds = found.kinds
    counts = ", ".join(f"{kind} {np.sum(kinds == kind)}" for kind in KINDS)
    text.append(f"\nConvergence is by more than {LEAST:g}: {counts} faces.\n")
    text += [
        "| Worse | Why | Error: OpenFace's / converged / from OpenFace's end | "
        "Log-likelihood: converged / from OpenFace's end |",
        "|---|---|---|---|",
    ]
    worse = [k for k in np.argsort(kinds)[::-1] if kinds[k].startswith("worse")]
    looked_at = found.openface, found.converged, found.again
    for k in worse:
        errors = " / ".join(f"{ends.error[k]:.3f}" for ends in looked_at)
        scores = f"{found.converged.score[k]:.2f} / {found.again.score[k]:.2f}"
        why = kinds[k].removeprefix("worse, ")
        text.append(f"| {faces[k].name} | {why} | {errors} | {scores} |")
    return text


def report(faces: list[Face], results: dict[str, Compared]) -> str:
    """The tables as Markdown."""
    text = [
        "# Where convergence is worse than OpenFace's steps\n",
        f"{len(faces)} faces, eleven starts, all finished unless OpenFace drops them, "
        "float32, without parts. *Search*: from the end of OpenFace's steps a fit "
        f"converges to an end that is likelier by more than {LIKELIER:g} and better by "
        f"more than {LEAST:g} than that of all eleven starts. *Objective*: every other "
        "face on which convergence is worse.",
    ]
    for name, found in results.items():
        text += [f"\n## {name}\n", *lines(faces, found)]
    return "\n".join(text) + "\n"


def draw(results: dict[str, Compared], path: Path) -> None:
    """The error of one way over that of the other, coloured by kind."""
    figure, axes = panels(len(results), 4.2)
    for axis, (name, found) in zip(axes, results.items(), strict=True):
        kinds = found.kinds
        for kind, color in KINDS.items():
            mine = kinds == kind
            axis.loglog(
                found.openface.error[mine],
                found.converged.error[mine],
                ".",
                color=color,
                label=f"{kind}: {mine.sum()}",
            )
        axis.axhline(LIMITS[1], color="black", lw=0.5)
        axis.axvline(LIMITS[1], color="black", lw=0.5)
        axis.axline((0.1, 0.1), (1.0, 1.0), color="black", lw=0.5)
        axis.set(title=name, xlabel="error of OpenFace's steps")
        axis.legend(fontsize=7)
    axes[0].set_ylabel("error of the converged fit")
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    faces = load_faces(args.shared, args.every, 0.0 if args.shared else MOVE)
    if args.shared:
        faces = [f for f in faces if f.has_truth and f.set_name in SETS]
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        alone = dataclasses.replace(options, use_parts=False)
        single = dataclasses.replace(alone, starts=1)
        ours = dataclasses.replace(alone, starts=11, finished_starts=None)
        known = with_truth(on_one_canvas(faces), model, single)
        results[name] = run(model, ours, openface_options(name), known)
    text = report(faces, results)
    print(text)
    save_text(args.out / "worse_ends.md", text)
    draw(results, args.out / "worse_ends.png")


if __name__ == "__main__":
    main()
