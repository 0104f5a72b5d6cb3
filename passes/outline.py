"""Attention that was written out by hand becomes the region that `gc.scaled_dot_product_attention` makes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from graphc.dtype import Shape
from graphc.ir import Graph, Node, Value, toposort
from graphc.ops import get_op
from graphc.ops.attention import attention
from graphc.ops.base import Control, Meta, Region, apply_node, at_loc
from graphc.ops.build import Array, permute, reshape
from graphc.ops.region import walk_graph
from graphc.passes.rewrite import uniform, with_bodies

__all__ = ["outline"]

HIDDEN = -1e9  # a score from here down has weight 0 beside any score that a model computes
LARGEST_MASK = 1 << 24  # elements of a mask that are looked at

Masks = dict[tuple[Value, Shape, bool], bool]  # what `_is_causal` has found out


def outline(graph: Graph) -> Graph:
    """Wrap dot, scale, mask, softmax, dropout, dot in a `call` with hint "attention".

    Before: gradients are not yet written out (the region brings its own). After: there is one region where the pattern
    was, if scale, mask and dropout are each there or not, the mask is causal (by `where` or by adding -1e9 or less) and
    nothing else uses the weights, which are then never stored, forward or backward. Sums and products round in another
    order, and attention of 16-bit floats rounds once.

    Example: ``softmax(where(tril, q @ kᵀ * s, -inf)) @ v`` becomes
    ``call{hint="attention", is_causal=true, scale=s, dropout_p=0.0}(q, k, v)``.
    """
    masks: Masks = {}  # layers share their mask
    found = {node: a for node in graph if node.op == "dot" and (a := _match(graph, node, masks)) is not None}
    new: dict[Value, Value] = {}

    def visit(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
        new.update(zip(node.inputs, inputs, strict=True))
        return [_region(found[node], new, node)] if node in found else None

    return with_bodies(graph.rewrite(visit) if found else graph, outline)


@dataclass(frozen=True, slots=True)
class Matrices:
    """``value`` with its dimensions in the order ``axes``: batch dimensions, rows, columns."""

    value: Value
    axes: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.value.shape[self.axes[-1]]


@dataclass(frozen=True, slots=True)
class Dropout:
    keys: tuple[Value, ...] = ()
    p: float = 0.0


@dataclass(frozen=True, slots=True)
class Attention:
    """q [batch…, T, D], k and v [batch…, S, D], and the attributes of the region."""

    q: Matrices
    k: Matrices
    v: Matrices
    is_causal: bool
    scale: float
    dropout: Dropout


def _region(a: Attention, new: dict[Value, Value], node: Node) -> Value:
    """The result of the region, with the type of ``node``; the region has two batch dimensions."""
    with at_loc(node.loc):
        operands = []
        for m in (a.q, a.k, a.v):
            x = permute(new[m.value], m.axes)
            lead = x.shape[:-2]
            operands.append(reshape(x, (prod(lead[:-1]), lead[-1] if lead else 1, *x.shape[-2:])))
        operands.extend(new[key] for key in a.dropout.keys)
        types = [x.type for x in operands]
        rule = attention(types, is_causal=a.is_causal, scale=a.scale, dropout_p=a.dropout.p)
        return reshape(apply_node("call", *operands, **rule).out(), node.types[0].shape)


# The pattern, from the last product to the first ---------------------------------------------------------------------


def _match(graph: Graph, last: Node, masks: Masks) -> Attention | None:
    """The attention whose last product is ``last``, or None."""
    weights, v = _operand(last, 0), _operand(last, 1, rows_contracted=True)
    if weights is None or v is None or list(weights.axes) != sorted(weights.axes):
        return None
    kept, dropout = _undrop(weights.value)
    scores = _softmax_operand(kept)
    if scores is None or any(len(graph.users(w)) != 1 or w in graph.results for w in {weights.value, kept}):
        return None
    scores, is_causal = _unmask(scores, masks)
    scores, scale = _unscale(scores)
    q, k = (_operand(scores.node, side) for side in (0, 1)) if scores.node.op == "dot" else (None, None)
    if q is None or k is None or len(q.axes) != len(scores.shape) or q.width != v.width:
        return None
    return Attention(q, k, v, is_causal, scale, dropout)


def _operand(node: Node, side: int, rows_contracted: bool = False) -> Matrices | None:
    """An operand of a product as matrices, or None where it has not one free and one contracted dimension. The
    contracted one is the column, or the row."""
    batch, contract = node.attrs["batch"][side], node.attrs["contract"][side]
    value = node.inputs[side]
    free = [i for i in range(len(value.shape)) if i not in batch and i not in contract]
    if len(free) != 1 or len(contract) != 1:
        return None
    rows, columns = (contract, free) if rows_contracted else (free, contract)
    return Matrices(value, (*batch, *rows, *columns))


def _undrop(weights: Value) -> tuple[Value, Dropout]:
    """The weights before dropout: where(random_bits(k0, k1) >= p 2^32, w / (1 - p), 0)."""
    node = weights.node
    if node.op != "where" or uniform(node.inputs[2]) != 0:
        return weights, Dropout()
    keep, scaled = node.inputs[0].node, node.inputs[1].node
    if keep.op != "greater_equal" or keep.inputs[0].node.op != "random_bits" or scaled.op != "mul":
        return weights, Dropout()
    threshold, factor = uniform(keep.inputs[1]), uniform(scaled.inputs[1])
    spread = [key.node for key in keep.inputs[0].node.inputs]
    if threshold is None or factor is None or any(n.op != "broadcast_to" or n.inputs[0].shape for n in spread):
        return weights, Dropout()
    p = threshold / 2**32
    if abs(factor * (1 - p) - 1) > 1e-6:
        return weights, Dropout()
    return scaled.inputs[0], Dropout(tuple(n.inputs[0] for n in spread), p)


def _softmax_operand(weights: Value) -> Value | None:
    """s of exp(s - max(s)) / sum(exp(s - max(s))) along the last dimension."""
    if weights.node.op != "div":
        return None
    e, below = weights.node.inputs
    if e.node.op != "exp" or _reduced(below, "sum") != e or e.node.inputs[0].node.op != "sub":
        return None
    s, shift = e.node.inputs[0].node.inputs
    return s if _reduced(shift, "max") == s else None


def _reduced(value: Value, op: str) -> Value | None:
    """x where ``value`` is the reduction of x along its last dimension, broadcast back."""
    shape, node = value.shape, value.node
    seen = [node]
    while seen[-1].op in ("broadcast_to", "reshape", "stop_gradient"):
        seen.append(seen[-1].inputs[0].node)
    reduction = seen[-1]
    columns = (*shape[:-1], 1)
    wide = [n for n in seen if n.op == "broadcast_to"]
    if reduction.op != op or len(wide) != 1 or wide[0].inputs[0].shape != columns:
        return None
    x = reduction.inputs[0]
    return x if x.shape == shape and reduction.attrs["axes"] == (len(shape) - 1,) else None


def _unscale(scores: Value) -> tuple[Value, float]:
    scale = 1.0
    while scores.node.op in ("mul", "div"):
        left, right = scores.node.inputs
        number = uniform(right)
        if number is None and scores.node.op == "mul":
            left, number = right, uniform(left)
        if not number:
            break
        scores, scale = left, scale * number if scores.node.op == "mul" else scale / number
    return scores, scale


# Masks: whatever they are made of, their values decide ---------------------------------------------------------------


def _unmask(scores: Value, masks: Masks) -> tuple[Value, bool]:
    """The scores without a causal mask, and whether there was one."""
    node = scores.node
    if node.op == "where":
        visible, x, y = node.inputs
        for score, fill, keeps in ((x, y, True), (y, x, False)):
            number = uniform(fill)
            if number is not None and number <= HIDDEN and _is_causal(visible, keeps, masks):
                return score, True
    if node.op == "add":
        for score, bias in (node.inputs, node.inputs[::-1]):
            if _is_causal(bias, False, masks):
                return score, True
    return scores, False


def _is_causal(mask: Value, keeps: bool, masks: Masks) -> bool:
    """Whether ``mask`` is a constant that leaves query i the keys 0 to i: a bool that is ``keeps`` where a key is
    visible, or numbers that are 0 there and at most `HIDDEN` elsewhere."""
    shape = mask.shape[-2:]
    while mask.node.op == "broadcast_to":
        mask = mask.node.inputs[0]
    key = (mask, shape, keeps)
    if key not in masks:
        array = _constant(mask)
        masks[key] = array is not None and _is_triangle(array, shape, keeps)
    return masks[key]


def _is_triangle(array: Array, shape: Shape, keeps: bool) -> bool:
    if prod(array.shape[:-2]) != 1:
        return False
    array = np.broadcast_to(array.reshape(array.shape[-2:]), shape)
    visible = array == keeps if array.dtype == bool else array == 0
    hidden = ~visible if array.dtype == bool else array <= HIDDEN
    triangle = np.tri(*shape, dtype=np.bool_)
    return bool(np.array_equal(visible, triangle) and np.array_equal(hidden, ~triangle))


def _constant(value: Value) -> Array | None:
    """The array, where it depends on constants alone and is not too large to look at."""
    for node in toposort([value]):
        if node.op in ("input", "state") or isinstance(get_op(node.op).lower, Control | Region | Meta):
            return None
        if any(t.size > LARGEST_MASK for t in node.types):
            return None
    return walk_graph(Graph.build("mask", (), [("mask", value)]), (), {})[value]
