"""Products whose factors are rounded to 16 bits, while everything else stays as it is."""

from __future__ import annotations

from collections.abc import Iterable

from graphc.dtype import DType, float32
from graphc.ir import Graph, Node, Value
from graphc.ops.attention import HINT, attention
from graphc.ops.base import Contract, Join, Move, Split, apply, apply_node, at_loc, bodies, get_op
from graphc.ops.build import convert
from graphc.passes.rewrite import with_bodies

__all__ = ["moved_after", "precision", "round_factors"]


def round_factors(graph: Graph, to: DType) -> Graph:
    """The policy: every product of float32 in a traced graph gets the attribute ``factors`` = ``to``.

    Parameters, sums, norms, losses and the optimizer stay float32. Attention takes queries, keys and values of type
    ``to``, and computes with them in float32. The graph says what it computes, so the interpreter and an artifact that
    is compiled again do the same."""

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        if node.attrs.get("hint") == HINT:
            with at_loc(node.loc):
                return narrow_attention(node, inputs, to)
        rounded = {name: round_factors(node.attrs[name], to) for name in bodies(node)}
        if rounded:
            with at_loc(node.loc):
                return apply_node(node.op, *inputs, **{**node.attrs, **rounded}).outs
        multiplies = isinstance(get_op(node.op).lower, Contract) or node.op == "conv"
        if not multiplies or node.types[0].dtype != float32 or "factors" in node.attrs:
            return None
        with at_loc(node.loc):
            return [apply(node.op, *inputs, **node.attrs, factors=to)]

    return graph.rewrite(rule)


def narrow_attention(node: Node, inputs: tuple[Value, ...], to: DType) -> list[Value]:
    """The region of attention over operands of type ``to``, with results of the types that ``node`` has."""
    whole = sum(v.type.size for v in inputs if v.dtype.is_float)  # often of one product, which is rounded as it is made
    done: dict[Value, Value] = {}
    operands = [_moved_after(v, to, whole, done) if v.dtype == float32 else v for v in inputs]
    form = {name: node.attrs[name] for name in ("is_causal", "scale", "dropout_p")}
    made = apply_node(node.op, *operands, **attention([v.type for v in operands], **form))
    return [convert(v, t.dtype) for v, t in zip(made.outs, node.types, strict=True)]


def precision(graph: Graph) -> Graph:
    """Write ``dot{factors=t}`` as a product of casts.

    Before: gradients are written out and convolutions are products. After: no node has the attribute ``factors``.
    Equal casts are merged later, so that what several products share is rounded, and stored, once.

    Example: ``dot{factors=bfloat16}(%x, %w)`` becomes ``dot{dtype=float32}`` of ``astype{bfloat16}(%x)`` and
    ``astype{bfloat16}(%w)``.
    """

    def rule(node: Node, inputs: tuple[Value, ...]) -> Iterable[Value] | None:
        if "factors" not in node.attrs:
            return None
        settings = {k: v for k, v in node.attrs.items() if k != "factors"}
        with at_loc(node.loc):
            narrow = [moved_after(v, node.attrs["factors"]) for v in inputs]
            return [apply(node.op, *narrow, **settings, dtype=node.types[0].dtype)]

    return with_bodies(graph.rewrite(rule), precision)


def moved_after(value: Value, to: DType) -> Value:
    """``value`` as ``to``, converted before it is moved or joined: the elements of overlapping windows once, and the
    parts of a join in place."""
    return _moved_after(value, to, value.type.size, {})


def _moved_after(value: Value, to: DType, most: int, made: dict[Value, Value]) -> Value:
    """The same, where values of up to ``most`` elements are converted for it. ``made`` has what was converted before:
    parts of one value stay parts of one, so that their gradients are joined and not added."""
    node = value.node
    lowering = get_op(node.op).lower
    if value.dtype == to:
        return value
    if value in made:
        return made[value]
    if isinstance(lowering, Join):
        new = apply_node(node.op, *(_moved_after(v, to, v.type.size, made) for v in node.inputs), **node.attrs).outs
    elif isinstance(lowering, Move | Split) and node.inputs[0].type.size <= most:
        source = _moved_after(node.inputs[0], to, most, made)
        new = apply_node(node.op, source, *node.inputs[1:], **node.attrs).outs
    else:
        made[value] = convert(value, to)
        return made[value]
    made.update(zip(node.outs, new, strict=True))
    return made[value]
