"""What nodes mean for memory: strides through moves, the value that a view looks at, what may be written over."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Map, Move, Split, get_op

__all__ = ["elementwise", "is_view", "moved", "roots"]


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


def elementwise(body: Graph, value: Value) -> bool:
    """Whether elements of ``value`` are only used for the same element of the results, after everything else of the
    kernel is done (in the epilogue of a product, say)."""
    stack, seen = [value], {value}
    while stack:
        for user in body.users(stack.pop()):
            if not isinstance(get_op(user.op).lower, Map):
                return False
            stack.extend(v for v in user.outs if v not in seen)
            seen.update(user.outs)
    return True
