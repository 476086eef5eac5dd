"""What `accuracy.py` writes: Markdown tables, every face as JSON, and pictures."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from annotated import POINTS

import jaxclnf
from jaxclnf.app.datasets import AnnotatedFace
from jaxclnf.app.drawing import draw_fits
from jaxclnf.app.media import read_image, write_png
from jaxclnf.app.tables import Face

NEAR_FRONTAL_DEG = 20.0
"""Yaw below which a face counts as near-frontal, degrees."""

YAW_LIMITS_DEG = (0.0, 10.0, 20.0, 30.0, np.inf)
"""Between which yaws, to either side, the faces of all sets are told apart, degrees."""

LARGE_ERROR = 0.08
"""Errors above this are counted."""

NUM_EXAMPLES = 3
"""Pictures of the worst faces, and of typical ones, by model and kind of box."""

_ALL_SETS = "together"
_SUBSETS = {"all": np.inf, f"yaw < {NEAR_FRONTAL_DEG:g}": NEAR_FRONTAL_DEG}
_TRUTH = (255, 160, 0)  # blue, green, red


@dataclasses.dataclass(frozen=True)
class FittedFace:
    """One fit of one face."""

    model: str
    """The model's short name."""
    boxes: str
    """Where the box came from: `"truth"` or `"detector"`."""
    set: str
    """The face's set."""
    annotated: AnnotatedFace
    """Photograph and ground truth."""
    yaw_deg: float
    """Yaw of the ground truth."""
    errors: dict[str, float]
    """Error of each group of points; NaN without a result."""
    num_phases: int
    """Phases that had to run."""
    num_converged: int
    """Phases that converged."""
    fitted: Face
    """The result."""

    def error(self, points: str) -> float:
        """The error of some points, infinite without a result."""
        value = self.errors[points]
        return value if np.isfinite(value) else np.inf


def _choose(rows: Iterable[FittedFace], **wanted: str) -> list[FittedFace]:
    return [
        row
        for row in rows
        if all(getattr(row, key) == value for key, value in wanted.items())
    ]


def summarise(rows: Sequence[FittedFace]) -> dict[str, float]:
    """The figures of some fits by one model.

    Args:
        rows: The fits.

    Returns:
        Number of faces; mean, median and share of large errors for each group of
        points; share of the phases that converged; all NaN for no faces.
    """
    figures: dict[str, float] = {"faces": len(rows)}
    for points in POINTS:
        errors = np.asarray([row.error(points) for row in rows] or [np.nan])
        figures[f"mean_{points}"] = float(errors.mean())
        figures[f"median_{points}"] = float(np.median(errors))
        large = np.mean(errors > LARGE_ERROR) if rows else np.nan
        figures[f"large_{points}"] = float(large)
    phases = sum(row.num_phases for row in rows)
    converged = sum(row.num_converged for row in rows)
    figures["converged"] = converged / phases if phases else np.nan
    return figures


def summaries(rows: Sequence[FittedFace], models: Sequence[str]) -> list[dict]:
    """The figures of every model, kind of box, set, and subset by yaw.

    Args:
        rows: All fits.
        models: Names of the models, in order.

    Returns:
        One entry for each, with keys `boxes`, `set`, `subset` and `model`, too.
    """
    sets = list(dict.fromkeys(row.set for row in rows))
    entries = []
    for kind in ("truth", "detector"):
        for name in [*sets, _ALL_SETS] if len(sets) > 1 else sets:
            for subset, limit in _SUBSETS.items():
                for model in models:
                    some = _choose(rows, boxes=kind, model=model)
                    some = [
                        row
                        for row in some
                        if name in (row.set, _ALL_SETS) and abs(row.yaw_deg) < limit
                    ]
                    keys = {"boxes": kind, "set": name, "subset": subset}
                    entries.append({**keys, "model": model, **summarise(some)})
    return entries


