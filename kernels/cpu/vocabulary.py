"""The words of the generated kernels: what each gives for operands of some kinds, and the LLVM IR that it becomes.

A value is one scalar or a vector of lanes of one element type. Where an operation meets a scalar and a vector, the
scalar is broadcast. Addresses are typed `Pointer` values, indexed in elements. Nothing here allocates, raises at run
time or calls a library. A vector may be wider than a register; LLVM then uses several.

A word is a rule: kinds of operands in, (kind of the result, code generator) out. Two front ends use the same rules:
`graphc.kernels.cpu.frontend`, which graphc compiles with, and Numba, through `graphc.kernels.cpu.vector`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llvmlite import ir

from graphc.dtype import DTYPES, DType, bool_, int64
from graphc.kernels.cpu import matrix
from graphc.kernels.cpu.lanes import (
    LANE_OPS,
    broadcast,
    cast,
    constant,
    element_type,
    first_lanes,
    horizontal,
    like,
    memory_type,
    opaque,
    prefetch,
    ramp,
    vector_load,
    vector_store,
)
from graphc.kernels.cpu.math import MATH
from graphc.kernels.emit_text import short
from graphc.loop import COMPARISONS, Call, Const, Expr, Var

__all__ = [
    "INT",
    "INTRINSICS",
    "OPERATORS",
    "PURE",
    "SHORT",
    "WORDS",
    "Build",
    "Kind",
    "Lanes",
    "Pointer",
    "Rule",
    "advance",
    "operation",
]

Value = Any  # llvmlite.ir.Value

SHORT = {d: short(d) for d in DTYPES.values()}


@dataclass(frozen=True, slots=True)
class Lanes:
    """``count`` values of element type ``dtype``; one lane is an LLVM scalar. ``literal``: the number that stands in
    the text, where the value is one."""

    dtype: DType
    count: int = 1
    literal: int | None = None

    @property
    def llvm(self) -> ir.Type:
        element = element_type(self.dtype)
        return element if self.count == 1 else ir.VectorType(element, self.count)


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of elements of type ``dtype``."""

    dtype: DType

    @property
    def llvm(self) -> ir.Type:
        return memory_type(self.dtype).as_pointer()


Kind = Lanes | Pointer | None  # None: Python's None, and what a word gives that gives nothing
Build = Callable[..., Value]  # (builder, values of the operands…) → value of the result
Rule = Callable[..., tuple[Kind, Build]]

INT = Lanes(int64)
_BOOL = Lanes(bool_)


# Operations on values ------------------------------------------------------------------------------------------------


def operation(name: str, *operands: Lanes) -> tuple[Kind, Build]:
    """The intrinsic ``name`` of the loop IR. Its result has the type of the last operand, or bool for comparisons."""
    lanes = max(k.count for k in operands)
    result = bool_ if name in COMPARISONS else operands[-1].dtype

    def build(builder: ir.IRBuilder, *values: Value) -> Value:
        spread = [(_spread(builder, v, lanes), k.dtype) for v, k in zip(values, operands, strict=True)]
        return _apply(builder, name, spread, result)[0]

    return Lanes(result, lanes), build


def _spread(builder: ir.IRBuilder, value: Value, lanes: int) -> Value:
    return value if lanes == 1 or isinstance(value.type, ir.VectorType) else broadcast(builder, value, lanes)


def _apply(builder: ir.IRBuilder, name: str, args: list[tuple[Value, DType]], result: DType) -> tuple[Value, DType]:
    """One intrinsic on (value, element type) operands of one width. Functions of `MATH` are expanded here."""
    values, dtype = [v for v, _ in args], args[-1][1]
    if name == "cast":
        return cast(builder, values[0], dtype, result), result
    if name == "bitcast":
        return builder.bitcast(values[0], like(values[0], element_type(result))), result
    if (name, dtype) not in MATH:
        return LANE_OPS[name](builder, dtype, *values), result
    function = MATH[name, dtype]
    known: dict[str, tuple[Value, DType]] = {p.name: a for p, a in zip(function.params, args, strict=True)}

    def value(expr: Expr) -> tuple[Value, DType]:
        if isinstance(expr, Var):
            return known[expr.name]
        if isinstance(expr, Const):
            return constant(like(values[0], element_type(expr.dtype)), expr.value), expr.dtype
        assert isinstance(expr, Call)
        return _apply(builder, expr.name, [value(a) for a in expr.args], expr.dtype)

    for let in function.body:
        known[let.var.name] = value(let.expr)
    return value(function.result)


