"""Memory: offsets in one arena for tensors whose lifetimes are known.

Dynamic storage allocation is NP-hard; graphs of training steps are kind to it. Every order of greedy placement is a
valid plan, so several orders are tried and the smallest arena is kept:

- placement: each tensor goes into the lowest or the tightest gap between the tensors already placed that live at the
  same time (greedy first and best fit; see Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
  Inference", arXiv 2001.03288), else above them;
- orders: those alive at the fullest launch first (they must fit without a gap), by size, by lifetime, by start;
- improvement: in the best few, what sticks out above the lower bound, or some of it, moves forward, and those from
  there on are placed again;
- small tensors come last: they fit between the large ones, and the search goes on without them.

The lower bound is the largest live set: the most bytes that are alive at one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count, product
from math import inf
from random import Random

import numpy as np

from graphc.errors import Loc

__all__ = ["ALIGN", "Lifetime", "MemoryPlan", "Placed", "largest_live_set", "plan_memory", "with_prepared"]

ALIGN = 64  # bytes: one cache line, one AVX-512 vector
_WORK = 45_000  # placements that the search may spend: well under a second, and the same plan on every machine
_BEST = 3  # plans that are improved in turn: any one may get stuck
_SMALL = 1 / 2048  # of the lower bound


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A tensor of ``nbytes`` that holds its value during launches ``start`` .. ``end``, both included.

    Inputs start at -1 (copied in before the first launch), outputs end at the number of launches. ``away`` are runs of
    launches in between, in order and apart, where nobody needs it: the way of a branch that does not read it, or has
    not written it yet."""

    name: str
    nbytes: int
    start: int
    end: int
    loc: Loc | None = None
    away: tuple[tuple[int, int], ...] = ()

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """The runs of launches, first and last, in which the tensor holds its value."""
        firsts = [self.start, *(last + 1 for _, last in self.away)]
        lasts = [*(first - 1 for first, _ in self.away), self.end]
        return list(zip(firsts, lasts, strict=True))


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor in its place: ``offset`` in bytes from the start of the arena, a multiple of `ALIGN`."""

    life: Lifetime
    offset: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where each tensor lives. ``arena_bytes`` is the end of the last one, ``lower_bound_bytes`` the largest live set:
    no plan with these lifetimes is smaller. The first ``prepared_bytes`` are kept between steps."""

    placed: tuple[Placed, ...]
    arena_bytes: int
    lower_bound_bytes: int
    prepared_bytes: int = 0

    @property
    def offsets(self) -> dict[str, int]:
        return {p.life.name: p.offset for p in self.placed}

    def __str__(self) -> str:
        over = self.arena_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes else 0.0
        rows = [
            f"arena {self.arena_bytes:,} bytes, largest live set {self.lower_bound_bytes:,} ({over:.2%} above)",
            f"{'bytes':>14} {'offset':>14} {'launches':>12}  tensor",
        ]
        for p in sorted(self.placed, key=lambda p: (-p.life.nbytes, p.offset)):
            life = p.life
            where = f" at {life.loc}" if life.loc else ""
            rows.append(f"{life.nbytes:>14,} {p.offset:>14,} {f'{life.start}..{life.end}':>12}  {life.name}{where}")
        return "\n".join(rows)


def plan_memory(lifetimes: Sequence[Lifetime], seed: int = 0) -> MemoryPlan:
    """Choose offsets. Before: names are unique, ``start <= end``. After: tensors alive at the same launch are apart.
    ``seed``: of the numbers that the search draws; equal lifetimes and seeds give equal plans.

    Example: a (64 bytes, launches 0..1), b (64, 1..2), c (64, 2..3): a at 0, b at 64, c at 0; arena 128.
    """
    search = _Search(lifetimes, seed)
    best = search.run() if lifetimes else np.zeros(0, np.int64)
    end = max((int(o) + life.nbytes for o, life in zip(best, lifetimes, strict=True)), default=0)
    placed = tuple(Placed(life, int(o)) for life, o in zip(lifetimes, best, strict=True))
    return MemoryPlan(placed, end, largest_live_set(lifetimes))


