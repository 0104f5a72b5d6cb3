"""Movement of elements without arithmetic: views where strides can express it, joins and splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from graphc.dtype import Shape, TensorType, broadcast_shapes
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.ops import check
from graphc.ops.base import Join, Move, Op, Sample, Split, apply, apply_node
from graphc.ops.build import Array, floats, integers, inverse, permute, reshape, single, zeros

__all__ = ["MOVEMENT", "view_reshape"]

Placed = tuple[Shape, int]  # strides and offset of a view, in elements


# reshape -------------------------------------------------------------------------------------------------------------


def infer_reshape(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("reshape", types, 1)
    new = TensorType(types[0].dtype, check.sizes("reshape", at, "shape"))
    if new.size != types[0].size:
        raise error("GC0105", f"cannot reshape {types[0]} ({types[0].size} elements) to {new.shape} ({new.size})")
    return (new,)


def view_reshape(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> tuple[Shape, int] | None:
    """Strides of the reshaped operand, or None when the elements of a new dimension are not evenly spaced.

    Old and new dimensions are matched in the smallest groups of equal size. A group can be viewed when its old
    dimensions are one run in memory (each stride is the next one's times its length); its new dimensions are then
    row-major over the stride of the last.
    """
    if 0 in shape:
        return (0,) * len(out_shape), 0
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if d != 1]
    out: list[int] = []
    i = j = 0
    while i < len(old):
        group, size, first = [old[i]], old[i][0], j
        i, wide = i + 1, 1
        while j < len(out_shape) and (wide < size or wide == 1):
            wide, j = wide * out_shape[j], j + 1
            while size < wide:
                group, size, i = [*group, old[i]], size * old[i][0], i + 1
        if any(a[1] != b[1] * b[0] for a, b in pairwise(group)):
            return None
        dims = out_shape[first:j]
        inner = [1, *accumulate(reversed(dims), lambda p, d: p * d)][: len(dims)]
        out += [p * group[-1][1] for p in reversed(inner)]
    return (*out, *(1,) * (len(out_shape) - len(out))), 0


reshape_op = Op(
    "reshape",  # attribute shape; row-major order of elements
    infer=infer_reshape,
    eval=lambda arrays, at: (arrays[0].reshape(at["shape"]),),
    vjp=single(lambda n, g: [reshape(g, n.inputs[0].shape)]),
    lower=Move(view_reshape),
    samples=lambda: [
        Sample((floats(3, 4),), attrs(shape=(2, 6))),
        Sample((floats(2, 3, 4),), attrs(shape=(6, 1, 4))),
        Sample((floats(1),), attrs(shape=())),
        Sample((integers(6),), attrs(shape=(3, 2))),
    ],
)


# permute_dims --------------------------------------------------------------------------------------------------------


def infer_permute(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("permute_dims", types, 1)
    (t,) = types
    axes = check.axes("permute_dims", check.ints("permute_dims", at, "axes"), t)
    if len(axes) != t.ndim:
        raise error("GC0104", f"permute_dims needs an axis for each of the {t.ndim} dimensions, and got {axes}")
    return (TensorType(t.dtype, tuple(t.shape[a] for a in axes)),)


def view_permute(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> Placed:
    return tuple(strides[a] for a in at["axes"]), 0


permute_dims = Op(
    "permute_dims",  # attribute axes: dimension i of the result is dimension axes[i] of the operand
    infer=infer_permute,
    eval=lambda arrays, at: (arrays[0].transpose(at["axes"]),),
    vjp=single(lambda n, g: [permute(g, inverse(n.attrs["axes"]))]),
    lower=Move(view_permute),
    samples=lambda: [
        Sample((floats(3, 4),), attrs(axes=(1, 0))),
        Sample((floats(2, 3, 4),), attrs(axes=(2, 0, 1))),
        Sample((integers(6),), attrs(axes=(0,))),
    ],
)


# broadcast_to --------------------------------------------------------------------------------------------------------


def infer_broadcast(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("broadcast_to", types, 1)
    (t,), shape = types, check.sizes("broadcast_to", at, "shape")
    try:
        fits = broadcast_shapes(t.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        hint = "dimensions must be equal or 1, counted from the last; x[:, None] adds a dimension of 1"
        raise error("GC0106", f"cannot broadcast {t} to {shape}", hint=hint)
    return (TensorType(t.dtype, shape),)


def vjp_broadcast(n: Node, g: Value) -> list[Value]:
    shape = n.inputs[0].shape
    lead = len(g.shape) - len(shape)
    repeated = [i for i, d in enumerate(g.shape) if i < lead or (shape[i - lead] == 1 and d != 1)]
    return [reshape(apply("sum", g, axes=tuple(repeated)) if repeated else g, shape)]


def view_broadcast(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> Placed:
    lead = len(out_shape) - len(shape)
    kept = (s if d == o else 0 for d, s, o in zip(shape, strides, out_shape[lead:], strict=True))
    return ((0,) * lead + tuple(kept)), 0


broadcast_to = Op(
    "broadcast_to",  # attribute shape; NumPy's rule
    infer=infer_broadcast,
    eval=lambda arrays, at: (np.broadcast_to(arrays[0], at["shape"]),),
    vjp=single(vjp_broadcast),
    lower=Move(view_broadcast),
    samples=lambda: [
        Sample((floats(4),), attrs(shape=(3, 4))),
        Sample((floats(3, 1),), attrs(shape=(2, 3, 4))),
        Sample((floats(),), attrs(shape=(2, 2))),
        Sample((floats(1, 3, dt="float32"),), attrs(shape=(1, 3))),
    ],
)


# slice ---------------------------------------------------------------------------------------------------------------


def infer_slice(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("slice", types, 1)
    (t,) = types
    start, stop, step = (check.ints("slice", at, k) for k in ("start", "stop", "step"))
    if not len(start) == len(stop) == len(step) == t.ndim:
        raise error("GC0109", f"slice needs start, stop and step for each of the {t.ndim} dimensions of {t}")
    for i, (a, b, s, d) in enumerate(zip(start, stop, step, t.shape, strict=True)):
        if not (0 <= a <= b <= d and s >= 1):
            raise error("GC0108", f"slice {a}:{b}:{s} does not fit dimension {i} of {t}")
    return (TensorType(t.dtype, tuple(-(-(b - a) // s) for a, b, s in zip(start, stop, step, strict=True))),)


def eval_slice(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    return (arrays[0][tuple(map(slice, at["start"], at["stop"], at["step"]))],)


def vjp_slice(n: Node, g: Value) -> list[Value]:
    """Zeros around the cotangent, and between its elements where the step is above 1."""
    at = n.attrs
    for i, (d, a, s) in enumerate(zip(n.inputs[0].shape, at["start"], at["step"], strict=True)):
        g = spread(g, i, s)
        g = trim(g, i, d - a)
        pads = [(a, True), (d - a - g.shape[i], False)]
        for size, before in pads:
            if size:
                zero = zeros(g.dtype, with_dim(g.shape, i, size))
                g = apply("concat", *((zero, g) if before else (g, zero)), axis=i)
    return [g]


def spread(x: Value, axis: int, step: int) -> Value:
    """Put ``step - 1`` zeros after each element along ``axis``."""
    if step == 1:
        return x
    column = reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    gap = zeros(x.dtype, with_dim(column.shape, axis + 1, step - 1))
    return reshape(apply("concat", column, gap, axis=axis + 1), with_dim(x.shape, axis, x.shape[axis] * step))


def trim(x: Value, axis: int, size: int) -> Value:
    """At most the first ``size`` elements along ``axis``."""
    if x.shape[axis] <= size:
        return x
    ndim = len(x.shape)
    return apply("slice", x, start=(0,) * ndim, stop=with_dim(x.shape, axis, size), step=(1,) * ndim)


def with_dim(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def view_slice(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> Placed:
    offset = sum(a * s for a, s in zip(at["start"], strides, strict=True))
    return tuple(s * k for s, k in zip(strides, at["step"], strict=True)), offset


slice_op = Op(
    "slice",  # attributes start, stop, step: one each per dimension, 0 <= start <= stop <= size, step >= 1
    infer=infer_slice,
    eval=eval_slice,
    vjp=single(vjp_slice),
    lower=Move(view_slice),
    samples=lambda: [
        Sample((floats(5, 4),), attrs(start=(1, 0), stop=(4, 4), step=(1, 1))),
        Sample((floats(7, 3),), attrs(start=(1, 0), stop=(7, 3), step=(2, 2))),
        Sample((floats(8),), attrs(start=(0,), stop=(7,), step=(3,))),
        Sample((integers(6),), attrs(start=(2,), stop=(2,), step=(1,))),
    ],
)


# concat and split ----------------------------------------------------------------------------------------------------


def infer_concat(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    if not types:
        raise error("GC0111", "concat takes at least one operand")
    check.same_dtype("concat", types)
    axis = check.axis("concat", at, types[0].ndim)
    if len({(*t.shape[:axis], *t.shape[axis + 1 :]) if t.ndim > axis else t.shape for t in types}) > 1:
        message = f"concat along axis {axis} needs equal other dimensions, and got {check.listing(types)}"
        raise error("GC0101", message, hint="give the axis along which they differ: gc.concat([a, b], axis=...)")
    total = sum(t.shape[axis] for t in types)
    return (TensorType(types[0].dtype, with_dim(types[0].shape, axis, total)),)


def vjp_concat(n: Node, g: Value) -> tuple[Value, ...]:
    axis = n.attrs["axis"]
    return apply_node("split", g, axis=axis, sizes=tuple(v.shape[axis] for v in n.inputs)).outs


concat = Op(
    "concat",  # attribute axis
    infer=infer_concat,
    eval=lambda arrays, at: (np.concatenate(arrays, axis=at["axis"]),),
    vjp=single(vjp_concat),
    lower=Join(),
    samples=lambda: [
        Sample((floats(2, 3), floats(2, 1), floats(2, 2)), attrs(axis=1)),
        Sample((floats(3, dt="float32"),), attrs(axis=0)),
        Sample((integers(2, 3), integers(4, 3)), attrs(axis=0)),
    ],
)


def infer_split(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("split", types, 1)
    (t,) = types
    axis, sizes = check.axis("split", at, t.ndim), check.sizes("split", at, "sizes")
    if not sizes or sum(sizes) != t.shape[axis]:
        raise error("GC0108", f"cannot split dimension {axis} of {t} into {sizes}: the sum must be {t.shape[axis]}")
    return tuple(TensorType(t.dtype, with_dim(t.shape, axis, s)) for s in sizes)


def eval_split(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    return tuple(np.split(arrays[0], list(accumulate(at["sizes"]))[:-1], axis=at["axis"]))


def vjp_split(n: Node, cotangents: Sequence[Value | None]) -> list[Value | None]:
    if not n.inputs[0].dtype.is_float:
        return [None]
    parts = [zeros(t.dtype, t.shape) if g is None else g for g, t in zip(cotangents, n.types, strict=True)]
    return [apply("concat", *parts, axis=n.attrs["axis"])]


split = Op(
    "split",  # attributes axis, sizes: one result per size
    infer=infer_split,
    eval=eval_split,
    vjp=vjp_split,
    lower=Split(),
    samples=lambda: [
        Sample((floats(2, 6),), attrs(axis=1, sizes=(3, 1, 2))),
        Sample((floats(4, 3),), attrs(axis=0, sizes=(4,))),
        Sample((integers(6),), attrs(axis=0, sizes=(2, 4))),
    ],
)

MOVEMENT = (reshape_op, permute_dims, broadcast_to, slice_op, concat, split)
