"""Panels of a right factor that are packed by a launch of their own instead of by every task: once for many steps, if
it depends on state alone (`graphc.kernels.prepare`), or in each step for all tasks that would pack the same ones."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.contract_schedule import Schedule
from graphc.loop import Affine, Operand, Role, Stmt

__all__ = ["PackedAhead"]

B = 1


class PackedAhead:
    """The launch that copies ``b`` to ``y0`` as [outer…, panel, k_outer…, k, nr] for a product under schedule ``s``,
    and the problem that is left then: two panels of b are ``panel`` elements apart."""

    def __init__(self, p: Problem, s: Schedule, stored: Stored):
        self.p, self.s, self.stored = p, s, stored
        self.around = [axis for axis in p.outer if axis.strides[B]]
        self.panel = p.k_size * s.nr
        self.matrix = s.n_panels * self.panel

    @property
    def size(self) -> int:
        return prod(axis.size for axis in self.around) * self.matrix

    @property
    def after(self) -> Problem:
        """The problem over the copy."""
        p, below = self.p, self.s.nr
        k, below = with_b(p.k, below), below * p.k.size
        k_outer: list[Axis] = []
        for axis in reversed(p.k_outer):
            k_outer.insert(0, with_b(axis, below))
            below *= axis.size
        outer: list[Axis] = []
        below = self.matrix
        for axis in reversed(p.outer):
            outer.insert(0, with_b(axis, below if axis.strides[B] else 0))
            below *= axis.size if axis.strides[B] else 1
        return replace(p, outer=tuple(outer), n=with_b(p.n, 1), k_outer=tuple(k_outer), k=k)

    def body(self) -> tuple[Stmt, ...]:
        p, s, c = self.p, self.s, Code(self.stored.value, ("b", "y0"), {"b": self.stored})
        axes = [*self.around, *p.k_outer]
        sizes = [*(("outer", axis.size) for axis in self.around), ("panel", s.n_panels)]
        sizes += [("k_out", axis.size) for axis in p.k_outer]
        with c.loop("task", 0, prod(size for _, size in sizes), role=Role.PARALLEL) as task:
            found = c.unflatten(task, sizes)
            number = found.pop(len(self.around))
            source = place((i, axis.strides[B]) for i, axis in zip(found, axes, strict=True))
            target = Affine.of(task, p.k.size * s.nr)

            def columns(panel: Bound, count: int) -> None:
                start = source + place([(panel, s.nr * p.n.strides[B])])
                if p.k.strides[B] == 1 and p.n.strides[B] != 1:
                    c.transpose(Operand("y0", target, s.nr), Operand("b", start, p.n.strides[B]), count, p.k.size)
                    return
                with c.loop("k", 0, p.k.size) as k, c.lanes(0, count, unroll=2) as j:
                    value = c.load("b", start + place([(k, p.k.strides[B]), (j, p.n.strides[B])]))
                    c.store("y0", target + place([(k, s.nr), (j, 1)]), value)

            c.tiles(number, c.index("panel_end", "add", number, 1), p.n.size, s.nr, columns)
        return tuple(c.out)


def with_b(axis: Axis, stride: int) -> Axis:
    return Axis(axis.size, (axis.strides[0], stride, *axis.strides[2:]))
