"""The launch table of an entry in memory: records that the native team walks, and the words that they point to.

A record is four words: kernel, address of its words, 1 if a barrier comes before it, kind. The kinds:

    CALL    runs the kernel; its words are its arguments
    REPEAT  ends a loop of a known number of iterations. Words: iterations left, iterations in all, records back to the
            first of the loop, number of moving arguments, and for each the distance of its word from these in bytes,
            and by how many bytes it moves with each iteration
    BRANCH  goes on with the next record if the byte at an address is not 0. Words: the address (0: never), else by how
            many records to jump

Words in loops change while the loop runs, so each thread has words of its own where an entry has loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from graphc.artifact_records import ARENA, EntryRecord, SpanRecord

__all__ = ["PREPARED", "LaunchTable"]

PREPARED = -1  # the space of the part of the arena that an entry keeps between steps: here it is a block of its own
CALL, REPEAT, BRANCH = range(3)
LINE = 8  # words of a cache line


class LaunchTable:
    """``records`` ([n, 4] int64) and ``words`` ([threads, m] int64, one row for all where no words change);
    ``positions`` are the records of the launches. ``prepared`` are those that need not run in every step; those before
    ``cut`` write no state: there the rest is cut into ``parts``, if there is anything to check before."""

    def __init__(self, entry: EntryRecord, kernels: Sequence[int], base: Mapping[int, int], threads: int):
        self._entry, self._kernels, self._base = entry, kernels, base
        self._records: list[tuple[int, int, bool, int]] = []  # words by number until their address is known
        self._words: list[int] = []
        self._where: list[int] = []  # of each launch, its first word
        self.positions = np.zeros(len(entry.launches), np.int64)
        everything = list(enumerate(entry.spans))
        self._walk(0, entry.commit, everything)
        self.cut = len(self._records)
        self._walk(entry.commit, len(entry.launches), everything)
        width = -(-max(len(self._words), 1) // LINE) * LINE
        self.words = np.zeros((threads if entry.spans else 1, width), np.int64)
        self.words[:, : len(self._words)] = self._words
        start = self.words.ctypes.data
        rows = [(kernel, start + 8 * at, int(meet), kind) for kernel, at, meet, kind in self._records]
        self.records = np.array(rows, np.int64).reshape(-1, 4)
        first = entry.prepared  # a record each: they are in no span
        self.prepared = slice(0, first)
        ends = sorted({first, self.cut if entry.checks else first, len(rows)})
        self.parts = [slice(a, b) for a, b in pairwise(ends)]

    @property
    def stride(self) -> int:
        """Bytes from one thread's words to the next's."""
        return self.words.strides[0] if len(self.words) > 1 else 0

    def _walk(self, start: int, stop: int, spans: list[tuple[int, SpanRecord]]) -> None:
        """The records of launches ``start`` .. ``stop`` and of the ``spans`` among them."""
        at = start
        while at < stop:
            here = [(i, s) for i, s in spans if s.start == at and s.stop <= stop]
            if not here:
                self._call(at)
                at += 1
                continue
            number, span = here[-1]  # the outermost comes last
            inside = [(i, s) for i, s in spans if i < number and span.start <= s.start and s.stop <= span.stop]
            {"repeat": self._repeat, "while": self._while, "cond": self._cond}[span.kind](span, inside)
            at = span.stop

    def _emit(self, kind: int, words: Sequence[int], kernel: int = 0, barrier: bool = False) -> None:
        self._records.append((kernel, len(self._words), barrier, kind))
        self._words += words

    def _call(self, number: int) -> None:
        launch = self._entry.launches[number]
        self.positions[number] = len(self._records)
        self._where.append(len(self._words))
        words = [self._word(space, where) for space, where, _ in launch.args]
        self._emit(CALL, words, self._kernels[launch.kernel], launch.barrier)

    def _repeat(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        first = len(self._records)
        self._walk(span.start, span.stop, inside)
        here = len(self._words)
        words = [span.count, span.count, first - len(self._records), len(span.steps)]
        for launch, arg, stride in span.steps:
            words += [8 * (self._where[launch] + arg - here), stride]
        self._emit(REPEAT, words)

    def _while(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        first = len(self._records)
        self._walk(span.start, span.middle, inside)
        out = self._branch(span)
        self._walk(span.middle, span.stop, inside)
        self._emit(BRANCH, [0, first - len(self._records)])
        self._land(out)

    def _cond(self, span: SpanRecord, inside: list[tuple[int, SpanRecord]]) -> None:
        other = self._branch(span)
        self._walk(span.start, span.middle, inside)
        end = len(self._records)
        self._emit(BRANCH, [0, 0])
        self._land(other)
        self._walk(span.middle, span.stop, inside)
        self._land(end)

    def _branch(self, span: SpanRecord) -> int:
        """The record that reads the test; its number."""
        assert span.test is not None
        space, where, _ = span.test
        self._emit(BRANCH, [self._word(space, where), 0], barrier=span.barrier)
        return len(self._records) - 1

    def _word(self, space: int, where: int) -> int:
        kept = space == ARENA and where < self._entry.prepared_bytes
        return self._base[PREPARED if kept else space] + where

    def _land(self, branch: int) -> None:
        """Let record ``branch`` jump to the next record."""
        self._words[self._records[branch][1] + 1] = len(self._records) - branch
