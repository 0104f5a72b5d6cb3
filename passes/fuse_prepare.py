"""What fusion wants to see: reductions along one run of axes."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Reduce, apply, at_loc, get_op

__all__ = ["plain_reductions"]


def plain_reductions(graph: Graph) -> Graph:
    """After: every reduction has axes, and reduces a trailing run of them, everything, or none of the trailing.

    ``sum{0,2}(x) = sum{0}(sum{2}(x))``: the inner one is a row kernel, the outer one sums columns."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        if not isinstance(get_op(node.op).lower, Reduce):
            return None
        (x,), axes = inputs, node.attrs["axes"]
        if not axes:
            return [x]
        ndim = x.type.ndim
        run = next((k for k in range(len(axes)) if axes[k:] == tuple(range(ndim - len(axes) + k, ndim))), len(axes))
        if run in (0, len(axes)) or len(axes) == ndim:
            return None
        with at_loc(node.loc):
            return [apply(node.op, apply(node.op, x, axes=axes[run:]), axes=axes[:run])]

    return graph.rewrite(rule)
