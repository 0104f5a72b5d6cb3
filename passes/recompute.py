"""Recompute: what a kernel of the backward pass can compute by the way is not kept for it from the forward pass.

Training keeps an activation until the gradients that need it are computed. Where it is an elementwise function of
other values that are kept as well, a kernel that reads those anyway can write it again: gelu(h), which the gradient of
the next weight needs, is computed beside gelu'(h). That costs a store, no launch and no load (compare the selective
recomputation of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198,
and the in-place activations of Rota Bulò et al., arXiv 1712.02616).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Map, Move, Reduce, get_op
from graphc.passes.body import Body
from graphc.passes.dce import dce
from graphc.passes.fuse_cost import node_cost
from graphc.passes.fuse_extract import is_uniform
from graphc.passes.schedule import live_bytes, peak_bytes, reaches, schedule
from graphc.passes.views import elementwise, homes, is_view

__all__ = ["recompute"]

WORTH = 0.98  # of the peak: a change that leaves more is not made
LARGE = 1 / 512  # of the peak: smaller values are kept
SMALL = 1 / 16  # of a value: what is as small may be kept longer for its sake
AGAIN = 40  # additions: an element that costs more is kept
HOSTS = ("map", "row", "contract")  # kernels that can have another elementwise result


def recompute(graph: Graph) -> Graph:
    """Let kernels after the peak of memory compute again what is kept for others after it.

    Before: `schedule` has run. After: the same results in an order with a lower peak, or ``graph`` itself; no more
    calls than before. A value is computed by the operations that made it before, so it has the same bits.

    Example: ``h, g = contract(x, w)`` with ``g = gelu(h)``, and late ``dh = contract(dy, v, h)``, ``dv = dot(g, dy)``:
    the second product becomes ``dh, g2 = contract(dy, v, h)``, and ``dv = dot(g2, dy)``.
    """
    chooser = _Chooser(graph)
    copies = chooser.choose()
    if not copies:
        return graph
    made = schedule(dce(_rebuilt(graph, chooser.roots, copies, chooser.order())))
    return made if peak_bytes(made) <= WORTH * chooser.peak else graph


@dataclass(frozen=True)
class _Cone:
    """How an operation that makes several results makes one of them element by element: ``nodes`` of its body, in
    order, over ``leaves``: values of the body, and what they are outside."""

    nodes: tuple[Node, ...]
    leaves: Mapping[Value, Value]


@dataclass(frozen=True)
class _Copy:
    """``host`` computes ``value`` again, for those of its readers that are ``late``."""

    value: Value
    cone: _Cone
    host: Node
    late: tuple[Node, ...]


class _Chooser:
    """Which values are computed again, and where."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.roots = homes(graph)
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.readers: dict[Value, list[Node]] = {}  # by root, in order
        self.users: dict[Node, list[Node]] = {node: [] for node in graph.nodes}  # and who will wait for a host
        for node in graph.nodes:
            for before in dict.fromkeys(v.node for v in node.inputs):
                self.users[before].append(node)
            if not is_view(node) and self.roots[node.outs[0]] == node.outs[0]:
                for v in dict.fromkeys(self.roots[v] for v in node.inputs):
                    self.readers.setdefault(v, []).append(node)
        self.kept = {self.roots[v] for v in graph.results}
        live = live_bytes(graph)
        self.peak = max(live, default=0)
        self.fullest = live.index(self.peak) if live else 0
        self.copied: set[Value] = set()

    def _last(self, value: Value) -> int:
        """The last position at which ``value`` is alive."""
        if value in self.kept:
            return len(self.graph.nodes) - 1
        return self.position[self.readers[value][-1]] if value in self.readers else self.position[value.node]

    def choose(self) -> list[_Copy]:
        copies: list[_Copy] = []
        for node in self.graph.nodes[: self.fullest + 1]:
            if node.op != "call" or node.attrs["hint"] not in HOSTS:
                continue
            for copy in filter(None, map(self._copy, node.outs)):
                copies.append(copy)
                self.copied.add(copy.value)
                self.users[copy.host] += [n for n in copy.late if n is not copy.host]
        return copies

    def _copy(self, value: Value) -> _Copy | None:
        late = tuple(n for n in self.readers.get(value, ()) if self.position[n] > self.fullest)
        if not late or value in self.kept or value.type.nbytes < LARGE * self.peak:
            return None
        cone = _cone(value)
        if cone is None or any(self.roots[leaf] in self.copied for leaf in cone.leaves.values()):
            return None
        host = self._host(value, cone, late)
        return None if host is None else _Copy(value, cone, host, late)

    def _host(self, value: Value, cone: _Cone, late: tuple[Node, ...]) -> Node | None:
        """The first kernel after the peak that reads ``value`` or the largest leaf of its ``cone`` element by element,
        and needs nothing that the other ``late`` readers make."""
        largest = max(cone.leaves.values(), key=lambda leaf: self.roots[leaf].type.nbytes)
        readers: set[Node] = {*self.readers.get(self.roots[largest], ()), *late}
        for node in sorted(readers, key=self.position.__getitem__):
            if self.position[node] <= self.fullest or not _goes_through(node, value.shape):
                continue
            read = value if node in late else largest
            if not _reads_elements(node, read) or sum(self.roots[v] == value for v in node.inputs) > (node in late):
                continue
            kept = all(self._is_kept(leaf, value, node) for leaf in cone.leaves.values())
            if kept and not reaches(self.users, [n for n in late if n is not node], node):
                return node
        return None

    def _is_kept(self, leaf: Value, value: Value, host: Node) -> bool:
        """Whether ``leaf`` is in memory when ``host`` runs, or small beside ``value``."""
        root = self.roots[leaf]
        lasts = root.node.op in ("state", "const") or self._last(root) >= self.position[host]
        return lasts or root.type.nbytes <= SMALL * value.type.nbytes

    def order(self) -> list[Node]:
        """The nodes as they were, but those that read a copy after its host."""
        waits = dict.fromkeys(self.graph.nodes, 0)
        for users in self.users.values():
            for user in users:
                waits[user] += 1
        ready = [self.position[node] for node, n in waits.items() if not n]
        heapify(ready)
        order = []
        while ready:
            node = self.graph.nodes[heappop(ready)]
            order.append(node)
            for user in self.users[node]:
                waits[user] -= 1
                if not waits[user]:
                    heappush(ready, self.position[user])
        return order


