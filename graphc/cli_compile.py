"""``graphc compile``, and what ``train`` shares with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from graphc.cli_output import Output
from graphc.cli_plan import entry_summary, print_plan, write_report
from graphc.driver import CompileReport
from graphc.driver import compile as compile_entries
from graphc.errors import error
from graphc.modelfile import close_matches, file_entries, file_metadata, load_model_file, make_config
from graphc.passes import pipeline
from graphc.runtime import Program
from graphc.runtime_memory import format_bytes
from graphc.text import parse, print_graph
from graphc.tracing import Entry

__all__ = ["compile", "compile_module"]


def compile(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Compile a model file into an artifact. The result's keys: ``artifact``, ``bytes``, ``seconds``, ``entries``."""
    begin = perf_counter()
    module = load_model_file(args.file)
    config = make_config(module, dict(args.set))
    if args.dump_after:
        check_pass(args.dump_after)
    report = CompileReport()
    program = compile_module(module, config, args, chosen(module, config, args.entry), report)
    path = Path(args.output or Path(args.file).with_suffix(".gcx").name)
    program.save(path)
    seconds = perf_counter() - begin
    if args.dump_after:
        for entry in program.entries.values():
            out.line(print_graph(pipeline.run(parse(entry.graph), stop_after=args.dump_after)))
    if args.time:
        out.table(["phase", ">seconds"], [(name, f"{t:.3f}") for name, t in report.seconds.items()])
    print_plan(program.code, program.threads, out)
    for name, again in report.recomputed.items():
        out.line(f"{name}: {again}")
    write_report(args.report, program.code, out)
    out.line(f"{path}: {format_bytes(path.stat().st_size)}, compiled in {seconds:.1f} s")
    return {
        "artifact": str(path),
        "bytes": path.stat().st_size,
        "seconds": seconds,
        "phases": report.seconds,
        "entries": {e.name: entry_summary(program.code, e, program.threads) for e in program.code.manifest.entries},
    }


def chosen(module: ModuleType, config: Any, names: list[str] | None) -> list[Entry]:
    """The entries of a model file, or those named. Raises GC0607 for a name that does not occur."""
    entries = {e.name: e for e in file_entries(module, config)}
    for name in names or ():
        if name not in entries:
            message = f"{module.__file__} has no entry {name!r}"
            raise error("GC0607", message, hint=close_matches(name, list(entries)))
    return [entries[n] for n in names or entries]


def compile_module(
    module: ModuleType,
    config: Any,
    args: argparse.Namespace,
    entries: Sequence[Entry],
    report: CompileReport | None = None,
) -> Program:
    """The program of entries of a model file, as the options say."""
    return compile_entries(
        *entries,
        target=args.target or "cpu",
        cpu_baseline=args.cpu_baseline,
        arch=args.arch,
        libraries=args.libraries,
        precision=args.precision,
        memory_budget=args.memory_budget,
        tune=args.tune,
        metadata=file_metadata(module, config),
        report=report,
    )


def check_pass(name: str) -> None:
    """Raises GC0607 for a name that is no pass."""
    names = [p.name for p in pipeline.PIPELINE]
    if name not in names:
        raise error("GC0607", f"there is no pass {name!r}", hint=close_matches(name, names))