# Python's operators and the intrinsics that they stand for
OPERATORS = {
    "+": "add", "-": "sub", "*": "mul", "/": "div", "&": "and", "|": "or", "^": "xor",
    "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge",
}  # fmt: skip

_TAKEN = frozenset({"abs", "not", "pow", "round"})  # names that mean something in Python


# Constants, casts, broadcasts ----------------------------------------------------------------------------------------


def _cast(dtype: DType, a: Lanes) -> tuple[Kind, Build]:
    """``f32(x)`` and its siblings: conversion of a value, or a constant of that type."""
    return Lanes(dtype, a.count), lambda builder, value: cast(builder, value, a.dtype, dtype)


def _splat(value: Lanes, lanes: Lanes) -> tuple[Kind, Build]:
    """``splat(value, lanes)``: ``value`` in each lane."""
    count = _literal(lanes)
    return Lanes(value.dtype, count), lambda builder, value, _: broadcast(builder, value, count)


def _ramp(first: Lanes, lanes: Lanes) -> tuple[Kind, Build]:
    """``ramp(first, lanes)``: int64 lanes first, first + 1, …"""
    count = _literal(lanes)

    def build(builder: ir.IRBuilder, first: Value, _: Value) -> Value:
        return builder.add(broadcast(builder, first, count), ramp(first.type, count))

    return Lanes(int64, count), build


def _below(active: Lanes, lanes: Lanes) -> tuple[Kind, Build]:
    """``below(active, lanes)``: the mask of the first ``active`` (< 2^31) lanes."""
    count, known = _literal(lanes), active.literal

    def build(builder: ir.IRBuilder, active: Value, _: Value) -> Value:
        if known is not None:
            return first_lanes(known, count)
        # Opaque, so that LLVM does not find out that it is one: see `vector_store`.
        limit = broadcast(builder, opaque(builder, builder.trunc(active, ir.IntType(32))), count)
        return builder.icmp_signed("<", ramp(ir.IntType(32), count), limit)

    return Lanes(bool_, count), build


def _fold(combine: str, a: Lanes) -> tuple[Kind, Build]:
    """``fold_add(x)`` and its siblings: all lanes of a vector combined into a scalar, in a fixed order."""
    return Lanes(a.dtype), lambda builder, value: horizontal(builder, combine, a.dtype, value)


def _literal(operand: Lanes) -> int:
    assert operand.literal is not None, "a number has to stand here"
    return operand.literal


# Memory --------------------------------------------------------------------------------------------------------------


def _word(args: Lanes, index: Lanes) -> tuple[Kind, Build]:
    """``word(args, index)``: word ``index`` of the argument table, as int64."""

    def build(builder: ir.IRBuilder, args: Value, index: Value) -> Value:
        table = builder.inttoptr(args, ir.IntType(64).as_pointer())
        return builder.load(builder.gep(table, [index]), align=8)

    return INT, build


def _share(trips: Lanes, tid: Lanes, nthreads: Lanes) -> tuple[Kind, Build]:
    """``share(trips, tid, nthreads)``: the first of ``trips`` iterations that belongs to thread ``tid``, which is
    trips * tid // nthreads (all non-negative)."""
    return INT, lambda builder, trips, tid, nthreads: builder.udiv(builder.mul(trips, tid), nthreads)


def _pointer(dtype: DType, address: Lanes) -> tuple[Kind, Build]:
    """``f32_at(address)``: the address (int64) as a typed pointer."""
    pointer = Pointer(dtype)
    return pointer, lambda builder, address: builder.inttoptr(address, pointer.llvm)


def advance(pointer: Pointer, index: Lanes) -> tuple[Kind, Build]:
    """The pointer to element ``index``: no word, but what the front end makes of a pointer and an index."""
    return pointer, lambda builder, pointer, index: builder.gep(pointer, [index])


def _from_memory(builder: ir.IRBuilder, dtype: DType, raw: Value) -> Value:
    return builder.icmp_unsigned("!=", raw, constant(raw.type, 0)) if dtype == bool_ else raw


def _to_memory(builder: ir.IRBuilder, dtype: DType, value: Value) -> Value:
    return builder.zext(value, like(value, ir.IntType(8))) if dtype == bool_ else value


