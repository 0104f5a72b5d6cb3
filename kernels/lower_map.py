"""Lowering of elementwise groups.

Dimensions are ordered by the first result's strides and merged wherever every array allows it. The innermost loop is
the VECTOR loop, cut into chunks of fixed size; chunks and enough outer dimensions form the PARALLEL loop. A group that
merges to one loop takes its length as an argument, so that equal maps over tensors of any size share their code.

``select(c, new, old)`` that is written over ``old`` stores nothing where c is false: one row of a cache is written, and
the others are not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from graphc.dtype import Shape
from graphc.ir import Attrs, Graph
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines, title
from graphc.kernels.lower_element import Array, Elements, mentions
from graphc.kernels.lower_space import Loops, fetched, merge, nest, order_by, parallel_prefix, segment, unravel
from graphc.kernels.plan import Launch, View
from graphc.loop import Affine, Call, Expr, If, Let, Load, Loop, Prefetch, Role, Stmt, Store, Var

__all__ = ["lower_map", "parallel_chunks"]


def lower_map(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """One launch that computes every result of ``body`` (all of one shape) element by element."""
    space = results[0].shape
    if 0 in space:
        return []
    elements = Elements(space, dict(zip(body.inputs, operands, strict=True)), [v for _, v in body.outputs])
    outs = [(f"y{k}", view) for k, view in enumerate(results)]
    strides = [a.strides for a in elements.arrays] + [v.strides for _, v in outs]
    loops = merge(space, strides, order_by(space, results[0].strides))
    if not loops.sizes:  # one element: a loop of one step, in which every array may advance
        loops = Loops((1,), ((1,),) * len(strides))
    number = {a: k for k, a in enumerate(elements.arrays)}
    over = {a.name for a in elements.arrays if a.view and [a.view] == [*results] and a.strides == a.view.strides}
    kernel = _MapLoops(elements, loops, number, [name for name, _ in outs], over, ctx.target)
    flops = prod(space) * sum(i.cost for i in elements.items if i.dims)
    return [
        launch(
            title("map", body, space),
            elements.reads() + [Operand(name, view, writes=True) for name, view in outs],
            kernel.body(),
            doc=f"Elementwise over {list(space)}.",
            lines=lines(body, ctx),
            flops=flops,
            scalars=kernel.scalars,
        )
    ]


class _MapLoops:
    """The statements of one map kernel: uniform items first, then those of the outer loops, then the vector loop."""

    def __init__(
        self,
        elements: Elements,
        loops: Loops,
        number: dict[Array, int],
        outs: Sequence[str],
        over: Collection[str],
        target: Target,
    ):
        """``over``: what the result is written over, element by element."""
        self.elements, self.loops, self.number, self.outs, self.over = elements, loops, number, outs, over
        self.vars = [Var(f"i{k}") for k in range(len(loops.sizes))]
        self.single = len(loops.sizes) == 1
        self.target = target
        self.scalars = [("n", loops.sizes[0]), ("chunks", -(-loops.sizes[0] // target.chunk))] if self.single else []

    def index(self, array: Array | int) -> Affine:
        k = array if isinstance(array, int) else self.number[array]
        return self.loops.index(k, self.vars) + (0 if isinstance(array, int) else array.start)

    def body(self) -> list[Stmt]:
        env: dict[int, Expr] = {}
        needed = sorted(self.elements.closure(self.elements.roots))
        depth = self.depths(needed)
        inner = len(self.vars) - 1
        top = self.elements.emit([i for i in needed if depth[i] < 0], env, self.index)
        outer = self.elements.emit([i for i in needed if 0 <= depth[i] < inner], env, self.index)
        lets = self.elements.emit([i for i in needed if depth[i] >= inner], env, self.index)
        values = [env[root] for root in self.elements.roots]
        where, lets, values[0] = self.guarded(lets, values[0])
        first = len(self.number)
        stores = [Store(name, self.index(first + k), values[k]) for k, name in enumerate(self.outs)]
        lanes: list[Stmt] = [*self.ahead(), *lets, *stores]
        if not self.vars:  # one element: no vector, and the other threads have nothing to do
            return [Loop(Var("unit"), 1, (*top, *lanes), Role.PARALLEL)]
        cut = parallel_chunks(self.loops.sizes, self.vars, outer, lanes, self.target, single=self.single, where=where)
        return [*top, *cut]

    def guarded(self, lets: list[Let], value: Expr) -> tuple[Expr | None, list[Let], Expr]:
        """When a value of the inner loop is to be stored (None: always), and the lets and the value of that case."""
        known = {let.var: let.expr for let in lets}
        match known.get(value) if isinstance(value, Var) else None:
            case Call("select", (Var() as where, new, Var() as old)) if where not in known:
                match known.get(old):
                    case Load(buffer=name) if name in self.over:
                        needed = [let for let in lets if let.var != value]
                        used = new == old or any(mentions(let.expr, old.name) for let in needed)
                        return where, [let for let in needed if used or let.var != old], new
        return None, lets, value

    def ahead(self) -> list[Prefetch]:
        """Hints for the streams that a long loop reads."""
        if not self.single or self.loops.sizes == (1,):
            return []
        streams = [a for a, k in self.number.items() if a.view is not None and self.loops.strides[k] == (1,)]
        return fetched([Load(a.name, self.index(a), a.dtype) for a in streams])

    def depths(self, needed: Sequence[int]) -> dict[int, int]:
        """The innermost loop that each item varies along, -1 for none. Items come after their arguments."""
        depth: dict[int, int] = {}
        for i in needed:
            item = self.elements.items[i]
            own = self.loops.strides[self.number[item.array]] if item.array else ()
            moving = [loop for loop, stride in enumerate(own) if stride]
            depth[i] = max([*moving, *(depth[a] for a in item.args)], default=-1)
        return depth


def parallel_chunks(
    sizes: Shape,
    variables: Sequence[Var],
    outer: Sequence[Stmt],
    lanes: Sequence[Stmt],
    target: Target,
    *,
    single: bool,
    where: Expr | None = None,
) -> list[Stmt]:
    """The loops of a map: PARALLEL over leading dimensions and chunks of the last, SERIAL between, VECTOR inside.

    ``single``: one loop, whose length is the scalar parameter n, cut into ``chunks`` chunks. ``where``: the condition,
    made in ``outer`` or before, on which the inner loop is done."""
    lane = variables[-1]

    def guarded(loop: Loop) -> Stmt:
        return loop if where is None else If(where, (loop,))

    if single:
        unit = Var("chunk")
        bounds = segment(unit, target.chunk, Var("n"), Var("start"), Var("stop"))
        vector = Loop(lane, Var("stop"), tuple(lanes), Role.VECTOR, start=Var("start"))
        return [Loop(unit, Var("chunks"), (*bounds, *outer, guarded(vector)), Role.PARALLEL)]
    split = parallel_prefix(sizes[:-1], target.units)
    chunks = -(-sizes[-1] // target.chunk)
    unit = Var("unit")
    if chunks == 1:
        start: list[Stmt] = unravel(unit, sizes[:split], variables[:split])
        vector = Loop(lane, sizes[-1], tuple(lanes), Role.VECTOR)
    else:
        chunk = Var("chunk")
        start = unravel(unit, (*sizes[:split], chunks), [*variables[:split], chunk])
        start += segment(chunk, target.chunk, sizes[-1], Var("start"), Var("stop"))
        vector = Loop(lane, Var("stop"), tuple(lanes), Role.VECTOR, start=Var("start"))
    inner = nest(variables[split:-1], sizes[split:-1], [*outer, guarded(vector)])
    return [Loop(unit, prod(sizes[:split]) * chunks, (*start, *inner), Role.PARALLEL)]
