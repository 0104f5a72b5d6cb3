"""The loops of a product that reads both factors in place, and those that copy its right factor into panels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from math import prod

from graphc.dtype import DType
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_direct import NEAR_BYTES, Direct, merged
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_problem import Axis
from graphc.loop import Affine, Ahead, Operand, Role, Scratch, Stmt

__all__ = ["DirectLoops", "Panels"]

A, B, C = 0, 1, 2

Indexed = list[tuple[Axis, Bound]]
Range = tuple[Bound, Bound]


def at(axes: Indexed, array: int) -> Affine:
    return place((i, axis.strides[array]) for axis, i in axes)


class DirectLoops:
    """The statements of one product. Scratch: ``tile_a``, a tile of a as [levels…, mr], where it is copied; ``panels``
    of b as [panel, levels…, nr], where each task ``packs`` its own; ``tile_c``, a tile across the panels of a task that
    waits for its epilogue, unless the product is the result."""

    def __init__(self, d: Direct, dtype: DType, epilogue: Epilogue, packs: bool = False):
        self.d, self.dtype, self.epilogue, self.packs = d, dtype, epilogue, packs
        self.code = Code(dtype, ("a", "b", "tile_a", "panels", "tile_c"))
        self.packed, self.panel = in_panel(d.levels[d.slabs :], d.nr)
        self.direct = epilogue.identity and d.n.strides[C] == 1
        assert self.direct or not d.slabs, "an epilogue needs the whole sum"

    def scratch(self) -> tuple[Scratch, ...]:
        d, sizes = self.d, {}
        if d.copied:
            sizes["tile_a"] = d.mr * prod(axis.size for axis in d.levels[d.slabs :])
        if self.packs:
            sizes["panels"] = d.panels * self.panel
        if not self.direct:
            sizes["tile_c"] = d.mr * d.panels * d.nr
        return tuple(Scratch(name, self.dtype, size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, d = self.code, self.d
        m_tasks, n_tasks = -(-d.m_tiles // d.rows), -(-d.n_panels // d.panels)
        sizes = [("n_task", n_tasks), ("m_task", m_tasks), *(("outer", axis.size) for axis in d.outer)]
        with c.loop("task", 0, prod(size for _, size in sizes), role=Role.PARALLEL) as task:
            n_task, m_task, *outer = c.unflatten(task, sizes)
            rows = c.part("tile", m_task, d.rows, d.m_tiles)
            panels = c.part("panel", n_task, d.panels, d.n_panels)
            columns = self.columns(panels)
            around = list(zip(d.outer, outer, strict=True))
            if d.slabs:
                with ExitStack() as stack:
                    axes = [*around, *self.each("inside", d.inside, stack)]
                    self.clear(axes, rows, columns)
            with ExitStack() as stack:
                slabs = self.each("slab", d.levels[: d.slabs], stack)
                if self.packs:
                    self.pack(at([*around, *slabs], B), panels)
                axes = [*around, *self.each("inside", d.inside, stack)]
                c.tiles(*rows, d.m.size, d.mr, lambda tile, m: self.tile(axes, slabs, tile, m, panels, columns))
        return tuple(c.out)

    def each(self, name: str, axes: tuple[Axis, ...], stack: ExitStack) -> Indexed:
        return [(axis, stack.enter_context(self.code.loop(name, 0, axis.size))) for axis in axes]

    def columns(self, panels: Range) -> Range:
        """The columns of c that the panels cover."""
        c, nr, n = self.code, self.d.nr, self.d.n.size
        start, end = (c.index(name, "mul", x, nr) for name, x in zip(("column", "column_end"), panels, strict=True))
        return start, c.index("column_stop", "minimum", end, n)

    def clear(self, axes: Indexed, rows: Range, columns: Range) -> None:
        """Zeros, for slabs to add to."""
        c, d = self.code, self.d
        first = c.index("row_first", "mul", rows[0], d.mr)
        last = c.index("row_stop", "minimum", c.index("row_end", "mul", rows[1], d.mr), d.m.size)
        with c.loop("row", first, last) as row:
            c.fill("y0", at([*axes, (d.m, row)], C), *columns)

    def tile(self, axes: Indexed, slabs: Indexed, tile: Bound, m: int, panels: Range, columns: Range) -> None:
        """One tile of ``m`` rows across the panels: its products, then its epilogue."""
        c, d = self.code, self.d
        if self.direct:
            into = Operand("y0", at(axes, C) + place([(tile, d.mr * d.m.strides[C])]), d.m.strides[C])
        else:
            into = Operand("tile_c", place([(panels[0], -d.nr)]), d.panels * d.nr)
        left = Operand("a", at([*axes, *slabs], A) + place([(tile, d.mr * d.m.strides[A])]), d.m.strides[A])
        right, levels = at([*axes, *slabs], B), d.levels[d.slabs :]
        if d.copied:
            left, levels = self.copy(left, m)
        if self.packs:
            levels = merged(self.packed, d.apart)
        *repeats, k = levels

        def panel(number: Bound, n: int) -> None:
            lies = Operand("b", right + place([(number, d.panel)]), d.levels[-1].strides[B])
            b = lies
            if self.packs:
                b = Operand("panels", place([(number, self.panel), (panels[0], -self.panel)]), d.nr)
            whole = (m, n) == (d.mr, d.nr)  # the code of a fetch is longer than that of a tile: not for those at edges
            c.contract(
                replace(into, index=into.index + place([(number, d.nr)])),
                replace(left, col=k.strides[A]),
                b, m, n, k.size, accumulate=bool(d.slabs),
                repeats=tuple((axis.size, axis.strides[A], axis.strides[B]) for axis in repeats),
                ahead=self.next_panel([*axes, (Axis(d.m_tiles, (0, 0)), tile)], lies, levels) if whole else (),
            )  # fmt: skip

        c.tiles(*panels, d.n.size, d.nr, panel)
        if not self.direct:
            with c.loop("r", 0, m) as r:
                row = [*axes, (d.m, place([(tile, d.mr), (r, 1)]))]
                finish_row(c, self.epilogue, row, d.n, columns, (into.buffer, into.index + Affine.of(r, into.row)))

    def copy(self, tile: Operand, m: int) -> tuple[Operand, tuple[Axis, ...]]:
        """The ``tile`` of a, copied, and the levels of the sum over the copy."""
        c, d, below = self.code, self.d, self.d.mr
        levels: list[Axis] = []
        for axis in reversed(d.levels[d.slabs :]):
            levels.insert(0, Axis(axis.size, (below, *axis.strides[B:])))
            below *= axis.size
        with ExitStack() as stack:
            ks = self.each("k", d.levels[d.slabs :], stack)
            into = place((k, axis.strides[A]) for axis, (_, k) in zip(levels, ks, strict=True))
            with c.lanes(0, m) as i:
                c.store("tile_a", into + Affine.of(i), c.load("a", tile.index + at(ks, A) + Affine.of(i)))
        return Operand("tile_a", Affine(), 1), merged(levels, 0)

    def pack(self, base: Affine, panels: Range) -> None:
        """The panels of one slab, ``base`` on, into scratch."""
        c, d = self.code, self.d
        steps, last = in_memory_order(zip(d.levels[d.slabs :], self.packed, strict=True))

        def columns(panel: Bound, count: int) -> None:
            with ExitStack() as stack:
                ks = [stack.enter_context(c.loop("k", 0, axis.size)) for axis, _ in steps]
                source = base + place([(panel, d.nr * d.n.strides[B])])
                target = place([(panel, self.panel), (panels[0], -self.panel)])
                source += place((k, axis.strides[B]) for k, (axis, _) in zip(ks, steps, strict=True))
                target += place((k, to.strides[B]) for k, (_, to) in zip(ks, steps, strict=True))
                copy_columns(c, d, last, source, ("panels", target), count)

        c.tiles(*panels, d.n.size, d.nr, columns)

    def next_panel(self, axes: Indexed, b: Operand, levels: Sequence[Axis]) -> tuple[Ahead, ...]:
        """A tile's share of the rows of b that are read after those of ``b``, by as many tiles: in the next slab or
        part of the sum, or else in the next task. Nothing, where all of b stays near."""
        d = self.d
        together = all(x.strides[B] == y.size * y.strides[B] for x, y in pairwise(d.levels[d.slabs :]))
        if not together or d.n.strides[B] != 1 or d.depth * d.n.size * self.dtype.itemsize <= 2 * NEAR_BYTES:
            return ()
        same = [(axis, i) for axis, i in axes if not axis.strides[B]]  # that read these rows
        rounds = prod(axis.size for axis in levels[:-1])
        rows = rounds * -(-levels[-1].size // prod(axis.size for axis, _ in same))
        further = [axis.strides[B] for axis in (*d.outer, *d.levels[: d.slabs]) if axis.size > 1 and axis.strides[B]]
        start, below = b.index + (further[-1] if further else d.panels * d.panel), rows * b.row
        for axis, i in reversed(same):
            start, below = start + place([(i, below)]), below * axis.size
        return (Ahead("b", start, b.row, rows, d.nr, self.dtype),)


# Panels of the right factor ------------------------------------------------------------------------------------------

Step = tuple[Axis, Axis]  # a level of the sum, as b lies and in its panel


def in_panel(levels: Sequence[Axis], nr: int) -> tuple[tuple[Axis, ...], int]:
    """``levels`` over a panel [levels…, nr] of b, and its size."""
    found: list[Axis] = []
    below = nr
    for axis in reversed(levels):
        found.insert(0, Axis(axis.size, (axis.strides[A], below, *axis.strides[C:])))
        below *= axis.size
    return tuple(found), below


def in_memory_order(steps: Iterable[Step]) -> tuple[list[Step], Step | None]:
    """``steps`` in the order in which b lies in memory, and apart the last, if b lies along it: blocks are turned."""
    order = sorted(steps, key=lambda step: -abs(step[0].strides[B]))
    return (order[:-1], order[-1]) if order[-1][0].strides[B] == 1 else (order, None)


def copy_columns(c: Code, d: Direct, last: Step | None, source: Affine, target: tuple[str, Affine], count: int) -> None:
    """``count`` columns of b to a row of a panel, or to all rows along ``last``."""
    buffer, into = target
    if last:
        axis, to = last
        c.transpose(Operand(buffer, into, to.strides[B]), Operand("b", source, d.n.strides[B]), count, axis.size)
        return
    with c.lanes(0, count) as j:
        c.store(buffer, into + Affine.of(j), c.load("b", source + Affine.of(j, d.n.strides[B])))


class Panels:
    """The statements that copy b to ``y0`` as [outer…, panel, levels…, nr], in the order in which b lies in memory."""

    def __init__(self, d: Direct, panels: Direct, dtype: DType):
        self.d, self.panels, self.dtype = d, panels, dtype
        self.outer = [(a, b) for a, b in zip(d.outer, panels.outer, strict=True) if a.strides[B]]
        self.size = prod(axis.size for axis, _ in self.outer) * d.n_panels * panels.panel

    def body(self) -> tuple[Stmt, ...]:
        d, c = self.d, Code(self.dtype, ("b", "y0"))
        steps, last = in_memory_order(zip(d.levels, in_panel(d.levels, d.nr)[0], strict=True))
        sizes = [*(("outer", axis.size) for axis, _ in self.outer), ("panel", d.n_panels if last else 1)]
        sizes += [("k", axis.size) for axis, _ in steps]
        with c.loop("task", 0, prod(size for _, size in sizes), role=Role.PARALLEL) as task:
            found = c.unflatten(task, sizes)
            panel = found.pop(len(self.outer))
            pairs = [*zip(found, [*self.outer, *steps], strict=True)]
            source = place((i, axis.strides[B]) for i, (axis, _) in pairs)
            target = place((i, axis.strides[B]) for i, (_, axis) in pairs)

            def columns(at: Bound, count: int) -> None:
                begin, into = source + place([(at, d.nr * d.n.strides[B])]), target + place([(at, self.panels.panel)])
                copy_columns(c, d, last, begin, ("y0", into), count)

            span = (panel, c.index("panel_end", "add", panel, 1)) if last else (0, d.n_panels)
            c.tiles(*span, d.n.size, d.nr, columns)
        return tuple(c.out)
