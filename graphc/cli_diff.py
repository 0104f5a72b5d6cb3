"""``graphc diff``: what differs between two artifacts."""

from __future__ import annotations

import argparse
import dataclasses
from itertools import groupby
from typing import Any

from graphc.artifact import Artifact
from graphc.artifact_diff import differences
from graphc.cli_output import Output

__all__ = ["diff"]

WIDTH = 100  # characters of a line of a graph that are shown


def diff(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compare two artifacts; exit code 1 if they differ. The result's key ``differences``: a list of ``part`` (origin,
    graph, plan, kernels, weights), ``where``, ``a``, ``b``."""
    found = differences(Artifact.read(args.a), Artifact.read(args.b))
    for part, group in groupby(sorted(found, key=lambda d: _PARTS.index(d.part)), key=lambda d: d.part):
        rows = list(group)
        out.line(f"{part}: {len(rows)} difference{'s' * (len(rows) > 1)}", style="bold")
        for d in rows[: args.lines]:
            out.line(f"  {d.where}")
            for mark, side in (("-", d.a), ("+", d.b)):
                if side:
                    out.line(f"    {mark} {side if len(side) <= WIDTH else side[:WIDTH] + '…'}")
        if len(rows) > args.lines:
            out.line(f"  and {len(rows) - args.lines} more: --lines shows them")
    if not found:
        out.line("no difference: graphs, plans, kernels and weights are equal")
    return {"differences": [dataclasses.asdict(d) for d in found]}


_PARTS = ("origin", "graph", "plan", "kernels", "weights")
