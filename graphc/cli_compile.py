"""``graphc compile``, and what ``train`` shares with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from graphc.cli_output import Output, count, size
from graphc.driver import compile as compile_entries
from graphc.errors import error
from graphc.modelfile import close_matches, file_entries, load_model_file, make_config
from graphc.passes import pipeline
from graphc.runtime import Entry, Program
from graphc.text import parse, print_graph

__all__ = ["compile", "compile_module", "entry_summary", "print_plan", "write_report"]


def compile(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compile a model file into an artifact. The result's keys: ``artifact``, ``bytes``, ``seconds``, ``entries``."""
    begin = perf_counter()
    module = load_model_file(args.file)
    config = make_config(module, dict(args.set))
    if args.dump_after:
        check_pass(args.dump_after)
    program = compile_module(module, config, args, args.entry)
    path = Path(args.output or Path(args.file).with_suffix(".gcx").name)
    program.save(path)
    seconds = perf_counter() - begin
    if args.dump_after:
        for entry in program.entries.values():
            out.line(print_graph(pipeline.run(parse(entry.graph), stop_after=args.dump_after)))
    print_plan(program, out)
    write_report(args.report, program, out)
    out.line(f"{path}: {size(path.stat().st_size)}, compiled in {seconds:.1f} s")
    return {
        "artifact": str(path),
        "bytes": path.stat().st_size,
        "seconds": seconds,
        "entries": {name: entry_summary(entry) for name, entry in program.entries.items()},
    }


def compile_module(
    module: ModuleType, config: Any, args: argparse.Namespace, names: list[str] | None = None
) -> Program:
    """The program of a model file's entries, or of those named. Raises GC0607 for a name that does not occur."""
    entries = {e.name: e for e in file_entries(module, config)}
    for name in names or ():
        if name not in entries:
            message = f"{module.__file__} has no entry {name!r}"
            raise error("GC0607", message, hint=close_matches(name, list(entries)))
    chosen = [entries[n] for n in names or entries]
    return compile_entries(*chosen, target=args.target, memory_budget=args.memory_budget)


def check_pass(name: str) -> None:
    """Raises GC0607 for a name that is no pass."""
    names = [p.name for p in pipeline.PIPELINE]
    if name not in names:
        raise error("GC0607", f"there is no pass {name!r}", hint=close_matches(name, names))


def entry_summary(entry: Entry) -> dict[str, Any]:
    """What an entry takes, as JSON values. ``kernels`` counts launches, ``distinct_kernels`` the code they share."""
    memory = entry.memory
    return {
        "kernels": sum(k.count for k in entry.kernels),
        "distinct_kernels": len(entry.kernels),
        "peak_bytes": memory.peak_bytes,
        "arena_bytes": memory.arena_bytes,
        "state_bytes": memory.state_bytes,
        "lower_bound_bytes": memory.lower_bound_bytes,
        "flops": entry.flops,
        "bytes": entry.bytes,
        "inputs": {name: [t.dtype.name, list(t.shape)] for name, t in entry.specs.items()},
    }


def print_plan(program: Program, out: Output) -> None:
    """The memory plan and the number of kernels, one line per entry."""
    rows = []
    for name, entry in program.entries.items():
        memory, kernels = entry.memory, entry.kernels
        rows.append(
            (
                name,
                f"{sum(k.count for k in kernels)} ({len(kernels)} distinct)",
                size(memory.peak_bytes),
                size(memory.state_bytes),
                size(memory.arena_bytes),
                size(memory.lower_bound_bytes),
                f"{count(entry.flops)}FLOP",
                size(entry.bytes),
            )
        )
    columns = ["entry", ">kernels", ">peak memory", ">state", ">arena", ">largest live set", ">work", ">traffic"]
    out.table(columns, rows)


def write_report(path: str | None, program: Program, out: Output) -> None:
    """Write the page of ``--report``, if one is wanted."""
    if path is None:
        return
    from graphc.report.page import report

    try:
        Path(path).write_text(report(program), encoding="utf-8")
    except OSError as e:
        raise error("GC0610", f"cannot write {path}: {e.strerror}") from None
    out.line(f"report: {path}")
