"""Products whose right factor many tasks share: convolutions, which read it once per row of the result or place of the
window. Nothing is packed by a task. Both factors are read in place, and the sum goes over several axes inside of the
microkernel (a batch-reduce product: Georganas et al., "Harnessing Deep Learning via a Single Building Block", IPDPS
2020, arXiv 1906.06440).

Here is what is decided before there are loops. `graphc.kernels.contract_direct_loops` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from graphc.dtype import DType
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.contract_schedule import Target, even

__all__ = [
    "NEAR_BYTES",
    "Direct",
    "as_direct",
    "cut_in_parts",
    "in_place",
    "merged",
    "panels_first",
    "readers",
    "wants_panels",
]

A, B, C = 0, 1, 2

FEW_ROWS = 128  # of a: with fewer, turning b for each task costs more than the product
LONG_ROW = 1 << 10  # bytes: a few rows this far apart fill their sets of a first level of cache
NEAR_BYTES = 1 << 19  # of both factors that a task goes through for its tiles: half of a second level of cache
LEAST_DEPTH = 1024  # of a part of the sum: below, the partial results cost more than they bring
MOST_PARTS = 16
TASKS = 16  # that are enough for any team
SEVERAL = 3  # panels for which it pays to copy a tile of a
TILE_ROWS = 6  # from here on rows of a tile hide the latency of the FMA units


@dataclass(frozen=True, slots=True)
class Direct:
    """``c[outer, inside, m, n] = sum over levels of a[outer, inside, m, levels] * b[outer, levels, n]``.

    Tasks are ``outer`` × ranges of ``rows`` tiles of ``mr`` rows × ranges of ``panels`` panels of ``nr`` columns. In a
    task, for each step of the first ``slabs`` of the ``levels`` of the sum, and each of ``inside``, one microkernel
    call per tile. ``panel`` is the distance of two panels of b, in elements. A level in which a advances by ``apart``
    is not merged with the next. The first level is to be cut into ``parts``, whose products are added up later. Where
    the rows of a lie along m, a tile of a is ``copied`` before it meets several panels.
    """

    outer: tuple[Axis, ...]
    inside: tuple[Axis, ...]
    m: Axis
    n: Axis
    levels: tuple[Axis, ...]
    slabs: int
    mr: int
    nr: int
    rows: int
    panels: int
    panel: int
    apart: int
    parts: int = 1

    @property
    def m_tiles(self) -> int:
        return -(-self.m.size // self.mr)

    @property
    def n_panels(self) -> int:
        return -(-self.n.size // self.nr)

    @property
    def depth(self) -> int:
        return prod(axis.size for axis in self.levels)

    @property
    def copied(self) -> bool:
        """As they lie, few of the lines of a tile would stay in the first level of cache, which they share sets of."""
        return self.m.strides[A] == 1 != self.levels[-1].strides[A] and self.n_panels >= SEVERAL


def readers(p: Problem) -> int:
    """How many rows of the result that lie apart see all of b."""
    return prod(axis.size for axis in p.outer if not axis.strides[B])


def is_direct(p: Problem, dtype: DType) -> bool:
    """Whether b is shared by rows that cannot be tiled together, and to pack it for each would not pay."""
    apart = bool(p.k_outer) or (p.n.strides[B] != 1 and p.m.size < FEW_ROWS)
    return dtype.is_float and p.k_size > 0 and readers(p) > 1 and apart


def as_direct(p: Problem, dtype: DType, target: Target) -> Direct | None:
    """The loops of ``p`` if it is a product of this kind, else None. Depends on shapes and strides only."""
    if not is_direct(p, dtype):
        return None
    # Rows of a tile are neighbours in memory, unless those are too few.
    rows = [axis for axis in (*p.outer, p.m) if not axis.strides[B]]
    m = max(rows, key=lambda axis: (min(axis.size, TILE_ROWS), -abs(axis.strides[A])))
    outer = tuple(axis for axis in (*p.outer, p.m) if axis is not m)
    mr, nr = register_tile(m.size, p.n.size, target.lanes(dtype), target.registers)
    # With one vector of columns, loads are what limits: then neighbouring rows share them (`Contract.repeats`).
    apart = m.strides[A] if nr <= target.lanes(dtype) else 0
    levels = merged(sorted((*p.k_outer, p.k), key=lambda axis: -abs(axis.strides[A])), apart)
    d = Direct(outer, (), m, p.n, levels, 0, mr, nr, -(-m.size // mr), -(-p.n.size // nr), nr, apart)
    return scheduled(d, dtype)


def scheduled(d: Direct, dtype: DType) -> Direct:
    """With tasks, parts and slabs chosen."""
    deep = d.depth * (d.nr + d.mr) * dtype.itemsize > NEAR_BYTES
    if deep:
        # Both factors go out of the cache before the next row of the result needs them: so all rows take a slab of
        # them before the next slab, and tasks are parts of the sum.
        shared = tuple(axis for axis in d.outer if not axis.strides[B])
        d = replace(d, outer=tuple(axis for axis in d.outer if axis.strides[B]), inside=shared)
        d = parted(d)
    near = d.n_panels if deep else NEAR_BYTES // (d.depth * d.nr * dtype.itemsize)
    tasks, panels, rows = d.parts * prod(axis.size for axis in d.outer), d.n_panels, d.m_tiles
    if deep and d.n.size > d.m.size * prod(axis.size for axis in d.inside):
        near = 1  # b is the larger factor: a task for each panel, which fetches the next one meanwhile
    least = 1 if d.copied else TASKS  # of ranges of columns: what is copied is to be used for many
    while panels > 1 and (panels > near or tasks * -(-d.n_panels // panels) < least):
        panels = -(-panels // 2)
    tasks *= -(-d.n_panels // panels)
    while rows > 1 and tasks * -(-d.m_tiles // rows) < TASKS:
        rows = -(-rows // 2)
    d = replace(d, rows=rows, panels=panels)
    return slabbed(d, dtype) if deep else d


def parted(d: Direct) -> Direct:
    """With the level of the sum first that can be cut into the most parts, and cut into those."""
    most = min(MOST_PARTS, d.depth // LEAST_DEPTH)
    *outside, last = d.levels

    def parts(axis: Axis) -> int:
        return max((n for n in divisors(axis.size) if n <= most), default=1)

    first = max(outside or [last], key=parts)
    return replace(d, levels=(first, *(axis for axis in d.levels if axis is not first)), parts=parts(first))


def slabbed(d: Direct, dtype: DType) -> Direct:
    """With the first levels of the sum as slabs, until what a task reads of both factors in one stays near. A level is
    cut where it has a divisor."""
    rows = d.mr if d.copied else d.rows * d.mr
    levels, slabs, row = list(d.levels), 0, (d.panels * d.nr + rows) * dtype.itemsize
    levels[0] = Axis(levels[0].size // d.parts, levels[0].strides)
    while prod(axis.size for axis in levels[slabs:]) * row > NEAR_BYTES and slabs < len(levels) - 1:
        below = prod(axis.size for axis in levels[slabs + 1 :]) * row
        size = max(n for n in divisors(levels[slabs].size) if n == 1 or n * below <= NEAR_BYTES)
        if size > 1:
            levels[slabs : slabs + 1] = split(levels[slabs], size)
        slabs += 1
    levels[0] = Axis(levels[0].size * d.parts, levels[0].strides)
    return replace(d, levels=tuple(levels), slabs=slabs)


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def split(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """``axis`` as steps of ``size`` and what is inside of one."""
    return Axis(axis.size // size, tuple(s * size for s in axis.strides)), Axis(size, axis.strides)


def merged(levels: Sequence[Axis], apart: int) -> tuple[Axis, ...]:
    """``levels``, outer first, with neighbours merged where both factors step through them as one, and the outer one's
    step of a is not ``apart``."""
    out: list[Axis] = []
    for axis in levels:
        fits = bool(out) and all(out[-1].strides[x] == axis.strides[x] * axis.size for x in (A, B))
        if fits and out[-1].strides[A] != apart:
            out[-1] = Axis(out[-1].size * axis.size, axis.strides)
        else:
            out.append(axis)
    return tuple(out)


def register_tile(m: int, n: int, lanes: int, registers: int) -> tuple[int, int]:
    """Rows and columns of the tile that covers m × n in the fewest cycles of two FMA units and two loads each."""

    def cycles(vectors: int) -> tuple[float, int]:
        mr = even(m, (registers - 1 - vectors) // vectors)
        tiles = [mr] * (m // mr) + ([m % mr] if m % mr else [])
        full, rest = divmod(-(-n // lanes), vectors)
        widths = [vectors] * full + ([rest] if rest else [])
        return sum(max(rows * v, rows + v) for rows in tiles for v in widths), len(tiles) * len(widths)

    vectors = min(range(1, min(4, -(-n // lanes)) + 1), key=cycles)
    return even(m, (registers - 1 - vectors) // vectors), vectors * lanes


# The right factor, panel by panel ------------------------------------------------------------------------------------


def wants_panels(d: Direct, dtype: DType) -> bool:
    """Whether b is to be copied into panels: it has no rows, or long ones, whose parts fall on each other in the
    caches."""
    return d.n.strides[B] != 1 or (d.n_panels > 1 and abs(d.levels[-1].strides[B]) * dtype.itemsize >= LONG_ROW)


def packs_panels(d: Direct) -> bool:
    """Whether each panel of b is for one task, which can pack it."""
    return d.rows >= d.m_tiles and all(axis.strides[B] for axis in d.outer) and not d.copied


def panels_first(d: Direct) -> Direct:
    """The same product over a copy of b as [outer…, panel, levels…, nr]. The levels keep their order."""
    below, levels = d.nr, []
    for axis in reversed(d.levels):
        levels.append(with_b(axis, below))
        below *= axis.size
    panel, below = below, below * d.n_panels
    outer: list[Axis] = []
    for axis in reversed(d.outer):
        outer.append(with_b(axis, below if axis.strides[B] else 0))
        below *= axis.size if axis.strides[B] else 1
    slabs = tuple(reversed(levels))[: d.slabs]
    rest = merged(tuple(reversed(levels))[d.slabs :], d.apart)
    return replace(d, outer=tuple(reversed(outer)), n=with_b(d.n, 1), levels=(*slabs, *rest), panel=panel)


def with_b(axis: Axis, stride: int) -> Axis:
    return Axis(axis.size, (axis.strides[A], stride, *axis.strides[C:]))


# A long sum in parts -------------------------------------------------------------------------------------------------


def in_place(d: Direct, identity: bool) -> bool:
    """Whether ``d`` can write its result, at once or slab by slab. ``identity``: the result is the sum itself."""
    return d.parts == 1 and (not d.slabs or (identity and d.n.strides[C] == 1))


def cut_in_parts(d: Direct, p: Problem) -> Direct:
    """The partial products, written to [parts, outer…, m, n] in the order of ``p``."""
    first, places, below = d.levels[0], {}, 1
    for axis in (p.n, p.m, *reversed(p.outer)):
        places[axis.strides[C:]] = below
        below *= axis.size

    def plain(axis: Axis) -> Axis:
        return Axis(axis.size, (*axis.strides[:C], places[axis.strides[C:]]))

    size = first.size // d.parts
    part = Axis(d.parts, (first.strides[A] * size, first.strides[B] * size, below))
    levels = (Axis(size, first.strides), *d.levels[1:])
    outer, inside = (tuple(map(plain, axes)) for axes in (d.outer, d.inside))
    return replace(d, outer=(part, *outer), inside=inside, m=plain(d.m), n=plain(d.n), levels=levels)
