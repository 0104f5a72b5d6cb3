"""The loop IR's intrinsics as LLVM IR, for scalars and for vectors of lanes alike.

Every function takes the builder, the element type of its operands and the LLVM values (all of one type) and returns the
result's value. No fast-math flag is ever set, and mul and add stay apart: rounding is what the loop IR says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from graphc.dtype import DType, bfloat16, float16, float32, float64

__all__ = [
    "LANE_OPS", "broadcast", "cast", "constant", "element_type", "first_lanes", "horizontal", "like",
    "llvm_call", "memory_type", "opaque", "prefetch", "ramp", "vector_load", "vector_store",
]  # fmt: skip

Value = Any  # llvmlite.ir.Value
LaneOp = Callable[..., Value]

_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
# A bfloat16 is its bits: LLVM's own type would call a library where the machine has no instruction for the rounding.
_FLOATS = {float64: ir.DoubleType(), float32: ir.FloatType(), float16: ir.HalfType(), bfloat16: _INT16}


# Types and constants -------------------------------------------------------------------------------------------------


def element_type(dtype: DType) -> ir.Type:
    """The LLVM type of one lane; a bool lane is one bit."""
    if dtype.is_float:
        return _FLOATS[dtype]
    return ir.IntType(1 if dtype.kind == "b" else 8 * dtype.itemsize)


def memory_type(dtype: DType) -> ir.Type:
    """The LLVM type of one element in memory; a bool takes a byte."""
    return ir.IntType(8) if dtype.kind == "b" else element_type(dtype)


def like(value: Value, element: ir.Type) -> ir.Type:
    """``element`` with as many lanes as ``value`` has."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


class _Splat(ir.Constant):  # type: ignore[misc]
    """One number in every lane, in LLVM's short notation."""

    def __init__(self, type_: ir.VectorType, element: ir.Constant):
        self.type, self.constant = type_, (element,)  # the base class would repeat the element for each lane

    def _get_reference(self) -> str:
        return f"splat ({self.constant[0]})"


class _Poison(ir.Constant):  # type: ignore[misc]
    """A vector of which no lane is ever looked at, in LLVM's short notation."""

    def _get_reference(self) -> str:
        return "poison"


def constant(type_: ir.Type, number: float) -> ir.Constant:
    """``number`` in every lane."""
    if isinstance(type_, ir.VectorType):
        return _Splat(type_, ir.Constant(type_.element, number))
    return ir.Constant(type_, number)


def broadcast(builder: ir.IRBuilder, scalar: Value, lanes: int) -> Value:
    """A vector with ``scalar`` in every lane."""
    if isinstance(scalar, ir.Constant):
        return constant(ir.VectorType(scalar.type, lanes), scalar.constant)
    nothing = _Poison(ir.VectorType(scalar.type, lanes), None)
    one = builder.insert_element(nothing, scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_INT32, lanes), None))


def ramp(element: ir.Type, lanes: int) -> ir.Constant:
    """The constant 0, 1, 2, …"""
    return ir.Constant(ir.VectorType(element, lanes), [ir.Constant(element, i) for i in range(lanes)])


def first_lanes(active: int, lanes: int) -> ir.Constant:
    """The mask of the first ``active`` lanes."""
    bit = ir.IntType(1)
    return ir.Constant(ir.VectorType(bit, lanes), [ir.Constant(bit, int(i < active)) for i in range(lanes)])


