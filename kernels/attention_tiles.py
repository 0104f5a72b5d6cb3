"""Flash attention for machines on which many threads share a unit of work: tiles of queries against tiles of keys.

Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning" (arXiv 2307.08691). A tile of
scores has a row for each query, and a warp takes rows; all products are block products (`BlockProduct`) that read the
operands where they lie. The gradient is two kernels, one that owns a tile of keys and one that owns a tile of queries,
so that every sum has one owner and a fixed order; each computes the scores again.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType, TensorType
from graphc.ir import Attrs
from graphc.kernels.attention_shape import Attention, Shape
from graphc.kernels.contract_code import Bound, Code, expr, place
from graphc.kernels.contract_factors import Stored
from graphc.kernels.plan import View
from graphc.loop import Affine, BlockProduct, Const, Expr, Operand, Role, Scratch, Stmt, Var, call
from graphc.ops.base import Map, MapContext, get_op

__all__ = ["TileForward", "TileKeys", "TileQueries", "in_tiles"]

TILE = 64  # queries, keys and columns of a block product


def in_tiles(views: Mapping[str, View]) -> bool:
    """Whether all factors of the products have one type."""
    return len({views[name].dtype for name in ("q", "k", "v", "do") if name in views}) == 1


class _Tiles(Attention):
    """What the kernels share: a head, and the scores of a tile of queries and a tile of keys."""

    halves: tuple[str, ...] = ()  # scratch that is a factor: of the type of the operands

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        super().__init__(shape, dtype, attrs, views)
        self.factor = views["q"].dtype
        stored = {name: Stored(v.dtype, dtype) for name, v in views.items() if v.dtype != dtype}
        if self.factor != dtype:
            stored |= {name: Stored(self.factor, dtype) for name in self.halves}
        self.code = Code(dtype, [*views, *self.buffers], stored)

    def scratch(self) -> tuple[Scratch, ...]:
        tiles = {name: self.factor if name in self.halves else self.dtype for name in self.buffers}
        return tuple(Scratch(name, dtype, self.size(name)) for name, dtype in tiles.items())

    def size(self, name: str) -> int:
        """Elements of a scratch array: a tile of scores, unless it says otherwise."""
        return TILE * TILE

    # Pieces

    def tile(self, name: str, number: Bound, total: int) -> tuple[Bound, Bound]:
        """The first of a tile's rows, and how many there are."""
        first, end = self.code.part(name, number, TILE, total)
        return first, self.code.index(f"{name}_rows", "sub", end, first)

    def product(
        self, into: Operand, a: Operand, b: Operand, m: Bound, n: Bound, k: Bound, *, add: bool = False
    ) -> None:
        """``into[m, n] (+)= a b``, in panels of `TILE` columns where n is a number."""
        for left in range(0, n if isinstance(n, int) else 1, TILE):
            width = min(TILE, n - left) if isinstance(n, int) else n
            c = Operand(into.buffer, into.index + left, into.row)
            right = Operand(b.buffer, b.index + left * b.col, b.row, b.col)
            self.code.out.append(
                BlockProduct(c, a, right, m, width, k, self.dtype, self.factor, (TILE, TILE), accumulate=add)
            )

    def rows_of(self, name: str, first: Bound) -> Operand:
        """The rows of an operand from ``first`` on, as a matrix."""
        return Operand(name, self.at(name, first), self.row(name), self.column(name))

    def turned(self, x: Operand) -> Operand:
        return Operand(x.buffer, x.index, x.col, x.row)

    def scores(self, into: str, a: str, b: str, first: Bound, start: Bound, m: Bound, n: Bound, depth: int) -> None:
        """``into[query, key] = a[query] · b[key]`` for queries from ``first`` and keys from ``start`` on."""
        right = self.turned(self.rows_of(b, start))
        self.product(Operand(into, Affine(), TILE), self.rows_of(a, first), right, m, n, depth)

    def clear(self, name: str, rows: Bound, columns: int) -> None:
        c = self.code
        with c.loop("r", 0, rows, role=Role.WARP) as r:
            c.fill(name, place([(r, columns)]), 0, columns)

    def copy_out(self, source: str, name: str, first: Bound, rows: Bound, columns: int) -> None:
        """``name[first + r, :] = source[r, :]``"""
        c = self.code
        with c.loop("r", 0, rows, role=Role.WARP) as r, c.lanes(0, columns) as j:
            value = c.load(source, place([(r, columns), (j, 1)]))
            c.store(name, self.at(name, place([(first, 1), (r, 1)]), j), value)

    def seen(self, value: Expr, hidden: Expr, query: Bound, start: Bound, lane: Var) -> Expr:
        """``value`` where the query sees the key of this lane (that of lane 0 is ``start``), else ``hidden``."""
        if self.masked:
            value = call("select", self.shown(query, place([(start, 1), (lane, 1)])), value, hidden)
        if self.causal:
            value = call("select", call("ge", expr(query), call("add", expr(start), lane)), value, hidden)
        return value

    def keys_end(self, first: Bound) -> Bound:
        """The key after the last one that a tile of queries may see."""
        c, end = self.code, self.visible
        return c.index("keys_end", "minimum", c.index("after", "add", first, TILE), end) if self.causal else end

    def kept_keys(self, query: Bound, key: Expr) -> Var | None:
        """Whether dropout keeps a score (None: there is no dropout); the bits are those of op random_bits."""
        if self.keys is None:
            return None
        lowering = get_op("random_bits").lower
        assert isinstance(lowering, Map)
        kind = self.keys[0].dtype
        linear = call("add", expr(self.row_position(query, 0)), key)
        bits = lowering.fn(self.keys, MapContext({}, TensorType(kind, ()), (), linear))
        return self.code.let("keep", call("ge", bits, Const(int(self.dropout * 2**32), kind)))


