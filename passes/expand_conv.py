"""Convolutions as products over windows, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from graphc.dtype import DType
from graphc.ir import Attrs, Value
from graphc.ops.base import apply
from graphc.ops.build import convert, mul, permute, reshape
from graphc.ops.contract import rounding
from graphc.ops.conv import Geometry, channels_first, channels_last, elements, padded
from graphc.ops.windows import extent, pad, side_by_side, windows_of

__all__ = ["SMALL_WINDOW", "convolution", "tree"]

SMALL_WINDOW = 64  # elements; up to here a window is reduced by a chain of maps over views, one per element
Kept = dict[str, DType]  # the settings of `dot` that a convolution hands on

MOST_PHASES = 16  # of a convolution with zeros between the elements of its input: each is a kernel


def convolution(inputs: Sequence[Value], at: Attrs) -> Value:
    """x [B, C, *sizes] and w [O, C / groups, *window] → [B, O, *counts], computed with channels last: vectors run along
    the channels, whatever the sizes of the images, and a row of a window is one run of memory."""
    x, w = inputs
    g = Geometry.of(at)
    kept = rounding(x.dtype, at)
    few = prod(g.counts(x.shape[2:], w.shape[2:])) <= SMALL_WINDOW < prod(w.shape[2:])
    if g.groups == w.shape[0] and x.shape[0] == 1 and few and not any(g.interior) and not kept:
        return depthwise_gradient(x, w, g)
    if all(s == 1 for s in g.strides) and 1 < prod(gap + 1 for gap in g.interior) <= MOST_PHASES:
        return channels_first(phases(channels_last(x), w, g, kept))
    return channels_first(product(channels_last(padded(x, g)), w, g, kept))


def product(x: Value, w: Value, g: Geometry, kept: Kept) -> Value:
    """The convolution of x [B, *sizes, C], which is padded, and w [O, C / groups, *window] → [B, *counts, O]."""
    n = len(g.strides)
    out, inner, *kernel = w.shape
    at = windows_of(range(1, n + 1), kernel, g.strides, g.dilations)
    if g.groups == out == x.shape[-1] and prod(kernel) <= SMALL_WINDOW and not kept:
        return depthwise(elements(x, at), w)
    windows = apply("windows", x, **at)
    over = range(n + 2, 2 * n + 2)
    counts = windows.shape[: n + 1]
    if g.groups == 1:
        contract = ((n + 1, *over), tuple(range(1, n + 2)))
        if prod(kernel) <= prod(counts[1:]):
            return apply("dot", windows, w, batch=((), ()), contract=contract, **kept)
        # Few long windows: the gradient of a weight, whose batch are the channels of images. They stay together.
        order = (*range(1, n + 1), 0)
        turned = permute(windows, [*order, n + 1, *over])
        found = apply("dot", turned, w, batch=((), ()), contract=contract, **kept)
        return permute(found, [n, *range(n), n + 1])
    split = reshape(windows, (*counts, g.groups, inner, *kernel))
    weight = reshape(w, (g.groups, out // g.groups, inner, *kernel))
    contract = ((n + 2, *(d + 1 for d in over)), tuple(range(2, n + 3)))
    # [groups, B, *counts, O / groups]
    found = apply("dot", split, weight, batch=((n + 1,), (0,)), contract=contract, **kept)
    return reshape(permute(found, [*range(1, n + 2), 0, n + 2]), (*counts, out))


def depthwise(taps: Sequence[Value], w: Value) -> Value:
    """One window for each channel: no product, but the sum of ``taps`` [B, *counts, C], the elements of all windows by
    their place, times one number per channel each. It fuses with what is around it."""
    rows = reshape(w, (w.shape[0], len(taps)))
    terms, wide = [], w.dtype.computed
    for i, tap in enumerate(taps):
        column = apply("slice", rows, start=(0, i), stop=(rows.shape[0], i + 1), step=(1, 1))
        factor = convert(reshape(column, rows.shape[:1]), wide)
        terms.append(mul(convert(tap, wide), apply("broadcast_to", factor, shape=tap.shape)))
    return convert(tree("add", terms), w.dtype)


def depthwise_gradient(x: Value, w: Value, g: Geometry) -> Value:
    """The gradient of a depthwise weight: x [1, channels images, *sizes], seen through a long window for each channel,
    w [channels, images, *window] → [1, channels, *counts]. Each of the few places of the result is a sum, over images
    and window, of what the window sees there times the window, with vectors along the channels. They are one pass."""
    channels, images, *window = w.shape
    n, wide, counts = len(window), w.dtype.computed, g.counts(x.shape[2:], window)
    x = padded(x, g) if any((*g.low, *g.high)) else x
    apart, made = (1, channels, images, *x.shape[2:]), x.node
    seen = made.inputs[0] if made.op == "reshape" and made.inputs[0].shape == apart else reshape(x, apart)
    seen = convert(reshape(permute(seen, (0, 2, *range(3, n + 3), 1)), (images, *x.shape[2:], channels)), wide)
    factor = convert(permute(w, (1, *range(2, n + 2), 0)), wide)  # [images, *window, channels]
    bounds = [(0, size) for size in factor.shape]
    places = elements(seen, windows_of(range(1, n + 1), counts, g.dilations, g.strides))
    sums = [apply("sum", mul(cut(place, bounds), factor), axes=tuple(range(n + 1))) for place in places]
    found = apply("concat", *(reshape(convert(s, w.dtype), (1, channels)) for s in sums), axis=0)
    return reshape(permute(found, (1, 0)), (1, channels, *counts))


def tree(op: str, values: Sequence[Value]) -> Value:
    """All ``values`` combined, neighbours first, so that rounding errors grow with the depth only."""
    level = list(values)
    while len(level) > 1:
        level = [apply(op, *level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    return level[0]


# Zeros between the elements of the input: the gradient of a stride ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    """What the results ``gap`` apart have in common along one dimension: they meet every ``step``-th element of the
    window from ``first`` on, ``taps`` in all, which look at elements ``dilation`` apart of a cut of the input that
    begins ``low`` elements before it and is ``length`` long."""

    first: int
    step: int
    taps: int
    low: int
    length: int
    dilation: int


def phases(x: Value, w: Value, g: Geometry, kept: Kept) -> Value:
    """The convolution of x [B, *sizes, C] with zeros between its elements. Results that are ``interior + 1`` apart meet
    the same elements of the window and no zeros: they are a convolution of their own, and lie beside the others'."""
    counts, n = g.counts(x.shape[1:-1], w.shape[2:]), len(g.strides)
    found = [axis_phases(g, d, w.shape[2 + d], counts[d]) for d in range(n)]
    made = [[p for p in row if p] for row in found]
    low = [max(0, *(p.low for p in row)) if row else 0 for row in made]
    ends = [max((p.length - p.low for p in row), default=0) for row in made]
    high = [max(0, end - size) for end, size in zip(ends, x.shape[1:-1], strict=True)]
    x = pad(x, (0, *low, 0), (0, *high, 0))
    plain = replace(g, low=(0,) * n, high=(0,) * n, interior=(0,) * n)
    whole = all_phases(x, w, plain, found, low, kept)
    return cut(whole, [(0, size) for size in (x.shape[0], *counts, whole.shape[-1])])


