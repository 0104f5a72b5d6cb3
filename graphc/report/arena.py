"""The arena over time as a picture: a box per tensor, launches from left to right, bytes from bottom to top."""

from __future__ import annotations

from html import escape

from graphc.artifact_records import EntryRecord, TensorRecord
from graphc.runtime_memory import format_bytes

__all__ = ["arena_picture"]

WIDTH, HEIGHT = 1000.0, 380.0
LEFT, TOP, BOTTOM = 80.0, 14.0, 30.0


def arena_picture(entry: EntryRecord) -> str:
    """SVG text. Inputs live from before the first launch, outputs to after the last."""
    steps = len(entry.launches) + 2
    total = max(entry.arena_bytes, 1)
    wide = (WIDTH - LEFT) / steps
    high = (HEIGHT - TOP - BOTTOM) / total
    floor = HEIGHT - BOTTOM
    boxes = [
        f'<rect class="tensor" x="{LEFT + (t.start + 1) * wide:.2f}" y="{floor - (t.offset + t.nbytes) * high:.2f}" '
        f'width="{max((t.end - t.start + 1) * wide, 0.6):.2f}" height="{max(t.nbytes * high, 0.3):.2f}" '
        f'fill="hsl({_hue(t)} 55% 55%)"><title>{_describe(t)}</title></rect>'
        for t in sorted(entry.tensors, key=lambda t: -t.nbytes)
    ]
    bound = floor - entry.lower_bound_bytes * high
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="the arena over time">{"".join(boxes)}'
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{bound:.2f}" y2="{bound:.2f}" stroke="currentColor" '
        f'stroke-dasharray="4 4" opacity=".5"><title>largest live set {entry.lower_bound_bytes:,} bytes</title></line>'
        f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{format_bytes(entry.arena_bytes)}</text>'
        f'<text x="{LEFT - 6}" y="{floor:.0f}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 10}">first launch</text>'
        f'<text x="{WIDTH - 6}" y="{HEIGHT - 10}" text-anchor="end">launch {len(entry.launches)}</text></svg>'
    )


def _hue(tensor: TensorRecord) -> int:
    """Tensors of one line share a colour."""
    return sum(map(ord, str(tensor.loc or tensor.name))) * 47 % 360


def _describe(tensor: TensorRecord) -> str:
    where = f" from {tensor.loc}" if tensor.loc else ""
    span = f"launches {tensor.start} to {tensor.end}"
    return escape(f"{tensor.name}: {tensor.nbytes:,} bytes at {tensor.offset:,}, {span}{where}")
