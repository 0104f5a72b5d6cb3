"""Products with few rows whose right factor lies along k: a layer applied to one row or a few, a step of decoding.

What counts is how fast the weights come in: each row of b is read once, in place, as a stream of its own, and meets all
rows of a while it is in registers. Several streams side by side hide the latency of the caches (on AVX-512 eight bring
in 170 bytes a nanosecond from the second level, one 140) and give the adders independent sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from graphc.dtype import DType
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_direct import readers
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import TEAMS, Target
from graphc.loop import Affine, Expr, Role, Scratch, Stmt, Var

__all__ = ["ThinLoops", "is_thin"]

A, B = 0, 1

MOST_ROWS = 8
LONG = 128  # steps along k from which on the sums of a vector's lanes cost less than turning b
STREAMS = 8  # rows of b side by side
TASK = 1 << 10  # products in the time that it takes to start a task
SHORT_BYTES = 3 << 12  # of a tile: its rows end before the machine sees that they are runs, so the next are fetched
SIZES = (1, 2, 4, 8, 16, 32, 64)  # tiles of a task

Indexed = list[tuple[Axis, Bound]]


def is_thin(p: Problem, dtype: DType) -> bool:
    """Whether dot products along k beat panels: to turn b costs more than the few rows of a repay. Rows that lie apart
    count, too: those of a convolution see the same weights."""
    few = p.m.size * readers(p) <= (MOST_ROWS if p.k.size >= LONG and dtype.is_float else MOST_ROWS // 2)
    return p.k_size > 0 and few and p.k.strides[A] == p.k.strides[B] == 1 != p.n.strides[B]


class ThinLoops:
    """The statements of one product: tasks are ranges of tiles, a tile is all rows of ``columns`` columns.

    Scratch: ``rows`` of sums, [m, columns of a task]."""

    def __init__(self, p: Problem, dtype: DType, epilogue: Epilogue, stored: Mapping[str, Stored], target: Target):
        self.p, self.dtype, self.epilogue = p, dtype, epilogue
        self.code = Code(dtype, ("a", "b", "rows"), stored)
        self.sums = target.registers // 2  # beside them, registers hold a vector of each row of a, and products
        self.columns = min(STREAMS, self.sums // p.m.size, p.n.size)
        self.tiles = tiles_of_task(p, self.columns)
        self.short = self.columns * p.k.size * dtype.itemsize <= SHORT_BYTES

    @property
    def width(self) -> int:
        """Columns of a task."""
        return self.tiles * self.columns

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("rows", self.dtype, self.p.m.size * self.width),)

    def body(self) -> tuple[Stmt, ...]:
        c, p = self.code, self.p
        n_tiles = -(-p.n.size // self.columns)
        parts = -(-n_tiles // self.tiles)
        with c.loop("task", 0, p.outer_size * parts, role=Role.PARALLEL) as task:
            *outer, part = c.unflatten(task, [*outer_sizes(p), ("n_part", parts)])
            axes = list(zip(p.outer, outer, strict=True))
            first, last = c.part("tile", part, self.tiles, n_tiles)
            start = c.index("column", "mul", first, self.columns)
            stop = c.index("column_stop", "minimum", c.index("column_end", "mul", last, self.columns), p.n.size)
            c.tiles(first, last, p.n.size, self.columns, lambda tile, columns: self.tile(axes, tile, columns, start))
            with c.loop("r", 0, p.m.size) as r:
                sums = place([(r, self.width), (start, -1)])
                finish_row(c, self.epilogue, [*axes, (p.m, r)], p.n, (start, stop), ("rows", sums))
        return tuple(c.out)

    def tile(self, axes: Indexed, tile: Bound, columns: int, start: Bound) -> None:
        """The sums of one tile, each a reduction along contiguous memory."""
        c, p = self.code, self.p
        totals = [[c.acc("total", "sum") for _ in range(columns)] for _ in range(p.m.size)]
        in_flight = 1 << (max(1, STREAMS // (p.m.size * columns)).bit_length() - 1)
        with ExitStack() as stack:
            every = [*axes, *((axis, stack.enter_context(c.loop("k_out", 0, axis.size))) for axis in p.k_outer)]
            every.append((p.k, stack.enter_context(c.lanes(0, p.k.size, unroll=in_flight))))
            rows = [c.let("row", self.element(A, every, Affine(i * p.m.strides[A]))) for i in range(p.m.size)]
            for j in range(columns):
                at = place([(tile, self.columns * p.n.strides[B])]) + j * p.n.strides[B]
                if self.short:
                    c.prefetch("b", self.at(B, every, at + self.columns * p.n.strides[B]))
                stream = c.let("stream", self.element(B, every, at))
                for i, row in enumerate(rows):
                    self.add(totals[i][j], row, stream)
        for i, row_totals in enumerate(totals):
            for j, total in enumerate(row_totals):
                at = place([(tile, self.columns), (start, -1)]) + (i * self.width + j)
                c.store("rows", at, total)

    def add(self, total: Var, x: Expr, y: Expr) -> None:
        if self.dtype.is_float:
            self.code.update(total, x, y)
        else:
            self.code.update(total, self.code.fn("mul", x, y))

    def at(self, which: int, axes: Indexed, row: Affine) -> Affine:
        return place((i, axis.strides[which]) for axis, i in axes) + row

    def element(self, which: int, axes: Indexed, row: Affine) -> Expr:
        return self.code.load("ab"[which], self.at(which, axes, row))


def tiles_of_task(p: Problem, columns: int) -> int:
    """Tiles of a task such that teams of every size have equal shares, and tasks are not too short."""

    def cost(size: int) -> int:
        tasks = p.outer_size * -(-p.n.size // (columns * size))
        return sum(-(-tasks // team) for team in TEAMS) * (size * columns * p.m.size * p.k_size + TASK)

    return min(SIZES, key=cost)
