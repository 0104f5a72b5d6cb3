"""Products with a long sum and a small result (the gradient of a narrow layer): the sum is cut into parts.

Two launches: partial products, one per part of k, as if the part were an outer axis; then their sum, in order, with the
epilogue. The number of parts depends on shapes only, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from graphc.dtype import DType
from graphc.kernels.contract_code import Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import LAUNCH, TEAMS, Target, choose, cost
from graphc.loop import Affine, Role, Scratch, Stmt, Var

__all__ = ["Sum", "addition", "k_parts", "partial_problem"]

LEAST_DEPTH = 512  # of a part: a block of k, for which a tile of a stays in the first level of cache
MOST_PARTS = 16
MOST_BYTES = 3 << 20  # of partial results: they stay in the second level of cache until they are added
ADD = 0.3  # cycles to add one element of a partial result
WORTH = 0.8  # of the cycles without parts: the model is not exact, and partial results take memory


def k_parts(p: Problem, dtype: DType, target: Target, copied: Collection[str] = (), words: DType | None = None) -> int:
    """Into how many equal parts to cut k: so many that each is about one block, if the cost model says that it pays;
    else 1. A small result leaves few tiles for which what is packed can be used again; cut along k, a task packs its
    part of both factors once."""

    def cycles(parts: int) -> float:
        """Summed over the sizes of teams, as `cost` is."""
        whole = p if parts == 1 else partial_problem(p, parts)
        added = 0.0 if parts == 1 else addition(size, parts)
        return cost(whole, choose(whole, dtype, target, copied, words)) + added

    size = p.outer_size * p.m.size * p.n.size
    most = min(MOST_PARTS, p.k.size // LEAST_DEPTH, MOST_BYTES // max(1, size * dtype.itemsize))
    parts = max((n for n in range(2, most + 1) if p.k.size % n == 0), default=1)
    return parts if parts > 1 and cycles(parts) < WORTH * cycles(1) else 1


def addition(size: int, parts: int) -> float:
    """The cost of the second launch, for results of ``size`` elements."""
    return sum(LAUNCH + ADD * (parts + 1) * size / team for team in TEAMS)


def partial_problem(p: Problem, parts: int) -> Problem:
    """The product of every part, into a contiguous array [parts, outer…, m, n]."""
    size = p.k.size // parts
    a, b = p.k.strides[:2]
    inner = p.m.size * p.n.size
    outer, below = [], inner
    for axis in reversed(p.outer):
        outer.append(Axis(axis.size, (*axis.strides[:2], below)))
        below *= axis.size
    part = Axis(parts, (a * size, b * size, below))
    m, n = Axis(p.m.size, (*p.m.strides[:2], p.n.size)), Axis(p.n.size, (*p.n.strides[:2], 1))
    k_outer = tuple(Axis(axis.size, (*axis.strides[:2], 0)) for axis in p.k_outer)
    return Problem((part, *reversed(outer)), m, n, k_outer, Axis(size, (a, b, 0)), p.swapped)


@dataclass
class Sum:
    """The second launch: ``parts`` partial results in ``a`` become the sum, and then what follows per element. A single
    one is the sum."""

    p: Problem
    parts: int
    dtype: DType
    epilogue: Epilogue

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("row", self.dtype, self.p.n.size),) if self.parts > 1 else ()

    def body(self) -> tuple[Stmt, ...]:
        p, c = self.p, Code(self.dtype, ("a", "row"))
        rows = p.outer_size * p.m.size
        with c.loop("task", 0, rows, role=Role.PARALLEL) as task:
            *outer, m = c.unflatten(task, [*outer_sizes(p), ("m", p.m.size)])
            axes = [*zip(p.outer, outer, strict=True), (p.m, m)]
            product = ("a", place([(task, p.n.size)]))
            if self.parts > 1:
                self.add(c, task, rows)
                product = ("row", Affine())
            finish_row(c, self.epilogue, axes, p.n, (0, p.n.size), product)
        return tuple(c.out)

    def add(self, c: Code, task: Var, rows: int) -> None:
        """The parts of row ``task``, one after the other, into ``row``."""
        n = self.p.n.size
        with c.lanes(0, n) as j:
            c.store("row", Affine.of(j), c.load("a", place([(task, n), (j, 1)])))
        with c.loop("part", 1, self.parts) as part, c.lanes(0, n) as j:
            more = c.load("a", place([(part, rows * n), (task, n), (j, 1)]))
            c.store("row", Affine.of(j), c.fn("add", c.load("row", Affine.of(j)), more))
