"""Fusion: which nodes become one kernel."""

from __future__ import annotations

from graphc.ir import Graph, Node
from graphc.ops.base import Contract, Gather, Join, Map, Move, Reduce, Region, Scatter, Source, Split, get_op
from graphc.passes.fuse_extract import Group, extract

__all__ = ["fuse"]


def fuse(graph: Graph) -> Graph:
    """Group the nodes of ``graph`` into kernels."""
    groups = []
    for node in graph.nodes:
        lowering = get_op(node.op).lower
        if isinstance(lowering, Move | Split | Join | Source):
            continue
        groups.append(Group(_hint(node), (node,), node.outs))
    return extract(graph, groups, frozenset())


def _hint(node: Node) -> str:
    lowering = get_op(node.op).lower
    match lowering:
        case Map():
            return "map"
        case Contract():
            return "contract"
        case Gather():
            return "gather"
        case Scatter():
            return "scatter"
        case Reduce():
            ndim, axes = node.inputs[0].type.ndim, node.attrs["axes"]
            return "row" if axes == tuple(range(ndim - len(axes), ndim)) and len(axes) < ndim else "col"
    assert isinstance(lowering, Region)
    return str(node.attrs["hint"])
