"""Common subexpressions: equal computations are done once."""

from __future__ import annotations

from typing import Any

from graphc.ir import Attrs, Graph, Node, Value
from graphc.passes.rewrite import with_bodies

__all__ = ["cse"]


def cse(graph: Graph) -> Graph:
    """Merge nodes of the same op, operands and attributes; the first one, and its source line, stays.

    Before: any graph (random numbers are functions of their keys, so merging them is right). After: no two nodes of
    one graph compute the same. Bodies of regions are done each on its own: what a checkpointed region computes again
    in the backward pass is not merged with the forward pass.

    Example: ``%2 = exp(%1); %3 = exp(%1); %4 = add(%2, %3)`` becomes ``%2 = exp(%1); %4 = add(%2, %2)``.
    """
    first: dict[tuple[Any, ...], Node] = {}
    inputs_of_graph = {v.node for v in graph.inputs}

    def merge(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        if node in inputs_of_graph:
            return None
        if inputs != node.inputs:
            node = Node(node.op, inputs, node.attrs, node.types, node.loc)
        return first.setdefault((node.op, inputs, _key(node.attrs), node.types), node).outs

    return with_bodies(graph, cse).rewrite(merge)


def _key(at: Attrs) -> tuple[Any, ...]:
    """The attributes as a hashable value. Types are part of it: 1, 1.0 and True are equal to Python, not to an op."""
    return tuple((k, type(v), v) for k, v in at.items())
