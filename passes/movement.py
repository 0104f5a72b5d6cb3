"""Rules for movement, reductions, contractions, joins and splits: part of the table of `simplify`.

All are exact except that a sum of n equal numbers becomes one product, and that sums of sums become one sum (fewer
roundings, or roundings in another order).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from graphc.dtype import Shape, broadcast_shapes
from graphc.ir import Attrs, Node, Value
from graphc.ops import OPS
from graphc.ops.base import Map, apply
from graphc.ops.build import convert, mul, neg, permute, reshape
from graphc.passes.rewrite import Match, Rule, op, rule, uniform, var

__all__ = ["MOVEMENT"]

MAPS = tuple(o.name for o in OPS if isinstance(o.lower, Map) and not o.lower.coords)
SHORT = 4  # elements; a vector of fewer is mostly empty
REDUCTIONS = ("sum", "max", "min", "prod")

x, y = var("x"), var("y")


def shape_of(m: Match) -> Shape:
    return m.root.types[0].shape


def broadcast(value: Value, shape: Shape) -> Value:
    return value if value.shape == shape else apply("broadcast_to", value, shape=shape)


def aligned(value: Value, ndim: int) -> Value:
    """``value`` with leading dimensions of one, as broadcasting sees it."""
    return reshape(value, (1,) * (ndim - len(value.shape)) + value.shape)


def units_only(node: Node) -> bool:
    """Whether a reshape only adds and removes dimensions of one."""
    return [d for d in node.inputs[0].shape if d != 1] == [d for d in node.types[0].shape if d != 1]


def increasing(axes: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(axes))


# Elementwise ops and broadcasts --------------------------------------------------------------------------------------


def before_broadcast(m: Match) -> Value | None:
    """f(broadcast(x), broadcast(y)) = broadcast(f(x, y)), on the smallest shape that x and y share."""
    node, shape = m.root, shape_of(m)
    if not shape or any(v.node.op != "broadcast_to" for v in node.inputs):
        return None
    sources = [v.node.inputs[0] for v in node.inputs]
    joint = broadcast_shapes(*(s.shape for s in sources))
    if prod(joint) == prod(shape):
        return None
    return broadcast(apply(node.op, *(broadcast(s, joint) for s in sources), **node.attrs), shape)


def before_unit_reshape(m: Match) -> Value | None:
    """f(reshape(x), reshape(y), k) = reshape(f(x, y, k)), where the reshapes only add or remove dimensions of one."""
    node = m.root
    shapes = {v.node.inputs[0].shape for v in node.inputs if v.node.op == "reshape" and units_only(v.node)}
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    operands = [with_shape(v, shape) for v in node.inputs]
    if any(v is None for v in operands):
        return None
    return reshape(apply(node.op, *(v for v in operands if v is not None), **node.attrs), shape_of(m))


def with_shape(value: Value, shape: Shape) -> Value | None:
    """The operand of a reshape from ``shape``, or a uniform constant of that shape."""
    if value.node.op == "reshape" and value.node.inputs[0].shape == shape:
        return value.node.inputs[0]
    return spread(value, shape) if uniform(value) is not None else None


def spread(value: Value, shape: Shape) -> Value:
    """The number that a uniform constant holds, in ``shape``."""
    while value.node.op != "const":
        value = value.node.inputs[0]
    return broadcast(reshape(value, ()), shape)


ELEMENTWISE = (
    rule(op(MAPS), before_broadcast),
    rule(op(MAPS), before_unit_reshape),
)


# Movement ------------------------------------------------------------------------------------------------------------


def move_of_uniform(m: Match) -> Value | None:
    """A constant that is the same everywhere is a broadcast of one number, however it was moved."""
    return spread(m.x, shape_of(m)) if uniform(m.x) is not None and m.x.node.op == "broadcast_to" else None


def nested_permute(m: Match) -> Value:
    inner = m.p.node.attrs["axes"]
    return permute(m.x, [inner[a] for a in m.root.attrs["axes"]])


def nested_slice(m: Match) -> Value:
    """x[a:b:s][c:d:t] = x[a + c s : a + d s : s t], cut at b."""
    inner, outer = m.s.node.attrs, m.root.attrs
    start, stop, step = [], [], []
    for (a, b, s), (c, d, t) in zip(_ranges(inner), _ranges(outer), strict=True):
        start.append(min(a + c * s, b))
        stop.append(min(a + d * s, b))
        step.append(s * t)
    return apply("slice", m.x, start=tuple(start), stop=tuple(stop), step=tuple(step))


def _ranges(at: Attrs) -> list[tuple[int, int, int]]:
    return list(zip(at["start"], at["stop"], at["step"], strict=True))


def permute_of_units(m: Match) -> Value | None:
    moved = [a for a in m.root.attrs["axes"] if m.x.shape[a] != 1]
    return reshape(m.x, shape_of(m)) if increasing(moved) else None


def permute_of_broadcast(m: Match) -> Value:
    return broadcast(permute(aligned(m.x, len(shape_of(m))), m.root.attrs["axes"]), shape_of(m))


def broadcast_of_leading_units(m: Match) -> Value | None:
    """broadcast(x with leading dimensions of one) = broadcast(x)."""
    lead = len(m.r.shape) - len(m.x.shape)
    return broadcast(m.x, shape_of(m)) if lead > 0 and m.r.shape == (1,) * lead + m.x.shape else None


def same_size_broadcast(m: Match) -> Value | None:
    """A broadcast that repeats nothing is a reshape (constants stay broadcasts, for `uniform` to see)."""
    return reshape(m.x, shape_of(m)) if m.x.type.size == prod(shape_of(m)) and uniform(m.x) is None else None


MOVES_RULES = (
    # a move that changes nothing
    rule(op(("reshape", "broadcast_to"), x), lambda m: m.x if m.x.shape == shape_of(m) else None),
    rule(op("permute_dims", x), lambda m: m.x if increasing(m.root.attrs["axes"]) else None),
    rule(op("slice", x), lambda m: m.x if m.x.shape == shape_of(m) else None),
    # two moves of one kind are one
    rule(op("reshape", op("reshape", x)), lambda m: reshape(m.x, shape_of(m))),
    rule(op("broadcast_to", op("broadcast_to", x)), lambda m: broadcast(m.x, shape_of(m))),
    rule(op("permute_dims", op("permute_dims", x, name="p")), nested_permute),
    rule(op("slice", op("slice", x, name="s")), nested_slice),
    # moves of one kind that are another, cheaper one
    rule(op(("reshape", "permute_dims", "slice"), x), move_of_uniform),
    rule(op("permute_dims", x), permute_of_units),
    rule(op("permute_dims", op("broadcast_to", x)), permute_of_broadcast),
    rule(op("broadcast_to", op("reshape", x, name="r")), broadcast_of_leading_units),
    rule(op("broadcast_to", x), same_size_broadcast),
)


# Reductions ----------------------------------------------------------------------------------------------------------


def reduce_units(m: Match) -> Value | None:
    """Reduction along dimensions of one (or none) is a reshape."""
    axes, shape = m.root.attrs["axes"], m.x.shape
    units = [a for a in axes if shape[a] == 1]
    if axes and not units:
        return None
    kept = [i for i in range(len(shape)) if i not in units]
    rest = tuple(kept.index(a) for a in axes if a not in units)
    value = reshape(m.x, tuple(shape[i] for i in kept))
    return apply(m.root.op, value, axes=rest) if rest else value


def reduce_of_broadcast(m: Match) -> Value | None:
    """sum(broadcast(x)) = n sum(x) and max(broadcast(x)) = max(x), along the repeated dimensions."""
    shape, axes = m.b.shape, m.root.attrs["axes"]
    source = aligned(m.x, len(shape))
    repeated = [a for a in axes if source.shape[a] == 1 and shape[a] != 1]
    if not repeated or 0 in shape:
        return None
    once = tuple(1 if i in repeated else d for i, d in enumerate(shape))
    value = apply(m.root.op, broadcast(source, once), axes=axes)
    if m.root.op != "sum":
        return value
    wide = convert(value, value.dtype.computed)  # a count may be more than 16 bits hold
    return convert(mul(wide, prod(shape[a] for a in repeated)), value.dtype)


def reduce_of_reduce(m: Match) -> Value:
    """sum(sum(x)) = sum(x) along the axes of both."""
    inner = m.r.node.attrs["axes"]
    left = [i for i in range(len(m.x.shape)) if i not in inner]
    return apply(m.root.op, m.x, axes=tuple(sorted([*inner, *(left[a] for a in m.root.attrs["axes"])])))


def reduce_of_permute(m: Match) -> Value:
    """sum(permute(x)) = permute(sum(x))."""
    moved, axes = m.p.node.attrs["axes"], m.root.attrs["axes"]
    left = [a for i, a in enumerate(moved) if i not in axes]
    value = apply(m.root.op, m.x, axes=tuple(sorted(moved[a] for a in axes)))
    return permute(value, [sorted(left).index(a) for a in left])


def reduce_of_unit_reshape(m: Match) -> Value | None:
    """sum(reshape(x)) = reshape(sum(x)), where the reshape only adds or removes dimensions of one."""
    if not units_only(m.r.node):
        return None
    source = iter([i for i, d in enumerate(m.x.shape) if d != 1])
    to = {i: next(source) for i, d in enumerate(m.r.shape) if d != 1}
    axes = tuple(to[a] for a in m.root.attrs["axes"] if a in to)
    return reshape(apply(m.root.op, m.x, axes=axes), shape_of(m))


def same_reduce(name: str) -> Rule:
    return rule(op(name, op(name, x, name="r")), reduce_of_reduce)


REDUCE_RULES = (
    rule(op(REDUCTIONS, x), reduce_units),
    rule(op(("sum", "max", "min"), op("broadcast_to", x, name="b")), reduce_of_broadcast),
    *(same_reduce(name) for name in REDUCTIONS),
    # sum(-x) = -sum(x)
    rule(op("sum", op("neg", x)), lambda m: neg(apply("sum", m.x, **m.root.attrs))),
    rule(op(REDUCTIONS, op("permute_dims", x, name="p")), reduce_of_permute),
    rule(op(REDUCTIONS, op("reshape", x, name="r")), reduce_of_unit_reshape),
)


# Contractions --------------------------------------------------------------------------------------------------------


def dot_of_permute(m: Match) -> Value | None:
    """dot(permute(x), y) = dot(x, y) along other axes, where the order of x's free dimensions stays."""
    node = m.root
    batch, contract, operands = list(node.attrs["batch"]), list(node.attrs["contract"]), list(node.inputs)
    for side, value in enumerate(node.inputs):
        if value.node.op != "permute_dims":
            continue
        moved, used = value.node.attrs["axes"], {*batch[side], *contract[side]}
        if increasing([a for i, a in enumerate(moved) if i not in used]):
            batch[side] = tuple(moved[i] for i in batch[side])
            contract[side] = tuple(moved[i] for i in contract[side])
            operands[side] = value.node.inputs[0]
    if operands == list(node.inputs):
        return None
    return apply("dot", *operands, **{**node.attrs, "batch": tuple(batch), "contract": tuple(contract)})


