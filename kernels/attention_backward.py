"""Flash attention, backward: one task owns a head, so that dq, dk and dv are sums in a fixed order without atomics.

The gradient of Dao et al. (arXiv 2205.14135, algorithm 4): p = exp(s - lse) with s = q kᵀ scale, dv += pᵀ do,
dp = do vᵀ, ds = p (dp - delta) with delta = rowsum(do o) - dlse, dq += ds k scale, dk += dsᵀ q scale. As in the forward
pass, scores have a row for each key and a vector lane for each query.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType
from graphc.ir import Attrs
from graphc.kernels.attention_shape import Attention, Shape
from graphc.kernels.contract_code import Bound, expr, place
from graphc.kernels.contract_schedule import even
from graphc.kernels.plan import View
from graphc.loop import Affine, Operand, Role, Scratch, Stmt, Var, call

__all__ = ["Backward"]

SCORE_BYTES = 600 << 10  # p and ds of one block of queries, in the second-level cache

AHEAD = {"dv": ("do",), "dk": ("o",)}  # what is fetched of the next head while these are summed


class Backward(Attention):
    """dq, dk, dv of one head: for each block of keys, for each block of queries that sees it.

    Scratch: ``ks``, ``vs`` the rows of k, scaled, and of v; ``kp``, ``qs``, ``dos`` panels of k and q, scaled, and of
    do; ``qt``, ``dot`` a panel of queries and of do as columns; ``p``, ``ds`` [key][query] of a block; ``dks``,
    ``dvs`` sums for a block of keys and ``dqs`` for all queries, where the results themselves cannot hold them;
    ``down`` (-lse) and ``delta`` per query.
    """

    title, what = "attention_vjp", "The gradient of attention"
    buffers = ("ks", "vs", "kp", "qs", "dos", "qt", "dot", "p", "ds", "dks", "dvs", "dqs", "down", "delta")

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        super().__init__(shape, dtype, attrs, views)
        most = SCORE_BYTES // (2 * dtype.itemsize * shape.block * shape.nr)
        self.panels = even(shape.query_panels, max(1, most))  # of a block of queries
        # No power of two, lest the rows of a tile of keys lie in few sets of the cache.
        self.score_row = self.panels * shape.nr + shape.nr // 2
        self.k_row, self.v_row = shape.aligned(shape.depth), shape.aligned(shape.width)
        self.one = shape.blocks == 1
        self.dq_direct = self.holds_sums("dq")
        self.fetches = self.one and self.panels >= shape.query_panels and self.has_room(("q", "k", "v", "o", "do"))
        hidden = self.causal and shape.keys > shape.queries  # then some keys are seen by nobody
        once = self.one and self.panels >= shape.query_panels and not hidden
        self.dkv_direct = once and self.holds_sums("dk") and self.holds_sums("dv")

    def holds_sums(self, name: str) -> bool:
        return self.column(name) == 1 and self.views[name].dtype == self.dtype

    def scratch(self) -> tuple[Scratch, ...]:
        s = self.shape
        queries = self.panels * s.nr
        sizes = {
            "ks": s.block * self.k_row,
            "vs": s.block * self.v_row,
            "kp": s.block * s.panels(s.depth),
            "qs": queries * s.panels(s.depth),
            "dos": queries * s.panels(s.width),
            "qt": s.depth * s.nr,
            "dot": s.width * s.nr,
            "p": s.block * self.score_row,
            "ds": s.block * self.score_row,
            "down": s.queries,
            "delta": s.queries,
        }
        if not self.dkv_direct:
            sizes |= {"dks": s.block * self.k_row, "dvs": s.block * self.v_row}
        if not self.dq_direct:
            sizes["dqs"] = s.queries * self.k_row
        return tuple(Scratch(name, self.dtype, size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        with c.loop("task", 0, s.batch * s.heads, role=Role.PARALLEL) as task:
            self.enter_head(task)
            self.statistics()
            if self.one:
                self.keys_block(0, s.keys)
            else:
                self.clear_dq()
                with c.loop("start", 0, s.keys, step=s.block) as start:
                    stop = c.index("stop", "minimum", c.index("end", "add", start, s.block), s.keys)
                    self.keys_block(start, stop)
            if not self.dq_direct:
                self.copy_out("dqs", self.k_row, "dq", 0, s.queries, s.depth)
        return tuple(c.out)

    def statistics(self) -> None:
        """down = -lse, delta = rowsum(do o) - dlse"""
        c, s = self.code, self.shape

        def group(first: Bound, count: int) -> None:
            rows = [place([(first, 1)]) + i for i in range(count)]
            totals = [c.acc("dot_of", "sum") for _ in rows]
            with c.lanes(0, s.width) as j:
                for row, total in zip(rows, totals, strict=True):
                    c.update(total, c.fn("mul", c.load("do", self.at("do", row, j)), c.load("o", self.at("o", row, j))))
            for row, total in zip(rows, totals, strict=True):
                c.store("delta", row, c.fn("sub", total, c.load("dlse", self.at("dlse", row))))

        self.in_groups(s.queries, group)
        with c.lanes(0, s.queries) as j:
            c.store("down", Affine.of(j), c.fn("neg", c.load("lse", self.at("lse", j))))

    def sums(self, name: str, row: Bound) -> Operand:
        """Where the gradient ``name`` of row ``row`` of its array and those after it is summed."""
        direct = self.dq_direct if name == "dq" else self.dkv_direct
        if direct:
            return Operand(name, self.at(name, row), self.row(name))
        size = self.v_row if name == "dv" else self.k_row
        return Operand(f"{name}s", place([(row, size)]), size)

    def clear_dq(self) -> None:
        c, s = self.code, self.shape
        with c.loop("row", 0, s.queries) as row:
            target = self.sums("dq", row)
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
        self.copy_rows("k", start, keys, s.depth, "ks", self.k_row, self.scale)
        self.copy_rows("v", start, keys, s.width, "vs", self.v_row)
        self.copy_panels("k", start, keys, s.depth, "kp", s.block, self.scale)
        if not self.dkv_direct:
            c.fill("dks", Affine(), 0, c.index("dk_size", "mul", keys, self.k_row))
            c.fill("dvs", Affine(), 0, c.index("dv_size", "mul", keys, self.v_row))
        if self.panels >= s.query_panels:
            self.query_block(0, s.query_panels, start, stop)
        else:
            first = c.index("first", "div", start, s.nr) if self.causal else 0  # panel that sees one of the keys
            with c.loop("block", first, s.query_panels, step=self.panels) as block:
                end = c.index("block_end", "add", block, self.panels)
                self.query_block(block, c.index("block_last", "minimum", end, s.query_panels), start, stop)
        if not self.dkv_direct:
            self.copy_out("dks", self.k_row, "dk", start, keys, s.depth)
            self.copy_out("dvs", self.v_row, "dv", start, keys, s.width)

    # One block of queries

    def query_block(self, first: Bound, last: Bound, start: Bound, stop: Bound) -> None:
        """``first`` and ``last`` are panels."""
        c, s = self.code, self.shape
        query = c.index("query", "mul", first, s.nr)
        end = c.index("query_end", "minimum", c.index("query_last", "mul", last, s.nr), s.queries)
        rows = c.index("queries", "sub", end, query)
        height = self.panels * s.nr
        self.copy_panels("q", query, rows, s.depth, "qs", height, self.scale)
        self.copy_panels("do", query, rows, s.width, "dos", height)
        c.tiles(first, last, s.queries, s.nr, lambda at, lanes: self.panel(at, lanes, query, start, stop))
        for name, scores, values, columns in (("dv", "p", "dos", s.width), ("dk", "ds", "qs", s.depth)):
            self.weigh(name, scores, values, columns, query, end, start, stop)

    def panel(self, at: Bound, lanes: int, first: Bound, start: Bound, stop: Bound) -> None:
        """p and ds of one panel of queries, and their dq; ``first`` is the first query of the block."""
        c, s = self.code, self.shape
        query = c.index("panel_query", "mul", at, s.nr)
        local = c.index("local", "sub", query, first)
        seen, keys = self.limit(query, start, stop, lanes), c.index("keys", "sub", stop, start)
        self.turn("q", query, lanes, s.depth, "qt")
        self.turn("do", query, lanes, s.width, "dot")
        for a, row, b, depth, target in (
            ("ks", self.k_row, "qt", s.depth, "p"),
            ("vs", self.v_row, "dot", s.width, "ds"),
        ):
            into = Operand(target, place([(local, 1)]), self.score_row)
            self.products(into, Operand(a, Affine(), row), b, depth, query, lanes, start, keys, seen)
        self.scores(query, local, lanes, start, keys, seen)
        c.tiles(0, -(-lanes // s.mr), lanes, s.mr, lambda tile, m: self.dq(tile, m, query, local, start, stop))

    def scores(self, query: Bound, local: Bound, lanes: int, start: Bound, keys: Bound, seen: Bound) -> None:
        """p from the scores and lse, ds from p and dp; zero where a query does not see a key."""
        c, s = self.code, self.shape
        first = self.row_position(query, start)
        end = seen
        if self.causal or self.masked:  # tiles have whole rows
            tiles = c.index("masked_tiles", "div", c.index("seen_up", "add", seen, s.mr - 1), s.mr)
            end = c.index("masked", "minimum", c.index("tiles_end", "mul", tiles, s.mr), keys)
        diagonal = c.index("diagonal", "sub", query, start) if self.causal else end
        if self.causal and not self.one:
            diagonal = c.index("diagonal", "maximum", diagonal, 0)

        def key(at: Var, later: bool) -> None:
            position = c.index("key_at", "add", at, start)
            row = place([(at, self.score_row), (local, 1)])

            def shown() -> None:
                ahead = c.index("hidden", "sub", position, query) if later else 0
                number = c.index("key_position", "add", at, first) if self.dropout else 0
                with c.lanes(0, lanes, unroll=2) as j:
                    here, lane = row + Affine.of(j), place([(query, 1), (j, 1)])
                    prob = c.let("prob", c.fn("exp", c.fn("add", c.load("p", here), c.load("down", lane))))
                    keep = self.kept(number, j)
                    slope = c.fn("sub", self.dropped(c.load("ds", here), keep), c.load("delta", lane))
                    for name, value in (("ds", c.fn("mul", prob, slope)), ("p", self.dropped(prob, keep))):
                        if later:
                            value = call("select", call("ge", j, expr(ahead)), value, c.const(0.0))
                        if self.masked and not self.keys_masked:
                            value = call("select", self.shown(lane, position), value, c.const(0.0))
                        c.store(name, here, value)

            def hidden() -> None:
                for name in ("ds", "p"):
                    c.fill(name, row, 0, lanes)

            self.shown_and_hidden(position, shown, hidden)

        with c.loop("key", 0, c.index("clear", "minimum", diagonal, end)) as at:
            key(at, False)
        if self.causal:
            with c.loop("key", diagonal, end) as at:
                key(at, True)

    def dq(self, tile: Bound, m: int, query: Bound, local: Bound, start: Bound, stop: Bound) -> None:
        """dq += ds k for a tile of queries."""
        c, s = self.code, self.shape
        row = c.index("row", "add", c.index("skip", "mul", tile, s.mr), query)
        seen = self.limit(row, start, stop, m)
        ds, target = Operand("ds", place([(local, 1), (tile, s.mr)]), 1, self.score_row), self.sums("dq", row)

        def panel(at: Bound, width: int) -> None:
            k = Operand("kp", place([(at, s.block * s.nr)]), s.nr)
            ahead = self.panel_ahead(query, at, tile)
            c.contract(shifted(target, at, s.nr), ds, k, m, width, seen, accumulate=not self.one, ahead=ahead)

        self.over_columns(s.depth, panel)

    def weigh(
        self, name: str, scores: str, values: str, columns: int, query: Bound, end: Bound, start: Bound, stop: Bound
    ) -> None:
        """dv += pᵀ do or dk += dsᵀ q: tiles of keys, each over those queries from ``query`` to ``end`` that see it."""
        c, s = self.code, self.shape
        rows, keys = c.index("rows", "sub", end, query), c.index("some_keys", "sub", stop, start)
        seen = self.limit(end, start, stop, 0)
        tiles = c.index("key_tiles", "div", c.index("seen_up", "add", seen, s.mr - 1), s.mr)
        share = -(-s.mr // -(-columns // s.nr))

        def tile(panel: Bound, width: int, number: Bound, m: int) -> None:
            at = c.index("key_local", "mul", number, s.mr)
            skip: Bound = 0
            if self.causal:
                key = c.index("key", "add", at, start)
                skip = c.index("skip", "maximum", c.index("hidden", "sub", key, query), 0)
            a = Operand(scores, place([(at, self.score_row), (skip, 1)]), self.score_row)
            b = Operand(values, place([(panel, self.panels * s.nr * s.nr), (skip, s.nr)]), s.nr)
            into, depth = shifted(self.sums(name, at), panel, s.nr), c.index("depth", "sub", rows, skip)
            row = c.index("row_ahead", "add", at, c.index("shares", "mul", panel, share))
            ahead = self.rows_ahead(AHEAD[name], row, share)
            c.contract(into, a, b, m, width, depth, accumulate=not self.dkv_direct, ahead=ahead)

        self.over_columns(
            columns, lambda at, width: self.over_keys(keys, tiles, s.mr, lambda i, m: tile(at, width, i, m))
        )
        if self.keys_masked and self.dkv_direct:
            with c.loop("row", c.index("tiles_end", "mul", tiles, s.mr), keys) as row:
                target = self.sums(name, row)
                c.fill(target.buffer, target.index, 0, columns)


def shifted(matrix: Operand, panel: Bound, nr: int) -> Operand:
    """The columns of ``matrix`` from a panel on."""
    return Operand(matrix.buffer, matrix.index + place([(panel, nr)]), matrix.row, matrix.col)
