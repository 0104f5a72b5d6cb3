"""What movement means for memory: strides through moves, and the value that a view looks at."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Move, Split, get_op

__all__ = ["is_view", "moved", "roots"]


def is_view(node: Node) -> bool:
    """Whether the results of ``node`` are windows on its operand, where strides can express them."""
    return isinstance(get_op(node.op).lower, Move | Split)


def roots(graph: Graph) -> dict[Value, Value]:
    """For every value of ``graph``, the one whose memory it is a view of (itself, if it is no view)."""
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        for v in node.outs:
            found[v] = found[node.inputs[0]] if is_view(node) else v
    return found


def moved(shape: Shape, strides: Shape, offset: int, moves: Sequence[Node]) -> tuple[Shape, int] | None:
    """Strides and offset, in elements, of an array after ``moves``, the first first; None where strides cannot express
    one of them."""
    for node in moves:
        lowering = get_op(node.op).lower
        assert isinstance(lowering, Move)
        seen = lowering.view(shape, strides, node.attrs, node.types[0].shape)
        if seen is None:
            return None
        shape, strides, offset = node.types[0].shape, seen[0], offset + seen[1]
    return strides, offset
