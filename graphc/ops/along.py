"""Ops along the last dimension, each row on its own: running results, sorting, and elements by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.dtype import TensorType, bool_, int32, int64
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.loop import (
    Acc,
    Affine,
    Call,
    Const,
    Expr,
    If,
    Let,
    Load,
    Loop,
    Role,
    Scratch,
    Stmt,
    Store,
    Update,
    Var,
    call,
)
from graphc.ops import check
from graphc.ops.base import NotDifferentiable, Op, RowWise, Sample, apply
from graphc.ops.build import Array, floats, integers, mul, single, zeros
from graphc.ops.index import check_range
from graphc.ops.movement import with_dim
from graphc.ops.row import Row, bounded

__all__ = ["ALONG"]


def require_rows(op: str, types: Sequence[TensorType]) -> None:
    """All operands have one shape, of a dimension or more."""
    check.same_shape(op, types)
    if not types[0].ndim:
        raise error("GC0104", f"{op} needs a dimension to go along, and got {types[0]}")


# recurrence ----------------------------------------------------------------------------------------------------------


def infer_recurrence(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("recurrence", types, 2)
    check.same_dtype("recurrence", types)
    check.require_dtype("recurrence", types[0], check.is_number)
    require_rows("recurrence", types)
    check.attribute("recurrence", at, "reverse", bool)
    return (types[0],)


def eval_recurrence(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    a, b = (x[..., ::-1] for x in arrays) if at["reverse"] else arrays
    out = np.array(b)
    with np.errstate(all="ignore"):
        for i in range(1, out.shape[-1]):
            out[..., i] += a[..., i] * out[..., i - 1]
    return (out[..., ::-1] if at["reverse"] else out,)


def vjp_recurrence(n: Node, g: Value) -> list[Value]:
    """With s[i] = g[i] + a[i+1] s[i+1]: db = s, and da[i] = s[i] y[i-1]. Nothing is divided by, so that it is exact
    where elements are zero."""
    (a, _), reverse = n.inputs, n.attrs["reverse"]
    s = apply("recurrence", shifted(a, forwards=reverse), g, reverse=not reverse)
    return [mul(s, shifted(n.out(), forwards=not reverse)), s]


def shifted(x: Value, *, forwards: bool) -> Value:
    """``x`` moved by one along its last dimension, with a zero where nothing moves to."""
    ndim, size = len(x.shape), x.shape[-1]
    if not size:
        return x
    zero = zeros(x.dtype, with_dim(x.shape, ndim - 1, 1))
    first = 0 if forwards else 1
    start, stop = (*(0,) * (ndim - 1), first), with_dim(x.shape, ndim - 1, first + size - 1)
    rest = apply("slice", x, start=start, stop=stop, step=(1,) * ndim)
    return apply("concat", *((zero, rest) if forwards else (rest, zero)), axis=ndim - 1)


def lower_recurrence(row: Row) -> list[Stmt]:
    (a, b), (y,) = row.operands, row.results
    last = y.size - 1
    k, i, before = Var("k"), Var("i"), Var("before")
    first, at = (last, call("sub", Const(last, int64), k)) if row.attrs["reverse"] else (0, k)
    neighbour = call("add" if row.attrs["reverse"] else "sub", i, Const(1, int64))
    value = call("add", b.load(i), call("mul", a.load(i), y.load(before)))
    step = (Let(i, at), Let(before, neighbour), y.store(i, value))
    return [y.store(first, b.load(first)), Loop(k, y.size, step, start=1)]


recurrence = Op(
    "recurrence",  # (a, b), attribute reverse: y[i] = a[i] y[i-1] + b[i], y[0] = b[0]; from the other end if reverse
    infer=infer_recurrence,
    eval=eval_recurrence,
    vjp=single(vjp_recurrence),
    lower=RowWise(lower_recurrence),
    samples=lambda: [
        Sample((floats(3, 4), floats(4, 3).T), attrs(reverse=False)),
        Sample((floats(2, 3, 5), floats(5, 2, 3).transpose(1, 2, 0)), attrs(reverse=True)),
        Sample((floats(1, dt="float32"),) * 2, attrs(reverse=True)),
        Sample((np.array([1.0, 0.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.0, 3.0])), attrs(reverse=False)),
        Sample((integers(4, 6, dt="int8"), integers(4, 6, dt="int8")), attrs(reverse=False)),
    ],
)


# argsort -------------------------------------------------------------------------------------------------------------


def infer_argsort(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("argsort", types, 1)
    check.require_dtype("argsort", types[0], check.is_number)
    require_rows("argsort", types)
    check.attribute("argsort", at, "descending", bool)
    return (TensorType(int32, types[0].shape),)


def eval_argsort(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    (x,) = arrays
    if not at["descending"]:
        return (np.argsort(x, axis=-1, stable=True).astype(np.int32),)
    # Backwards, twice: equal elements stay in their order.
    order = np.argsort(x[..., ::-1], axis=-1, stable=True)[..., ::-1]
    return ((x.shape[-1] - 1 - order).astype(np.int32),)


def before(a: Expr, b: Expr) -> Expr:
    """a < b, where NaN comes after all numbers."""
    if not a.dtype.is_float:
        return call("lt", a, b)
    return call("or", call("lt", a, b), call("and", call("ne", b, b), call("eq", a, a)))


ORDER = "order"  # two halves: the order so far, and the one that it is merged into


def lower_argsort(row: Row) -> list[Stmt]:
    """Merge sort from below: level by level, runs of 1, 2, 4, ... are merged in pairs."""
    (x,), (y,) = row.operands, row.results
    size, levels = x.size, (x.size - 1).bit_length()
    level, width, here, there, pairs = (Var(n) for n in ("level", "width", "here", "there", "pairs"))
    both = Var("both")
    n, one = Const(size, int64), Const(1, int64)
    merge = (
        Let(width, call("shl", one, level)),
        Let(both, call("add", width, width)),
        Let(here, call("mul", call("and", level, one), n)),
        Let(there, call("sub", n, here)),
        Let(pairs, call("div", call("add", call("sub", n, one), both), both)),
        Loop(Var("pair"), pairs, tuple(merge_runs(row, here, there, width, both))),
    )
    i, o = Var("i"), Var("o")
    start = Store(ORDER, Affine.of(i), Call("cast", (i,), int32))
    end = y.store(o, Load(ORDER, Affine.of(o, offset=levels % 2 * size), int32))
    return [
        Loop(i, size, (start,), Role.VECTOR),
        Loop(level, levels, merge),
        Loop(o, size, (end,), Role.VECTOR),
    ]


def merge_runs(row: Row, here: Var, there: Var, width: Var, both: Var) -> list[Stmt]:
    """Merge [low, middle) and [middle, high): the left run goes first where elements are equal."""
    (x,) = row.operands
    low, middle, high, k = Var("low"), Var("middle"), Var("high"), Var("k")
    taken, left, right, a, b = (Var(n) for n in ("taken", "left", "right", "a", "b"))
    first = Var("first", bool_)
    n, one = Const(x.size, int64), Const(1, int64)
    swap = before(x.load(a), x.load(b)) if row.attrs["descending"] else before(x.load(b), x.load(a))
    more = call("and", call("lt", left, middle), call("not", swap))
    step: list[Stmt] = [
        Let(left, call("add", low, taken)),
        Let(right, call("add", middle, call("sub", call("sub", k, low), taken))),
        *element(a, left, middle, here),
        *element(b, right, high, here),
        Let(first, call("or", call("ge", right, high), more)),
        Store(ORDER, Affine.of(there) + Affine.of(k), Call("cast", (call("select", first, a, b),), int32)),
        Update(taken, call("select", first, one, Const(0, int64))),
    ]
    return [
        Let(low, call("mul", Var("pair"), both)),
        Let(middle, call("minimum", call("add", low, width), n)),
        Let(high, call("minimum", call("add", low, both), n)),
        Acc(taken, "sum"),
        Loop(k, high, tuple(step), start=low),
    ]


def element(name: Var, place: Var, stop: Var, half: Var) -> list[Stmt]:
    """Bind the entry of the order at ``place``, or the run's last where the run has ended."""
    at = Var(f"{name.name}_at")
    entry = Load(ORDER, Affine.of(half) + Affine.of(at), int32)
    last = call("sub", stop, Const(1, int64))
    return [Let(at, call("minimum", place, last)), Let(name, Call("cast", (entry,), int64))]


