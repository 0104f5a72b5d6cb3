"""The control flow of a plan as a tree: launches by number, and spans with the launches inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.kernels.plan import Span

__all__ = ["Nest", "Tree", "nested"]


@dataclass(frozen=True)
class Nest:
    """Span ``number``: what comes before and after its middle (all of a "repeat" comes after)."""

    span: Span
    number: int
    before: Tree
    after: Tree


Tree = tuple["int | Nest", ...]


def nested(launches: int, spans: Sequence[Span]) -> Tree:
    """The tree over launches 0 .. ``launches``; inner spans come before those around them in ``spans``."""
    outside = len(spans)
    parent = [outside] * len(spans)
    for i, inner in enumerate(spans):
        for j in range(i + 1, len(spans)):
            if spans[j].start <= inner.start and inner.stop <= spans[j].stop:
                parent[i] = j
                break

    def between(start: int, stop: int, around: int) -> Tree:
        inside = sorted((i for i, p in enumerate(parent) if p == around), key=lambda i: (spans[i].start, i))
        parts: list[int | Nest] = []
        at = start
        for i in inside:
            span = spans[i]
            if start <= span.start and span.stop <= stop and at <= span.start:
                parts += [*range(at, span.start), nest(i)]
                at = span.stop
        return (*parts, *range(at, stop))

    def nest(i: int) -> Nest:
        span = spans[i]
        return Nest(span, i, between(span.start, span.middle, i), between(span.middle, span.stop, i))

    return between(0, launches, outside)
