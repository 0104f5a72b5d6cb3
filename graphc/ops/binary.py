"""Elementwise ops of two operands, and `where`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.dtype import bool_
from graphc.ir import Node, Value
from graphc.loop import Call, Const, Expr, call
from graphc.ops import check
from graphc.ops.base import Map, MapContext, NotDifferentiable, Op, Sample, apply
from graphc.ops.build import div, equal, floats, integers, mul, neg, positive, single, sub, where
from graphc.ops.unary import evaluate, intrinsic

__all__ = ["BINARY"]

BOOLEAN = NotDifferentiable("its result is bool")
BITS = NotDifferentiable("it works on bits")


def pairs() -> list[Sample]:
    return [
        Sample((floats(3, 4), floats(4, 3).T)),
        Sample((floats(5, dt="float32"), positive(5, dt="float32"))),
        Sample((floats(), positive())),
    ]


def number_pairs() -> list[Sample]:
    return [*pairs(), Sample((integers(7), integers(7, low=1))), Sample((integers(6, dt="uint32", low=0),) * 2)]


def integer_pairs() -> list[Sample]:
    return [Sample((integers(7), integers(7, low=0))), Sample((integers(4, 2, dt="uint32", low=0),) * 2)]


def bool_pairs() -> list[Sample]:
    return [Sample((integers(3, 4) > 0, integers(4, 3).T > 0))]


# Arithmetic ----------------------------------------------------------------------------------------------------------

add_op = Op(
    "add",
    infer=check.elementwise("add", 2, check.is_number),
    eval=evaluate(np.add),
    vjp=single(lambda n, g: [g, g]),
    lower=intrinsic("add"),
    samples=number_pairs,
)

sub_op = Op(
    "sub",
    infer=check.elementwise("sub", 2, check.is_number),
    eval=evaluate(np.subtract),
    vjp=single(lambda n, g: [g, neg(g)]),
    lower=intrinsic("sub"),
    samples=number_pairs,
)

mul_op = Op(
    "mul",
    infer=check.elementwise("mul", 2, check.is_number),
    eval=evaluate(np.multiply),
    vjp=single(lambda n, g: [mul(g, n.inputs[1]), mul(g, n.inputs[0])]),
    lower=intrinsic("mul"),
    samples=number_pairs,
)


def np_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Division; floor division on integers, with x / 0 = 0 (as NumPy has it)."""
    return np.asarray(np.divide(a, b) if a.dtype.kind == "f" else np.floor_divide(a, b))


def divisor(b: Expr) -> tuple[Expr, Expr, Expr]:
    """For integers: b as a divisor that cannot trap, and the conditions b == 0 and b == -1 (min / -1 traps too)."""
    zero, one = Const(0, b.dtype), Const(1, b.dtype)
    is_zero = call("eq", b, zero)
    if b.dtype.kind == "u":
        return call("select", is_zero, one, b), is_zero, Const(False, bool_)
    is_minus = call("eq", b, Const(-1, b.dtype))
    return call("select", call("or", is_zero, is_minus), one, b), is_zero, is_minus


def lower_div(args: Sequence[Expr], ctx: MapContext) -> Expr:
    a, b = args
    if ctx.type.dtype.is_float:
        return call("div", a, b)
    safe, is_zero, is_minus = divisor(b)
    quotient: Expr = call("div", a, safe)
    if b.dtype.kind == "i":
        quotient = call("select", is_minus, call("neg", a), quotient)
    return call("select", is_zero, Const(0, b.dtype), quotient)


div_op = Op(
    "div",
    infer=check.elementwise("div", 2, check.is_number),
    eval=evaluate(np_div),
    # d(a/b) = da/b - (a/b) db/b
    vjp=single(lambda n, g: [div(g, n.inputs[1]), neg(mul(div(g, n.inputs[1]), n.out()))]),
    lower=Map(lower_div),
    samples=lambda: [
        *number_pairs(),
        Sample((np.array([7, -7, -128, 5, -1], np.int8), np.array([-2, 2, -1, 0, 3], np.int8))),
    ],
)


def lower_mod(args: Sequence[Expr], ctx: MapContext) -> Expr:
    a, b = args
    if ctx.type.dtype.is_float:
        return call("mod", a, b)
    safe, is_zero, _ = divisor(b)
    return call("select", is_zero, Const(0, b.dtype), call("mod", a, safe))  # a mod -1 = a mod 1 = 0