def permute_of_dot(m: Match) -> Value | None:
    """permute(dot(x, y)) = dot(y, x), where the permutation swaps all of x's free dimensions with all of y's. Not where
    that would put a short dimension last, along which products have their vectors."""
    if shape_of(m)[-1] < SHORT and m.d.shape[-1] >= 2 * SHORT:
        return None
    (bx, by), (cx, cy) = m.d.node.attrs["batch"], m.d.node.attrs["contract"]
    ndim, nb = len(m.d.shape), len(bx)
    split = len(m.x.shape) - len(cx)  # batch and free dimensions of x
    axes = m.root.attrs["axes"]
    if axes != (*axes[:nb], *range(split, ndim), *range(nb, split)) or sorted(axes[:nb]) != list(range(nb)):
        return None
    batch = (tuple(by[a] for a in axes[:nb]), tuple(bx[a] for a in axes[:nb]))
    return apply("dot", m.y, m.x, **{**m.d.node.attrs, "batch": batch, "contract": (cy, cx)})


DOT_RULES = (
    rule(op("dot"), dot_of_permute),
    rule(op("permute_dims", op("dot", x, y, name="d")), permute_of_dot),
)


# Joins and splits ----------------------------------------------------------------------------------------------------


def concat_of_split(m: Match) -> Value | None:
    """concat(split(x)) = x; concat(x) = x."""
    node, first = m.root, m.root.inputs[0].node
    if len(node.inputs) == 1:
        return node.inputs[0]
    same = first.op == "split" and node.inputs == first.outs and first.attrs["axis"] == node.attrs["axis"]
    return first.inputs[0] if same else None


