"""The verifier: every rule that a graph keeps, checked from nothing but the graph.

It runs between passes in the tests and under ``GRAPHC_DEBUG``, and on every graph that is read from text.
"""

from __future__ import annotations

from collections.abc import Iterable

from graphc.dtype import TensorType
from graphc.errors import GraphcError, error
from graphc.ir import Graph, Node, Value
from graphc.ops.base import get_op, known_op
from graphc.text import number_values, print_node

__all__ = ["verify"]

MAX_DEPTH = 32  # of regions inside each other
NEIGHBOURS = 3  # lines printed on each side of the one that is wrong


def verify(graph: Graph) -> None:
    """Check ``graph`` and the bodies of its regions.

    The rules: operations are known; each node follows those that it uses and stands once; the recorded types are those
    that the op infers; the graph's inputs are its input nodes, in order; names of inputs, of outputs and of updates are
    each unique; reads of one state agree on its type, and an update has that type; regions have no updates. Raises
    GC0001 with the neighbouring lines.
    """
    check_graph(graph, 0)


def check_graph(graph: Graph, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise error("GC0001", f"more than {MAX_DEPTH} regions inside each other")
    check_nodes(graph, depth)
    check_border(graph)
    check_state(graph)


def check_nodes(graph: Graph, depth: int) -> None:
    defined: set[Value] = set()
    for position, node in enumerate(graph.nodes):
        why = node_defect(node, defined)
        if why is not None:
            raise refuse(graph, position, why)
        defined.update(node.outs)
        for value in node.attrs.values():
            if isinstance(value, Graph):
                check_graph(value, depth + 1)
    for name, value in graph.outputs + graph.updates:
        if value not in defined:
            raise refuse(graph, len(graph.nodes), f"result {name} is not defined in the graph")


def node_defect(node: Node, defined: set[Value]) -> str | None:
    """What is wrong with ``node`` when the values before it are ``defined``."""
    if not known_op(node.op):
        return f"there is no operation {node.op}"
    if any(v in defined for v in node.outs):
        return "the node stands twice"
    for i, v in enumerate(node.inputs):
        if v not in defined:
            return f"operand {i} is not defined before its use"
    try:
        types = get_op(node.op).infer([v.type for v in node.inputs], node.attrs)
    except GraphcError as e:
        return f"{e.code} {e.message}"
    if types != node.types:
        return f"the types should be {', '.join(map(str, types))}"
    return None


def check_border(graph: Graph) -> None:
    nodes = [i for i, node in enumerate(graph.nodes) if node.op == "input"]
    if [graph.nodes[i].out() for i in nodes] != list(graph.inputs):
        raise refuse(graph, nodes[0] if nodes else 0, "the graph's inputs are not its input nodes, in order")
    for what, names in (
        ("input", [graph.nodes[i].attrs["name"] for i in nodes]),
        ("output", [name for name, _ in graph.outputs]),
        ("update", [name for name, _ in graph.updates]),
    ):
        twice = first_repeated(names)
        if twice is not None:
            raise refuse(graph, len(graph.nodes), f"{what} {twice} occurs twice")


def check_state(graph: Graph) -> None:
    types: dict[str, TensorType] = {}
    for position, node in enumerate(graph.nodes):
        if node.op == "state":
            name, t = node.attrs["name"], node.types[0]
            if types.setdefault(name, t) != t:
                raise refuse(graph, position, f"state {name} is read as {t} and as {types[name]}")
    for name, value in graph.updates:
        if types.get(name, value.type) != value.type:
            raise refuse(graph, len(graph.nodes), f"state {name} is {types[name]}, and its update {value.type}")


def first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def refuse(graph: Graph, position: int, why: str) -> GraphcError:
    """The error with the lines around node ``position`` (the end of the graph where there is no such node)."""
    names = number_values(graph)
    first = max(position - NEIGHBOURS, 0)
    lines = [
        f"{'>' if i == position else ' '} {print_node(node, names, brief=True)}"
        for i, node in enumerate(graph.nodes[first : position + NEIGHBOURS + 1], first)
    ]
    loc = graph.nodes[position].loc if position < len(graph.nodes) else None
    return error("GC0001", f"graph {graph.name}: {why}", loc=loc, hint="\n".join(lines))
