"""Attention as its two lowerings see it: sizes, blocks, arrays with their strides, and the steps that both take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import ClassVar

from graphc.dtype import DType, TensorType, bool_, finfo
from graphc.ir import Attrs
from graphc.kernels.contract_code import Bound, Code, expr, place
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_schedule import Target, even
from graphc.kernels.plan import View
from graphc.loop import Acc, Affine, Ahead, Const, Expr, Load, Operand, Var, call
from graphc.ops.base import Map, MapContext, get_op

__all__ = ["Attention", "Shape"]

GROUP = 4  # rows whose sums advance together
KEY_BLOCK = 512  # keys at a time: their scores for a panel of queries stay in the nearest caches


@dataclass(frozen=True, slots=True)
class Shape:
    """``batch`` × ``heads`` problems of ``queries`` × ``keys`` scores over ``depth`` elements, values of ``width``.

    ``mr`` × ``nr`` is the register tile; ``block`` keys are worked on at a time, a multiple of both unless it is all.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    mr: int
    nr: int
    block: int

    @classmethod
    def of(cls, q: View, k: View, v: View, target: Target) -> Shape:
        b, h, queries, depth = q.shape
        keys, width = k.shape[2], v.shape[3]
        mr, nr = target.tile(q.dtype.computed)
        step = lcm(mr, nr)
        block = keys if keys <= KEY_BLOCK else -(-even(keys, KEY_BLOCK) // step) * step
        return cls(b, h, queries, keys, depth, width, mr, nr, min(block, keys))

    @property
    def blocks(self) -> int:
        return -(-self.keys // self.block)

    @property
    def query_panels(self) -> int:
        return -(-self.queries // self.nr)

    def panels(self, columns: int) -> int:
        """``columns`` rounded up to whole panels."""
        return -(-columns // self.nr) * self.nr

    def aligned(self, columns: int) -> int:
        """The row stride of a scratch matrix: whole vectors, so that rows are aligned."""
        lanes = max(1, self.nr // 2)
        return -(-columns // lanes) * lanes


class Attention:
    """What forward and backward share: the arrays of one head, packing, masks and dropout."""

    title: ClassVar[str]  # of the kernel
    what: ClassVar[str]  # it computes, as its description begins
    buffers: ClassVar[tuple[str, ...]] = ()  # names in scratch memory

    def __init__(self, shape: Shape, dtype: DType, attrs: Attrs, views: Mapping[str, View]):
        self.shape, self.dtype, self.views = shape, dtype, views
        self.causal: bool = attrs["is_causal"]
        self.scale: float = attrs["scale"]
        self.dropout: float = attrs["dropout_p"]
        halves = {name: Stored(v.dtype, dtype) for name, v in views.items() if v.dtype.is_half}
        self.code = Code(dtype, [*views, *self.buffers], halves)
        mask = views.get("mask")
        self.masked = mask is not None
        self.keys_masked = mask is not None and mask.shape[2] == 1  # alike for all queries of a head
        self.batch: Bound = 0
        self.head: Bound = 0
        # Of scores: where there may be nothing but minus infinity, it leaves exponentials of 0.
        self.lowest = finfo(dtype).min if self.masked else float("-inf")
        self.visible: Bound = shape.keys  # no key of the head from here on is seen
        self.keys: tuple[Var, Var] | None = None
        self.fetches = False  # rows of the next head, while this one is worked on
        self.next_head: tuple[Bound, Bound] = (0, 0)

    # Arrays

    def enter_head(self, flat: Bound) -> None:
        """Name the batch and head of a flat index, and load what is the same for all of it."""
        c = self.code
        self.batch, self.head = self.head_at(flat)
        if self.dropout:
            key0, key1 = (c.let(n, Load(n, Affine(), self.views[n].dtype)) for n in ("k0", "k1"))
            self.keys = (key0, key1)
        if self.keys_masked:
            self.visible = self.after_last_key()
        if self.fetches:
            self.next_head = self.head_at(self.code.index("next", "add", flat, 1))

    def head_at(self, flat: Bound) -> tuple[Bound, Bound]:
        """The batch and head of a flat index."""
        c, s = self.code, self.shape
        if s.batch == 1:
            return 0, flat
        return c.index("batch", "div", flat, s.heads), c.index("head", "mod", flat, s.heads)

    def at(self, name: str, row: Bound | Affine, column: Bound | Affine = 0) -> Affine:
        """The place of an element of the current head in an array [B, H, T, D] or [B, H, T]."""
        strides = self.views[name].strides
        where = (self.batch, self.head, row, column)
        return place(zip(where[: len(strides)], strides, strict=True))

    def row(self, name: str) -> int:
        return self.views[name].strides[2]

    def column(self, name: str) -> int:
        return self.views[name].strides[3]

    # What comes next

    def has_room(self, names: Sequence[str]) -> bool:
        """Whether rows of ``names`` of the next head can be fetched: each is a piece of memory, and the products of a
        head, whose steps are as many as its keys, have steps for half of q, k and v or more."""
        s = self.shape
        enough = s.queries == s.keys >= 2 * s.nr * (2 if self.causal else 1)
        return enough and all(self.column(name) == 1 for name in names)

    def panel_ahead(self, query: Bound, panel: Bound, tile: Bound) -> tuple[Ahead, ...]:
        """What the product of a tile of the queries from ``query`` on and a panel of columns fetches: rows of k, v and
        q of the next head, as many for each panel of queries as suit its work."""
        if not self.fetches:
            return ()
        c, s = self.code, self.shape
        tiles = -(-s.nr // s.mr)
        rows = -(-s.nr * (2 if self.causal else 1) // (tiles * -(-s.width // s.nr)))
        first = c.index("so_far", "div", c.index("square", "mul", query, query), s.queries) if self.causal else query
        turn = c.index("turn", "add", c.index("turns", "mul", panel, tiles), tile)
        row = c.index("row_ahead", "add", first, c.index("rows_ahead", "mul", turn, rows))
        return self.rows_ahead(("k", "v", "q"), row, rows)

    def rows_ahead(self, names: Sequence[str], row: Bound, rows: int) -> tuple[Ahead, ...]:
        """``rows`` rows, from ``row`` on, of arrays of the next head."""
        if not self.fetches:
            return ()
        here, (self.batch, self.head) = (self.batch, self.head), self.next_head
        starts = [self.at(name, row) for name in names]
        self.batch, self.head = here
        views = [self.views[name] for name in names]
        return tuple(
            Ahead(n, at, v.strides[2], rows, v.shape[3], v.dtype) for n, at, v in zip(names, starts, views, strict=True)
        )

    # Packing

    def copy_rows(
        self, name: str, start: Bound, rows: Bound, columns: int, target: str, row: int, scale: float = 1.0
    ) -> None:
        """``target[i, :] = name[start + i, :] * scale``"""
        c = self.code
        with c.loop("row", 0, rows) as i, c.lanes(0, columns) as j:
            at = self.at(name, place([(start, 1), (i, 1)]), j)
            value = c.load(name, at)
            c.store(target, place([(i, row), (j, 1)]), value if scale == 1 else c.fn("mul", value, c.const(scale)))

    def copy_panels(
        self, name: str, start: Bound, rows: Bound, columns: int, target: str, height: int, scale: float = 1.0
    ) -> None:
        """Rows of ``name``, scaled, as panels [panel][row][nr] of ``height`` rows, which lie in all sets of a cache."""
        c, s = self.code, self.shape
        with c.loop("row", 0, rows) as i:

            def panel(at: Bound, width: int) -> None:
                with c.lanes(0, width) as j:
                    value = c.load(name, self.at(name, place([(start, 1), (i, 1)]), place([(at, s.nr), (j, 1)])))
                    into = place([(at, height * s.nr), (i, s.nr), (j, 1)])
                    c.store(target, into, value if scale == 1 else c.fn("mul", value, c.const(scale)))

            self.over_columns(columns, panel)

    def over_columns(self, columns: int, body: Callable[[Bound, int], None]) -> None:
        """``body(panel, width)`` for the panels of ``columns``."""
        self.code.tiles(0, -(-columns // self.shape.nr), columns, self.shape.nr, body)

    def turn(self, name: str, row: Bound, lanes: int, columns: int, target: str) -> None:
        """``lanes`` rows of ``name`` from ``row`` on as the columns of a panel [column][nr]."""
        c, s = self.code, self.shape
        if self.column(name) == 1:
            source = Operand(name, self.at(name, row), self.row(name))
            c.transpose(Operand(target, Affine(), s.nr), source, lanes, columns)
            return
        with c.loop("column", 0, columns) as d, c.lanes(0, lanes) as j:
            value = c.load(name, self.at(name, place([(row, 1), (j, 1)]), d))
            c.store(target, place([(d, s.nr), (j, 1)]), value)

    # Products

    def products(
        self,
        into: Operand,
        a: Operand,
        b: str,
        depth: int,
        query: Bound,
        lanes: int,
        start: Bound,
        keys: Bound,
        seen: Bound,
    ) -> None:
        """into[key, query] = a bᵀ for a panel of queries, turned into ``b``, and the first ``seen`` of ``keys``.

        Tiles of keys that only the second half of the queries sees are half as wide."""
        c, s = self.code, self.shape
        tiles = c.index("tiles", "div", c.index("seen_up", "add", seen, s.mr - 1), s.mr)
        half = s.nr // 2 if self.causal and lanes > s.nr // 2 else 0
        narrow = tiles
        if half:
            ahead = c.index("ahead", "sub", c.index("half_query", "add", query, half + s.mr - 1), start)
            narrow = c.index("narrow", "minimum", c.index("near", "div", ahead, s.mr), tiles)
            narrow = narrow if s.blocks == 1 else c.index("narrow", "maximum", narrow, 0)

        def tile(at: Bound, rows: int, skip: int) -> None:
            target = Operand(into.buffer, into.index + place([(at, s.mr * into.row)]) + skip, into.row)
            left = Operand(a.buffer, a.index + place([(at, s.mr * a.row)]), a.row)
            c.contract(target, left, Operand(b, Affine(skip), s.nr), rows, lanes - skip, depth)

        full = c.index("full", "div", keys, s.mr)
        with c.loop("tile", 0, c.index("wide_stop", "minimum", narrow, full)) as at:
            tile(at, s.mr, 0)
        if half:
            with c.loop("tile", narrow, c.index("tile_stop", "minimum", tiles, full)) as at:
                tile(at, s.mr, half)
        self.short(tiles, full, s.mr, lambda at, rows: tile(at, rows, 0))

    # Keys

    def over_keys(self, keys: Bound, stop: Bound, size: int, body: Callable[[Bound, int], None]) -> None:
        """``body(group, rows)`` for the groups of ``size`` keys before ``stop`` of a block of ``keys``."""
        c = self.code
        full = c.index("full", "div", keys, size)
        with c.loop("group", 0, c.index("full_stop", "minimum", stop, full)) as group:
            body(group, size)
        self.short(stop, full, size, body)

    def short(self, stop: Bound, full: Bound, size: int, body: Callable[[Bound, int], None]) -> None:
        """``body`` for the short group after ``full`` ones, which only the last block of keys may have."""
        if self.shape.keys % size:
            with self.code.when("gt", stop, full) as holds:
                if holds:
                    body(full, self.shape.keys % size)

    # Masks and dropout

    def limit(self, row: Bound, start: Bound, stop: Bound, more: int) -> Bound:
        """How many keys, from ``start`` on, the queries before ``row + more`` may see."""
        c = self.code
        end = c.index("seen_end", "minimum", stop, self.visible) if self.keys_masked else stop
        if self.causal:
            end = c.index("seen_end", "minimum", c.index("after", "add", row, more), end)
        if end is stop:
            return c.index("seen", "sub", stop, start)
        seen = c.index("seen", "sub", end, start)
        return seen if self.shape.blocks == 1 else c.index("seen", "maximum", seen, 0)

    def after_last_key(self) -> Bound:
        """The number of the key after the last one that the mask shows."""
        c = self.code
        last = c.names.var("after_last")
        c.out.append(Acc(last, "max"))
        with c.lanes(0, self.shape.keys) as key:
            c.update(last, call("select", self.shown(0, key), call("add", key, expr(1)), expr(0)))
        return c.let("visible", last)

    def shown(self, query: Bound | Affine, key: Bound | Affine) -> Load:
        """Whether the mask shows a key to a query."""
        view = self.views["mask"]
        where = zip((self.batch, self.head, query, key), view.shape, view.strides, strict=True)
        return Load("mask", place((at, 0 if size == 1 else stride) for at, size, stride in where), bool_)

    def norm(self, total: Expr) -> Expr:
        """What the weights of a query, ``total`` together, are divided by: 1 where it sees no key."""
        c = self.code
        return call("select", call("eq", total, c.const(0.0)), c.const(1.0), total) if self.masked else total

    def shown_and_hidden(self, key: Bound, shown: Callable[[], None], hidden: Callable[[], None]) -> None:
        """``shown()`` for a key that the mask shows to all queries, ``hidden()`` for one that it hides."""
        if not self.keys_masked:
            shown()
            return
        seen = self.shown(0, key)
        with self.code.given(seen):
            shown()
        with self.code.given(call("not", seen)):
            hidden()

    def in_groups(self, rows: int, body: Callable[[Bound, int], None]) -> None:
        """``body(first, count)`` for ``rows`` rows, `GROUP` of them at a time."""
        whole = rows // GROUP * GROUP
        if whole:
            with self.code.loop("r", 0, whole, step=GROUP) as r:
                body(r, GROUP)
        if rows % GROUP:
            body(whole, rows % GROUP)

    def row_position(self, row: Bound, start: Bound) -> Bound:
        """The linear index, in the whole [B, H, T, T], of the score of query ``row`` and key ``start``."""
        if not self.dropout:
            return 0
        c, s = self.code, self.shape
        head = c.index("head_at", "add", c.index("batch_at", "mul", self.batch, s.heads), self.head)
        query = c.index("query_at", "add", c.index("queries_at", "mul", head, s.queries), row)
        return c.index("position", "add", c.index("scores_at", "mul", query, s.keys), start)

    def kept(self, position: Bound, lane: Var) -> Var | None:
        """Whether dropout keeps the score of the query of this lane (None: there is no dropout), where ``position`` is
        that of lane 0. The bits are those of op random_bits."""
        if self.keys is None:
            return None
        lowering = get_op("random_bits").lower
        assert isinstance(lowering, Map)
        kind = self.keys[0].dtype
        linear = call("add", expr(position), call("mul", lane, expr(self.shape.keys)))
        bits = lowering.fn(self.keys, MapContext({}, TensorType(kind, ()), (), linear))
        return self.code.let("keep", call("ge", bits, Const(int(self.dropout * 2**32), kind)))

    def dropped(self, value: Expr, keep: Var | None) -> Expr:
        """``value`` / (1 - p) where it is kept, else 0."""
        if keep is None:
            return value
        c = self.code
        return call("select", keep, call("mul", value, c.const(1 / (1 - self.dropout))), c.const(0.0))
