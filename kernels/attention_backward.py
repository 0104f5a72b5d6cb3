"""Flash attention, backward: one task owns a head, so that dq, dk and dv are sums in a fixed order without atomics.

The gradient of Dao et al. (arXiv 2205.14135, algorithm 4): p = exp(s scale - lse), dv += pᵀ do, dp = do vᵀ,
ds = p (dp - delta) scale with delta = rowsum(do o) - dlse, dq += ds k, dk += dsᵀ q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphc.dtype import DType
from graphc.ir import Attrs
from graphc.kernels.attention_shape import Attention, Shape
from graphc.kernels.contract_code import Bound, place
from graphc.kernels.contract_schedule import even
from graphc.kernels.plan import View
from graphc.loop import Affine, Operand, Role, Scratch, Stmt

__all__ = ["Backward"]

SCORE_BYTES = 200 << 10  # p and ds of one block of queries, in the second-level cache
QUERY_BLOCK = 96  # queries whose scores are kept: the depth of the products pᵀ do and dsᵀ q


class Backward(Attention):
    """dq, dk, dv of one head: for each block of keys, for each block of queries that sees it.

    Scratch: ``kt``, ``vt`` panels of kᵀ and vᵀ; ``ks`` the rows of k; ``qs``, ``dos`` the rows of a block of q and do;
    ``p``, ``ds`` scores of a block of queries; ``dks``, ``dvs`` sums for a block of keys; ``dqs`` sums for all queries,
    where dq itself cannot hold them; ``delta`` per query.
    """

    title, what = "attention_vjp", "The gradient of attention"
    buffers = ("kt", "vt", "ks", "qs", "dos", "p", "ds", "dks", "dvs", "dqs", "delta")

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        super().__init__(shape, dtype, attrs, views)
        # A row stride that is no power of two: columns of p are read in place, too.
        self.score_row = shape.panels(shape.block) + shape.nr // 2
        most = min(QUERY_BLOCK, SCORE_BYTES // (2 * dtype.itemsize * self.score_row))
        self.tiles = even(shape.query_tiles, max(1, most // shape.mr))  # of a block of queries
        self.k_row, self.v_row = shape.aligned(shape.depth), shape.aligned(shape.width)
        self.one = shape.blocks == 1
        self.dq_direct = self.column("dq") == 1 and views["dq"].dtype == dtype

    def scratch(self) -> tuple[Scratch, ...]:
        s = self.shape
        queries, panels = self.tiles * s.mr, s.panels(s.block)
        sizes = {
            "kt": panels * s.depth,
            "vt": panels * s.width,
            "ks": s.block * self.k_row,
            "qs": queries * self.k_row,
            "dos": queries * self.v_row,
            "p": queries * self.score_row,
            "ds": queries * self.score_row,
            "dks": s.block * self.k_row,
            "dvs": s.block * self.v_row,
            "delta": s.queries,
        }
        if not self.dq_direct:
            sizes["dqs"] = s.queries * self.k_row
        return tuple(Scratch(name, self.dtype, size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        with c.loop("task", 0, s.batch * s.heads, role=Role.PARALLEL) as task:
            self.enter_head(task)
            self.delta()
            if not self.one:
                self.clear_dq()
            if self.one:
                self.keys_block(0, s.keys)
            else:
                with c.loop("start", 0, s.keys, step=s.block) as start:
                    stop = c.index("stop", "minimum", c.index("end", "add", start, s.block), s.keys)
                    self.keys_block(start, stop)
            if not self.dq_direct:
                self.copy_out("dqs", self.k_row, "dq", 0, s.queries, s.depth)
        return tuple(c.out)

    def delta(self) -> None:
        """delta = rowsum(do o) - dlse"""
        c, s = self.code, self.shape

        def group(first: Bound, count: int) -> None:
            rows = [place([(first, 1)]) + i for i in range(count)]
            totals = [c.acc("dot", "sum") for _ in rows]
            with c.lanes(0, s.width) as j:
                for row, total in zip(rows, totals, strict=True):
                    c.update(total, c.fn("mul", c.load("do", self.at("do", row, j)), c.load("o", self.at("o", row, j))))
            for row, total in zip(rows, totals, strict=True):
                c.store("delta", row, c.fn("sub", total, c.load("dlse", self.at("dlse", row))))

        self.in_groups(s.queries, group)

    def dq(self, row: Bound) -> Operand:
        """Where the gradient of query ``row`` and those after it are summed."""
        if self.dq_direct:
            return Operand("dq", self.at("dq", row), self.row("dq"))
        return Operand("dqs", place([(row, self.k_row)]), self.k_row)

    def clear_dq(self) -> None:
        c, s = self.code, self.shape
        with c.loop("row", 0, s.queries) as row:
            target = self.dq(row)
            c.fill(target.buffer, target.index, 0, s.depth)

    def copy_out(self, source: str, row: int, name: str, start: Bound, rows: Bound, columns: int) -> None:
        """``name[start + i, :] = source[i, :]``"""
        c = self.code
        with c.loop("row", 0, rows) as i, c.lanes(0, columns) as j:
            value = c.load(source, place([(i, row), (j, 1)]))
            c.store(name, self.at(name, place([(start, 1), (i, 1)]), j), value)

    # One block of keys

    def keys_block(self, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        keys = c.index("block_keys", "sub", stop, start)
        self.copy_panels("k", start, stop, s.depth, "kt")
        self.copy_panels("v", start, stop, s.width, "vt")
        self.copy_rows("k", start, keys, s.depth, "ks", self.k_row)
        c.fill("dks", Affine(), 0, c.index("dk_size", "mul", keys, self.k_row))
        c.fill("dvs", Affine(), 0, c.index("dv_size", "mul", keys, self.v_row))
        first = self.first_tile(start)
        if self.tiles >= s.query_tiles:
            self.query_block(0, s.query_tiles, start, stop)
        else:
            with c.loop("block", first, s.query_tiles, step=self.tiles) as block:
                last = c.index("block_last", "minimum", c.index("block_end", "add", block, self.tiles), s.query_tiles)
                self.query_block(block, last, start, stop)
        self.copy_out("dks", self.k_row, "dk", start, keys, s.depth)
        self.copy_out("dvs", self.v_row, "dv", start, keys, s.width)

    def first_tile(self, start: Bound) -> Bound:
        """The first tile of queries that sees a key from ``start`` on."""
        return self.code.index("first", "div", start, self.shape.mr) if self.causal else 0

    # One block of queries

    def query_block(self, first: Bound, last: Bound, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        query = c.index("query", "mul", first, s.mr)
        query_end = c.index("query_end", "minimum", c.index("query_last", "mul", last, s.mr), s.queries)
        rows = c.index("queries", "sub", query_end, query)
        self.copy_rows("q", query, rows, s.depth, "qs", self.k_row)
        self.copy_rows("do", query, rows, s.width, "dos", self.v_row)
        c.tiles(first, last, s.queries, s.mr, lambda tile, m: self.tile(tile, m, first, start, stop))
        seen = self.limit(c.index("block_query", "mul", last, s.mr), start, stop, 0)
        tiles = c.index("key_tiles", "div", c.index("seen_up", "add", seen, s.mr - 1), s.mr)
        self.key_tiles(
            c.index("some_keys", "sub", stop, start), tiles, lambda tile, m: self.weigh(tile, m, query, rows, start)
        )

    def key_tiles(self, keys: Bound, stop: Bound, body: Callable[[Bound, int], None]) -> None:
        """``body(tile, rows)`` for the tiles before ``stop`` of a block of ``keys``; only the last may be short."""
        c, s = self.code, self.shape
        full = c.index("full", "div", keys, s.mr)
        with c.loop("key_tile", 0, c.index("full_stop", "minimum", stop, full)) as tile:
            body(tile, s.mr)
        if s.keys % s.mr:
            with c.when("gt", stop, full) as holds:
                if holds:
                    body(full, s.keys % s.mr)

    def tile(self, tile: Bound, m: int, first: Bound, start: Bound, stop: Bound) -> None:
        """p and ds of one tile of queries, and their part of dq."""
        c, s = self.code, self.shape
        local = c.index("local", "mul", c.index("at", "sub", tile, first), s.mr)
        query = c.index("tile_query", "mul", tile, s.mr)
        seen = self.limit(query, start, stop, s.mr)
        self.products("qs", place([(local, self.k_row)]), self.k_row, "kt", s.depth, "p", local, m, seen)
        self.products("dos", place([(local, self.v_row)]), self.v_row, "vt", s.width, "ds", local, m, seen)
        with c.loop("r", 0, m) as r:
            row = c.index("row", "add", query, r)
            self.scores(row, place([(local, self.score_row), (r, self.score_row)]), start, seen)
        ds = Operand("ds", place([(local, self.score_row)]), self.score_row)
        target = self.dq(query)

        def panel(at: Bound, columns: int) -> None:
            k = Operand("ks", place([(at, s.nr)]), self.k_row)
            c.contract(shifted(target, at, s.nr), ds, k, m, columns, seen, accumulate=not self.one)

        c.tiles(0, -(-s.depth // s.nr), s.depth, s.nr, panel)

    def products(
        self, a: str, at: Affine, a_row: int, b: str, depth: int, target: str, local: Bound, m: int, seen: Bound
    ) -> None:
        """target = a bᵀ for a tile of rows, in whole panels of keys."""
        c, s = self.code, self.shape
        with c.loop("panel", 0, c.index("panels", "div", c.index("up", "add", seen, s.nr - 1), s.nr)) as p:
            c.contract(
                Operand(target, place([(local, self.score_row), (p, s.nr)]), self.score_row),
                Operand(a, at, a_row),
                Operand(b, Affine.of(p, depth * s.nr), s.nr),
                m,
                s.nr,
                depth,
            )

    def scores(self, row: Bound, line: Affine, start: Bound, seen: Bound) -> None:
        """One row: p from the scores and lse, ds from p and dp."""
        c = self.code
        mask = self.last_seen(row, start)
        scale = c.const(self.scale)
        down = c.let("down", c.fn("neg", c.load("lse", self.at("lse", row))))
        delta = c.let("row_delta", c.load("delta", place([(row, 1)])))
        position = self.row_position(row, start)
        with c.lanes(0, seen, unroll=2) as j:
            here = line + Affine.of(j)
            power = c.fn("exp", c.fn("fma", c.load("p", here), scale, down))
            p = c.let("prob", self.masked(power, mask, j, c.const(0.0)))
            keep = self.kept(position, j, 1)
            dp = self.dropped(c.load("ds", here), keep)
            c.store("ds", here, c.fn("mul", c.fn("mul", p, c.fn("sub", dp, delta)), scale))
            c.store("p", here, self.dropped(p, keep))

    def weigh(self, tile: Bound, m: int, query: Bound, rows: Bound, start: Bound) -> None:
        """dv += pᵀ do and dk += dsᵀ q for a tile of keys, over the queries of the block that see it."""
        c, s = self.code, self.shape
        skip: Bound = 0
        if self.causal:
            key = c.index("key", "add", c.index("key_local", "mul", tile, s.mr), start)
            skip = c.index("skip", "maximum", c.index("hidden", "sub", key, query), 0)
        depth = c.index("depth", "sub", rows, skip)
        for scores, values, row, width, sums in (
            ("p", "dos", self.v_row, s.width, "dvs"),
            ("ds", "qs", self.k_row, s.depth, "dks"),
        ):
            a = Operand(scores, place([(skip, self.score_row), (tile, s.mr)]), 1, self.score_row)
            b = Operand(values, place([(skip, row)]), row)
            target = Operand(sums, place([(tile, s.mr * row)]), row)

            def panel(at: Bound, columns: int, target: Operand = target, a: Operand = a, b: Operand = b) -> None:
                c.contract(shifted(target, at, s.nr), a, shifted(b, at, s.nr), m, columns, depth, accumulate=True)

            c.tiles(0, -(-width // s.nr), width, s.nr, panel)


def shifted(matrix: Operand, panel: Bound, nr: int) -> Operand:
    """The columns of ``matrix`` from a panel on."""
    return Operand(matrix.buffer, matrix.index + place([(panel, nr)]), matrix.row, matrix.col)
