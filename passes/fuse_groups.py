"""Groups of nodes that become one kernel: which may be merged, and the check that merging closes no cycle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from graphc.dtype import Shape, contiguous_strides, same_layout
from graphc.ir import Node, Value
from graphc.passes.fuse_values import Access

__all__ = ["Kind", "Partition", "Space", "Unit"]


class Kind(Enum):
    """What a group's kernel looks like; the value is the hint of its call."""

    MAP = "map"
    ROW = "row"
    COL = "col"
    CONTRACT = "contract"
    GATHER = "gather"
    SOLO = "solo"  # never merged: joins, scatters, regions


@dataclass(frozen=True, slots=True)
class Space:
    """The kind of a group and the shape that it iterates over; ``rows`` is the number of leading dimensions that are
    not reduced (ROW), ``axes`` are the reduced ones (COL)."""

    kind: Kind
    shape: Shape
    rows: int = 0
    axes: tuple[int, ...] = ()

    def merged(self, other: Space) -> Space | None:
        """The space of a group of both, ``self`` being the producer, or None."""
        a, b = self, other
        if a.kind is Kind.SOLO or b.kind is Kind.SOLO:
            return None
        if a == b and a.kind in (Kind.MAP, Kind.ROW, Kind.COL):
            return a
        if a.kind in (Kind.CONTRACT, Kind.GATHER):
            return a if b.kind is Kind.MAP and b.shape == a.shape else None
        if a.kind is Kind.MAP and b.kind is Kind.ROW:
            a, b = b, a
        if a.kind is Kind.ROW and b.kind is Kind.MAP:
            return a if b.shape == a.shape or b.shape in a.row_shapes else None
        return None

    @property
    def row_shapes(self) -> tuple[Shape, Shape]:
        """The shapes of one element per row."""
        leading = self.shape[: self.rows]
        return leading, leading + (1,) * (len(self.shape) - self.rows)

    def aligned(self, reader: Space, access: Access) -> bool:
        """Whether, in a group of this space, what ``reader`` reads of a member is the member's own element, or its
        own row's."""
        if access.strides is None:
            return False
        leaf, own = access.leaf.shape, contiguous_strides(access.leaf.shape)
        if leaf == reader.shape:
            return same_layout(reader.shape, access.strides, own)
        if self.kind is not Kind.ROW or leaf not in self.row_shapes:
            return False
        if reader.shape in self.row_shapes:
            return same_layout(reader.shape, access.strides, contiguous_strides(reader.shape))
        wide = contiguous_strides(leaf[: self.rows]) + (0,) * (len(self.shape) - self.rows)
        return reader.shape == self.shape and same_layout(reader.shape, access.strides, wide)


@dataclass(frozen=True, eq=False)
class Unit:
    """The smallest group: one stored result with its cone, or one node of its own."""

    number: int
    node: Node
    space: Space
    reads: tuple[Access, ...]
    level: int  # the longest path from a source


@dataclass
class _Group:
    space: Space
    units: list[Unit]
    level: int  # above those of all groups that it reads
    before: set[int] = field(default_factory=set)
    after: set[int] = field(default_factory=set)
    sides: set[str] = field(default_factory=set)  # see `Partition.keep_apart`


class Partition:
    """Groups of units under merging. The graph of groups has no cycle at any time."""

    def __init__(self, units: Sequence[Unit], producer: dict[Value, Unit]):
        self.producer = producer
        self.groups = {u.number: _Group(u.space, [u], u.level) for u in units}
        self.where = {u.number: u.number for u in units}
        for u in units:
            for access in u.reads:
                made = producer.get(access.leaf)
                if made is not None:
                    self.groups[u.number].before.add(made.number)
                    self.groups[made.number].after.add(u.number)

    def of(self, unit: Unit) -> int:
        return self.where[unit.number]

    def space(self, unit: Unit) -> Space:
        return self.groups[self.of(unit)].space

    def merge(self, first: Unit, second: Unit) -> bool:
        """Merge the groups of two units, of which ``first`` may be read by ``second``; False where that is not
        possible."""
        a, b = self.of(first), self.of(second)
        if a == b:
            return True
        space = self.groups[a].space.merged(self.groups[b].space)
        if len(self.groups[a].sides | self.groups[b].sides) > 1:
            return False
        if space is None or self._path(a, b) or self._path(b, a) or not self._aligned(space, a, b):
            return False
        self._join(a, b, space)
        return True

    def keep_apart(self, later: Iterable[Unit], earlier: Iterable[Unit]) -> None:
        """From now on the groups of ``later`` are not merged with those of ``earlier`` nor with what these read, unless
        they are one already."""
        for u in later:
            self.groups[self.of(u)].sides.add("later")
        stack = [self.of(u) for u in earlier]
        while stack:
            group = self.groups[stack.pop()]
            if "earlier" not in group.sides:
                group.sides.add("earlier")
                stack.extend(group.before)

    def _aligned(self, space: Space, a: int, b: int) -> bool:
        """Whether all reads between the two groups stay within an element or a row."""
        units = [*self.groups[a].units, *self.groups[b].units]
        numbers = {u.number for u in units}
        for u in units:
            for access in u.reads:
                made = self.producer.get(access.leaf)
                if made is not None and made.number in numbers and not space.aligned(u.space, access):
                    return False
        return True

    def _path(self, a: int, b: int) -> bool:
        """Whether a path leads from group a to group b through a third."""
        limit = self.groups[b].level  # levels rise along every path
        seen = {a, b}
        stack = [g for g in self.groups[a].after if g != b]
        while stack:
            g = stack.pop()
            if g in seen or self.groups[g].level >= limit:
                continue
            seen.add(g)
            if b in self.groups[g].after:
                return True
            stack.extend(self.groups[g].after)
        return False

    def _join(self, a: int, b: int, space: Space) -> None:
        into, gone = self.groups[a], self.groups.pop(b)
        into.space = space
        into.units = sorted([*into.units, *gone.units], key=lambda u: u.number)
        into.level = max(into.level, gone.level)
        into.sides |= gone.sides
        for u in gone.units:
            self.where[u.number] = a
        for g in gone.before - {a}:
            self.groups[g].after.discard(b)
            self.groups[g].after.add(a)
        for g in gone.after - {a}:
            self.groups[g].before.discard(b)
            self.groups[g].before.add(a)
        into.before = (into.before | gone.before) - {a, b}
        into.after = (into.after | gone.after) - {a, b}
        self._raise(a)

    def _raise(self, start: int) -> None:
        """Restore the levels after group ``start``, which has risen or has new readers."""
        stack = [start]
        while stack:
            level = self.groups[g := stack.pop()].level
            for later in self.groups[g].after:
                if self.groups[later].level <= level:
                    self.groups[later].level = level + 1
                    stack.append(later)

    def ordered(self) -> Iterable[tuple[Space, list[Unit]]]:
        """The groups, each after those that it reads, else in the order of their first units."""
        waits = {g: len(group.before) for g, group in self.groups.items()}
        ready = sorted((g for g, n in waits.items() if not n), reverse=True)
        while ready:
            g = ready.pop()
            yield self.groups[g].space, self.groups[g].units
            for later in sorted(self.groups[g].after, reverse=True):
                waits[later] -= 1
                if not waits[later]:
                    ready.append(later)
