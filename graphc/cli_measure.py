"""``graphc verify`` and ``graphc bench``: is the compiled program right, and how fast is it?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from graphc.cli_output import Output
from graphc.cli_run import find_entry, open_program
from graphc.dtype import TensorType, finfo, holds_floats
from graphc.errors import error
from graphc.interp import interpret
from graphc.ir import Graph
from graphc.machine import measure
from graphc.passes import pipeline
from graphc.runtime import Entry, Program
from graphc.text import parse

__all__ = ["bench", "verify"]

Arrays = Mapping[str, np.ndarray]

ROUNDING = 2.0**-22  # relative size of the disturbance that shows how sensitive a result is
FACTOR = 64  # how much more than by that a right result may differ
RELATIVE = 1e-5  # and how much of a tensor's largest element it may differ anyway


def sample_inputs(specs: Mapping[str, TensorType], seed: int) -> dict[str, np.ndarray]:
    """Random arguments: floats from a normal distribution, integers 0 or 1, which are valid as almost any index."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(t.shape) if t.dtype.is_float else rng.integers(0, 2, t.shape)).astype(t.dtype.numpy)
        for name, t in specs.items()
    }


# Verify --------------------------------------------------------------------------------------------------------------


def verify(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compare in the interpreter the graph with its gradients written out with the graph after each later pass, and
    with the compiled program.

    The result's key ``entries`` → name → stage → the largest difference as a share of what is allowed. Raises GC0611
    when one is above 1.
    """
    program = open_program(args.artifact)
    entries = [find_entry(program, args.artifact, name) for name in args.entry or program.entries]
    results = {entry.name: _verify_entry(program, entry, args.seed) for entry in entries}
    for name, stages in results.items():
        rows = [(stage, f"{worst:.3f}", tensor) for stage, (worst, tensor) in stages.items()]
        out.table(["stage", ">difference / allowed", "largest in"], rows, title=name)
        out.line()
    for name, stages in results.items():
        for stage, (worst, tensor) in stages.items():
            if not worst <= 1:
                message = f"entry {name!r}: {tensor} after {stage} is not what the interpreter computes"
                raise error("GC0611", message, hint=f"it differs by {worst:.3g} times of what rounding explains")
    out.line("all stages agree with the interpreter")
    return {"entries": {name: {s: worst for s, (worst, _) in stages.items()} for name, stages in results.items()}}


def _verify_entry(program: Program, entry: Entry, seed: int) -> dict[str, tuple[float, str]]:
    inputs = sample_inputs(entry.specs, seed)
    state = {name: array.copy() for name, array in program.state.items()}
    traced = parse(entry.graph)
    expanded = pipeline.run(traced, stop_after="differentiate")
    want = _results(expanded, inputs, state)
    disturbed = _results(expanded, _disturb(inputs, seed), _disturb(state, seed + 1))
    allowed = {
        name: max(RELATIVE, _rounding(a)) * np.abs(a.astype(np.float64)).max(initial=0)
        + FACTOR * _gap(a, disturbed[name])
        for name, a in want.items()
    }
    stages: dict[str, tuple[float, str]] = {}

    def check(stage: str, got: Arrays) -> None:
        shares = {name: _share(_gap(a, got[name]), allowed[name]) for name, a in want.items()}
        worst = max(shares, key=lambda name: shares[name], default="")
        stages[stage] = (shares.get(worst, 0.0), worst)

    def observe(name: str, before: Graph, after: Graph, seconds: float) -> None:
        if all(node.op != "grad" for node in after):
            check(name, _results(after, inputs, state))

    pipeline.run(traced, observe=observe, check=True)
    outputs = entry(**inputs)
    check("compiled", outputs | {f"state {name}": array.copy() for name, array in program.state.items()})
    program.load_state_dict(state)
    return stages


def _results(graph: Graph, inputs: Arrays, state: Arrays) -> dict[str, np.ndarray]:
    outputs, after = interpret(graph, inputs, state)
    return outputs | {f"state {name}": array for name, array in after.items()}


def _disturb(arrays: Arrays, seed: int) -> dict[str, np.ndarray]:
    """The arrays with floats off by some rounding errors."""
    rng = np.random.default_rng(seed)
    return {
        name: (a * (1 + _rounding(a) * rng.standard_normal(a.shape))).astype(a.dtype) if holds_floats(a) else a
        for name, a in arrays.items()
    }


def _rounding(a: np.ndarray) -> float:
    """Two units in the last place, of float32 at least."""
    return max(ROUNDING, 2 * finfo(a.dtype).eps) if holds_floats(a) else 0.0


def _largest(a: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64)).max(initial=0))


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; elements that are equal, infinite or NaN alike, have none."""
    wide = [x.astype(np.float64) for x in (a, b)]
    same = (a == b) | (np.isnan(wide[0]) & np.isnan(wide[1]))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(wide[0] - wide[1]))
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _share(gap: float, allowed: float) -> float:
    return 0.0 if gap == 0 else gap / allowed if allowed else np.inf


