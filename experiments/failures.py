"""Experiment k: which number of a fit tells that it has failed?

    python experiments/failures.py [--shared FOLDER] [--every N] [--models NAME...]
                                   [--out FOLDER]

Faces are fitted from one frontal start, where many end beside the face, and from three,
all finished, of which the likeliest is kept. A fit has failed where its error is above
.08 or .10. The table says for each number how often it ranks a failed fit below a good
one (the area under the ROC curve, with its 95 % interval over resampled faces), and how
many good fits are lost where 90 % of the failed ones are caught.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from sample import (
    MOVE,
    Face,
    add_arguments,
    chosen_models,
    fit_starts,
    likeliest,
    load_faces,
    on_one_canvas,
    save_figure,
    save_text,
    with_truth,
)
from scipy.stats import rankdata

import jaxclnf

LIMITS = (0.08, 0.10)
COUNTS = {1: "one start", 3: "three starts"}
FAR = 0.5
"""How far the boxes of the one photograph are moved, for some fits to fail."""
SIGNS = {
    "mean log-likelihood": lambda r: r.log_likelihood,
    "smallest landmark log-likelihood": lambda r: np.nanmin(
        np.where(
            np.isfinite(r.landmark_log_likelihoods), r.landmark_log_likelihoods, np.nan
        ),
        axis=-1,
    ),
    "smallest curvature": lambda r: last_phase(r, r.smallest_curvature),
    "Newton distance": lambda r: -np.nanmax(r.newton_distance, axis=(-2, -1)),
    "mode weights": None,
    "certainty of the validator": lambda r: r.certainty,
}
"""What is read off a row of starts; larger should mean better. The prior's term, the
mode weights in standard deviations, needs the model."""


def last_phase(result: jaxclnf.FitResult, values: np.ndarray) -> np.ndarray:
    """The value at the end of the last non-rigid phase that was run."""
    run = [s for s in range(values.shape[1]) if (result.num_steps[:, s] > 0).any()]
    return values[:, run[-1], 1]


def signs_of(model: jaxclnf.CLNFModel, result: jaxclnf.FitResult) -> np.ndarray:
    """All numbers of a row of starts, one column each."""
    weights = result.params.params_local**2 / np.asarray(model.pdm.eigen_values)
    columns = [
        -np.sqrt(weights.sum(axis=-1)) if read is None else read(result)
        for read in SIGNS.values()
    ]
    return np.stack(columns, axis=-1)


def run(
    model: jaxclnf.CLNFModel, options: jaxclnf.FitOptions, faces: list[Face]
) -> dict[int, dict[str, np.ndarray]]:
    """Errors and numbers of every face by how many starts there were."""
    options = dataclasses.replace(options, use_parts=False, starts=1)
    found: dict = {n: {"error": [], "signs": [], "certified": []} for n in COUNTS}
    for face in with_truth(faces, model, options):
        result = fit_starts(model, options, face, max(COUNTS))
        signs = signs_of(model, result)
        for count, rows in found.items():
            some = dataclasses.replace(
                result,
                status=result.status[:count],
                log_likelihood=result.log_likelihood[:count],
            )
            row = likeliest(some)
            rows["error"].append(face.error(result.landmarks[row]))
            rows["signs"].append(signs[row])
            rows["certified"].append(result.certified[row])
    return {
        n: {name: np.array(values) for name, values in rows.items()}
        for n, rows in found.items()
    }


def area(sign: np.ndarray, failed: np.ndarray) -> float:
    """Share of pairs of a failed and a good fit that the number puts in order."""
    num_failed = failed.sum()
    pairs = num_failed * (~failed).sum()
    if pairs == 0:
        return float("nan")
    below = rankdata(-sign)[failed].sum() - num_failed * (num_failed + 1) / 2
    return float(below / pairs)


def interval(sign: np.ndarray, failed: np.ndarray) -> tuple[float, float]:
    """Where the area lies in 95 % of 1000 samples of faces drawn with replacement."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(sign), size=(1000, len(sign)))
    areas = [area(sign[p], failed[p]) for p in picks]
    low, high = np.nanquantile(areas, [0.025, 0.975])
    return float(low), float(high)


