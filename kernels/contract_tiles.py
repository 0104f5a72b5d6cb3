"""Contractions for machines on which many threads share a unit of work: a task is one tile of the result.

Nothing is packed: a block product brings what it needs of both factors to shared memory itself, wherever they lie
(`BlockProduct`). Its sums land in scratch memory, and the epilogue takes them from there row by row. A result of few
tiles is cut along k, as in `graphc.kernels.contract_split`, so that every processor has one.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import Target
from graphc.loop import Affine, BlockProduct, Operand, Role, Scratch, Stmt

__all__ = ["TileLoops", "tile_parts"]

A, B = 0, 1
LARGE, SMALL = 128, 64  # rows and columns of a tile
LEAST_DEPTH = 256  # of a part of the sum


def tile_of(p: Problem, dtype: DType, target: Target) -> int:
    """Rows and columns of a task: large tiles read the factors less often, small ones are enough for all processors."""
    large = p.outer_size * -(-p.m.size // LARGE) * -(-p.n.size // LARGE)
    return LARGE if large >= target.processors and dtype.itemsize <= 4 else SMALL


def tile_parts(p: Problem, dtype: DType, target: Target) -> int:
    """Into how many equal parts to cut k, so that there is a task for each processor; 1 where there is."""
    size = tile_of(p, dtype, target)
    tasks = p.outer_size * -(-p.m.size // size) * -(-p.n.size // size)
    most = min(target.processors // max(1, tasks), p.k.size // LEAST_DEPTH)
    return max((n for n in range(2, most + 1) if p.k.size % n == 0), default=1)


class TileLoops:
    """The statements of one contraction. Scratch: ``tile``, the sums of a task."""

    def __init__(self, p: Problem, dtype: DType, epilogue: Epilogue, stored: Mapping[str, Stored], target: Target):
        self.p, self.dtype, self.epilogue = p, dtype, epilogue
        self.factors = next((s.memory for s in stored.values()), dtype)
        self.size = tile_of(p, dtype, target)
        self.code = Code(dtype, ("a", "b", "tile"))

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("tile", self.dtype, self.size * self.size),)

    def body(self) -> tuple[Stmt, ...]:
        c, p, size = self.code, self.p, self.size
        down, across = -(-p.m.size // size), -(-p.n.size // size)
        with c.loop("task", 0, p.outer_size * down * across, role=Role.PARALLEL) as task:
            *outer, m, n = c.unflatten(task, [*outer_sizes(p), ("m_tile", down), ("n_tile", across)])
            axes = list(zip(p.outer, outer, strict=True))
            rows, columns = c.part("row", m, size, p.m.size), c.part("column", n, size, p.n.size)
            height = c.index("rows", "sub", rows[1], rows[0])
            self.product(axes, rows[0], columns[0], height, c.index("columns", "sub", columns[1], columns[0]))
            with c.loop("r", 0, height, role=Role.WARP) as r:
                at = (p.m, c.index("row", "add", rows[0], r))
                finish_row(c, self.epilogue, [*axes, at], p.n, columns, ("tile", place([(r, size), (columns[0], -1)])))
        return tuple(c.out)

    def product(self, axes: list[tuple[Axis, Bound]], row: Bound, column: Bound, rows: Bound, columns: Bound) -> None:
        """``tile[:rows, :columns]`` from ``row`` and ``column`` on."""
        p, (m, n, k) = self.p, (self.p.m.strides, self.p.n.strides, self.p.k.strides)
        a, b = (place((i, axis.strides[which]) for axis, i in axes) for which in (A, B))
        self.code.out.append(
            BlockProduct(
                Operand("tile", Affine(), self.size),
                Operand("a", a + place([(row, m[A])]), m[A], k[A]),
                Operand("b", b + place([(column, n[B])]), k[B], n[B]),
                rows, columns, p.k.size, self.dtype, self.factors, (self.size, self.size),
                repeats=tuple((axis.size, axis.strides[A], axis.strides[B]) for axis in p.k_outer),
            )
        )  # fmt: skip
