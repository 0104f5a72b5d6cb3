"""Values that come from outside: graph inputs, state and constants; and those made from the index alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.dtype import DType, TensorType, bool_, dtype, uint32
from graphc.errors import error
from graphc.ir import Attrs, Literal, attrs
from graphc.loop import Call, Const, Expr, call
from graphc.ops import check
from graphc.ops.base import Map, MapContext, NotDifferentiable, Op, Sample, Source
from graphc.ops.build import Array, floats

__all__ = ["SOURCE", "threefry2x32"]

LEAF = NotDifferentiable("it has no operands")


def infer_named(op: str) -> check.Infer:
    def infer(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
        check.count(op, types, 0)
        check.attribute(op, at, "name", str)
        return (TensorType(check.attribute(op, at, "dtype", DType), check.sizes(op, at, "shape")),)

    return infer


def eval_given(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    """The interpreter puts the value of an input or of state in its place; there is nothing to compute."""
    raise error("GC0003", f"the value of {at['name']} comes from outside and was not given")


input_op = Op(
    "input",  # attributes name, dtype, shape
    infer=infer_named("input"),
    eval=eval_given,
    vjp=LEAF,
    lower=Source(),
    samples=lambda: (),
)

state = Op(
    "state",  # attributes name, dtype, shape, trainable
    infer=infer_named("state"),
    eval=eval_given,
    vjp=LEAF,
    lower=Source(),
    samples=lambda: (),
)


def infer_const(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("const", types, 0)
    value: Literal = check.attribute("const", at, "value", Literal)
    t = TensorType(value.dtype, value.shape)
    if t.nbytes != len(value.data):
        raise error("GC0109", f"const of {t} needs {t.nbytes} bytes, and has {len(value.data)}")
    if t.dtype == bool_ and value.data.strip(b"\x00\x01"):
        raise error("GC0109", "const of bool has bytes other than 0 and 1")
    return (t,)


const = Op(
    "const",  # attribute value: Literal
    infer=infer_const,
    eval=lambda arrays, at: (at["value"].array,),
    vjp=LEAF,
    lower=Source(),
    samples=lambda: [
        Sample((), attrs(value=Literal.of(floats(2, 3)))),
        Sample((), attrs(value=Literal.of(np.asarray(1.5, np.float32)))),
        Sample((), attrs(value=Literal.of(np.array([True, False])))),
        Sample((), attrs(value=Literal.of(np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)))),
    ],
)


# iota ----------------------------------------------------------------------------------------------------------------


def infer_iota(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("iota", types, 0)
    t = TensorType(check.attribute("iota", at, "dtype", DType), check.sizes("iota", at, "shape"))
    check.axis("iota", at, t.ndim)
    check.require_dtype("iota", t, check.is_number)
    return (t,)


def eval_iota(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    shape, axis = at["shape"], at["axis"]
    along = np.arange(shape[axis]).astype(at["dtype"].computed.numpy).astype(at["dtype"].numpy, copy=False)
    return (np.broadcast_to(along.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape),)


def lower_iota(args: Sequence[Expr], ctx: MapContext) -> Expr:
    position = ctx.coords[ctx.attrs["axis"]]
    return position if position.dtype == ctx.type.dtype else Call("cast", (position,), ctx.type.dtype)


iota = Op(
    "iota",  # attributes shape, axis, dtype: the position along one axis
    infer=infer_iota,
    eval=eval_iota,
    vjp=LEAF,
    lower=Map(lower_iota, coords=True),
    samples=lambda: [
        Sample((), attrs(shape=(3, 4), axis=1, dtype=dtype("int32"))),
        Sample((), attrs(shape=(5,), axis=0, dtype=dtype("float32"))),
        Sample((), attrs(shape=(2, 3, 2), axis=1, dtype=dtype("int64"))),
    ],
)


# random_bits ---------------------------------------------------------------------------------------------------------

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
KEY_PARITY = 0x1BD11BDA


def threefry2x32(k0: Any, k1: Any, c0: Any, c1: Any) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: two uint32 words from key (k0, k1) and counter (c0, c1), elementwise.

    J. Salmon, M. Moraes, R. Dror, D. Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    k0, k1, x0, x1 = (np.asarray(v, np.uint32) for v in (k0, k1, c0, c1))
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(KEY_PARITY))
    with np.errstate(over="ignore"):
        x0, x1 = x0 + k0, x1 + k1
        for step in range(5):
            for r in ROTATIONS[step % 2]:
                x0 = x0 + x1
                x1 = ((x1 << np.uint32(r)) | (x1 >> np.uint32(32 - r))) ^ x0
            x0 = x0 + keys[(step + 1) % 3]
            x1 = x1 + keys[(step + 2) % 3] + np.uint32(step + 1)
    return x0, x1


def infer_random_bits(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("random_bits", types, 2)
    check.same_shape("random_bits", types)
    for t in types:
        if t.dtype != uint32:
            raise error("GC0103", f"random_bits needs keys of uint32, and got {t}")
    return (types[0],)


def eval_random_bits(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    k0, k1 = arrays
    linear = np.arange(k0.size, dtype=np.uint64).reshape(k0.shape)
    low, high = (linear & np.uint64(0xFFFFFFFF)).astype(np.uint32), (linear >> np.uint64(32)).astype(np.uint32)
    return (threefry2x32(k0, k1, low, high)[0],)


def lower_random_bits(args: Sequence[Expr], ctx: MapContext) -> Expr:
    at = ctx.linear
    assert at is not None
    low = Call("cast", (call("and", at, Const(0xFFFFFFFF, at.dtype)),), uint32)
    high = Call("cast", (call("shr", at, Const(32, at.dtype)),), uint32)
    return call("threefry", *args, low, high, dtype=uint32)


random_bits = Op(
    "random_bits",  # (k0, k1) uint32; the counter is the row-major position, so that a mask can be made again
    infer=infer_random_bits,
    eval=eval_random_bits,
    vjp=NotDifferentiable("it works on bits"),
    lower=Map(lower_random_bits, coords=True),
    samples=lambda: [
        Sample((np.full((3, 4), 7, np.uint32), np.full((3, 4), 0xDEADBEEF, np.uint32))),
        Sample((np.array(1, np.uint32), np.array(2, np.uint32))),
    ],
)

SOURCE = (input_op, state, const, iota, random_bits)
