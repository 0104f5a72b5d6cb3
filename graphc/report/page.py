"""The page of ``--report``: one HTML file that needs nothing else and shows all that the compiler did.

Everything comes from the artifact: the passes are run again on the graph that it holds.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from importlib.resources import files
from string import Template

from graphc.artifact import Artifact
from graphc.artifact_records import EntryRecord
from graphc.cli_output import count
from graphc.cli_plan import SIZES, entry_summary
from graphc.config import settings
from graphc.errors import Loc
from graphc.ir import Graph
from graphc.machine import Peaks, measure
from graphc.passes import pipeline
from graphc.report.arena import arena_picture
from graphc.report.roofline import roofline_picture
from graphc.runtime import KernelInfo, kernel_infos
from graphc.runtime_memory import MemoryReport, format_bytes
from graphc.text import parse, print_graph

__all__ = ["page"]


def page(artifact: Artifact) -> str:
    """The HTML text of the report on an artifact."""
    manifest = artifact.manifest
    threads = settings().threads
    peaks = measure(threads)
    names = [e.name for e in manifest.entries]
    tabs = [
        f'<button role="tab" data-section="{escape(n)}" aria-selected="{str(i == 0).lower()}">{escape(n)}</button>'
        for i, n in enumerate(names)
    ]
    sections = [
        f'<section id="{escape(e.name)}"{"" if i == 0 else " hidden"}>{_entry(artifact, e, peaks)}</section>'
        for i, e in enumerate(manifest.entries)
    ]
    origin, target = manifest.provenance, manifest.target
    template = Template(files("graphc.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title="graphc: " + escape(", ".join(names)),
        subtitle=escape(
            f"graphc {origin.graphc}, numba {origin.numba}, LLVM {origin.llvm}; for {target.triple} with "
            f"{target.vector_bytes}-byte vectors; this machine at best, {threads} threads: {peaks}"
        ),
        summary=_summary(artifact, threads, peaks),
        tabs="".join(tabs),
        sections="\n".join(sections),
    )


def _summary(artifact: Artifact, threads: int, peaks: Peaks) -> str:
    rows = []
    for e in artifact.manifest.entries:
        s = entry_summary(artifact, e, threads)
        best = sum(peaks.seconds(launch.flops, launch.bytes) for launch in e.steps)
        sizes = [format_bytes(s[k]) for k in SIZES]
        rows.append(
            [e.name, str(s["kernels"]), *sizes, f"{count(s['flops'])}FLOP", format_bytes(s["bytes"]), _time(best)]
        )
    head = ["entry", "kernels", *SIZES.values(), "work", "traffic", "at best"]
    return _table(head, rows, left=1)


def _entry(artifact: Artifact, entry: EntryRecord, peaks: Peaks) -> str:
    kernels = kernel_infos(artifact, entry)
    running = [k for k in kernels if k.count]
    memory = MemoryReport.of(entry, artifact.manifest, peaks.threads)
    return "\n".join(
        [
            "<h2>Passes</h2>",
            '<p class="note">The graph as traced and after each pass; the counts are nodes, without those inside of '
            "calls.</p>",
            *_passes(parse(artifact.text(entry.graph))),
            "<h2>Memory</h2>",
            f'<p class="note">{escape(str(memory).splitlines()[0])}. Each box is a tensor: how long it lives from '
            "left to right (launches), where it lies from bottom to top (bytes). Point at one to see its name.</p>",
            arena_picture(entry),
            "<h2>Roofline</h2>",
            '<p class="note">How fast each kernel could run at best on this machine: the rising line is the speed of '
            "memory, the flat one that of arithmetic. The larger a dot, the larger its part of the step.</p>",
            roofline_picture(running, peaks),
            _table(*_roofline_table(running, peaks), left=1),
            "<h2>Kernels</h2>",
            '<p class="note">In order of first launch; your lines on the left, what was made of them on the right.</p>',
            *[_kernel(k) for k in kernels],
        ]
    )


def _passes(graph: Graph) -> list[str]:
    parts = [_graph("as traced", "", graph, 0.0, None)]
    does = {p.name: p.does for p in pipeline.PIPELINE}
    pipeline.run(
        graph,
        observe=lambda name, before, after, seconds: parts.append(_graph(name, does[name], after, seconds, before)),
    )
    return parts


def _graph(name: str, does: str, graph: Graph, seconds: float, before: Graph | None) -> str:
    nodes = f"{len(graph.nodes)} nodes" if before is None else f"{len(before.nodes)} → {len(graph.nodes)} nodes"
    change = "" if before is None else _difference(before, graph)
    time = f", {_time(seconds)}" if before is not None else ""
    return (
        f'<details><summary><b>{escape(name)}</b> <span class="dim">{escape(does)}</span>'
        f'<span class="right">{nodes}{time}</span></summary>'
        f'<p class="note">{escape(change)}</p><pre>{escape(print_graph(graph))}</pre></details>'
    )


def _difference(before: Graph, after: Graph) -> str:
    """Which ops became more or fewer, the largest changes first."""
    was, now = Counter(n.op for n in before), Counter(n.op for n in after)
    change = {op: now[op] - was[op] for op in sorted(was | now) if now[op] != was[op]}
    largest = sorted(change.items(), key=lambda item: -abs(item[1]))
    return ", ".join(f"{op} {by:+d}" for op, by in largest) or ("no change" if before == after else "rearranged")


def _kernel(kernel: KernelInfo) -> str:
    often = f"{kernel.count} × launched" if kernel.count else f"{kernel.prepared} × prepared"
    work = f"{often}, {count(kernel.flops)}FLOP, {format_bytes(kernel.bytes)}"
    return (
        f'<details><summary><b>{escape(kernel.name)}</b> <span class="dim">{escape(kernel.doc)}</span>'
        f'<span class="right">{work}</span></summary><div class="two"><pre>{_lines(kernel.lines)}</pre>'
        f"<pre>{escape(kernel.source)}</pre></div></details>"
    )


def _lines(locs: tuple[Loc, ...]) -> str:
    """The user's lines, by file and number, with their text where the file is at hand."""
    parts = []
    for file in dict.fromkeys(loc.file for loc in locs):
        parts.append(f'<span class="dim">{escape(file)}</span>')
        for loc in sorted({loc for loc in locs if loc.file == file}, key=lambda loc: loc.line):
            parts.append(f'<span class="dim">{loc.line:>5}</span>  {escape(loc.source())}')
    return "\n".join(parts) or '<span class="dim">made by the compiler</span>'


def _roofline_table(kernels: list[KernelInfo], peaks: Peaks) -> tuple[list[str], list[list[str]]]:
    best = {k.symbol: peaks.kernel_seconds(k) for k in kernels}
    total = sum(best.values()) or 1.0
    rows = [
        [
            k.name,
            str(k.count),
            f"{count(k.flops)}FLOP",
            format_bytes(k.bytes),
            f"{k.flops / k.bytes:.2f}" if k.bytes else "",
            "arithmetic" if k.flops / peaks.flops >= best[k.symbol] else "memory",
            _time(best[k.symbol]),
            f"{best[k.symbol] / total:.1%}",
        ]
        for k in sorted(kernels, key=lambda k: -best[k.symbol])
    ]
    return ["kernel", "launches", "work", "traffic", "FLOP/byte", "bound by", "at best", "of the step"], rows


def _table(head: list[str], rows: list[list[str]], left: int) -> str:
    """A table whose first ``left`` columns are text and the others numbers."""

    def cells(tag: str, values: list[str]) -> str:
        return "".join(f"<{tag}{'' if i < left else ' class=n'}>{escape(v)}</{tag}>" for i, v in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.1f} µs"
