"""Constant folding: what depends on constants alone is computed at compile time."""

from __future__ import annotations

from graphc.errors import Loc
from graphc.ir import Graph, Literal, Node, Value
from graphc.ops import get_op
from graphc.ops.base import Control, Meta, Region, apply, at_loc
from graphc.passes.rewrite import with_bodies

__all__ = ["LIMIT", "fold"]

LIMIT = 4096  # elements; larger constants cost more in the artifact than computing them costs in a step


def fold(graph: Graph) -> Graph:
    """Evaluate nodes whose operands are all constants, by the op itself.

    Before: any graph. After: no node has only constant operands, except where its results have more than `LIMIT`
    elements or more than all of its operands together (a broadcast, which costs nothing where it is).

    Example: ``%3 = mul(%1, %2)`` of the constants 2 and 3 becomes the constant 6.
    """
    return with_bodies(graph.rewrite(_fold), fold)


def _fold(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
    op = get_op(node.op)
    if not inputs or any(v.node.op != "const" for v in inputs) or isinstance(op.lower, Region | Control | Meta):
        return None
    size = sum(t.size for t in node.types)
    if size > LIMIT or size > sum(v.type.size for v in inputs):
        return None
    results = op.evaluate([v.node.attrs["value"].array for v in inputs], node.attrs)
    return [_const(r, node.loc) for r in (Literal.of(a) for a in results)]


def _const(value: Literal, loc: Loc | None) -> Value:
    with at_loc(loc):
        return apply("const", value=value)
