"""What the two ways of reducing over leading dimensions share: the problem, its loops, how partial results combine."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphc.dtype import Shape, contiguous_strides
from graphc.ir import Graph, Value
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines, title
from graphc.kernels.lower_element import Array, Elements
from graphc.kernels.lower_space import merge
from graphc.kernels.plan import Launch, View
from graphc.loop import COMBINE, Affine, Expr, Stmt, Var, call
from graphc.ops.base import Reduce, get_op

__all__ = ["Reduction", "combination", "combine"]


def combination(value: Value) -> str:
    """sum, max, min or prod: how the reduction that made ``value`` combines."""
    lowering = get_op(value.node.op).lower
    assert isinstance(lowering, Reduce)
    return lowering.combine


def combine(how: str, a: Expr, b: Expr) -> Expr:
    """The combination of two partial results."""
    return call(COMBINE[how], a, b)


class Reduction:
    """One group: its space, which dimensions are reduced, and its elements."""

    def __init__(self, body: Graph, operands: dict[Value, View], results: Sequence[View], ctx: LowerContext):
        self.body, self.results, self.ctx = body, results, ctx
        self.values = [v for _, v in body.outputs]
        node = self.values[0].node
        self.space, axes = node.inputs[0].shape, node.attrs["axes"]
        self.how = [combination(v) for v in self.values]
        self.elements = Elements(self.space, operands, [v.node.inputs[0] for v in self.values])
        self.reduced = [d for d in range(len(self.space)) if d in axes]
        self.kept = [d for d in range(len(self.space)) if d not in axes]
        wide = [d for d in range(len(self.space)) if self.space[d] != 1]
        self.flat = not any(d in self.kept for d in wide) or wide[-1] in self.reduced
        self.outs = [Array(f"y{k}", v.dtype, self.widen(v.strides), v.offset, v) for k, v in enumerate(results)]
        self.arrays = [*self.elements.arrays, *self.outs]
        strides = [a.strides for a in self.arrays]
        # Partial results have the kept dimensions in row-major order.
        strides.append(self.widen(contiguous_strides(tuple(self.space[d] for d in self.kept))))
        self.outer = merge(self.space, strides, self.kept)
        self.inner = merge(self.space, strides, self.reduced)

    def widen(self, strides: Shape) -> Shape:
        """Strides over the kept dimensions as strides over the space."""
        rest = iter(strides)
        return tuple(next(rest) if d in self.kept else 0 for d in range(len(self.space)))

    def index(self, array: Array, outer: Sequence[Var], inner: Sequence[Var]) -> Affine:
        k = next(n for n, a in enumerate(self.arrays) if a is array)
        at = self.outer.index(k, outer) + (self.inner.index(k, inner) if inner else 0)  # results have no inner part
        return at + array.start

    def writes(self, views: Sequence[View]) -> list[Operand]:
        return [Operand(f"y{k}", v, writes=True) for k, v in enumerate(views)]

    def place(self, k: int, view: View, kept: Sequence[Var], chunk: Var) -> Affine:
        """Where result k goes: ``view`` is the result itself, or its partial results."""
        if view is self.results[k]:
            return self.index(self.outs[k], kept, [])
        return self.outer.index(len(self.arrays), kept) + Affine.of(chunk, prod(self.outer.sizes))

    def partials(self, chunks: int) -> list[View]:
        """Temporary memory for the partial results: chunks × kept dimensions, row-major."""
        kept = prod(self.space[d] for d in self.kept)
        made = []
        for v in self.results:
            buffer = self.ctx.temp("partials", chunks * kept * v.dtype.itemsize)
            made.append(View.whole(buffer, v.dtype, (chunks, kept)))
        return made

    def launch(
        self, part: str, reads: Sequence[Operand], writes: Sequence[View], body: Sequence[Stmt], **scalars: int
    ) -> Launch:
        first = part == "col"
        items = self.elements.items
        return launch(
            title(part, self.body, self.space),
            [*reads, *self.writes(writes)],
            body,
            doc=f"Reduces {list(self.space)} over {self.reduced}." if first else "Combines partial results in order.",
            lines=lines(self.body, self.ctx),
            flops=prod(self.space) * (len(self.how) + sum(i.cost for i in items if i.dims)) if first else 0,
            scalars=list(scalars.items()),
        )

    def uniform(self, env: dict[int, Expr]) -> list[Stmt]:
        """Items that are the same for the whole space."""
        items = self.elements.items
        ready = [i for i, item in enumerate(items) if not item.dims]
        return list(self.elements.emit(ready, env, lambda a: Affine(a.start)))
