"""Contractions that the microkernel does not serve: integers but int32, an empty sum, a row times narrow numbers.

A row of c at a time, as rows of b scaled and added. Then the epilogue, as in `graphc.kernels.contract_loops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from graphc.dtype import DType, float32, float64, int32
from graphc.kernels.contract_code import Bound, Code, place
from graphc.kernels.contract_epilogue import Epilogue, finish_row
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Axis, Problem, outer_sizes
from graphc.loop import Affine, Expr, Role, Scratch, Stmt, Var, call

__all__ = ["SimpleLoops", "is_simple"]

A, B = 0, 1
BLOCKED = (float32, float64, int32)  # what the microkernel adds
COLUMNS = 256  # of one task: enough for full vectors, and a few tasks for a layer's width

Indexed = list[tuple[Axis, Bound]]


def is_simple(p: Problem, dtype: DType, stored: Mapping[str, Stored]) -> bool:
    """``stored`` says how the factors lie in memory, where they are not of type ``dtype``."""
    return dtype not in BLOCKED or p.k_size == 0 or read_once(p, stored)


def read_once(p: Problem, stored: Mapping[str, Stored]) -> bool:
    """Whether b would be copied for a single row: widened as it is read, it costs its own bytes and no more."""
    return p.m.size == 1 and p.n.strides[B] == 1 and "b" in stored and not stored["b"].in_place


class SimpleLoops:
    """The statements of one contraction: tasks are rows, and ranges of columns. Scratch: ``row`` of sums."""

    def __init__(self, p: Problem, dtype: DType, epilogue: Epilogue, stored: Mapping[str, Stored]):
        self.p, self.dtype, self.epilogue = p, dtype, epilogue
        self.code = Code(dtype, ("a", "b", "row"), stored)
        self.width = min(p.n.size, COLUMNS)

    def scratch(self) -> tuple[Scratch, ...]:
        return (Scratch("row", self.dtype, self.width),)

    def body(self) -> tuple[Stmt, ...]:
        c, p = self.code, self.p
        parts = -(-p.n.size // self.width)
        with c.loop("task", 0, p.outer_size * p.m.size * parts, role=Role.PARALLEL) as task:
            *outer, m, part = c.unflatten(task, [*outer_sizes(p), ("m", p.m.size), ("n_part", parts)])
            axes = [*zip(p.outer, outer, strict=True), (p.m, m)]
            columns = c.part("column", part, self.width, p.n.size)
            start = place([(columns[0], -1)])
            self.rows(axes, columns, start)
            finish_row(c, self.epilogue, axes, p.n, columns, ("row", start))
        return tuple(c.out)

    def element(self, array: str, axes: Indexed, k: Var, n: Var) -> Expr:
        which, p = (A if array == "a" else B), self.p
        at = place((i, axis.strides[which]) for axis, i in axes)
        return self.code.load(array, at + place([(k, p.k.strides[which]), (n, p.n.strides[which])]))

    def over_k_outer(self, stack: ExitStack) -> Indexed:
        return [(axis, stack.enter_context(self.code.loop("k_out", 0, axis.size))) for axis in self.p.k_outer]

    def rows(self, axes: Indexed, columns: tuple[Bound, Bound], start: Affine) -> None:
        """``row = sum over k of a[k] * b[k, :]``."""
        c, p = self.code, self.p
        c.fill("row", start, *columns)
        with ExitStack() as stack:
            every = [*axes, *self.over_k_outer(stack)]
            k = stack.enter_context(c.loop("k", 0, p.k.size))
            j = stack.enter_context(c.lanes(*columns))
            at = start + Affine.of(j)
            a, b = (self.element(x, every, k, j) for x in "ab")
            c.store("row", at, self.multiply_add(a, b, c.load("row", at)))

    def multiply_add(self, a: Expr, b: Expr, c: Expr) -> Expr:
        return call("fma", a, b, c) if self.dtype.is_float else call("add", call("mul", a, b), c)
