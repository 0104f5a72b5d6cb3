"""Ops that have a gradient but no kernel of their own become primitives: convolutions, maxima and sums of windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphc.ir import Attrs, Graph, Node, Value
from graphc.ops import get_op
from graphc.ops.base import Meta, Reduce, apply, at_loc
from graphc.ops.build import convert
from graphc.ops.conv import elements
from graphc.passes.expand_conv import SMALL_WINDOW, convolution, tree
from graphc.passes.rewrite import with_bodies

__all__ = ["expand"]

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


def window_max(inputs: Sequence[Value], at: Attrs) -> Value:
    (x,) = inputs
    if prod(at["sizes"]) > SMALL_WINDOW:
        windows, ndim = apply("windows", x, **at), len(x.shape)
        return apply("max", windows, axes=tuple(range(ndim, len(windows.shape))))
    return tree("maximum", elements(x, at))


RULES = {"conv": convolution, "window_max": window_max}


def reduced_windows(node: Node, x: Value) -> Sequence[Value] | None:
    """A reduction of all dimensions of small windows, and of no others."""
    if x.node.op != "windows":
        return None
    ndim, sizes = len(x.node.inputs[0].shape), x.node.attrs["sizes"]
    if node.attrs["axes"] != tuple(range(ndim, len(x.shape))) or not 0 < prod(sizes) <= SMALL_WINDOW or not sizes:
        return None
    total = tree(COMBINE[node.op], elements(convert(x.node.inputs[0], x.dtype.computed), x.node.attrs))
    return [convert(total, x.dtype)]  # rounded once, as the reduction is


assert all(isinstance(get_op(name).lower, Meta) for name in RULES)
