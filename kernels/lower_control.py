"""Loops and branches as launches: a body is lowered once, in the memory of what is around it, and a `Span` repeats it.

Carries live in one place, the buffers of the loop's results: the body reads and writes them like state, so that what
can be updated in place is. A row of a stacked operand or result is a view whose address moves on with each iteration.
It is given to the body as a buffer of its own, so that each argument made from it is known, and replaced afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from graphc.dtype import bool_
from graphc.ir import Attrs, Graph, Node, Value, attrs
from graphc.kernels.assign import Frame, Step
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.lower_invariant import hoist
from graphc.kernels.plan import Arg, Buffer, Span, View
from graphc.ops.control import scan_parts

__all__ = ["carried", "lower_control"]

# Lowers steps, or a graph within a frame; the launches go to the context.
LowerSteps = Callable[[Sequence[Step], LowerContext], None]
LowerGraph = Callable[[Graph, Frame, LowerContext], object]


@dataclass(frozen=True)
class Block:
    """What lowering control flow needs to lower what is inside."""

    ctx: LowerContext
    steps: LowerSteps
    graph: LowerGraph

    def copy(self, source: View, target: View) -> None:
        if source != target:
            self.steps([Step(None, (source,), (target,), self.ctx.loc)], self.ctx)

    def run(self, graph: Graph, inputs: Sequence[View], outputs: Sequence[View], carries: Sequence[View] = ()) -> None:
        """Lower ``graph``: its outputs go to ``outputs``; ``carries`` are its state by number."""
        names = [name for name, _ in graph.outputs]
        state = {f"carry{i}": view for i, view in enumerate(carries)}
        frame = Frame(self.ctx.names, self.ctx.consts, inputs, state, dict(zip(names, outputs, strict=True)))
        self.graph(graph, frame, self.ctx)


def lower_control(step: Step, ctx: LowerContext, steps: LowerSteps, graph: LowerGraph) -> None:
    """The launches and the span of a `scan`, `cond` or `while_loop`."""
    assert step.node is not None
    RULES[step.node.op](step.node.attrs, step, Block(ctx, steps, graph))


def carried(node: Node, operand: int, result: int) -> bool:
    """Whether ``operand`` of a loop is the first value of the carry that ``result`` is the last value of."""
    return node.op != "cond" and result < node.attrs["carries"] and operand == node.attrs["consts"] + result


# scan ----------------------------------------------------------------------------------------------------------------


def lower_scan(at: Attrs, step: Step, block: Block) -> None:
    ctx, length, kept = block.ctx, at["length"], at["kept"]
    parts = scan_parts(step.operands, at)
    results, ys = step.results[: at["carries"]], step.results[at["carries"] :]
    before, after = (length, length - 1) if at["reverse"] else (0, 1)  # rows of the first iteration in what is kept
    for i, (first, result) in enumerate(zip(parts.carries, results, strict=True)):
        block.copy(first, row(result, before) if i in kept else result)
    if not length:
        return
    rows = Rows(ctx, length, at["reverse"])
    inputs = [*parts.consts, *(rows.of(results[i], before) for i in kept), *map(rows.of, parts.xs)]
    outputs = [*(rows.of(results[i], after) for i in kept), *map(rows.of, ys)]
    start = len(ctx.launches)
    block.run(stateful(at["body"], at, kept), inputs, outputs, [r for i, r in enumerate(results) if i not in kept])
    start, _ = hoist(ctx, start, start, {r.buffer.name for r in step.results}, rows.known)
    steps = rows.resolve(start)
    stop = len(ctx.launches)
    for i in range(start, stop):
        launch = ctx.launches[i]
        ctx.launches[i] = replace(launch, flops=length * launch.flops, bytes=length * launch.bytes)
    if stop > start:
        ctx.spans.append(Span("repeat", start, start, stop, length, steps))


def row(stack: View, number: int) -> View:
    offset = stack.offset + number * stack.strides[0]
    return View(stack.buffer, stack.dtype, stack.shape[1:], stack.strides[1:], offset)


@dataclass(frozen=True)
class Row:
    """The row of the first iteration: where it begins in ``buffer``, and the way to the next, in bytes."""

    buffer: Buffer
    offset: int
    stride: int


@dataclass
class Rows:
    """The stand-ins for rows of stacked tensors while the body of a loop of ``length`` is lowered."""

    ctx: LowerContext
    length: int
    reverse: bool
    known: dict[str, Row] = field(default_factory=dict)

    def of(self, stack: View, first: int | None = None) -> View:
        """The row of ``stack`` that moves with the iteration, as a view of a buffer that stands for it. ``first`` is
        its number in the first iteration, if that is not the row of the iteration."""
        here = row(stack, (self.length - 1) * self.reverse if first is None else first)
        alias = self.ctx.temp("row", stack.buffer.nbytes, space="row")
        stride = -stack.strides[0] if self.reverse else stack.strides[0]
        item = stack.dtype.itemsize
        self.known[alias.name] = Row(stack.buffer, here.offset * item, stride * item)
        return replace(here, buffer=alias, offset=0)

    def resolve(self, start: int) -> tuple[tuple[int, int, int], ...]:
        """Let the launches from ``start`` on use the real buffers; the arguments that move, with their strides."""
        steps: list[tuple[int, int, int]] = []
        for number in range(start, len(self.ctx.launches)):
            launch = self.ctx.launches[number]
            rows = [self.known.get(a.buffer.name) if a.buffer else None for a in launch.args]
            steps += [(number, i, row.stride) for i, row in enumerate(rows) if row and row.stride]
            args = tuple(self._real(a) if row else a for a, row in zip(launch.args, rows, strict=True))
            self.ctx.launches[number] = replace(launch, args=args)
        return tuple(steps) if self.length > 1 else ()

    def _real(self, arg: Arg) -> Arg:
        assert arg.buffer is not None
        row = self.known[arg.buffer.name]
        return replace(arg, buffer=row.buffer, offset=arg.offset + row.offset)


def stateful(body: Graph, at: Attrs, kept: Sequence[int] = ()) -> Graph:
    """``body`` with its carries, but for those ``kept``, as state that it reads and updates, its nodes in order."""
    carries = [(i, v) for i, v in enumerate(scan_parts(body.inputs, at).carries) if i not in kept]
    names = {v: f"carry{k}" for k, (_, v) in enumerate(carries)}
    new: dict[Value, Value] = {}
    nodes: list[Node] = []
    for node in body.nodes:
        if node.out() in names:
            v = node.out()
            at_state = attrs(name=names[v], dtype=v.dtype, shape=v.shape, trainable=False)
            made = Node("state", (), at_state, node.types, node.loc)
        elif node.op == "input":
            made = node
        else:
            made = Node(node.op, tuple(new[v] for v in node.inputs), node.attrs, node.types, node.loc)
        nodes.append(made)
        new.update(zip(node.outs, made.outs, strict=True))
    updated = {i for i, _ in carries}
    return Graph(
        body.name,
        tuple(nodes),
        tuple(v for v in body.inputs if v not in names),
        tuple((name, new[v]) for i, (name, v) in enumerate(body.outputs) if i not in updated),
        tuple((names[v], new[body.outputs[i][1]]) for i, v in carries),
    )


# while_loop and cond --------------------------------------------------------------------------------------------------


def lower_while(at: Attrs, step: Step, block: Block) -> None:
    ctx = block.ctx
    parts = scan_parts(step.operands, at)
    for first, carry in zip(parts.carries, step.results, strict=True):
        block.copy(first, carry)
    decided = View.whole(ctx.temp("test", 1), bool_, ())
    start = len(ctx.launches)
    block.run(at["test"], [*parts.consts, *step.results], [decided])
    middle = len(ctx.launches)
    block.run(stateful(at["body"], at), parts.consts, [], step.results)
    start, middle = hoist(ctx, start, middle, {r.buffer.name for r in (*step.results, decided)})
    test = Arg(decided.buffer, reads=True)
    ctx.spans.append(Span("while", start, middle, len(ctx.launches), test=test))


def lower_cond(at: Attrs, step: Step, block: Block) -> None:
    ctx = block.ctx
    test, operands = step.operands[0], step.operands[1:]
    if test.buffer.space == "row":
        moving, test = test, View.whole(ctx.temp("test", 1), bool_, ())
        block.copy(moving, test)
    start = len(ctx.launches)
    block.run(at["then"], operands, step.results)
    middle = len(ctx.launches)
    block.run(at["other"], operands, step.results)
    stop = len(ctx.launches)
    if stop > start:
        ctx.spans.append(Span("cond", start, middle, stop, test=Arg(test.buffer, test.offset, reads=True)))


RULES: dict[str, Callable[[Attrs, Step, Block], None]] = {
    "scan": lower_scan,
    "cond": lower_cond,
    "while_loop": lower_while,
}
