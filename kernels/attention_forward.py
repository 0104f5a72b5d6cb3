"""Flash attention, forward: a tile of queries against all its keys while the scores stay in the first-level cache.

Dao, Fu, Ermon, Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention" (arXiv 2205.14135), with a tile
of queries as tall as the register tile. Where the keys fit in one block the softmax needs no rescaling at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType
from graphc.ir import Attrs
from graphc.kernels.attention_shape import Attention, Shape
from graphc.kernels.contract_code import Bound, expr, place
from graphc.kernels.plan import View
from graphc.loop import Affine, Expr, Operand, Role, Scratch, Stmt, call

__all__ = ["Forward"]

MIN_TASKS = 16  # heads are split into ranges of queries where there are fewer
RANGE = 384  # queries of one task that works in several blocks of keys: their sums wait in the second-level cache


class Forward(Attention):
    """o = softmax(q kᵀ scale) v and lse, tiles of queries at a time.

    Scratch: ``kt`` panels of kᵀ, ``vs`` the rows of v, ``scores`` of one tile, ``sums`` p v so far, ``top`` and
    ``norm`` per query: the largest score and the sum of the exponentials so far.
    """

    title, what = "attention", "Attention"
    buffers = ("qs", "kt", "vs", "scores", "sums", "top", "norm")

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        super().__init__(shape, dtype, attrs, views)
        tiles, heads = shape.query_tiles, shape.batch * shape.heads
        wanted = min(tiles, -(-MIN_TASKS // max(1, heads)))
        if shape.blocks > 1:
            wanted = max(wanted, -(-tiles * shape.mr // RANGE))
        self.range = -(-tiles // wanted)  # tiles of a task
        self.parts = -(-tiles // self.range)
        self.one = shape.blocks == 1
        self.score_row = shape.panels(shape.block)
        self.query_row = shape.aligned(shape.depth)
        self.value_row = shape.aligned(shape.width)

    def scratch(self) -> tuple[Scratch, ...]:
        s = self.shape
        rows = s.mr if self.one else self.range * s.mr
        sizes = {
            "qs": s.mr * self.query_row,
            "kt": self.score_row * s.depth,
            "vs": s.block * self.value_row,
            "scores": s.mr * self.score_row,
            "sums": rows * self.value_row,
            "top": rows,
            "norm": rows,
        }
        return tuple(Scratch(name, self.dtype, size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        with c.loop("task", 0, s.batch * s.heads * self.parts, role=Role.PARALLEL) as task:
            part = c.index("slot", "mod", task, self.parts) if self.parts > 1 else 0
            self.enter_head(c.index("head_of", "div", task, self.parts))
            first = c.index("tile_first", "mul", self.balanced(part), self.range)
            last = c.index("tile_last", "minimum", c.index("tile_end", "add", first, self.range), s.query_tiles)
            if self.one:
                self.pack(0, s.keys)
                c.tiles(first, last, s.queries, s.mr, lambda tile, rows: self.tile(tile, rows, first, 0, s.keys))
            else:
                self.blocks(first, last)
        return tuple(c.out)

    def balanced(self, turn: Bound) -> Bound:
        """The range of queries of a turn: first, last, second, last but one, …, since later ones see more keys."""
        if isinstance(turn, int) or not self.causal:
            return turn
        c = self.code
        half = c.index("half", "div", turn, 2)
        back = c.let("back", call("sub", expr(self.parts - 1), expr(half)))
        odd = call("ne", expr(c.index("odd", "mod", turn, 2)), expr(0))
        return c.let("part", call("select", odd, back, expr(half)))

    def blocks(self, first: Bound, last: Bound) -> None:
        """Keys in several blocks: the sums of all queries of the task are kept and rescaled."""
        c, s = self.code, self.shape
        rows = c.index("rows", "mul", c.index("tiles", "sub", last, first), s.mr)
        c.fill("top", Affine(), 0, rows, float("-inf"))
        c.fill("norm", Affine(), 0, rows)
        c.fill("sums", Affine(), 0, c.index("sum_size", "mul", rows, self.value_row))
        with c.loop("start", 0, s.keys, step=s.block) as start:
            stop = c.index("stop", "minimum", c.index("end", "add", start, s.block), s.keys)
            self.pack(start, stop)
            c.tiles(first, last, s.queries, s.mr, lambda tile, rows: self.tile(tile, rows, first, start, stop))
        c.tiles(first, last, s.queries, s.mr, lambda tile, rows: self.finish(tile, rows, first))

    def pack(self, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        self.copy_panels("k", start, stop, s.depth, "kt")
        self.copy_rows("v", start, c.index("values", "sub", stop, start), s.width, "vs", self.value_row)

    # One tile of queries

    def tile(self, tile: Bound, rows: int, first: Bound, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        query = c.index("query", "mul", tile, s.mr)
        seen = self.limit(query, start, stop, rows)
        with c.when("gt", 1 if self.one else seen, 0):
            self.copy_rows("q", query, rows, s.depth, "qs", self.query_row)
            self.score(0, rows, seen)
            local = self.local(tile, first)
            self.in_groups(rows, lambda r, count: self.softmax(query, local, r, count, start, seen))
            self.weigh(place([(local, self.value_row)]), rows, seen)
        if self.one:
            self.finish(tile, rows, first)

    def local(self, tile: Bound, first: Bound) -> Bound:
        """The first row of a tile in the scratch arrays."""
        if self.one:
            return 0
        return self.code.index("local", "mul", self.code.index("at", "sub", tile, first), self.shape.mr)

    def score(self, local: Bound, rows: int, seen: Bound) -> None:
        """scores = q kᵀ, in whole panels."""
        c, s = self.code, self.shape
        q = Operand("qs", place([(local, self.query_row)]), self.query_row)
        with c.loop("panel", 0, c.index("panels", "div", c.index("up", "add", seen, s.nr - 1), s.nr)) as p:
            kt = Operand("kt", Affine.of(p, s.depth * s.nr), s.nr)
            c.contract(Operand("scores", Affine.of(p, s.nr), self.score_row), q, kt, rows, s.nr, s.depth)

    def softmax(self, query: Bound, local: Bound, r: Bound, count: int, start: Bound, seen: Bound) -> None:
        """Exponentials of ``count`` rows of scores from row ``r`` of the tile on, and their statistics.

        The rows advance together, so that no row waits for the reductions of another; keys that only later rows of the
        tile see get zeros."""
        c = self.code
        lines = [place([(r, self.score_row)]) + i * self.score_row for i in range(count)]
        at = [place([(local, 1), (r, 1)]) + i for i in range(count)]
        first = c.index("first", "add", query, r)
        rows = [c.index("row", "add", first, i) for i in range(count)]
        masks = [self.last_seen(row, start) for row in rows]
        scale = c.const(self.scale)
        up = self.scale >= 0
        tops = [c.acc("row_top", "max" if up else "min") for _ in range(count)]
        hidden = c.const(float("-inf" if up else "inf"))
        with c.lanes(0, seen) as j:
            for top, line, mask in zip(tops, lines, masks, strict=True):
                c.update(top, self.masked(c.load("scores", line + Affine.of(j)), mask, j, hidden))
        best: list[Expr] = [c.let("scaled", c.fn("mul", top, scale)) for top in tops]
        if not self.one:
            best = [c.let("new_top", c.fn("maximum", c.load("top", a), b)) for a, b in zip(at, best, strict=True)]
            for a, b in zip(at, best, strict=True):
                self.rescale(a, b)
        down = [c.let("down", c.fn("neg", b)) for b in best]
        sums = [c.acc("row_sum", "sum") for _ in range(count)]
        positions = [self.row_position(row, start) for row in rows]
        with c.lanes(0, seen) as j:
            for total, line, mask, minus, position in zip(sums, lines, masks, down, positions, strict=True):
                here = line + Affine.of(j)
                power = c.fn("exp", c.fn("fma", c.load("scores", here), scale, minus))
                p = c.let("p", self.masked(power, mask, j, c.const(0.0)))
                c.update(total, p)
                c.store("scores", here, self.dropped(p, self.kept(position, j)))
        for a, largest, total in zip(at, best, sums, strict=True):
            c.store("top", a, largest)
            c.store("norm", a, total if self.one else c.fn("add", c.load("norm", a), total))

    def rescale(self, at: Affine, best: Expr) -> None:
        """Bring the sums so far to the new largest score."""
        c = self.code
        factor = c.let("factor", c.fn("exp", c.fn("sub", c.load("top", at), best)))
        c.store("norm", at, c.fn("mul", c.load("norm", at), factor))
        with c.lanes(0, self.shape.width) as j:
            here = at * self.value_row + Affine.of(j)
            c.store("sums", here, c.fn("mul", c.load("sums", here), factor))

    def weigh(self, sums: Affine, rows: int, seen: Bound) -> None:
        """sums += p v"""
        c, s = self.code, self.shape
        p = Operand("scores", Affine(), self.score_row)

        def panel(at: Bound, columns: int) -> None:
            v = Operand("vs", place([(at, s.nr)]), self.value_row)
            target = Operand("sums", sums + place([(at, s.nr)]), self.value_row)
            c.contract(target, p, v, rows, columns, seen, accumulate=not self.one)

        c.tiles(0, -(-s.width // s.nr), s.width, s.nr, panel)

    def finish(self, tile: Bound, rows: int, first: Bound) -> None:
        """o = sums / norm, lse = top + log(norm)"""
        c, s = self.code, self.shape
        local, query = self.local(tile, first), c.index("query", "mul", tile, s.mr)
        with c.lanes(0, rows) as j:
            at = place([(local, 1), (j, 1)])
            norm = c.let("total", c.load("norm", at))
            c.store(
                "lse", self.at("lse", place([(query, 1), (j, 1)])), c.fn("add", c.load("top", at), c.fn("log", norm))
            )
            c.store("norm", at, c.fn("div", c.const(1.0), norm))
        with c.loop("r", 0, rows) as r:
            at = place([(local, 1), (r, 1)])
            factor = c.let("factor", c.load("norm", at))
            with c.lanes(0, s.width) as j:
                value = c.fn("mul", c.load("sums", at * self.value_row + Affine.of(j)), factor)
                c.store("o", self.at("o", place([(query, 1), (r, 1)]), j), value)
