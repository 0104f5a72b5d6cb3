"""Convolution and pooling by torch's names and layouts: x [B, C, *sizes], weight [O, C / groups, *window]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np

from graphc.dtype import Shape
from graphc.errors import GraphcError, error
from graphc.functional import concat, mean, stack, take
from graphc.half import rounded_once
from graphc.ir import Value
from graphc.ops import conv as rules
from graphc.ops import windows as moves
from graphc.ops.base import at_loc
from graphc.ops.conv import Geometry
from graphc.scope import user_loc
from graphc.tensor import Tensor, TensorLike, apply, as_tensor, astype, common_dtype

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "flip", "max_pool1d",
    "max_pool2d", "max_pool3d", "pad", "windows",
]  # fmt: skip

Sizes = int | Sequence[int]  # one number for all spatial dimensions, or one for each


def _each(what: str, value: Sizes, n: int) -> Shape:
    found = (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)
    if len(found) != n:
        raise error("GC0113", f"{what} is a number, or {n} of them, and not {value}", loc=user_loc())
    return found


def _traced(build: Callable[..., Value], *operands: Tensor) -> Tensor:
    """The result of ``build``, which makes nodes of values, at the user's line."""
    loc = user_loc()
    with at_loc(loc):
        try:
            return Tensor.of(build(*[t._resolve() for t in operands]))
        except GraphcError as e:
            raise e if e.loc else GraphcError(e.code, e.message, loc, e.hint) from None


# Movement ------------------------------------------------------------------------------------------------------------


PAD_MODES = ("constant", "edge", "reflect", "wrap")


def pad(x: TensorLike, pad_width: Sequence[tuple[int, int]], value: float = 0.0, *, mode: str = "constant") -> Tensor:
    """``x`` with ``pad_width[d]`` = (before, after) elements around dimension d; negative ones cut off.

    ``mode``, as in NumPy: "constant" puts ``value`` there, "edge" the nearest element, "reflect" those that a mirror at
    the nearest shows, "wrap" those of the other end. Raises GC0104 and GC0217.
    """
    x = as_tensor(x)
    if len(pad_width) != x.ndim:
        raise error("GC0104", f"pad needs (before, after) for each dimension of {x.type}", loc=user_loc())
    low, high = [a for a, _ in pad_width], [b for _, b in pad_width]
    if mode == "constant":
        return _traced(lambda v: moves.pad(v, low, high, value=value), x)
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        if before or after:
            x = take(x, _sources(x, axis, before, after, mode), axis=axis)
    return x


def _sources(x: Tensor, axis: int, before: int, after: int, mode: str) -> np.ndarray:
    """The positions along ``axis`` whose elements `pad` puts side by side, int32."""
    length = x.shape[axis]
    if mode not in PAD_MODES or not length:
        message = f"pad with mode {mode!r} along dimension {axis} of {x.type}"
        hint = f"mode is one of {', '.join(PAD_MODES)}; all but constant need an element to repeat"
        raise error("GC0217", message, loc=user_loc(), hint=hint)
    widths = max(before, 0), max(after, 0)
    wide = np.pad(np.arange(length, dtype=np.int32), widths, mode)  # type: ignore[call-overload]
    return np.asarray(wide[max(-before, 0) : len(wide) - max(-after, 0)])


def flip(x: TensorLike, axis: int | Sequence[int] | None = None) -> Tensor:
    """``x`` backwards along ``axis`` (None: along all)."""
    x = as_tensor(x)
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return apply("flip", x, axes=tuple(a % x.ndim if -x.ndim <= a < x.ndim else a for a in axes))


def windows(x: TensorLike, axes: Sequence[int], size: Sizes, stride: Sizes = 1, dilation: Sizes = 1) -> Tensor:
    """All windows of ``size`` along ``axes``, ``stride`` apart: their number takes the place of each axis, and their
    own dimensions come last. A view: nothing is copied. Raises GC0113 where a window is longer than its axis."""
    n = len(axes)
    return apply(
        "windows",
        as_tensor(x),
        axes=tuple(axes),
        sizes=_each("size", size, n),
        strides=_each("stride", stride, n),
        dilations=_each("dilation", dilation, n),
    )


# Convolution ---------------------------------------------------------------------------------------------------------


def _conv(
    n: int, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Any, dilation: Sizes, groups: int
) -> Tensor:
    single = x.ndim == n + 1  # one image without a batch dimension, as torch allows
    x = x.reshape((1, *x.shape)) if single else x
    stride, dilation = _each("stride", stride, n), _each("dilation", dilation, n)
    low, high = _padding(padding, weight.shape[2:], stride, dilation, n)
    to = common_dtype(x, weight)
    geometry = Geometry(stride, low, high, (0,) * n, dilation, groups)
    y = apply("conv", astype(x, to), astype(weight, to), **asdict(geometry))
    return _biased(y, bias, single)


def _biased(y: Tensor, bias: Tensor | None, single: bool) -> Tensor:
    if bias is not None:
        y = y + bias.reshape((bias.size, *(1,) * (y.ndim - 2)))
    return y.reshape(y.shape[1:]) if single else y


