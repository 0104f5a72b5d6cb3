"""Reductions over attribute ``axes``; the reduced dimensions are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from graphc.dtype import TensorType
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.ops import check
from graphc.ops.base import Op, Reduce, Sample, apply, apply_node
from graphc.ops.build import (
    Array,
    broadcast_axes,
    div,
    equal,
    floats,
    full,
    integers,
    inverse,
    mul,
    permute,
    reshape,
    single,
    where,
)  # fmt: skip

__all__ = ["REDUCE"]


def infer_reduce(op: str, empty: bool) -> check.Infer:
    """``empty``: the reduction of nothing has a value."""

    def infer(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
        check.count(op, types, 1)
        (t,) = types
        check.require_dtype(op, t, check.is_number)
        axes = check.axes(op, check.ints(op, at, "axes"), t)
        if any(b <= a for a, b in pairwise(axes)):
            raise error("GC0104", f"axes {axes} of {op} must be in rising order")
        if not empty and any(t.shape[a] == 0 for a in axes):
            raise error("GC0104", f"{op} over {axes} of {t} has no elements to choose from")
        return (TensorType(t.dtype, tuple(d for i, d in enumerate(t.shape) if i not in axes)),)

    return infer


def evaluate(fn: Callable[..., Any]) -> Callable[[Sequence[Array], Attrs], tuple[Array, ...]]:
    """In the operand's dtype throughout (NumPy alone would widen the sum of small integers)."""

    def run(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
        (x,) = arrays
        with np.errstate(all="ignore"):
            return (np.asarray(fn(x, axis=at["axes"])).astype(x.dtype, copy=False),)

    return run


def vjp_chosen(n: Node, g: Value) -> list[Value]:
    """max and min: the gradient goes to the chosen elements, evenly where several tie."""
    (x,), axes = n.inputs, n.attrs["axes"]
    chosen = equal(x, broadcast_axes(n.out(), axes, x.shape))
    ties = apply("sum", apply("astype", chosen, dtype=x.dtype), axes=axes)
    return [where(chosen, broadcast_axes(div(g, ties), axes, x.shape), 0)]


def vjp_prod(n: Node, g: Value) -> list[Value]:
    """The product of all other elements, by a balanced tree, so that no element is divided by.

    On the way up each pair (l, r) becomes l*r; on the way down the outer product e of a pair becomes (e*r, e*l).
    The tree is made of `mul`, so that second and higher derivatives are right where elements are zero, too.
    """
    (x,), axes = n.inputs, n.attrs["axes"]
    kept = [i for i in range(len(x.shape)) if i not in axes]
    moved = permute(x, [*kept, *axes])
    rows, cols = g.type.size, x.type.size // max(g.type.size, 1)
    width = 1 << max(cols - 1, 0).bit_length()
    level = reshape(moved, (rows, cols))
    if width > cols:
        level = apply("concat", level, full(1, x.dtype, (rows, width - cols)), axis=1)
    pairs = []
    while level.shape[1] > 1:
        left, right = halves(level)
        pairs.append((left, right))
        level = mul(left, right)
    outer = reshape(g, (rows, 1))
    for left, right in reversed(pairs):
        columns = [reshape(mul(outer, v), (*outer.shape, 1)) for v in (right, left)]
        outer = reshape(apply("concat", *columns, axis=2), (rows, 2 * outer.shape[1]))
    if width > cols:
        outer = apply("slice", outer, start=(0, 0), stop=(rows, cols), step=(1, 1))
    return [permute(reshape(outer, moved.shape), inverse([*kept, *axes]))]


def halves(x: Value) -> tuple[Value, Value]:
    """The even and the odd columns of a matrix."""
    rows, cols = x.shape
    parts = apply_node("split", reshape(x, (rows, cols // 2, 2)), axis=2, sizes=(1, 1)).outs
    left, right = (reshape(p, (rows, cols // 2)) for p in parts)
    return left, right


def samples() -> list[Sample]:
    return [
        Sample((floats(3, 4),), attrs(axes=(1,))),
        Sample((floats(2, 3, 5),), attrs(axes=(0, 2))),
        Sample((floats(4, dt="float32"),), attrs(axes=(0,))),
        Sample((floats(2, 3),), attrs(axes=())),
        Sample((integers(4, 6, dt="int8"),), attrs(axes=(0,))),
    ]


def tied() -> list[Sample]:
    return [*samples(), Sample((np.array([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]]),), attrs(axes=(1,)), grad=False)]


sum_op = Op(
    "sum",
    infer=infer_reduce("sum", empty=True),
    eval=evaluate(np.sum),
    vjp=single(lambda n, g: [broadcast_axes(g, n.attrs["axes"], n.inputs[0].shape)]),
    lower=Reduce("sum"),
    samples=samples,
)

max_op = Op(
    "max",  # NaN if any element is NaN
    infer=infer_reduce("max", empty=False),
    eval=evaluate(np.max),
    vjp=single(vjp_chosen),
    lower=Reduce("max"),
    samples=tied,
)

min_op = Op(
    "min",  # NaN if any element is NaN
    infer=infer_reduce("min", empty=False),
    eval=evaluate(np.min),
    vjp=single(vjp_chosen),
    lower=Reduce("min"),
    samples=tied,
)

prod = Op(
    "prod",
    infer=infer_reduce("prod", empty=True),
    eval=evaluate(np.prod),
    vjp=single(vjp_prod),
    lower=Reduce("prod"),
    samples=lambda: [*samples(), Sample((np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 4.0]]),), attrs(axes=(1,)))],
)

REDUCE = (sum_op, max_op, min_op, prod)