# Bench ---------------------------------------------------------------------------------------------------------------


def bench(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Time an entry launch by launch.

    The result's keys: ``entry``, ``seconds`` (of a step), ``threads``, ``peak_flops``, ``peak_bytes_per_second`` (of
    main memory) and ``kernels``, a list of ``name``, ``launches``, ``seconds``, ``bytes``, ``flops``, ``share_of_peak``
    (the least time on this machine over the time taken) and ``lines``.
    """
    program = open_program(args.artifact, args.threads)
    entry = find_entry(program, args.artifact, args.entry)
    peaks = measure(program.threads, program.code.manifest.target.name)
    inputs = sample_inputs(entry.specs, 0)
    entry.timed(**inputs)  # touches all memory once
    seconds = 1e-9 * np.median([entry.timed(**inputs)[1] for _ in range(args.steps)], axis=0)
    rows: list[dict[str, Any]] = []
    prepared = sum(kernel.prepared for kernel in entry.kernels)
    for kernel, launches in entry.launches().items():
        if not kernel.count:
            continue
        taken = float(seconds[list(launches)].sum())
        rows.append(
            {
                "name": kernel.name,
                "launches": kernel.count,
                "seconds": taken,
                "flops": kernel.flops,
                "bytes": kernel.bytes,
                "share_of_peak": peaks.kernel_seconds(kernel) / taken if taken else 0.0,
                "lines": [str(loc) for loc in kernel.lines],
            }
        )
    rows.sort(key=lambda r: -r["seconds"])
    total = float(seconds.sum())
    _print_bench(rows, total, out)
    out.line()
    running, before = len(seconds) - prepared, f"; {prepared} ran before, for the state" if prepared else ""
    where = f"{program.threads} threads" if program.code.manifest.team else "a GPU"
    out.line(f"{entry.name}: {total * 1e3:.3f} ms a step in {running} kernels on {where}{before}")
    out.line(f"this machine at best: {peaks}")
    return {
        "entry": entry.name,
        "seconds": total,
        "threads": program.threads,
        "peak_flops": peaks.flops,
        "peak_bytes_per_second": peaks.memory,
        "kernels": rows,
    }


def _print_bench(rows: list[dict[str, Any]], total: float, out: Output) -> None:
    columns = ["kernel", ">launches", ">µs", ">of the step", ">GFLOP/s", ">GB/s", ">of peak", "from"]
    cells = []
    for r in rows:
        taken = r["seconds"] or inf  # kernels of a branch that was not taken
        speed, traffic = f"{r['flops'] / taken / 1e9:.1f}", f"{r['bytes'] / taken / 1e9:.1f}"
        part = f"{r['seconds'] / total:.1%}" if total else ""
        peak, lines = f"{r['share_of_peak']:.0%}", ", ".join(r["lines"][:2])
        cells.append((r["name"], r["launches"], f"{r['seconds'] * 1e6:.1f}", part, speed, traffic, peak, lines))
    out.table(columns, cells)
