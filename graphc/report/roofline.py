"""The roofline of an entry as a picture: what each kernel could reach, by its arithmetic per byte."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10, sqrt

from graphc.cli_output import count
from graphc.machine import Peaks
from graphc.runtime import KernelInfo
from graphc.runtime_memory import format_bytes

__all__ = ["roofline_picture"]

WIDTH, HEIGHT = 1000.0, 380.0
LEFT, TOP, BOTTOM = 110.0, 16.0, 44.0
DASHED = ' stroke-dasharray="5 4"'


def roofline_picture(kernels: Sequence[KernelInfo], peaks: Peaks) -> str:
    """SVG text: intensity (FLOP/byte) and attainable speed (FLOP/s), both logarithmic. Kernels that do no arithmetic
    have no place in it."""
    dots = [(k, k.flops / k.bytes, peaks.kernel_seconds(k)) for k in kernels if k.flops and k.bytes]
    if not dots:
        return '<p class="note">No kernel of this entry does arithmetic.</p>'
    rates = [peaks.memory, peaks.levels[0][1]]  # of main memory and of the first cache
    ridge = peaks.flops / rates[0]
    low = floor(log10(min(*[i for _, i, _ in dots], ridge) / 1.5))
    high = ceil(log10(max(*[i for _, i, _ in dots], ridge) * 1.5))
    top, bottom = log10(peaks.flops * 2), log10(10.0**low * rates[0])
    total = sum(s for _, _, s in dots)

    def x(intensity: float) -> float:
        return LEFT + (log10(intensity) - low) / (high - low) * (WIDTH - LEFT - 20)

    def y(speed: float) -> float:
        return TOP + (top - log10(speed)) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    left, right = 10.0**low, 10.0**high
    parts = [
        f'<text x="{LEFT - 8}" y="{y(peaks.flops) + 4:.1f}" text-anchor="end">{count(peaks.flops)}FLOP/s</text>',
        f'<text x="{WIDTH - 20}" y="{HEIGHT - 6}" text-anchor="end">FLOP per byte of compulsory traffic</text>',
    ]
    for row, (rate, label, style) in enumerate(zip(rates, ("memory", "cache"), ("", DASHED), strict=True)):
        stroke = f'fill="none" stroke="var(--accent)" stroke-width="2"{style}'
        bend = min(max(peaks.flops / rate, left), right)
        points = [(left, min(left * rate, peaks.flops)), (bend, peaks.flops), (right, peaks.flops)]
        parts.append(f'<polyline points="{" ".join(f"{x(i):.1f},{y(s):.1f}" for i, s in points)}" {stroke}/>')
        at = TOP + 24 + 20 * row  # the key
        parts.append(f'<path d="M {LEFT + 20} {at - 4} h 34" {stroke}/>')
        parts.append(f'<text x="{LEFT + 62}" y="{at}">{label}, {count(rate)}B/s</text>')
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--line)"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{10.0**power:g}</text>')
    for kernel, intensity, seconds in sorted(dots, key=lambda d: -d[2]):
        speed = kernel.flops / seconds
        text = f"{kernel.name}: {count(kernel.flops)}FLOP, {format_bytes(kernel.bytes)}, at best {seconds * 1e6:.1f} µs"
        radius = 3 + 26 * sqrt(seconds / total)
        parts.append(
            f'<circle cx="{x(intensity):.1f}" cy="{y(speed):.1f}" r="{radius:.1f}" fill="var(--warm)" '
            f'fill-opacity=".55"><title>{escape(text)}</title></circle>'
        )
    return f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="roofline">{"".join(parts)}</svg>'