def axis_phases(g: Geometry, d: int, window: int, count: int) -> list[Phase | None]:
    """The phases along spatial dimension ``d``; None where no element of the window meets one of the input."""
    gap, dilation, low = g.interior[d] + 1, g.dilations[d], g.low[d]
    step = gap // gcd(gap, dilation)
    found: list[Phase | None] = []
    for r in range(gap):
        first = next((j for j in range(window) if (r + j * dilation - low) % gap == 0), None)
        if first is None:
            found.append(None)
            continue
        taps, apart = -(-(window - first) // step), step * dilation // gap
        before = (low - r - first * dilation) // gap
        found.append(Phase(first, step, taps, before, -(-count // gap) - 1 + extent(taps, apart), apart))
    return found


def all_phases(
    x: Value, w: Value, g: Geometry, found: Sequence[Sequence[Phase | None]], low: Sequence[int], kept: Kept
) -> Value:
    """All phases of the dimensions that ``found`` is left for, the last ones; ``low`` is the padding of x."""
    if not found:
        return product(x, w, g, kept)
    axis = len(g.strides) - len(found)
    parts: list[Value | None] = []
    for p in found[0]:
        if p is None:
            parts.append(None)
            continue
        start = low[0] - p.low
        seen = cut(x, [(start, start + p.length) if d == axis + 1 else (0, size) for d, size in enumerate(x.shape)])
        bounds = [(p.first, size) if d == axis + 2 else (0, size) for d, size in enumerate(w.shape)]
        taps = cut(w, bounds, [p.step if d == axis + 2 else 1 for d in range(len(w.shape))])
        dilations = (*g.dilations[:axis], p.dilation, *g.dilations[axis + 1 :])
        parts.append(all_phases(seen, taps, replace(g, dilations=dilations), found[1:], low[1:], kept))
    joined = side_by_side(parts, axis + 1)
    assert joined is not None, "some element of a window meets one of the input"
    return joined


def cut(x: Value, bounds: Sequence[tuple[int, int]], step: Sequence[int] | None = None) -> Value:
    start, stop = zip(*bounds, strict=True)
    return apply("slice", x, start=start, stop=stop, step=tuple(step or (1,) * len(bounds)))
