"""Sliding windows and reversal: movement whose views overlap or run backwards, and the sums that undo them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from graphc.dtype import Shape, TensorType, dtype
from graphc.errors import error
from graphc.ir import Attrs, Value, attrs
from graphc.ops import check
from graphc.ops.base import Move, Op, Sample, apply
from graphc.ops.build import Array, add, floats, full, integers, permute, reshape, single

__all__ = ["WINDOWS", "extent", "pad", "padded_array", "unwindow", "window_count"]

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


def unwindow(g: Value, shape: Shape, at: Attrs) -> Value:
    """The gradient of `windows` of a value of ``shape``: each element gets the sum of what all windows give for it."""
    for axis, stride, dilation in reversed(list(zip(at["axes"], at["strides"], at["dilations"], strict=True))):
        g = overlap_add(g, axis, stride, dilation, shape[axis])
    return g


def overlap_add(g: Value, axis: int, stride: int, dilation: int, length: int) -> Value:
    """``g`` [..., n at ``axis``, ..., size] → [..., ``length`` at ``axis``, ...]: element (i, j) of the two goes to
    i * stride + j * dilation.

    The windows are cut into blocks of ``stride`` elements, the last one filled up with zeros. Block number b of all
    windows tiles the axis without overlap, from b * stride on; what is left is to add the blocks.
    """
    last = len(g.shape) - 1
    size = extent(g.shape[last], dilation)
    blocks = -(-size // stride)
    none = (0,) * last
    g = pad(g, (*none, 0), (*none, blocks * stride - size), (*none, dilation - 1))
    count = g.shape[axis]
    terms = []
    for b in range(blocks):
        cut = [(0, d, 1) for d in g.shape[:-1]] + [(b * stride, (b + 1) * stride, 1)]
        start, stop, step = zip(*cut, strict=True)
        block = apply("slice", g, start=start, stop=stop, step=step)
        block = permute(block, [*range(axis + 1), last, *range(axis + 1, last)])
        block = reshape(block, (*g.shape[:axis], count * stride, *g.shape[axis + 1 : -1]))
        after = length - (b + count) * stride
        low = [b * stride if d == axis else 0 for d in range(last)]
        high = [after if d == axis else 0 for d in range(last)]
        terms.append(pad(block, low, high))
    return reduce(add, terms)


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
