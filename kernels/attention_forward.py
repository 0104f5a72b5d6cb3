"""Flash attention, forward: a panel of queries against all its keys while the scores stay in the cache.

Dao, Fu, Ermon, Rudra, Ré, "FlashAttention: Fast and Memory-Efficient Exact Attention" (arXiv 2205.14135), with the
scores turned: a row for each key, a vector lane for each query. So the softmax, which goes along the keys, combines
whole vectors and never the lanes of one. Where the keys fit in one block it needs no rescaling at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.dtype import DType
from graphc.ir import Attrs
from graphc.kernels.attention_shape import Attention, Shape
from graphc.kernels.contract_code import Bound, expr, place
from graphc.kernels.lower_columns import tree
from graphc.kernels.plan import View
from graphc.loop import Affine, Expr, Operand, Role, Scratch, Stmt, Var, call

__all__ = ["Forward"]

MIN_TASKS = 12  # heads are split into ranges of queries where there are fewer; 2, 3, 4 and 6 threads share these evenly
TOGETHER = 4  # keys whose scores are combined at once
RANGE = 384  # queries of one task that works in several blocks of keys: their sums wait in the second-level cache


class Forward(Attention):
    """o = softmax(q kᵀ scale) v and lse, panels of queries at a time.

    Scratch: ``ks`` the rows of k, scaled; ``vs`` panels of v; ``qt`` a panel of queries as columns; ``scores``
    [key][nr] of that panel; ``sums`` p v so far; ``top``, ``norm`` per query: the largest score and the sum of the
    exponentials so far; ``factor`` what brings them to a new largest score.
    """

    title, what = "attention", "Attention"
    buffers = ("ks", "vs", "qt", "scores", "sums", "top", "norm", "factor")

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        super().__init__(shape, dtype, attrs, views)
        panels, heads = shape.query_panels, shape.batch * shape.heads
        wanted = min(panels, -(-MIN_TASKS // max(1, heads)))
        if shape.blocks > 1:
            wanted = max(wanted, -(-panels * shape.nr // RANGE))
        self.range = -(-panels // wanted)  # panels of a task
        self.parts = -(-panels // self.range)
        self.one = shape.blocks == 1
        self.fetches = self.one and self.parts == 1 and self.has_room(("q", "k", "v"))
        self.key_row = shape.aligned(shape.depth)
        self.value_row = shape.aligned(shape.width)

    def scratch(self) -> tuple[Scratch, ...]:
        s = self.shape
        rows = s.nr if self.one else self.range * s.nr
        sizes = {
            "ks": s.block * self.key_row,
            "vs": s.block * s.panels(s.width),
            "qt": s.depth * s.nr,
            "scores": s.block * s.nr,
            "sums": rows * self.value_row,
            "top": rows,
            "norm": rows,
        }
        if not self.one:
            sizes["factor"] = s.nr
        return tuple(Scratch(name, self.dtype, size) for name, size in sizes.items())

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        with c.loop("task", 0, s.batch * s.heads * self.parts, role=Role.PARALLEL) as task:
            part = c.index("slot", "mod", task, self.parts) if self.parts > 1 else 0
            self.enter_head(c.index("head_of", "div", task, self.parts))
            first = c.index("panel_first", "mul", self.balanced(part), self.range)
            end = c.index("panel_end", "add", first, self.range)
            last = c.index("panel_last", "minimum", end, s.query_panels)
            if self.one:
                self.pack(0, s.keys)
                c.tiles(first, last, s.queries, s.nr, lambda at, lanes: self.panel(at, lanes, first, 0, s.keys))
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
        rows = c.index("rows", "mul", c.index("panels", "sub", last, first), s.nr)
        c.fill("top", Affine(), 0, rows, self.lowest)
        c.fill("norm", Affine(), 0, rows)
        c.fill("sums", Affine(), 0, c.index("sum_size", "mul", rows, self.value_row))
        with c.loop("start", 0, self.visible, step=s.block) as start:
            stop = c.index("stop", "minimum", c.index("end", "add", start, s.block), s.keys)
            self.pack(start, stop)
            c.tiles(first, last, s.queries, s.nr, lambda at, lanes: self.panel(at, lanes, first, start, stop))
        c.tiles(first, last, s.queries, s.nr, lambda at, lanes: self.finish(at, lanes, first))

    def pack(self, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        keys = c.index("block_keys", "sub", stop, start)
        self.copy_rows("k", start, keys, s.depth, "ks", self.key_row, self.scale)
        self.copy_panels("v", start, keys, s.width, "vs", s.block)

    # One panel of queries

    def panel(self, at: Bound, lanes: int, first: Bound, start: Bound, stop: Bound) -> None:
        c, s = self.code, self.shape
        query = c.index("query", "mul", at, s.nr)
        seen = self.limit(query, start, stop, lanes)
        keys = c.index("keys", "sub", stop, start)
        with c.when("gt", 1 if self.one else seen, 0):
            self.turn("q", query, lanes, s.depth, "qt")
            into, k = Operand("scores", Affine(), s.nr), Operand("ks", Affine(), self.key_row)
            self.products(into, k, "qt", s.depth, query, lanes, start, keys, seen)
            self.softmax(query, lanes, self.local(at, first), start, keys, seen)
            self.weigh(query, lanes, self.local(at, first), start, stop)
        if self.one:
            self.finish(at, lanes, first)

    def local(self, at: Bound, first: Bound) -> Bound:
        """The place of a panel's first query in the scratch arrays."""
        if self.one:
            return 0
        return self.code.index("local", "mul", self.code.index("at", "sub", at, first), self.shape.nr)

    def softmax(self, query: Bound, lanes: int, local: Bound, start: Bound, keys: Bound, seen: Bound) -> None:
        """Exponentials of the scores of a panel, and their statistics, some keys at a time."""
        c = self.code
        groups = c.index("groups", "div", c.index("seen_up", "add", seen, TOGETHER - 1), TOGETHER)
        if self.causal:
            self.hide_later(query, lanes, start, keys, groups)
        if self.masked:
            self.hide_masked(query, lanes, start, keys, groups)
        if self.one:
            c.fill("top", place([(local, 1)]), 0, lanes, self.lowest)
            c.fill("norm", place([(local, 1)]), 0, lanes)
        else:
            with c.lanes(0, lanes) as j:
                c.store("factor", Affine.of(j), c.load("top", place([(local, 1), (j, 1)])))

        def largest(group: Bound, rows: int) -> None:
            with c.lanes(0, lanes, unroll=2) as j:
                at = place([(local, 1), (j, 1)])
                values = [c.load("scores", self.score_at(group, i, j)) for i in range(rows)]
                c.store("top", at, self.larger(c.load("top", at), values))

        self.over_keys(keys, groups, TOGETHER, largest)
        if not self.one:
            self.rescale(lanes, local)
        first = self.row_position(query, start)

        def exponentials(group: Bound, rows: int) -> None:
            positions = self.positions(first, group, rows)
            with c.lanes(0, lanes, unroll=2) as j:
                at = place([(local, 1), (j, 1)])
                top = c.let("largest", c.load("top", at))
                powers: list[Expr] = []
                for i in range(rows):
                    here = self.score_at(group, i, j)
                    p = c.let("p", c.fn("exp", c.fn("sub", c.load("scores", here), top)))
                    powers.append(p)
                    c.store("scores", here, self.dropped(p, self.kept(positions[i], j)))
                c.store("norm", at, c.fn("add", c.load("norm", at), tree("sum", powers)))

        self.over_keys(keys, groups, TOGETHER, exponentials)

    def positions(self, first: Bound, group: Bound, rows: int) -> list[Bound]:
        """The linear indices, among all scores, of a group's keys for the first query of the panel."""
        if not self.dropout:
            return [0] * rows
        c = self.code
        at = c.index("group_position", "add", c.index("ahead", "mul", group, TOGETHER), first)
        return [c.index("position", "add", at, i) for i in range(rows)]

    def score_at(self, group: Bound, i: int, j: Var) -> Affine:
        """The score of key ``i`` of a group for the query of lane ``j``."""
        return place([(group, TOGETHER * self.shape.nr), (j, 1)]) + i * self.shape.nr

    def hide_later(self, query: Bound, lanes: int, start: Bound, keys: Bound, groups: Bound) -> None:
        """Minus infinity in place of keys after the query, and of rows of scores that were not computed."""
        c, s = self.code, self.shape
        first = c.index("diagonal", "sub", query, start)
        first = first if self.one else c.index("diagonal", "maximum", first, 0)
        last = c.index("masked", "minimum", c.index("group_end", "mul", groups, TOGETHER), keys)
        with c.loop("key", first, last) as key:
            ahead = c.index("hidden", "sub", c.index("position", "add", key, start), query)
            with c.lanes(0, lanes, unroll=2) as j:
                at = place([(key, s.nr), (j, 1)])
                seen = call("ge", j, expr(ahead))
                c.store("scores", at, call("select", seen, c.load("scores", at), c.const(float("-inf"))))

    def hide_masked(self, query: Bound, lanes: int, start: Bound, keys: Bound, groups: Bound) -> None:
        """Minus infinity in place of what the mask hides, and of the rows of scores that it made superfluous."""
        c, s = self.code, self.shape
        hidden = float("-inf")
        last = c.index("masked", "minimum", c.index("group_end", "mul", groups, TOGETHER), keys)
        with c.loop("key", 0, last) as key:
            position, row = c.index("position", "add", key, start), place([(key, s.nr)])
            if self.keys_masked:
                with c.given(call("not", self.shown(0, position))):
                    c.fill("scores", row, 0, lanes, hidden)
            else:
                with c.lanes(0, lanes) as j:
                    at, shown = row + Affine.of(j), self.shown(place([(query, 1), (j, 1)]), position)
                    c.store("scores", at, call("select", shown, c.load("scores", at), c.const(hidden)))

    def larger(self, value: Expr, others: Sequence[Expr]) -> Expr:
        """The largest value, where none is NaN: one instruction each. A NaN comes back with the exponentials."""
        c = self.code
        level = [c.let("s", x) for x in (*others, value)]
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=False)
            odd = level[-1:] if len(level) % 2 else []
            level = [c.let("top_of", call("select", call("gt", a, b), a, b)) for a, b in pairs] + odd
        return level[0]

    def rescale(self, lanes: int, local: Bound) -> None:
        """Bring the sums so far to the new largest scores."""
        c = self.code
        with c.lanes(0, lanes) as j:
            at = place([(local, 1), (j, 1)])
            factor = c.let("change", c.fn("exp", c.fn("sub", c.load("factor", Affine.of(j)), c.load("top", at))))
            c.store("factor", Affine.of(j), factor)
            c.store("norm", at, c.fn("mul", c.load("norm", at), factor))
        with c.loop("r", 0, lanes) as r:
            factor = c.let("row_factor", c.load("factor", Affine.of(r)))
            with c.lanes(0, self.shape.width) as j:
                here = place([(local, self.value_row), (r, self.value_row), (j, 1)])
                c.store("sums", here, c.fn("mul", c.load("sums", here), factor))

    def weigh(self, query: Bound, lanes: int, local: Bound, start: Bound, stop: Bound) -> None:
        """sums += pᵀ v, a tile of queries at a time, each over the keys that it sees."""
        c, s = self.code, self.shape

        def columns(at: Bound, width: int) -> None:
            v = Operand("vs", place([(at, s.block * s.nr)]), s.nr)

            def rows(tile: Bound, count: int) -> None:
                row = c.index("row", "add", c.index("skip", "mul", tile, s.mr), query)
                p = Operand("scores", place([(tile, s.mr)]), 1, s.nr)
                sums = place([(local, self.value_row), (tile, s.mr * self.value_row), (at, s.nr)])
                target = Operand("sums", sums, self.value_row)
                seen = self.limit(row, start, stop, count)
                ahead = self.panel_ahead(query, at, tile)
                c.contract(target, p, v, count, width, seen, accumulate=not self.one, ahead=ahead)

            c.tiles(0, -(-lanes // s.mr), lanes, s.mr, rows)

        self.over_columns(s.width, columns)

    def finish(self, at: Bound, lanes: int, first: Bound) -> None:
        """o = sums / norm, lse = top + log(norm)"""
        c, s = self.code, self.shape
        local, query = self.local(at, first), c.index("query", "mul", at, s.nr)
        with c.lanes(0, lanes) as j:
            here = place([(local, 1), (j, 1)])
            norm = c.let("total", self.norm(c.load("norm", here)))
            lse = c.fn("add", c.load("top", here), c.fn("log", norm))
            c.store("lse", self.at("lse", place([(query, 1), (j, 1)])), lse)
            c.store("norm", here, c.fn("div", c.const(1.0), norm))
        with c.loop("r", 0, lanes) as r:
            here = place([(local, 1), (r, 1)])
            factor = c.let("factor_of", c.load("norm", here))
            with c.lanes(0, s.width) as j:
                value = c.fn("mul", c.load("sums", here * self.value_row + Affine.of(j)), factor)
                c.store("o", self.at("o", place([(query, 1), (r, 1)]), j), value)
