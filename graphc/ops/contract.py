"""Contraction: `dot`, the general product of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphc.dtype import DType, Shape, TensorType, float32, int8, int32
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.ops import check
from graphc.ops.base import Contract, Op, Sample, apply
from graphc.ops.build import Array, convert, floats, integers, inverse, permute, single

__all__ = ["CONTRACT", "SUMS", "free_axes", "rounded", "rounding"]


SUMS = {int8: int32}  # of integers, those that may be added in a wider type


def free_axes(ndim: int, batch: Sequence[int], contract: Sequence[int]) -> tuple[int, ...]:
    """The axes of an operand that are neither batch nor contracted, in order."""
    return tuple(i for i in range(ndim) if i not in batch and i not in contract)


def axis_pair(at: Attrs, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pair = check.attribute("dot", at, name, tuple)
    left, right = (check.int_tuple("dot", name, p) for p in pair) if len(pair) == 2 else ((), (0,))
    if len(left) != len(right):
        raise error("GC0109", f"attribute {name} of dot must be two tuples of equal length")
    return left, right


def infer_dot(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("dot", types, 2)
    check.same_dtype("dot", types)
    a, b = types
    check.require_dtype("dot", a, check.is_number)
    (ab, bb), (ac, bc) = axis_pair(at, "batch"), axis_pair(at, "contract")
    check.axes("dot", ab + ac, a)
    check.axes("dot", bb + bc, b)
    for kind, left, right in (("batch", ab, bb), ("contracted", ac, bc)):
        for i, j in zip(left, right, strict=True):
            if a.shape[i] != b.shape[j]:
                raise error(
                    "GC0107",
                    f"cannot multiply {a} by {b}: the {kind} dimension {i} of the left is {a.shape[i]}, "
                    f"dimension {j} of the right is {b.shape[j]}",
                )
    free = [t.shape[i] for t, *ax in ((a, ab, ac), (b, bb, bc)) for i in free_axes(t.ndim, *ax)]
    return (TensorType(result_dtype(a.dtype, at), (*(a.shape[i] for i in ab), *free)),)


def result_dtype(operands: DType, at: Attrs) -> DType:
    """That of the operands; or that of wider sums: float32 of 16-bit floats, int32 of int8."""
    rounding(operands, at)
    wanted = at.get("dtype", operands)
    if not isinstance(wanted, DType) or wanted not in (operands, operands.computed, SUMS.get(operands)):
        raise error("GC0109", f"a dot of {operands} has no result of dtype {wanted!r}")
    return wanted


def rounding(operands: DType, at: Attrs) -> dict[str, DType]:
    """The attribute ``factors`` as a setting, if there is one: the 16-bit type to which the operands of a product of
    float32 are rounded. The products of its gradient are rounded so, too."""
    if "factors" not in at:
        return {}
    to = at["factors"]
    if not isinstance(to, DType) or not to.is_half or operands != float32:
        raise error("GC0109", f"the factors of a product of {operands} cannot be {to!r}")
    return {"factors": to}


def rounded(x: Array, at: Attrs) -> Array:
    """A factor as ``factors`` has it."""
    return x.astype(at["factors"].numpy).astype(x.dtype) if "factors" in at else x


def eval_dot(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    a, b = (rounded(x, at) for x in arrays)
    (ab, bb), (ac, bc) = at["batch"], at["contract"]
    af, bf = free_axes(a.ndim, ab, ac), free_axes(b.ndim, bb, bc)

    def dims(x: Array, axes: Sequence[int]) -> Shape:
        return tuple(x.shape[i] for i in axes)

    batch, inner = dims(a, ab), prod(dims(a, ac))
    left = a.transpose((*ab, *af, *ac)).reshape((*batch, prod(dims(a, af)), inner))
    right = b.transpose((*bb, *bc, *bf)).reshape((*batch, inner, prod(dims(b, bf))))
    sums = at["dtype"].numpy if "dtype" in at and a.dtype.kind == "i" else a.dtype
    with np.errstate(all="ignore"):
        return (np.matmul(left, right, dtype=sums).reshape((*batch, *dims(a, af), *dims(b, bf))),)


def vjp_dot(n: Node, g: Value) -> list[Value]:
    """Each operand's cotangent is the result's, contracted with the other operand over the other's free axes.

    The product comes out as batch, own free axes, contracted axes (in the order of the other operand); a permutation
    puts them where they stand in the operand.
    """
    a, b = n.inputs
    (ab, bb), (ac, bc) = n.attrs["batch"], n.attrs["contract"]
    af, bf = free_axes(len(a.shape), ab, ac), free_axes(len(b.shape), bb, bc)
    batch = tuple(range(len(ab)))
    rows = tuple(range(len(ab), len(ab) + len(af)))  # the free axes of a in the result
    cols = tuple(range(len(ab) + len(af), len(g.shape)))  # those of b

    g, kept = convert(g, a.dtype), rounding(a.dtype, n.attrs)

    # a: g[batch, af, bf] . b[batch, bc, bf] over bf = [batch, af, bc in the order that they have in b]
    da = apply("dot", g, b, batch=(batch, bb), contract=(cols, bf), **kept)
    da = permute(da, inverse([*ab, *af, *(ac[bc.index(j)] for j in sorted(bc))]))
    # b: a[batch, af, ac] . g[batch, af, bf] over af = [batch, ac in the order that they have in a, bf]
    db = apply("dot", a, g, batch=(ab, batch), contract=(af, rows), **kept)
    db = permute(db, inverse([*bb, *(bc[ac.index(i)] for i in sorted(ac)), *bf]))
    return [da, db]


def samples() -> list[Sample]:
    def dot(left: Array, right: Array, batch: object, contract: object) -> Sample:
        return Sample((left, right), attrs(batch=batch, contract=contract))

    return [
        dot(floats(3, 4), floats(4, 5), ((), ()), ((1,), (0,))),
        dot(floats(3, 4, dt="float32"), floats(5, 4, dt="float32"), ((), ()), ((1,), (1,))),
        dot(floats(2, 3, 4), floats(2, 4, 5), ((0,), (0,)), ((2,), (1,))),
        dot(floats(4, 2, 3, 5), floats(5, 3, 4, 2), ((2, 0), (1, 2)), ((1, 3), (3, 0))),
        dot(floats(4), floats(4), ((), ()), ((0,), (0,))),
        dot(floats(2), floats(3), ((), ()), ((), ())),
        dot(integers(3, 4), integers(4, 2), ((), ()), ((1,), (0,))),
        Sample(
            (integers(3, 4, dt="int8"), integers(4, 2, dt="int8")),
            attrs(batch=((), ()), contract=((1,), (0,)), dtype=int32),
        ),
    ]


dot = Op(
    # attributes batch, contract: pairs of tuples of axes; the result is batch, left free, right free; optionally dtype:
    # that of the sums, where it is wider (`result_dtype`); or factors: see `rounding`
    "dot",
    infer=infer_dot,
    eval=eval_dot,
    vjp=single(vjp_dot),
    lower=Contract(),
    samples=samples,
)

CONTRACT = (dot,)
