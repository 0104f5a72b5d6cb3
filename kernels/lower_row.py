"""Lowering of groups that reduce along rows: softmax, normalisation, cross-entropy and their gradients.

One step of the PARALLEL loop is one row. A row takes one pass per level of reduction: pass k computes the reductions
that need k others first, and stores the results that are complete by then. Scalars of the row are computed between the
passes; values of the whole row are computed again in each pass that needs them, or kept in scratch memory where they
are expensive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from graphc.dtype import DType, Shape, contiguous_strides, same_layout
from graphc.ir import Attrs, Graph, Value
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines, title
from graphc.kernels.lower_element import Array, Elements
from graphc.kernels.lower_reduce import combination
from graphc.kernels.lower_space import AHEAD, fetched, merge, nest, unravel
from graphc.kernels.plan import Buffer, Launch, View
from graphc.loop import Acc, Affine, Expr, Let, Load, Loop, Prefetch, Role, Scratch, Stmt, Store, Update, Var
from graphc.ops.base import Reduce, get_op

__all__ = ["lower_row", "row_in_place"]

UNROLL = 4  # vectors at a time where a pass sums, with an accumulator each
SHORT = 64  # elements of a row that is not unrolled
KEEP_COST = 8  # additions: a value of the row that costs more is kept for the next pass
KEEP_SIZE = 1 << 17  # elements of a row that may be kept: 512 KiB of float32, half of a second-level cache


def lower_row(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """One launch over the rows of ``body``'s reductions. Results are whole rows or one element per row."""
    plan = RowPlan(body, dict(zip(body.inputs, operands, strict=True)))
    if 0 in plan.space[: plan.rows]:
        return []
    outs = [Array(f"y{k}", v.dtype, plan.widen(v), v.offset, v) for k, v in enumerate(results)]
    kernel = _RowLoops(plan, outs)
    return [
        launch(
            title("row", body, plan.space),
            plan.elements.reads() + [Operand(a.name, v, writes=True) for a, v in zip(outs, results, strict=True)],
            kernel.body(),
            doc=f"{plan.passes} passes over each of {prod(plan.space[: plan.rows])} rows"
            f" of {prod(plan.space[plan.rows :])} elements.",
            lines=lines(body, ctx),
            flops=prod(plan.space) * sum(i.cost for i in plan.elements.items if plan.wide(i.dims)),
            scratch=kernel.scratch,
        )
    ]


def row_in_place(body: Graph, operand: int, result: int) -> bool:
    """Whether `lower_row` reads an element of the operand for the last time before it writes that of the result."""
    source = body.inputs[operand]
    plan = RowPlan(body, {v: View.whole(Buffer("", "arena", 0), v.dtype, v.shape) for v in body.inputs})
    mine = [
        i
        for i, item in enumerate(plan.elements.items)
        if item.array is not None and item.array.view is plan.elements.operands[source]
    ]
    whole = contiguous_strides(plan.space)
    arrays = [plan.elements.items[i].array for i in mine]
    straight = all(a is not None and same_layout(plan.space, a.strides, whole) for a in arrays)
    if source.shape != plan.space or not straight:
        return False
    last = max((k for k, needed in enumerate(plan.needed) if needed.intersection(mine)), default=-1)
    return last <= plan.stored[result]


class RowPlan:
    """What each pass computes.

    ``needed[k]`` are the items of pass k that vary along the row, ``kept[k]`` those of them that go to scratch memory,
    ``stored[r]`` is the pass that stores result r (the number of passes for scalars of the row, stored at the end).
    """

    def __init__(self, body: Graph, operands: Mapping[Value, View]):
        reduce = next(n for n in body if isinstance(get_op(n.op).lower, Reduce))
        self.space = reduce.inputs[0].shape
        self.rows = len(self.space) - len(reduce.attrs["axes"])
        self.results = [v for _, v in body.outputs]
        self.elements = Elements(self.space, operands, self.results)
        items, roots = self.elements.items, self.elements.roots
        self.reductions = [i for i in self.elements.closure(roots) if items[i].reduces]
        self.reductions.sort()
        self.full = [v.shape == self.space for v in self.results]
        levels = [items[r].level for r, full in zip(roots, self.full, strict=True) if full]
        self.passes = 1 + max([*levels, *(items[r].level - 1 for r in self.reductions)])
        self.stored = [items[r].level if full else self.passes for r, full in zip(roots, self.full, strict=True)]
        self._choose()

    def wide(self, dims: frozenset[int]) -> bool:
        return any(d >= self.rows for d in dims)

    def widen(self, view: View) -> Shape:
        """The strides of a result over the whole space."""
        full = view.shape == self.space
        return view.strides if full else view.strides[: self.rows] + (0,) * (len(self.space) - self.rows)

    def wanted(self, k: int) -> list[int]:
        """The items that pass k exists for: what its reductions sum, and the results that it stores."""
        items = self.elements.items
        sums = [items[r].args[0] for r in self.reductions if items[r].level == k + 1]
        return sums + [r for r, at in zip(self.elements.roots, self.stored, strict=True) if at == k]

    def _choose(self) -> None:
        items = self.elements.items
        small = prod(self.space[self.rows :]) <= KEEP_SIZE
        available: set[int] = set()  # computed in an earlier pass and worth keeping
        self.needed: list[set[int]] = []
        self.kept: list[set[int]] = [set() for _ in range(self.passes)]
        self.loaded: list[set[int]] = []
        origin: dict[int, int] = {}
        for k in range(self.passes):
            reach = self.elements.closure(self.wanted(k), lambda i: i in available or not self.wide(items[i].dims))
            wide = {i for i in reach if self.wide(items[i].dims)}
            self.loaded.append(wide & available)
            self.needed.append(wide)
            for i in self.loaded[k]:
                self.kept[origin[i]].add(i)
            for i in sorted(wide - available):
                if small and items[i].array is None and self._work(i, available) >= KEEP_COST:
                    available.add(i)
                    origin[i] = k

    def _work(self, item: int, available: set[int]) -> int:
        below = self.elements.closure([item], lambda i: i != item and i in available)
        return sum(self.elements.items[i].cost for i in below if self.wide(self.elements.items[i].dims))


