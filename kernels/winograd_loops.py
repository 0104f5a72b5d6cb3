"""The loops of convolutions by minimal filtering: transformed weights, tiles of results, and the weight's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graphc.dtype import DType
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_element, finish_row
from graphc.kernels.contract_problem import Axis
from graphc.kernels.contract_schedule import even
from graphc.kernels.winograd import TRANSFORM, WINDOW, Filter, Matrix, inputs, outputs, weights
from graphc.loop import LINE, Affine, Expr, Operand, Role, Scratch, Stmt, Var, call

__all__ = ["Gradient", "GradientSum", "Tiles", "Weights"]

A, B, C = 0, 1, 2

GAP = 16  # elements between planes of a scratch array, lest powers of two put them into few sets of the cache
NEAR_BYTES = 5 << 18  # of scratch, and of the weights of a range of columns: about a second level of cache
SUMS_BYTES = 5 << 18  # that a task of the gradient adds to
MOST_TILES = 48  # of a group: rows of a product; four register tiles
LEAST_TILES = 12  # a register tile: smaller groups are not made for the sake of more tasks, if ranges make enough
TASKS = 8  # that are enough for any team
PARTIAL = 20  # cycles to write a line of a part of the weight's gradient and to read it again
UNROLLED = 12  # cost of an epilogue up to which it is printed for each element of a tile

Block = list[list[Expr]]
Place = tuple[str, Affine]


# Transforms ----------------------------------------------------------------------------------------------------------


def applied(c: Code, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """The matrix times ``values``."""

    def butterflies(xs: list[Expr]) -> list[Expr]:
        for p in matrix.pairs:
            xs[p : p + 2] = [c.let("t", call(op, xs[p], xs[p + 1])) for op in ("add", "sub")]
        return xs

    xs = list(values) if matrix.after else butterflies(list(values))
    found = [weighted(c, row, xs) for row in matrix.plain]
    return butterflies(found) if matrix.after else found


def weighted(c: Code, factors: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of ``values`` times ``factors``, beginning with one that has none."""
    terms = sorted(((f, v) for f, v in zip(factors, values, strict=True) if f), key=lambda term: term[0] != 1)
    factor, total = terms[0]
    if factor != 1:
        total = c.let("t", call("mul", c.const(factor), total))
    for factor, value in terms[1:]:
        total = c.let("t", call("add", total, value) if factor == 1 else call("fma", c.const(factor), value, total))
    return total


def transformed(c: Code, matrix: Matrix, source: Place, rows: tuple[int, int], columns: tuple[int, int]) -> list[Expr]:
    """The matrix times a block in memory times the matrix transposed, row by row; ``rows`` and ``columns`` are the
    numbers of those of the block and their steps."""
    (m, row), (n, column), (buffer, at) = rows, columns, source
    block = [[c.let("x", c.load(buffer, at + (i * row + j * column))) for j in range(n)] for i in range(m)]
    half = [applied(c, matrix, list(values)) for values in zip(*block, strict=True)]
    return [value for values in zip(*half, strict=True) for value in applied(c, matrix, list(values))]


def store_planes(c: Code, target: Place, plane: int, values: Sequence[Expr]) -> None:
    buffer, at = target
    for number, value in enumerate(values):
        c.store(buffer, at + number * plane, value)


# The weights ---------------------------------------------------------------------------------------------------------