def _padding(padding: Any, kernel: Shape, stride: Shape, dilation: Shape, n: int) -> tuple[Shape, Shape]:
    """Zeros before and after each dimension."""
    if padding == "same" and all(s == 1 for s in stride):
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    if isinstance(padding, str) and padding != "valid":
        hint = '"valid", or with a stride of 1 "same"; numbers pad both sides'
        raise error("GC0113", f"no padding {padding!r} with stride {stride}", loc=user_loc(), hint=hint)
    sizes = (0,) * n if padding == "valid" else _each("padding", padding, n)
    return sizes, sizes


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Any = 0, dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, L] and weight [O, C / groups, K] → [B, O, (L + 2 padding - dilation (K - 1) - 1) // stride + 1].

    A correlation, as in torch. ``padding``: zeros on both sides, "valid" or "same". Raises GC0113.
    """
    return _conv(1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Any = 0, dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, H, W] and weight [O, C / groups, KH, KW] → [B, O, H', W'], as `conv1d` along each dimension."""
    return _conv(2, x, weight, bias, stride, padding, dilation, groups)


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Any = 0, dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, D, H, W] and weight [O, C / groups, KD, KH, KW] → [B, O, D', H', W'], as `conv1d` along each."""
    return _conv(3, x, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    n: int, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, output_padding: Sizes,
    groups: int, dilation: Sizes,
) -> Tensor:  # fmt: skip
    single = x.ndim == n + 1
    x = x.reshape((1, *x.shape)) if single else x
    stride, dilation, more = (_each("a setting", v, n) for v in (stride, dilation, output_padding))
    before = _each("padding", padding, n)
    if x.ndim != n + 2 or weight.ndim != n + 2 or x.shape[1] != weight.shape[0] or weight.shape[0] % groups:
        raise error(
            "GC0113",
            f"a transposed convolution of {x.type} by a weight {weight.type} with {groups} groups",
            loc=user_loc(),
            hint="x is [batch, in channels, *sizes], the weight [in channels, out channels / groups, *window]",
        )
    rows = zip(x.shape[2:], weight.shape[2:], stride, before, more, dilation, strict=True)
    sizes = tuple((length - 1) * s - 2 * p + (k - 1) * d + o + 1 for length, k, s, p, o, d in rows)
    shape = (x.shape[0], weight.shape[1] * groups, *sizes)
    geometry = Geometry(stride, before, before, (0,) * n, dilation, groups)
    to = common_dtype(x, weight)
    y = _traced(lambda a, w: rules.gradient_of_input(a, w, shape, geometry), astype(x, to), astype(weight, to))
    return _biased(y, bias, single)


def conv_transpose1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, L] and weight [C, O / groups, K] → [B, O, M], where
    M = (L - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1.

    The gradient of `conv1d` with these settings with respect to its input. Raises GC0113.
    """
    return _conv_transpose(1, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, H, W] and weight [C, O / groups, KH, KW], as `conv_transpose1d` along each dimension."""
    return _conv_transpose(2, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0,
    output_padding: Sizes = 0, groups: int = 1, dilation: Sizes = 1,
) -> Tensor:  # fmt: skip
    """x [B, C, D, H, W] and weight [C, O / groups, KD, KH, KW], as `conv_transpose1d` along each dimension."""
    return _conv_transpose(3, x, weight, bias, stride, padding, output_padding, groups, dilation)


# Pooling -------------------------------------------------------------------------------------------------------------


def _pooled(
    n: int, x: Tensor, size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool, fill: float
) -> tuple[Tensor, dict[str, Shape], list[tuple[int, int]]]:
    """The padded input, the attributes of its windows, and what was padded along each spatial dimension."""
    if x.ndim not in (n + 1, n + 2):
        raise error("GC0113", f"pooling over {n} dimensions takes [B, C, *sizes] or [C, *sizes], not {x.type}",
                    loc=user_loc())  # fmt: skip
    sizes, dilations = _each("kernel_size", size, n), _each("dilation", dilation, n)
    strides = sizes if stride is None else _each("stride", stride, n)
    widths = []
    rows = zip(x.shape[-n:], sizes, strides, _each("padding", padding, n), dilations, strict=True)
    for length, k, s, p, d in rows:
        if 2 * p > k:
            raise error("GC0113", f"a padding of {p} is more than half of a window of {k}", loc=user_loc())
        extra = 0
        if ceil_mode:  # one more window, if it starts inside of the input or of the padding before it
            count = -(-(length + 2 * p - moves.extent(k, d)) // s) + 1
            count -= (count - 1) * s >= length + p
            extra = max((count - 1) * s + moves.extent(k, d) - length - 2 * p, 0)
        widths.append((p, p + extra))
    at = {"axes": tuple(range(x.ndim - n, x.ndim)), "sizes": sizes, "strides": strides, "dilations": dilations}
    return pad(x, [(0, 0)] * (x.ndim - n) + widths, fill), at, widths


def _max_pool(
    n: int, x: Tensor, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> Tensor:
    padded, at, _ = _pooled(n, as_tensor(x), kernel_size, stride, padding, dilation, ceil_mode, -float("inf"))
    return apply("window_max", padded, **at)


def max_pool1d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window of x [B, C, L] or [C, L]; ``stride`` is the window's size unless given.

    The padding never wins. Where several elements tie, the gradient goes to the first, as in torch. Raises GC0113.
    """
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window of x [B, C, H, W] or [C, H, W], as `max_pool1d`."""
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum of each window of x [B, C, D, H, W] or [C, D, H, W], as `max_pool1d`."""
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode)


@rounded_once
def _avg_pool(
    n: int, x: Tensor, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:  # fmt: skip
    x = as_tensor(x)
    padded, at, widths = _pooled(n, x, kernel_size, stride, padding, 1, ceil_mode, 0.0)
    inner = tuple(range(x.ndim, x.ndim + n))
    total = apply("sum", apply("windows", padded, **at), axes=inner)
    # What counts lies between -counted and length + counted; windows that `ceil_mode` adds may reach further.
    if all(high == low and (count_include_pad or not low) for low, high in widths):
        return total * (1 / prod(at["sizes"]))
    counts = as_tensor(1.0, x.dtype)
    for d, (length, k, s, (low, _)) in enumerate(zip(x.shape[-n:], at["sizes"], at["strides"], widths, strict=True)):
        counted = low if count_include_pad else 0
        starts = [i * s - low for i in range(total.shape[d - n])]
        inside = [float(min(a + k, length + counted) - max(a, -counted)) for a in starts]
        row = stack([as_tensor(v, x.dtype) for v in inside]).reshape((len(inside), *(1,) * (n - 1 - d)))
        counts = counts * row
    return total / counts


def avg_pool1d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window of x [B, C, L] or [C, L]; ``count_include_pad``: zeros of the padding count as elements;
    ``ceil_mode``: a last window may reach beyond the padding. Raises GC0113."""
    return _avg_pool(1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window of x [B, C, H, W] or [C, H, W], as `avg_pool1d`."""
    return _avg_pool(2, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool3d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """The mean of each window of x [B, C, D, H, W] or [C, D, H, W], as `avg_pool1d`."""
    return _avg_pool(3, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


@rounded_once
def _adaptive_pool(n: int, x: Tensor, output_size: Any, pool: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """Cell i of m covers the elements from floor(i L / m) to ceil((i + 1) L / m); ``pool(x, axis, m)`` does it where
    all cells are equally long."""
    given = (output_size,) * n if isinstance(output_size, int) or output_size is None else tuple(output_size)
    # The last axis first: of equal maxima the first in row-major order gets the gradient, as in PyTorch.
    for axis, size in reversed(list(zip(range(x.ndim - n, x.ndim), given, strict=True))):
        length = x.shape[axis]
        cells = length if size is None else size
        if cells == length:
            continue
        if length % cells == 0:
            x = pool(x, axis, cells)
            continue
        index = [slice(None)] * x.ndim
        parts = []
        for i in range(cells):
            index[axis] = slice(i * length // cells, -(-(i + 1) * length // cells))
            parts.append(pool(x[tuple(index)], axis, 1))
        x = concat(parts, axis=axis)
    return x


def _mean_of_parts(x: Tensor, axis: int, cells: int) -> Tensor:
    return mean(x.reshape((*x.shape[:axis], cells, x.shape[axis] // cells, *x.shape[axis + 1 :])), axis + 1)


def _max_of_parts(x: Tensor, axis: int, cells: int) -> Tensor:
    size = (x.shape[axis] // cells,)
    return apply("window_max", x, axes=(axis,), sizes=size, strides=size, dilations=(1,))


def adaptive_avg_pool1d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., L] → [..., output_size]: means of parts that cover x evenly."""
    return _adaptive_pool(1, as_tensor(x), output_size, _mean_of_parts)


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., H, W] → [..., *output_size]; None keeps a dimension. ``output_size=1`` is global pooling."""
    return _adaptive_pool(2, as_tensor(x), output_size, _mean_of_parts)


def adaptive_avg_pool3d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., D, H, W] → [..., *output_size], as `adaptive_avg_pool2d`."""
    return _adaptive_pool(3, as_tensor(x), output_size, _mean_of_parts)


def adaptive_max_pool1d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., L] → [..., output_size]: maxima of parts that cover x evenly."""
    return _adaptive_pool(1, as_tensor(x), output_size, _max_of_parts)


def adaptive_max_pool2d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., H, W] → [..., *output_size]; None keeps a dimension."""
    return _adaptive_pool(2, as_tensor(x), output_size, _max_of_parts)


def adaptive_max_pool3d(x: Tensor, output_size: Any) -> Tensor:
    """x [..., D, H, W] → [..., *output_size], as `adaptive_max_pool2d`."""
    return _adaptive_pool(3, as_tensor(x), output_size, _max_of_parts)