class TileForward(_Tiles):
    """o = softmax(q kᵀ scale) v and lse, a tile of queries at a time, while keys go by.

    Scratch: ``scores`` and ``p``, their exponentials, as a factor; ``sums`` p v so far; ``top`` and ``norm`` per query:
    the largest score and the sum of the exponentials so far.
    """

    title, what = "attention", "Attention"
    buffers = ("scores", "p", "sums", "top", "norm")
    halves = ("p",)

    def size(self, name: str) -> int:
        rows = {"sums": TILE * self.shape.width, "top": TILE, "norm": TILE}
        return rows.get(name, TILE * TILE)

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        tiles = -(-s.queries // TILE)
        with c.loop("task", 0, s.batch * s.heads * tiles, role=Role.PARALLEL) as task:
            # Later tiles see more keys: they begin first.
            number = c.index("tile", "sub", tiles - 1, c.index("turn", "mod", task, tiles)) if tiles > 1 else 0
            self.enter_head(c.index("head_of", "div", task, tiles))
            first, rows = self.tile("query", number, s.queries)
            c.fill("top", Affine(), 0, rows, self.lowest)
            c.fill("norm", Affine(), 0, rows)
            self.clear("sums", rows, s.width)
            with c.loop("start", 0, self.keys_end(first), step=TILE) as start:
                stop = c.index("stop", "minimum", c.index("start_end", "add", start, TILE), s.keys)
                keys = c.index("keys", "sub", stop, start)
                self.scores("scores", "q", "k", first, start, rows, keys, s.depth)
                with c.loop("r", 0, rows, role=Role.WARP) as r:
                    self.softmax(r, c.index("query", "add", first, r), start, keys)
                sums, p = Operand("sums", Affine(), s.width), Operand("p", Affine(), TILE)
                self.product(sums, p, self.rows_of("v", start), rows, s.width, keys, add=True)
            with c.loop("r", 0, rows, role=Role.WARP) as r:
                self.finish(r, c.index("query", "add", first, r))
        return tuple(c.out)

    def softmax(self, r: Var, query: Bound, start: Bound, keys: Bound) -> None:
        """Exponentials of one row's scores, and the sums so far brought to the new largest score."""
        c, s = self.code, self.shape
        here = place([(r, 1)])
        largest = c.acc("largest", "max")
        with c.lanes(0, keys) as j:
            score = c.fn("mul", c.load("scores", place([(r, TILE), (j, 1)])), c.const(self.scale))
            c.update(largest, self.seen(score, c.const(float("-inf")), query, start, j))
        old = c.let("old", c.load("top", here))
        top = c.let("new", call("maximum", old, largest))
        factor = c.let("factor", c.fn("exp", c.fn("sub", old, top)))
        total = c.acc("total", "sum")
        with c.lanes(0, keys) as j:
            at, key = place([(r, TILE), (j, 1)]), c.let("key", call("add", expr(start), j))
            score = c.fn("sub", c.fn("mul", c.load("scores", at), c.const(self.scale)), top)
            p = c.let("power", self.seen(c.fn("exp", score), c.const(0.0), query, start, j))
            c.update(total, p)
            c.store("p", at, self.dropped(p, self.kept_keys(query, key)))
        c.store("norm", here, c.fn("add", c.fn("mul", c.load("norm", here), factor), total))
        c.store("top", here, top)
        with c.lanes(0, s.width) as d:
            at = place([(r, s.width), (d, 1)])
            c.store("sums", at, c.fn("mul", c.load("sums", at), factor))

    def finish(self, r: Var, query: Bound) -> None:
        """o = sums / norm, lse = top + log(norm)"""
        c, s = self.code, self.shape
        norm = c.let("norm_of", self.norm(c.load("norm", place([(r, 1)]))))
        c.store("lse", self.at("lse", query), c.fn("add", c.load("top", place([(r, 1)])), c.fn("log", norm)))
        share = c.let("share", c.fn("div", c.const(1.0), norm))
        with c.lanes(0, s.width) as d:
            value = c.fn("mul", c.load("sums", place([(r, s.width), (d, 1)])), share)
            c.store("o", self.at("o", query, d), value)


class _Gradient(_Tiles):
    """p and ds of a tile: p = exp(s - lse), ds = p (dp - delta) scale, with dp = do vᵀ and delta = rowsum(do o) - dlse.

    Scratch: ``scores``, ``slopes`` (dp); ``p`` and ``ds``, as factors.
    """

    halves = ("p", "ds")

    def slopes(self, first: Bound, rows: Bound, start: Bound, keys: Bound) -> None:
        c, s = self.code, self.shape
        self.scores("scores", "q", "k", first, start, rows, keys, s.depth)
        self.scores("slopes", "do", "v", first, start, rows, keys, s.width)
        with c.loop("r", 0, rows, role=Role.WARP) as r:
            query = c.index("query", "add", first, r)
            dot = c.acc("dot_of", "sum")
            with c.lanes(0, s.width) as d:
                c.update(dot, c.load("do", self.at("do", query, d)), c.load("o", self.at("o", query, d)))
            delta = c.let("delta", c.fn("sub", dot, c.load("dlse", self.at("dlse", query))))
            lse = c.let("lse_of", c.load("lse", self.at("lse", query)))
            with c.lanes(0, keys) as j:
                at, key = place([(r, TILE), (j, 1)]), c.let("key", call("add", expr(start), j))
                score = c.fn("sub", c.fn("mul", c.load("scores", at), c.const(self.scale)), lse)
                p = c.let("power", self.seen(c.fn("exp", score), c.const(0.0), query, start, j))
                keep = self.kept_keys(query, key)
                slope = c.fn("sub", self.dropped(c.load("slopes", at), keep), delta)
                c.store("ds", at, c.fn("mul", c.fn("mul", p, slope), c.const(self.scale)))
                c.store("p", at, self.dropped(p, keep))


class TileKeys(_Gradient):
    """dk += dsᵀ q and dv += pᵀ do for a tile of keys, while queries go by. Scratch besides: the sums."""

    title, what = "attention_vjp_keys", "The gradients of keys and values of attention"
    buffers = ("scores", "slopes", "p", "ds", "dks", "dvs")

    def size(self, name: str) -> int:
        return {"dks": TILE * self.shape.depth, "dvs": TILE * self.shape.width}.get(name, TILE * TILE)

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        tiles = -(-s.keys // TILE)
        with c.loop("task", 0, s.batch * s.heads * tiles, role=Role.PARALLEL) as task:
            self.enter_head(c.index("head_of", "div", task, tiles))
            start, keys = self.tile("key", c.index("tile", "mod", task, tiles) if tiles > 1 else 0, s.keys)
            self.clear("dks", keys, s.depth)
            self.clear("dvs", keys, s.width)
            with c.loop("first", start if self.causal else 0, s.queries, step=TILE) as first:
                end = c.index("query_end", "minimum", c.index("first_end", "add", first, TILE), s.queries)
                rows = c.index("rows", "sub", end, first)
                self.slopes(first, rows, start, keys)
                for into, scores, right, columns in (("dvs", "p", "do", s.width), ("dks", "ds", "q", s.depth)):
                    target, a = Operand(into, Affine(), columns), self.turned(Operand(scores, Affine(), TILE))
                    self.product(target, a, self.rows_of(right, first), keys, columns, rows, add=True)
            self.copy_out("dks", "dk", start, keys, s.depth)
            self.copy_out("dvs", "dv", start, keys, s.width)
        return tuple(c.out)


class TileQueries(_Gradient):
    """dq += ds k for a tile of queries, while keys go by. Scratch besides: the sums."""

    title, what = "attention_vjp_queries", "The gradient of queries of attention"
    buffers = ("scores", "slopes", "p", "ds", "dqs")

    def size(self, name: str) -> int:
        return TILE * self.shape.depth if name == "dqs" else TILE * TILE

    def body(self) -> tuple[Stmt, ...]:
        c, s = self.code, self.shape
        tiles = -(-s.queries // TILE)
        with c.loop("task", 0, s.batch * s.heads * tiles, role=Role.PARALLEL) as task:
            number = c.index("tile", "sub", tiles - 1, c.index("turn", "mod", task, tiles)) if tiles > 1 else 0
            self.enter_head(c.index("head_of", "div", task, tiles))
            first, rows = self.tile("query", number, s.queries)
            self.clear("dqs", rows, s.depth)
            with c.loop("start", 0, self.keys_end(first), step=TILE) as start:
                stop = c.index("stop", "minimum", c.index("start_end", "add", start, TILE), s.keys)
                keys = c.index("keys", "sub", stop, start)
                self.slopes(first, rows, start, keys)
                sums, ds = Operand("dqs", Affine(), s.depth), Operand("ds", Affine(), TILE)
                self.product(sums, ds, self.rows_of("k", start), rows, s.depth, keys, add=True)
            self.copy_out("dqs", "dq", first, rows, s.depth)
        return tuple(c.out)
