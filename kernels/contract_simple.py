"""Contractions that the microkernel does not serve: integers, an empty sum, and products with a vector.

A row of c at a time: either dot products along k (both operands contiguous along k and few rows), or rows of b scaled
and added. Then the epilogue, as in `graphc.kernels.contract_loops`.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.dtype import DType, int64
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_index import Bound, Names, epilogue_row, expr, fill, place, unflatten
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.plan import View
from graphc.loop import Acc, Affine, Const, Expr, Let, Load, Loop, Role, Scratch, Stmt, Store, Update, Var, call

__all__ = ["SimpleLoops", "is_simple"]

A, B, C = 0, 1, 2
COLUMNS = 256  # of one task: enough for full vectors, and a few tasks for a layer's width


def is_simple(p: Problem, dtype: DType) -> bool:
    return not dtype.is_float or p.k_size == 0 or along_k(p)


def along_k(p: Problem) -> bool:
    """Whether dot products along k beat panels: packing b would cost more than the few rows of a repay."""
    return p.m.size <= 4 and p.k.strides[A] == p.k.strides[B] == 1 and p.n.strides[B] != 1


class SimpleLoops:
    """The statements of one contraction: tasks are rows, and ranges of columns."""

    def __init__(self, p: Problem, dtype: DType, epilogue: Epilogue, results: Sequence[View]):
        self.p, self.dtype, self.epilogue = p, dtype, epilogue
        self.names = Names()
        self.width = min(p.n.size, COLUMNS)

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("row", self.dtype, self.width),)

    def body(self) -> tuple[Stmt, ...]:
        p, names, out = self.p, self.names, list[Stmt]()
        parts = -(-p.n.size // self.width)
        task = names.var("task")
        *outer, m, part = unflatten(names, "at", task, [*(axis.size for axis in p.outer), p.m.size, parts], out)
        axes = [*zip(p.outer, outer, strict=True), (p.m, m)]
        columns: tuple[Bound, Bound] = (0, p.n.size)
        start: Affine = Affine()
        if parts > 1:
            first, end, stop = names.var("column"), names.var("column_end"), names.var("column_stop")
            out.append(Let(first, call("mul", expr(part), Const(self.width, int64))))
            out.append(Let(end, call("add", first, Const(self.width, int64))))
            out.append(Let(stop, call("minimum", end, Const(p.n.size, int64))))
            columns, start = (first, stop), Affine.of(first, -1)
        product = self.dots if along_k(p) and self.dtype.is_float else self.rows
        out += product(axes, columns, start)
        out.append(epilogue_row(self.epilogue, names, axes, p.n, columns, ("row", start, self.dtype)))
        return (Loop(task, p.outer_size * p.m.size * parts, tuple(out), Role.PARALLEL),)

    def element(self, array: str, axes: Sequence[tuple[Axis, Bound]], k: Var, n: Var) -> Load:
        which = A if array == "a" else B
        at = place((i, axis.strides[which]) for axis, i in axes)
        return Load(
            array, at + Affine.of(k, self.p.k.strides[which]) + Affine.of(n, self.p.n.strides[which]), self.dtype
        )

    def rows(self, axes: list[tuple[Axis, Bound]], columns: tuple[Bound, Bound], start: Affine) -> list[Stmt]:
        """``row = sum over k of a[k] * b[k, :]``."""
        names, p = self.names, self.p
        zero = fill(names, "row", start, 1, 0, columns, self.dtype)
        k, j = names.var("k"), names.var("j")
        outer = [(axis, names.var("k_out")) for axis in p.k_outer]
        at = start + Affine.of(j)
        every = [*axes, *outer]
        value = self.multiply_add(
            self.element("a", every, k, j), self.element("b", every, k, j), Load("row", at, self.dtype)
        )
        inner: Stmt = Loop(k, p.k.size, (Loop(j, columns[1], (Store("row", at, value),), Role.VECTOR, columns[0]),))
        for axis, var in reversed(outer):
            inner = Loop(var, axis.size, (inner,))
        return [zero, inner]

    def dots(self, axes: list[tuple[Axis, Bound]], columns: tuple[Bound, Bound], start: Affine) -> list[Stmt]:
        """``row[j] = sum over k of a[k] * b[k, j]``, each a reduction along contiguous memory."""
        names, p = self.names, self.p
        j, k, total = names.var("column_at"), names.var("k"), names.var("total", self.dtype)
        outer = [(axis, names.var("k_out")) for axis in p.k_outer]
        every = [*axes, *outer]
        term = call("mul", self.element("a", every, k, j), self.element("b", every, k, j))
        inner: Stmt = Loop(k, p.k.size, (Update(total, term),), Role.VECTOR, unroll=4)
        for axis, var in reversed(outer):
            inner = Loop(var, axis.size, (inner,))
        store = Store("row", start + Affine.of(j), total)
        return [Loop(j, columns[1], (Acc(total, "sum"), inner, store), start=columns[0])]

    def multiply_add(self, a: Expr, b: Expr, c: Expr) -> Expr:
        return call("fma", a, b, c) if self.dtype.is_float else call("add", call("mul", a, b), c)
