"""What commands say about an artifact before anything runs: kernels, memory, work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphc.artifact import Artifact
from graphc.artifact_records import EntryRecord
from graphc.cli_output import Output, count
from graphc.errors import error
from graphc.runtime import kernel_infos
from graphc.runtime_memory import MemoryReport, format_bytes

__all__ = ["entry_summary", "print_kernels", "print_plan", "write_report"]


def entry_summary(artifact: Artifact, entry: EntryRecord, threads: int) -> dict[str, Any]:
    """What an entry takes, as JSON values. ``kernels`` counts launches, ``distinct_kernels`` the code they share;
    ``lower_bound_bytes`` is the least that the arena could be."""
    memory = MemoryReport.of(entry, artifact.manifest, threads)
    return {
        "kernels": len(entry.launches),
        "distinct_kernels": len({launch.kernel for launch in entry.launches}),
        "peak_bytes": memory.peak_bytes,
        "state_bytes": memory.state_bytes,
        "arena_bytes": memory.arena_bytes,
        "lower_bound_bytes": memory.lower_bound_bytes,
        "flops": sum(launch.flops for launch in entry.launches),
        "bytes": sum(launch.bytes for launch in entry.launches),
        "inputs": {p.name: [p.dtype, list(p.shape)] for p in entry.inputs},
        "outputs": {p.name: [p.dtype, list(p.shape)] for p in entry.outputs},
    }


def print_plan(artifact: Artifact, threads: int, out: Output) -> None:
    """The memory plan and the number of kernels, one line per entry."""
    rows = []
    for entry in artifact.manifest.entries:
        s = entry_summary(artifact, entry, threads)
        sizes = [format_bytes(s[k]) for k in ("peak_bytes", "state_bytes", "arena_bytes", "lower_bound_bytes")]
        kernels = f"{s['kernels']} ({s['distinct_kernels']} distinct)"
        rows.append((entry.name, kernels, *sizes, f"{count(s['flops'])}FLOP", format_bytes(s["bytes"])))
    columns = ["entry", ">kernels", ">peak memory", ">state", ">arena", ">largest live set", ">work", ">traffic"]
    out.table(columns, rows)


def print_kernels(artifact: Artifact, entry: EntryRecord, out: Output) -> None:
    """The kernels of an entry in order of work."""
    rows = [
        (k.name, k.count, f"{count(k.flops)}FLOP", format_bytes(k.bytes), ", ".join(map(str, k.lines[:2])))
        for k in sorted(kernel_infos(artifact, entry), key=lambda k: -k.flops)
    ]
    columns = ["kernel", ">launches", ">work", ">traffic", "from"]
    out.table(columns, rows, title=f"{entry.name}: {len(entry.launches)} kernels in order of work")


def write_report(path: str | None, artifact: Artifact, out: Output) -> None:
    """Write the page of ``--report``, if one is wanted. Raises GC0610."""
    if path is None:
        return
    from graphc.report.page import page

    try:
        Path(path).write_text(page(artifact), encoding="utf-8")
    except OSError as e:
        raise error("GC0610", f"cannot write {path}: {e.strerror}") from None
    out.line(f"report: {path}")
