"""Rows by index: `take` reads them, `scatter_add` sums them; each is the other's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.dtype import TensorType
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.ops import check
from graphc.ops.base import Gather, Op, Sample, Scatter, apply
from graphc.ops.build import Array, floats, integers, inverse, permute, single

__all__ = ["INDEX"]


def check_range(indices: Array, size: int) -> None:
    """Compiled code traps indices out of range; the oracle does the same."""
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise error("GC0420", f"index {outside.flat[0]} is out of range for {size} rows")


def infer_take(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("take", types, 2)
    table, indices = types
    check.require_dtype("the indices of take", indices, check.is_integer)
    axis = check.axis("take", at, table.ndim)
    return (TensorType(table.dtype, (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])),)


def eval_take(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    table, indices = arrays
    check_range(indices, table.shape[at["axis"]])
    return (np.take(table, indices, axis=at["axis"]),)


def vjp_take(n: Node, g: Value) -> list[Value | None]:
    (table, indices), axis = n.inputs, n.attrs["axis"]
    k = len(indices.shape)
    rows = permute(g, [*range(axis, axis + k), *range(axis), *range(axis + k, len(g.shape))])
    total = apply("scatter_add", indices, rows, size=table.shape[axis])
    return [permute(total, inverse([axis, *(i for i in range(len(table.shape)) if i != axis)])), None]


take = Op(
    "take",  # (table, indices), attribute axis
    infer=infer_take,
    eval=eval_take,
    vjp=single(vjp_take),
    lower=Gather(),
    samples=lambda: [
        Sample((floats(5, 3), integers(2, 4, low=0, high=5)), attrs(axis=0)),
        Sample((floats(2, 5, 3), integers(4, low=0, high=5)), attrs(axis=1)),
        Sample((floats(3, 4, dt="float32"), integers(low=0, high=3, dt="int64")), attrs(axis=0)),
        Sample((integers(6), integers(2, low=0, high=6)), attrs(axis=0)),
    ],
)


def infer_scatter_add(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    if len(types) != 3:
        check.count("scatter_add", types, 2)
    indices, rows, *base = types
    check.require_dtype("the indices of scatter_add", indices, check.is_integer)
    check.require_dtype("scatter_add", rows, check.is_number)
    size: int = check.attribute("scatter_add", at, "size", int)
    if size < 0 or rows.shape[: indices.ndim] != indices.shape:
        raise error("GC0101", f"scatter_add of {rows} needs one index per row, and got indices {indices}")
    result = TensorType(rows.dtype, (size, *rows.shape[indices.ndim :]))
    if base and base != [result]:
        raise error("GC0101", f"scatter_add of {rows} into {size} rows adds to {result}, and got {base[0]}")
    return (result,)


def eval_scatter_add(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    indices, rows, *base = arrays
    check_range(indices, at["size"])
    out = np.array(base[0]) if base else np.zeros((at["size"], *rows.shape[indices.ndim :]), rows.dtype)
    with np.errstate(all="ignore"):
        np.add.at(out, indices, rows)
    return (out,)


def vjp_scatter_add(n: Node, g: Value) -> list[Value | None]:
    return [None, apply("take", g, n.inputs[0], axis=0), *[g] * (len(n.inputs) - 2)]


scatter_add = Op(
    "scatter_add",  # (indices, rows) or (indices, rows, base), attribute size: base, or zeros, and rows in their order
    infer=infer_scatter_add,
    eval=eval_scatter_add,
    vjp=single(vjp_scatter_add),
    lower=Scatter(),
    samples=lambda: [
        Sample((integers(6, low=0, high=4), floats(6, 3)), attrs(size=4)),
        Sample((integers(2, 3, low=0, high=5), floats(2, 3, 2, 2, dt="float32")), attrs(size=5)),
        Sample((integers(5, low=0, high=3, dt="int64"), integers(5)), attrs(size=3)),
        Sample((integers(6, low=0, high=4), floats(6, 3), floats(4, 3)), attrs(size=4)),
        Sample((integers(4, low=0, high=3), floats(4, dt="float32"), floats(3, dt="float32")), attrs(size=3)),
    ],
)

INDEX = (take, scatter_add)
