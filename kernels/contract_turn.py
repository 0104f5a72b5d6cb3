"""Products whose right factor lies the wrong way round and would be packed by many tasks: it is turned once, before.

The gradient of a convolution's weight is one: each place in the window is a task that needs all of the cotangent,
with the channels last.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem
from graphc.loop import Affine, Operand, Role, Stmt

__all__ = ["Turn", "needs_turn"]

B = 1
LANES = 16  # columns that are turned at a time


def needs_turn(p: Problem) -> bool:
    """Whether b lies along k instead of n, in more than one piece, and several tasks read all of it."""
    readers = prod(axis.size for axis in p.outer if not axis.strides[B])
    return bool(p.k_outer) and p.k.strides[B] == 1 != p.n.strides[B] and readers > 1


class Turn:
    """One launch that copies ``b`` to ``y0`` as [outer, k_outer, k, n], and the problem that is left then."""

    def __init__(self, p: Problem, stored: Stored):
        self.p, self.stored = p, stored
        self.around = [*(axis for axis in p.outer if axis.strides[B]), *p.k_outer]
        self.shape = (*(axis.size for axis in self.around), p.k.size, p.n.size)

    @property
    def after(self) -> Problem:
        """The problem over the copy."""
        p = self.p
        below, new = p.k.size * p.n.size, {}
        for axis in reversed(self.around):
            new[id(axis)] = below
            below *= axis.size

        def turned(axis: Axis) -> Axis:
            return with_stride(axis, new.get(id(axis), 0))

        return replace(
            p,
            outer=tuple(map(turned, p.outer)),
            n=with_stride(p.n, 1),
            k_outer=tuple(map(turned, p.k_outer)),
            k=with_stride(p.k, p.n.size),
        )

    def body(self) -> tuple[Stmt, ...]:
        p, c = self.p, Code(self.stored.value, ("b", "y0"), {"b": self.stored})
        sizes = [("row", axis.size) for axis in self.around]
        with c.loop("task", 0, prod(size for _, size in sizes), role=Role.PARALLEL) as task:
            at = list(zip(c.unflatten(task, sizes), self.around, strict=True))
            source = place((i, axis.strides[B]) for i, axis in at)
            target = Affine.of(task, p.k.size * p.n.size)

            def columns(tile: Bound, count: int) -> None:
                into = Operand("y0", target + place([(tile, LANES)]), p.n.size)
                rows = Operand("b", source + place([(tile, LANES * p.n.strides[B])]), p.n.strides[B])
                c.transpose(into, rows, count, p.k.size)

            c.tiles(0, -(-p.n.size // LANES), p.n.size, LANES, columns)
        return tuple(c.out)


def with_stride(axis: Axis, stride: int) -> Axis:
    return Axis(axis.size, (axis.strides[0], stride, *axis.strides[2:]))
