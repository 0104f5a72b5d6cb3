"""Elementwise ops of one operand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import erf as scalar_erf
from math import pi
from math import sqrt as scalar_sqrt

import numpy as np

from graphc.dtype import DType, TensorType, bool_, dtype
from graphc.ir import Attrs, attrs
from graphc.loop import Call, Const, Expr, call
from graphc.ops import check
from graphc.ops.base import Map, MapContext, NotDifferentiable, Op, Sample, apply
from graphc.ops.build import Array, div, floats, integers, mul, neg, positive, single, sub

__all__ = ["UNARY", "evaluate", "intrinsic"]

# The gradient of a step function is zero almost everywhere, and wanted as such: abs has sign in its first derivative,
# mod has floor.
ZERO = single(lambda n, g: [None])


def intrinsic(name: str) -> Map:
    """The lowering to one scalar intrinsic on the operands, in order."""
    return Map(lambda args, ctx: call(name, *args))


def evaluate(fn: Callable[..., Array]) -> Callable[[Sequence[Array], Attrs], tuple[Array, ...]]:
    """The oracle from a NumPy function: IEEE results without warnings."""

    def run(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return (np.asarray(fn(*arrays)),)

    return run


def np_rsqrt(x: Array) -> Array:
    return np.asarray(x.dtype.type(1) / np.sqrt(x))


def np_sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), by the form that does not overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, x.dtype.type(1), e) / (x.dtype.type(1) + e))


def np_erf(x: Array) -> Array:
    """The error function in double precision, rounded once."""
    flat = [scalar_erf(v) for v in x.astype(np.float64).ravel().tolist()]
    return np.asarray(flat, np.float64).astype(x.dtype).reshape(x.shape)


def signed() -> list[Sample]:
    return [Sample((floats(3, 4),)), Sample((floats(5, dt="float32"),)), Sample((floats(),))]


def above_zero() -> list[Sample]:
    return [Sample((positive(3, 4),)), Sample((positive(5, dt="float32"),))]


def numbers() -> list[Sample]:
    return [*signed(), Sample((integers(4, 2),)), Sample((integers(3, dt="uint8", low=0),))]


neg_op = Op(
    "neg",
    infer=check.elementwise("neg", 1, check.is_number),
    eval=evaluate(np.negative),
    vjp=single(lambda n, g: [neg(g)]),
    lower=intrinsic("neg"),
    samples=numbers,
)

abs_op = Op(
    "abs",
    infer=check.elementwise("abs", 1, check.is_number),
    eval=evaluate(np.abs),
    vjp=single(lambda n, g: [mul(g, apply("sign", n.inputs[0]))]),
    lower=intrinsic("abs"),
    samples=numbers,
)

exp = Op(
    "exp",
    infer=check.elementwise("exp", 1, check.is_float),
    eval=evaluate(np.exp),
    vjp=single(lambda n, g: [mul(g, n.out())]),
    lower=intrinsic("exp"),
    samples=signed,
)

log = Op(
    "log",
    infer=check.elementwise("log", 1, check.is_float),
    eval=evaluate(np.log),
    vjp=single(lambda n, g: [div(g, n.inputs[0])]),
    lower=intrinsic("log"),
    samples=above_zero,
)

sqrt = Op(
    "sqrt",
    infer=check.elementwise("sqrt", 1, check.is_float),
    eval=evaluate(np.sqrt),
    vjp=single(lambda n, g: [div(mul(g, 0.5), n.out())]),
    lower=intrinsic("sqrt"),
    samples=above_zero,
)

rsqrt = Op(
    "rsqrt",
    infer=check.elementwise("rsqrt", 1, check.is_float),
    eval=evaluate(np_rsqrt),
    # d x^(-1/2) = -1/2 x^(-3/2)
    vjp=single(lambda n, g: [mul(mul(g, -0.5), mul(n.out(), mul(n.out(), n.out())))]),
    lower=intrinsic("rsqrt"),
    samples=above_zero,
)

tanh = Op(
    "tanh",
    infer=check.elementwise("tanh", 1, check.is_float),
    eval=evaluate(np.tanh),
    vjp=single(lambda n, g: [mul(g, sub(1, mul(n.out(), n.out())))]),
    lower=intrinsic("tanh"),
    samples=signed,
)

erf = Op(
    "erf",
    infer=check.elementwise("erf", 1, check.is_float),
    eval=evaluate(np_erf),
    # d erf(x) = 2/sqrt(pi) exp(-x^2)
    vjp=single(
        lambda n, g: [mul(mul(g, 2 / scalar_sqrt(pi)), apply("exp", neg(mul(n.inputs[0], n.inputs[0]))))],
    ),
    lower=intrinsic("erf"),
    samples=signed,
)

sin = Op(
    "sin",
    infer=check.elementwise("sin", 1, check.is_float),
    eval=evaluate(np.sin),
    vjp=single(lambda n, g: [mul(g, apply("cos", n.inputs[0]))]),
    lower=intrinsic("sin"),
    samples=signed,
)

cos = Op(
    "cos",
    infer=check.elementwise("cos", 1, check.is_float),
    eval=evaluate(np.cos),
    vjp=single(lambda n, g: [neg(mul(g, apply("sin", n.inputs[0])))]),
    lower=intrinsic("cos"),
    samples=signed,
)

sigmoid = Op(
    "sigmoid",
    infer=check.elementwise("sigmoid", 1, check.is_float),
    eval=evaluate(np_sigmoid),
    vjp=single(lambda n, g: [mul(g, mul(n.out(), sub(1, n.out())))]),
    lower=intrinsic("sigmoid"),
    samples=signed,
)

floor = Op(
    "floor",
    infer=check.elementwise("floor", 1, check.is_float),
    eval=evaluate(np.floor),
    vjp=ZERO,
    lower=intrinsic("floor"),
    samples=signed,
)

ceil = Op(
    "ceil",
    infer=check.elementwise("ceil", 1, check.is_float),
    eval=evaluate(np.ceil),
    vjp=ZERO,
    lower=intrinsic("ceil"),
    samples=signed,
)

round_op = Op(
    "round",  # halves to even
    infer=check.elementwise("round", 1, check.is_float),
    eval=evaluate(np.round),
    vjp=ZERO,
    lower=intrinsic("round"),
    samples=lambda: [*signed(), Sample((np.array([-2.5, -0.5, 0.5, 1.5, 2.5]),), grad=False)],
)

sign = Op(
    "sign",
    infer=check.elementwise("sign", 1, check.is_number),
    eval=evaluate(np.sign),
    vjp=ZERO,
    lower=intrinsic("sign"),
    samples=numbers,
)

logical_not = Op(
    "logical_not",
    infer=check.elementwise("logical_not", 1, check.is_bool),
    eval=evaluate(np.logical_not),
    vjp=NotDifferentiable("its result is bool"),
    lower=intrinsic("not"),
    samples=lambda: [Sample((integers(3, 4) > 0,))],
)

stop_gradient = Op(
    "stop_gradient",
    infer=check.elementwise("stop_gradient", 1, check.is_any),
    eval=evaluate(np.copy),
    vjp=NotDifferentiable("stop_gradient says so"),
    lower=Map(lambda args, ctx: args[0]),
    samples=numbers,
)


# astype --------------------------------------------------------------------------------------------------------------


def infer_astype(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("astype", types, 1)
    return (TensorType(check.attribute("astype", at, "dtype", DType), types[0].shape),)


def eval_astype(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    to = at["dtype"]
    with np.errstate(all="ignore"):  # to 16 bits by way of float32, as arithmetic is
        return (arrays[0].astype(to.computed.numpy).astype(to.numpy, copy=False),)


def lower_astype(args: Sequence[Expr], ctx: MapContext) -> Expr:
    (x,) = args
    if x.dtype == ctx.type.dtype:
        return x
    if ctx.type.dtype == bool_:
        return call("ne", x, Const(0, x.dtype))
    return Call("cast", (x,), ctx.type.dtype)


def samples_astype() -> list[Sample]:
    pairs = [("float64", "float32"), ("float32", "float64"), ("float64", "int32"), ("int32", "float32"),
             ("int64", "int32"), ("int32", "bool"), ("float32", "bool"), ("uint32", "float64")]  # fmt: skip
    values = np.array([0, 1, 2, 3.75, 100])
    return [
        # The rounding of float32 hides a finite difference in float64.
        Sample((values.astype(a),), attrs(dtype=dtype(b)), grad=False)
        for a, b in pairs
    ] + [Sample((floats(3, 4),), attrs(dtype=dtype("float64")))]


astype = Op(
    "astype",
    infer=infer_astype,
    eval=eval_astype,
    vjp=single(lambda n, g: [apply("astype", g, dtype=n.inputs[0].dtype)]),
    lower=Map(lower_astype),
    samples=samples_astype,
)

UNARY = (
    neg_op, abs_op, exp, log, sqrt, rsqrt, tanh, erf, sin, cos, sigmoid, floor, ceil, round_op, sign, logical_not,
    stop_gradient, astype,
)  # fmt: skip
