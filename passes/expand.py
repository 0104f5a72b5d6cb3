"""Ops that have a gradient but no kernel of their own become primitives: convolutions, maxima and sums of windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

from graphc.dtype import DType
from graphc.ir import Attrs, Graph, Node, Value
from graphc.ops import get_op
from graphc.ops.base import Meta, Reduce, apply, at_loc
from graphc.ops.build import convert, permute, reshape
from graphc.ops.contract import rounding
from graphc.ops.conv import Geometry, elements
from graphc.ops.windows import pad
from graphc.passes.rewrite import with_bodies

__all__ = ["expand"]

SMALL_WINDOW = 64  # elements; up to here a window is reduced by a chain of maps over views, one per element
NARROW = 4  # a row of results this short (of a weight, mostly) leaves vectors empty: then channels are put last
COMBINE = {"sum": "add", "max": "maximum", "min": "minimum", "prod": "mul"}


def expand(graph: Graph) -> Graph:
    """Write `conv` as `dot` over `windows`, and reductions of small windows as maps over their elements.

    Before: gradients are written out (these ops bring their own). After: no op is left whose lowering is
    ``Meta(by="expand")``. The sums of a window are added in another order.

    Example: ``window_max{axes=(0), sizes=(2), ...}(x)`` becomes ``maximum(x[0::2], x[1::2])``.
    """

    def visit(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value] | None:
        with at_loc(node.loc):
            if isinstance(get_op(node.op).lower, Reduce):
                return reduced_windows(node, inputs[0])
            rule = RULES.get(node.op)
            return None if rule is None else [rule(inputs, node.attrs)]

    return with_bodies(graph.rewrite(visit), expand)


def convolution(inputs: Sequence[Value], at: Attrs) -> Value:
    """The product of the padded input's windows and the weight, over channels and window."""
    x, w = inputs
    g = Geometry.of(at)
    n = len(g.strides)
    x = pad(x, (0, 0, *g.low), (0, 0, *g.high), (0, 0, *g.interior))
    windows = apply(
        "windows",
        x,
        axes=tuple(range(2, n + 2)),
        sizes=w.shape[2:],
        strides=g.strides,
        dilations=g.dilations,
    )
    product = narrow_product if windows.shape[n + 1] < NARROW else wide_product
    return product(windows, w, g.groups, rounding(x.dtype, at))


def wide_product(windows: Value, w: Value, groups: int, kept: dict[str, DType]) -> Value:
    """Vectors run along the positions: for each image and group, weight [O, C, window] times windows [C, window, P].

    The weight is the same for all images: a batch dimension that it is repeated along, for nothing, so that the
    result's dimensions come out as they are wanted, and what follows per element can join the product.
    """
    batch, _, *rest = windows.shape
    n = len(rest) // 2
    out, inner, *kernel = w.shape
    wanted = (batch, out, *rest[:n])
    if groups == 1:
        repeated = apply("broadcast_to", w, shape=(batch, *w.shape))
        contract = ((2, *range(3, n + 3)), (1, *range(n + 2, 2 * n + 2)))
        return apply("dot", repeated, windows, batch=((0,), (0,)), contract=contract, **kept)
    repeated = apply(
        "broadcast_to",
        reshape(w, (groups, out // groups, inner, *kernel)),
        shape=(batch, groups, out // groups, inner, *kernel),
    )
    split = reshape(windows, (batch, groups, inner, *rest))
    contract = ((3, *range(4, n + 4)), (2, *range(n + 3, 2 * n + 3)))
    return reshape(apply("dot", repeated, split, batch=((0, 1), (0, 1)), contract=contract, **kept), wanted)


def narrow_product(windows: Value, w: Value, groups: int, kept: dict[str, DType]) -> Value:
    """Vectors run along the output channels: for each group, windows [B, P, C, window] times weight [C, window, O]."""
    batch, _, *rest = windows.shape
    n = len(rest) // 2
    out, inner, *kernel = w.shape
    window = range(n + 2, 2 * n + 2)
    if groups == 1:
        contract = ((1, *window), (1, *range(2, n + 2)))
        product = apply("dot", windows, w, batch=((), ()), contract=contract, **kept)  # [B, *P, O]
        return permute(product, [0, n + 1, *range(1, n + 1)])
    split = reshape(windows, (batch, groups, inner, *rest))
    weight = reshape(w, (groups, out // groups, inner, *kernel))
    contract = ((2, *(d + 1 for d in window)), (2, *range(3, n + 3)))
    product = apply("dot", split, weight, batch=((1,), (0,)), contract=contract, **kept)  # [groups, B, *P, O / groups]
    return reshape(permute(product, [1, 0, n + 2, *range(2, n + 2)]), (batch, out, *rest[:n]))


def window_max(inputs: Sequence[Value], at: Attrs) -> Value:
    (x,) = inputs
    windows = apply("windows", x, **at)
    ndim = len(x.shape)
    if prod(at["sizes"]) > SMALL_WINDOW:
        return apply("max", windows, axes=tuple(range(ndim, len(windows.shape))))
    return tree("maximum", elements(windows, ndim))


RULES = {"conv": convolution, "window_max": window_max}


def reduced_windows(node: Node, x: Value) -> Sequence[Value] | None:
    """A reduction of all dimensions of small windows, and of no others."""
    if x.node.op != "windows":
        return None
    ndim, sizes = len(x.node.inputs[0].shape), x.node.attrs["sizes"]
    if node.attrs["axes"] != tuple(range(ndim, len(x.shape))) or not 0 < prod(sizes) <= SMALL_WINDOW or not sizes:
        return None
    total = tree(COMBINE[node.op], elements(convert(x, x.dtype.computed), ndim))
    return [convert(total, x.dtype)]  # rounded once, as the reduction is


def tree(op: str, values: Sequence[Value]) -> Value:
    """All ``values`` combined, neighbours first, so that rounding errors grow with the depth only."""
    level = list(values)
    while len(level) > 1:
        level = [reduce(lambda a, b: apply(op, a, b), level[i : i + 2]) for i in range(0, len(level), 2)]
    return level[0]


assert all(isinstance(get_op(name).lower, Meta) for name in RULES)
