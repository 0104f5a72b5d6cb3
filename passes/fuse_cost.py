"""What an elementwise node costs, from its own lowering: intrinsics weighed in units of an addition."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import int64
from graphc.ir import Node, Value
from graphc.loop import Call, Const, Expr, Var
from graphc.ops.base import Map, MapContext, get_op

__all__ = ["expr_cost", "map_context", "node_cost", "positions", "probe"]

# Roughly as on a CPU with polynomial math; intrinsics that are not listed count 1.
COSTS = {
    "div": 4, "sqrt": 5, "rsqrt": 6, "exp": 10, "log": 12, "tanh": 14, "erf": 14, "sin": 14, "cos": 14, "sigmoid": 14,
    "pow": 25, "mod": 6, "threefry": 80,
}  # fmt: skip


def expr_cost(expr: Expr) -> int:
    """The work of a scalar expression."""
    return COSTS.get(expr.name, 1) + sum(map(expr_cost, expr.args)) if isinstance(expr, Call) else 0


def node_cost(node: Node) -> int:
    """The work of one element of an elementwise node, 0 for any other."""
    return expr_cost(probe(node.out())) if isinstance(get_op(node.op).lower, Map) else 0


def probe(value: Value) -> Expr:
    """The expression of one element over placeholders."""
    lowering = get_op(value.node.op).lower
    assert isinstance(lowering, Map)
    return lowering.element([Var(f"arg{i}", v.dtype) for i, v in enumerate(value.node.inputs)], map_context(value))


def map_context(value: Value, known: Mapping[str, Expr] | None = None) -> MapContext:
    """What a `Map` rule sees; ``known`` None: the positions are placeholders of their own names."""
    lowering = get_op(value.node.op).lower
    if isinstance(lowering, Map) and not lowering.coords:
        return MapContext(value.node.attrs, value.type, (), None)
    names = known if known is not None else {p: Var(p) for p in positions(value)}
    coords = tuple(names.get(f"coord{d}", Const(0, int64)) for d in range(value.type.ndim))
    return MapContext(value.node.attrs, value.type, coords, names.get("linear"))


def positions(value: Value) -> list[str]:
    """The names of what a rule may know of the element's place."""
    return [f"coord{d}" for d in range(value.type.ndim)] + ["linear"]
