"""Fusion: which nodes become one kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

from graphc.ir import Graph, Node, Value
from graphc.ops.base import Contract, Control, Gather, Join, Map, Reduce, RowWise, Scatter, Source, Split, get_op
from graphc.passes.fuse_extract import Group, extract
from graphc.passes.fuse_groups import Kind, Partition, Space, Unit
from graphc.passes.fuse_prepare import masks_of_results, plain_reductions
from graphc.passes.fuse_values import Access, Values
from graphc.passes.rewrite import with_bodies

__all__ = ["fuse", "fuse_arguments"]


def fuse(graph: Graph, slopes: bool = True) -> Graph:
    """Group the nodes of ``graph`` into kernels.

    Before: gradients are written out, common subexpressions merged, and no regions left but those that are kernels of
    their own. After: the top level has sources, views (moves and splits), joins, and calls whose ``hint`` says how the
    kernel looks (`graphc.passes.fuse_groups.Kind`) and whose ``body`` is the exact decomposition. The values are the
    same.

    Each stored value with the expression that makes it is a unit; units are merged where one reads the other's result
    at the same element or row, or where both read the same tensor. What is merged first wins, so that the order of
    `STAGES` is the policy.

    ``slopes``: the slope of an activation is stored in place of its argument, which saves time.

    Example: ``y = gelu(dot(x, w) + b)`` is one call {hint=contract}; softmax is one call {hint=row}.
    """
    graph = plain_reductions(with_bodies(graph, partial(fuse, slopes=slopes), blocks_only=True))
    values = Values(graph, slopes)
    if (prepared := masks_of_results(graph, values.stored)) is not graph:
        graph, values = prepared, Values(prepared, slopes)
    fuser = _Fuser(graph, values)
    for stage in STAGES:
        stage(fuser)
    return extract(graph, fuser.result(), values.inside)


def fuse_arguments(graph: Graph) -> Graph:
    """`fuse` with the arguments of activations stored: `recompute` then need not keep the activations beside them."""
    return fuse(graph, slopes=False)


class _Fuser:
    """The units of a graph and their partition."""

    def __init__(self, graph: Graph, values: Values):
        self.graph, self.values = graph, values
        self.units: list[Unit] = []
        self.producer: dict[Value, Unit] = {}
        self.readers: dict[Value, list[Unit]] = {}
        for node in graph.nodes:
            if node in values.stored and not isinstance(get_op(node.op).lower, Source):
                self._add(node)
        self.kept = {leaf for v in graph.results for leaf in (values.root(v), *values.waits(v))}
        self.updates = {values.root(v) for _, v in graph.updates}
        self.partition = Partition(self.units, self.producer)

    def _add(self, node: Node) -> None:
        space = _space(node)
        if isinstance(get_op(node.op).lower, Map | Reduce):
            reads = tuple(self.values.reads(node))
        else:
            leaves = (leaf for v in node.inputs for leaf in (self.values.root(v), *self.values.waits(v)))
            reads = tuple(dict.fromkeys(Access(leaf, None) for leaf in leaves))
        made = [self.producer[a.leaf] for a in reads if a.leaf in self.producer]
        unit = Unit(len(self.units), node, space, reads, 1 + max((u.level for u in made), default=0))
        self.units.append(unit)
        self.producer.update((v, unit) for v in node.outs)
        for leaf in dict.fromkeys(a.leaf for a in reads):
            self.readers.setdefault(leaf, []).append(unit)

    def kind(self, unit: Unit) -> Kind:
        return self.partition.space(unit).kind

    def producers(self, unit: Unit) -> list[Unit]:
        """The units whose results ``unit`` reads, the latest first."""
        made = {self.producer[a.leaf] for a in unit.reads if a.leaf in self.producer}
        return sorted(made, key=lambda u: -u.number)

    def siblings(self, accepts: Callable[[Unit], bool]) -> None:
        """Merge units that read the same tensor, of no less than half their size, where they can be one kernel."""
        for leaf, readers in self.readers.items():
            chosen = [u for u in readers if accepts(u) and 2 * leaf.type.size >= _size(u)]
            for i, first in enumerate(chosen):
                for second in chosen[i + 1 : i + 1 + NEIGHBOURS]:
                    self.partition.merge(first, second)

    def result(self) -> list[Group]:
        """The groups in order, with the values that leave each."""
        groups = []
        for space, units in self.partition.ordered():
            if isinstance(get_op(units[0].node.op).lower, Join | Split):
                continue
            inside = set(units)
            leaving = [
                v
                for u in units
                for v in u.node.outs
                if v in self.kept or any(r not in inside for r in self.readers.get(v, ()))
            ]
            hint = _hint(units[0].node) if space.kind is Kind.SOLO else space.kind.value
            groups.append(Group(hint, tuple(u.node for u in units), tuple(leaving)))
        return groups


NEIGHBOURS = 8  # readers of one tensor that are tried against each other
EARLY = 2  # levels above a gather: a mask of dropout takes two


def _space(node: Node) -> Space:
    shape = node.out().shape
    match get_op(node.op).lower:
        case Map():
            return Space(Kind.MAP, shape)
        case Contract():
            return Space(Kind.CONTRACT, shape)
        case Gather():
            return Space(Kind.GATHER, shape)
        case Reduce():
            shape, axes = node.inputs[0].shape, node.attrs["axes"]
            rows = len(shape) - len(axes)
            if rows and axes == tuple(range(rows, len(shape))):
                return Space(Kind.ROW, shape, rows=rows)
            return Space(Kind.COL, shape, axes=axes)
    return Space(Kind.SOLO, shape)


def _hint(node: Node) -> str:
    match get_op(node.op).lower:
        case Scatter():
            return "scatter"
        case RowWise():
            return "rowwise"
        case Control():
            return node.op
    return str(node.attrs["hint"])


def _size(unit: Unit) -> int:
    return prod(unit.space.shape)


# The policy ----------------------------------------------------------------------------------------------------------


def epilogues(f: _Fuser) -> None:
    """Elementwise results join the product or gather that they read: its raw result is then rarely stored.

    Updates of state stay apart until the order is known (see `graphc.passes.update`): weights must not change before
    the last product has read them. What a gather does not lead to at once stays apart from it, too: indices are
    checked early, as those of labels before the loss is known, so that a step that fails has changed nothing."""
    for unit in f.units:
        if unit.space.kind is Kind.MAP and unit.node.out() not in f.updates:
            for made in f.producers(unit):
                late = f.kind(made) is Kind.GATHER and unit.level > made.level + EARLY
                if f.kind(made) in (Kind.CONTRACT, Kind.GATHER) and not late and f.partition.merge(made, unit):
                    break


def checks(f: _Fuser) -> None:
    """Nothing is merged, but from here on new state shares no kernel with what leads to a check of indices, so that it
    can wait for the check (see `graphc.passes.schedule`)."""
    f.partition.keep_apart(
        [f.producer[v] for v in f.updates if v in f.producer],
        [u for u in f.units if f.kind(u) is Kind.GATHER or isinstance(get_op(u.node.op).lower, RowWise)],
    )


def rows(f: _Fuser) -> None:
    """Reductions of one row, and what is computed of the row before and after."""
    both = (Kind.ROW, Kind.MAP)
    for unit in f.units:
        for made in f.producers(unit):
            if f.kind(unit) in both and f.kind(made) in both and Kind.ROW in (f.kind(unit), f.kind(made)):
                f.partition.merge(made, unit)
    f.siblings(lambda u: f.kind(u) is Kind.ROW)


def maps(f: _Fuser) -> None:
    """Elementwise results of one shape that read each other or the same tensor."""
    for unit in f.units:
        for made in f.producers(unit):
            if f.kind(unit) is Kind.MAP and f.kind(made) is Kind.MAP:
                f.partition.merge(made, unit)
    f.siblings(lambda u: f.kind(u) is Kind.MAP)


def columns(f: _Fuser) -> None:
    """Reductions of equal axes of one tensor."""
    f.siblings(lambda u: f.kind(u) is Kind.COL)


def scalars(f: _Fuser) -> None:
    """Scalar arithmetic gathers in few kernels, whatever it is about."""
    found: list[Unit] = []
    for unit in f.units:
        if f.kind(unit) is not Kind.MAP or unit.space.shape:
            continue
        if not any(f.partition.merge(first, unit) for first in reversed(found[-NEIGHBOURS:])):
            found.append(unit)


STAGES = (epilogues, checks, rows, maps, columns, scalars)
