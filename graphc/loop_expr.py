"""Expressions of the loop IR: what `graphc.loop` says of values and of places in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphc.dtype import DType, bool_, holds, int64

__all__ = [
    "COMBINE", "COMPARISONS", "Affine", "Call", "Const", "Expr", "Load", "Var", "call", "converted", "identity",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Const:
    value: int | float | bool
    dtype: DType


@dataclass(frozen=True, slots=True)
class Var:
    """A loop index, a Let, an Acc or an int64 Param, by name (unique in its kernel)."""

    name: str
    dtype: DType = int64


@dataclass(frozen=True, slots=True)
class Affine:
    """``offset + sum(coefficient * var)`` in elements; vars are int64 scalars (loop indices, Lets, params)."""

    offset: int = 0
    terms: tuple[tuple[Var, int], ...] = ()

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.offset + other, self.terms)
        merged: dict[Var, int] = dict(self.terms)
        for var, coef in other.terms:
            merged[var] = merged.get(var, 0) + coef
        return Affine(self.offset + other.offset, tuple((v, c) for v, c in merged.items() if c))

    def __mul__(self, factor: int) -> Affine:
        return Affine(self.offset * factor, tuple((v, c * factor) for v, c in self.terms if c * factor))

    def coefficient(self, var: Var) -> int:
        return dict(self.terms).get(var, 0)

    @classmethod
    def of(cls, var: Var, coef: int = 1, offset: int = 0) -> Affine:
        return cls(offset, ((var, coef),) if coef else ())


@dataclass(frozen=True, slots=True)
class Load:
    buffer: str
    index: Affine
    dtype: DType


@dataclass(frozen=True, slots=True)
class Call:
    """A scalar intrinsic. The set is closed and small; every target's table must have every one::

    add sub mul div fma neg abs minimum maximum mod        arithmetic (integer div and mod floor)
    exp log sqrt rsqrt tanh erf sin cos sigmoid pow floor ceil round sign   float functions
    eq ne lt le gt ge                                      comparison, result bool
    and or xor not shl shr                                 bool and integer
    select(cond, a, b)   cast(x)   bitcast(x)              to ``dtype``: the value, or the bits
    threefry(k0, k1, c0, c1)                               Threefry-2x32-20, first word, uint32

    Values of a 16-bit float type are loaded, stored, selected and cast; everything else is done in float32.
    """

    name: str
    args: tuple[Expr, ...]
    dtype: DType


Expr = Const | Var | Load | Call

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
# How an accumulator takes in a value: the intrinsic behind each `Acc.combine`.
COMBINE = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}


def call(name: str, *args: Expr, dtype: DType | None = None) -> Call:
    """A Call whose result has the dtype of its last argument, bool for comparisons, or ``dtype``."""
    return Call(name, args, dtype or (bool_ if name in COMPARISONS else args[-1].dtype))


def converted(expr: Expr, to: DType) -> Expr:
    """``expr`` as a float of type ``to`` (or as it is), without a cast where one there is undone."""
    if expr.dtype == to:
        return expr
    if isinstance(expr, Const):
        return Const(expr.value, to)
    if isinstance(expr, Call):
        if expr.name == "cast" and expr.args[0].dtype == to and holds(expr.dtype, to):
            return expr.args[0]
        if expr.name == "select" and all(_was(to, a) for a in expr.args[1:]):
            return Call("select", (expr.args[0], *(converted(a, to) for a in expr.args[1:])), to)
    return Call("cast", (expr,), to)


def _was(narrow: DType, expr: Expr) -> bool:
    """Whether ``expr`` is a widened value of type ``narrow``, or a number of that type."""
    if isinstance(expr, Const):
        return bool(narrow.numpy.type(expr.value) == expr.value)
    return isinstance(expr, Call) and expr.name == "cast" and expr.args[0].dtype == narrow


def identity(combine: str, dtype: DType) -> Const:
    """The value that ``combine`` leaves unchanged: 0, 1, or the lowest or highest value of the type."""
    if combine in ("sum", "prod"):
        return Const(dtype.numpy.type(combine == "prod").item(), dtype)
    if dtype.is_float:
        return Const(float("-inf") if combine == "max" else float("inf"), dtype)
    if dtype.kind == "b":
        return Const(combine == "min", dtype)
    info = np.iinfo(dtype.numpy)
    return Const(int(info.min if combine == "max" else info.max), dtype)
