"""Convolution and the maximum of windows: ops with a gradient of their own, which pass `expand` writes as products and
maps over `windows`, so that no kernel knows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import prod

import numpy as np

from graphc.dtype import DType, Shape, TensorType, dtype, float32
from graphc.errors import error
from graphc.ir import Attrs, Node, Value, attrs
from graphc.ops import check
from graphc.ops.base import Meta, Op, Sample, apply
from graphc.ops.build import Array, equal, floats, full, permute, reshape, single, where
from graphc.ops.contract import rounded, rounding
from graphc.ops.windows import (
    each_axis,
    extent,
    gathered,
    infer_windows,
    pad,
    padded_array,
    surroundings,
    view_windows,
    window_count,
    windows_of,
)

__all__ = ["CONV", "Geometry", "channels_first", "channels_last", "conv", "elements", "padded"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel slides: one number per spatial dimension each.

    The input is dilated (``interior`` zeros between its elements), then padded (``low`` zeros before, ``high`` after;
    negative: cut), then seen through windows that are ``strides`` apart, whose elements are ``dilations`` apart."""

    strides: Shape
    low: Shape
    high: Shape
    interior: Shape
    dilations: Shape
    groups: int = 1

    @classmethod
    def of(cls, at: Attrs) -> Geometry:
        names = ("strides", "low", "high", "interior", "dilations")
        lists = [check.ints("conv", at, name) for name in names]
        strides, low, high, interior, dilations = lists
        groups = check.attribute("conv", at, "groups", int)
        if len({len(v) for v in lists}) != 1:
            raise error("GC0109", f"conv needs one number per spatial dimension in {', '.join(names)}")
        if groups < 1 or any(v < 1 for v in (*strides, *dilations)) or any(v < 0 for v in interior):
            raise error("GC0109", "strides, dilations and groups of conv are 1 or more, interior 0 or more")
        return cls(strides, low, high, interior, dilations, groups)

    def padded(self, sizes: Sequence[int]) -> Shape:
        """The lengths of the input after dilation and padding."""
        rows = zip(sizes, self.interior, self.low, self.high, strict=True)
        return tuple((extent(n, gap + 1) if n else 0) + a + b for n, gap, a, b in rows)

    def counts(self, sizes: Sequence[int], kernel: Sequence[int]) -> Shape:
        """The lengths of the result."""
        rows = zip(self.padded(sizes), kernel, self.strides, self.dilations, strict=True)
        return tuple(window_count(*row) for row in rows)


