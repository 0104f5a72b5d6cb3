"""How the time of a train step grows with the batch, the context, the width and the threads: python bench/scaling.py

    python bench/scaling.py [--axes batch width] [--peers torch jax] [--rounds 5] [--resume]

GPT-2 of four layers, measured as `bench/run.py` does it. Writes bench/results/scaling.json and .md, point by point;
`bench/plots.py` draws them against the roofline (`roofline`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from child import Failed
from rich.console import Console
from run import is_done, write
from suite import Case
from systems import BASE, HERE, SYSTEMS
from workloads import Workload, gpt2

RESULT = HERE / "results" / "scaling.json"
UPDATE_BYTES = 28  # per parameter: AdamW reads it, its gradient and two moments, and writes it and the moments
STATE_BYTES = 12  # per parameter: itself and two moments


@dataclass(frozen=True)
class Axis:
    """``case(at)``: the workload and the threads of one point."""

    title: str
    points: Sequence[int]
    case: Callable[[int], tuple[Workload, int]]


def sized(batch: int = 12, length: int = 64, width: int = 128) -> Workload:
    return gpt2(f"gpt2-{batch}x{length}x{width}", batch, length, layers=4, heads=max(width // 64, 2), width=width)


AXES = {
    "batch": Axis("GPT-2, 4 layers, 128 wide, context 64", (1, 2, 4, 8, 16, 32, 64), lambda n: (sized(n), 2)),
    "context": Axis("GPT-2, 4 layers, 128 wide, batch 2", (64, 128, 256, 512, 1024), lambda n: (sized(2, n), 2)),
    "width": Axis("GPT-2, 4 layers, context 64, batch 8", (64, 128, 256, 512, 1024), lambda n: (sized(8, width=n), 2)),
    "threads": Axis("GPT-2, 4 layers, 256 wide, context 64, batch 12", (1, 2), lambda n: (sized(width=256), n)),
}


def roofline(row: dict[str, Any]) -> float:
    """FLOP/s at best: the products at the machine's peak, and the update of the parameters at memory's speed if that
    takes longer."""
    machine = report.fastest(row["machine"])
    moved = row["systems"][BASE]["state_bytes"] / STATE_BYTES * UPDATE_BYTES
    seconds = max(row["flops"] / machine["flops_per_second"], moved / machine["bytes_per_second"])
    return float(row["flops"] / seconds)


def page(results: dict[str, Any]) -> str:
    parts = ["# How a train step grows", "`python bench/scaling.py`; milliseconds, medians of interleaved runs."]
    for axis, points in results["axes"].items():
        rows = report.with_limits(points)
        parts += [f"## {axis}", f"{AXES[axis].title}.", report.speed(rows, "train"), report.shares(rows)]
        if len({row.get("version") for row in points.values()}) > 1:
            parts.append("These points are of several versions of graphc.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    peers = [name for name, s in SYSTEMS.items() if s.modes and name != BASE]
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    ap.add_argument("--peers", nargs="*", choices=peers, default=["torch", "jax"])
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--out", type=Path, default=RESULT, help="the .md is written beside it")
    ap.add_argument("--resume", action="store_true", help="leave out what has a result of this version of graphc")
    args = ap.parse_args()
    console = Console()
    results = json.loads(args.out.read_text()) if args.out.exists() else {"axes": {}}
    for name in args.axes:
        points = results["axes"].setdefault(name, {})
        for at in AXES[name].points:
            if args.resume and is_done(points.get(str(at)), [BASE, *args.peers]):
                continue
            workload, threads = AXES[name].case(at)
            try:
                points[str(at)] = Case(workload, "train", threads).run([BASE, *args.peers], args.rounds)
            except Failed as why:
                console.print(f"{name} {at}: {why}", markup=False)
                continue
            console.print(report.line(f"{name} {at}", points[str(at)]), markup=False, highlight=False)
            results["axes"][name] = dict(sorted(points.items(), key=lambda item: int(item[0])))
            write(results, args.out, page)


if __name__ == "__main__":
    main()