def concat_of_concat(m: Match) -> Value | None:
    node = m.root
    inner = [v.node.op == "concat" and v.node.attrs["axis"] == node.attrs["axis"] for v in node.inputs]
    if not any(inner):
        return None
    flat = [u for v, nested in zip(node.inputs, inner, strict=True) for u in (v.node.inputs if nested else (v,))]
    return apply("concat", *flat, axis=node.attrs["axis"])


def split_of_concat(m: Match) -> Sequence[Value] | None:
    """split(concat(x, y)) = x, y where the sizes are theirs; split(x) into one part = x."""
    node, axis = m.root, m.root.attrs["axis"]
    if len(node.types) == 1:
        return [m.x]
    parts, same = m.x.node.inputs, m.x.node.op == "concat" and m.x.node.attrs["axis"] == axis
    return parts if same and tuple(v.shape[axis] for v in parts) == node.attrs["sizes"] else None


def slice_of_concat(m: Match) -> Value | None:
    """A slice that lies within one part of a concat is a slice of the part."""
    at, axis, offset = m.root.attrs, m.c.node.attrs["axis"], 0
    for part in m.c.node.inputs:
        start, stop = at["start"][axis] - offset, at["stop"][axis] - offset
        if start >= 0 and stop <= part.shape[axis]:
            moved = {"start": list(at["start"]), "stop": list(at["stop"])}
            moved["start"][axis], moved["stop"][axis] = start, stop
            return apply("slice", part, start=tuple(moved["start"]), stop=tuple(moved["stop"]), step=at["step"])
        offset += part.shape[axis]
    return None


JOIN_RULES = (
    rule(op("concat"), concat_of_split),
    rule(op("concat"), concat_of_concat),
    rule(op("split", x), split_of_concat),
    rule(op("slice", op("concat", name="c")), slice_of_concat),
)

MOVEMENT: tuple[Rule, ...] = (*ELEMENTWISE, *MOVES_RULES, *REDUCE_RULES, *DOT_RULES, *JOIN_RULES)
