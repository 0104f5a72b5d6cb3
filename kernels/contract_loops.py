"""The loops of a blocked product: pack panels of b, walk tiles of a, call the microkernel, run the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from graphc.dtype import DType, int64
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_index import Bound, Names, add, epilogue_row, expr, fill, least, place, unflatten
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.contract_schedule import Schedule
from graphc.kernels.plan import View
from graphc.loop import (
    Affine,
    Const,
    Contract,
    If,
    Let,
    Load,
    Loop,
    Operand,
    Role,
    Scratch,
    Stmt,
    Store,
    Transpose,
    Var,
    call,
)

__all__ = ["Loops"]

A, B, C = 0, 1, 2

Indexed = list[tuple[Axis, Bound]]


class Loops:
    """The statements of one contraction under one schedule.

    One PARALLEL loop over tasks (outer axes × m ranges × n ranges); in a task, for each group of panels: for each slab
    of k: pack the panels, then for each tile of rows: blocks of k × panels of microkernel calls, then the epilogue.
    """

    def __init__(self, p: Problem, s: Schedule, dtype: DType, epilogue: Epilogue, results: Sequence[View]):
        self.p, self.s, self.dtype, self.epilogue = p, s, dtype, epilogue
        self.names = Names()
        self.direct = epilogue.identity and p.n.strides[C] == 1
        self.k_steps = prod(axis.size for axis in p.k_outer) * -(-p.k.size // s.k_slab)
        self.slabbed = s.k_slab < p.k.size  # then the outer axes of k are slabs, too
        self.outer: Indexed = []
        self.k_outer: Indexed = []

    # Memory

    def scratch(self) -> tuple[Scratch, ...]:
        p, s, out = self.p, self.s, []
        depth = s.k_slab if self.slabbed else p.k_size
        if s.pack_b:
            out.append(Scratch("panels", self.dtype, s.chunk * depth * s.nr))
        if s.pack_a:
            out.append(Scratch("tile_a", self.dtype, s.mr * max(self.tile_a.row, s.k_block)))
        if not self.direct:
            rows = s.rows * s.mr if self.slabbed else s.mr
            out.append(Scratch("tile_c", self.dtype, rows * s.chunk * s.nr))
        return tuple(out)

    # Tasks

    def body(self) -> tuple[Stmt, ...]:
        p, s, names = self.p, self.s, self.names
        task, out = names.var("task"), list[Stmt]()
        *outer, mt, nt = unflatten(names, "at", task, [*(axis.size for axis in p.outer), s.m_tasks, s.n_tasks], out)
        self.outer = list(zip(p.outer, outer, strict=True))
        rows = self.range("tile", mt, s.m_tasks, s.rows, s.m_tiles, out)
        panels = self.range("panel", nt, s.n_tasks, s.panels, s.n_panels, out)
        first, last = panels
        if s.chunk >= s.panels:
            out += self.group(rows, panels)
        else:
            start = names.var("group")
            inner: list[Stmt] = []
            stop = add(names, "group_end", start, s.chunk, inner)
            inner.append(Let(stop2 := names.var("group_stop"), call("minimum", expr(stop), expr(last))))
            inner += self.group(rows, (start, stop2))
            out.append(Loop(start, last, tuple(inner), start=first, step=s.chunk))
        return (Loop(task, p.outer_size * s.m_tasks * s.n_tasks, tuple(out), Role.PARALLEL),)

    def range(self, name: str, task: Bound, tasks: int, each: int, total: int, out: list[Stmt]) -> tuple[Bound, Bound]:
        """The part of ``total`` things that belongs to ``task``."""
        if tasks == 1:
            return 0, total
        out.append(Let(first := self.names.var(f"{name}_first"), call("mul", expr(task), Const(each, int64))))
        last = add(self.names, f"{name}_end", first, each, out)
        return first, last if tasks * each == total else least(self.names, f"{name}_last", last, total, out)

    # Panels of b

    def group(self, rows: tuple[Bound, Bound], panels: tuple[Bound, Bound]) -> list[Stmt]:
        """All of k for one group of panels."""
        if not self.slabbed:
            return [*self.pack(panels, 0, self.p.k.size), *self.tiles(rows, panels, (0, self.p.k.size), None)]
        p, s, names = self.p, self.s, self.names
        slab, out = names.var("slab"), list[Stmt]()
        per_axis = -(-p.k.size // s.k_slab)
        *outer, part = unflatten(names, "k_at", slab, [*(axis.size for axis in p.k_outer), per_axis], out)
        self.k_outer = list(zip(p.k_outer, outer, strict=True))
        k_range = self.range("k", part, per_axis, s.k_slab, p.k.size, out)
        out += self.pack(panels, *k_range)
        out += self.tiles(rows, panels, k_range, slab)
        return [Loop(slab, self.k_steps, tuple(out))]

    def pack(self, panels: tuple[Bound, Bound], start: Bound, stop: Bound) -> list[Stmt]:
        if not self.s.pack_b:
            return []

        def copy(k: Bound, panel: Bound, columns: int) -> list[Stmt]:
            j = self.names.var("j")
            source = self.b_at(k, panel) + Affine.of(j, self.p.n.strides[B])
            target = self.packed(k, start, panel, panels[0]) + Affine.of(j)
            return [Loop(j, columns, (Store("panels", target, Load("b", source, self.dtype)),), Role.VECTOR)]

        def rows_first() -> list[Stmt]:
            return [self.loop("k", start, stop, lambda k: self.over_panels(panels, lambda at, n: copy(k, at, n)))]

        def panels_first() -> list[Stmt]:
            return self.over_panels(panels, lambda at, n: [self.loop("k", start, stop, lambda k: copy(k, at, n))])

        def panels_turned() -> list[Stmt]:
            out: list[Stmt] = []
            depth = self.difference("k_count", stop, start, out)

            def turn(at: Bound, n: int) -> list[Stmt]:
                source = Operand("b", self.b_at(start, at), self.p.n.strides[B])
                return [
                    Transpose(
                        Operand("panels", self.packed(start, start, at, panels[0]), self.s.nr),
                        source,
                        n,
                        depth,
                        self.dtype,
                    )
                ]

            return out + self.over_panels(panels, turn)

        # In the order in which b lies in memory.
        if self.p.n.strides[B] == 1:
            return self.over_k_outer(rows_first)
        return self.over_k_outer(panels_turned if self.p.k.strides[B] == 1 else panels_first)

    def packed(self, k: Bound, start: Bound, panel: Bound, first: Bound) -> Affine:
        """Where row ``k`` of ``panel`` lies in the packed panels."""
        p, s = self.p, self.s
        depth = s.k_slab if self.slabbed else p.k_size
        at = place([(k, s.nr), (panel, depth * s.nr), (first, -depth * s.nr)])
        if self.slabbed:
            return at + place([(start, -s.nr)])
        below = p.k.size
        for axis, i in reversed(self.k_outer):
            at = at + place([(i, below * s.nr)])
            below *= axis.size
        return at

    def b_at(self, k: Bound, panel: Bound) -> Affine:
        p = self.p
        return self.base(B) + place([(k, p.k.strides[B]), (panel, self.s.nr * p.n.strides[B])])

    def base(self, array: int) -> Affine:
        return place((i, axis.strides[array]) for axis, i in self.outer + self.k_outer)

    # Tiles of c

    def tiles(
        self, rows: tuple[Bound, Bound], panels: tuple[Bound, Bound], k_range: tuple[Bound, Bound], slab: Var | None
    ) -> list[Stmt]:
        full, rest = divmod(self.p.m.size, self.s.mr)
        first, last = rows
        out: list[Stmt] = []

        def tile(at: Bound, m: int) -> list[Stmt]:
            return self.tile(at, m, first, panels, k_range, slab)

        stop = least(self.names, "tile_stop", last, full, out) if rest else last
        if full:
            out.append(self.loop("tile", first, stop, lambda at: tile(at, self.s.mr)))
        return out + (self.only_if_last(last, self.s.m_tiles, tile(full, rest)) if rest else [])

    def tile(
        self,
        at: Bound,
        m: int,
        first: Bound,
        panels: tuple[Bound, Bound],
        k_range: tuple[Bound, Bound],
        slab: Var | None,
    ) -> list[Stmt]:
        """One tile of ``m`` rows across the panels: its products, then its epilogue."""
        p, s, names = self.p, self.s, self.names
        out: list[Stmt] = []
        columns = self.columns(panels, out)
        if self.direct:
            buffer, row = "y0", p.m.strides[C]
            origin = self.base(C) + place([(at, s.mr * row)])
        else:
            buffer, row = "tile_c", s.chunk * s.nr
            origin = place([(panels[0], -s.nr)])
            if slab is not None:
                origin = origin + place([(at, s.mr * row), (first, -s.mr * row)])
        once = slab is None and not p.k_outer and s.k_block >= p.k.size
        if not once:
            zero = fill(names, buffer, origin, m, row, columns, self.dtype)
            out.append(zero if slab is None else If(call("eq", slab, Const(0, int64)), (zero,)))
        out += self.products(at, m, panels, k_range, (buffer, origin, row), accumulate=not once)
        if self.direct:
            return out
        r = names.var("r")
        axes: list[tuple[Axis, Bound | Affine]] = [*self.outer, (p.m, place([(at, s.mr), (r, 1)]))]
        place_c = (buffer, origin + Affine.of(r, row), self.dtype)
        finish = Loop(r, m, (epilogue_row(self.epilogue, names, axes, p.n, columns, place_c),))
        out.append(finish if slab is None else If(call("eq", slab, Const(self.k_steps - 1, int64)), (finish,)))
        return out

    def columns(self, panels: tuple[Bound, Bound], out: list[Stmt]) -> tuple[Bound, Bound]:
        """The columns of c that the panels cover."""
        first, last = panels
        nr, n = self.s.nr, self.p.n.size

        def scaled(name: str, bound: Bound) -> Bound:
            if isinstance(bound, int):
                return bound * nr
            out.append(Let(var := self.names.var(name), call("mul", bound, Const(nr, int64))))
            return var

        start, stop = scaled("column", first), scaled("column_end", last)
        return start, least(self.names, "column_stop", stop, n, out) if n % nr else stop

    def products(
        self,
        at: Bound,
        m: int,
        panels: tuple[Bound, Bound],
        k_range: tuple[Bound, Bound],
        target: tuple[str, Affine, int],
        accumulate: bool,
    ) -> list[Stmt]:
        p, s, names = self.p, self.s, self.names
        buffer, origin, row = target
        start, stop = k_range

        def block(k: Bound, depth: Bound) -> list[Stmt]:
            out: list[Stmt] = []
            where = self.base(A) + place([(at, s.mr * p.m.strides[A]), (k, p.k.strides[A])])
            a = Operand("a", where, p.m.strides[A], p.k.strides[A])
            if s.pack_a:
                out.append(self.copy_a(a, m, depth))
                a = self.tile_a

            def panel(column: Bound, n: int) -> list[Stmt]:
                if s.pack_b:
                    b = Operand("panels", self.packed(k, start, column, panels[0]), s.nr)
                else:
                    b = Operand("b", self.b_at(k, column), p.k.strides[B])
                c = Operand(buffer, origin + place([(column, s.nr)]), row)
                return [Contract(c, a, b, m, n, depth, self.dtype, accumulate)]

            return out + self.over_panels(panels, panel)

        def blocks() -> list[Stmt]:
            if s.k_block >= s.k_slab:
                out: list[Stmt] = []
                depth = self.difference("depth", stop, start, out)
                return out + block(start, depth)
            k = names.var("k")
            if isinstance(start, int) and isinstance(stop, int) and (stop - start) % s.k_block == 0:
                return [Loop(k, stop, tuple(block(k, s.k_block)), start=start, step=s.k_block)]
            out = []
            depth = least(names, "depth", self.difference("k_left", stop, k, out), s.k_block, out)
            return [Loop(k, stop, (*out, *block(k, depth)), start=start, step=s.k_block)]

        return self.over_k_outer(blocks)

    @property
    def tile_a(self) -> Operand:
        """The copied tile of a: rows where they are contiguous, else columns, so that loads are in order."""
        if self.p.k.strides[A] == 1:
            return Operand("tile_a", Affine(), self.s.k_block + self.s.nr // 2, 1)
        return Operand("tile_a", Affine(), 1, self.s.mr)

    def copy_a(self, a: Operand, m: int, depth: Bound) -> Stmt:
        k, i = self.names.var("k"), self.names.var("i")
        copy = self.tile_a
        source = a.index + Affine.of(k, a.col) + Affine.of(i, a.row)
        store = Store("tile_a", Affine.of(i, copy.row) + Affine.of(k, copy.col), Load("a", source, self.dtype))
        if copy.col == 1:
            return Loop(i, m, (Loop(k, depth, (store,), Role.VECTOR),))
        return Loop(k, depth, (Loop(i, m, (store,), Role.VECTOR),))

    # Loops

    def difference(self, name: str, a: Bound, b: Bound, out: list[Stmt]) -> Bound:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        out.append(Let(var := self.names.var(name), call("sub", expr(a), expr(b))))
        return var

    def loop(self, name: str, start: Bound, stop: Bound, body: Callable[[Var], list[Stmt]]) -> Stmt:
        var = self.names.var(name)
        return Loop(var, stop, tuple(body(var)), start=start)

    def over_k_outer(self, body: Callable[[], list[Stmt]]) -> list[Stmt]:
        """``body`` for every index of the outer axes of k (in one slab; between slabs they are fixed)."""
        if self.slabbed or not self.p.k_outer:
            return body()
        outer = [(axis, self.names.var("k_out")) for axis in self.p.k_outer]
        self.k_outer = list(outer)
        inner = body()
        self.k_outer = []
        for axis, var in reversed(outer):
            inner = [Loop(var, axis.size, tuple(inner))]
        return inner

    def over_panels(self, panels: tuple[Bound, Bound], body: Callable[[Bound, int], list[Stmt]]) -> list[Stmt]:
        """``body(panel, columns)`` for every panel; the last of all may be narrow."""
        full, rest = divmod(self.p.n.size, self.s.nr)
        first, last = panels
        out: list[Stmt] = []
        stop = least(self.names, "panel_stop", last, full, out) if rest else last
        if full:
            out.append(self.loop("panel", first, stop, lambda at: body(at, self.s.nr)))
        return out + (self.only_if_last(last, self.s.n_panels, body(full, rest)) if rest else [])

    def only_if_last(self, last: Bound, total: int, body: list[Stmt]) -> list[Stmt]:
        if isinstance(last, int):
            return body if last == total else []
        return [If(call("eq", last, Const(total, int64)), tuple(body))]
