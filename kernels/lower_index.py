"""Lowering of rows by index: gathers with an elementwise epilogue, and deterministic scatters.

An index out of range sets a flag word, from which the runtime makes an error that names the user's line; the kernel
itself goes on with a row of zeros (gather) or without the row (scatter).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphc.dtype import Shape, bool_
from graphc.ir import Attrs, Graph
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines, title
from graphc.kernels.lower_element import Array, Elements
from graphc.kernels.lower_space import Loops, merge, nest, segment, unravel
from graphc.kernels.plan import Launch, View
from graphc.loop import Affine, Const, Expr, If, Let, Load, Loop, Role, Stmt, Store, Var, call
from graphc.ops.row import bounded

__all__ = ["lower_gather", "lower_scatter", "scatter_in_place"]

BLOCK = 64  # columns of one unit of a scatter: a few vectors
RANGES = 16  # units of a scatter whose rows are too short to be cut into blocks
WARPS = 8  # units for each processor, where many threads share one


def _row(name: str, index: Affine, view: View, size: int) -> tuple[list[Stmt], Var, Var]:
    """Statements that read an index, set the flag if it is out of range, and bind the row (0 then) and whether it is
    in range."""
    return bounded(Load(name, index, view.dtype), size)


# Gather ------------------------------------------------------------------------------------------------------------


def lower_gather(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """One launch: PARALLEL over the dimensions before and of the indices, VECTOR along a row of the table."""
    if 0 in results[0].shape:
        return []
    return [_Gather(body, operands, results).launch(ctx)]


class _Gather:
    """A ``take`` and what is computed from its elements."""

    def __init__(self, body: Graph, operands: Sequence[View], results: Sequence[View]):
        self.body, self.results = body, results
        views = dict(zip(body.inputs, operands, strict=True))
        (self.node,) = (n for n in body if n.op == "take")
        self.table, self.indices = (views[v] for v in self.node.inputs)
        self.axis = self.node.attrs["axis"]
        self.space = self.node.types[0].shape
        self.elements = Elements(self.space, views, [v for _, v in body.outputs], given=self.node.out())
        rank = len(self.indices.shape)
        # The table advances along every dimension of the result but those of the indices, which advance alone there.
        before, after = self.table.strides[: self.axis], self.table.strides[self.axis + 1 :]
        table = before + (0,) * rank + after
        indices = (0,) * len(before) + self.indices.strides + (0,) * len(after)
        own: list[Shape] = [table, indices, *(v.strides for v in results)]
        strides = own + [a.strides for a in self.elements.arrays]
        dims = range(len(self.space))
        self.rows = merge(self.space, strides, dims[: self.axis + rank])
        self.columns = merge(self.space, strides, dims[self.axis + rank :])
        self.row_vars = [Var(f"r{d}") for d in range(len(self.rows.sizes))]
        self.column_vars = [Var(f"c{d}") for d in range(len(self.columns.sizes))]

    def index(self, k: int, *, columns: bool = True) -> Affine:
        at = self.rows.index(k, self.row_vars)
        return at + self.columns.index(k, self.column_vars) if columns else at

    def array(self, array: Array) -> Affine:
        k = next(n for n, a in enumerate(self.elements.arrays) if a is array)
        return self.index(2 + len(self.results) + k) + array.start

    def launch(self, ctx: LowerContext) -> Launch:
        size = self.table.shape[self.axis]
        start, safe, inside = _row("indices", self.index(1, columns=False), self.indices, size)
        dtype = self.table.dtype
        element: Expr = Load("table", self.index(0) + Affine.of(safe, self.table.strides[self.axis]), dtype)
        element = call("select", inside, element, Const(dtype.numpy.type(0).item(), dtype))
        taken = Var("taken", dtype)
        lanes: list[Stmt] = [Let(taken, element)]
        env = self.elements.known(taken)
        lanes += self.elements.emit(self.elements.closure(self.elements.roots), env, self.array)
        lanes += [Store(f"y{k}", self.index(2 + k), env[r]) for k, r in enumerate(self.elements.roots)]
        unit = Var("unit")
        body = [*unravel(unit, self.rows.sizes, self.row_vars), *start, *self.row_loops(lanes)]
        # An empty table has no row to read in place of the missing one.
        if size == 0:
            body = [*unravel(unit, self.rows.sizes, self.row_vars), *start]
        return launch(
            title("gather", self.body, self.space),
            [
                Operand("table", self.table, reads=True),
                Operand("indices", self.indices, reads=True),
                *self.elements.reads(),
                *(Operand(f"y{k}", v, writes=True) for k, v in enumerate(self.results)),
            ],
            [Loop(unit, prod(self.rows.sizes), tuple(body), Role.PARALLEL)],
            doc=f"Rows of a table of {size} by index.",
            lines=lines(self.body, ctx),
            flops=prod(self.space) * sum(i.cost for i in self.elements.items),
            extra=[ctx.index_check(size, self.node.loc)],
        )

    def row_loops(self, lanes: list[Stmt]) -> list[Stmt]:
        if not self.column_vars:  # rows of one element
            return lanes
        vector = Loop(self.column_vars[-1], self.columns.sizes[-1], tuple(lanes), Role.VECTOR)
        return nest(self.column_vars[:-1], self.columns.sizes[:-1], [vector])


# Scatter -----------------------------------------------------------------------------------------------------------


def lower_scatter(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """One launch that clears the result, or copies what is added to, and adds the rows in the order of the indices.

    Long rows are cut into blocks of columns, each the work of one thread; where rows are short, a thread owns a range
    of the result's rows and passes over those of others. Either way every element is summed in one order.
    """
    if 0 in results[0].shape:
        return []
    return [_Scatter(body, operands, results, ctx.target.processors).launch(ctx)]


def scatter_in_place(body: Graph, operand: int) -> bool:
    """Whether ``operand`` is what the rows are added to, and nothing else."""
    (node,) = (n for n in body if n.op == "scatter_add")
    return node.inputs[2:] == (body.inputs[operand],) and body.inputs[operand] not in node.inputs[:2]


class _Scatter:
    def __init__(self, body: Graph, operands: Sequence[View], results: Sequence[View], processors: int):
        self.body = body
        (self.node,) = (n for n in body if n.op == "scatter_add")
        views = dict(zip(body.inputs, operands, strict=True))
        self.indices, self.rows, *base = (views[v] for v in self.node.inputs)
        (self.result,) = results
        self.base = next((b for b in base if b != self.result), None)
        self.onto = bool(base) and self.base is None  # the sum is made where the base is
        rank = len(self.indices.shape)
        self.outer: Loops = merge(self.indices.shape, [self.indices.strides, self.rows.strides[:rank]])
        around = [self.rows.strides[rank:], *(v.strides[1:] for v in (self.result, self.base or self.result))]
        self.inner: Loops = merge(self.rows.shape[rank:], around)
        self.columns = self.inner.sizes[-1] if self.inner.sizes else 1
        self.blocks = -(-self.columns // BLOCK)
        self.size = self.result.shape[0]
        # Enough blocks for a few threads, or ranges of rows.
        enough = -(-WARPS * processors // self.blocks) if processors else 1 if self.blocks > 1 else RANGES
        self.ranges = min(enough, self.size)
        self.outer_vars = [Var(f"n{d}") for d in range(len(self.outer.sizes))]

    def launch(self, ctx: LowerContext) -> Launch:
        unit, block, part = Var("unit"), Var("block"), Var("part")
        inside = unravel(unit, (self.ranges, self.blocks), [part, block])
        inside += segment(block, BLOCK, self.columns, Var("left"), Var("right"))
        inside += segment(part, -(-self.size // self.ranges), self.size, Var("first"), Var("last"))
        inside += [] if self.onto else self.start()
        inside += self.add()
        return launch(
            title("scatter_add", self.body, self.result.shape),
            [
                Operand("indices", self.indices, reads=True),
                Operand("rows", self.rows, reads=True),
                *([Operand("base", self.base, reads=True)] if self.base else []),
                Operand("y0", self.result, reads=self.onto, writes=True),
            ],
            [Loop(unit, self.ranges * self.blocks, tuple(inside), Role.PARALLEL)],
            doc=f"Sums rows by index into {self.size} rows.",
            lines=lines(self.body, ctx),
            flops=prod(self.rows.shape),
            extra=[ctx.index_check(self.size, self.node.loc)],
        )

    def row_loops(self, lanes: list[Stmt], variables: list[Var]) -> list[Stmt]:
        if not variables:  # rows of one element
            return lanes
        vector = Loop(variables[-1], Var("right"), tuple(lanes), Role.VECTOR, start=Var("left"))
        return nest(variables[:-1], self.inner.sizes[:-1], [vector])

    def variables(self, name: str) -> list[Var]:
        return [Var(f"{name}{d}") for d in range(len(self.inner.sizes))]

    def start(self) -> list[Stmt]:
        """The base, or zeros."""
        row, columns, dtype = Var("start"), self.variables("z"), self.result.dtype
        at = Affine.of(row, self.result.strides[0]) + self.inner.index(1, columns)
        value: Expr = Const(dtype.numpy.type(0).item(), dtype)
        if self.base:
            value = Load("base", Affine.of(row, self.base.strides[0]) + self.inner.index(2, columns), dtype)
        inside = self.row_loops([Store("y0", at, value)], columns)
        return [Loop(row, Var("last"), tuple(inside), start=Var("first"))]

    def add(self) -> list[Stmt]:
        columns = self.variables("c")
        start, safe, inside = _row("indices", self.outer.index(0, self.outer_vars), self.indices, self.size)
        to = Affine.of(safe, self.result.strides[0]) + self.inner.index(1, columns)
        source = self.outer.index(1, self.outer_vars) + self.inner.index(0, columns)
        dtype = self.result.dtype
        total = call("add", Load("y0", to, dtype), Load("rows", source, dtype))
        mine = Var("mine", bool_)
        own = call("and", call("ge", safe, Var("first")), call("lt", safe, Var("last")))
        body: list[Stmt] = [
            *start,
            Let(mine, call("and", inside, own)),
            If(mine, tuple(self.row_loops([Store("y0", to, total)], columns))),
        ]
        return nest(self.outer_vars, self.outer.sizes, body)
