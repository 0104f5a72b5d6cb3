"""The body of one call made of parts of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphc.ir import Graph, Node, Value
from graphc.ops.base import apply, apply_node, at_loc

__all__ = ["Body"]


@dataclass
class Body:
    """Nodes over ``operands`` of the call, each with the input of the body that it is. Equal nodes are made once."""

    operands: dict[Value, Value] = field(default_factory=dict)
    made: dict[object, Node] = field(default_factory=dict)

    def operand(self, value: Value) -> Value:
        if value not in self.operands:
            name = f"x{len(self.operands)}"
            self.operands[value] = apply("input", name=name, dtype=value.dtype, shape=value.shape)
        return self.operands[value]

    def add(self, nodes: Iterable[Node], known: dict[Value, Value]) -> None:
        """The ``nodes`` over what is ``known``, which then has their results."""
        for n in nodes:
            inputs = tuple(known[v] for v in n.inputs)
            key = (n.op, inputs, tuple(n.attrs.items()), n.types)
            made = self.made.setdefault(key, Node(n.op, inputs, n.attrs, n.types, n.loc))
            known.update(zip(n.outs, made.outs, strict=True))

    def call(self, like: Node, results: Sequence[Value]) -> Node:
        """The call of this body with ``results``, a kernel of the kind of ``like``."""
        graph = Graph.build(
            like.attrs["body"].name, self.operands.values(), [(f"y{i}", v) for i, v in enumerate(results)]
        )
        with at_loc(like.loc):
            return apply_node("call", *self.operands, **{**like.attrs, "body": graph})