class _RowLoops:
    """The statements of one row kernel."""

    def __init__(self, plan: RowPlan, outs: Sequence[Array]):
        self.plan, self.outs, self.elements = plan, outs, plan.elements
        self.arrays = [*plan.elements.arrays, *outs]
        strides = [a.strides for a in self.arrays]
        self.scratch_strides = (0,) * plan.rows + contiguous_strides(plan.space[plan.rows :])
        strides.append(self.scratch_strides)
        dims = range(len(plan.space))
        self.outer = merge(plan.space, strides, dims[: plan.rows])
        self.inner = merge(plan.space, strides, dims[plan.rows :])
        self.row_vars = [Var(f"r{k}") for k in range(len(self.outer.sizes))]
        self.scratch = [
            Scratch(f"kept{i}", self.dtype(i), prod(plan.space[plan.rows :]))
            for i in sorted({i for kept in plan.kept for i in kept})
        ]

    def dtype(self, item: int) -> DType:
        value = self.elements.items[item].value
        assert value is not None
        return value.dtype

    def body(self) -> list[Stmt]:
        row = Var("row")
        env: dict[int, Expr] = {}
        statements = self.scalars(-1, env)
        inside: list[Stmt] = unravel(row, self.outer.sizes, self.row_vars)
        for k in range(self.plan.passes):
            inside += self.scalars(k, env)
            inside += self.one_pass(k, env)
        inside += self.scalars(self.plan.passes, env)
        for root, array, full in zip(self.elements.roots, self.outs, self.plan.full, strict=True):
            if not full:
                inside.append(Store(array.name, self.index(array, []), env[root]))
        count = prod(self.outer.sizes)
        return [*statements, Loop(row, count, tuple(inside), Role.PARALLEL)]

    def scalars(self, level: int, env: dict[int, Expr]) -> list[Stmt]:
        """Items that do not vary along the row and need at most ``level`` reductions; -1: not even from row to row."""
        items = self.elements.items
        ready = [
            i
            for i, item in enumerate(items)
            if not self.plan.wide(item.dims)
            and not item.reduces
            and (item.level <= level if level >= 0 else not item.dims and item.level == 0)
        ]
        return list(self.elements.emit(ready, env, lambda a: self.index(a, [])))

    def one_pass(self, k: int, env: dict[int, Expr]) -> list[Stmt]:
        items = self.elements.items
        variables = [Var(f"c{k}_{d}") for d in range(len(self.inner.sizes))]
        sums = [r for r in self.plan.reductions if items[r].level == k + 1]
        accs = {r: Var(f"{self.combine(r)}{r}", self.dtype(r)) for r in sums}
        local = dict(env)
        lanes: list[Stmt] = []
        at = self.scratch_index(variables)
        for i in sorted(self.plan.loaded[k]):
            again = local[i] = Var(f"again{i}_{k}", self.dtype(i))
            lanes.append(Let(again, Load(f"kept{i}", at, self.dtype(i))))
        unroll = UNROLL if sums and self.inner.sizes and self.inner.sizes[-1] > SHORT else 1
        lanes += self.ahead(k, variables, unroll)
        lanes += self.elements.emit(self.plan.needed[k], local, lambda a: self.index(a, variables), f"_{k}")
        lanes += [Store(f"kept{i}", at, local[i]) for i in sorted(self.plan.kept[k])]
        lanes += [Update(accs[r], local[items[r].args[0]]) for r in sums]
        for root, array, stored in zip(self.elements.roots, self.outs, self.plan.stored, strict=True):
            if stored == k:
                lanes.append(Store(array.name, self.index(array, variables), local[root]))
        env.update(accs)
        if not lanes:
            return []
        start: list[Stmt] = [Acc(accs[r], self.combine(r)) for r in sums]
        sizes = self.inner.sizes
        if not sizes:  # rows of one element
            return [*start, *lanes]
        vector = Loop(variables[-1], sizes[-1], tuple(lanes), Role.VECTOR, unroll=unroll)
        return [*start, *nest(variables[:-1], sizes[:-1], [vector])]

    def ahead(self, k: int, columns: Sequence[Var], unroll: int) -> list[Prefetch]:
        """Hints for what pass ``k`` is the first to read of long rows; the next pass finds it in the cache."""
        if not self.inner.sizes or self.inner.sizes[-1] <= AHEAD:
            return []
        new = self.plan.needed[k].difference(*self.plan.needed[:k])
        arrays = [a for i in sorted(new) if (a := self.elements.items[i].array) is not None and a.view is not None]
        streams = [a for a in arrays if self.inner.strides[self.number(a)][-1] == 1]
        return fetched([Load(a.name, self.index(a, columns), a.dtype) for a in streams], unroll)

    def combine(self, item: int) -> str:
        value = self.elements.items[item].value
        assert value is not None
        return combination(value)

    def index(self, array: Array, columns: Sequence[Var]) -> Affine:
        k = self.number(array)
        at = self.outer.index(k, self.row_vars)
        if columns:
            at = at + self.inner.index(k, columns)
        return at + array.start

    def number(self, array: Array) -> int:
        return next(n for n, a in enumerate(self.arrays) if a is array)

    def scratch_index(self, columns: Sequence[Var]) -> Affine:
        return self.inner.index(len(self.arrays), columns)
