"""What `speed.py` says about its figures: ratios, what got worse, tables."""

import re
from collections.abc import Iterator

from speed_record import errors

SOME, MANY = 16, 4096
"""Faces from and to which cost is to grow linearly."""

SAME, LOOSE = 0.02, 0.5
"""By how much a figure may be worse than the baseline's: steps; ratios of times."""


def ratios(report: dict) -> dict[str, float]:
    """Times of one run over one another, which machines of a kind share.

    Args:
        report: The report, which may lack rows.

    Returns:
        Each ratio whose two rows are there.

    Example:
        >>> rows = {"openface, 1 start": {"ms": 2}, "converged, 1 start": {"ms": 3}}
        >>> ratios({"models": {"default": {"latency": rows}}})
        {'default: converged / openface': 1.5}
    """
    found = {}
    for name, model in report.get("models", {}).items():
        ms = {row: x["ms"] for row, x in _sound(model, "latency")}
        one = ms.get("converged, 1 start")
        if one and "openface, 1 start" in ms:
            found[f"{name}: converged / openface"] = one / ms["openface, 1 start"]
        if one and "converged, 11 starts" in ms:
            found[f"{name}: 11 starts / 1"] = ms["converged, 11 starts"] / one
        own = {
            int(row.split(", ")[-1].removesuffix(" faces")): x["ms_per_face"]
            for row, x in _sound(model, "batches")
            if row.startswith("converged, 1 ")
        }
        if one:
            for count, each in own.items():
                found[f"{name}: one of {count} faces / alone"] = each / one
        if {SOME, MANY} <= own.keys():
            grown = own[MANY] / own[SOME]
            found[f"{name}: one of {MANY} faces / one of {SOME}"] = grown
    return {name: round(value, 3) for name, value in found.items()}


def problems(report: dict, baseline: dict) -> list[str]:
    """What is worse than in the baseline; what is new, or missing in it, is not.

    Args:
        report: The report.
        baseline: That of an earlier run. Ratios of times count only on the same kind of
            device, lane steps only in chunks of the same size.

    Returns:
        What is worse, a line each.

    Example:
        >>> steps = [{"latency": {"a": {"ms": 1, "steps": x}}} for x in (5, 4)]
        >>> now, then = ({"machine": {}, "models": {"m": x}} for x in steps)
        >>> problems(now, then)
        ['m: a: steps: 5, was 4, allowed 2% more']
    """
    found = []

    def compare(what: str, now: float, then: float, slack: float) -> None:
        if now > then * (1 + slack):
            found.append(f"{what}: {now}, was {then}, allowed {slack:.0%} more")

    for name, model in report.get("models", {}).items():
        then = baseline["models"].get(name, {})
        before = dict(_sound(then, "latency"))
        for row, x in _sound(model, "latency"):
            if row in before:
                steps = before[row]["steps"]
                compare(f"{name}: {row}: steps", x["steps"], steps, SAME)
        before = dict(_lanes(then))
        for row, x in _lanes(model):
            if row not in before:
                continue
            same = before[row]["chunk"] == x["chunk"]
            for key in ("steps_per_face", "px_from_median", *(["lanes"] * same)):
                compare(f"{name}: {row}: {key}", x[key], before[row][key], SAME)
    if report["machine"].get("device") == baseline["machine"].get("device"):
        for name, value in report.get("ratios", {}).items():
            if name in baseline["ratios"]:
                compare(name, value, baseline["ratios"][name], LOOSE)
    return found


def table(report: dict, reference: dict | None = None) -> str:
    """The report in Markdown.

    Args:
        report: The report; parts may be missing and rows may be errors.
        reference: Times of another program, to be put beside ours.

    Returns:
        The text.

    Example:
        >>> print(table({"machine": {"cores": 2}, "start_up": {"error": "none"}}))
        Machine: cores 2
        Start-up, seconds: error none
        <BLANKLINE>
    """
    titles = {
        "machine": "Machine",
        "rates": "Rates, 10^9 operations or bytes a second",
        "start_up": "Start-up, seconds",
    }
    lines = [
        f"{title}: " + ", ".join(f"{key} {x}" for key, x in report[part].items())
        for part, title in titles.items()
        if part in report
    ]
    theirs = (reference["program"], reference["ms"]) if reference else ("", {})
    whose = report["machine"].get("peak_of", "")
    for name, model in report.get("models", {}).items():
        lines += ["", f"## {name}", ""]
        if "error" in model:
            lines.append(f"Failed: {model['error']}")
            continue
        beside = f"{name}, ", *theirs
        lines += _part(model, "latency", _LATENCY, ("ms", *beside))
        columns = _BATCHES | {"peak_gb": f"Peak of {whose} so far, GB"}
        lines += _part(model, "batches", columns, ("ms_per_face", *beside))
        lanes = [f"- {row}: {x}" for row, x in _lanes(model)]
        if lanes:
            lines += ["Lane steps over needed ones:", "", *lanes, ""]
        lines += _part(model, "stages", _STAGES) + _part(model, "video", _VIDEO)
    lines += ["", *(f"- {name}: {x}" for name, x in report.get("ratios", {}).items())]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


_LATENCY = {
    "ms": "ms",
    "steps": "Steps",
    "trace_s": "Trace, s",
    "compile_s": "Compile, s",
}
_BATCHES = {
    "ms_per_face": "ms a face",
    "program_ms_per_face": "In the program",
}
_STAGES = {
    "faces": "Faces at once",
    "ms": "ms",
    "flops_floor_ms": "Flops allow",
    "bytes_floor_ms": "Bytes allow",
    "times_floor": "Times the floor",
}
_VIDEO = {
    "fps": "Frames/s",
    "fps_with_files": "With files and drawing",
    "succeeded": "Succeeded",
}


def _part(
    model: dict, part: str, columns: dict[str, str], theirs: tuple | None = None
) -> list[str]:
    """The table of one part: a row for each of its own, of errors their text."""
    rows = model.get(part, {})
    if not rows:
        return []
    key, prefix, program, times = theirs or ("", "", "", {})
    columns = {
        k: title for k, title in columns.items() if any(k in x for x in rows.values())
    }
    head = [part.capitalize(), *columns.values()]
    head += [f"{program}, ms", "Ratio"] * bool(times)
    lines = [_line(head), "|---" * len(head) + "|"]
    for row, x in rows.items():
        if "error" in x:
            lines.append(_line([row, f"failed: {x['error'].replace('|', '/')}"]))
            continue
        cells = [row, *(x.get(k, "") for k in columns)]
        if times:
            full = prefix + row
            # A batch of faces from one start is compared with one of them.
            ms = times.get(full, times.get(full.rsplit(", ", 1)[0]))
            cells += [ms, round(x[key] / ms, 2)] if ms else ["", ""]
        lines.append(_line(cells))
    return [*lines, ""]


def _line(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _sound(model: dict, part: str) -> Iterator[tuple[str, dict]]:
    """The rows of a part that did not fail."""
    for row, x in model.get(part, {}).items():
        if not errors({row: x}):
            yield row, x


def _lanes(model: dict) -> Iterator[tuple[str, dict]]:
    for row, x in _sound(model, "batches"):
        if "lanes" in x:
            yield row, x["lanes"]
