"""Sliding windows and reversal: movement whose views overlap or run backwards, and the sums that undo them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product

import numpy as np

from graphc.dtype import Shape, TensorType, dtype
from graphc.errors import error
from graphc.ir import Attrs, Value, attrs
from graphc.ops import check
from graphc.ops.base import Move, Op, Sample, apply
from graphc.ops.build import Array, add, floats, full, integers, reshape, single, zeros

__all__ = [
    "WINDOWS", "each_axis", "extent", "gathered", "pad", "padded_array", "side_by_side", "surroundings", "unwindow",
    "view_windows", "window_count", "windows_of",
]  # fmt: skip

Placed = tuple[Shape, int]  # strides and offset of a view, in elements


def extent(size: int, dilation: int) -> int:
    """The elements from the first to the last that a window of ``size`` looks at, both counted."""
    return (size - 1) * dilation + 1


def window_count(length: int, size: int, stride: int, dilation: int) -> int:
    """How many windows fit into ``length`` elements."""
    return (length - extent(size, dilation)) // stride + 1


# windows -------------------------------------------------------------------------------------------------------------


def infer_windows(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("windows", types, 1)
    (t,) = types
    axes = check.axes("windows", check.ints("windows", at, "axes"), t)
    sizes, strides, dilations = (check.ints("windows", at, k) for k in ("sizes", "strides", "dilations"))
    if not len(axes) == len(sizes) == len(strides) == len(dilations):
        raise error("GC0109", "windows needs a size, a stride and a dilation for each of its axes")
    if any(v < 1 for v in (*sizes, *strides, *dilations)):
        raise error("GC0109", "sizes, strides and dilations of windows are 1 or more")
    shape = list(t.shape)
    for axis, size, stride, dilation in zip(axes, sizes, strides, dilations, strict=True):
        if extent(size, dilation) > t.shape[axis]:
            raise error(
                "GC0113",
                f"a window of {extent(size, dilation)} elements does not fit into dimension {axis} of {t}",
                hint="make the window smaller, or pad the input",
            )
        shape[axis] = window_count(t.shape[axis], size, stride, dilation)
    return (TensorType(t.dtype, (*shape, *sizes)),)


def view_windows(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> Placed:
    """Neighbouring windows are a stride apart, neighbours within one a dilation."""
    outer, inner = list(strides), []
    for axis, stride, dilation in zip(at["axes"], at["strides"], at["dilations"], strict=True):
        inner.append(strides[axis] * dilation)
        outer[axis] *= stride
    return (*outer, *inner), 0


def eval_windows(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    (x,) = arrays
    (out,) = infer_windows([TensorType(dtype(x.dtype), x.shape)], at)
    strides, _ = view_windows(x.shape, x.strides, at, out.shape)
    return (np.lib.stride_tricks.as_strided(x, out.shape, strides, writeable=False),)


Term = Callable[[Shape, Sequence[tuple[int, int]]], Value]


def unwindow(g: Value, shape: Shape, at: Attrs) -> Value:
    """The gradient of `windows` of a value of ``shape``: each element gets the sum of what all windows give for it."""
    low, high = surroundings(shape, at)
    ndim = len(shape)
    none = (0,) * (len(g.shape) - ndim)
    around = pad(g, (*low, *none), (*high, *none))

    def term(place: Shape, bounds: Sequence[tuple[int, int]]) -> Value:
        seen = [*bounds, *((i, i + 1) for i in place)]
        start, stop = (tuple(s[i] for s in seen) for i in (0, 1))
        element = apply("slice", around, start=start, stop=stop, step=(1,) * len(start))
        return reshape(element, element.shape[:ndim])

    return gathered(shape, at, term)


def surroundings(shape: Shape, at: Attrs) -> tuple[list[int], list[int]]:
    """How many windows that are not there `gathered` asks for, before and after the others, along each dimension."""
    low, high = [0] * len(shape), [0] * len(shape)
    for axis, size, stride, dilation in each_axis(at):
        low[axis] = (size - 1) * dilation // stride
        high[axis] = max(0, -(-shape[axis] // stride) - window_count(shape[axis], size, stride, dilation))
    return low, high


def gathered(shape: Shape, at: Attrs, term: Term) -> Value:
    """What the windows of a value of ``shape`` give to its elements, summed. Element i * stride + r along an axis is in
    the windows i, i - 1, … at their places r, r + stride, … (for dilation 1): all elements with one remainder r are the
    same sum of the same places. The sums for all remainders lie side by side.

    ``term(place, bounds)`` is what element ``place`` of each window gives, for the windows in ``bounds``, counted from
    the first of the `surroundings`.
    """
    rows = list(each_axis(at))
    low, _ = surroundings(shape, at)
    counts = [-(-shape[axis] // stride) for axis, _, stride, _ in rows]

    def phase(remainders: Shape) -> Value | None:
        found = []
        for place in product(*(range(size) for _, size, _, _ in rows)):
            reach = [j * dilation - r for j, r, (_, _, _, dilation) in zip(place, remainders, rows, strict=True)]
            if any(n % stride for n, (_, _, stride, _) in zip(reach, rows, strict=True)):
                continue
            bounds = [(0, d) for d in shape]
            for n, count, (axis, _, stride, _) in zip(reach, counts, rows, strict=True):
                bounds[axis] = (low[axis] - n // stride, low[axis] - n // stride + count)
            found.append(term(place, bounds))
        return reduce(add, found) if found else None

    def joined(axis: int, remainders: Shape) -> Value | None:
        if axis == len(rows):
            return phase(remainders)
        return side_by_side([joined(axis + 1, (*remainders, r)) for r in range(rows[axis][2])], rows[axis][0])

    whole = joined(0, ())
    assert whole is not None
    return apply("slice", whole, start=(0,) * len(shape), stop=shape, step=(1,) * len(shape))


def each_axis(at: Attrs) -> Iterator[tuple[int, int, int, int]]:
    """Axis, size, stride and dilation of each dimension that has windows."""
    return zip(at["axes"], at["sizes"], at["strides"], at["dilations"], strict=True)


def side_by_side(parts: Sequence[Value | None], axis: int) -> Value | None:
    """The elements of ``parts`` (None: zeros) by turns along ``axis``. None where all are zeros."""
    first = next((part for part in parts if part), None)
    if first is None or len(parts) == 1:
        return first
    column = (*first.shape[: axis + 1], 1, *first.shape[axis + 1 :])
    columns = [reshape(part, column) if part else zeros(first.dtype, column) for part in parts]
    together = apply("concat", *columns, axis=axis + 1)
    return reshape(together, _with(first.shape, axis, first.shape[axis] * len(parts)))


def windows_of(axes: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Attrs:
    return attrs(axes=tuple(axes), sizes=tuple(sizes), strides=tuple(strides), dilations=tuple(dilations))


windows = Op(
    "windows",  # attributes axes, sizes, strides, dilations; the windows' own dimensions come last, in order of axes
    infer=infer_windows,
    eval=eval_windows,
    vjp=single(lambda n, g: [unwindow(g, n.inputs[0].shape, n.attrs)]),
    lower=Move(view_windows),
    samples=lambda: [
        Sample((floats(2, 7),), windows_of([1], [3], [1], [1])),
        Sample((floats(9, 3),), windows_of([0], [3], [2], [2])),
        Sample((floats(2, 6, 7),), windows_of([1, 2], [2, 3], [2, 1], [1, 2])),
        Sample((floats(8),), windows_of([0], [2], [3], [1])),  # elements that no window sees
        Sample((integers(5),), windows_of([0], [5], [1], [1])),
        Sample((floats(2, 4, dt="float32"),), windows_of([], [], [], [])),
    ],
)


# flip ----------------------------------------------------------------------------------------------------------------


def infer_flip(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("flip", types, 1)
    check.axes("flip", check.ints("flip", at, "axes"), types[0])
    return (types[0],)


def view_flip(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> Placed:
    turned = tuple(-s if d in at["axes"] else s for d, s in enumerate(strides))
    return turned, sum((shape[a] - 1) * strides[a] for a in at["axes"] if 0 not in shape)


flip = Op(
    "flip",  # attribute axes: the dimensions that run backwards
    infer=infer_flip,
    eval=lambda arrays, at: (np.flip(arrays[0], at["axes"]),),
    vjp=single(lambda n, g: [apply("flip", g, axes=n.attrs["axes"])]),
    lower=Move(view_flip),
    samples=lambda: [
        Sample((floats(3, 4),), attrs(axes=(1,))),
        Sample((floats(2, 3, 5, dt="float32"),), attrs(axes=(0, 2))),
        Sample((floats(3),), attrs(axes=())),
        Sample((integers(6),), attrs(axes=(0,))),
    ],
)

WINDOWS = (windows, flip)


# Padding: joins with constants, into which what is padded is computed in place ----------------------------------------


def pad(
    x: Value, low: Sequence[int], high: Sequence[int], interior: Sequence[int] | None = None, value: float = 0
) -> Value:
    """``low[d]`` elements of ``value`` before dimension d, ``high[d]`` after it and ``interior[d]`` between its
    elements. Negative ``low`` and ``high`` cut elements off (after the interior is filled)."""
    for axis, (before, after, gap) in enumerate(zip(low, high, interior or (0,) * len(low), strict=True)):
        if gap and x.shape[axis] > 1:
            # The gap behind the last element is part of what is padded after it, or cut off again.
            x, after = _spread(x, axis, gap, value), after - gap
        x = _cut(x, axis, max(-before, 0), max(-after, 0))
        front, back = ([full(value, x.dtype, _with(x.shape, axis, n))] if n > 0 else [] for n in (before, after))
        x = apply("concat", *front, x, *back, axis=axis) if front or back else x
    return x


def _spread(x: Value, axis: int, gap: int, value: float) -> Value:
    """``gap`` elements of ``value`` after each element along ``axis``."""
    column = reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    filling = full(value, x.dtype, _with(column.shape, axis + 1, gap))
    joined = apply("concat", column, filling, axis=axis + 1)
    return reshape(joined, _with(x.shape, axis, x.shape[axis] * (gap + 1)))


def _cut(x: Value, axis: int, before: int, after: int) -> Value:
    """Without the first ``before`` and the last ``after`` elements along ``axis``."""
    if not before and not after:
        return x
    start = [before if d == axis else 0 for d in range(len(x.shape))]
    stop = [n - after if d == axis else n for d, n in enumerate(x.shape)]
    return apply("slice", x, start=tuple(start), stop=tuple(stop), step=(1,) * len(x.shape))


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def padded_array(x: Array, low: Sequence[int], high: Sequence[int], interior: Sequence[int], value: float = 0) -> Array:
    """What `pad` does, on an array."""
    inner = [extent(n, gap + 1) if n else 0 for n, gap in zip(x.shape, interior, strict=True)]
    spread = np.full(inner, value, x.dtype)
    spread[tuple(slice(None, None, gap + 1) for gap in interior)] = x
    spread = spread[tuple(slice(max(-a, 0), n - max(-b, 0)) for a, b, n in zip(low, high, inner, strict=True))]
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True)]
    return np.pad(spread, widths, constant_values=value)
