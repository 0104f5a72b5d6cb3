"""Where 16-bit floats are accumulated, it is in float32."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.dtype import float32
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, Reduce, RowWise, Scatter, apply_node, at_loc, get_op
from graphc.ops.build import convert
from graphc.passes.precision import moved_after
from graphc.passes.rewrite import with_bodies

__all__ = ["widen"]


def widen(graph: Graph) -> Graph:
    """Write reductions, products, scatters and ops along rows of 16-bit floats as ones of float32, between casts.

    Before: any graph. After: only maps, movement, gathers, sources and products have 16-bit operands; a map is computed
    in float32 by its own rule (`graphc.ops.base.Map.element`), and products have their sums in float32. The values are
    the same bit for bit where the op has one order of evaluation: an op on 16-bit floats is defined as computed in
    float32 and rounded once.

    Example: ``sum{axes=(1)}(%x)`` of bfloat16 becomes ``astype{bfloat16}(sum{axes=(1)}(astype{float32}(%x)))``.
    """

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        accumulates = isinstance(get_op(node.op).lower, Contract | Reduce | RowWise | Scatter)
        if not accumulates or not any(v.dtype.is_half for v in inputs):
            return None
        with at_loc(node.loc):
            if isinstance(get_op(node.op).lower, Contract):
                made = apply_node(node.op, *inputs, **{**node.attrs, "dtype": float32})
            else:
                made = apply_node(node.op, *map(wide, inputs), **node.attrs)
            return [convert(v, t.dtype) for v, t in zip(made.outs, node.types, strict=True)]

    return with_bodies(graph.rewrite(rule), widen, blocks_only=True)


def wide(value: Value) -> Value:
    """``value`` in the type that it is computed in."""
    return moved_after(value, value.dtype.computed)