class Weights:
    """The statements that write transformed weights to ``y0`` as [places, panel, channels, nr]. Scratch: ``turned``, a
    panel with the channels together, where they lie so."""

    def __init__(self, f: Filter, dtype: DType, nr: int):
        self.f, self.dtype, self.nr = f, dtype, min(nr, f.n.size)
        self.panels = -(-f.n.size // self.nr)
        self.panel = f.channels.size * self.nr
        self.plane = self.panels * self.panel
        self.size = f.places * self.plane
        self.turns = f.n.strides[B] != 1 and f.channels.strides[B] == 1

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("turned", self.dtype, self.f.places * self.panel),) if self.turns else ()

    def body(self) -> tuple[Stmt, ...]:
        c, f = Code(self.dtype, ("b", "y0", "turned")), self.f
        rows = 1 if self.turns else f.channels.size
        with c.loop("task", 0, self.panels * rows, role=Role.PARALLEL) as task:
            panel, k = c.unflatten(task, [("panel", self.panels), ("k", rows)])

            def columns(at: Bound, count: int) -> None:
                if self.turns:
                    self.turned(c, at, count)
                else:
                    self.row(c, at, k, count)

            c.tiles(panel, c.index("panel_end", "add", panel, 1), f.n.size, self.nr, columns)
        return tuple(c.out)

    def row(self, c: Code, panel: Bound, k: Bound, count: int) -> None:
        """The weights of one channel."""
        n, channels = self.f.n, self.f.channels
        source = place([(panel, self.nr * n.strides[B]), (k, channels.strides[B])])
        with c.lanes(0, count) as j:
            target = place([(panel, self.panel), (k, self.nr), (j, 1)])
            store_planes(c, ("y0", target), self.plane, self.values(c, source + Affine.of(j, n.strides[B])))

    def turned(self, c: Code, panel: Bound, count: int) -> None:
        """Those of one panel, output by output."""
        f, depth = self.f, self.f.channels.size
        with c.loop("column", 0, count) as n, c.lanes(0, depth) as k:
            source = place([(panel, self.nr * f.n.strides[B]), (n, f.n.strides[B]), (k, 1)])
            store_planes(c, ("turned", place([(n, depth), (k, 1)])), self.panel, self.values(c, source))
        with c.loop("plane", 0, f.places) as plane:
            into = Operand("y0", place([(plane, self.plane), (panel, self.panel)]), self.nr)
            c.transpose(into, Operand("turned", place([(plane, self.panel)]), depth), count, depth)

    def values(self, c: Code, source: Affine) -> list[Expr]:
        i, j = ((WINDOW, axis.strides[B]) for axis in self.f.window)
        return transformed(c, weights(self.f.m, WINDOW), ("b", source), i, j)


# Tiles ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's images and its first position along y and x. ``new``: from which of its rows and columns on it has what
    the tile before it has not."""

    images: list[tuple[Axis, Bound]]
    y: Bound
    x: Bound
    new: tuple[Bound, Bound]


def tile_at(c: Code, f: Filter, number: Bound) -> Tile:
    """The last tiles begin early enough to end with the positions."""
    names = [*(("image", size) for size in f.grid[:-2]), ("tile_y", f.grid[-2]), ("tile_x", f.grid[-1])]
    *images, y, x = c.unflatten(number, names) if isinstance(number, Var) else [0] * len(names)

    def begin(i: Bound, axis: Axis) -> tuple[Bound, Bound]:
        wanted = c.index("begin", "mul", i, f.m)
        if axis.size % f.m == 0:
            return wanted, 0
        start = c.index("start", "minimum", wanted, axis.size - f.m)
        return start, c.index("new", "sub", wanted, start)

    (y_start, y_new), (x_start, x_new) = begin(y, f.y), begin(x, f.x)
    return Tile(list(zip(f.images, images, strict=True)), y_start, x_start, (y_new, x_new))


def position(f: Filter, tile: Tile, array: int) -> Affine:
    """The place of the tile's first position in an array."""
    axes = [*tile.images, (f.y, tile.y), (f.x, tile.x)]
    return place((i, axis.strides[array]) for axis, i in axes)


@contextmanager
def each_tile(c: Code, f: Filter, first: Bound, count: Bound) -> Iterator[tuple[Var, Tile]]:
    """What follows for ``count`` tiles from number ``first`` on."""
    with c.loop("r", 0, count) as r:
        yield r, tile_at(c, f, c.index("tile", "add", r, first))


# Results -------------------------------------------------------------------------------------------------------------


