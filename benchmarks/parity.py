"""The openface dialect beside the C++ program, on every face of the reference data.

    python benchmarks/parity.py [--families fits fits300w] [--configurations NAME...]
                                [--modes single multi] [--every N] [--out FILE.json]

For each configuration the distribution of the largest coordinate difference of a face,
beside that of a second build of the C++ program; likelihoods, certainties, the start
that was kept; on annotated photographs the mean errors of both. Every face beyond the
bound (0.2 px; 0.5 px for the wild settings) is fitted again from boxes that differ in
their last bits, and the first choice that they turn is named and counted.
"""

import argparse
import collections
import json
import time
from pathlib import Path

import numpy as np
from reference_fits import EXPERTS, FAMILIES, MODES, Comparison, cases, compare
from ties import explain

BOUND, WILD_BOUND = 0.2, 0.5
"""Differences that are looked into, pixels."""


def bound_of(configuration: str) -> float:
    """The bound of a configuration, pixels."""
    return WILD_BOUND if "wild" in configuration else BOUND


def summary(configuration: str, rows: list[Comparison]) -> dict:
    """The figures of one reference file, or of several together."""
    ours = np.array([row.difference for row in rows])
    second = np.array([row.case.second_build for row in rows])
    errors = np.array([(row.our_error, row.their_error) for row in rows])
    found = {
        "faces": len(rows),
        "ours": np.percentile(ours, (50, 90, 95, 100)).tolist(),
        "below_bound": float(np.mean(ours < bound_of(configuration))),
        "likelihood": float(np.median(np.abs([row.likelihood for row in rows]))),
        "certainty_differs": int(np.sum(np.abs([r.certainty for r in rows]) > 1e-3)),
        "start_differs": int(np.sum([not row.same_start for row in rows])),
    }
    if np.isfinite(second).all():
        found["second_build"] = np.percentile(second, (50, 90, 95, 100)).tolist()
    if np.isfinite(errors).all():
        found["mean_error"] = errors.mean(axis=0).tolist()
    return found


def line(name: str, family: str, found: dict) -> str:
    """One row of the table."""
    cells = [name, str(found["faces"])]
    cells += [" / ".join(f"{x:.4f}" for x in found["ours"])]
    if family == "fits":
        cells += [" / ".join(f"{x:.4f}" for x in found["second_build"])]
    else:
        ours, theirs = found["mean_error"]
        cells += [f"{found['below_bound']:.1%}", f"{ours:.4f} / {theirs:.4f}"]
    ties = ", ".join(f"{count} {kind}" for kind, count in found["ties"].items())
    cells += [str(found["certainty_differs"]), str(found["start_differs"]), ties or "-"]
    return "| " + " | ".join(cells) + " |"


HEADERS = {
    "fits": "| Configuration | Faces | Difference, px: median / 90 % / 95 % / largest |"
    " Second build of the C++ program | Certainty differs | Start differs |"
    " Ties beyond the bound |\n|---|---|---|---|---|---|---|",
    "fits300w": "| Configuration | Faces | Difference, px: median / 90 % / 95 % /"
    " largest | Below the bound | Mean error, ours / C++ | Certainty differs |"
    " Start differs | Ties beyond the bound |\n|---|---|---|---|---|---|---|---|",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument(
        "--configurations", nargs="+", choices=EXPERTS, default=list(EXPERTS)
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for all figures, JSON")
    args = parser.parse_args()

    report = {}
    for family in args.families:
        print(f"\n{HEADERS[family]}", flush=True)
        together = {"all wild": [], "all others": []}
        ties_together = {name: collections.Counter() for name in together}
        for configuration in args.configurations:
            for mode in args.modes:
                begin = time.perf_counter()
                rows = [
                    compare(configuration, mode, case)
                    for case in cases(configuration, mode, family, args.every)
                ]
                found = summary(configuration, rows)
                beyond = [r for r in rows if r.difference >= bound_of(configuration)]
                ties = {
                    r.case.name: explain(configuration, mode, r.case) for r in beyond
                }
                kinds = collections.Counter(tie.kind for tie in ties.values())
                group = "all wild" if "wild" in configuration else "all others"
                together[group] += rows
                ties_together[group] += kinds
                found["ties"] = dict(kinds)
                found["beyond"] = [
                    {
                        "name": row.case.name,
                        "difference": row.difference,
                        "spread": ties[row.case.name].spread,
                        "nearest": ties[row.case.name].nearest,
                        "kind": ties[row.case.name].kind,
                    }
                    for row in beyond
                ]
                found["seconds"] = time.perf_counter() - begin
                report[f"{family}_{configuration}_{mode}"] = found
                name = f"{configuration}, {mode}"
                print(line(name, family, found), flush=True)
                if args.out:
                    args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        for group, rows in together.items():
            if rows:
                found = {**summary(group, rows), "ties": ties_together[group]}
                print(line(group, family, found), flush=True)


if __name__ == "__main__":
    main()
