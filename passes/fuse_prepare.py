"""What fusion wants to see: reductions along one run of axes, and gradients that need results, not arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Reduce, apply, at_loc, get_op

__all__ = ["masks_of_results", "plain_reductions"]


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


def masks_of_results(graph: Graph, stored: Collection[Node]) -> Graph:
    """After: where y = relu(x) and x would be ``stored`` for the gradient alone, the gradient asks where y is 0.

    ``y = where(x <= c, c, x)`` has ``(y <= c) = (x <= c)`` for every x, NaN too; the same with ``>=``."""
    clamps = {n for n in graph.nodes if n in stored and _clamps(graph, n) and n.inputs[2].node in stored}
    made: dict[Value, Value] = {}  # by the mask of an argument, that of the result

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        if node in clamps:
            mask = node.inputs[0]
            result = Node(node.op, inputs, node.attrs, node.types, node.loc).out()
            with at_loc(node.loc):
                made[mask] = apply(mask.node.op, result, inputs[1])
            return [result]
        if not any(v in made for v in node.inputs):
            return None
        masked = tuple(made.get(old, new) for old, new in zip(node.inputs, inputs, strict=True))
        return Node(node.op, masked, node.attrs, node.types, node.loc).outs

    return graph.rewrite(rule) if clamps else graph


def _clamps(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is ``where(x <= c, c, x)``, x is used for nothing else, and the mask for something else."""
    if node.op != "where" or node.inputs[0].node.op not in ("less_equal", "greater_equal"):
        return False
    mask, bound, x = node.inputs
    alone = {*graph.users(x)} == {mask.node, node} and x not in graph.results
    return alone and mask.node.inputs == (x, bound) and len(graph.users(mask)) > 1