class Tiles:
    """The statements of a convolution with transformed weights ``b``. A task brings a group of tiles into ``seen``
    [places, tile, channels], multiplies it to ``products`` [places, tile, column] and takes that back, through
    ``tile_c`` [m, m, column] where the epilogue is long or tiles overlap. Tasks that follow each other share a range of
    the columns, so that its weights stay in the cache."""

    def __init__(self, f: Filter, dtype: DType, epilogue: Epilogue, w: Weights):
        self.f, self.dtype, self.epilogue, self.w = f, dtype, epilogue, w
        self.code = Code(dtype, ("a", "b", "seen", "products", "tile_c"))
        near = NEAR_BYTES // (f.places * dtype.itemsize)
        self.panels = next(n for n in range(w.panels, 0, -1) if ranges(w, n) and (n == 1 or n * w.panel <= near))
        self.width = f.n.size if self.panels == w.panels else self.panels * w.nr
        enough = max(f.tiles // TASKS, min(LEAST_TILES, f.tiles * (w.panels // self.panels) // TASKS))
        most = max(1, min(MOST_TILES, near // (f.channels.size + self.width), enough))
        self.rows = even(f.tiles, most)
        self.direct = f.whole and epilogue.cost <= UNROLLED
        self.seen = self.rows * f.channels.size + GAP
        self.products = self.rows * self.width + GAP

    def scratch(self) -> tuple[Scratch, ...]:
        f = self.f
        waits = () if self.direct else (Scratch("tile_c", self.dtype, f.m**2 * self.width),)
        return (
            Scratch("seen", self.dtype, f.places * self.seen),
            Scratch("products", self.dtype, f.places * self.products),
            *waits,
        )

    def body(self) -> tuple[Stmt, ...]:
        c, total = self.code, self.f.tiles
        parts, groups = self.w.panels // self.panels, -(-total // self.rows)
        with c.loop("task", 0, parts * groups, role=Role.PARALLEL) as task:
            part, group = c.unflatten(task, [("part", parts), ("group", groups)])
            first = c.index("first", "mul", group, self.rows)
            count: Bound = self.rows
            if total % self.rows:
                count = c.index("count", "minimum", c.index("left", "sub", total, first), self.rows)
            self.group(c.index("panel", "mul", part, self.panels), first, count)
        return tuple(c.out)

    def group(self, panel: Bound, first: Bound, count: Bound) -> None:
        """``count`` tiles from ``first`` on, and the columns from ``panel`` on. The transforms are long: they are
        printed once for groups of all sizes, and a short group is multiplied as if it were full."""
        c, f = self.code, self.f
        with each_tile(c, f, first, count) as (r, tile), c.lanes(0, f.channels.size) as j:
            bring_in(c, f, tile, place([(j, 1)]), ("seen", place([(r, f.channels.size), (j, 1)])), self.seen)
        with c.loop("plane", 0, f.places) as plane:
            self.multiply(plane, panel)
        with each_tile(c, f, first, count) as (r, tile):
            self.finish(r, tile, (f.n, c.index("column", "mul", panel, self.w.nr)))

    def multiply(self, plane: Var, panel: Bound) -> None:
        c, f, w = self.code, self.f, self.w

        def columns(at: Bound, n: int) -> None:
            c.contract(
                Operand("products", place([(plane, self.products), (at, w.nr)]), self.width),
                Operand("seen", Affine.of(plane, self.seen), f.channels.size),
                Operand("b", place([(plane, w.plane), (panel, w.panel), (at, w.panel)]), w.nr),
                self.rows, n, f.channels.size,
            )  # fmt: skip

        c.tiles(0, self.panels, self.width, w.nr, columns)

    def finish(self, r: Var, tile: Tile, column: tuple[Axis, Bound]) -> None:
        """The results of one tile, and what follows per element."""
        c, f, width = self.code, self.f, self.width

        def axes(y: Bound, x: Bound) -> list[tuple[Axis, Bound | Affine]]:
            """All axes, with their indices at position (y, x) of the tile in the first column."""
            at = [(f.y, place([(tile.y, 1), (y, 1)])), (f.x, place([(tile.x, 1), (x, 1)]))]
            return [*tile.images, *at, column]

        with c.lanes(0, width) as j:
            source = ("products", place([(r, width), (j, 1)]))
            row = f.side * self.products
            values = transformed(c, outputs(f.m, f.m), source, (f.side, row), (f.side, self.products))
            if not self.direct:
                store_planes(c, ("tile_c", place([(j, 1)])), width, values)
            for number, value in enumerate(values if self.direct else ()):
                finish_element(c, self.epilogue, axes(*divmod(number, f.m)), f.n, j, value, f"_{number}")
        if not self.direct:
            with c.loop("row", tile.new[0], f.m) as y, c.loop("column", tile.new[1], f.m) as x:
                at = place([(y, f.m * width), (x, width)])
                finish_row(c, self.epilogue, axes(y, x), f.n, (0, width), ("tile_c", at))


def ranges(w: Weights, panels: int) -> bool:
    """Whether ranges of so many panels have the same number of columns each."""
    return panels == w.panels or (w.panels % panels == 0 and w.f.n.size % w.nr == 0)


def bring_in(c: Code, f: Filter, tile: Tile, channel: Affine, target: Place, plane: int) -> None:
    """One channel (a lane) of a tile of the input, transformed."""
    y, x = ((f.side, axis.strides[A]) for axis in (f.y, f.x))
    source = ("a", position(f, tile, A) + channel)
    store_planes(c, target, plane, transformed(c, inputs(f.m), source, y, x))


# The gradient of the weight ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """The tasks of a gradient: ``blocks`` of ``block`` channels × ``parts`` of ``each`` groups of ``rows`` tiles.
    ``cycles`` is what the choice decides: each block transforms the cotangent, and each part of the sum is written and
    read again."""

    block: int
    rows: int
    each: int
    blocks: int
    parts: int
    cycles: int

    @classmethod
    def of(cls, f: Filter, dtype: DType, block: int) -> Cut:
        rows = min(f.tiles, MOST_TILES, max(1, NEAR_BYTES // (f.places * dtype.itemsize * (block + f.n.size))))
        groups, blocks = -(-f.tiles // rows), -(-f.channels.size // block)
        each = -(-groups // max(1, TASKS // blocks))
        parts = -(-groups // each)
        columns, lines = (-(-size * dtype.itemsize // LINE) for size in (f.n.size, block))
        transforms = f.tiles * blocks * (columns + lines) * TRANSFORM
        cycles = f.places * (transforms + parts * f.channels.size * columns * PARTIAL)
        return cls(block, rows, each, blocks, parts, cycles)


class Gradient:
    """The statements of the transformed gradient, in parts of the sum: ``y0`` [part, places, channels, n]. A task has a
    part of the tiles and a block of the channels: few parts of wide gradients, which go through memory, and few blocks
    of others, since each transforms the cotangent. A group at a time it brings tiles of the input into ``seen``
    [places, tile, channels of the block] and of the cotangent b into ``given`` [places, tile, n]."""

    def __init__(self, f: Filter, dtype: DType):
        self.f, self.dtype = f, dtype
        self.code = Code(dtype, ("a", "b", "seen", "given"))
        most = max(1, SUMS_BYTES // (f.places * dtype.itemsize * f.n.size))
        counts = [n for n in range(1, TASKS + 1) if TASKS % n == 0]
        blocks = [even(f.channels.size, min(most, -(-f.channels.size // n))) for n in counts]
        cut = min((Cut.of(f, dtype, block) for block in blocks), key=lambda cut: cut.cycles)
        self.block, self.rows, self.each, self.blocks, self.parts = cut.block, cut.rows, cut.each, cut.blocks, cut.parts
        self.seen = self.rows * self.block + GAP
        self.given = self.rows * f.n.size + GAP
        self.plane = f.channels.size * f.n.size

    @property
    def size(self) -> int:
        """Elements of ``y0``."""
        return self.parts * self.f.places * self.plane

    def scratch(self) -> tuple[Scratch, ...]:
        places = self.f.places
        return Scratch("seen", self.dtype, places * self.seen), Scratch("given", self.dtype, places * self.given)

    def body(self) -> tuple[Stmt, ...]:
        c, f = self.code, self.f
        with c.loop("task", 0, self.parts * self.blocks, role=Role.PARALLEL) as task:
            part, block = c.unflatten(task, [("part", self.parts), ("block", self.blocks)])
            c.tiles(
                block, c.index("block_end", "add", block, 1), f.channels.size, self.block,
                lambda at, count: self.some_channels(part, c.index("channel", "mul", at, self.block), count),
            )  # fmt: skip
        return tuple(c.out)

    def some_channels(self, part: Bound, channel: Bound, count: int) -> None:
        """Channels from ``channel`` on, ``count`` of them."""
        c, f = self.code, self.f
        into = place([(part, f.places * self.plane), (channel, f.n.size)])
        with c.loop("plane", 0, f.places) as plane:
            c.fill("y0", into + Affine.of(plane, self.plane), 0, count * f.n.size)
        tiles = c.part("tile", part, self.each * self.rows, f.tiles)
        c.steps("group", *tiles, self.rows, lambda first, stop: self.group(into, channel, count, first, stop))

    def group(self, into: Affine, channel: Bound, count: int, first: Bound, stop: Bound) -> None:
        c, f = self.code, self.f
        depth = c.index("depth", "sub", stop, first)
        with each_tile(c, f, first, depth) as (r, tile):
            with c.lanes(0, count) as j:
                at = ("seen", place([(r, self.block), (j, 1)]))
                bring_in(c, f, tile, place([(channel, 1), (j, 1)]), at, self.seen)
            with c.lanes(0, f.n.size) as j:
                y, x = ((f.m, axis.strides[B]) for axis in (f.y, f.x))
                values = transformed(c, weights(f.m, f.m), ("b", position(f, tile, B) + Affine.of(j)), y, x)
                store_planes(c, ("given", place([(r, f.n.size), (j, 1)])), self.given, values)
        with c.loop("plane", 0, f.places) as plane:
            c.contract(
                Operand("y0", into + Affine.of(plane, self.plane), f.n.size),
                Operand("seen", Affine.of(plane, self.seen), 1, self.block),
                Operand("given", Affine.of(plane, self.given), f.n.size),
                count, f.n.size, depth, accumulate=True,
            )  # fmt: skip


class GradientSum:
    """The statements that add the parts ``a`` and take the sum back. Scratch: ``sums`` [places, n] of one channel, and
    ``tile_c`` [window, n]."""

    def __init__(self, g: Gradient, epilogue: Epilogue):
        self.g, self.epilogue = g, epilogue

    def scratch(self) -> tuple[Scratch, ...]:
        f, dtype = self.g.f, self.g.dtype
        return Scratch("sums", dtype, f.places * f.n.size), Scratch("tile_c", dtype, WINDOW**2 * f.n.size)

    def body(self) -> tuple[Stmt, ...]:
        g, f = self.g, self.g.f
        c, n = Code(g.dtype, ("a", "sums", "tile_c")), f.n.size
        with c.loop("channel", 0, f.channels.size, role=Role.PARALLEL) as channel:
            with c.loop("plane", 0, f.places) as plane:
                into, at = Affine.of(plane, n), place([(plane, g.plane), (channel, n)])
                with c.lanes(0, n) as j:
                    c.store("sums", into + Affine.of(j), c.load("a", at + Affine.of(j)))
                with c.loop("part", 1, g.parts) as part, c.lanes(0, n) as j:
                    more = c.load("a", at + place([(part, f.places * g.plane), (j, 1)]))
                    c.store("sums", into + Affine.of(j), call("add", c.load("sums", into + Affine.of(j)), more))
            with c.lanes(0, n) as j:
                source, matrix = ("sums", place([(j, 1)])), outputs(f.m, WINDOW)
                values = transformed(c, matrix, source, (f.side, f.side * n), (f.side, n))
                store_planes(c, ("tile_c", place([(j, 1)])), n, values)
            with c.loop("row", 0, WINDOW) as y, c.loop("column", 0, WINDOW) as x:
                axes: list[tuple[Axis, Bound | Affine]] = [(f.channels, channel), *zip(f.window, (y, x), strict=True)]
                finish_row(c, self.epilogue, axes, f.n, (0, n), ("tile_c", place([(y, WINDOW * n), (x, n)])))
        return tuple(c.out)