mod = Op(
    "mod",  # with the sign of the divisor, as Python's %
    infer=check.elementwise("mod", 2, check.is_number),
    eval=evaluate(np.mod),
    # a mod b = a - b floor(a/b)
    vjp=single(lambda n, g: [g, neg(mul(g, apply("floor", div(n.inputs[0], n.inputs[1]))))]),
    lower=Map(lower_mod),
    samples=lambda: [
        *number_pairs(),
        Sample((np.array([7, -7, -128, 5, -1], np.int8), np.array([-2, 2, -1, 0, 3], np.int8))),
    ],
)


def vjp_pow(n: Node, g: Value) -> list[Value]:
    """d(x^y) = y x^(y-1) dx + log(x) x^y dy, with both terms 0, not NaN, where y = 0 and where x = 0."""
    x, y = n.inputs
    dx = mul(y, apply("pow", x, where(equal(y, 0), 1, sub(y, 1))))
    dy = mul(apply("log", where(equal(x, 0), 1, x)), n.out())
    return [mul(g, dx), mul(g, dy)]


pow_op = Op(
    "pow",
    infer=check.elementwise("pow", 2, check.is_float),
    eval=evaluate(np.power),
    vjp=single(vjp_pow),
    lower=intrinsic("pow"),
    samples=lambda: [
        Sample((positive(3, 4), floats(3, 4))),
        Sample((positive(5, dt="float32"), floats(5, dt="float32"))),
        Sample((np.array([-2.0, 0.0, 0.0, -1.5]), np.array([3.0, 2.0, 0.0, -2.0])), grad=False),
    ],
)


def share(n: Node, g: Value) -> list[Value]:
    """The gradient of maximum and minimum: to the operand that was chosen, half to each where they tie."""
    a, b = n.inputs
    part = where(equal(a, b), mul(g, 0.5), g)
    return [where(equal(x, n.out()), part, 0) for x in (a, b)]


maximum = Op(
    "maximum",  # NaN if either is NaN
    infer=check.elementwise("maximum", 2, check.is_number),
    eval=evaluate(np.maximum),
    vjp=single(share),
    lower=intrinsic("maximum"),
    samples=number_pairs,
)

minimum = Op(
    "minimum",  # NaN if either is NaN
    infer=check.elementwise("minimum", 2, check.is_number),
    eval=evaluate(np.minimum),
    vjp=single(share),
    lower=intrinsic("minimum"),
    samples=number_pairs,
)


# Comparison ----------------------------------------------------------------------------------------------------------

equal_op = Op(
    "equal",
    infer=check.elementwise("equal", 2, check.is_any, result=bool_),
    eval=evaluate(np.equal),
    vjp=BOOLEAN,
    lower=intrinsic("eq"),
    samples=lambda: [*number_pairs(), *bool_pairs()],
)

not_equal = Op(
    "not_equal",
    infer=check.elementwise("not_equal", 2, check.is_any, result=bool_),
    eval=evaluate(np.not_equal),
    vjp=BOOLEAN,
    lower=intrinsic("ne"),
    samples=lambda: [*number_pairs(), *bool_pairs()],
)

less_op = Op(
    "less",
    infer=check.elementwise("less", 2, check.is_number, result=bool_),
    eval=evaluate(np.less),
    vjp=BOOLEAN,
    lower=intrinsic("lt"),
    samples=number_pairs,
)

less_equal = Op(
    "less_equal",
    infer=check.elementwise("less_equal", 2, check.is_number, result=bool_),
    eval=evaluate(np.less_equal),
    vjp=BOOLEAN,
    lower=intrinsic("le"),
    samples=number_pairs,
)

greater = Op(
    "greater",
    infer=check.elementwise("greater", 2, check.is_number, result=bool_),
    eval=evaluate(np.greater),
    vjp=BOOLEAN,
    lower=intrinsic("gt"),
    samples=number_pairs,
)

greater_equal = Op(
    "greater_equal",
    infer=check.elementwise("greater_equal", 2, check.is_number, result=bool_),
    eval=evaluate(np.greater_equal),
    vjp=BOOLEAN,
    lower=intrinsic("ge"),
    samples=number_pairs,
)


