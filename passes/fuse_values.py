"""Which values are stored, which live only inside kernels, and which are computed again where they are used.

A stored value is the result of some kernel. Every other elementwise node belongs to the cones of the stored values
that need it: the expressions from stored values (the leaves) to them. A node in several cones is computed in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.dtype import Shape, contiguous_strides
from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, Gather, Map, Move, Reduce, get_op
from graphc.passes.fuse_cost import node_cost
from graphc.passes.fuse_extract import is_uniform
from graphc.passes.views import moved

__all__ = ["Access", "Values", "stays_inside"]

AGAIN = 40  # additions: an element that costs more is stored rather than computed in several kernels
WORTH = 12  # additions that storing a function of a value in place of the value has to spare
NEAR = 1 << 22  # bytes of a value that stays in the caches; what is larger waits for memory while it is computed again
MASK = 200  # the same for what needs no memory (dropout masks, causal masks): nearly anything is cheaper than storing
TABLE = 10  # the same for what is read repeated (sines of positions, for every head): it stays in the cache
MANY_ROWS = 64  # that all need a row: with as many, it is computed once, in front
LEAVES = 16  # a cone with more leaves ends in a stored value

Moves = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """A read of stored value ``leaf`` in a cone: strides over the reader's space as if the leaf were row-major, or
    None where no strides express it."""

    leaf: Value
    strides: Shape | None


@dataclass(frozen=True, slots=True)
class Cone:
    """What it takes to compute a value that is not stored: the nodes (None: too many) and the stored values."""

    nodes: frozenset[Node] | None
    leaves: frozenset[Value]


@dataclass
class Values:
    """The decision for every elementwise value of ``graph``, in ``stored`` (the nodes whose results are stored).
    ``slopes``: see `_replaces_leaf`."""

    graph: Graph
    slopes: bool = True
    stored: set[Node] = field(default_factory=set)
    cones: dict[Node, Cone] = field(default_factory=dict)
    cost: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaving = set(self.graph.results)
        for node in self.graph.nodes:
            lowering = get_op(node.op).lower
            if isinstance(lowering, Map):
                self.cost[node] = node_cost(node)
                self._decide(node)
            elif not isinstance(lowering, Move) and not is_uniform(node):
                self.stored.add(node)

    @property
    def inside(self) -> frozenset[Node]:
        """The elementwise nodes that no kernel has as its result."""
        return frozenset(n for n in self.graph.nodes if isinstance(get_op(n.op).lower, Map) and n not in self.stored)

    def root(self, value: Value) -> Value:
        """What a chain of moves starts from."""
        while isinstance(get_op(value.node.op).lower, Move):
            value = value.node.inputs[0]
        return value

    def waits(self, value: Value) -> list[Value]:
        """The stored values that a chain of moves to ``value`` comes after."""
        found: list[Value] = []
        while isinstance(get_op(value.node.op).lower, Move):
            for v in value.node.inputs[1:]:
                found += [self.root(v), *self.waits(v)]
            value = value.node.inputs[0]
        return found

    def reads(self, node: Node) -> list[Access]:
        """The stored values in the cone of ``node`` (a stored elementwise node, or a reduction), and how each is
        read; those that it only comes after, too."""
        found: dict[Access, None] = {}
        seen: set[tuple[Value, Moves]] = set()
        stack: list[tuple[Value, Moves]] = [(v, ()) for v in node.inputs]
        while stack:
            value, moves = stack.pop()
            if (value, moves) in seen:
                continue
            seen.add((value, moves))
            inner = value.node
            if isinstance(get_op(inner.op).lower, Move):
                stack.append((inner.inputs[0], (inner, *moves)))
                found.update(dict.fromkeys(Access(v, None) for v in self.waits(value)))
            elif inner in self.stored:
                found[Access(value, _strides(value.shape, moves))] = None
            else:
                stack.extend((v, moves) for v in inner.inputs)
        return list(found)

    # The decision --------------------------------------------------------------------------------------------------

    def _decide(self, node: Node) -> None:
        cone = self._cone(node)
        self.cones[node] = cone
        if self._must_store(node, cone):
            self.stored.add(node)

    def _cone(self, node: Node) -> Cone:
        nodes: frozenset[Node] | None = frozenset([node])
        leaves: set[Value] = set()
        for v in node.inputs:
            root = self.root(v)
            if root.node in self.stored:
                leaves.add(root)
            elif root.node in self.cones:
                below = self.cones[root.node]
                nodes = nodes | below.nodes if nodes is not None and below.nodes is not None else None
                leaves |= below.leaves
        if nodes is not None and sum(self.cost.get(n, 0) for n in nodes) > MASK:
            nodes = None
        return Cone(nodes, frozenset(leaves))

    def _must_store(self, node: Node, cone: Cone) -> bool:
        value = node.out()
        uses, wider, outside = self._uses(value)
        if outside or len(cone.leaves) > LEAVES:
            return True
        if wider and value.type.size == 1 and cone.leaves:
            return True  # scalars are computed once, not in every kernel that uses them
        if wider and cone.leaves and self._every_row(value):
            return True  # a number for each channel, say: kernels would compute it again for each pixel
        if uses > 1 or wider:
            return not self._cheap(value, cone, TABLE if wider else MASK)
        return self.slopes and self._replaces_leaf(value, cone)

    def _replaces_leaf(self, value: Value, cone: Cone) -> bool:
        """Whether ``value``, a costly function of one leaf, is all that later kernels need of it: then the product's
        kernel, whose epilogue makes the leaf, stores this instead. A GELU's slope is such a value. Where it is large
        the leaf stays: `graphc.passes.recompute` can make the GELU of it again, which then need not be kept beside."""
        if value.type.nbytes > NEAR:
            return False
        if len(cone.leaves) != 1 or cone.nodes is None or sum(self.cost.get(n, 0) for n in cone.nodes) < WORTH:
            return False
        (leaf,) = cone.leaves
        if leaf.type != value.type or not self._of_product(leaf):
            return False
        stack, seen = [leaf], {leaf, value}
        while stack:
            v = stack.pop()
            if self._uses(v)[2]:  # stored for something else
                if v == leaf:
                    return False
                continue
            for user in self.graph.users(v):
                out = user.outs[0]
                if out in seen:
                    continue
                if not isinstance(get_op(user.op).lower, Map) or not all(self._of_one(x, leaf) for x in user.inputs):
                    return False
                seen.add(out)
                stack.append(out)
        return True

    def _of_product(self, leaf: Value) -> bool:
        """Whether the kernel of a product makes ``leaf``."""
        cone = self.cones.get(leaf.node)
        if cone is None:
            return isinstance(get_op(leaf.node.op).lower, Contract)
        return any(self._private(v) for v in cone.leaves)

    def _of_one(self, value: Value, leaf: Value) -> bool:
        """Whether ``value`` is computed from ``leaf`` and constants alone."""
        if value == leaf or is_uniform(self.root(value).node):
            return True
        elementwise = isinstance(get_op(value.node.op).lower, Map) and value.node not in self.stored
        return elementwise and all(self._of_one(v, leaf) for v in value.node.inputs)

    def _every_row(self, value: Value) -> bool:
        """Whether some reader sees ``value`` as the row that all of its rows are, and has many of them."""
        stack: list[tuple[Value, Moves]] = [(value, ())]
        while stack:
            v, moves = stack.pop()
            if v.type.size >= MANY_ROWS * value.type.size > 1:
                strides = _strides(value.shape, moves)
                if strides is not None and strides[-1] and v.shape[-1] > 1:
                    return True
            for user in self.graph.users(v):
                if isinstance(get_op(user.op).lower, Move) and stays_inside(user):
                    stack.extend((u, (*moves, user)) for u in user.outs)
        return False

    def _uses(self, value: Value) -> tuple[int, bool, bool]:
        """How many elementwise nodes and reductions read ``value``; whether any reads it repeated along new
        dimensions; whether anything else reads it. Those that read it in a wider type read ``value`` itself, if that is
        all that the wider one is for: it then need not be in memory."""
        uses, wider = 0, False
        stack = [value]
        while stack:
            v = stack.pop()
            if v in self.leaving:
                return uses, wider, True
            for user in self.graph.users(v):
                lowering = get_op(user.op).lower
                if isinstance(lowering, Map | Reduce):
                    behind = self._uses(user.out()) if self._only_widens(user) else (1, False, False)
                    uses += 1 if behind[2] else behind[0]
                    wider |= v.type.size > value.type.size or behind[1]
                elif isinstance(lowering, Move) and stays_inside(user):
                    stack.extend(user.outs)
                else:
                    return uses, wider, True
        return uses, wider, False

    def _only_widens(self, node: Node) -> bool:
        """Whether a map does no more than to give its operand more bytes."""
        return len(node.inputs) == 1 and node.inputs[0].type.nbytes < node.types[0].nbytes and node_cost(node) <= 1

    def _cheap(self, value: Value, cone: Cone, limit: int) -> bool:
        """Whether each kernel that needs ``value`` may compute it again: that takes no more traffic than reading it
        would, and little work; at most ``limit`` where it takes no traffic."""
        if cone.nodes is None:
            return False
        size = value.type.nbytes
        large = [v for v in cone.leaves if 2 * v.type.nbytes >= size]
        work = sum(self.cost.get(n, 0) for n in cone.nodes)
        if any(self._private(v) for v in cone.leaves):
            return False
        return len(large) <= 1 and work <= (AGAIN if large else limit)

    def _private(self, leaf: Value) -> bool:
        """A product or gather that is read once becomes one kernel with its reader: then its own result, not the
        leaf, is what is in memory."""
        if not isinstance(get_op(leaf.node.op).lower, Contract | Gather):
            return False
        uses, wider, outside = self._uses(leaf)
        return uses == 1 and not wider and not outside


def stays_inside(node: Node) -> bool:
    """Whether a movement can be part of a body: strides express it whatever those of its operand are."""
    shape = node.inputs[0].shape
    odd = tuple(10**9 + 7 * (d + 1) ** 3 for d in range(len(shape)))  # no two dimensions are one run
    return moved(shape, odd, 0, (node,)) is not None


def _strides(shape: Shape, moves: Moves) -> Shape | None:
    """Strides after ``moves`` of a row-major value; None where the first element moves, or where a body cannot hold
    the moves."""
    seen = moved(shape, contiguous_strides(shape), 0, moves) if all(map(stays_inside, moves)) else None
    return None if seen is None or seen[1] else seen[0]
