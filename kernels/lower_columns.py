"""Reductions whose innermost dimension stays: vectors of columns, row by row into partial results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from graphc.dtype import int64
from graphc.kernels.lower_context import Operand
from graphc.kernels.lower_element import Array
from graphc.kernels.lower_reduce import Reduction, combine
from graphc.kernels.lower_space import segment, unravel
from graphc.kernels.plan import Launch, View
from graphc.loop import Affine, Const, Expr, Let, Load, Loop, Prefetch, Role, Stmt, Store, Var, call, identity

__all__ = ["lower_columns"]

BLOCK = 512  # columns that one unit of work keeps partial results of, in the first level of cache
UNITS = 32  # units of work that are enough for any team
ROWS = 32  # the fewest rows worth a chunk of their own
TOGETHER = 4  # rows that are added to the partial results at once


def lower_columns(job: Reduction) -> list[Launch]:
    """One launch, or one into partial results and one that combines them in order."""
    rows = prod(job.inner.sizes)
    units = prod(job.outer.sizes[:-1]) * -(-job.outer.sizes[-1] // BLOCK)
    chunks = max(1, min(-(-rows // ROWS), -(-UNITS // units)))
    size = max(1, -(-rows // chunks))
    chunks = max(1, -(-rows // size))
    if chunks == 1:
        return [job.launch("col", job.elements.reads(), job.results, _Columns(job, 1, size, job.results).body())]
    partials = job.partials(chunks)
    first = job.launch("col", job.elements.reads(), partials, _Columns(job, chunks, size, partials).body())
    reads = [Operand(f"p{k}", v, reads=True) for k, v in enumerate(partials)]
    return [first, job.launch("combine", reads, job.results, _Combine(job, chunks, partials).body())]


class _Blocks:
    """The PARALLEL loop over outer dimensions, chunks of rows and blocks of columns."""

    def __init__(self, job: Reduction, chunks: int, outs: Sequence[View]):
        self.job, self.chunks, self.outs = job, chunks, outs
        self.kept = [Var(f"k{d}") for d in range(len(job.outer.sizes) - 1)]
        self.chunk, self.block = Var("chunk"), Var("block")

    def parallel(self, inside: Sequence[Stmt]) -> Loop:
        columns, unit = self.job.outer.sizes[-1], Var("unit")
        sizes = (*self.job.outer.sizes[:-1], self.chunks, -(-columns // BLOCK))
        start = unravel(unit, sizes, [*self.kept, self.chunk, self.block])
        start += segment(self.block, BLOCK, columns, Var("left"), Var("right"))
        return Loop(unit, prod(sizes), (*start, *inside), Role.PARALLEL)

    def each_column(self, name: str, values: Callable[[Var, list[Stmt]], Sequence[Expr]]) -> Loop:
        """A VECTOR loop that stores ``values(column, statements before)`` into the results."""
        j = Var(f"j_{name}")
        lanes: list[Stmt] = []
        new = values(j, lanes)
        lanes += [Store(f"y{k}", self.place(k, j), x) for k, x in enumerate(new)]
        return Loop(j, Var("right"), tuple(lanes), Role.VECTOR, start=Var("left"))

    def place(self, k: int, j: Var) -> Affine:
        return self.job.place(k, self.outs[k], [*self.kept, j], self.chunk)

    def old(self, k: int, j: Var) -> Load:
        return Load(f"y{k}", self.place(k, j), self.outs[k].dtype)

    def clear(self) -> Loop:
        """The results at the identity of their combination."""
        return self.each_column(
            "clear", lambda j, lanes: [identity(h, v.dtype) for h, v in zip(self.job.how, self.outs, strict=True)]
        )


class _Columns(_Blocks):
    """The first launch: chunks of rows to partial results."""

    def __init__(self, job: Reduction, chunks: int, size: int, outs: Sequence[View]):
        super().__init__(job, chunks, outs)
        self.size = size
        self.env: dict[int, Expr] = {}

    def body(self) -> list[Stmt]:
        top = self.job.uniform(self.env)
        rows = prod(self.job.inner.sizes)
        start, stop, whole = Var("start"), Var("stop"), Var("whole")
        several, one = Var("several"), Var("one")
        inside: list[Stmt] = [
            *segment(self.chunk, self.size, rows, start, stop),
            # Rows are added several at a time, so that the partial results are loaded and stored less often.
            Let(whole, call("sub", stop, call("mod", call("sub", stop, start), Const(TOGETHER, int64)))),
            self.clear(),
            Loop(several, whole, tuple(self.add(several, TOGETHER)), start=start, step=TOGETHER),
            Loop(one, stop, tuple(self.add(one, 1)), start=whole),
        ]
        return [*top, self.parallel(inside)]

    def add(self, row: Var, count: int) -> list[Stmt]:
        """Statements that combine ``count`` rows, from ``row`` on, into the results."""
        job = self.job
        statements: list[Stmt] = []
        rows: list[_Row] = []
        for r in range(count):
            at = Var(f"{row.name}_{r}") if r else row
            if r:
                statements.append(Let(at, call("add", row, Const(r, int64))))
            place = [Var(f"{at.name}_i{d}") for d in range(len(job.inner.sizes))]
            rows.append(_Row(place, f"_{row.name}{r}", dict(self.env)))
            statements += unravel(at, job.inner.sizes, place)
            statements += self.of_row(rows[-1])

        def values(j: Var, lanes: list[Stmt]) -> list[Expr]:
            found = [self.of_column(r, j, lanes) for r in rows]
            return [combine(h, self.old(k, j), tree(h, [f[k] for f in found])) for k, h in enumerate(job.how)]

        return [*statements, self.each_column(row.name, values)]

    def of_row(self, row: _Row) -> list[Let]:
        """What is the same for all columns of a row, before the loop over them: stores in that keep a compiler from
        moving it out."""
        elements, kept = self.job.elements, set(self.job.kept)
        needed = elements.closure(elements.roots)
        fixed = [i for i in needed if not elements.items[i].dims & kept]
        return elements.emit(fixed, row.env, self.index(row, Var("left")), row.suffix)

    def of_column(self, row: _Row, j: Var, lanes: list[Stmt]) -> list[Expr]:
        """The element of each reduced value in one row, its statements added to ``lanes``."""
        elements, env, index = self.job.elements, dict(row.env), self.index(row, j)
        lanes += [Prefetch(a.name, index(a) + TOGETHER * step) for a, step in self.steps()]
        lanes += elements.emit(elements.closure(elements.roots), env, index, row.suffix)
        return [env[root] for root in elements.roots]

    def steps(self) -> list[tuple[Array, int]]:
        """The arrays in memory that move along rows and columns, with the way to the next row: from so many places at
        once hardware does not fetch ahead by itself."""
        across, down = self.job.outer.strides, self.job.inner.strides
        ways = ((a, c[-1], r[-1]) for a, c, r in zip(self.job.elements.arrays, across, down, strict=False) if r)
        return [(a, row) for a, column, row in ways if a.view is not None and column and row]

    def index(self, row: _Row, column: Var) -> Callable[[Array], Affine]:
        """The place of the current element in an array."""
        return lambda array: self.job.index(array, [*self.kept, column], row.place)


@dataclass(frozen=True)
class _Row:
    """A row on its way into the results: where it is, what its variables end in, and what is known of it."""

    place: list[Var]
    suffix: str
    env: dict[int, Expr]


class _Combine(_Blocks):
    """The second launch: partial results in order."""

    def __init__(self, job: Reduction, chunks: int, partials: Sequence[View]):
        super().__init__(job, 1, job.results)
        self.parts, self.partials = chunks, partials

    def body(self) -> list[Stmt]:
        part = Var("part")
        job = self.job

        def values(j: Var, lanes: list[Stmt]) -> list[Expr]:
            at = job.outer.index(len(job.arrays), [*self.kept, j]) + Affine.of(part, prod(job.outer.sizes))
            loads = [Load(f"p{k}", at, v.dtype) for k, v in enumerate(self.partials)]
            return [combine(h, self.old(k, j), x) for k, (h, x) in enumerate(zip(job.how, loads, strict=True))]

        return [self.parallel([self.clear(), Loop(part, self.parts, (self.each_column("add", values),))])]


def tree(how: str, values: Sequence[Expr]) -> Expr:
    """All ``values`` combined, neighbours first."""
    level = list(values)
    while len(level) > 1:
        level = [combine(how, *level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]
