"""Explicit vectors in Numba: the vocabulary of the generated kernels.

A value of element type T is one scalar or a vector of lanes. Scalars of int64 and bool are Numba's own; every other
scalar and all vectors are `Lanes`, a Numba type around an LLVM scalar or vector, so that ``int32 + int32`` stays int32
and rounding is what the loop IR says. Where an operation meets a scalar and a vector, the scalar is broadcast.
Addresses are typed `Pointer` values, indexed in elements. Nothing here allocates, raises or calls a library.

A vector may be wider than a register; LLVM then uses several. Functions that take ``lanes`` want a literal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.types.misc import NoneType, VarArg, unliteral
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from graphc.dtype import DTYPES, DType, bool_, float64, int64
from graphc.kernels.cpu.lanes import (
    LANE_OPS,
    broadcast,
    cast,
    constant,
    element_type,
    horizontal,
    like,
    memory_type,
    vector_load,
    vector_store,
)
from graphc.kernels.cpu.lanes import ramp as ramp_constant
from graphc.kernels.cpu.math import MATH
from graphc.kernels.emit import short
from graphc.loop import COMPARISONS, Call, Const, Expr, Var

SHORT = {d: short(d) for d in DTYPES.values()}


class Lanes(types.Type):
    """``lanes`` values of element type ``dtype``; one lane is an LLVM scalar."""

    def __init__(self, dtype: DType, lanes: int):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"{SHORT[dtype]}x{lanes}")

    @property
    def llvm(self) -> ir.Type:
        element = element_type(self.dtype)
        return element if self.lanes == 1 else ir.VectorType(element, self.lanes)


class Pointer(types.Type):
    """The address of elements of type ``dtype``."""

    def __init__(self, dtype: DType):
        self.dtype = dtype
        super().__init__(f"{SHORT[dtype]}*")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Lanes):
        super().__init__(manager, lanes, lanes.llvm)


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, pointer: Pointer):
        super().__init__(manager, pointer, memory_type(pointer.dtype).as_pointer())


def kernel_function(literal: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function of generated kernels from its rule: argument types in, (signature, code generator) out.

    Numba's own ``@intrinsic`` does the same and drags in its array support. ``literal``: the rule wants the values of
    literal arguments.
    """

    def decorate(rule: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(rule)
        def function(*args: Any) -> Any:
            raise TypeError(f"{rule.__name__} has a meaning in compiled kernels only")

        class _Typing(AbstractTemplate):  # type: ignore[misc]
            key = function
            prefer_literal = literal

            def generic(self, args: Any, kws: Any) -> Any:
                return rule(*args)[0]

        def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
            return rule(*sig.args)[1](context, builder, sig, values)

        infer_global(function, types.Function(_Typing))
        lower_builtin(function, VarArg(types.Any))(build)
        return function

    return decorate


# Types of values -----------------------------------------------------------------------------------------------------


def _type(dtype: DType, lanes: int) -> types.Type:
    """The Numba type of ``lanes`` values."""
    if lanes == 1 and dtype == int64:
        return types.int64
    if lanes == 1 and dtype == bool_:
        return types.boolean
    return Lanes(dtype, lanes)


def _lanes(type_: types.Type) -> tuple[DType, int]:
    """Element type and number of lanes of a Numba type; Python's numbers are int64 and float64."""
    if isinstance(type_, Lanes):
        return type_.dtype, type_.lanes
    if isinstance(type_, types.Boolean | types.BooleanLiteral):
        return bool_, 1
    if isinstance(type_, types.Float):
        return float64, 1
    if isinstance(type_, types.Integer):
        return int64, 1
    raise TypeError(f"{type_} is not a value of a kernel")


def _spread(builder: ir.IRBuilder, value: Any, lanes: int) -> Any:
    return value if lanes == 1 or isinstance(value.type, ir.VectorType) else broadcast(builder, value, lanes)


# Operations on values ------------------------------------------------------------------------------------------------


def _apply(builder: ir.IRBuilder, name: str, args: list[tuple[Any, DType]], result: DType) -> tuple[Any, DType]:
    """One intrinsic on (value, element type) operands of one width. Functions of `MATH` are expanded here."""
    values, dtype = [v for v, _ in args], args[-1][1]
    if name == "cast":
        return cast(builder, values[0], dtype, result), result
    if name == "bitcast":
        return builder.bitcast(values[0], like(values[0], element_type(result))), result
    if (name, dtype) not in MATH:
        return LANE_OPS[name](builder, dtype, *values), result
    function = MATH[name, dtype]
    known: dict[str, tuple[Any, DType]] = {p.name: a for p, a in zip(function.params, args, strict=True)}

    def value(expr: Expr) -> tuple[Any, DType]:
        if isinstance(expr, Var):
            return known[expr.name]
        if isinstance(expr, Const):
            return constant(like(values[0], element_type(expr.dtype)), expr.value), expr.dtype
        assert isinstance(expr, Call)
        return _apply(builder, expr.name, [value(a) for a in expr.args], expr.dtype)

    for let in function.body:
        known[let.var.name] = value(let.expr)
    return value(function.result)


def _operation(name: str, types_: tuple[types.Type, ...]) -> Any:
    """Signature and code generator of intrinsic ``name`` on operands of these types."""
    kinds = [_lanes(t) for t in types_]
    lanes = max(n for _, n in kinds)
    result = bool_ if name in COMPARISONS else kinds[-1][0]

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        spread = [(_spread(builder, v, lanes), dtype) for v, (dtype, _) in zip(values, kinds, strict=True)]
        return _apply(builder, name, spread, result)[0]

    return _type(result, lanes)(*map(unliteral, types_)), build


def _unary(name: str) -> Any:
    return kernel_function()(_named(name, lambda a: _operation(name, (a,))))


def _binary(name: str) -> Any:
    return kernel_function()(_named(name, lambda a, b: _operation(name, (a, b))))


def _ternary(name: str) -> Any:
    return kernel_function()(_named(name, lambda a, b, c: _operation(name, (a, b, c))))


def _named(name: str, fn: Any) -> Any:
    fn.__name__ = name
    return fn


exp, log, tanh, erf, sigmoid, sin, cos = map(_unary, ("exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"))
sqrt, rsqrt, floor, ceil, round_, sign, abs_ = map(_unary, ("sqrt", "rsqrt", "floor", "ceil", "round", "sign", "abs"))
not_, neg = map(_unary, ("not", "neg"))
div, mod, pow_, minimum, maximum = map(_binary, ("div", "mod", "pow", "minimum", "maximum"))
shl, shr = map(_binary, ("shl", "shr"))
fma, select = map(_ternary, ("fma", "select"))


@kernel_function()
def threefry(k0: Any, k1: Any, c0: Any, c1: Any) -> Any:
    return _operation("threefry", (k0, k1, c0, c1))


_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "and": operator.and_,
    "or": operator.or_, "xor": operator.xor, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


def _define_operator(name: str, symbol: Callable[..., Any]) -> None:
    """Give Python's operator a meaning where at least one operand is a `Lanes`."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and any(isinstance(a, Lanes) for a in args):
                return signature(_operation(name, args)[0].return_type, *map(unliteral, args))
            return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        return _operation(name, sig.args)[1](context, builder, sig, values)

    for pair in ((Lanes, Lanes), (Lanes, types.Any), (types.Any, Lanes)):
        lower_builtin(symbol, *pair)(build)


for _name, _symbol in _OPERATORS.items():
    _define_operator(_name, _symbol)


# Constants, casts, broadcasts ----------------------------------------------------------------------------------------


def _caster(dtype: DType) -> Any:
    """``f32(x)`` and its siblings: conversion of a value, or a constant of that type."""

    def typing(a: Any) -> Any:
        source, lanes = _lanes(a)

        def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
            return cast(builder, values[0], source, dtype)

        return _type(dtype, lanes)(unliteral(a)), build

    return kernel_function()(_named(SHORT[dtype], typing))


f64, f32, i64, i32, i16, i8, u32, u8, b1 = map(_caster, DTYPES.values())


@kernel_function(literal=True)
def splat(value: Any, lanes: Any) -> Any:
    """``value`` in each of ``lanes`` lanes."""
    count = lanes.literal_value

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        return broadcast(builder, values[0], count)

    return Lanes(_lanes(value)[0], count)(unliteral(value), lanes), build


@kernel_function(literal=True)
def ramp(first: Any, lanes: Any) -> Any:
    """int64 lanes first, first + 1, …"""
    count = lanes.literal_value

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        return builder.add(broadcast(builder, values[0], count), ramp_constant(values[0].type, count))

    return Lanes(int64, count)(types.int64, lanes), build


@kernel_function(literal=True)
def below(active: Any, lanes: Any) -> Any:
    """The mask of the first ``active`` (< 2^31) of ``lanes`` lanes."""
    count = lanes.literal_value

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        limit = broadcast(builder, builder.trunc(values[0], ir.IntType(32)), count)
        return builder.icmp_signed("<", ramp_constant(ir.IntType(32), count), limit)

    return Lanes(bool_, count)(types.int64, lanes), build


def _fold(combine: str) -> Any:
    """All lanes of a vector combined into a scalar, in a fixed order."""

    def typing(a: Any) -> Any:
        def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
            return horizontal(builder, combine, a.dtype, values[0])

        return _type(a.dtype, 1)(a), build

    return kernel_function()(_named(f"fold_{combine}", typing))


fold_add, fold_mul, fold_maximum, fold_minimum = map(_fold, ("add", "mul", "maximum", "minimum"))


# Memory --------------------------------------------------------------------------------------------------------------


@kernel_function()
def word(args: Any, index: Any) -> Any:
    """Word ``index`` of the argument table, as int64."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        table = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(table, [values[1]]), align=8)

    return types.int64(types.int64, types.int64), build


@kernel_function()
def share(trips: Any, tid: Any, nthreads: Any) -> Any:
    """First of ``trips`` iterations that belongs to thread ``tid``: trips * tid // nthreads (all non-negative)."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        return builder.udiv(builder.mul(values[0], values[1]), values[2])

    return types.int64(types.int64, types.int64, types.int64), build


def _pointer(dtype: DType) -> Any:
    """``f32_at(address)``: the address (int64) as a typed pointer."""

    def typing(address: Any) -> Any:
        def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], memory_type(dtype).as_pointer())

        return Pointer(dtype)(types.int64), build

    return kernel_function()(_named(f"{SHORT[dtype]}_at", typing))


f64_at, f32_at, i64_at, i32_at, i16_at, i8_at, u32_at, u8_at, b1_at = map(_pointer, DTYPES.values())


def _from_memory(builder: ir.IRBuilder, dtype: DType, raw: Any) -> Any:
    return builder.icmp_unsigned("!=", raw, constant(raw.type, 0)) if dtype == bool_ else raw


def _to_memory(builder: ir.IRBuilder, dtype: DType, value: Any) -> Any:
    return builder.zext(value, like(value, ir.IntType(8))) if dtype == bool_ else value


@kernel_function()
def load(pointer: Any, index: Any) -> Any:
    """The scalar ``pointer[index]``."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        raw = builder.load(builder.gep(values[0], [values[1]]), align=pointer.dtype.itemsize)
        return _from_memory(builder, pointer.dtype, raw)

    return _type(pointer.dtype, 1)(pointer, types.int64), build


@kernel_function(literal=True)
def vload(pointer: Any, index: Any, stride: Any, lanes: Any, mask: Any) -> Any:
    """``lanes`` elements ``pointer[index + stride * lane]``; ``mask`` is None or says which to touch (others are 0)."""
    dtype, step, count = pointer.dtype, stride.literal_value, lanes.literal_value

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        active = None if isinstance(mask, NoneType) else values[4]
        return _from_memory(
            builder, dtype, vector_load(builder, dtype, builder.gep(values[0], [values[1]]), step, count, active)
        )

    return Lanes(dtype, count)(pointer, types.int64, stride, lanes, mask), build


@kernel_function(literal=True)
def store(pointer: Any, index: Any, value: Any) -> Any:
    """``pointer[index] = value`` for a scalar."""
    value = unliteral(value)

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        raw = _to_memory(builder, pointer.dtype, values[2])
        builder.store(raw, builder.gep(values[0], [values[1]]), align=pointer.dtype.itemsize)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, value), build


@kernel_function(literal=True)
def vstore(pointer: Any, index: Any, stride: Any, value: Any, mask: Any) -> Any:
    """``pointer[index + stride * lane] = value`` for the lanes of ``mask`` (None: all)."""
    dtype, step = pointer.dtype, stride.literal_value

    def build(context: Any, builder: ir.IRBuilder, sig: Any, values: Any) -> Any:
        active = None if isinstance(mask, NoneType) else values[4]
        first, raw = builder.gep(values[0], [values[1]]), _to_memory(builder, dtype, values[3])
        vector_store(builder, dtype, first, step, raw, active)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, stride, value, mask), build
