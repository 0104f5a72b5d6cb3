"""Local algebra: one table of rules, each with its equation.

What may change: the sign of a zero (x + 0 is x, also for x = -0), the number of roundings where a rule says so, and
nothing else. In particular NaN and infinities stay where they are, so there is no rule 0 * x = 0 or x - x = 0 on floats
(wrong for NaN and infinity), log(exp(x)) = x (overflows), exp(log(x)) = x (negative x), no reassociation, and no
division as multiplication by a rounded reciprocal.
"""

from __future__ import annotations

import math

from graphc.dtype import DType, finfo, holds, int8, int32
from graphc.ir import Graph, Value
from graphc.ops.base import Move, apply, get_op
from graphc.ops.build import full, mul, neg
from graphc.passes.movement import MOVEMENT
from graphc.passes.rewrite import Match, Rule, num, op, rewrite, rule, uniform, var

__all__ = ["simplify"]


def simplify(graph: Graph) -> Graph:
    """Apply `RULES` and the movement rules until none matches.

    Before: any graph. After: the same results (see the head of the file for what may differ), with fewer or cheaper
    nodes; elementwise work on broadcast operands is done before the broadcast; `stop_gradient` is gone.

    Example: ``%3 = mul(%1, %2)`` with ``%2`` one everywhere disappears, and its users take ``%1``.
    """
    return rewrite(graph, RULES)


x, y, z, c = var("x"), var("y"), var("z"), var("c")
k = num("k")


def like(m: Match, number: float) -> Value:
    """``number`` everywhere, of the root's type."""
    (t,) = m.root.types
    return full(number, t.dtype, t.shape)


def power_of_two(number: float, dtype: DType) -> bool:
    """Whether 1/number is exact: a power of two whose reciprocal is a normal number of the float type."""
    if not dtype.is_float or math.frexp(abs(number))[0] != 0.5:
        return False
    limits = finfo(dtype)
    return limits.smallest_normal <= 1 / abs(number) <= limits.max


def integers(m: Match, value: Value) -> Value | None:
    return None if m.root.types[0].dtype.is_float else value


def widened(m: Match) -> Value | None:
    """The operand of the inner of two casts, where the inner one keeps every value."""
    inner, outer = m.w.dtype, m.root.types[0].dtype
    return apply("astype", m.x, dtype=outer) if holds(inner, m.x.dtype) else None


def narrow_product(m: Match) -> Value | None:
    """The product of the int8 that both factors were, with sums of int32."""
    if m.x.dtype != int32:
        return None
    x, y = before_widening(m.x), before_widening(m.y)
    return None if x is None or y is None else apply("dot", x, y, **{**m.root.attrs, "dtype": int32})


def before_widening(value: Value) -> Value | None:
    """``value`` of int32, moved as it is, but in the int8 that it was widened from."""
    node = value.node
    if node.op == "astype" and node.inputs[0].dtype == int8:
        return node.inputs[0]
    if isinstance(get_op(node.op).lower, Move) and (source := before_widening(node.inputs[0])) is not None:
        return apply(node.op, source, *node.inputs[1:], **node.attrs)
    return None


