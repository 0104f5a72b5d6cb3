"""What an entry computes of its state alone need not be computed in every step: those launches come first.

A launch is *prepared* if all that it reads is constant, state that the entry does not write, or the result of a
prepared launch: weights in panels, transformed filters, folded norms, casts. What prepared launches leave for the
others lies in memory of its own (the space "prepared"), which a step does not use for anything else. So they run again
only when state that they read has changed; and to run them in every step gives the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from graphc.kernels.plan import Arg, Buffer, EntryPlan, Launch, Span

__all__ = ["prepare"]

Key = tuple[str, str]


def prepare(plan: EntryPlan) -> EntryPlan:
    """``plan`` with prepared launches before all others, in their order; or as it is, if none reads state.

    Launches in loops and branches stay there, and so do those that check anything: they may not be reached."""
    early = _prepared(plan)
    if not any(a.buffer and a.buffer.space == "state" for i in early for a in plan.launches[i].args):
        return plan
    late = [i for i in range(len(plan.launches)) if i not in early]
    return _reordered(plan, sorted(early), late, _kept(plan, early, late))


def _key(buffer: Buffer) -> Key:
    return buffer.space, buffer.name


def _prepared(plan: EntryPlan) -> set[int]:
    """The numbers of the launches that can be prepared. One that writes what others write, too, cannot: its result is
    not there all the time. Neither can one that writes an output, which lies in the arena."""
    writers: dict[Key, set[int]] = {}
    for i, launch in enumerate(plan.launches):
        for arg in launch.args:
            if arg.buffer and arg.writes:
                writers.setdefault(_key(arg.buffer), set()).add(i)
    repeated = {i for span in plan.spans for i in range(span.start, span.stop)}
    ports = {_key(view.buffer) for _, view in (*plan.inputs, *plan.outputs)}
    early: set[int] = set()

    def fixed(arg: Arg, number: int) -> bool:
        if arg.buffer is None:
            return True
        in_arena, makers = arg.buffer.space == "arena", writers.get(_key(arg.buffer), set())
        if _key(arg.buffer) in ports or (in_arena and not makers):
            return False
        return in_arena and makers == {number} if arg.writes else makers <= early

    for i, launch in enumerate(plan.launches):
        if i not in repeated and all(fixed(arg, i) for arg in launch.args):
            early.add(i)
    return early


def _kept(plan: EntryPlan, early: Collection[int], late: Collection[int]) -> set[Key]:
    """What the ``early`` launches write and the ``late`` ones, or the tests of loops and branches, read."""
    written = {_key(a.buffer) for i in early for a in plan.launches[i].args if a.buffer and a.writes}
    used = [*(a for i in late for a in plan.launches[i].args), *(s.test for s in plan.spans if s.test)]
    return written & {_key(a.buffer) for a in used if a.buffer}


def _reordered(plan: EntryPlan, early: list[int], late: list[int], kept: Collection[Key]) -> EntryPlan:
    number = {old: new for new, old in enumerate([*early, *late])}

    def placed(arg: Arg) -> Arg:
        if arg.buffer is None or _key(arg.buffer) not in kept:
            return arg
        return replace(arg, buffer=replace(arg.buffer, space="prepared"))

    def moved(launch: Launch) -> Launch:
        return replace(launch, args=tuple(map(placed, launch.args)))

    def border(old: int) -> int:
        return len(early) + sum(i < old for i in late)

    def shifted(span: Span) -> Span:
        return replace(
            span,
            start=border(span.start),
            middle=border(span.middle),
            stop=border(span.stop),
            steps=tuple((number[launch], arg, stride) for launch, arg, stride in span.steps),
            test=placed(span.test) if span.test else None,
        )

    return replace(
        plan,
        launches=tuple(moved(plan.launches[i]) for i in number),
        spans=tuple(map(shifted, plan.spans)),
        prepared=len(early),
    )
