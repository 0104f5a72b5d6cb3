"""Charts as SVG text, without a plotting library: grouped bars and lines over a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, log2, log10

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 380, 64, 72, 48
COLOURS = {
    "graphc": "#0b5fa5", "torch": "#ee7733", "torch-compile": "#cc3311", "torch-max-autotune": "#882255",
    "torch-export": "#ddaa33", "torch-aoti": "#aa4499", "jax": "#44aa77", "jax-export": "#117733",
    "onnxruntime": "#999933", "openvino": "#66ccee", "roofline": "#666666",
    "gpu-graphc": "#0b5fa5", "gpu-graphc-own": "#77aadd", "gpu-torch": "#ee7733", "gpu-torch-compile": "#cc3311",
    "gpu-torch-max-autotune": "#882255", "gpu-jax": "#44aa77",
}  # fmt: skip


def text(x: float, y: float, content: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(content)}</text>'


def legend(names: Sequence[str]) -> list[str]:
    parts, x = [], float(LEFT)
    for name in names:
        parts.append(f'<rect x="{x:.0f}" y="40" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(text(x + 17, 50, name, "start"))
        x += 34 + 7 * len(name)
    return parts


def page(title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, ground, text(LEFT, 24, title, "start", 16), *parts, "</svg>\n"])


def across(y: float) -> str:
    return f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 16}" y2="{y:.1f}" stroke="#dddddd"/>'


def bars(title: str, groups: Mapping[str, Mapping[str, float]], top: float, label: str = "{:.0%}") -> str:
    """``groups``: name → system → value; the axis goes from 0 to ``top``."""
    inner, floor = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
    names = [n for n in COLOURS if any(n in g for g in groups.values())]
    parts = legend(names)
    for i in range(6):
        y = floor - inner * i / 5
        parts += [across(y), text(LEFT - 6, y + 4, label.format(top * i / 5), "end")]
    room = (WIDTH - LEFT - 16) / max(len(groups), 1)
    thick = room * 0.8 / max(len(names), 1)
    for i, (group, values) in enumerate(groups.items()):
        left = LEFT + room * (i + 0.1)
        parts.append(text(left + room * 0.4, floor + 18, group))
        for j, name in enumerate(names):
            if name in values:
                height = inner * min(values[name] / top, 1)
                box = f'x="{left + j * thick:.1f}" y="{floor - height:.1f}" width="{thick - 1:.1f}"'
                parts.append(f'<rect {box} height="{height:.1f}" fill="{COLOURS[name]}"/>')
    return page(title, parts)


def lines(title: str, axis: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """``series``: system → points (x, y); both axes are logarithmic, x in powers of two and y in powers of ten."""
    points = [p for s in series.values() for p in s]
    low_x, high_x = (log2(f(x for x, _ in points)) for f in (min, max))
    low, high = (f(log10(y) for _, y in points) for f in (min, max))
    bottom, top = low - 0.05, max(high + 0.05, low + 0.3)
    inner, floor = HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log2(x) - low_x) / max(high_x - low_x, 1)
        return LEFT + 20 + (WIDTH - LEFT - 60) * across, floor - inner * (log10(y) - bottom) / (top - bottom)

    parts = legend([n for n in COLOURS if n in series])
    for decade in range(ceil(bottom) - 1, ceil(top)):
        for value in (10.0**decade * m for m in (1, 2, 5)):
            if bottom <= log10(value) <= top:
                y = at(points[0][0], value)[1]
                parts += [across(y), text(LEFT - 6, y + 4, f"{value:g}", "end")]
    for x in sorted({x for x, _ in points}):
        parts.append(text(at(x, 10**bottom)[0], floor + 18, f"{x:g}"))
    parts.append(text(WIDTH / 2, HEIGHT - 10, axis))
    for name, values in series.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in values))
        dash = ' stroke-dasharray="6 4"' if name == "roofline" else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"{dash}/>')
    return page(title, parts)