def with_prepared(plan: MemoryPlan, kept: Sequence[Lifetime]) -> MemoryPlan:
    """``plan`` behind the tensors ``kept``, which lie one after the other and share memory with nothing."""
    placed, end = [], 0
    for life in kept:
        placed.append(Placed(life, end))
        end += -(-life.nbytes // ALIGN) * ALIGN
    moved = (Placed(p.life, p.offset + end) for p in plan.placed)
    return MemoryPlan((*placed, *moved), end + plan.arena_bytes, end + plan.lower_bound_bytes, end)


def largest_live_set(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes alive at one launch."""
    change: dict[int, int] = {}
    for life in lifetimes:
        for first, last in life.stretches:
            change[first] = change.get(first, 0) + life.nbytes
            change[last + 1] = change.get(last + 1, 0) - life.nbytes
    most = live = 0
    for when in sorted(change):
        live += change[when]
        most = max(most, live)
    return most


class _Fit(Enum):
    """Which of the gaps that hold a tensor it goes into."""

    LOWEST = "lowest"
    TIGHTEST = "tightest"


@dataclass
class _Trial:
    """What placing tensors in an order gives: their offsets, and the end of the highest."""

    order: list[int]
    fit: _Fit
    offsets: np.ndarray
    end: int


class _Search:
    """Tries orders until one is within 0.1 % of the bound or the work is spent."""

    def __init__(self, lifetimes: Sequence[Lifetime], seed: int):
        self.random = Random(seed)
        self.size = np.array([max(-(-life.nbytes // ALIGN), 1) * ALIGN for life in lifetimes], np.int64)
        self.start = np.array([life.start for life in lifetimes], np.int64)
        self.end = np.array([life.end for life in lifetimes], np.int64)
        padded = [replace(e, nbytes=int(s)) for e, s in zip(lifetimes, self.size, strict=True)]
        self.bound = largest_live_set(padded)
        self.enough = self.bound + self.bound // 1024
        self.apart = _apart(lifetimes)

    def run(self) -> np.ndarray:
        every = self._greedy(range(len(self.size)))
        if every[0].end <= self.enough:
            return every[0].offsets
        large = [i for i, size in enumerate(self.size) if size >= _SMALL * self.bound]
        small = sorted(set(range(len(self.size))).difference(large), key=lambda i: (-self.size[i], i))
        best = self._improved(self._greedy(large)[:_BEST])
        whole = self._place([*best.order, *small], best.fit, kept=len(large), before=best.offsets)
        return min(whole, every[0], key=lambda t: t.end).offsets

    def _greedy(self, tensors: Sequence[int]) -> list[_Trial]:
        """Some ways to place ``tensors``, the best first; those up to one that is good enough."""
        trials: list[_Trial] = []
        for fit, order in product(_Fit, self._orders(tensors)):
            trials.append(self._place(order, fit))
            if trials[-1].end <= self.enough:
                break
        return sorted(trials, key=lambda t: t.end)

    def _orders(self, tensors: Sequence[int]) -> list[list[int]]:
        span = self.end - self.start + 1
        load = self._load()
        return [
            sorted(tensors, key=lambda i: (-load[i], -span[i], i)),
            sorted(tensors, key=lambda i: (-load[i], -self.size[i], i)),
            sorted(tensors, key=lambda i: (-self.size[i], -span[i], i)),
            sorted(tensors, key=lambda i: (-span[i] * self.size[i], i)),
            sorted(tensors, key=lambda i: (-span[i], -self.size[i], i)),
            sorted(tensors, key=lambda i: (self.start[i], -self.size[i], i)),
        ]

    def _load(self) -> list[int]:
        """For each tensor, the most bytes alive at a launch of its lifetime."""
        first, last = int(self.start.min()), int(self.end.max())
        change = np.zeros(last - first + 2, np.int64)
        np.add.at(change, self.start - first, self.size)
        np.add.at(change, self.end - first + 1, -self.size)
        live = np.cumsum(change)
        return [int(live[s - first : e - first + 1].max()) for s, e in zip(self.start, self.end, strict=True)]

    def _improved(self, trials: list[_Trial]) -> _Trial:
        """Change the ``trials`` in turn, and keep what does not get worse; the best one after all."""
        work = _WORK
        for turn in count():
            at = turn % len(trials)
            if work <= 0 or trials[at].end <= self.enough:
                break
            changed, kept = self._changed(trials[at], turn // len(trials))
            work -= len(changed.order) - kept
            if changed.end <= trials[at].end:
                trials[at] = changed
        return min(trials, key=lambda t: t.end)

    def _changed(self, trial: _Trial, turn: int) -> tuple[_Trial, int]:
        """``trial`` with what sticks out above the bound moved forward, and how many tensors keep their places: in turn
        all of it moves, what ends highest, and one tensor."""
        order, ends = trial.order, trial.offsets + self.size
        high = [k for k, i in enumerate(order) if ends[i] > self.bound]
        highest = [k for k in high if ends[order[k]] == trial.end]
        moved = (high, highest, [self.random.choice(high)])[turn % 3]
        rest = [i for k, i in enumerate(order) if k not in moved]
        at = self.random.randrange(moved[-1] + 2 - len(moved))
        changed, kept = [*rest[:at], *(order[k] for k in moved), *rest[at:]], min(at, moved[0])
        return self._place(changed, trial.fit, trial.end, kept, trial.offsets), kept

    def _place(
        self, order: list[int], fit: _Fit, limit: float = inf, kept: int = 0, before: np.ndarray | None = None
    ) -> _Trial:
        """Place the tensors in ``order``; unfinished where one ends above ``limit``. The first ``kept`` stay where they
        were ``before``."""
        offsets = np.zeros(len(self.size), np.int64)
        sorted_by_offset = np.zeros(len(order), np.int64)  # the first ``n`` are placed
        top = 0
        if before is not None and kept:
            placed = np.array(order[:kept], np.int64)
            offsets[placed] = before[placed]
            sorted_by_offset[:kept] = placed[np.argsort(offsets[placed], kind="stable")]
            top = int((offsets[placed] + self.size[placed]).max())
        for n, i in enumerate(order[kept:], kept):
            placed = sorted_by_offset[:n]
            alive = placed[(self.start[placed] <= self.end[i]) & (self.end[placed] >= self.start[i])]
            if i in self.apart:
                alive = alive[~self.apart[i][alive]]
            offsets[i] = at = _gap(offsets[alive], self.size[alive], int(self.size[i]), fit)
            top = max(top, at + int(self.size[i]))
            if top > limit:
                break
            here = int(offsets[placed].searchsorted(at))
            sorted_by_offset[here + 1 : n + 1] = sorted_by_offset[here:n].copy()
            sorted_by_offset[here] = i
        return _Trial(order, fit, offsets, top)


def _apart(lifetimes: Sequence[Lifetime]) -> dict[int, np.ndarray]:
    """For each tensor that is away at times, and those alive around it then: with which ones it is never alive."""
    spans = [(i, first, last) for i, life in enumerate(lifetimes) for first, last in life.stretches]
    owner, first, last = np.array(spans, np.int64).reshape(-1, 3).T
    found: dict[int, np.ndarray] = {}
    for i, life in enumerate(lifetimes):
        for start, end in life.stretches if life.away else ():
            mask = found.setdefault(i, np.ones(len(lifetimes), bool))
            mask[owner[(first <= end) & (last >= start)]] = False
    away = list(found)
    for i in range(len(lifetimes)) if away else ():
        if i not in found and (others := [k for k in away if found[k][i]]):
            found[i] = np.zeros(len(lifetimes), bool)
            found[i][others] = True
    return found


def _gap(offsets: np.ndarray, sizes: np.ndarray, size: int, fit: _Fit) -> int:
    """Where ``size`` bytes fit between tensors at sorted ``offsets``: the lowest or the smallest gap that holds them,
    else the end of the last."""
    if not len(offsets):
        return 0
    ends = np.maximum.accumulate(offsets + sizes)
    gaps = offsets - np.concatenate(([0], ends[:-1]))
    (fits,) = (gaps >= size).nonzero()
    if not len(fits):
        return int(ends[-1])
    chosen = fits[0] if fit is _Fit.LOWEST else fits[gaps[fits].argmin()]
    return int(ends[chosen - 1]) if chosen else 0
