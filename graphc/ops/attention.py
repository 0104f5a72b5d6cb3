"""Scaled dot-product attention as a region: its decomposition and its gradient by hand, as graphs over primitives.

The name lets code generation find the pattern; the body says what it means, and its inputs name the operands. Source of
the gradient: Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2 (the row sums of dP * P are those of dO * O).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import inf
from typing import Any

from graphc.dtype import Shape, TensorType, bool_, finfo, int32, uint32
from graphc.ir import Graph, Value
from graphc.ops.base import apply, at_loc
from graphc.ops.build import add, broadcast_axes, convert, full, mul, sub, where, zeros

__all__ = ["HINT", "attention"]

HINT = "attention"

HEADS = ((0, 1), (0, 1))  # batch and head are the batch dimensions of every product


def attention(types: Sequence[TensorType], *, is_causal: bool, scale: float, dropout_p: float = 0.0) -> dict[str, Any]:
    """The attributes of the `call` node of attention, softmax(scale q kᵀ) v, whose operands have ``types``.

    Operands: q [B,H,T,D], k [B,H,S,D], v [B,H,S,D], floats; those of 16 bits are widened, and what comes of them is
    rounded once (o has the type of q, lse is float32 then); perhaps a mask, bool [B,H,T,S], whose first three
    dimensions may be 1: the keys that a query sees; with dropout also k0 and k1, the key of the random numbers as two
    uint32 scalars. Results: o [B,H,T,D] and lse [B,H,T], the log of the sum of the exponentials of a row's scores. A
    query that the mask leaves no key has o = 0 and as lse the lowest number of its type. ``is_causal``: query i sees
    the keys 0 to i. ``dropout_p`` in [0, 1) zeroes each weight with that probability and divides the others by
    1 - dropout_p. Raises GC01xx where the types do not fit.
    """
    form = Form(is_causal, float(scale), float(dropout_p))
    body, vjp = _graphs(tuple(types), form)
    return {"body": body, "vjp": vjp, "hint": HINT, **asdict(form)}


@dataclass(frozen=True, slots=True)
class Form:
    is_causal: bool
    scale: float
    dropout_p: float


@lru_cache(maxsize=64)
def _graphs(types: tuple[TensorType, ...], form: Form) -> tuple[Graph, Graph]:
    """The body and the gradient; one object for all layers of one shape."""
    with at_loc(None):
        return _body(types, form), _vjp(types, form)


def _inputs(names: Sequence[str], types: Sequence[TensorType]) -> list[Value]:
    return [apply("input", name=name, dtype=t.dtype, shape=t.shape) for name, t in zip(names, types, strict=True)]


@dataclass(frozen=True, slots=True)
class Operands:
    """The inputs of a region, and those floats of them that are computed with, widened."""

    given: Sequence[Value]
    q: Value
    k: Value
    v: Value
    mask: Value | None
    keys: Sequence[Value]

    @classmethod
    def of(cls, types: Sequence[TensorType]) -> Operands:
        masked = len(types) > 3 and types[3].dtype == bool_
        given = _inputs(("q", "k", "v", *("mask",) * masked, "k0", "k1")[: len(types)], types)
        q, k, v = map(_wide, given[:3])
        return cls(given, q, k, v, given[3] if masked else None, given[3 + masked :])


def _body(types: Sequence[TensorType], form: Form) -> Graph:
    x = Operands.of(types)
    s = _scores(x, form)
    top = apply("max", s, axes=(3,))
    if x.mask is not None:  # a row may be minus infinity throughout
        top = apply("maximum", top, full(finfo(top.dtype).min, top.dtype, top.shape))
    total = apply("sum", apply("exp", sub(s, _columns(top, s))), axes=(3,))
    if x.mask is not None:
        total = where(apply("equal", total, zeros(total.dtype, total.shape)), 1, total)
    lse = add(top, apply("log", total))
    p = apply("exp", sub(s, _columns(lse, s)))
    o = apply("dot", _dropped(p, x.keys, form), x.v, batch=HEADS, contract=((3,), (2,)))
    return Graph.build(HINT, x.given, [("o", convert(o, types[0].dtype)), ("lse", lse)])


def _vjp(types: Sequence[TensorType], form: Form) -> Graph:
    x = Operands.of(types)
    row = TensorType(x.q.dtype, x.q.shape[:3])
    out = TensorType(types[0].dtype, (*x.q.shape[:3], x.v.shape[3]))
    given = _inputs(("o", "lse", "do", "dlse"), [out, row, out, row])
    o, lse, do, dlse = map(_wide, given)
    s = _scores(x, form)
    p = apply("exp", sub(s, _columns(lse, s)))
    # O = P' V, where P' is P after dropout
    dv = apply("dot", _dropped(p, x.keys, form), do, batch=HEADS, contract=((2,), (2,)))
    dp = _dropped(apply("dot", do, x.v, batch=HEADS, contract=((3,), (3,))), x.keys, form)
    # dS = P (dP - rowsum(dP P)) + P dlse, and rowsum(dP P) = rowsum(dO O)
    shift = sub(apply("sum", mul(do, o), axes=(3,)), dlse)
    ds = mul(mul(p, sub(dp, _columns(shift, dp))), form.scale)
    dq = apply("dot", ds, x.k, batch=HEADS, contract=((3,), (2,)))
    dk = apply("dot", ds, x.q, batch=HEADS, contract=((2,), (2,)))
    grads = [convert(d, t.dtype) for d, t in zip((dq, dk, dv), types, strict=False)]
    return Graph.build(f"{HINT}_vjp", [*x.given, *given], list(zip(("dq", "dk", "dv"), grads, strict=True)))


def _wide(x: Value) -> Value:
    return convert(x, x.dtype.computed)


def _scores(x: Operands, form: Form) -> Value:
    """scale q kᵀ [B,H,T,S], minus infinity where a query does not see a key."""
    s = mul(apply("dot", x.q, x.k, batch=HEADS, contract=((3,), (3,))), form.scale)
    if x.mask is not None:
        s = where(apply("broadcast_to", x.mask, shape=s.shape), s, -inf)
    if not form.is_causal:
        return s
    query, key = (apply("iota", shape=s.shape, axis=axis, dtype=int32) for axis in (2, 3))
    return where(apply("greater_equal", query, key), s, -inf)


def _columns(row: Value, like: Value) -> Value:
    """One number per row, repeated along the last dimension."""
    return broadcast_axes(row, (3,), like.shape)


def _dropped(x: Value, keys: Sequence[Value], form: Form) -> Value:
    """Dropout of ``x`` [B,H,T,S]; the same elements fall for the same keys."""
    if not keys:
        return x
    bits = apply("random_bits", *(apply("broadcast_to", key, shape=x.shape) for key in keys))
    keep = apply("greater_equal", bits, _threshold(form.dropout_p, x.shape))
    return where(keep, mul(x, 1 / (1 - form.dropout_p)), zeros(x.dtype, x.shape))


def _threshold(dropout_p: float, shape: Shape) -> Value:
    return full(int(dropout_p * 2**32), uint32, shape)