def report(
    rows: Sequence[FittedFace], models: Sequence[str], options: jaxclnf.FitOptions
) -> str:
    """All tables as Markdown.

    Args:
        rows: All fits.
        models: Names of the models, in order.
        options: Options of the fits.

    Returns:
        The text.
    """
    entries = summaries(rows, models)
    windows = " ".join(map(str, options.window_sizes))
    parts = [
        f"Windows {windows}, sigma {options.sigma:g}, reg_factor"
        f" {options.reg_factor:g}, weight_factor {options.weight_factor:g}. Errors:"
        " mean / median, over the distance of the outer eye corners; large: above"
        f" {LARGE_ERROR:g}."
    ]
    for kind, title in (
        ("truth", "Boxes of the ground truth"),
        ("detector", "Boxes of the face detector"),
    ):
        chosen = [e for e in entries if e["boxes"] == kind]
        parts.append(f"### {title}")
        if kind == "detector":
            parts.append(_shares_detected(rows, models[0]))
        parts.append(_table_of_errors(chosen))
        parts.append(_table_of_yaws(rows, kind, models))
        if len(models) > 1:
            parts.append(_table_of_ratios(chosen, models[0], models[1]))
        parts += [_worst(rows, kind, model) for model in models]
    return "\n\n".join(parts)


def _shares_detected(rows: Sequence[FittedFace], model: str) -> str:
    texts = []
    for name in dict.fromkeys(row.set for row in rows):
        for subset, limit in _SUBSETS.items():
            faces, found = (
                sum(
                    abs(row.yaw_deg) < limit
                    for row in _choose(rows, boxes=kind, model=model, set=name)
                )
                for kind in ("truth", "detector")
            )
            share = found / faces if faces else np.nan
            texts.append(f"{name}, {subset}: {found} of {faces} ({share:.1%})")
    return "Faces detected: " + "; ".join(texts) + "."


def _table_of_errors(entries: Sequence[dict]) -> str:
    head = ["set", "faces", "model"]
    head += ["68 points", "large", "51 inner", "large", "jaw", "phases converged"]
    lines = []
    for entry in entries:
        cells = [entry["set"], f"{entry['subset']}: {entry['faces']}", entry["model"]]
        for points in POINTS:
            mean, median = (entry[f"{k}_{points}"] for k in ("mean", "median"))
            cells.append(f"{_short(mean)} / {_short(median)}")
            if points != "jaw":
                cells.append(f"{entry[f'large_{points}']:.1%}")
        lines.append([*cells, f"{entry['converged']:.2%}"])
    return _table(head, lines)


def _table_of_yaws(rows: Sequence[FittedFace], kind: str, models: Sequence[str]) -> str:
    head = ["yaw, degrees", "faces", "model", "68 points", "large", "51 inner", "large"]
    lines = []
    for low, high in pairwise(YAW_LIMITS_DEG):
        name = f"{low:g} to {high:g}" if np.isfinite(high) else f"from {low:g}"
        for model in models:
            some = _choose(rows, boxes=kind, model=model)
            figures = summarise([r for r in some if low <= abs(r.yaw_deg) < high])
            cells = [name, str(figures["faces"]), model]
            for points in ("68", "51"):
                mean, median = (figures[f"{k}_{points}"] for k in ("mean", "median"))
                cells.append(f"{_short(mean)} / {_short(median)}")
                cells.append(f"{figures[f'large_{points}']:.1%}")
            lines.append(cells)
    return _table(head, lines)


