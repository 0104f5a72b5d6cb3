"""Barriers: where the threads of a step must wait for each other.

Threads walk the launches in order, each doing its part of every kernel. Two launches may overlap in time unless one
writes bytes that the other touches. A barrier before a launch separates it from all launches since the last barrier,
so one is needed exactly where the launch conflicts with one of those. Offsets must be final: tensors that share bytes
of the arena one after the other conflict as well.

A loop starts each iteration behind a barrier, so that iterations need not be compared with each other. A branch is
decided behind a barrier if its test was written since the last one, so that all threads go the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphc.kernels.plan import Span
from graphc.kernels.spans import Nest, Tree, nested

__all__ = ["Barriers", "Touch", "barriers"]


@dataclass(frozen=True, slots=True)
class Touch:
    """Bytes ``start`` .. ``stop`` of the memory called ``space`` that a launch reads or writes."""

    space: str
    start: int
    stop: int
    writes: bool


@dataclass(frozen=True)
class Barriers:
    """Whether the threads meet before each launch, and before the test of each span is read."""

    launches: list[bool]
    tests: list[bool]


def barriers(
    launches: Sequence[Iterable[Touch]], spans: Sequence[Span] = (), tests: Sequence[Touch | None] = ()
) -> Barriers:
    """The barriers that a plan needs; ``tests`` are what deciding each span reads. The first launch of a plan never
    needs one: nothing runs yet."""
    walk = _Walk(
        [list(touches) for touches in launches], tests, Barriers([False] * len(launches), [False] * len(spans))
    )
    walk.tree(nested(len(launches), spans), [])
    return walk.found


@dataclass
class _Walk:
    launches: list[list[Touch]]
    tests: Sequence[Touch | None]
    found: Barriers

    def tree(self, tree: Tree, since: list[Touch], forced: bool = False) -> list[Touch]:
        """What was touched since the last barrier after ``tree``, given that before it; ``forced``: the first thing in
        it comes after a barrier, needed or not."""
        for part in tree:
            since = self.nest(part, since, forced) if isinstance(part, Nest) else self.launch(part, since, forced)
            forced = False
        return since

    def launch(self, number: int, since: list[Touch], forced: bool) -> list[Touch]:
        here = self.launches[number]
        meet = self.found.launches[number] = forced or _conflict(here, since)
        return here if meet else since + here

    def decide(self, number: int, since: list[Touch], forced: bool) -> list[Touch]:
        test = self.tests[number]
        here = [test] if test else []
        meet = self.found.tests[number] = forced or _conflict(here, since)
        return here if meet else since + here

    def nest(self, nest: Nest, since: list[Touch], forced: bool) -> list[Touch]:
        match nest.span.kind:
            case "repeat":
                return self.tree(nest.after, since, forced=True)
            case "while":
                decided = self.decide(nest.number, self.tree(nest.before, since, forced=True), False)
                self.tree(nest.after, decided)
                return decided  # the way out; the way back leads to a barrier
        decided = self.decide(nest.number, since, forced)
        return self.tree(nest.before, decided) + self.tree(nest.after, decided)


def _conflict(here: Sequence[Touch], since: Sequence[Touch]) -> bool:
    return any(_overlap(a, b) for a in here for b in since)


def _overlap(a: Touch, b: Touch) -> bool:
    return a.space == b.space and (a.writes or b.writes) and a.start < b.stop and b.start < a.stop