def lost(sign: np.ndarray, failed: np.ndarray, caught: float = 0.9) -> float:
    """Share of good fits no better than the number that catches so many failures."""
    limit = np.quantile(sign[failed], caught, method="higher")
    return float(np.mean(sign[~failed] <= limit))


def report(results: dict, num_faces: int, truth: str) -> str:
    """The tables as Markdown."""
    text = [
        "# Which number tells a failed fit?\n",
        f"{num_faces} faces, boxes moved at random; float32, `newton`, without parts; "
        f"errors against {truth}, over the distance of the outer eye corners. Area "
        "under the ROC curve (95 % interval): .5 is chance, 1 perfect. *Lost*: good "
        "fits rejected where 90 % of the failed ones are.\n",
    ]
    for name, by_count in results.items():
        for count, rows in by_count.items():
            error = rows["error"]
            heads = [f"error > {x:.2f} ({np.sum(error > x)} fits)" for x in LIMITS]
            text += [
                f"\n## {name}, {COUNTS[count]}\n",
                "| Number | " + " | lost | ".join(heads) + " | lost |",
                "|---" * 5 + "|",
            ]
            for k, sign in enumerate(SIGNS):
                cells = [cell(rows["signs"][:, k], error > x) for x in LIMITS]
                text.append(f"| {sign} | " + " | ".join(cells) + " |")
            text.append(
                f"\nCertified optima: {np.mean(rows['certified']):.1%} of all fits, "
                f"{certified_share(rows)} of those above .10."
            )
    return "\n".join(text) + "\n"


def cell(sign: np.ndarray, failed: np.ndarray) -> str:
    """Area, interval and loss of one number."""
    if np.isnan(sign).any() or not 0 < failed.sum() < len(failed):
        return "- | -"
    low, high = interval(sign, failed)
    return (
        f"{area(sign, failed):.3f} ({low:.2f} to {high:.2f}) | {lost(sign, failed):.0%}"
    )


def certified_share(rows: dict[str, np.ndarray]) -> str:
    failed = rows["error"] > LIMITS[1]
    return f"{np.mean(rows['certified'][failed]):.1%}" if failed.any() else "none"


def draw(results: dict, path: Path) -> None:
    """The ROC curves of errors above .10."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(4.2 * len(results), 4.2), squeeze=False, sharey=True
    )
    for axis, (name, by_count) in zip(axes[0], results.items(), strict=True):
        error, signs = by_count[1]["error"], by_count[1]["signs"]
        failed = error > LIMITS[1]
        for k, label in enumerate(SIGNS):
            sign = signs[:, k]
            if np.isnan(sign).any():
                continue
            levels = np.unique(np.append(sign, -np.inf))
            caught = [np.mean(sign[failed] <= x) for x in levels]
            wrong = [np.mean(sign[~failed] <= x) for x in levels]
            axis.plot(wrong, caught, label=label)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        axis.set(
            xlabel="share of good fits rejected",
            title=f"{name}: {failed.sum()} of {len(failed)} fits failed",
        )
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of failed fits (error > .10) caught")
    axes[0, -1].legend(loc="lower right", fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()

    move = MOVE if args.shared else FAR
    faces = load_faces(args.shared, args.every, move)
    faces = on_one_canvas([f for f in faces if f.has_truth or args.shared is None])
    results = {}
    for name, model, options in chosen_models(args, np.float32):
        results[name] = run(model, options, faces)
    truth = "annotations" if args.shared else "the fit from the exact box"
    text = report(results, len(faces), truth)
    print(text)
    save_text(args.out / "failures.md", text)
    draw(results, args.out / "failures.png")


if __name__ == "__main__":
    main()
