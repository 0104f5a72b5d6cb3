"""Dead code at the borders of control flow: which operands, carries and results of a loop or branch are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from graphc.ir import Graph, Node

__all__ = ["Trimmed", "needed_inputs", "trim_control"]


class Trimmed(NamedTuple):
    """What is left of a node: its attributes, and which operands and results it keeps."""

    attrs: dict[str, Any]
    operands: Sequence[int]
    results: Sequence[int]


def trim_control(node: Node, results: Sequence[int], dce: Callable[[Graph], Graph]) -> Trimmed:
    """``node`` with the ``results`` that are used and what they need; ``dce`` cleans up a block. A carry is needed when
    its result is, or when the body needs it for one that is."""
    if node.op == "cond":
        return _trim_cond(node, results, dce)
    at = {**node.attrs, "body": dce(node.attrs["body"])}
    consts, carries = at["consts"], at["carries"]
    wanted = set(results)
    inside: set[int] = set()
    if node.op == "while_loop":
        at["test"] = dce(at["test"])
        inside = needed_inputs(at["test"], [0])
    while True:
        inside |= needed_inputs(at["body"], sorted(wanted))
        more = {i - consts for i in inside if consts <= i < consts + carries} - wanted
        if not more:
            break
        wanted |= more
    operands = sorted(inside | {consts + i for i in wanted if i < carries})
    kept = sorted(wanted)
    at["consts"] = sum(i < consts for i in operands)
    at["carries"] = sum(i < carries for i in kept)
    at["body"] = _with_border(at["body"], operands, kept)
    if node.op == "while_loop":
        at["test"] = _with_border(at["test"], operands, [0])
    return Trimmed(at, operands, kept)


def _trim_cond(node: Node, results: Sequence[int], dce: Callable[[Graph], Graph]) -> Trimmed:
    branches = {name: dce(node.attrs[name]) for name in ("then", "other")}
    operands = sorted(set().union(*(needed_inputs(b, results) for b in branches.values())))
    trimmed = {name: _with_border(b, operands, results) for name, b in branches.items()}
    return Trimmed({**node.attrs, **trimmed}, [0, *(i + 1 for i in operands)], results)


def needed_inputs(graph: Graph, outputs: Sequence[int]) -> set[int]:
    """The inputs, by number, that ``outputs`` of ``graph`` depend on."""
    present = set(Graph.build(graph.name, (), [graph.outputs[i] for i in outputs]).nodes)
    return {i for i, v in enumerate(graph.inputs) if v.node in present}


def _with_border(graph: Graph, inputs: Sequence[int], outputs: Sequence[int]) -> Graph:
    return Graph.build(graph.name, [graph.inputs[i] for i in inputs], [graph.outputs[i] for i in outputs])
