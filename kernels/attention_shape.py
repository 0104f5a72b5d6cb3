"""Attention as its two lowerings see it: sizes, blocks, arrays with their strides, and the steps that both take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import ClassVar

from graphc.dtype import DType, TensorType
from graphc.ir import Attrs
from graphc.kernels.contract_code import Bound, Code, expr, place
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_schedule import Target, even
from graphc.kernels.plan import View
from graphc.loop import LINE, Affine, Const, Expr, Load, Operand, Var, call
from graphc.ops.base import Map, MapContext, get_op

__all__ = ["Attention", "Shape"]

GROUP = 4  # rows whose softmax advances together
_START = Affine()
KEY_BLOCK = 512  # keys at a time: a row of scores for a tile of queries stays in the first level of cache


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
    def query_tiles(self) -> int:
        return -(-self.queries // self.mr)

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
        self.batch: Bound = 0
        self.head: Bound = 0
        self.next: tuple[Bound, Bound] = (0, 0)  # batch and head of the task that comes next
        self.keys: tuple[Var, Var] | None = None

    # Arrays

    def enter_head(self, flat: Bound) -> None:
        """Name the batch and head of a flat index, and load what is the same for all of it."""
        self.batch, self.head = self.coordinates(flat)
        self.next = self.coordinates(self.code.index("flat_next", "add", flat, 1))
        if self.dropout:
            key0, key1 = (self.code.let(n, Load(n, Affine(), self.views[n].dtype)) for n in ("k0", "k1"))
            self.keys = (key0, key1)

    def coordinates(self, flat: Bound) -> tuple[Bound, Bound]:
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

    # Packing

    def fetch_next(self, names: Sequence[str], start: Bound, rows: int) -> None:
        """Some rows of the next head come to the second-level cache while this one is worked on."""
        c = self.code
        for name in names:
            view = self.views[name]
            if self.column(name) == 1:
                with c.loop("r", 0, rows) as r:
                    row = place(zip((*self.next, start, r), (*view.strides[:3], self.row(name)), strict=True))
                    for column in range(0, view.shape[3], LINE // view.dtype.itemsize):
                        c.prefetch(name, row + column, level=2)

    def fetch_scratch(self, name: str, start: Affine, size: int) -> None:
        """Bring ``size`` elements to the first-level cache."""
        c = self.code
        step = LINE // self.dtype.itemsize
        with c.loop("line", 0, size, step=step) as line:
            c.prefetch(name, start + Affine.of(line))

    def copy_rows(self, name: str, start: Bound, rows: Bound, columns: int, target: str, row: int) -> None:
        """``target[i, :] = name[start + i, :]``"""
        c = self.code
        with c.loop("row", 0, rows) as i, c.lanes(0, columns) as j:
            at = self.at(name, place([(start, 1), (i, 1)]), j)
            c.store(target, place([(i, row), (j, 1)]), c.load(name, at))

    def turn(self, name: str, row: Bound | Affine, lanes: int, columns: int, target: str, to: Affine = _START) -> None:
        """``lanes`` rows of ``name`` from ``row`` on as the columns of a panel [column][nr] of ``target``."""
        c, s = self.code, self.shape
        if self.column(name) == 1:
            source = Operand(name, self.at(name, row), self.row(name))
            c.transpose(Operand(target, to, s.nr), source, lanes, columns)
            return
        with c.loop("column", 0, columns) as d, c.lanes(0, lanes) as j:
            value = c.load(name, self.at(name, place([(row, 1), (j, 1)]), d))
            c.store(target, to + place([(d, s.nr), (j, 1)]), value)

    def copy_panels(self, name: str, start: Bound, stop: Bound, columns: int, target: str) -> None:
        """Rows of ``name`` from ``start`` to ``stop`` as columns: panels [panel][column][nr]."""
        c, s = self.code, self.shape

        def panel(at: Bound, lanes: int) -> None:
            row = place([(start, 1), (at, s.nr)])
            self.turn(name, row, lanes, columns, target, place([(at, columns * s.nr)]))

        total = c.index("rows", "sub", stop, start)
        if isinstance(total, int):
            c.tiles(0, -(-total // s.nr), total, s.nr, panel)
            return
        full = c.index("panels", "div", total, s.nr)
        with c.loop("panel", 0, full) as p:
            panel(p, s.nr)
        rest = self.shape.keys % s.nr
        if rest:
            with c.when("ne", c.index("rest", "mod", total, s.nr), 0):
                panel(full, rest)

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

    def limit(self, row: Bound, start: Bound, stop: Bound, more: int = 1) -> Bound:
        """How many keys, from ``start`` on, the queries before ``row + more`` may see."""
        c = self.code
        if not self.causal:
            return c.index("seen", "sub", stop, start)
        end = c.index("seen_end", "minimum", c.index("after", "add", row, more), stop)
        seen = c.index("seen", "sub", end, start)
        return seen if self.shape.blocks == 1 else c.index("seen", "maximum", seen, 0)

    def last_seen(self, row: Bound, start: Bound) -> Bound | None:
        """The last key, counted from ``start``, that query ``row`` sees; None for all."""
        return self.code.index("last_seen", "sub", row, start) if self.causal else None

    def masked(self, value: Expr, last: Bound | None, lane: Var, hidden: Const) -> Expr:
        """``value``, or ``hidden`` where the key of this lane comes after ``last``."""
        return value if last is None else call("select", call("le", lane, expr(last)), value, hidden)

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

    def kept(self, position: Bound, lane: Var, step: int) -> Var | None:
        """Whether dropout keeps the score of this lane (None: there is no dropout), where those of neighbouring lanes
        are ``step`` apart. The bits are those of op random_bits."""
        if self.keys is None:
            return None
        lowering = get_op("random_bits").lower
        assert isinstance(lowering, Map)
        kind = self.keys[0].dtype
        linear = call("add", expr(position), call("mul", lane, expr(step)) if step != 1 else lane)
        bits = lowering.fn(self.keys, MapContext({}, TensorType(kind, ()), (), linear))
        return self.code.let("keep", call("ge", bits, Const(int(self.dropout * 2**32), kind)))

    def dropped(self, value: Expr, keep: Var | None) -> Expr:
        """``value`` / (1 - p) where it is kept, else 0."""
        if keep is None:
            return value
        c = self.code
        return call("select", keep, call("mul", value, c.const(1 / (1 - self.dropout))), c.const(0.0))
