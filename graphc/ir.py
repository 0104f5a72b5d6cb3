"""The graph IR: immutable SSA nodes over typed tensors.

Grammar of the text form (`graphc.text` prints and parses it, and ``parse(print(g)) == g``)::

    graph   := "graph" NAME "{" node* "return" pairs "update" pairs "}"
    node    := values "=" OP "(" value,* ")" attrs? ":" type,* ("@" FILE ":" LINE)?
    values  := "%" N ("," "%" N)*
    attrs   := "{" (KEY "=" literal),* "}"          literal may be a nested graph (the body of a region)
    pairs   := "(" (NAME "=" value),* ")"
    type    := DTYPE "[" INT,* "]"

A `Graph` is a function from named inputs and named state to named outputs and named state updates. Reads of state see
the values from before the step; updates take effect when the step is over; the compiler decides what happens in place.

Broadcasting is explicit: elementwise ops take operands of one shape, and the frontend inserts `broadcast_to`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from graphc.dtype import DType, TensorType, dtype
from graphc.errors import Loc

__all__ = ["Attrs", "Graph", "Literal", "Loc", "Node", "StateSpec", "Value", "attrs", "toposort"]

Attrs = Mapping[str, Any]


def attrs(**kwargs: Any) -> Attrs:
    """Attributes of a node: an immutable mapping, keys sorted, of int, float, bool, str, DType, Literal, Graph, None
    and tuples of these."""
    return MappingProxyType(dict(sorted(kwargs.items())))


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant array as a hashable value: dtype, shape and the little-endian bytes."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> Literal:
        return cls(dtype(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype.numpy).reshape(self.shape)


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation. Nodes are compared by identity; graphs are compared by structure.

    ``op`` names an entry of `graphc.ops.OPS`. ``types`` has one entry per result.
    """

    op: str
    inputs: tuple[Value, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    loc: Loc | None = None

    def out(self, index: int = 0) -> Value:
        return Value(self, index)

    @property
    def outs(self) -> tuple[Value, ...]:
        if len(self.types) == 1:
            return (_NEW(Value, (self, 0)),)
        return tuple([_NEW(Value, (self, i)) for i in range(len(self.types))])


class Value(NamedTuple):
    """Result ``index`` of ``node``. A tuple, because passes make, hash and compare values more than anything else."""

    node: Node
    index: int = 0  # type: ignore[assignment]  # instead of tuple.index

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype


_NEW = tuple.__new__  # makes a `Value` in half the time: passes ask for `Node.outs` more than for anything else


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A piece of state: named, typed, shared by all entries compiled together."""

    name: str
    type: TensorType
    trainable: bool = False


@dataclass(frozen=True, eq=False)
class Graph:
    """A straight-line program. ``nodes`` is in execution order (every node after its inputs).

    ``inputs`` are the results of ``input`` nodes (attribute ``name``), in the order of the signature. State is read by
    ``state`` nodes (attribute ``name``) and written by ``updates``: (state name, new value).
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[tuple[str, Value], ...]
    updates: tuple[tuple[str, Value], ...] = ()
    _users: dict[Value, tuple[Node, ...]] = field(default_factory=dict, repr=False, compare=False)
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what analyses found, by what it is

    @classmethod
    def build(
        cls,
        name: str,
        inputs: Iterable[Value],
        outputs: Iterable[tuple[str, Value]],
        updates: Iterable[tuple[str, Value]] = (),
    ) -> Graph:
        """The graph of all nodes that the outputs and updates need, in a stable topological order."""
        ins, outs, ups = tuple(inputs), tuple(outputs), tuple(updates)
        return cls(name, toposort([v for _, v in outs + ups], first=[v.node for v in ins]), ins, outs, ups)

    @property
    def results(self) -> tuple[Value, ...]:
        """Values that leave the graph: outputs, then updates."""
        return tuple(v for _, v in self.outputs + self.updates)

    def users(self, value: Value) -> tuple[Node, ...]:
        """The nodes that take ``value`` as an input, in order, each once."""
        if not self._users:
            table: dict[Value, list[Node]] = {}
            for node in self.nodes:
                for v in dict.fromkeys(node.inputs):
                    table.setdefault(v, []).append(node)
            self._users.update({v: tuple(ns) for v, ns in table.items()})
        return self._users.get(value, ())

    def rewrite(self, fn: Rewriter, name: str | None = None) -> Graph:
        """Rebuild the graph bottom up.

        ``fn(node, inputs)`` gets each node with its already rewritten inputs and returns the replacement values, one
        per result, or None to keep the node (with the rewritten inputs). Unreachable nodes are dropped. Where nothing
        changes, the result is this graph itself.
        """
        new: dict[Node, tuple[Value, ...]] = {}  # of the nodes with another result than their own

        def now(value: Value) -> Value:
            return new[value.node][value.index] if value.node in new else value

        for node in self.nodes:
            ins = tuple(map(now, node.inputs)) if new else node.inputs
            made = fn(node, ins)
            if made is None:
                if ins == node.inputs:
                    continue
                made = Node(node.op, ins, node.attrs, node.types, node.loc).outs
            results = tuple(made)
            assert len(results) == len(node.types), f"a rewrite of {node.op} has {len(results)} results"
            if any(v.node is not node or v.index != i for i, v in enumerate(results)):
                new[node] = results
        if not new and name is None and not self._unreachable():
            return self
        return Graph.build(
            name or self.name,
            map(now, self.inputs),
            [(n, now(v)) for n, v in self.outputs],
            [(n, now(v)) for n, v in self.updates],
        )

    def _unreachable(self) -> bool:
        """Whether there is a node that nothing needs: then there is also one whose results nobody takes."""
        needed = {v.node for node in self.nodes for v in node.inputs}
        needed.update(v.node for v in (*self.inputs, *self.results))
        return len(needed) < len(self.nodes)

    def structure(self) -> tuple[Any, ...]:
        """A hashable description in which values are numbers: equal for equal graphs, whatever their identities."""
        number: dict[Value, int] = {}
        rows = []
        for node in self.nodes:
            at = tuple((k, v.structure() if isinstance(v, Graph) else v) for k, v in node.attrs.items())
            rows.append((node.op, tuple(number[v] for v in node.inputs), at, node.types, node.loc))
            for v in node.outs:
                number[v] = len(number)
        return (
            self.name,
            tuple(rows),
            tuple(number[v] for v in self.inputs),
            tuple((n, number[v]) for n, v in self.outputs),
            tuple((n, number[v]) for n, v in self.updates),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.structure() == other.structure()

    def __hash__(self) -> int:
        return hash(self.structure())

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        return f"graph {self.name} with {len(self.nodes)} nodes (graphc.text.print_graph shows them)"


# One replacement value per result, or None to keep the node.
Rewriter = Callable[[Node, tuple[Value, ...]], Iterable[Value] | None]


def toposort(roots: Iterable[Value], first: Iterable[Node] = ()) -> tuple[Node, ...]:
    """All nodes that ``roots`` need, inputs before users, in depth-first order of the roots (stable)."""
    order: dict[Node, None] = dict.fromkeys(first)
    for root in roots:
        if root.node in order:
            continue
        stack = [(root.node, iter(root.node.inputs))]
        while stack:
            node, operands = stack[-1]
            for v in operands:
                if v.node not in order:
                    stack.append((v.node, iter(v.node.inputs)))
                    break
            else:
                order[node] = None
                stack.pop()
    return tuple(order)
