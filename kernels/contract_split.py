"""Products with a long sum and a small result (the gradient of a narrow layer): the sum is cut into parts.

Two launches: partial products, one per part of k, as if the part were an outer axis; then their sum, in order, with the
epilogue. The number of parts depends on shapes only, so the result does not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.dtype import DType
from graphc.kernels.contract_code import Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import Target
from graphc.loop import Affine, Role, Scratch, Stmt

__all__ = ["Sum", "k_parts", "partial_problem"]

FEW_TASKS = 4  # with at least as many independent tiles there is parallelism without cutting k
LEAST_DEPTH = 1024  # of a part: below, the partial results cost more than they bring
MOST_PARTS = 16


def k_parts(p: Problem, dtype: DType, target: Target) -> int:
    """Into how many equal parts to cut k; 1 for none."""
    mr, nr = target.tile(dtype)
    if p.outer_size * -(-p.m.size // mr) * -(-p.n.size // nr) >= FEW_TASKS:
        return 1
    sizes = [n for n in range(1, MOST_PARTS + 1) if p.k.size % n == 0 and p.k.size // n >= LEAST_DEPTH]
    return max(sizes, default=1)


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
    """The second launch: ``parts`` partial results in ``a`` become the sum, and then what follows per element."""

    p: Problem
    parts: int
    dtype: DType
    epilogue: Epilogue

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("row", self.dtype, self.p.n.size),)

    def body(self) -> tuple[Stmt, ...]:
        p, c = self.p, Code(self.dtype, ("a", "row"))
        rows = p.outer_size * p.m.size
        with c.loop("task", 0, rows, role=Role.PARALLEL) as task:
            *outer, m = c.unflatten(task, [*outer_sizes(p), ("m", p.m.size)])
            with c.lanes(0, p.n.size) as j:
                c.store("row", Affine.of(j), c.load("a", place([(task, p.n.size), (j, 1)])))
            with c.loop("part", 1, self.parts) as part, c.lanes(0, p.n.size) as j:
                more = c.load("a", place([(part, rows * p.n.size), (task, p.n.size), (j, 1)]))
                c.store("row", Affine.of(j), c.fn("add", c.load("row", Affine.of(j)), more))
            axes = [*zip(p.outer, outer, strict=True), (p.m, m)]
            finish_row(c, self.epilogue, axes, p.n, (0, p.n.size), ("row", Affine()))
        return tuple(c.out)
