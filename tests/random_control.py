"""Steps of random programs (`random_steps`) that are loops and branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import graphc as gc

if TYPE_CHECKING:
    from random_graphs import Maker

__all__ = ["CONTROL"]

T = gc.Tensor


def formula(m: Maker, values: Sequence[T]) -> list[T]:
    """``values`` of one shape, and bounded smooth functions of some of them."""
    made = list(values)
    for _ in range(1 + m.choose(4)):
        a, b = m.choose(made), m.choose(made)
        match m.choose(5):
            case 0:
                made.append(a + b)
            case 1:
                made.append(a * gc.tanh(b))
            case 2:
                made.append(gc.sin(a) - b)
            case 3:
                made.append(gc.tanh(a))
            case 4:
                made.append(gc.sum(gc.tanh(a)) / max(a.size, 1) + b)
    return made


def looped(m: Maker) -> Sequence[T] | None:
    """A scan over the rows of a tensor; the body may use tensors and weights from around it, or scan its rows."""
    xs = m.pick("f", ndim=1)
    if xs is None:
        return None
    row, dtype = xs.shape[1:], xs.dtype
    init = m.pick("f", shape=row)
    first = gc.zeros(row, dtype=dtype) if init is None or m.chance(0.3) else init.astype(dtype)

    def body(c: T, x: T) -> tuple[T, tuple[T, ...]]:
        values = [c, x]
        if m.chance(0.4) and (around := m.pick("f", shape=row)) is not None:
            values.append(around.astype(dtype))
        if m.chance(0.2) and len(row) == 2 and row[0] == row[1]:
            values.append(gc.tanh(c @ x))
        if m.chance(0.15) and row:
            values.append(gc.scan(lambda d, z: (gc.tanh(d + z), d), gc.sum(gc.tanh(c), axis=0), x)[1])
        made = formula(m, values)
        return gc.tanh(made[-1]), (m.choose(made), c)

    last, ys = gc.scan(body, first, xs, reverse=m.chance(0.5))
    return [last, *ys[: 1 + m.choose(2)]]


def branched(m: Maker) -> Sequence[T] | None:
    x = m.pick("f")
    if x is None or not x.size:
        return None
    total, limit = gc.sum(gc.tanh(x)), 0.1 * m.choose(5)
    if not m.apart(total, limit):
        return None
    y = m.pick("f", shape=x.shape)
    operands = [x] if y is None else [x, y.astype(x.dtype)]

    def way() -> Callable[..., tuple[T, T]]:
        return lambda *given: (formula(m, given)[-1], m.choose(given))

    return list(gc.cond(total > limit, way(), way(), *operands))


def repeated(m: Maker) -> T | None:
    """A while loop of a few iterations, which has no gradient."""
    x = m.pick("f") if m.stops else None
    if x is None:
        return None
    times = m.choose(4)
    start = (0, gc.stop_gradient(x))
    return gc.while_loop(lambda s: s[0] < times, lambda s: (s[0] + 1, gc.tanh(formula(m, [s[1]])[-1])), start)[1]


CONTROL = (looped, branched, repeated)
