"""What fusion wants to see: no regions but those with kernels of their own, and reductions along one run of axes."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Reduce, Region, apply, at_loc, get_op

__all__ = ["KERNEL_REGIONS", "inline", "plain_reductions"]

# Regions that are kernels as they are. Others are only there for passes that have run by now.
KERNEL_REGIONS = frozenset({"attention", "attention.vjp"})


def inline(graph: Graph) -> Graph:
    """Replace calls by their bodies, except `KERNEL_REGIONS`. Nothing is merged: what a region computes again
    (checkpoints) stays computed again."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        if not isinstance(get_op(node.op).lower, Region) or node.attrs["hint"] in KERNEL_REGIONS:
            return None
        body = inline(node.attrs["body"])
        new = dict(zip(body.inputs, inputs, strict=True))
        for n in body.nodes:
            if n.op != "input":
                made = Node(n.op, tuple(new[v] for v in n.inputs), n.attrs, n.types, n.loc)
                new.update(zip(n.outs, made.outs, strict=True))
        return [new[v] for _, v in body.outputs]

    return graph.rewrite(rule)


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
