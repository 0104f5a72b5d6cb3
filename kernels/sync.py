"""Barriers: where the threads of a step must wait for each other.

Threads walk the launches in order, each doing its part of every kernel. Two launches may overlap in time unless one
writes bytes that the other touches. A barrier before a launch separates it from all launches since the last barrier,
so one is needed exactly where the launch conflicts with one of those. Offsets must be final: tensors that share bytes
of the arena one after the other conflict as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Touch", "barriers"]


@dataclass(frozen=True, slots=True)
class Touch:
    """Bytes ``start`` .. ``stop`` of the memory called ``space`` that a launch reads or writes."""

    space: str
    start: int
    stop: int
    writes: bool


def barriers(launches: Sequence[Iterable[Touch]]) -> list[bool]:
    """For each launch, whether the threads meet before it. The first never needs one: nothing runs yet."""
    flags = []
    since: list[Touch] = []
    for touches in launches:
        here = list(touches)
        meet = any(_conflict(a, b) for a in here for b in since)
        flags.append(meet)
        since = here if meet else since + here
    return flags


def _conflict(a: Touch, b: Touch) -> bool:
    return a.space == b.space and (a.writes or b.writes) and a.start < b.stop and b.start < a.stop