def opaque(builder: ir.IRBuilder, value: Value) -> Value:
    """``value``, an integer, in a register of which LLVM knows nothing. It costs no instruction."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def _suffix(type_: ir.Type) -> str:
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{_suffix(type_.element)}"
    if isinstance(type_, ir.PointerType):
        return "p0"
    return {"float": "f32", "double": "f64"}.get(str(type_), str(type_))


def llvm_call(builder: ir.IRBuilder, name: str, *args: Value, result: ir.Type | None = None) -> Value:
    """Call of an overloaded LLVM intrinsic, such as ``llvm.sqrt``."""
    result = result or args[0].type
    full = f"llvm.{name}.{_suffix(result)}" + ("" if result == args[0].type else f".{_suffix(args[0].type)}")
    module = builder.module
    fn = module.globals.get(full) or ir.Function(module, ir.FunctionType(result, [a.type for a in args]), full)
    return builder.call(fn, args)


# Arithmetic ----------------------------------------------------------------------------------------------------------


def _arith(float_op: str, int_op: str) -> LaneOp:
    def op(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
        return getattr(builder, float_op if dtype.is_float else int_op)(a, b)

    return op


def _neg(builder: ir.IRBuilder, dtype: DType, a: Value) -> Value:
    return builder.fneg(a) if dtype.is_float else builder.sub(constant(a.type, 0), a)


def _abs(builder: ir.IRBuilder, dtype: DType, a: Value) -> Value:
    if dtype.is_float:
        return llvm_call(builder, "fabs", a)
    if dtype.kind != "i":
        return a
    return builder.select(builder.icmp_signed("<", a, constant(a.type, 0)), _neg(builder, dtype, a), a)


def _fma(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value, c: Value) -> Value:
    return llvm_call(builder, "fma", a, b, c) if dtype.is_float else builder.add(builder.mul(a, b), c)


def _number(value: Value) -> Any:
    """The number that a constant holds, the same in every lane; None where there is no such number."""
    if isinstance(value, _Splat):
        value = value.constant[0]
    one = value.constant if isinstance(value, ir.Constant) else None
    return one if isinstance(one, int | float) else None


def _safe_divisor(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> tuple[Value, Value]:
    """(bad, divisor): where the machine's division would trap, ``bad`` holds and the divisor is 1."""
    bad = builder.icmp_signed("==", b, constant(b.type, 0))
    if dtype.kind == "i":
        minimum = constant(a.type, -(1 << (8 * dtype.itemsize - 1)))
        lowest = builder.icmp_signed("==", a, minimum)
        overflow = builder.and_(lowest, builder.icmp_signed("==", b, constant(b.type, -1)))
        bad = builder.or_(bad, overflow)
    return bad, builder.select(bad, constant(b.type, 1), b)


