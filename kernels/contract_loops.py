"""The loops of a blocked product: pack panels of b, walk tiles of a, call the microkernel, run the epilogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod

from graphc.dtype import DType
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row, touched
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import Schedule
from graphc.loop import LINE, Affine, Ahead, Operand, Role, Scratch, Stmt, Transpose, Var

__all__ = ["Loops"]

A, B, C = 0, 1, 2
STRIP = 16  # steps along k that are turned at a time, and that rows of a tile have room for behind their end

Range = tuple[Bound, Bound]


def share(total: int, among: int, unit: int = 1) -> int:
    """A part of ``total``, in whole units, of which ``among`` cover it."""
    return -(-total // (among * unit)) * unit


class Loops:
    """The statements of one contraction under one schedule; ``panel``: the distance of two panels of b, in elements,
    where it lies in panels (`graphc.kernels.contract_ahead`).

    One PARALLEL loop over tasks (outer axes × m ranges × n ranges); in a task, for each group of panels: for each slab
    of k: pack the panels, then for each tile of rows: blocks of k × panels of microkernel calls, then the epilogue.

    Scratch: ``panels`` of b as [panel][k][nr]; ``tiles_a`` of a, where they are copied; ``tile_c`` the sums of one tile
    (of all tiles of the task, where k has several slabs), where the result cannot hold them; ``strip`` a few steps
    along k of a tile of a, where they lie across its rows.
    """

    def __init__(
        self,
        p: Problem,
        s: Schedule,
        dtype: DType,
        epilogue: Epilogue,
        stored: Mapping[str, Stored],
        panel: int | None = None,
    ):
        self.p, self.s, self.dtype, self.epilogue = p, s, dtype, epilogue
        self.panel = s.nr * p.n.strides[B] if panel is None else panel
        self.code = Code(dtype, ("a", "b", "panels", "tiles_a", "tile_c", "strip"), stored)
        self.direct = epilogue.identity and p.n.strides[C] == 1
        self.slabbed = s.k_slab < p.k.size  # then the outer axes of k are slabs, too
        self.depth = s.k_slab if self.slabbed else p.k_size  # of the packed panels
        self.slabs = prod(axis.size for axis in p.k_outer) * -(-p.k.size // s.k_slab) if self.slabbed else 1
        self.outer: list[tuple[Axis, Bound]] = []
        self.k_outer: list[tuple[Axis, Bound]] = []
        self.last_slab: Bound = 1  # whether the present slab is the last

    def scratch(self) -> tuple[Scratch, ...]:
        s, sizes = self.s, {}
        if s.pack_b:
            sizes["panels"] = s.chunk * self.panel_size
        if s.a_tiles:
            sizes["tiles_a"] = s.a_tiles * self.a_tile_size
            if s.by_rows and self.p.k.strides[A] != 1:
                sizes["strip"] = STRIP * s.mr
        if not self.direct:
            sizes["tile_c"] = (s.rows if self.slabbed else 1) * s.mr * s.chunk * s.nr
        of = {"tile_c": self.dtype}  # the others hold factors
        return tuple(Scratch(name, of.get(name, self.code.factor), size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, p, s = self.code, self.p, self.s
        with c.loop("task", 0, p.outer_size * s.m_tasks * s.n_tasks, role=Role.PARALLEL) as task:
            *outer, mt, nt = c.unflatten(task, [*outer_sizes(p), ("m_task", s.m_tasks), ("n_task", s.n_tasks)])
            self.outer = list(zip(p.outer, outer, strict=True))
            rows = c.part("tile", mt, s.rows, s.m_tiles)
            first, last = c.part("panel", nt, s.panels, s.n_panels)
            if s.chunk >= s.panels:
                self.group(rows, (first, last))
            else:
                c.steps("group", first, last, s.chunk, lambda start, stop: self.group(rows, (start, stop)))
        return tuple(c.out)

    def group(self, rows: Range, panels: Range) -> None:
        """All of k for one group of panels."""
        c, p, s = self.code, self.p, self.s
        if not self.slabbed:
            self.slab(rows, panels, (0, p.k.size), None)
            return
        with c.loop("slab", 0, self.slabs) as slab:
            parts = -(-p.k.size // s.k_slab)
            *outer, part = c.unflatten(slab, [*(("k_out", axis.size) for axis in p.k_outer), ("k_part", parts)])
            self.k_outer = list(zip(p.k_outer, outer, strict=True))
            self.last_slab = c.index("last", "div", c.index("next", "add", slab, 1), self.slabs)
            self.slab(rows, panels, c.part("k", part, s.k_slab, p.k.size), slab)

    def slab(self, rows: Range, panels: Range, ks: Range, slab: Var | None) -> None:
        """One range of k: pack, then all tiles."""
        c, p, s = self.code, self.p, self.s
        if s.pack_b:
            self.pack_b(panels, ks)

        def tiles(first: Bound, last: Bound) -> None:
            if s.a_tiles:
                self.pack_a((first, last), ks)
            c.tiles(first, last, p.m.size, s.mr, lambda at, m: self.tile(at, m, rows[0], first, panels, ks, slab))

        if s.a_tiles and s.a_tiles < s.rows:
            c.steps("part", *rows, s.a_tiles, tiles)
        else:
            tiles(*rows)

    # Packing, in the order in which the operand lies in memory

    def pack_b(self, panels: Range, ks: Range) -> None:
        c, p, s = self.code, self.p, self.s

        def copy(k: Bound, panel: Bound, columns: int) -> None:
            with c.lanes(0, columns, unroll=2) as j:
                value = c.load("b", self.b_at(k, panel) + Affine.of(j, p.n.strides[B]))
                c.store("panels", self.packed(k, ks[0], panel, panels[0]) + Affine.of(j), value)

        def turn(panel: Bound, columns: int) -> None:
            target = Operand("panels", self.packed(ks[0], ks[0], panel, panels[0]), s.nr)
            source = Operand("b", self.b_at(ks[0], panel), p.n.strides[B])
            c.transpose(target, source, columns, c.index("k_count", "sub", ks[1], ks[0]))

        def panel(at: Bound, columns: int) -> None:
            with c.loop("k", *ks) as k:
                copy(k, at, columns)

        with self.over_k_outer():
            if p.n.strides[B] == 1:
                with c.loop("k", *ks) as k:
                    c.tiles(*panels, p.n.size, s.nr, lambda at, n: copy(k, at, n))
            else:
                c.tiles(*panels, p.n.size, s.nr, turn if p.k.strides[B] == 1 else panel)

    def pack_a(self, tiles: Range, ks: Range) -> None:
        c, p, s = self.code, self.p, self.s

        def copy(tile: Bound, k: Bound, i: Bound) -> None:
            source = self.a_at(tile, k) + place([(i, p.m.strides[A])])
            target = self.a_tile(tile, tiles[0], k, ks[0])
            c.store("tiles_a", target.index + place([(i, target.row)]), c.load("a", source))

        def columns(k: Bound, tile: Bound, m: int) -> None:
            with c.lanes(0, m) as i:
                copy(tile, k, i)

        def rows(tile: Bound, m: int) -> None:
            with c.loop("i", 0, m) as i, c.lanes(*ks) as k:
                copy(tile, k, i)

        def turned(tile: Bound, m: int, start: Bound, end: Bound) -> None:
            with c.loop("k", start, end) as k, c.lanes(0, m, unroll=2) as j:
                at = self.a_at(tile, k) + place([(j, p.m.strides[A])])
                c.store("strip", place([(k, s.mr), (start, -s.mr), (j, 1)]), c.load("a", at))
            target, strip = self.a_tile(tile, tiles[0], start, ks[0]), Operand("strip", Affine(), s.mr)
            c.out.append(Transpose(target, strip, STRIP, m, c.factor, c.factor))  # past the end, rows are padded

        with self.over_k_outer():
            if p.k.strides[A] == 1:
                c.tiles(*tiles, p.m.size, s.mr, rows)
            elif s.by_rows:
                c.steps(
                    "k", *ks, STRIP, lambda k, end: c.tiles(*tiles, p.m.size, s.mr, lambda at, m: turned(at, m, k, end))
                )
            else:
                with c.loop("k", *ks) as k:
                    c.tiles(*tiles, p.m.size, s.mr, lambda at, m: columns(k, at, m))

    # Places

    def base(self, array: int) -> Affine:
        return place((i, axis.strides[array]) for axis, i in self.outer + self.k_outer)

    def a_at(self, tile: Bound, k: Bound) -> Affine:
        return self.base(A) + place([(tile, self.s.mr * self.p.m.strides[A]), (k, self.p.k.strides[A])])

    def b_at(self, k: Bound, panel: Bound) -> Affine:
        return self.base(B) + place([(k, self.p.k.strides[B]), (panel, self.panel)])

    def row_packed(self, k: Bound, start: Bound) -> Affine:
        """The position of ``k`` among the packed rows, of which ``start`` is the first."""
        if self.slabbed:
            return place([(k, 1), (start, -1)])
        at, below = place([(k, 1)]), self.p.k.size
        for axis, i in reversed(self.k_outer):
            at = at + place([(i, below)])
            below *= axis.size
        return at

    def packed(self, k: Bound, start: Bound, panel: Bound, first: Bound) -> Affine:
        row = self.row_packed(k, start)
        return place([(row, self.s.nr), (panel, self.panel_size), (first, -self.panel_size)])

    @property
    def panel_size(self) -> int:
        return self.depth * self.s.nr

    @property
    def a_tile_size(self) -> int:
        """Elements of a copied tile; rows are padded, lest a power of two put them into few sets of the cache."""
        return self.s.mr * (self.depth + (self.s.nr // 2 if self.s.by_rows else 0))

    def a_tile(self, tile: Bound, first: Bound, k: Bound, start: Bound) -> Operand:
        """The copied tile from ``k`` on."""
        at = place([(tile, self.a_tile_size), (first, -self.a_tile_size)])
        row = self.row_packed(k, start)
        if self.s.by_rows:
            return Operand("tiles_a", at + row, self.a_tile_size // self.s.mr, 1)
        return Operand("tiles_a", at + row * self.s.mr, 1, self.s.mr)

    # Tiles of c

    def tile(self, at: Bound, m: int, first: Bound, first_a: Bound, panels: Range, ks: Range, slab: Var | None) -> None:
        """One tile of ``m`` rows across the panels: its products, then its epilogue."""
        c, p, s = self.code, self.p, self.s
        columns = self.columns(panels)
        if self.direct:
            row = p.m.strides[C]
            sums = Operand("y0", self.base(C) + place([(at, s.mr * row)]), row)
        else:
            row = s.chunk * s.nr
            rows = [] if slab is None else [(at, s.mr * row), (first, -s.mr * row)]
            sums = Operand("tile_c", place([(panels[0], -s.nr), *rows]), row)
        once = slab is None and not p.k_outer and s.k_block >= p.k.size
        if not once:
            with c.when("eq", 0 if slab is None else slab, 0), c.loop("r", 0, m) as r:
                c.fill(sums.buffer, sums.index + Affine.of(r, row), *columns)
        self.products(at, m, first, first_a, panels, ks, sums, accumulate=not once)
        if not self.direct:
            with c.when("eq", self.slabs - 1 if slab is None else slab, self.slabs - 1), c.loop("r", 0, m) as r:
                axes = [*self.outer, (p.m, place([(at, s.mr), (r, 1)]))]
                finish_row(c, self.epilogue, axes, p.n, columns, (sums.buffer, sums.index + Affine.of(r, row)))

    def columns(self, panels: Range) -> Range:
        """The columns of c that the panels cover."""
        c, nr, n = self.code, self.s.nr, self.p.n.size
        start, end = (c.index(name, "mul", at, nr) for name, at in zip(("column", "column_end"), panels, strict=True))
        return start, c.index("column_stop", "minimum", end, n) if n % nr else end

    def products(
        self,
        at: Bound,
        m: int,
        first: Bound,
        first_a: Bound,
        panels: Range,
        ks: Range,
        sums: Operand,
        accumulate: bool,
    ) -> None:
        """Sums of the tile over ``ks``, in blocks for which the tile of a stays in the first-level cache."""
        c, p, s = self.code, self.p, self.s

        def block(k: Bound, end: Bound) -> None:
            depth = c.index("depth", "sub", end, k)
            a = Operand("a", self.a_at(at, k), p.m.strides[A], p.k.strides[A])
            if s.a_tiles:
                a = self.a_tile(at, first_a, k, ks[0])

            def panel(column: Bound, n: int) -> None:
                b = Operand("b", self.b_at(k, column), p.k.strides[B])
                if s.pack_b:
                    b = Operand("panels", self.packed(k, ks[0], column, panels[0]), s.nr)
                ahead: tuple[Ahead, ...] = ()
                if (m, n) == (s.mr, s.nr):  # the code of a fetch is longer than that of a tile: not for those at edges
                    ahead = self.next_panels(at, first, column, n, k) + self.next_tiles(at, first_a, column, panels, k)
                    if not self.direct:
                        axes = [*self.outer, (p.m, place([(at, s.mr)]))]
                        ahead = (*ahead, *touched(self.epilogue, axes, p.n, (place([(column, s.nr)]), n), m))
                into = Operand(sums.buffer, sums.index + place([(column, s.nr)]), sums.row)
                c.contract(into, a, b, m, n, depth, accumulate=accumulate, ahead=ahead)

            c.tiles(*panels, p.n.size, s.nr, panel)

        with self.over_k_outer():
            if s.k_block >= s.k_slab:
                block(*ks)
            else:
                c.steps("k", *ks, s.k_block, block)

    # What comes next, brought to the second level of cache meanwhile

    def next_tiles(self, at: Bound, first: Bound, column: Bound, panels: Range, k: Bound) -> tuple[Ahead, ...]:
        """A block's share of the tiles of a that follow: those that are copied at a time, or the next one."""
        p, s, lies = self.p, self.s, self.code.lies("a")
        row, step = p.m.strides[A], p.k.strides[A]
        if s.rows == 1 or lies.words is not None:
            return ()
        hop = s.k_slab * step if self.slabbed and s.a_tiles >= s.rows else (s.a_tiles or 1) * s.mr * row
        if step == 1:
            part = share(s.k_block, s.chunk, LINE // lies.memory.itemsize)
            start = self.a_at(at, k) + hop + place([(column, part), (panels[0], -part)])
            return (Ahead("a", start, row, s.mr, part, lies.memory),)
        if not s.a_tiles:
            return ()
        rows = share(s.k_block, s.a_tiles * s.chunk)
        tile, panel = s.chunk * rows * step, rows * step
        start = self.a_at(first, k) + hop + place([(at, tile), (first, -tile), (column, panel), (panels[0], -panel)])
        return (Ahead("a", start, step, rows, s.a_tiles * s.mr, lies.memory),)

    def next_panels(self, at: Bound, first: Bound, column: Bound, n: int, k: Bound) -> tuple[Ahead, ...]:
        """A block's share of its panel of b in the next slab; from the last one on, of the panel that takes its place
        in the next group, which may be another task's."""
        p, s, lies = self.p, self.s, self.code.lies("b")
        if not self.slabbed or p.k_outer or lies.words is not None:
            return ()
        row, step = p.n.strides[B], p.k.strides[B]
        part = share(s.k_block, min(s.rows, p.m.size // s.mr), LINE // lies.memory.itemsize if step == 1 else 1)
        around = s.chunk * self.panel - self.slabs * s.k_slab * step
        hop = place([(1, s.k_slab * step), (self.last_slab, around), (at, part * step), (first, -part * step)])
        start = self.b_at(k, column) + hop
        if step == 1:
            return (Ahead("b", start, row, n, part, lies.memory),)
        return (Ahead("b", start, step, part, n, lies.memory),) if row == 1 else ()

    @contextmanager
    def over_k_outer(self) -> Iterator[None]:
        """What follows for every index of the outer axes of k (in one slab; between slabs they are fixed)."""
        if self.slabbed:
            yield
            return
        with ExitStack() as stack:
            self.k_outer = [
                (axis, stack.enter_context(self.code.loop("k_out", 0, axis.size))) for axis in self.p.k_outer
            ]
            yield
        self.k_outer = []
