"""The pictures of the results: python bench/plots.py

Reads bench/results/suite.json and scaling.json and writes SVG files beside them.
"""

from __future__ import annotations

import json
from typing import Any

import svg
from report import geometric_mean, of_mode, share, timed, with_limits
from scaling import AXES, roofline
from systems import HERE

RESULTS = HERE / "results"
TITLES = {"train": "Train step: share of the FMA peak", "infer": "Inference: share of the FMA peak"}


def suite(results: dict[str, Any]) -> dict[str, str]:
    pictures = {}
    for mode, title in TITLES.items():
        limited = {"rows": with_limits(results["rows"])}
        rows = {work: row for work, row in of_mode(limited, mode).items() if "machine" in row}
        groups = {work: {s: share(row, s) for s in timed(row)} for work, row in rows.items()}
        if len(groups) > 1:
            complete = [s for s in svg.COLOURS if all(s in g for g in groups.values())]
            groups["mean"] = {s: geometric_mean(g[s] for g in groups.values()) for s in complete}
        if groups:
            most = max(s for g in groups.values() for s in g.values())
            pictures[f"{mode}.svg"] = svg.bars(title, groups, max(1.0, most))
    return pictures


def scaling(results: dict[str, Any]) -> dict[str, str]:
    """GFLOP/s over each axis; threads, of which there are few, as bars."""
    pictures = {}
    for axis, points in results["axes"].items():
        found = {float(at): row for at, row in with_limits(points).items() if "machine" in row}
        if not found:
            continue
        series = {"roofline": [(at, roofline(row) / 1e9) for at, row in found.items()]}
        for at, row in found.items():
            for system, record in timed(row).items():
                series.setdefault(system, []).append((at, row["flops"] / record["ms"] / 1e6))
        pictures[f"scaling_{axis}.svg"] = svg.lines(f"Train step of {AXES[axis].title}: GFLOP/s", axis, series)
    return pictures


def main() -> None:
    for name, draw in (("suite.json", suite), ("scaling.json", scaling)):
        file = RESULTS / name
        if not file.exists():
            continue
        for picture, content in draw(json.loads(file.read_text())).items():
            (RESULTS / picture).write_text(content)
            print(RESULTS / picture)


if __name__ == "__main__":
    main()