def _cone(value: Value) -> _Cone | None:
    """The cone of ``value`` over the operands and the other results of the call that makes it; None where it is no
    elementwise function of them that costs little."""
    call, body = value.node, value.node.attrs["body"]
    known = dict(zip(body.inputs, call.inputs, strict=True))
    known |= {v: call.out(i) for i, (_, v) in enumerate(body.outputs) if i != value.index}
    start = body.outputs[value.index][1]
    if start in known:
        return None
    leaves: dict[Value, Value] = {}
    inside, stack = {start.node}, [start.node]
    while stack:
        node = stack.pop()
        if not isinstance(get_op(node.op).lower, Map | Move) and not is_uniform(node):
            return None
        leaves.update((v, known[v]) for v in node.inputs if v in known)
        fresh = [n for n in dict.fromkeys(v.node for v in node.inputs if v not in known) if n not in inside]
        inside.update(fresh)
        stack.extend(fresh)
    cost = sum(node_cost(n) * n.types[0].size for n in inside)
    nodes = tuple(n for n in body.nodes if n in inside)
    return _Cone(nodes, leaves) if leaves and cost <= AGAIN * value.type.size else None


def _goes_through(node: Node, shape: Shape) -> bool:
    """Whether ``node`` is a kernel that may write another result of ``shape`` element by element."""
    if node.op != "call" or node.attrs["hint"] not in HOSTS:
        return False
    if node.attrs["hint"] != "row":
        return node.types[0].shape == shape
    return all(n.inputs[0].shape == shape for n in node.attrs["body"] if isinstance(get_op(n.op).lower, Reduce))


def _reads_elements(node: Node, value: Value) -> bool:
    """Whether ``node`` has ``value`` at hand element by element: not as a factor of a product."""
    body = node.attrs["body"]
    read = [inner for v, inner in zip(node.inputs, body.inputs, strict=True) if v == value]
    return bool(read) and (node.attrs["hint"] != "contract" or all(elementwise(body, v) for v in read))


# The new graph -------------------------------------------------------------------------------------------------------


def _rebuilt(graph: Graph, at: Mapping[Value, Value], copies: Sequence[_Copy], order: Sequence[Node]) -> Graph:
    new: dict[Value, Value] = {}
    again: dict[tuple[Value, Value], Value] = {}  # views and paddings of copies, by the copy and what they were
    hosted: dict[Node, list[_Copy]] = {}
    taken: dict[Node, dict[Value, Value]] = {}  # by reader: the copies that it takes
    for copy in copies:
        hosted.setdefault(copy.host, []).append(copy)

    def seen(value: Value, copied: Mapping[Value, Value]) -> Value:
        """The new value for ``value``, which may be a view of what was ``copied``, or that with a padding."""
        root = at[value]
        if root not in copied:
            return new[value]
        if value == root:
            return copied[root]
        node = value.node
        if (copied[root], node.out()) not in again:
            inputs = tuple(seen(v, copied) if at[v] == root else new[v] for v in node.inputs)
            made = Node(node.op, inputs, node.attrs, node.types, node.loc)
            again.update(((copied[root], old), out) for old, out in zip(node.outs, made.outs, strict=True))
        return again[copied[root], value]

    for node in order:
        inputs = tuple(seen(v, taken.get(node, {})) for v in node.inputs)
        made = Node(node.op, inputs, node.attrs, node.types, node.loc)
        if node in hosted:
            made = _with_copies(made, hosted[node], new)
            for copy, out in zip(hosted[node], made.outs[len(node.types) :], strict=True):
                for reader in copy.late:
                    taken.setdefault(reader, {})[copy.value] = out
        new.update(zip(node.outs, made.outs, strict=False))
    return Graph.build(
        graph.name,
        [new[v] for v in graph.inputs],
        [(name, new[v]) for name, v in graph.outputs],
        [(name, new[v]) for name, v in graph.updates],
    )


def _with_copies(node: Node, copies: Sequence[_Copy], new: Mapping[Value, Value]) -> Node:
    """``node`` with the values of ``copies`` as more results; it no longer reads what it computes itself."""
    body, merged = node.attrs["body"], Body()
    computed: dict[Value, Value] = {}
    for copy in copies:
        known = {inner: merged.operand(new[leaf]) for inner, leaf in copy.cone.leaves.items()}
        merged.add(copy.cone.nodes, known)
        computed[new[copy.value]] = known[copy.value.node.attrs["body"].outputs[copy.value.index][1]]
    known = {v: computed.get(o) or merged.operand(o) for v, o in zip(body.inputs, node.inputs, strict=True)}
    merged.add([n for n in body.nodes if n.op != "input"], known)
    return merged.call(node, [*(known[v] for _, v in body.outputs), *computed.values()])