def _table_of_ratios(entries: Sequence[dict], first: str, second: str) -> str:
    head = [f"{first} / {second}", "faces"]
    head += [f"{points} {what}" for points in POINTS for what in ("mean", "median")]
    lines = []
    for one in entries:
        if one["model"] != first:
            continue
        (other,) = (
            e
            for e in entries
            if e["model"] == second
            and (e["set"], e["subset"]) == (one["set"], one["subset"])
        )
        cells = [one["set"], f"{one['subset']}: {one['faces']}"]
        for points in POINTS:
            for what in ("mean", "median"):
                key = f"{what}_{points}"
                cells.append(f"{np.divide(one[key], other[key]):.3f}")
        lines.append(cells)
    return _table(head, lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _worst(rows: Sequence[FittedFace], kind: str, model: str) -> str:
    worst = _ordered(_choose(rows, boxes=kind, model=model))[:-6:-1]
    texts = [
        f"{row.set}/{row.annotated.name} ({_short(row.error('51'))}, yaw"
        f" {row.yaw_deg:.0f})"
        for row in worst
    ]
    return f"Worst of {model}, 51 points: " + ", ".join(texts) + "."


def _ordered(rows: Sequence[FittedFace]) -> list[FittedFace]:
    return sorted(rows, key=lambda row: row.error("51"))


def write_json(
    path: Path,
    rows: Sequence[FittedFace],
    models: Sequence[str],
    options: jaxclnf.FitOptions,
) -> None:
    """Writes options, summaries and every face.

    Args:
        path: The file.
        rows: All fits.
        models: Names of the models, in order.
        options: Options of the fits.
    """
    content = {
        "options": dataclasses.asdict(options),
        "summaries": summaries(rows, models),
        "faces": [
            {
                "model": row.model,
                "boxes": row.boxes,
                "set": row.set,
                "face": row.annotated.name,
                "yaw_deg": row.yaw_deg,
                **{f"error_{points}": value for points, value in row.errors.items()},
                "status": row.fitted.status.name,
                "steps": row.fitted.steps,
                "phases": row.num_phases,
                "phases_converged": row.num_converged,
                "box": row.fitted.box.tolist(),
                "landmarks": row.fitted.landmarks.tolist(),
            }
            for row in rows
        ],
    }
    text = json.dumps(_finite(content), allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(content: object) -> object:
    """JSON knows no NaN and no infinity: null instead."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not np.isfinite(content):
        return None
    return content


def draw_examples(out: Path, rows: Sequence[FittedFace]) -> None:
    """Draws, for each model and kind of box, the worst and the most typical faces.

    Typical are those nearest the median of the 51 inner points' error. The ground truth
    is drawn as blue dots.

    Args:
        out: Folder of the pictures.
        rows: All fits.
    """
    for kind, model in dict.fromkeys((row.boxes, row.model) for row in rows):
        ordered = _ordered(_choose(rows, boxes=kind, model=model))
        middle = max(0, len(ordered) // 2 - NUM_EXAMPLES // 2)
        for what, some in (
            ("worst", ordered[: -NUM_EXAMPLES - 1 : -1]),
            ("typical", ordered[middle : middle + NUM_EXAMPLES]),
        ):
            for number, row in enumerate(some, 1):
                name = f"{model}-{kind}-{what}-{number}-{row.set}-{row.annotated.name}"
                write_png(out / f"{name.replace('/', '_')}.png", draw_example(row))


def draw_example(row: FittedFace) -> np.ndarray:
    """The part of a photograph around a face, with its fit and the ground truth.

    Args:
        row: The fit.

    Returns:
        The picture, channels blue, green, red.
    """
    bgr = read_image(row.annotated.image)[0]
    x, y, width, height = row.annotated.box
    margin = 0.6 * max(width, height)
    low = np.maximum([x - margin, y - margin], 0).astype(int)
    high = np.ceil([x + width + margin, y + height + margin]).astype(int)
    crop = bgr[low[1] : high[1], low[0] : high[0]]
    fitted = dataclasses.replace(
        row.fitted,
        box=row.fitted.box - [*low, 0, 0],
        landmarks=row.fitted.landmarks - low,
    )
    picture = draw_fits(crop, [fitted])
    zoom = picture.shape[1] / crop.shape[1]
    for point in (row.annotated.landmarks - low + 0.5) * zoom - 0.5:
        centre = (round(float(point[0])), round(float(point[1])))
        cv2.circle(picture, centre, 2, _TRUTH, cv2.FILLED, cv2.LINE_AA)
    return picture