argsort = Op(
    "argsort",  # attribute descending: the stable order of each row, int32; NaN is the largest
    infer=infer_argsort,
    eval=eval_argsort,
    vjp=NotDifferentiable("its result are positions"),
    lower=RowWise(lower_argsort, scratch=lambda row: (Scratch(ORDER, int32, 2 * row.operands[0].size),)),
    samples=lambda: [
        Sample((floats(3, 4),), attrs(descending=False)),
        Sample((floats(4, 2, 9, dt="float32"),), attrs(descending=True)),
        Sample((np.array([[2.0, np.nan, -0.0, 0.0, -np.inf, np.nan, 2.0]]),), attrs(descending=False)),
        Sample((np.array([[2.0, np.nan, -0.0, 0.0, -np.inf, np.nan, 2.0]]),), attrs(descending=True)),
        Sample((integers(2, 33),), attrs(descending=False)),
        Sample((integers(65, dt="uint8", low=0),), attrs(descending=True)),
        Sample((floats(1),), attrs(descending=False)),
    ],
)


# take_along and scatter_along ----------------------------------------------------------------------------------------


def infer_take_along(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("take_along", types, 2)
    x, indices = types
    check.require_dtype("the indices of take_along", indices, check.is_integer)
    if not x.ndim or x.shape[:-1] != indices.shape[:-1] or x.ndim != indices.ndim:
        raise error("GC0101", f"take_along of {x} needs indices with equal dimensions but the last, and got {indices}")
    return (TensorType(x.dtype, indices.shape),)


def eval_take_along(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    x, indices = arrays
    check_range(indices, x.shape[-1])
    return (np.take_along_axis(x, indices.astype(np.int64), axis=-1),)


def lower_take_along(row: Row) -> list[Stmt]:
    (x, indices), (y,) = row.operands, row.results
    i = Var("i")
    if not x.size:  # there is no element to read in place of the missing one
        return [Loop(i, y.size, tuple(bounded(indices.load(i), 0)[0]))]
    start, safe, inside = bounded(indices.load(i), x.size)
    zero = Const(x.dtype.numpy.type(0).item(), x.dtype)
    return [Loop(i, y.size, (*start, y.store(i, call("select", inside, x.load(safe), zero))))]


take_along = Op(
    "take_along",  # (x, indices): y[..., i] = x[..., indices[..., i]]
    infer=infer_take_along,
    eval=eval_take_along,
    vjp=single(lambda n, g: [apply("scatter_along", n.inputs[1], g, size=n.inputs[0].shape[-1]), None]),
    lower=RowWise(lower_take_along, check=lambda types, at: types[0].shape[-1]),
    samples=lambda: [
        Sample((floats(3, 4), integers(3, 6, low=0, high=4))),
        Sample((floats(2, 3, 5, dt="float32"), integers(2, 3, 2, low=0, high=5, dt="int64"))),
        Sample((floats(7), integers(3, low=0, high=7, dt="uint8"))),
        Sample((integers(4, 2), integers(4, 0, low=0, high=2))),
    ],
)


def infer_scatter_along(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("scatter_along", types, 2)
    indices, x = types
    check.require_dtype("the indices of scatter_along", indices, check.is_integer)
    check.require_dtype("scatter_along", x, check.is_number)
    require_rows("scatter_along", types)
    size: int = check.attribute("scatter_along", at, "size", int)
    if size < 0:
        raise error("GC0109", f"attribute size of scatter_along must not be negative, and is {size}")
    return (TensorType(x.dtype, (*x.shape[:-1], size)),)


def eval_scatter_along(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    indices, x = arrays
    check_range(indices, at["size"])
    out = np.zeros((*x.shape[:-1], at["size"]), x.dtype)
    rows = np.indices(x.shape, sparse=True)[:-1]
    with np.errstate(all="ignore"):
        np.add.at(out, (*rows, indices), x)
    return (out,)


def lower_scatter_along(row: Row) -> list[Stmt]:
    (indices, x), (y,) = row.operands, row.results
    clear, i = Var("clear"), Var("i")
    start, safe, inside = bounded(indices.load(i), y.size)
    zero = Const(y.dtype.numpy.type(0).item(), y.dtype)
    add = y.store(safe, call("add", y.load(safe), x.load(i)))
    return [
        Loop(clear, y.size, (y.store(clear, zero),), Role.VECTOR),
        Loop(i, x.size, (*start, If(inside, (add,)))),
    ]


scatter_along = Op(
    "scatter_along",  # (indices, x), attribute size: y[..., indices[..., i]] += x[..., i], from zeros, in order of i
    infer=infer_scatter_along,
    eval=eval_scatter_along,
    vjp=single(lambda n, g: [None, apply("take_along", g, n.inputs[0])]),
    lower=RowWise(lower_scatter_along, check=lambda types, at: at["size"]),
    samples=lambda: [
        Sample((integers(3, 6, low=0, high=4), floats(3, 6)), attrs(size=4)),
        Sample((integers(2, 3, 2, low=0, high=5, dt="int64"), floats(2, 3, 2, dt="float32")), attrs(size=5)),
        Sample((integers(9, low=0, high=2), integers(9)), attrs(size=2)),
        Sample((integers(2, 0, low=0, high=2), floats(2, 0)), attrs(size=3)),
    ],
)

ALONG = (recurrence, argsort, take_along, scatter_along)