# Logic and bits ------------------------------------------------------------------------------------------------------

logical_and = Op(
    "logical_and",
    infer=check.elementwise("logical_and", 2, check.is_bool),
    eval=evaluate(np.logical_and),
    vjp=BOOLEAN,
    lower=intrinsic("and"),
    samples=bool_pairs,
)

logical_or = Op(
    "logical_or",
    infer=check.elementwise("logical_or", 2, check.is_bool),
    eval=evaluate(np.logical_or),
    vjp=BOOLEAN,
    lower=intrinsic("or"),
    samples=bool_pairs,
)

logical_xor = Op(
    "logical_xor",
    infer=check.elementwise("logical_xor", 2, check.is_bool),
    eval=evaluate(np.logical_xor),
    vjp=BOOLEAN,
    lower=intrinsic("xor"),
    samples=bool_pairs,
)

bitwise_and = Op(
    "bitwise_and",
    infer=check.elementwise("bitwise_and", 2, check.is_logical),
    eval=evaluate(np.bitwise_and),
    vjp=BITS,
    lower=intrinsic("and"),
    samples=integer_pairs,
)

bitwise_or = Op(
    "bitwise_or",
    infer=check.elementwise("bitwise_or", 2, check.is_logical),
    eval=evaluate(np.bitwise_or),
    vjp=BITS,
    lower=intrinsic("or"),
    samples=integer_pairs,
)

bitwise_xor = Op(
    "bitwise_xor",
    infer=check.elementwise("bitwise_xor", 2, check.is_logical),
    eval=evaluate(np.bitwise_xor),
    vjp=BITS,
    lower=intrinsic("xor"),
    samples=integer_pairs,
)


def lower_shift(name: str) -> Map:
    """Shift by any count: the hardware defines only 0 <= count < bits, NumPy shifts everything out beyond."""

    def lower(args: Sequence[Expr], ctx: MapContext) -> Expr:
        a, b = args
        bits = a.dtype.itemsize * 8
        inside: Call = call("lt", b, Const(bits, b.dtype))
        beyond: Expr = Const(0, a.dtype)
        if b.dtype.kind == "i":
            inside = call("and", inside, call("ge", b, beyond))
            if name == "shr":  # an arithmetic shift leaves the sign
                beyond = call("select", call("lt", a, beyond), Const(-1, a.dtype), beyond)
        within = call(name, a, call("and", b, Const(bits - 1, b.dtype)))
        return call("select", inside, within, beyond, dtype=a.dtype)

    return Map(lower)


def shift_pairs() -> list[Sample]:
    counts = np.array([0, 1, 7, 31, 32, 40])
    return [
        Sample((np.array([-5, 3, 100, -1, 9, -9], np.int32), counts.astype(np.int32))),
        Sample((np.array([5, 3, 100, 2**32 - 1, 9, 9], np.uint32), counts.astype(np.uint32))),
    ]


shift_left = Op(
    "shift_left",
    infer=check.elementwise("shift_left", 2, check.is_integer),
    eval=evaluate(np.left_shift),
    vjp=BITS,
    lower=lower_shift("shl"),
    samples=shift_pairs,
)

shift_right = Op(
    "shift_right",  # arithmetic on signed integers
    infer=check.elementwise("shift_right", 2, check.is_integer),
    eval=evaluate(np.right_shift),
    vjp=BITS,
    lower=lower_shift("shr"),
    samples=shift_pairs,
)


# Choice --------------------------------------------------------------------------------------------------------------

where_op = Op(
    "where",
    infer=check.where,
    eval=evaluate(np.where),
    vjp=single(lambda n, g: [None, where(n.inputs[0], g, 0), where(n.inputs[0], 0, g)]),
    lower=intrinsic("select"),
    samples=lambda: [
        Sample((integers(3, 4) > 0, floats(3, 4), positive(3, 4))),
        Sample((integers(5) > 0, integers(5), integers(5, low=0))),
    ],
)

BINARY = (
    add_op, sub_op, mul_op, div_op, mod, pow_op, maximum, minimum, equal_op, not_equal, less_op, less_equal, greater,
    greater_equal, logical_and, logical_or, logical_xor, bitwise_and, bitwise_or, bitwise_xor, shift_left,
    shift_right, where_op,
)  # fmt: skip
