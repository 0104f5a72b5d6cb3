"""From a partition of the nodes to a graph of `call` nodes whose bodies are the exact decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Control, Join, Map, Move, Reduce, Region, Source, Split, apply, at_loc, get_op

__all__ = ["Group", "extract", "is_uniform"]


@dataclass(frozen=True)
class Group:
    """The nodes of one kernel, and those of their results that leave it."""

    hint: str
    members: tuple[Node, ...]
    results: tuple[Value, ...]


def is_uniform(node: Node) -> bool:
    """A constant with one value, which bodies hold as a number."""
    if node.op != "const":
        return False
    literal = node.attrs["value"]
    size = literal.dtype.itemsize
    return len(literal.data) > 0 and literal.data == literal.data[:size] * (len(literal.data) // size)


def extract(graph: Graph, groups: Sequence[Group], floating: frozenset[Node]) -> Graph:
    """Replace every group by one call. ``groups`` are in an order in which each comes after those that it reads.

    ``floating`` nodes belong to no group: each body that uses one holds its own copy.
    """
    top: dict[Value, Value] = {}
    for group in groups:
        if isinstance(get_op(group.members[0].op).lower, Region | Control):
            (node,) = group.members
            made = Node(node.op, tuple(translate(v, top) for v in node.inputs), node.attrs, node.types, node.loc)
            top.update(zip(node.outs, made.outs, strict=True))
            continue
        body = _Body(group, floating)
        operands = tuple(translate(v, top) for v in body.operands)
        with at_loc(group.results[0].node.loc):
            call = _call(group.hint, body.graph, operands)
        top.update(zip(group.results, call.outs, strict=True))
    return Graph.build(
        graph.name,
        [translate(v, top) for v in graph.inputs],
        [(name, translate(v, top)) for name, v in graph.outputs],
        [(name, translate(v, top)) for name, v in graph.updates],
    )


def _call(hint: str, body: Graph, operands: tuple[Value, ...]) -> Node:
    return apply("call", *operands, body=body, hint=hint, vjp=None).node


def translate(value: Value, top: dict[Value, Value]) -> Value:
    """The value of the new graph: views, joins and sources are carried over as they are."""
    stack = [value]
    while stack:
        v = stack[-1]
        if v in top:
            stack.pop()
            continue
        node = v.node
        assert isinstance(get_op(node.op).lower, Move | Split | Join | Source), f"{node.op} is in no group"
        missing = [i for i in node.inputs if i not in top]
        if missing:
            stack.extend(missing)
            continue
        made = Node(node.op, tuple(top[i] for i in node.inputs), node.attrs, node.types, node.loc)
        top.update(zip(node.outs, made.outs, strict=True))
    return top[value]


class _Body:
    """The body of one group. Equal nodes are made once."""

    def __init__(self, group: Group, floating: frozenset[Node]):
        self.members, self.floating = frozenset(group.members), floating
        self.operands: list[Value] = []
        self.new: dict[Value, Value] = {}
        self.inside: dict[Value, bool] = {}
        self.made: dict[object, Node] = {}
        results = [self.rebuild(v) for v in group.results]
        inputs = [self.new[v] for v in self.operands]
        self.graph = Graph.build(group.hint, inputs, [(f"y{i}", v) for i, v in enumerate(results)])

    def internal(self, value: Value) -> bool:
        """Whether the body computes ``value`` itself: through movement, what it moves decides."""
        chain = [value]
        while isinstance(get_op(chain[-1].node.op).lower, Move) and chain[-1] not in self.inside:
            chain.append(chain[-1].node.inputs[0])
        last = chain[-1]
        if last not in self.inside:
            node = last.node
            self.inside[last] = node in self.members or node in self.floating or is_uniform(node)
        for v in chain:
            self.inside[v] = self.inside[last]
        return self.inside[value]

    def rebuild(self, value: Value) -> Value:
        """``value`` in the body; depth first, so that operands are numbered in the order in which they are read."""
        stack = [(value, True)]
        while stack:
            v, inside = stack.pop()
            if v in self.new:
                continue
            if not inside:
                self.new[v] = self.operand(v)
                continue
            node = v.node
            missing = [i for i in node.inputs if i not in self.new]
            if not missing:
                self.make(node)
                continue
            # Products and gathers take their operands from memory.
            computes = isinstance(get_op(node.op).lower, Map | Reduce | Move)
            stack.append((v, True))
            stack.extend((i, computes and self.internal(i)) for i in reversed(missing))
        return self.new[value]

    def operand(self, value: Value) -> Value:
        self.operands.append(value)
        return apply("input", name=f"x{len(self.operands) - 1}", dtype=value.dtype, shape=value.shape)

    def make(self, node: Node) -> None:
        inputs = tuple(self.new[i] for i in node.inputs)
        key = (node.op, inputs, tuple(node.attrs.items()), node.types)
        made = self.made.setdefault(key, Node(node.op, inputs, node.attrs, node.types, node.loc))
        self.new.update(zip(node.outs, made.outs, strict=True))