ARITHMETIC = (
    # x * 1 = x / 1 = x;  x + 0 = x - 0 = x;  0 - x = -x
    rule(op("mul", x, 1), lambda m: m.x),
    rule(op("div", x, 1), lambda m: m.x),
    rule(op("add", x, 0), lambda m: m.x),
    rule(op("sub", x, 0), lambda m: m.x),
    rule(op("sub", 0, x), lambda m: neg(m.x)),
    # integers: x * 0 = x - x = 0
    rule(op("mul", x, 0), lambda m: integers(m, like(m, 0))),
    rule(op("sub", x, x), lambda m: integers(m, like(m, 0))),
    # x * -1 = -x;  -(-x) = x;  |-x| = |x|;  ||x|| = |x|
    rule(op("mul", x, -1), lambda m: neg(m.x)),
    rule(op("neg", op("neg", x)), lambda m: m.x),
    rule(op("abs", op("neg", x)), lambda m: apply("abs", m.x)),
    rule(op("abs", op("abs", x, name="a")), lambda m: m.a),
    # x + -y = x - y;  x - -y = x + y;  -x * -y = x * y;  -x * k = x * -k;  -x / k = x / -k
    rule(op("add", x, op("neg", y)), lambda m: apply("sub", m.x, m.y)),
    rule(op("sub", x, op("neg", y)), lambda m: apply("add", m.x, m.y)),
    rule(op("mul", op("neg", x), op("neg", y)), lambda m: mul(m.x, m.y)),
    rule(op("mul", op("neg", x), k), lambda m: floats(m, "mul")),
    rule(op("div", op("neg", x), k), lambda m: floats(m, "div")),
    # x / k = x * (1/k) where 1/k is exact
    rule(op("div", x, k), lambda m: reciprocal(m)),
    # 1 / sqrt(x) = rsqrt(x), by definition
    rule(op("div", 1, op("sqrt", x)), lambda m: apply("rsqrt", m.x)),
    # x^0 = 1; x^1 = x; x^2 = x x; x^3 = x x x (two roundings); x^4 = x^2 x^2 (two); x^-1 = 1/x
    # x^1/2 = sqrt(x); x^-1/2 = rsqrt(x) (they differ for x = -inf and x = -0 only)
    rule(op("pow", x, 0), lambda m: like(m, 1)),
    rule(op("pow", x, 1), lambda m: m.x),
    rule(op("pow", x, 2), lambda m: mul(m.x, m.x)),
    rule(op("pow", x, 3), lambda m: mul(mul(m.x, m.x), m.x)),
    rule(op("pow", x, 4), lambda m: square(mul(m.x, m.x))),
    rule(op("pow", x, -1), lambda m: apply("div", like(m, 1), m.x) if m.x.dtype.is_float else None),
    rule(op("pow", x, 0.5), lambda m: apply("sqrt", m.x)),
    rule(op("pow", x, -0.5), lambda m: apply("rsqrt", m.x)),
)

LOGIC = (
    # max(x, x) = min(x, x) = x and x = x or x = x
    rule(op(("maximum", "minimum", "logical_and", "logical_or"), x, x), lambda m: m.x),
    # not not x = x;  x and true = x;  x or false = x;  x and false = false;  x or true = true
    rule(op("logical_not", op("logical_not", x)), lambda m: m.x),
    rule(op("logical_and", x, 1), lambda m: m.x if m.x.dtype.kind == "b" else None),
    rule(op("logical_or", x, 0), lambda m: m.x if m.x.dtype.kind == "b" else None),
    rule(op("logical_and", x, 0), lambda m: like(m, 0)),
    rule(op("logical_or", x, 1), lambda m: like(m, 1)),
    # where(true, x, y) = x;  where(false, x, y) = y;  where(c, x, x) = x;  where(not c, x, y) = where(c, y, x)
    rule(op("where", 1, x, y), lambda m: m.x),
    rule(op("where", 0, x, y), lambda m: m.y),
    rule(op("where", c, x, x), lambda m: m.x),
    rule(op("where", op("logical_not", c), x, y), lambda m: apply("where", m.c, m.y, m.x)),
)

CASTS = (
    # stop_gradient(x) = x, once gradients are taken
    rule(op("stop_gradient", x), lambda m: m.x),
    # x as its own type = x;  (x as wide) as t = x as t, where wide holds every value of x
    rule(op("astype", x), lambda m: m.x if m.x.type == m.root.types[0] else None),
    rule(op("astype", op("astype", x, name="w")), widened),
    # (x as int32) (y as int32), of int8 = x y with sums of int32
    rule(op("dot", x, y), narrow_product),
)


def floats(m: Match, name: str) -> Value | None:
    """-x op k as x op -k; integers wrap, and -k of an unsigned one is another number."""
    number = uniform(m.k)
    assert number is not None
    return apply(name, m.x, like(m, -number)) if m.x.dtype.is_float else None


def reciprocal(m: Match) -> Value | None:
    number = uniform(m.k)
    assert number is not None
    return mul(m.x, like(m, 1 / number)) if power_of_two(number, m.x.dtype) else None


def square(value: Value) -> Value:
    return mul(value, value)


RULES: tuple[Rule, ...] = (*ARITHMETIC, *LOGIC, *CASTS, *MOVEMENT)
