"""One layout for the images of a graph: channels last, from the first convolution to the last."""

from __future__ import annotations

from math import prod

from graphc.ir import Graph, Value
from graphc.ops.base import apply
from graphc.ops.build import inverse, permute, reshape
from graphc.passes.movement import MAPS, MOVEMENT, shape_of, spread
from graphc.passes.rewrite import Match, op, rewrite, rule, uniform, var

__all__ = ["layout"]


def layout(graph: Graph) -> Graph:
    """Move the turn from channels last to channels first, which every convolution ends with, down past all that can be
    done before it, until it meets the turn back at the next convolution, or a sum over the images.

    Before: convolutions are written with channels last between two turns. After: nothing turns between them, and all
    that is elementwise there is done channels last. The values are the same.

    Example: ``max(permute{axes=(0, 3, 1, 2)}(x), 0)`` becomes ``permute{axes=(0, 3, 1, 2)}(max(x, 0))``.
    """
    turned = any(channels_last(node.out()) is not None for node in graph.nodes if node.op == "permute_dims")
    return rewrite(graph, (*LAYOUT, *MOVEMENT)) if turned else graph


def first(ndim: int) -> tuple[int, ...]:
    """The axes that put the last dimension second."""
    return (0, ndim - 1, *range(1, ndim - 1))


def channels_last(value: Value) -> Value | None:
    """What ``value`` is the turn to channels first of: images [B, *sizes, C] of two dimensions or more."""
    node, ndim = value.node, len(value.shape)
    return node.inputs[0] if ndim >= 4 and node.op == "permute_dims" and node.attrs["axes"] == first(ndim) else None


def turned_back(value: Value) -> Value:
    """``value`` with channels last."""
    last = channels_last(value)
    if last is not None:
        return last
    back = inverse(first(len(value.shape)))
    shape = tuple(value.shape[a] for a in back)
    return spread(value, shape) if uniform(value) is not None else permute(value, back)


def first_again(value: Value) -> Value:
    return permute(value, first(len(value.shape)))


def below_map(m: Match) -> Value | None:
    """f(turn(x), y) = turn(f(x, turn⁻¹(y)))."""
    if all(channels_last(v) is None for v in m.root.inputs):
        return None
    return first_again(apply(m.root.op, *map(turned_back, m.root.inputs), **m.root.attrs))


def below_concat(m: Match) -> Value | None:
    """concat(turn(x), turn(y)) = turn(concat(x, y))."""
    node = m.root
    if any(channels_last(v) is None and uniform(v) is None for v in node.inputs):
        return None
    if all(channels_last(v) is None for v in node.inputs):
        return None
    axis = first(len(shape_of(m)))[node.attrs["axis"]]
    return first_again(apply("concat", *map(turned_back, node.inputs), axis=axis))


def below_slice(m: Match) -> Value | None:
    """slice(turn(x)) = turn(slice(x))."""
    last = channels_last(m.x)
    if last is None:
        return None
    back = inverse(first(len(last.shape)))
    return first_again(apply("slice", last, **{k: tuple(v[a] for a in back) for k, v in m.root.attrs.items()}))


def below_flattening(m: Match) -> Value | None:
    """[B, C, H W] of turn(x) is the transpose of [B, H W, C] of x."""
    last, shape = channels_last(m.x), shape_of(m)
    if last is None or shape != (*m.x.shape[:2], prod(m.x.shape[2:])):
        return None
    return permute(reshape(last, (shape[0], shape[2], shape[1])), (0, 2, 1))


x = var("x")

LAYOUT = (
    rule(op(MAPS), below_map),
    rule(op("concat"), below_concat),
    rule(op("slice", x), below_slice),
    rule(op("reshape", x), below_flattening),
)
