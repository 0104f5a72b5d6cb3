"""What commands say about an artifact before anything runs: kernels, memory, work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphc.artifact import Artifact
from graphc.artifact_records import EntryRecord
from graphc.cli_output import Output, count
from graphc.errors import error
from graphc.runtime import kernel_infos
from graphc.runtime_memory import MemoryReport, format_bytes
from graphc.runtime_native import unfit
from graphc.system import level_of

__all__ = ["SIZES", "entry_summary", "print_kernels", "print_plan", "print_targets", "shown", "write_report"]


SIZES = {
    "peak_bytes": "peak memory",
    "state_bytes": "state",
    "prepared_bytes": "prepared",
    "arena_bytes": "arena",
    "lower_bound_bytes": "largest live set",
}


def shown(artifact: Artifact) -> Artifact:
    """Of an artifact for several targets, the one that would run here; where none would, the first."""
    return artifact.only(_here(artifact))


def _here(artifact: Artifact) -> int:
    builds = artifact.manifest.builds
    return next((number for number, build in enumerate(builds) if not unfit(build)), 0)


def entry_summary(artifact: Artifact, entry: EntryRecord, threads: int) -> dict[str, Any]:
    """What an entry takes, as JSON values. ``kernels`` counts launches of a step, ``prepared_kernels`` those of what
    depends on state alone, ``distinct_kernels`` the code they share; ``lower_bound_bytes`` is the least that the arena
    could be."""
    memory = MemoryReport.of(entry, artifact.manifest, threads)
    return {
        "kernels": len(entry.steps),
        "prepared_kernels": entry.prepared,
        "distinct_kernels": len({launch.kernel for launch in entry.launches}),
        "peak_bytes": memory.peak_bytes,
        "state_bytes": memory.state_bytes,
        "prepared_bytes": memory.prepared_bytes,
        "arena_bytes": memory.arena_bytes,
        "lower_bound_bytes": memory.lower_bound_bytes,
        "flops": sum(launch.flops for launch in entry.steps),
        "bytes": sum(launch.bytes for launch in entry.steps),
        "inputs": {p.name: [p.dtype, list(p.shape)] for p in entry.inputs},
        "outputs": {p.name: [p.dtype, list(p.shape)] for p in entry.outputs},
    }


def print_plan(artifact: Artifact, threads: int, out: Output) -> None:
    """The memory plan and the number of kernels, one line per entry."""
    rows = []
    for entry in artifact.manifest.entries:
        s = entry_summary(artifact, entry, threads)
        sizes = [format_bytes(s[k]) for k in SIZES]
        kernels = f"{s['kernels']} ({s['distinct_kernels']} distinct)"
        rows.append((entry.name, kernels, *sizes, f"{count(s['flops'])}FLOP", format_bytes(s["bytes"])))
    out.table(["entry", ">kernels", *(f">{name}" for name in SIZES.values()), ">work", ">traffic"], rows)


def print_targets(artifact: Artifact, out: Output) -> list[dict[str, Any]]:
    """What the artifact has code for, the best first, a line each; and the same as JSON values."""
    targets, best = [], _here(artifact)
    for number, build in enumerate(artifact.manifest.builds):
        here = "does not run" if unfit(build) else "runs" if number == best else "could run"
        code = sum(len(artifact.members[name]) for name in set(build.code))
        targets.append({**asdict(build.target), "kernels": len(build.kernels), "code_bytes": code, "here": here})
    rows = [
        (level_of(t["features"]) or t["name"], t["triple"], t["kernels"], format_bytes(t["code_bytes"]), t["here"])
        for t in targets
    ]
    out.table(["target", "system", ">kernels", ">code", "here"], rows)
    return targets


def print_kernels(artifact: Artifact, entry: EntryRecord, out: Output) -> None:
    """The kernels of an entry in order of work."""
    rows = [
        (
            k.name,
            k.count or "prepared",
            f"{count(k.flops)}FLOP",
            format_bytes(k.bytes),
            ", ".join(map(str, k.lines[:2])),
        )
        for k in sorted(kernel_infos(artifact, entry), key=lambda k: -k.flops)
    ]
    columns = ["kernel", ">launches", ">work", ">traffic", "from"]
    out.table(columns, rows, title=f"{entry.name}: {len(entry.steps)} kernels in order of work")


def write_report(path: str | None, artifact: Artifact, out: Output) -> None:
    """Write the page of ``--report``, if one is wanted. Raises GC0610."""
    if path is None:
        return
    from graphc.report.page import page

    try:
        Path(path).write_text(page(shown(artifact)), encoding="utf-8")
    except OSError as e:
        raise error("GC0610", f"cannot write {path}: {e.strerror}") from None
    out.line(f"report: {path}")
