"""Fitting entries into a memory budget: plan, compute values again, plan again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from graphc.driver_link import lay_out_consts, plan_arena
from graphc.dtype import Shape
from graphc.ir import Graph
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower import lower
from graphc.kernels.plan import EntryPlan
from graphc.passes.memory import MemoryPlan
from graphc.passes.recompute import recompute
from graphc.passes.rematerialise import rematerialise
from graphc.passes.schedule import peak_bytes, schedule

__all__ = ["Planned", "Recomputed", "fit", "peak_beside_state", "plan"]

TRIES = 8  # plans made for one entry; the estimate of the pass is a few per cent from the real arena
NOTHING = 0  # a limit that no graph meets: compute again whatever helps


@dataclass(frozen=True)
class Planned:
    """An entry's last graph, its launches, and where its tensors lie."""

    graph: Graph
    plan: EntryPlan
    orders: Mapping[str, Shape]  # this and the next: see `graphc.kernels.lower.lower`
    others: bool = False

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_arena(self.plan)

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.plan.launches)


@dataclass(frozen=True)
class Recomputed:
    """What a memory budget costs an entry in every run: arithmetic that is done again, and launches."""

    flops: int
    share: float  # of the work without a budget
    launches: int

    @classmethod
    def between(cls, whole: Planned, fitted: Planned) -> Recomputed:
        more = fitted.flops - whole.flops
        return cls(more, more / max(whole.flops, 1), len(fitted.plan.launches) - len(whole.plan.launches))

    def __str__(self) -> str:
        return f"computes again to fit the budget: {self.launches} launches more, {self.share:.1%} more work"


Phase = Callable[[str], AbstractContextManager[None]]  # times what is done inside, under a name


def plan(
    graph: Graph,
    target: Target,
    phase: Phase,
    orders: Mapping[str, Shape],
    others: bool = False,
    prepared: bool = False,
) -> Planned:
    """The launches of a scheduled graph; its arena is planned when it is asked for. If ``prepared``, what depends on
    state alone is kept."""
    with phase("lower"):
        return Planned(graph, lower(graph, target, orders, others, prepared), orders, others)


def peak_beside_state(entries: Sequence[Planned], threads: int) -> int:
    """The largest peak of entries over one state, without that: what they all have prepared counts for each."""
    constants = lay_out_consts([p.plan for p in entries])[0].nbytes
    kept = sum(p.memory.prepared_bytes for p in entries)
    steps = (p.memory.arena_bytes - p.memory.prepared_bytes + p.plan.scratch_bytes * threads for p in entries)
    return constants + kept + max(steps, default=0)


def fit(whole: Planned, arena_bytes: int, target: Target, phase: Phase) -> Planned:
    """``whole`` with as much computed again as it takes to need at most ``arena_bytes``; if that cannot be reached,
    the smallest plan found.

    The pass counts bytes of values; kernels need temporaries beside them, and some results are written in place. So the
    limit that it is given is lowered by what the last plan was over, until the plan itself fits.
    """
    best = whole
    limit = peak_bytes(whole.graph) - (whole.memory.arena_bytes - arena_bytes)
    for _ in range(TRIES):
        if best.memory.arena_bytes <= arena_bytes:
            break
        with phase("rematerialise"):
            graph = recompute(schedule(rematerialise(whole.graph, max(limit, NOTHING))))
        found = plan(graph, target, phase, whole.orders, whole.others)
        if found.memory.arena_bytes < best.memory.arena_bytes:
            best = found
        if limit <= NOTHING:
            break
        over = found.memory.arena_bytes - arena_bytes
        limit = limit - over if peak_bytes(found.graph) <= limit else NOTHING
    return best
