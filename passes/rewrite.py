"""A small pattern language for local algebra, and the sweep that applies rules to a graph.

A rule is a pattern and a builder, with its equation beside it::

    x, y = var("x"), var("y")
    rule(op("add", x, op("neg", y)), lambda m: apply("sub", m.x, m.y))  # x + (-y) = x - y

Patterns: ``var(name)`` matches any value, the same one at each use; ``num(name)`` a uniform constant; a Python number a
uniform constant equal to it; ``op(names, ...)`` a single-result node of one of the ops, its operands matching in order
(in either order, for commutative ops), or any operands where none are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from graphc.errors import error
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Control, apply_node, at_loc, bodies, get_op

__all__ = ["Match", "Pattern", "Rule", "num", "op", "rewrite", "rule", "uniform", "var", "with_bodies"]

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or",
                         "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"})  # fmt: skip

Number = int | float | bool


@dataclass(frozen=True)
class Pattern:
    """``ops`` empty: any value; ``args`` None: any operands. ``number`` True: a uniform constant; another number: a
    uniform constant equal to it."""

    name: str = ""
    ops: frozenset[str] = frozenset()
    args: tuple[Pattern, ...] | None = None
    number: Number | None = None


def var(name: str) -> Pattern:
    return Pattern(name)


def num(name: str) -> Pattern:
    return Pattern(name, number=True)


def op(ops: str | Iterable[str], *args: Pattern | Number, name: str = "") -> Pattern:
    names = frozenset([ops] if isinstance(ops, str) else ops)
    parts = tuple(a if isinstance(a, Pattern) else Pattern(number=float(a)) for a in args)
    return Pattern(name, names, parts or None)


@dataclass
class Match:
    """What a pattern found: ``m.x`` is the value bound to the name x, ``m.root`` the matched node."""

    root: Node
    bound: dict[str, Value]

    def __getattr__(self, name: str) -> Value:
        try:
            return self.bound[name]
        except KeyError:
            raise AttributeError(name) from None


Builder = Callable[[Match], Value | Sequence[Value] | None]


@dataclass(frozen=True)
class Rule:
    """``build`` returns the replacement (a sequence for a node of several results), or None where a side condition does
    not hold."""

    pattern: Pattern
    build: Builder

    def apply(self, node: Node) -> tuple[Value, ...] | None:
        bound: dict[str, Value] = {}
        if not _operands(self.pattern, node, bound):
            return None
        with at_loc(node.loc):
            made = self.build(Match(node, bound))
        if made is None:
            return None
        values = (made,) if isinstance(made, Value) else tuple(made)
        if tuple(v.type for v in values) != node.types:
            types = ", ".join(str(v.type) for v in values)
            raise error(
                "GC0001", f"a rule for {node.op} made {types} of {', '.join(map(str, node.types))}", loc=node.loc
            )
        return values


def rule(pattern: Pattern, build: Builder) -> Rule:
    assert pattern.ops, "the root of a rule's pattern names its ops"
    return Rule(pattern, build)


# Matching ------------------------------------------------------------------------------------------------------------


def uniform(value: Value) -> Number | None:
    """The number that ``value`` holds everywhere, where it is a constant of one element or a broadcast of one."""
    node = value.node
    while node.op in ("broadcast_to", "reshape"):
        node = node.inputs[0].node
    if node.op != "const" or node.types[0].size != 1:
        return None
    number: Number = node.attrs["value"].array.item()
    return number


def _operands(pattern: Pattern, node: Node, bound: dict[str, Value]) -> bool:
    """Whether the operands of ``node`` (one of ``pattern.ops``) match; fills ``bound``, also where they do not."""
    if pattern.args is None:
        return True
    if len(pattern.args) != len(node.inputs):
        return False
    if node.op not in COMMUTATIVE:
        return all(map(_value, pattern.args, node.inputs, repeat(bound)))
    before = dict(bound)
    if all(map(_value, pattern.args, node.inputs, repeat(bound))):
        return True
    bound.clear()
    bound.update(before)
    return all(map(_value, pattern.args, reversed(node.inputs), repeat(bound)))


def _value(pattern: Pattern, value: Value, bound: dict[str, Value]) -> bool:
    if pattern.ops:
        node = value.node
        if node.op not in pattern.ops or len(node.types) != 1 or not _operands(pattern, node, bound):
            return False
    elif pattern.number is not None:
        number = uniform(value)
        if number is None or (pattern.number is not True and number != pattern.number):
            return False
    return not pattern.name or bound.setdefault(pattern.name, value) == value


# The sweep -----------------------------------------------------------------------------------------------------------

SWEEPS = 32  # far above what rules need; a table whose rules undo each other stops here instead of never


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """``graph`` with ``rules`` applied, bottom up, until none matches; region bodies included.

    Each sweep is linear in the graph and sees through all rewrites below a node, so that few sweeps are needed. What a
    rule finds depends on a node and what is below it: a node that no rule has matched is not looked at again.
    """
    table: dict[str, list[Rule]] = {}
    for r in rules:
        for name in r.pattern.ops:
            table.setdefault(name, []).append(r)
    changed = False
    settled: set[Node] = set()

    def visit(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
        nonlocal changed
        rules_here = table.get(node.op)
        if not rules_here:
            return None
        if inputs != node.inputs:
            node = Node(node.op, inputs, node.attrs, node.types, node.loc)
        elif node in settled:
            return None
        for r in rules_here:
            made = r.apply(node)
            if made is not None:
                changed = True
                return made
        settled.add(node)
        return node.outs

    for _ in range(SWEEPS):
        changed = False
        graph = graph.rewrite(visit)
        if not changed:
            return with_bodies(graph, lambda body: rewrite(body, rules))
    raise error("GC0001", f"the rewrite rules did not come to rest on graph {graph.name!r}")


def with_bodies(graph: Graph, fn: Callable[[Graph], Graph], *, blocks_only: bool = False) -> Graph:
    """``graph`` with ``fn`` applied to the graphs that its nodes run: bodies of regions and blocks of control flow, or
    the latter only. The nodes keep their order."""

    def changed(node: Node) -> dict[str, Graph]:
        if blocks_only and not isinstance(get_op(node.op).lower, Control):
            return {}
        return {name: made for name in bodies(node) if (made := fn(node.attrs[name])) is not node.attrs[name]}

    found = {node: new for node in graph.nodes if (new := changed(node))}
    if not found:
        return graph
    now: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        inputs = tuple(now[v] for v in node.inputs)
        made = node
        if node in found:
            with at_loc(node.loc):
                made = apply_node(node.op, *inputs, **{**node.attrs, **found[node]})
        elif inputs != node.inputs:
            made = Node(node.op, inputs, node.attrs, node.types, node.loc)
        nodes.append(made)
        now.update(zip(node.outs, made.outs, strict=True))
    outputs, updates = (tuple((n, now[v]) for n, v in pairs) for pairs in (graph.outputs, graph.updates))
    return Graph(graph.name, tuple(nodes), graph.inputs, outputs, updates)
