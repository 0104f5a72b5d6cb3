"""Update: the product that is the gradient of a weight updates the weight, too, and the gradient is never stored.

An optimizer is elementwise over gradient, weight and slots. In the epilogue of the product a tile of the gradient is at
hand. Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (arXiv 2306.09782), make
updates part of the backward pass for the sake of memory, too. What needs all gradients first, as clipping by their
norm does, leaves updates as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.ir import Graph, Node, Value
from graphc.passes.body import Body
from graphc.passes.rewrite import with_bodies
from graphc.passes.schedule import Liveness
from graphc.passes.views import elementwise

__all__ = ["update"]


def update(graph: Graph) -> Graph:
    """Merge kernels that make new state with the product that they alone read, if they do element by element.

    Before: `schedule` has run. After: the same results. A product moves to where the update is, after all that reads
    the old weight, which keeps its factors alive for longer in place of the gradient: only where the peak of memory
    does not rise.

    Example: ``g = contract(x, dy); w2 = map(w, g)`` becomes ``w2 = contract(x, dy, w)``.
    """
    graph = with_bodies(graph, update, blocks_only=True)
    room = _Room(graph)
    merged = {node: product for node in graph.nodes if (product := room.gradient(node)) is not None}
    return _rebuilt(graph, merged) if merged else graph


class _Room:
    """What is alive in an order of execution, and which products can run later."""

    def __init__(self, graph: Graph):
        self.graph, self.live = graph, Liveness(graph)
        self.alive = self.live.bytes_alive(graph.nodes)
        self.peak = max(self.alive, default=0)
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.last = {v: max(map(self.position.__getitem__, readers)) for v, readers in self.live.readers.items()}
        self.last |= dict.fromkeys(self.live.kept, len(graph.nodes))
        self.writers = {name: self.live.roots[value].node for name, value in graph.updates}

    def gradient(self, node: Node) -> Node | None:
        """The product that can become part of ``node``, if that is an update of state."""
        if node.op != "call" or node.attrs["hint"] != "map" or not self.live.updates.issuperset(node.outs):
            return None
        body = node.attrs["body"]
        for v, inner in zip(node.inputs, body.inputs, strict=True):
            if self._is_product(v) and v.shape == node.types[0].shape and elementwise(body, inner):
                return v.node if self._finds_state(v.node, node) and self._moves(v.node, node) else None
        return None

    def _is_product(self, value: Value) -> bool:
        """Whether ``value`` is all that a product makes, and one node reads it."""
        node = value.node
        if node.op != "call" or node.attrs["hint"] != "contract" or len(node.types) > 1:
            return False
        return len(self.graph.users(value)) == 1 and value not in self.live.kept

    def _finds_state(self, product: Node, node: Node) -> bool:
        """Whether state that ``product`` reads is the old one when ``node`` runs: if it never changes, or if ``node``
        writes each element after ``product`` has read it."""
        body = product.attrs["body"]
        for v, inner in zip(product.inputs, body.inputs, strict=True):
            source = self.live.roots[v].node
            writer = self.writers.get(source.attrs["name"]) if source.op == "state" else None
            if writer is not None and not (writer is node and elementwise(body, inner)):
                return False
        return True

    def _moves(self, product: Node, to: Node) -> bool:
        """Whether ``product`` can run where ``to`` does; from then on it is taken to do so."""
        first, end = self.position[product], self.position[to] + 1
        alive = self.alive[first:end]
        for v in self.live.reads(product):
            for i in range(max(self.last[v], first + 1), end):  # another last reader may have written over it
                alive[i - first] += self.live.counted(v)
        for i in range(1, len(alive)):
            alive[i] -= product.types[0].nbytes
        if max(alive) > self.peak:
            return False
        self.alive[first:end] = alive
        self.last |= {v: max(self.last[v], self.position[to]) for v in self.live.reads(product)}
        return True


def _rebuilt(graph: Graph, merged: Mapping[Node, Node]) -> Graph:
    """``graph`` with the products of ``merged`` in the updates that they are named by."""
    gone = {*merged.values()}
    new: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        if node in gone:
            continue
        if node in merged:
            made = _merged(merged[node], node, new)
        else:
            made = Node(node.op, tuple(new[v] for v in node.inputs), node.attrs, node.types, node.loc)
        nodes.append(made)
        new.update(zip(node.outs, made.outs, strict=True))
    inputs = tuple(new[v] for v in graph.inputs)
    outputs, updates = (tuple((n, new[v]) for n, v in pairs) for pairs in (graph.outputs, graph.updates))
    return Graph(graph.name, tuple(nodes), inputs, outputs, updates)


def _merged(product: Node, node: Node, new: Mapping[Value, Value]) -> Node:
    """The kernel of ``product`` that has the results of ``node`` in place of its own."""
    body = Body()
    gradient = None
    for call in (product, node):
        inside = call.attrs["body"]
        known = {
            v: gradient if gradient is not None and o == product.out() else body.operand(new[o])
            for v, o in zip(inside.inputs, call.inputs, strict=True)
        }
        body.add([n for n in inside.nodes if n.op != "input"], known)
        results = [known[v] for _, v in inside.outputs]
        gradient = results[0]
    return body.call(product, results)