def _div(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
    """Floats: IEEE. Integers: floor; x / 0 is 0 and the lowest value / -1 is itself."""
    if dtype.is_float:
        return builder.fdiv(a, b)
    number, zero = _number(b) or 0, constant(a.type, 0)
    if dtype.kind == "i" and number > 0 and number & (number - 1) == 0:
        return builder.ashr(a, constant(a.type, number.bit_length() - 1))
    if dtype.kind == "i" and number > 0:
        quotient = builder.sdiv(a, b)
        rest = builder.sub(a, builder.mul(quotient, b))
        return builder.sub(quotient, builder.zext(builder.icmp_signed("<", rest, zero), a.type))
    _, divisor = _safe_divisor(builder, dtype, a, b)
    if dtype.kind != "i":
        quotient = builder.udiv(a, divisor)
    else:
        quotient = builder.sdiv(a, divisor)
        rest = builder.sub(a, builder.mul(quotient, divisor))
        opposite = builder.icmp_signed("<", builder.xor(rest, divisor), zero)
        down = builder.and_(builder.icmp_signed("!=", rest, zero), opposite)
        quotient = builder.sub(quotient, builder.zext(down, a.type))
    return builder.select(builder.icmp_signed("==", b, zero), zero, quotient)


def _mod(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
    """Integers: the rest of the floor division; x mod 0 is 0."""
    number, zero = _number(b) or 0, constant(a.type, 0)
    if dtype.kind == "i" and number > 0 and number & (number - 1) == 0:
        return builder.and_(a, constant(a.type, number - 1))
    if dtype.kind == "i" and number > 0:
        rest = builder.srem(a, b)
        return builder.select(builder.icmp_signed("<", rest, zero), builder.add(rest, b), rest)
    bad, divisor = _safe_divisor(builder, dtype, a, b)
    if dtype.kind != "i":
        return builder.select(bad, zero, builder.urem(a, divisor))
    rest = builder.srem(a, divisor)
    opposite = builder.icmp_signed("<", builder.xor(rest, divisor), zero)
    fix = builder.and_(builder.icmp_signed("!=", rest, zero), opposite)
    rest = builder.select(fix, builder.add(rest, divisor), rest)
    return builder.select(bad, zero, rest)


def _extreme(relation: str) -> LaneOp:
    """Maximum or minimum; a NaN in either operand gives NaN, as in NumPy."""

    def op(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
        if dtype.is_float:
            chosen = builder.select(builder.fcmp_ordered(relation, a, b), a, b)
            return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)
        compare = builder.icmp_signed if dtype.kind == "i" else builder.icmp_unsigned
        return builder.select(compare(relation, a, b), a, b)

    return op


def _sign(builder: ir.IRBuilder, dtype: DType, a: Value) -> Value:
    """-1, 0 or 1; NaN stays NaN, and the sum with 0 makes -0 to 0, as in NumPy."""
    zero, one = constant(a.type, 0), constant(a.type, 1)
    positive, negative = _compare(">")(builder, dtype, a, zero), _compare("<")(builder, dtype, a, zero)
    rest = builder.fadd(a, zero) if dtype.is_float else zero
    return builder.select(positive, one, builder.select(negative, constant(a.type, -1), rest))


def _compare(relation: str) -> LaneOp:
    def op(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
        if dtype.is_float:
            return (builder.fcmp_unordered if relation == "!=" else builder.fcmp_ordered)(relation, a, b)
        return (builder.icmp_signed if dtype.kind == "i" else builder.icmp_unsigned)(relation, a, b)

    return op


def _shift(int_op: str, unsigned_op: str) -> LaneOp:
    """Shifts; a count outside the width gives 0 (arithmetic right: the sign)."""

    def op(builder: ir.IRBuilder, dtype: DType, a: Value, b: Value) -> Value:
        width = 8 * dtype.itemsize
        inside = builder.icmp_unsigned("<", b, constant(b.type, width))
        arithmetic = dtype.kind == "i" and int_op == "ashr"
        count = builder.select(inside, b, constant(b.type, width - 1 if arithmetic else 0))
        shifted = getattr(builder, int_op if dtype.kind == "i" else unsigned_op)(a, count)
        return shifted if arithmetic else builder.select(inside, shifted, constant(a.type, 0))

    return op


def _select(builder: ir.IRBuilder, dtype: DType, cond: Value, a: Value, b: Value) -> Value:
    return builder.select(cond, a, b)


def _unary(intrinsic: str) -> LaneOp:
    """A float function of LLVM; integers are left as they are (floor, ceil, round)."""

    def op(builder: ir.IRBuilder, dtype: DType, a: Value) -> Value:
        return llvm_call(builder, intrinsic, a) if dtype.is_float else a

    return op


def _rsqrt(builder: ir.IRBuilder, dtype: DType, a: Value) -> Value:
    return builder.fdiv(constant(a.type, 1.0), llvm_call(builder, "sqrt", a))


LANE_OPS: dict[str, LaneOp] = {
    "add": _arith("fadd", "add"),
    "sub": _arith("fsub", "sub"),
    "mul": _arith("fmul", "mul"),
    "div": _div,
    "mod": _mod,
    "fma": _fma,
    "neg": _neg,
    "abs": _abs,
    "minimum": _extreme("<"),
    "maximum": _extreme(">"),
    "sqrt": _unary("sqrt"),
    "rsqrt": _rsqrt,
    "floor": _unary("floor"),
    "ceil": _unary("ceil"),
    "round": _unary("roundeven"),
    "sign": _sign,
    "eq": _compare("=="),
    "ne": _compare("!="),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "and": lambda builder, dtype, a, b: builder.and_(a, b),
    "or": lambda builder, dtype, a, b: builder.or_(a, b),
    "xor": lambda builder, dtype, a, b: builder.xor(a, b),
    "not": lambda builder, dtype, a: builder.not_(a),
    "shl": _shift("shl", "shl"),
    "shr": _shift("ashr", "lshr"),
    "select": _select,
}


# Casts and reductions ------------------------------------------------------------------------------------------------


def cast(builder: ir.IRBuilder, a: Value, source: DType, target: DType) -> Value:
    """``a`` as ``target``. Float to integer truncates and saturates (NaN gives 0); to bool compares with 0."""
    to = like(a, element_type(target))
    if source == target:
        return a
    if target.is_half:
        return _narrowed(builder, cast(builder, a, source, float32), target)
    if source.is_half:
        return cast(builder, _widened(builder, a, source), float32, target)
    number = _number(a)
    if number is not None and target.is_float and source.is_float:
        return constant(to, number)
    if number is not None and target.is_integer and source.is_integer:
        return constant(to, _wrapped(number, target))
    if target.kind == "b":
        return _compare("!=")(builder, source, a, constant(a.type, 0))
    if source.is_float:
        if target.is_float:
            return (builder.fpext if target.itemsize > source.itemsize else builder.fptrunc)(a, to)
        return llvm_call(builder, "fptosi.sat" if target.kind == "i" else "fptoui.sat", a, result=to)
    if target.is_float:
        return (builder.sitofp if source.kind == "i" else builder.uitofp)(a, to)
    if source.kind != "b" and target.itemsize <= source.itemsize:
        return a if target.itemsize == source.itemsize else builder.trunc(a, to)
    return (builder.sext if source.kind == "i" else builder.zext)(a, to)


def _wrapped(number: int, dtype: DType) -> int:
    """``number`` modulo 2^bits, in the range of ``dtype``."""
    bits = 8 * dtype.itemsize
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    return (number - low) % (1 << bits) + low


def _widened(builder: ir.IRBuilder, a: Value, source: DType) -> Value:
    """A 16-bit float in float32, exactly. A bfloat16 is the upper half of one."""
    to = like(a, _FLOATS[float32])
    if source == float16:
        return builder.fpext(a, to)
    bits = builder.zext(a, like(a, _INT32))
    return builder.bitcast(builder.shl(bits, constant(bits.type, 16)), to)


def _narrowed(builder: ir.IRBuilder, a: Value, target: DType) -> Value:
    """A float32 in 16 bits, rounded to nearest, ties to even.

    For bfloat16 the bits are rounded as an integer: a carry out of the fraction goes where it belongs. Only a NaN could
    become something else that way; it keeps its upper half, with the quiet bit set."""
    if target == float16:
        return builder.fptrunc(a, like(a, _FLOATS[float16]))
    bits = builder.bitcast(a, like(a, _INT32))

    def number(value: int) -> Value:
        return constant(bits.type, value)

    upper = builder.lshr(bits, number(16))
    half = builder.add(number(0x7FFF), builder.and_(upper, number(1)))
    rounded = builder.lshr(builder.add(bits, half), number(16))
    nan = builder.fcmp_unordered("uno", a, a)
    chosen = builder.select(nan, builder.or_(upper, number(0x40)), rounded)
    return builder.trunc(chosen, like(a, _INT16))


def horizontal(builder: ir.IRBuilder, op: str, dtype: DType, vector: Value) -> Value:
    """All lanes combined by ``op``: halves are folded onto each other, the same order on every run and machine."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        nothing = _Poison(vector.type, None)
        low, high = (
            builder.shuffle_vector(vector, nothing, ir.Constant(ir.VectorType(_INT32, half), list(lanes)))
            for lanes in (range(half), range(half, 2 * half))
        )
        vector = LANE_OPS[op](builder, dtype, low, high)
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


# Vectors in memory ---------------------------------------------------------------------------------------------------


def _addresses(builder: ir.IRBuilder, first: Value, stride: int, lanes: int, itemsize: int) -> Value:
    """A vector of the addresses ``first + stride * lane`` (in elements)."""
    offsets = [ir.Constant(_INT64, stride * itemsize * i) for i in range(lanes)]
    base = broadcast(builder, builder.ptrtoint(first, _INT64), lanes)
    total = builder.add(base, ir.Constant(base.type, offsets))
    return builder.inttoptr(total, ir.VectorType(first.type, lanes))


def _masked(builder: ir.IRBuilder, kind: str, result: ir.Type, vector: ir.Type, pointer: ir.Type, args: Any) -> Value:
    """Call of llvm.masked.load, store, gather or scatter."""
    name = f"llvm.masked.{kind}.{_suffix(vector)}.{_suffix(pointer)}"
    module = builder.module
    fn = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(fn, args)


def vector_load(
    builder: ir.IRBuilder, dtype: DType, first: Value, stride: int, lanes: int, mask: Value | None
) -> Value:
    """``lanes`` elements from address ``first`` on, ``stride`` elements apart; lanes outside ``mask`` are 0."""
    vector = ir.VectorType(memory_type(dtype), lanes)
    if stride == 1 and mask is None:
        return builder.load(builder.bitcast(first, vector.as_pointer()), align=dtype.itemsize)
    active = mask or constant(ir.VectorType(ir.IntType(1), lanes), 1)
    align, zero = ir.Constant(_INT32, dtype.itemsize), constant(vector, 0)
    if stride == 1:
        pointer = builder.bitcast(first, vector.as_pointer())
        return _masked(builder, "load", vector, vector, pointer.type, [pointer, align, active, zero])
    where = _addresses(builder, first, stride, lanes, dtype.itemsize)
    return _masked(builder, "gather", vector, vector, where.type, [where, align, active, zero])


def vector_store(
    builder: ir.IRBuilder, dtype: DType, first: Value, stride: int, value: Value, mask: Value | None
) -> None:
    """Store the lanes of ``value`` that ``mask`` names, ``stride`` elements apart.

    A single lane is stored as a scalar. Where LLVM (22.1) does that itself, with a value that was narrowed just before,
    it writes as many bytes as the wide element has, over the neighbour (X86: reduceMaskedStoreToScalarStore).
    """
    lanes = value.type.count
    if isinstance(mask, ir.Constant) and mask.get_reference() == first_lanes(1, lanes).get_reference():
        builder.store(builder.extract_element(value, ir.Constant(_INT32, 0)), first, align=dtype.itemsize)
        return
    if stride == 1 and mask is None:
        builder.store(value, builder.bitcast(first, value.type.as_pointer()), align=dtype.itemsize)
        return
    active = mask or constant(ir.VectorType(ir.IntType(1), lanes), 1)
    align = ir.Constant(_INT32, dtype.itemsize)
    if stride == 1:
        pointer = builder.bitcast(first, value.type.as_pointer())
        _masked(builder, "store", ir.VoidType(), value.type, pointer.type, [value, pointer, align, active])
        return
    where = _addresses(builder, first, stride, lanes, dtype.itemsize)
    _masked(builder, "scatter", ir.VoidType(), value.type, where.type, [value, where, align, active])


def prefetch(builder: ir.IRBuilder, where: Value, locality: int) -> None:
    """Bring the line at ``where`` closer; ``locality`` is LLVM's: 3 for the first level of cache."""
    module, name, number = builder.module, "llvm.prefetch.p0", ir.IntType(32)
    where = builder.bitcast(where, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [where.type, number, number, number])
    fn = module.globals.get(name) or ir.Function(module, kind, name)
    builder.call(fn, [where, *(ir.Constant(number, i) for i in (0, locality, 1))])  # a read, of data
