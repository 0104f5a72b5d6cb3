"""Regions that have no kernel of their own become plain nodes."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Region, get_op
from graphc.passes.rewrite import with_bodies

__all__ = ["KERNELS", "inline"]

# Hints of regions that code generation knows by their operands and results. They stay whole.
KERNELS = frozenset({"attention", "attention.vjp"})


def inline(graph: Graph) -> Graph:
    """Replace each `call` by the nodes of its body, unless its hint is in `KERNELS`.

    Before: equal nodes are merged, and stay unmerged from here on: what a checkpointed region computes again in the
    backward pass is not merged with the forward pass. After: every `call` is a kernel of its own.

    Example: ``%1 = call{body=f, hint="checkpoint"}(%0)``, where f is exp, becomes ``%1 = exp(%0)``.
    """

    def visit(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if not isinstance(get_op(node.op).lower, Region) or node.attrs["hint"] in KERNELS:
            return None
        return _splice(inline(node.attrs["body"]), inputs)

    return with_bodies(graph, inline, blocks_only=True).rewrite(visit)


def _splice(body: Graph, inputs: Sequence[Value]) -> list[Value]:
    """The results of ``body`` on ``inputs``, as new nodes."""
    new = dict(zip(body.inputs, inputs, strict=True))
    for node in body.nodes:
        if node.op != "input":
            made = Node(node.op, tuple(new[v] for v in node.inputs), node.attrs, node.types, node.loc)
            new.update(zip(node.outs, made.outs, strict=True))
    return [new[v] for _, v in body.outputs]
