"""Proof that a memory plan is sound, by running it on names instead of numbers.

The arena is simulated: each piece of it remembers which tensor was written there last. Walking the launches in order,
a read must find every piece of its tensor still owned by that tensor. So the proof needs no lifetimes and shares no
idea with the planner: whoever overwrites a tensor that is read later is caught at that read. Pieces are what lies
between neighbouring borders of tensors; no smaller ones can differ.

A loop is walked twice: the second time finds what the first has left, and a third would find the same. Where control
flow may go two ways, pieces that differ afterwards belong to nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphc.errors import error

__all__ = ["Access", "Branch", "Loop", "Walk", "check_memory"]

_ALIGN = 64
_NOBODY = -1  # owner of a piece that one way through the launches wrote and another did not


@dataclass(frozen=True, slots=True)
class Access:
    """What one launch does: names of the arena tensors that it reads and writes, whole or in part."""

    label: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """``test`` runs, then ``body`` and ``test`` again and again; at least once if ``runs``. Each iteration writes a
    part of the tensors ``stacked`` and must find the parts of those before."""

    test: Walk
    body: Walk
    runs: bool
    stacked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Branch:
    """``one`` runs, or ``other``."""

    one: Walk
    other: Walk


Walk = Sequence["Access | Loop | Branch"]


def check_memory(
    places: Mapping[str, tuple[int, int]],
    arena_bytes: int,
    inputs: Iterable[str],
    accesses: Walk,
    outputs: Iterable[str],
) -> None:
    """Raise GC0008 unless the plan is sound.

    ``places`` maps a tensor to (offset, nbytes). Sound means: every tensor is inside the arena and aligned; tensors
    touched by one launch are apart; every read, and every output at the end, finds what was written.
    """
    arena = _Arena(places, arena_bytes)
    for name in inputs:
        arena.write(name, "the inputs")
    arena.walk(accesses)
    for name in outputs:
        arena.read(name, "the outputs")


class _Arena:
    def __init__(self, places: Mapping[str, tuple[int, int]], arena_bytes: int):
        for name, (offset, nbytes) in places.items():
            if offset < 0 or offset % _ALIGN or offset + nbytes > arena_bytes:
                raise _unsound(f"tensor {name} is at {offset} with {nbytes} bytes in an arena of {arena_bytes}")
        self.number = {name: i for i, name in enumerate(places, 1)}
        borders = sorted({border for at, size in places.values() for border in (at, at + size)})
        piece = {border: i for i, border in enumerate(borders)}
        self.span = {name: slice(piece[at], piece[at + size]) for name, (at, size) in places.items()}
        self.owner = np.zeros(len(borders), np.int32)  # 0: nobody wrote here yet
        self.growing: frozenset[str] = frozenset()

    def walk(self, steps: Walk) -> None:
        for step in steps:
            match step:
                case Loop():
                    self.loop(step)
                case Branch():
                    before = self.owner.copy()
                    self.walk(step.one)
                    one, self.owner = self.owner, before
                    self.walk(step.other)
                    self.agree(one)
                case Access():
                    self.access(step)

    def loop(self, loop: Loop) -> None:
        self.walk(loop.test)
        skipped, outside = self.owner.copy(), self.growing
        for growing in (outside, outside | loop.stacked):
            self.growing = growing
            self.walk(loop.body)
            self.walk(loop.test)
        self.growing = outside
        if not loop.runs:
            self.agree(skipped)

    def agree(self, other: np.ndarray) -> None:
        """Pieces that belong to another tensor on the ``other`` way here belong to nobody."""
        self.owner[self.owner != other] = _NOBODY

    def access(self, access: Access) -> None:
        self.apart({*access.reads, *access.writes}, access.label)
        for name in (*access.reads, *self.growing.intersection(access.writes)):
            self.read(name, access.label)
        for name in access.writes:
            self.write(name, access.label)

    def apart(self, names: set[str], label: str) -> None:
        spans = sorted((self.span[name].start, self.span[name].stop, name) for name in names)
        for (_, stop, one), (start, _, other) in pairwise(spans):
            if start < stop:
                raise _unsound(f"{label} uses {one} and {other}, which share memory")

    def read(self, name: str, label: str) -> None:
        held = self.owner[self.span[name]]
        if (held != self.number[name]).any():
            other = int(held[held != self.number[name]][0])
            names = {i: f"{n} has overwritten it" for n, i in self.number.items()}
            what = {0: "nothing has written it", _NOBODY: "not every way there has written it", **names}[other]
            raise _unsound(f"{label} reads {name}, but {what}")

    def write(self, name: str, label: str) -> None:
        self.owner[self.span[name]] = self.number[name]


def _unsound(message: str) -> Exception:
    return error("GC0008", message, hint="This is a defect in graphc, not in your model. Please report it.")