def _load(pointer: Pointer, index: Lanes) -> tuple[Kind, Build]:
    """``load(pointer, index)``: the scalar ``pointer[index]``."""
    dtype = pointer.dtype

    def build(builder: ir.IRBuilder, pointer: Value, index: Value) -> Value:
        return _from_memory(builder, dtype, builder.load(builder.gep(pointer, [index]), align=dtype.itemsize))

    return Lanes(dtype), build


def _vload(pointer: Pointer, index: Lanes, stride: Lanes, lanes: Lanes, mask: Kind) -> tuple[Kind, Build]:
    """``vload(pointer, index, stride, lanes, mask)``: elements ``pointer[index + stride * lane]``; ``mask`` is None or
    says which to touch (the others are 0)."""
    dtype, step, count = pointer.dtype, _literal(stride), _literal(lanes)

    def build(builder: ir.IRBuilder, pointer: Value, index: Value, _s: Value, _l: Value, active: Value) -> Value:
        first = builder.gep(pointer, [index])
        return _from_memory(builder, dtype, vector_load(builder, dtype, first, step, count, mask and active))

    return Lanes(dtype, count), build


def _store(pointer: Pointer, index: Lanes, value: Lanes) -> tuple[Kind, Build]:
    """``store(pointer, index, value)``: ``pointer[index] = value`` for a scalar."""
    dtype = pointer.dtype

    def build(builder: ir.IRBuilder, pointer: Value, index: Value, value: Value) -> None:
        builder.store(_to_memory(builder, dtype, value), builder.gep(pointer, [index]), align=dtype.itemsize)

    return None, build


def _vstore(pointer: Pointer, index: Lanes, stride: Lanes, value: Lanes, mask: Kind) -> tuple[Kind, Build]:
    """``vstore(pointer, index, stride, value, mask)``: ``pointer[index + stride * lane] = value`` for the lanes of
    ``mask`` (None: all)."""
    dtype, step = pointer.dtype, _literal(stride)

    def build(builder: ir.IRBuilder, pointer: Value, index: Value, _: Value, value: Value, active: Value) -> None:
        first, raw = builder.gep(pointer, [index]), _to_memory(builder, dtype, value)
        vector_store(builder, dtype, first, step, raw, mask and active)

    return None, build


def _prefetch(pointer: Pointer, index: Lanes, level: Lanes) -> tuple[Kind, Build]:
    """``prefetch(pointer, index, level)``: the line of element ``index`` is brought to the cache of ``level``."""
    locality = 4 - _literal(level)

    def build(builder: ir.IRBuilder, pointer: Value, index: Value, _: Value) -> None:
        prefetch(builder, builder.gep(pointer, [index]), locality)

    return None, build


# Tile registers ------------------------------------------------------------------------------------------------------


def _tiles_set_up() -> tuple[Kind, Build]:
    """``tiles_set_up()``: from here on, block products may use the tile registers."""
    return None, matrix.set_up


def _tiles_release() -> tuple[Kind, Build]:
    """``tiles_release()``: after the last of those."""
    return None, matrix.release


# All words -----------------------------------------------------------------------------------------------------------

# The intrinsics that have no operator, and division, of which integers have one of their own.
INTRINSICS: dict[str, Rule] = {
    f"{n}_" if n in _TAKEN else n: partial(operation, n)
    for n in sorted({*LANE_OPS, *(name for name, _ in MATH)} - {*OPERATORS.values()} | {"div"})
}
WORDS: dict[str, Rule] = {
    **INTRINSICS,
    **{SHORT[d]: partial(_cast, d) for d in DTYPES.values()},
    **{f"{SHORT[d]}_at": partial(_pointer, d) for d in DTYPES.values()},
    **{f"fold_{combine}": partial(_fold, combine) for combine in ("add", "mul", "maximum", "minimum")},
    "splat": _splat, "ramp": _ramp, "below": _below, "word": _word, "share": _share,
    "load": _load, "vload": _vload, "store": _store, "vstore": _vstore, "prefetch": _prefetch,
    "tiles_set_up": _tiles_set_up, "tiles_release": _tiles_release,
}  # fmt: skip
# Words that depend on nothing but their operands, and do nothing else
PURE = frozenset(WORDS) - {
    "word", "load", "vload", "store", "vstore", "prefetch", "tiles_set_up", "tiles_release"
}  # fmt: skip
