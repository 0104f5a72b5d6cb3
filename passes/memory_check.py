"""Proof that a memory plan is sound, by running it on names instead of numbers.

The arena is simulated: each piece of it remembers which tensor was written there last. Walking the launches in order,
a read must find every piece of its tensor still owned by that tensor. So the proof needs no lifetimes and shares no
idea with the planner: whoever overwrites a tensor that is read later is caught at that read. Pieces are what lies
between neighbouring borders of tensors; no smaller ones can differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphc.errors import error

__all__ = ["Access", "check_memory"]

_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Access:
    """What one launch does: names of the arena tensors that it reads and writes, whole or in part."""

    label: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def check_memory(
    places: Mapping[str, tuple[int, int]],
    arena_bytes: int,
    inputs: Iterable[str],
    accesses: Sequence[Access],
    outputs: Iterable[str],
) -> None:
    """Raise GC0008 unless the plan is sound.

    ``places`` maps a tensor to (offset, nbytes). Sound means: every tensor is inside the arena and aligned; tensors
    touched by one launch are apart; every read, and every output at the end, finds what was written.
    """
    arena = _Arena(places, arena_bytes)
    for name in inputs:
        arena.write(name, "the inputs")
    for access in accesses:
        arena.apart({*access.reads, *access.writes}, access.label)
        for name in access.reads:
            arena.read(name, access.label)
        for name in access.writes:
            arena.write(name, access.label)
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

    def apart(self, names: set[str], label: str) -> None:
        spans = sorted((self.span[name].start, self.span[name].stop, name) for name in names)
        for (_, stop, one), (start, _, other) in pairwise(spans):
            if start < stop:
                raise _unsound(f"{label} uses {one} and {other}, which share memory")

    def read(self, name: str, label: str) -> None:
        held = self.owner[self.span[name]]
        if (held != self.number[name]).any():
            other = int(held[held != self.number[name]][0])
            by = next((n for n, i in self.number.items() if i == other), None)
            what = f"{by} has overwritten it" if by else "nothing has written it"
            raise _unsound(f"{label} reads {name}, but {what}")

    def write(self, name: str, label: str) -> None:
        self.owner[self.span[name]] = self.number[name]


def _unsound(message: str) -> Exception:
    return error("GC0008", message, hint="This is a defect in graphc, not in your model. Please report it.")
