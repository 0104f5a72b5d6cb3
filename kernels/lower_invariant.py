"""Launches of a loop whose operands are the same in every iteration run once, before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Arg, Launch

__all__ = ["hoist"]


def hoist(
    ctx: LowerContext, start: int, middle: int, shared: Collection[str], rows: Collection[str] = ()
) -> tuple[int, int]:
    """Reorder the launches from ``start`` on, those of a loop, so that what need not be repeated comes first; returns
    where the loop starts then, and where its ``middle`` is.

    ``shared`` are buffers that the loop shares with what is around it and writes (carries, stacks, the test of a
    while); ``rows`` stand for rows that move with the iteration. A launch moves if all that it reads is written by no
    other launch of the loop, or by one that moves, and if nothing else writes what it writes. Those inside of inner
    loops and branches stay, and so do those that check indices: they may not be reached.
    """
    stop = len(ctx.launches)
    inner = {i for span in ctx.spans if span.start >= start for i in range(span.start, span.stop)}
    writers: dict[str, set[int]] = {}
    for i in range(start, stop):
        for arg in ctx.launches[i].args:
            if arg.buffer is not None and arg.writes:
                writers.setdefault(arg.buffer.name, set()).add(i)
    early: dict[int, Launch] = {}

    def fixed(arg: Arg, number: int) -> bool:
        buffer = arg.buffer
        if buffer is None:
            return True
        if buffer.space == "flags" or buffer.name in rows:
            return False
        makers = writers.get(buffer.name, set())
        own = buffer.space == "arena" and buffer.name not in shared and makers == {number}
        return own if arg.writes else makers <= early.keys()

    for i in range(start, stop):
        launch = ctx.launches[i]
        if i not in inner and all(fixed(arg, i) and not (arg.reads and arg.writes) for arg in launch.args):
            early[i] = launch
    if not early:
        return start, middle
    late = [ctx.launches[i] for i in range(start, stop) if i not in early]
    ctx.launches[start:] = [*early.values(), *late]

    def moved(border: int) -> int:
        return start + len(early) + sum(i not in early for i in range(start, border))

    for k, span in enumerate(ctx.spans):
        if span.start >= start:
            steps = tuple((moved(launch), arg, stride) for launch, arg, stride in span.steps)
            start_now, middle_now, stop_now = (moved(border) for border in (span.start, span.middle, span.stop))
            ctx.spans[k] = replace(span, start=start_now, middle=middle_now, stop=stop_now, steps=steps)
    return moved(start), moved(middle)
