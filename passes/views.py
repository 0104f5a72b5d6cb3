"""What nodes mean for memory: strides through moves, the value that a view looks at, what may be written over."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Control, Join, Map, Move, Region, Split, get_op

__all__ = ["constant", "elementwise", "homes", "is_view", "moved", "padded", "roots"]


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


def homes(graph: Graph) -> dict[Value, Value]:
    """`roots`, where what is put into one padding is computed there: it shares the memory of its padding."""
    found: dict[Value, Value] = {}
    movable: set[Value] = set()  # what is made by a kernel, all of it and in any order
    housed = set(graph.results)
    for node in graph.nodes:
        inside = node.inputs[0] if is_view(node) else padded(node)
        if inside is None or (not is_view(node) and (inside not in movable or inside in housed)):
            found.update((v, v) for v in node.outs)
            if isinstance(get_op(node.op).lower, Region | Control | Join):
                movable.update(node.outs)
            continue
        found.update((v, found[inside]) for v in node.outs)
        if not is_view(node):
            housed.add(inside)
        if inside in movable and (not is_view(node) or node.op in ("reshape", "permute_dims")):
            movable.update(node.outs)
    return found


def constant(value: Value) -> Value | None:
    """The number that ``value`` holds everywhere, if it is a constant."""
    while isinstance(get_op(value.node.op).lower, Move):
        value = value.node.inputs[0]
    return value if value.node.op == "const" and value.type.size == 1 else None


def padded(node: Node) -> Value | None:
    """What ``node`` puts constants around, if it is a join that does no more."""
    if not isinstance(get_op(node.op).lower, Join):
        return None
    inside = [v for v in node.inputs if constant(v) is None]
    return inside[0] if len(inside) == 1 < len(node.inputs) else None


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
    key = ("elementwise", value)
    if key not in body.known:
        body.known[key] = _elementwise(body, value)
    found: bool = body.known[key]
    return found


def _elementwise(body: Graph, value: Value) -> bool:
    stack, seen = [value], {value}
    while stack:
        for user in body.users(stack.pop()):
            if not isinstance(get_op(user.op).lower, Map):
                return False
            stack.extend(v for v in user.outs if v not in seen)
            seen.update(user.outs)
    return True