def infer_conv(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    check.count("conv", types, 2)
    check.same_dtype("conv", types)
    x, w = types
    check.require_dtype("conv", x, check.is_number)
    rounding(x.dtype, at)
    g = Geometry.of(at)
    n = len(g.strides)
    if x.ndim != n + 2 or w.ndim != n + 2:
        raise error("GC0113", f"a convolution over {n} dimensions of {x} by a weight {w} needs {n + 2} dimensions each")
    if x.shape[1] != w.shape[1] * g.groups or w.shape[0] % g.groups:
        raise error(
            "GC0113",
            f"a weight {w} with {g.groups} groups fits {w.shape[1] * g.groups} channels, and the input {x} has "
            f"{x.shape[1]}",
            hint="weights are [out channels, in channels / groups, *window]; the input is [batch, in channels, *sizes]",
        )
    padded, kernel = g.padded(x.shape[2:]), w.shape[2:]
    if any(k < 1 or extent(k, d) > p for p, k, d in zip(padded, kernel, g.dilations, strict=True)):
        raise error("GC0113", f"windows {kernel} do not fit the input {x}, padded to {padded}")
    return (TensorType(x.dtype, (x.shape[0], w.shape[0], *g.counts(x.shape[2:], kernel))),)


def eval_conv(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    """The definition: for each group, the product of its windows and its weights."""
    x, w = (rounded(v, at) for v in arrays)
    g = Geometry.of(at)
    n = len(g.strides)
    x = padded_array(x, (0, 0, *g.low), (0, 0, *g.high), (0, 0, *g.interior))
    at_axes = windows_of(range(2, n + 2), w.shape[2:], g.strides, g.dilations)
    (seen,) = infer_windows([TensorType(dtype(x.dtype), x.shape)], at_axes)
    strides, _ = view_windows(x.shape, x.strides, at_axes, seen.shape)
    windows = np.lib.stride_tricks.as_strided(x, seen.shape, strides, writeable=False)
    inner = ([1, *range(n + 2, 2 * n + 2)], [1, *range(2, n + 2)])
    with np.errstate(all="ignore"):
        parts = [
            np.tensordot(xs, ws, axes=inner)  # [B, *counts, O / groups]
            for xs, ws in zip(np.split(windows, g.groups, axis=1), np.split(w, g.groups), strict=True)
        ]
    return (np.moveaxis(np.concatenate(parts, axis=-1), -1, 1).astype(x.dtype, copy=False),)


def vjp_conv(n: Node, y: Value) -> list[Value]:
    """Both gradients are convolutions: of the cotangent by the turned weight, and of the input by the cotangent."""
    x, w = n.inputs
    g = Geometry.of(n.attrs)
    kept = rounding(x.dtype, n.attrs)
    return [gradient_of_input(y, w, x.shape, g, **kept), gradient_of_weight(x, y, w.shape, g, **kept)]


def gradient_of_input(y: Value, w: Value, shape: Shape, g: Geometry, **kept: DType) -> Value:
    """dx[b,c,p] = sum over o, j of dy[b,o,q] w[o,c,j], where q stride + j dilation = low + p (interior + 1).

    What was a stride becomes dilation of the cotangent, and the other way round; the window runs backwards."""
    o, c, *kernel = w.shape
    spatial = range(2, len(w.shape))
    turned = apply("flip", w, axes=tuple(spatial))
    if g.groups > 1:
        turned = reshape(turned, (g.groups, o // g.groups, c, *kernel))
        turned = permute(turned, [0, 2, 1, *(d + 1 for d in spatial)])
        turned = reshape(turned, (g.groups * c, o // g.groups, *kernel))
    else:
        turned = permute(turned, [1, 0, *spatial])
    strides = tuple(gap + 1 for gap in g.interior)
    widths = [extent(k, d) for k, d in zip(kernel, g.dilations, strict=True)]
    low = tuple(width - 1 - before for width, before in zip(widths, g.low, strict=True))
    spread = [extent(size, stride) for size, stride in zip(y.shape[2:], g.strides, strict=True)]
    wanted = [extent(size, stride) - 1 + width for size, stride, width in zip(shape[2:], strides, widths, strict=True)]
    high = tuple(total - a - size for total, a, size in zip(wanted, low, spread, strict=True))
    turned_geometry = Geometry(strides, low, high, tuple(s - 1 for s in g.strides), g.dilations, g.groups)
    return conv(y, turned, turned_geometry, **kept)


def gradient_of_weight(x: Value, y: Value, shape: Shape, g: Geometry, **kept: DType) -> Value:
    """dw[o,c,j] = sum over b, q of x[b,c,...] dy[b,o,q]: the batch takes the place of the channels, the channels that
    of the batch, and the result's window that of the result's positions."""
    b, counts = y.shape[0], y.shape[2:]
    c, kernel = shape[1], shape[2:]
    spatial = range(2, len(shape))
    low, high, at_high = g.low, g.high, g.padded(x.shape[2:])
    if not any(g.interior):  # padded as in the forward pass, so that both see the same memory
        x = padded(x, g)
        low = high = (0,) * len(kernel)
    if g.groups > 1:
        swapped = reshape(x, (b, g.groups, c, *x.shape[2:]))
        swapped = permute(swapped, [2, 1, 0, *(d + 1 for d in spatial)])
        swapped = reshape(swapped, (c, g.groups * b, *x.shape[2:]))
    else:
        swapped = permute(x, [1, 0, *spatial])
    total = [extent(k, d) - 1 + extent(q, s) for k, d, q, s in zip(kernel, g.dilations, counts, g.strides, strict=True)]
    high = tuple(h + t - p for h, t, p in zip(high, total, at_high, strict=True))  # cut what no window saw
    geometry = Geometry(g.dilations, low, high, g.interior, g.strides, g.groups)
    found = conv(swapped, permute(y, [1, 0, *spatial]), geometry, **kept)  # [c, o, *kernel]
    return permute(found, [1, 0, *spatial])


def channels_last(x: Value) -> Value:
    """[B, C, *sizes] as [B, *sizes, C]."""
    return permute(x, [0, *range(2, len(x.shape)), 1])


def channels_first(x: Value) -> Value:
    """[B, *sizes, C] as [B, C, *sizes]."""
    return permute(x, [0, len(x.shape) - 1, *range(1, len(x.shape) - 1)])


def padded(x: Value, g: Geometry) -> Value:
    """x [B, C, *sizes] with zeros as ``g`` has it. The memory has channels last, in which order convolutions read."""
    return channels_first(pad(channels_last(x), (0, *g.low, 0), (0, *g.high, 0), (0, *g.interior, 0)))


def conv(x: Value, w: Value, g: Geometry, **settings: DType) -> Value:
    """The node: x [B, C, *sizes], w [O, C / groups, *window] → [B, O, *counts]; ``settings`` as those of `dot`."""
    return apply("conv", x, w, **asdict(g), **settings)


def samples_conv() -> Iterator[Sample]:
    def case(
        x: Array, w: Array, strides: Shape, low: Shape, high: Shape, interior: Shape, dilations: Shape, groups: int = 1
    ) -> Sample:
        return Sample((x, w), attrs(**asdict(Geometry(strides, low, high, interior, dilations, groups))))

    yield case(floats(2, 3, 7), floats(4, 3, 3), (1,), (1,), (1,), (0,), (1,))
    yield case(floats(2, 4, 8), floats(6, 2, 3), (2,), (1,), (0,), (0,), (2,), groups=2)
    yield case(floats(1, 2, 3), floats(2, 2, 2), (1,), (-1,), (2,), (1,), (1,))
    yield case(floats(2, 3, 5, 6), floats(2, 3, 3, 2), (2, 1), (1, 0), (1, 1), (0, 0), (1, 2))
    yield case(floats(2, 2, 3, 3), floats(4, 1, 2, 2), (1, 1), (1, 1), (1, 0), (1, 0), (1, 1), groups=2)
    yield case(floats(1, 1, 3, 4, 4), floats(2, 1, 2, 2, 2), (1, 1, 2), (0, 0, 1), (0, 0, 1), (0, 0, 0), (1, 1, 1))
    yield case(
        floats(2, 3, 4, 4, dt="float32"), floats(2, 3, 1, 1, dt="float32"), (1, 1), (0, 0), (0, 0), (0, 0), (1, 1)
    )


conv_op = Op(
    "conv",  # (x, w), attributes strides, low, high, interior, dilations, groups: see Geometry; factors: as for dot
    infer=infer_conv,
    eval=eval_conv,
    vjp=single(vjp_conv),
    lower=Meta(by="expand"),
    samples=samples_conv,
)


# The maximum of windows ----------------------------------------------------------------------------------------------


def infer_window_max(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    (seen,) = infer_windows(types, at)
    return (TensorType(seen.dtype, seen.shape[: types[0].ndim]),)


def eval_window_max(arrays: Sequence[Array], at: Attrs) -> tuple[Array, ...]:
    (x,) = arrays
    (seen,) = infer_windows([TensorType(dtype(x.dtype), x.shape)], at)
    strides, _ = view_windows(x.shape, x.strides, at, seen.shape)
    windows = np.lib.stride_tricks.as_strided(x, seen.shape, strides, writeable=False)
    return (windows.max(axis=tuple(range(x.ndim, len(seen.shape)))),)


def elements(x: Value, at: Attrs) -> list[Value]:
    """The elements of the `windows` of ``x`` by their place in the window, each over all windows: strided slices."""
    found = []
    for place in product(*map(range, at["sizes"])):
        start, stop, step = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
        for i, (axis, size, stride, dilation) in zip(place, each_axis(at), strict=True):
            count = window_count(x.shape[axis], size, stride, dilation)
            start[axis], step[axis] = i * dilation, stride
            stop[axis] = i * dilation + extent(count, stride)
        found.append(apply("slice", x, start=tuple(start), stop=tuple(stop), step=tuple(step)))
    return found


def vjp_window_max(n: Node, g: Value) -> list[Value]:
    """The cotangent goes to the first maximum of each window, in row-major order (as in PyTorch's max pooling). A
    window whose maximum is NaN passes nothing on."""
    (x,), y, at = n.inputs, n.out(), n.attrs
    images = len(x.shape) >= 4 and at["axes"] == tuple(range(2, len(x.shape)))
    if images:
        x, y, g = map(channels_last, (x, y, g))
        at = windows_of([a - 1 for a in at["axes"]], at["sizes"], at["strides"], at["dilations"])
    chosen = full(prod(at["sizes"]), float32, y.shape)  # the number of the first maximum
    for number, element in reversed(list(enumerate(elements(x, at)))):
        chosen = where(equal(element, y), number, chosen)
    low, high = surroundings(x.shape, at)
    chosen, around = pad(chosen, low, high, value=-1), pad(g, low, high)

    def term(place: Shape, bounds: Sequence[tuple[int, int]]) -> Value:
        start, stop = (tuple(b[i] for b in bounds) for i in (0, 1))
        one, value = (apply("slice", v, start=start, stop=stop, step=(1,) * len(start)) for v in (chosen, around))
        number = sum(i * prod(at["sizes"][d + 1 :]) for d, i in enumerate(place))
        return where(equal(one, number), value, 0)

    found = gathered(x.shape, at, term)
    return [channels_first(found) if images else found]


window_max = Op(
    "window_max",  # attributes of windows: the maximum of each; NaN if any element is NaN
    infer=infer_window_max,
    eval=eval_window_max,
    vjp=single(vjp_window_max),
    lower=Meta(by="expand"),
    samples=lambda: [
        Sample((floats(2, 7),), windows_of([1], [3], [2], [1])),
        Sample((floats(2, 6, 5),), windows_of([1, 2], [2, 3], [2, 1], [1, 1])),
        Sample((floats(7, 3),), windows_of([0], [2], [3], [2])),
        Sample((np.array([[1.0, 2.0, 2.0, 2.0]]),), windows_of([1], [2], [1], [1]), grad=False),
        Sample((floats(1, 6, dt="float32"),), windows_of([1], [2], [2], [1])),
    ],
)

CONV = (conv_op, window_max)
