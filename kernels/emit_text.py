"""Pieces of text of generated kernels: numbers, names of types, line breaks, the header of a file."""

from __future__ import annotations

import textwrap
from pathlib import PurePath

from graphc.dtype import DType, bfloat16
from graphc.loop import Kernel

__all__ = ["decimal", "folded", "header", "short", "unwrap"]


def short(dtype: DType) -> str:
    """The short name of an element type in generated code: f32, bf16, i64, b1, …"""
    if dtype.kind == "b":
        return "b1"
    return ("b" if dtype == bfloat16 else "") + f"{dtype.kind}{8 * dtype.itemsize}"


def decimal(value: float, dtype: DType) -> str:
    """The shortest text that reads back as this ``dtype``, also by way of float64; "inf", "-inf" or "nan"."""
    exact = dtype.numpy.type(value)
    text = str(exact)
    return text if dtype.numpy.type(float(text)) == exact else repr(float(exact))


def folded(line: str, width: int = 110) -> list[str]:
    """The line in pieces of at most ``width`` columns where it has commas: they are inside parentheses, so a cut is
    safe in every language. The outermost comma that fits is cut at, so that the arguments of a call stay together."""
    indent = len(line) - len(line.lstrip()) + 8
    pieces = []
    while len(line) > width and (cut := _outermost_comma(line, indent, width)) is not None:
        pieces.append(line[: cut + 1])
        line = " " * indent + line[cut + 2 :]
    return [*pieces, line]


def _outermost_comma(line: str, first: int, last: int) -> int | None:
    """The last of the least nested commas before a space in ``line[first:last]``."""
    depth = 0
    found: dict[int, int] = {}  # nesting → place
    for i, ch in enumerate(line[:last]):
        depth += (ch in "([") - (ch in ")]")
        if i >= first and line.startswith(", ", i):
            found[depth] = i
    return found[min(found)] if found else None


def unwrap(text: str) -> str:
    """Without a pair of parentheses around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for i, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else text
    return text


def header(kernel: Kernel) -> str:
    """What a reader wants to know first: the kernel's name, what it does, and the user's lines."""
    lines = textwrap.wrap(kernel.name + (f": {kernel.doc}" if kernel.doc else ""), 110)
    lines += [""] * bool(kernel.lines) + [f"from {PurePath(loc.file).name}:{loc.line}" for loc in kernel.lines]
    return "\n".join(lines)
