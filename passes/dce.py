"""Dead code: what no output and no update needs is dropped, also inside regions and at their borders."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Control, Region, apply_node, at_loc, get_op
from graphc.passes.dce_control import Trimmed, trim_control
from graphc.passes.inline import KERNELS

__all__ = ["dce", "trim"]


def dce(graph: Graph) -> Graph:
    """Drop unreachable nodes, and operands and results of regions that are not used.

    Before: gradients are expanded (a gradient rule by hand would refer to the operands and results of its region).
    After: every node but the graph's inputs is needed; every operand of a region is read by its body and every result
    is used, except where the hint is in `KERNELS`; the same holds for control flow, save that a carry may be there only
    because another one needs it; no region carries a gradient rule.

    Example: ``%2,%3 = call{body=f}(%0, %1); return (%2)`` where f needs only %1 for its first result becomes
    ``%2 = call{body=g}(%1); return (%2)``.
    """
    trimmed = _trimmed_regions(graph)

    def visit(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        if node not in trimmed:
            return None
        at, operands, results = trimmed[node]
        with at_loc(node.loc):
            made = dict(zip(results, apply_node(node.op, *(inputs[i] for i in operands), **at).outs, strict=True))
        return [made.get(i, v) for i, v in enumerate(node.outs)]  # nobody takes a dead result

    return graph.rewrite(visit)


def _trimmed_regions(graph: Graph) -> dict[Node, Trimmed]:
    """What is left of each live region. Users come before their operands here: a region that needs fewer operands may
    leave another one with fewer results."""
    live: set[Value] = set(graph.results)
    trimmed: dict[Node, Trimmed] = {}
    for node in reversed(graph.nodes):
        results = [i for i, v in enumerate(node.outs) if v in live]
        if not results:
            continue
        operands: Sequence[int] = range(len(node.inputs))
        match get_op(node.op).lower:
            case Control():
                trimmed[node] = trim_control(node, results, dce)
                operands = trimmed[node].operands
            case Region():
                trimmed[node] = _trim_region(node, results)
                operands = trimmed[node].operands
        live.update(node.inputs[i] for i in operands)
    return trimmed


def _trim_region(node: Node, results: Sequence[int]) -> Trimmed:
    """The region with the ``results`` that are used and the operands that they need; a kernel keeps its form."""
    body = dce(node.attrs["body"])
    operands: Sequence[int] = range(len(node.inputs))
    if node.attrs["hint"] in KERNELS:
        results = range(len(node.types))
    else:
        body, operands = trim(body, results)
    return Trimmed({**node.attrs, "body": body, "vjp": None}, operands, results)


def trim(body: Graph, results: Sequence[int]) -> tuple[Graph, list[int]]:
    """``body`` with the outputs ``results`` and the inputs that they need, and which inputs those are."""
    outputs = [body.outputs[i] for i in results]
    present = set(Graph.build(body.name, (), outputs).nodes)
    operands = [i for i, v in enumerate(body.inputs) if v.node in present]
    return Graph.build(body.name, [body.inputs[i] for i in operands], outputs), operands
