"""Elementwise functions of one value, such as GELU: their gradient is the cotangent times a slope.

Reverse accumulation multiplies the cotangent into every path from the result to the value and adds up the products. For
a chain of elementwise nodes with one source the slope is the same for each cotangent: it depends on the source alone,
so that the forward pass, which has computed most of it, may store it in place of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphc.ir import Node, Value
from graphc.ops import get_op
from graphc.ops.base import Map
from graphc.passes.fuse_cost import node_cost
from graphc.passes.rewrite import uniform

__all__ = ["Chain", "chains"]

COSTLY = 12  # additions: the slope of a function that costs less is not worth a value of its own


@dataclass(frozen=True, slots=True)
class Chain:
    """``nodes``, in order, compute the last one's result from ``source`` and constants, each element on its own."""

    source: Value
    nodes: tuple[Node, ...]


def chains(nodes: Sequence[Node], needed: Iterable[Value]) -> dict[Value, Chain]:
    """The chains in ``nodes`` (in order), by their results. What is inside of a chain is used there only and is not
    ``needed``; some value in it is used more than once, or there would be nothing to factor out."""
    source = _sources(nodes)
    users: dict[Value, list[Node]] = {}
    for node in nodes:
        for v in dict.fromkeys(node.inputs):
            users.setdefault(v, []).append(node)
    found, outside = {}, set(needed)
    order = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        y = node.outs[0]
        if y not in source or not y.dtype.is_float or not _leaves(y, source, users, outside):
            continue
        inside = _inside(node, source)
        closed = all(v.node in inside and v not in outside for n in inside for v in n.inputs if v in source)
        alone = all(set(users[n.outs[0]]) <= inside for n in inside if n is not node)
        forks = len(inside.intersection(users[source[y]])) > 1
        if closed and alone and forks and sum(map(node_cost, inside)) >= COSTLY:
            found[y] = Chain(source[y], tuple(sorted(inside, key=order.__getitem__)))
    return found


def _sources(nodes: Iterable[Node]) -> dict[Value, Value]:
    """For each elementwise value that depends on one other value: that one, as far up as there is only one."""
    source: dict[Value, Value] = {}
    for node in nodes:
        if not isinstance(get_op(node.op).lower, Map) or node.op == "stop_gradient":
            continue
        y = node.outs[0]
        roots = {source.get(v, v) for v in node.inputs if uniform(v) is None}
        if len(roots) == 1:
            (root,) = roots
            if root.dtype.is_float and root.shape == y.shape and (y.dtype == root.dtype or y.dtype.kind == "b"):
                source[y] = root
    return source


def _leaves(y: Value, source: dict[Value, Value], users: dict[Value, list[Node]], needed: set[Value]) -> bool:
    """Whether something needs ``y`` that is no function of its source."""
    return y in needed or any(source.get(n.outs[0]) != source[y] for n in users.get(y, ()))


def _inside(last: Node, source: dict[Value, Value]) -> set[Node]:
    """The nodes between the source of ``last`` and it."""
    inside, stack = {last}, [last]
    while stack:
        for v in stack.pop().inputs:
            if v in source and v.node not in inside and v != source[last.outs[0]]:
                inside.add(v.node)
                stack.append(v.node)
    return inside
