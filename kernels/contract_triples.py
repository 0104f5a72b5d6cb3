"""Products of float32 as six products of bfloat16, in tile registers: how they are cut, and their loops.

`graphc.kernels.cpu.triples` says what a triple is, and why nothing is lost by it. Both factors are taken apart while
they are packed, which costs as much as some products; so a task has as many rows and columns as the threads leave it,
keeps panels of b in the second level of cache, and takes each tile of a apart once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from math import prod

from graphc.dtype import DType, float32, int32
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row, touched
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.kernels.contract_schedule import ALTERNATIVES, PARTS, TASK, TEAMS, Target, choose, cost, even
from graphc.kernels.contract_split import MOST_BYTES, addition, partial_problem
from graphc.loop import (
    LINE,
    TRIPLE_BLOCK,
    TRIPLE_STEP,
    TRIPLE_WORDS,
    Affine,
    Ahead,
    Operand,
    Role,
    Scratch,
    Stmt,
    Transpose,
    TripleProduct,
    Triples,
    Var,
)

__all__ = ["Cut", "TripleLoops", "cut_triples", "other_cuts"]

A, B, C = 0, 1, 2
PANEL_BYTES = 1 << 20  # of b, in the second level of cache beside a tile of a …
AHEAD_BYTES = 1 << 19  # … and beside the next panels, where those are fetched meanwhile
FEW_TILES = 8  # of a: so few that to take panels apart, which come from memory, is a large part of the work
SHARES = 8  # blocks among which the fetch of the next tile of a is divided, at least
LEAST_DEPTH = 256  # of a part of the sum
MOST_PARTS = 6
SLABS = (256, 384, 512, 768, 1024)  # elements along k at most

# Cycles, as those of `graphc.kernels.contract_schedule`.
STEP_CYCLES = 520  # of a block: 24 products of tiles take 384, and what they are loaded from is not always near
CALL_CYCLES = 400  # bring in and write back a block of c
SPLIT = (0.6, 0.8)  # take an element of a and b apart; those of b lie in short runs, which come in slowly
SPLIT_TURNED = (1.0, 0.9)  # of a factor that lies the other way round
FETCH = 0.7  # bring one from beyond the second level of cache: of a right factor of more than `FAR_BYTES`
FAR_BYTES = 1 << 21

Range = tuple[Bound, Bound]
STRIP = Operand("strip", Affine(), TRIPLE_BLOCK)


@dataclass(frozen=True, slots=True)
class Cut:
    """A task has ``rows`` tiles of a and ``panels`` of b, each of `TRIPLE_BLOCK`; ``chunk`` panels are kept at a time,
    of ``slab`` elements along k."""

    m_tiles: int
    n_panels: int
    rows: int
    panels: int
    chunk: int
    slab: int

    @property
    def m_tasks(self) -> int:
        return -(-self.m_tiles // self.rows)

    @property
    def n_tasks(self) -> int:
        return -(-self.n_panels // self.panels)

    @property
    def steps(self) -> int:
        """Along k, in a slab."""
        return -(-self.slab // TRIPLE_STEP)


def cut_triples(p: Problem, dtype: DType, target: Target) -> tuple[int, Cut] | None:
    """Into how many equal parts the sum is cut, as by `graphc.kernels.contract_split.k_parts`, and how each is: the
    cheapest by the cost model. None where the machine has no such unit, a factor has no unit stride, or multiply-adds
    of float32 cost less. Depends on shapes and strides only."""
    lies = 1 in (p.m.strides[A], p.k.strides[A]) and 1 in (p.n.strides[B], p.k.strides[B])
    if dtype != float32 or not target.triples or not lies or min(p.m.size, p.n.size, p.k.size) < TRIPLE_BLOCK // 2:
        return None
    parts, least = best_parts(p)
    return (parts, cheapest(partial_problem(p, parts))) if least < cost(p, choose(p, dtype, target)) else None


def best_parts(p: Problem) -> tuple[int, float]:
    """The best number of parts, and its cost. Tasks that are parts of the sum take no element apart twice."""
    size = p.outer_size * p.m.size * p.n.size
    most = min(MOST_PARTS, p.k.size // LEAST_DEPTH, MOST_BYTES // (size * float32.itemsize))
    costs = {1: triple_cost(p, cheapest(p))}
    for parts in range(2, most + 1):
        if p.k.size % parts == 0:
            part = partial_problem(p, parts)
            costs[parts] = triple_cost(part, cheapest(part)) + addition(size, parts)
    parts = min(costs, key=lambda n: costs[n])
    return parts, costs[parts]


@cache
def cheapest(p: Problem) -> Cut:
    """That of the least cost, in which small teams count more: each task takes a factor apart for itself, so that many
    tasks cost a small team what they give to a large one. Layers have equal products."""
    return min(cuts(p), key=lambda cut: triple_cost(p, cut, (TEAMS[0], *TEAMS)))


def other_cuts(p: Problem, best: Cut) -> list[Cut]:
    """Other cuts than ``best`` for the same bits: tasks and what is kept at a time differ. The best first by the cost
    model."""
    found = {cut for cut in cuts(p) if cut.slab == best.slab} - {best}
    return sorted(found, key=lambda cut: (triple_cost(p, cut), cut.rows, cut.panels))[:ALTERNATIVES]


def cuts(p: Problem) -> Iterator[Cut]:
    m_tiles, n_panels = -(-p.m.size // TRIPLE_BLOCK), -(-p.n.size // TRIPLE_BLOCK)
    step = TRIPLE_WORDS * int32.itemsize
    for slab in sorted({even(p.k.size, most, TRIPLE_STEP) for most in SLABS}):
        room = AHEAD_BYTES if m_tiles <= FEW_TILES and p.n.strides[B] != 1 else PANEL_BYTES
        most = max(1, room // (-(-slab // TRIPLE_STEP) * step))
        for rows in sorted({-(-m_tiles // parts) for parts in PARTS}):
            for panels in sorted({-(-n_panels // parts) for parts in PARTS}):
                yield Cut(m_tiles, n_panels, rows, panels, even(panels, most), slab)


def triple_cost(p: Problem, cut: Cut, teams: Sequence[int] = TEAMS) -> float:
    """Cycles until the last thread is done, summed over ``teams``."""
    outside = prod(axis.size for axis in p.k_outer)
    steps, slabs = (outside * -(-p.k.size // size) for size in (TRIPLE_STEP, cut.slab))
    groups = -(-cut.panels // cut.chunk)
    split_a = (SPLIT if p.k.strides[A] == 1 else SPLIT_TURNED)[A]
    split_b = (SPLIT if p.n.strides[B] == 1 else SPLIT_TURNED)[B]
    split_b += FETCH * (p.k_size * p.n.size * float32.itemsize > FAR_BYTES)
    packed = cut.panels * split_b + cut.rows * groups * split_a
    task = steps * (cut.rows * cut.panels * STEP_CYCLES + packed * TRIPLE_BLOCK * TRIPLE_STEP)
    task += slabs * cut.rows * cut.panels * CALL_CYCLES + TASK
    tasks = p.outer_size * cut.m_tasks * cut.n_tasks
    return task * sum(-(-tasks // team) for team in teams)


class TripleLoops:
    """The statements of one contraction.

    One PARALLEL loop over tasks (outer axes × m ranges × n ranges); in a task, for each group of panels: for each slab
    of k: take the panels apart, then for each tile of rows: take it apart, its products, and after the last slab the
    epilogue.

    Scratch: ``panels`` and ``tile_a``, words of parts; ``tile_c``, the sums of one tile (of all tiles of the task,
    where k has several slabs), where the result cannot hold them; ``strip``, a step along k of a tile or panel, where
    it lies the other way round or is short.
    """

    def __init__(self, p: Problem, cut: Cut, epilogue: Epilogue):
        self.p, self.cut, self.epilogue = p, cut, epilogue
        self.code = Code(float32, ("a", "b", "panels", "tile_a", "tile_c", "strip"))
        whole = p.m.size % TRIPLE_BLOCK == p.n.size % TRIPLE_BLOCK == 0
        self.direct = epilogue.identity and p.n.strides[C] == 1 and whole
        self.k_parts = -(-p.k.size // cut.slab)
        self.slabs = self.k_parts * prod(axis.size for axis in p.k_outer)
        self.rest = p.k.size % TRIPLE_STEP
        self.outer: list[tuple[Axis, Bound]] = []
        self.k_outer: list[tuple[Axis, Bound]] = []
        self.last: Bound = 1  # whether the present slab is the last

    def scratch(self) -> tuple[Scratch, ...]:
        cut, words = self.cut, self.cut.steps * TRIPLE_WORDS
        found = [Scratch("panels", int32, cut.chunk * words), Scratch("tile_a", int32, words)]
        if not self.direct:
            tiles = cut.rows if self.slabs > 1 else 1
            found.append(Scratch("tile_c", float32, tiles * TRIPLE_BLOCK * cut.chunk * TRIPLE_BLOCK))
        if self.turned(A) or self.turned(B) or self.rest:
            found.append(Scratch("strip", float32, TRIPLE_STEP * TRIPLE_BLOCK))
        return tuple(found)

    def turned(self, factor: int) -> bool:
        """Whether a factor lies the other way round: a with its rows together, b with its columns' elements."""
        return (self.p.k if factor == A else self.p.n).strides[factor] != 1

    def body(self) -> tuple[Stmt, ...]:
        c, p, cut = self.code, self.p, self.cut
        with c.loop("task", 0, p.outer_size * cut.m_tasks * cut.n_tasks, role=Role.PARALLEL) as task:
            *outer, mt, nt = c.unflatten(task, [*outer_sizes(p), ("m_task", cut.m_tasks), ("n_task", cut.n_tasks)])
            self.outer = list(zip(p.outer, outer, strict=True))
            rows = c.part("tile", mt, cut.rows, cut.m_tiles)
            first, last = c.part("panel", nt, cut.panels, cut.n_panels)
            c.steps("group", first, last, cut.chunk, lambda start, stop: self.group(rows, (start, stop)))
        return tuple(c.out)

    def group(self, rows: Range, panels: Range) -> None:
        """All of k for one group of panels."""
        c, p = self.code, self.p
        if self.slabs == 1:
            self.slab(rows, panels, 0, None)
            return
        with c.loop("slab", 0, self.slabs) as slab:
            *outer, part = c.unflatten(slab, [*(("k_out", axis.size) for axis in p.k_outer), ("k_part", self.k_parts)])
            self.k_outer = list(zip(p.k_outer, outer, strict=True))
            self.last = c.index("last", "div", c.index("next", "add", slab, 1), self.slabs)
            self.slab(rows, panels, part, slab)

    def slab(self, rows: Range, panels: Range, part: Bound, slab: Var | None) -> None:
        """Part ``part`` of k: its panels, then all tiles."""
        c, p, cut = self.code, self.p, self.cut
        start, stop = c.part("k", part, cut.slab, p.k.size)
        depth = c.index("depth", "sub", stop, start)
        whole = c.index("whole", "div", depth, TRIPLE_STEP)
        steps = whole
        if self.rest:
            steps = c.index("steps", "div", c.index("up", "add", depth, TRIPLE_STEP - 1), TRIPLE_STEP)
        self.pack_b(panels, start, whole)
        with self.short(part) as is_short:
            if is_short:
                c.tiles(*panels, p.n.size, TRIPLE_BLOCK, lambda at, n: self.short_b(at, n, panels[0], start, whole))

        def tile(at: Bound, m: int) -> None:
            self.pack_a(at, m, start, whole)
            with self.short(part) as is_short:
                if is_short:
                    self.short_a(at, m, start, whole)
            self.tile(at, m, rows[0], panels, start, steps, slab)

        c.tiles(*rows, p.m.size, TRIPLE_BLOCK, tile)

    def short(self, part: Bound) -> AbstractContextManager[bool]:
        """What follows if the part ends with less than a step."""
        return self.code.when("eq", part if self.rest else -1, self.k_parts - 1)

    # Taking apart

    def pack_b(self, panels: Range, start: Bound, steps: Bound) -> None:
        c, p = self.code, self.p

        def rows(s: Bound, at: Bound, n: int) -> None:
            source = Operand("b", self.b_at(start, s, at), p.k.strides[B])
            c.out.append(Triples(self.panel(at, panels[0], s), source, n, 1, left=False))

        def turned(at: Bound, n: int) -> None:
            with c.loop("step", 0, steps) as s:
                self.turn(Operand("b", self.b_at(start, s, at), p.n.strides[B]), n, TRIPLE_STEP)
                c.out.append(Triples(self.panel(at, panels[0], s), STRIP, n, 1, left=False))

        if self.turned(B):
            c.tiles(*panels, p.n.size, TRIPLE_BLOCK, turned)
            return
        with c.loop("step", 0, steps) as s:
            c.tiles(*panels, p.n.size, TRIPLE_BLOCK, lambda at, n: rows(s, at, n))

    def pack_a(self, at: Bound, m: int, start: Bound, steps: Bound) -> None:
        c, p = self.code, self.p
        if not self.turned(A):
            source = Operand("a", self.a_at(start, 0, at), p.m.strides[A])
            c.out.append(Triples(self.tile_a(0), source, m, steps, left=True))
            return
        with c.loop("step", 0, steps) as s:
            self.turn(Operand("a", self.a_at(start, s, at), p.k.strides[A]), TRIPLE_STEP, m)
            c.out.append(Triples(self.tile_a(s), STRIP, m, 1, left=True))

    def short_b(self, at: Bound, n: int, first: Bound, start: Bound, step: Bound) -> None:
        """The last step of a panel, of which there is but `rest`: the others are zeros."""
        c, p, source = self.code, self.p, self.b_at(start, step, at)
        c.fill("strip", Affine(), 0, TRIPLE_STEP * TRIPLE_BLOCK)
        if self.turned(B):
            self.turn(Operand("b", source, p.n.strides[B]), n, self.rest)
        else:
            self.copy("b", source, p.k.strides[B], self.rest, n)
        c.out.append(Triples(self.panel(at, first, step), STRIP, n, 1, left=False))

    def short_a(self, at: Bound, m: int, start: Bound, step: Bound) -> None:
        c, p, source = self.code, self.p, self.a_at(start, step, at)
        c.fill("strip", Affine(), 0, TRIPLE_STEP * TRIPLE_BLOCK)
        if self.turned(A):
            self.turn(Operand("a", source, p.k.strides[A]), self.rest, m)
        else:
            self.copy("a", source, p.m.strides[A], m, self.rest)
        c.out.append(Triples(self.tile_a(step), STRIP, m, 1, left=True))

    def turn(self, source: Operand, m: int, n: int) -> None:
        self.code.out.append(Transpose(STRIP, source, m, n, float32, float32))

    def copy(self, buffer: str, start: Affine, row: int, rows: int, columns: int) -> None:
        c = self.code
        with c.loop("row", 0, rows) as r, c.lanes(0, columns) as j:
            c.store("strip", place([(r, STRIP.row), (j, 1)]), c.load(buffer, start + place([(r, row), (j, 1)])))

    # Places

    def base(self, array: int) -> Affine:
        return place((i, axis.strides[array]) for axis, i in self.outer + self.k_outer)

    def a_at(self, start: Bound, step: Bound, tile: Bound) -> Affine:
        m, k = self.p.m.strides[A], self.p.k.strides[A]
        return self.base(A) + place([(start, k), (step, TRIPLE_STEP * k), (tile, TRIPLE_BLOCK * m)])

    def b_at(self, start: Bound, step: Bound, panel: Bound) -> Affine:
        n, k = self.p.n.strides[B], self.p.k.strides[B]
        return self.base(B) + place([(start, k), (step, TRIPLE_STEP * k), (panel, TRIPLE_BLOCK * n)])

    def panel(self, at: Bound, first: Bound, step: Bound) -> Operand:
        size = self.cut.steps * TRIPLE_WORDS
        return Operand("panels", place([(at, size), (first, -size), (step, TRIPLE_WORDS)]), TRIPLE_BLOCK)

    def tile_a(self, step: Bound) -> Operand:
        return Operand("tile_a", place([(step, TRIPLE_WORDS)]), TRIPLE_STEP // 2)

    # Tiles of c

    def tile(
        self, at: Bound, m: int, first: Bound, panels: Range, start: Bound, steps: Bound, slab: Var | None
    ) -> None:
        """One tile of ``m`` rows across the panels: its products, then its epilogue."""
        c, p, width = self.code, self.p, self.cut.chunk * TRIPLE_BLOCK
        if self.direct:
            row = p.m.strides[C]
            sums = Operand("y0", self.base(C) + place([(at, TRIPLE_BLOCK * row)]), row)
        else:
            tile = [] if slab is None else [(at, TRIPLE_BLOCK * width), (first, -TRIPLE_BLOCK * width)]
            sums = Operand("tile_c", place([(panels[0], -TRIPLE_BLOCK), *tile]), width)
        with c.when("eq", 0 if slab is None else slab, 0):
            self.products(at, first, panels, start, steps, sums, accumulate=False)
        if slab is not None:
            with c.when("ne", slab, 0):
                self.products(at, first, panels, start, steps, sums, accumulate=True)
        if self.direct:
            return
        columns = self.columns(panels)
        with c.when("eq", self.slabs - 1 if slab is None else slab, self.slabs - 1), c.loop("r", 0, m) as r:
            axes = [*self.outer, (p.m, place([(at, TRIPLE_BLOCK), (r, 1)]))]
            finish_row(c, self.epilogue, axes, p.n, columns, (sums.buffer, sums.index + Affine.of(r, sums.row)))

    def columns(self, panels: Range) -> Range:
        """The columns of c that the panels cover."""
        c, n = self.code, self.p.n.size
        first, end = (
            c.index(name, "mul", at, TRIPLE_BLOCK) for name, at in zip(("column", "column_end"), panels, strict=True)
        )
        return first, c.index("column_stop", "minimum", end, n) if n % TRIPLE_BLOCK else end

    def products(
        self, at: Bound, first: Bound, panels: Range, start: Bound, steps: Bound, sums: Operand, *, accumulate: bool
    ) -> None:
        c = self.code
        with c.loop("block", *panels) as column:
            into = Operand(sums.buffer, sums.index + place([(column, TRIPLE_BLOCK)]), sums.row)
            b = self.panel(column, panels[0], 0)
            ahead = self.results(at, column)
            if self.cut.chunk >= SHARES:
                ahead += self.next_tile(at, column, panels[0], start)
            if self.cut.rows <= FEW_TILES and self.turned(B):
                ahead += self.next_panel(at, first, column, start)
            c.out.append(TripleProduct(into, self.tile_a(0), b, steps, accumulate, ahead))

    # What comes next, brought to the second level of cache meanwhile: some rows in each step

    def results(self, at: Bound, column: Bound) -> tuple[Ahead, ...]:
        """What the epilogue reads and writes of a block."""
        axes = [*self.outer, (self.p.m, place([(at, TRIPLE_BLOCK)]))]
        found = touched(self.epilogue, axes, self.p.n, (place([(column, TRIPLE_BLOCK)]), TRIPLE_BLOCK), TRIPLE_BLOCK)
        return tuple(replace(x, rows=-(-TRIPLE_BLOCK // self.cut.steps)) for x in found)

    def next_tile(self, at: Bound, column: Bound, first: Bound, start: Bound) -> tuple[Ahead, ...]:
        """A block's share of the tile of a that follows."""
        p, cut = self.p, self.cut
        source = self.a_at(start, 0, at) + TRIPLE_BLOCK * p.m.strides[A]
        if self.turned(A):
            rows = -(-TRIPLE_STEP // cut.chunk)
            share = cut.steps * rows * p.k.strides[A]
            source = source + place([(column, share), (first, -share)])
            return (Ahead("a", source, p.k.strides[A], rows, TRIPLE_BLOCK, float32),)
        floats = LINE // float32.itemsize
        columns = -(-p.k.size // (self.k_parts * cut.chunk * floats)) * floats
        source = source + place([(column, columns), (first, -columns)])
        return (Ahead("a", source, p.m.strides[A], -(-TRIPLE_BLOCK // cut.steps), columns, float32),)

    def next_panel(self, at: Bound, first: Bound, column: Bound, start: Bound) -> tuple[Ahead, ...]:
        """A block's share of its panel in the next slab; from the last one on, of the panel that takes its place in the
        next group. Where rows of b lie along k, it is in many short runs, which the processor does not foresee."""
        p, cut = self.p, self.cut
        if p.k_outer:
            return ()
        n, k, tiles = p.n.strides[B], p.k.strides[B], min(cut.rows, cut.m_tiles)
        around = cut.chunk * TRIPLE_BLOCK * n - self.k_parts * cut.slab * k
        hop = place([(1, cut.slab * k), (self.last, around)])
        source = self.b_at(start, 0, column) + hop
        floats = LINE // float32.itemsize
        columns = -(-cut.slab // (tiles * floats)) * floats
        source = source + place([(at, columns), (first, -columns)])
        return (Ahead("b", source, n, -(-TRIPLE_BLOCK // cut.steps), columns, float32),)
