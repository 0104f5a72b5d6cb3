"""Elementwise steps of random programs (`random_steps` has the others)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import graphc as gc

if TYPE_CHECKING:
    from random_graphs import Maker
    from random_steps import Made

__all__ = ["MAPS", "SMOOTH"]

T = gc.Tensor


SMOOTH: tuple[Callable[[T], T], ...] = (
    gc.tanh, gc.sigmoid, gc.sin, gc.cos, gc.erf, gc.silu, gc.gelu, gc.softplus, gc.negative, gc.square,
    lambda x: gc.gelu(x, approximate="tanh"), lambda x: gc.exp(-x * x), lambda x: gc.sqrt(x * x + 0.5),
    lambda x: gc.rsqrt(x * x + 0.5), lambda x: gc.log(x * x + 0.5), lambda x: 1 / (x * x + 1), lambda x: x**3,
    lambda x: 0.5 * x, lambda x: x - 1, lambda x: 2 - x, gc.expm1, lambda x: gc.log1p(x * x), gc.softsign,
)  # fmt: skip
KINKED: tuple[Callable[[T], T], ...] = (
    gc.relu, gc.abs, gc.sign, gc.leaky_relu, gc.elu, lambda x: gc.maximum(x, 0), lambda x: gc.where(x > 0, x, 0.1 * x),
)  # fmt: skip


def smooth(m: Maker) -> Made:
    x = m.pick()
    return m.choose(SMOOTH)(x) if x is not None else None


def kinked(m: Maker) -> Made:
    x = m.pick()
    return m.choose(KINKED)(x) if x is not None and m.apart(x, 0.0) else None


def clipped(m: Maker) -> Made:
    x = m.pick()
    return gc.clip(x, -0.7, 0.6) if x is not None and m.apart(x, -0.7) and m.apart(x, 0.6) else None


def rounded(m: Maker) -> Made:
    x = m.pick()
    if x is None:
        return None
    fraction = m.value(x) % 0.5
    if not m.exact(x) and np.any((fraction < 1e-3) | (fraction > 0.499)):
        return None
    return m.choose((gc.floor, gc.round, gc.trunc))(x)


def partner(m: Maker, x: T) -> T | None:
    """What broadcasts with ``x``: of its shape, of the last dimensions, with a dimension of one, or a new weight."""
    match m.choose(5):
        case 0:
            return m.pick(shape=x.shape[m.choose(x.ndim + 1) :])
        case 1 if x.ndim:
            axis = m.choose(x.ndim)
            return m.pick(shape=(*x.shape[:axis], 1, *x.shape[axis + 1 :]))
        case 2 if x.ndim:
            axis = m.choose(x.ndim)
            return gc.mean(x, axis, keepdims=True) if x.shape[axis] else None
    return m.pick(shape=x.shape)


def binary(m: Maker) -> Made:
    x = m.pick()
    y = None if x is None else partner(m, x)
    if x is None or y is None:
        return None
    match m.choose(7):
        case 0:
            return x + y
        case 1:
            return x - y
        case 2 | 3:
            return x * y
        case 4:
            return x / (y * y + 0.5)
        case 5:
            return m.choose((gc.maximum, gc.minimum))(x, y) if m.apart(x, y) else None
    return y - x


def chosen(m: Maker) -> Made:
    """where: by comparison, by position, or by a mask."""
    x = m.pick(ndim=1)
    if x is None:
        return None
    y, mask = m.pick(shape=x.shape), m.pick("b")
    match m.choose(4):
        case 0 if mask is not None and mask.shape == x.shape:
            return gc.where(mask, x, y)
        case 1 if x.ndim > 1:
            return m.choose((gc.tril, gc.triu))(x, k=m.choose(3) - 1)
        case 2:
            return gc.where(gc.iota(x.shape, m.choose(x.ndim)) % 3 == 1, x, y)
    assert y is not None
    return gc.where(x < y, x * 2, y) if m.apart(x, y) else None


def compared(m: Maker) -> Made:
    x = m.pick("fiu")
    if x is None:
        return None
    y = m.pick(x.dtype.kind, shape=x.shape)
    if y is None or y.dtype != x.dtype or (x.dtype.kind == "f" and not m.apart(x, y)):
        return None
    return m.choose((gc.less, gc.less_equal, gc.greater, gc.greater_equal, gc.equal, gc.not_equal))(x, y)


def logical(m: Maker) -> Made:
    x = m.pick("b")
    if x is None:
        return None
    y = m.pick("b", shape=x.shape)
    assert y is not None
    match m.choose(3):
        case 0:
            return ~x
        case 1:
            axes = m.subset(x.ndim)
            return m.choose((gc.all, gc.any))(x, axes, keepdims=m.chance(0.5))
    return m.choose((gc.logical_and, gc.logical_or, gc.logical_xor))(x, y)


def whole(m: Maker) -> Made:
    """Arithmetic and bits of integers, which wrap round."""
    x = m.pick("iu")
    if x is None:
        return None
    y = m.pick("iu", shape=x.shape)
    assert y is not None
    plain = (gc.add, gc.subtract, gc.multiply, gc.floor_divide, gc.remainder, gc.maximum, gc.minimum)
    bits = (gc.bitwise_and, gc.bitwise_or, gc.bitwise_xor)
    match m.choose(4):
        case 0:
            return m.choose((gc.bitwise_left_shift, gc.bitwise_right_shift))(x, m.choose(5))
        case 1:
            return m.choose((gc.abs, gc.negative, gc.sign))(x)
        case 2:
            return m.choose(bits)(x, y)
    return m.choose(plain)(x, y)


def converted(m: Maker) -> Made:
    x = m.pick("fiub")
    if x is None:
        return None
    if x.dtype.name == "float32" and m.exact(x) and m.chance(0.3):
        return x.astype(m.choose(("float16", "bfloat16")))
    if x.dtype.kind == "f":
        fraction = np.abs(m.value(x) * 4) % 1
        clear = m.exact(x) or not np.any((fraction < 1e-2) | (fraction > 0.99))
        return (x * 4).astype(m.choose(("int32", "int64", "int8"))) if clear else None
    if x.dtype.kind == "b":
        return x.astype(m.choose((m.float, "int32", "uint8")))
    small = np.max(np.abs(m.value(x).astype(np.float64)), initial=0) < 1e4
    return x.astype(m.float) * 0.1 if small else x.astype(m.choose(("int32", "int64", "uint8", "int16", "bool")))


MAPS = (
    smooth, smooth, smooth, kinked, clipped, rounded, binary, binary, binary, binary, chosen, compared, logical, whole,
    converted,
)  # fmt: skip
