"""Views read backwards: which call made a value, and where its result must lie for a view of it to lie somewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import UnionType

from graphc.dtype import Shape, contiguous_strides
from graphc.ir import Graph, Node, Value
from graphc.kernels.plan import View
from graphc.ops.base import Move, Region, Split, get_op
from graphc.passes.views import is_view, roots

__all__ = ["Layouts"]


class Layouts:
    """Facts about the views of a fused graph. ``strides`` holds the layouts other than row-major that results get."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.strides: dict[Value, Shape] = {}
        self._roots = roots(graph)
        self._choose()

    def root(self, value: Value) -> Value:
        """The value whose memory ``value`` is a view of."""
        return self._roots[value]

    def readers(self, value: Value) -> list[Node]:
        """The nodes that read ``value`` through any view."""
        found: dict[Node, None] = {}
        stack = [value]
        while stack:
            for node in self.graph.users(stack.pop()):
                if is_view(node):
                    stack.extend(node.outs)
                else:
                    found[node] = None
        return list(found)

    def only_reader(self, result: Value, node: Node) -> bool:
        """Whether ``node`` is all that reads ``result``, once."""
        leaves = {self.root(v) for v in self.graph.results}
        return result not in leaves and self.readers(result) == [node] and self.read_once_by(result, node)

    def read_once_by(self, result: Value, node: Node) -> bool:
        return sum(self.root(v) == result for v in node.inputs) == 1

    def producer(self, value: Value, made_by: type | UnionType) -> tuple[Value, list[Node]] | None:
        """The result of a node of lowering ``made_by`` that ``value`` is a rearrangement of, and the moves
        between, last first."""
        moves: list[Node] = []
        while isinstance(get_op(value.node.op).lower, Move):
            if value.node.op not in INVERSE:
                return None
            moves.append(value.node)
            value = value.node.inputs[0]
        return (value, moves) if isinstance(get_op(value.node.op).lower, made_by) else None

    def inverse(self, target: View, moves: Sequence[Node]) -> View | None:
        """Where the producer's result must lie for its view through ``moves`` (last first) to be ``target``."""
        strides = _undo(target.strides, moves)
        if strides is None:
            return None
        shape = moves[-1].inputs[0].shape if moves else target.shape
        return View(target.buffer, target.dtype, shape, strides, target.offset)

    def _choose(self) -> None:
        """Find the reshapes that no strided view of a row-major result can express, and lay the result out for them."""
        seen: dict[Value, Shape] = {}
        for node in self.graph.nodes:
            lowering = get_op(node.op).lower
            for v in node.outs:
                seen[v] = contiguous_strides(v.shape)
            if isinstance(lowering, Split):
                seen.update((v, seen[node.inputs[0]]) for v in node.outs)
            if not isinstance(lowering, Move):
                continue
            operand = node.inputs[0]
            found = lowering.view(operand.shape, seen[operand], node.attrs, node.out().shape)
            if found is not None:
                seen[node.out()] = found[0]
            else:
                self._lay_out(node)

    def _lay_out(self, node: Node) -> None:
        found = self.producer(node.out(), Region)
        if found is None:
            return
        result, moves = found
        strides = _undo(contiguous_strides(node.out().shape), moves)
        # Kernels want the last dimension together in memory.
        if strides and strides[-1] == 1:
            self.strides.setdefault(result, strides)


def _undo(strides: Shape, moves: Sequence[Node]) -> Shape | None:
    """Strides of what ``moves`` (last first) started from, given those of the end; None where there are none."""
    for node in moves:
        before = INVERSE[node.op](node, strides)
        if before is None:
            return None
        strides = before
    return strides


def _undo_reshape(node: Node, strides: Shape) -> Shape | None:
    lowering = get_op(node.op).lower
    assert isinstance(lowering, Move)
    seen = lowering.view(node.out().shape, strides, node.attrs, node.inputs[0].shape)
    return None if seen is None else seen[0]


def _undo_permutation(node: Node, strides: Shape) -> Shape:
    out = [0] * len(strides)
    for k, axis in enumerate(node.attrs["axes"]):
        out[axis] = strides[k]
    return tuple(out)


# Movements that are a rearrangement of all elements, and their inverses on strides.
INVERSE: dict[str, Callable[[Node, Shape], Shape | None]] = {
    "reshape": _undo_reshape,
    "permute_dims": _undo_permutation,
}
