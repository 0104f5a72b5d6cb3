"""What each op computes, by NumPy and SciPy, along another way than the op's own ``eval``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import scipy.special

from graphc.dtype import TensorType, dtype
from graphc.ir import Attrs
from graphc.ops import get_op

__all__ = ["REFERENCE"]

Array = np.ndarray[Any, np.dtype[Any]]
Reference = Callable[..., Any]


def divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return np.array([p // q if q else 0 for p, q in pairs], np.int64).astype(a.dtype).reshape(a.shape)


def modulo(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.mod(a, b)
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return np.array([p % q if q else 0 for p, q in pairs], np.int64).astype(a.dtype).reshape(a.shape)


def shifted(a: Array, counts: Array, left: bool) -> Array:
    """By Python's unbounded integers."""
    pairs = zip(a.ravel().tolist(), counts.ravel().tolist(), strict=True)
    bits = a.dtype.itemsize * 8
    whole = [(p << q if left else p >> q) % 2**bits for p, q in pairs]
    return np.array(whole, np.uint64).astype(f"u{a.dtype.itemsize}").view(a.dtype).reshape(a.shape)


def threefry(k0: Array, k1: Array) -> Array:
    """Threefry-2x32-20 in Python's integers, word by word."""

    def word(a: int, b: int, at: int) -> int:
        keys, mask = (a, b, a ^ b ^ 0x1BD11BDA), 0xFFFFFFFF
        x, y = (at & mask) + a & mask, (at >> 32) + b & mask
        for step in range(20):
            x = x + y & mask
            turn = ((13, 15, 26, 6), (17, 29, 16, 24))[step // 4 % 2][step % 4]
            y = (y << turn & mask | y >> 32 - turn) ^ x
            if step % 4 == 3:
                n = step // 4 + 1
                x, y = x + keys[n % 3] & mask, y + keys[(n + 1) % 3] + n & mask
        return x

    triples = enumerate(zip(k0.ravel().tolist(), k1.ravel().tolist(), strict=True))
    return np.array([word(a, b, i) for i, (a, b) in triples], np.uint32).reshape(k0.shape)


def dot(a: Array, b: Array, batch: Any, contract: Any) -> Array:
    letters = iter("abcdefghijklmnop")
    left, right = [""] * a.ndim, [""] * b.ndim
    for pairs in (batch, contract):
        for i, j in zip(*pairs, strict=True):
            left[i] = right[j] = next(letters)
    left, right = ([name or next(letters) for name in side] for side in (left, right))
    out = [left[i] for i in batch[0]]
    out += [name for name in (*left, *right) if (name in left) != (name in right)]
    return np.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", a, b)


def cut(x: Array, start: Any, stop: Any, step: Any) -> Array:
    for axis, (a, b, s) in enumerate(zip(start, stop, step, strict=True)):
        x = np.take(x, range(a, b, s), axis=axis)
    return x


def parted(x: Array, axis: int, sizes: Any) -> list[Array]:
    edges = np.cumsum([0, *sizes])
    return [np.take(x, range(a, b), axis=axis) for a, b in pairwise(edges)]


def seen(x: Array, axes: Any, sizes: Any, strides: Any, dilations: Any) -> Array:
    """Windows, gathered element by element: the window's own dimensions come last."""
    for axis, size, stride, dilation in zip(axes, sizes, strides, dilations, strict=True):
        last = x.shape[axis] - (size - 1) * dilation
        parts = [np.take(x, range(k * dilation, k * dilation + last, stride), axis=axis) for k in range(size)]
        x = np.stack(parts, axis=-1)
    return x


def window_max(x: Array, **at: Any) -> Array:
    windows = seen(x, **at)
    return windows.max(axis=tuple(range(x.ndim, windows.ndim))) if windows.ndim > x.ndim else windows


def convolve(
    x: Array, w: Array, strides: Any, low: Any, high: Any, interior: Any, dilations: Any, groups: int
) -> Array:
    """Term by term: each place of the window adds the inputs that it sees, times its weights."""
    n = len(strides)
    for axis, gap in enumerate(interior, start=2):
        x = np.insert(x, np.repeat(np.arange(1, max(x.shape[axis], 1)), gap), 0, axis=axis)
    for axis, (a, b) in enumerate(zip(low, high, strict=True), start=2):
        x = np.pad(x, [(max(a, 0), max(b, 0)) if d == axis else (0, 0) for d in range(x.ndim)])
        x = np.take(x, range(max(-a, 0), x.shape[axis] - max(-b, 0)), axis=axis)
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    total: Any = 0
    for place in product(*map(range, w.shape[3:])):
        part = x
        for d in range(n):
            reach = (w.shape[3 + d] - 1) * dilations[d]
            first = place[d] * dilations[d]
            part = np.take(part, range(first, first + x.shape[3 + d] - reach, strides[d]), axis=3 + d)
        total = total + np.einsum("bgc...,goc->bgo...", part, w[(..., *place)])
    return total.reshape(x.shape[0], groups * w.shape[1], *total.shape[3:])


def recurrence(a: Array, b: Array, reverse: bool) -> Array:
    out = np.zeros_like(b)
    before = np.zeros(b.shape[:-1], b.dtype)
    for i in reversed(range(b.shape[-1])) if reverse else range(b.shape[-1]):
        before = out[..., i] = a[..., i] * before + b[..., i]
    return out


def argsort(x: Array, descending: bool) -> Array:
    """By a list sort on (value, position)."""
    rows = x.reshape(prod(x.shape[:-1]), x.shape[-1]).astype(np.float64 if x.dtype.kind == "f" else np.int64)
    keys = -rows if descending else rows
    order = [sorted(range(len(row)), key=lambda i, row=row: (row[i], i)) for row in keys.tolist()]
    return np.array(order, np.int32).reshape(x.shape)


def scatter_add(indices: Array, rows: Array, size: int) -> Array:
    out = np.zeros((size, *rows.shape[indices.ndim :]), rows.dtype)
    for place in np.ndindex(indices.shape):
        out[indices[place]] += rows[place]
    return out


def scatter_along(indices: Array, x: Array, size: int) -> Array:
    chosen = indices[..., None] == np.arange(size)
    return np.where(chosen, x[..., None], 0).sum(axis=-2, dtype=x.dtype)


def take(x: Array, indices: Array, axis: int) -> Array:
    return x[(slice(None),) * axis + (indices.astype(np.int64),)]


def called(x: Array, y: Array, **at: Any) -> list[Array]:
    return [x * y, x + 1]


REFERENCE: dict[str, Reference] = {
    "neg": lambda x: 0 - x, "abs": lambda x: np.where(x < 0, 0 - x, x), "exp": np.exp, "log": np.log,
    "sqrt": lambda x: np.power(x, 0.5, dtype=x.dtype), "rsqrt": lambda x: np.power(x, -0.5, dtype=x.dtype),
    "tanh": np.tanh, "erf": scipy.special.erf, "sin": np.sin, "cos": np.cos, "sigmoid": scipy.special.expit,
    "floor": lambda x: -np.ceil(-x), "ceil": lambda x: -np.floor(-x), "round": np.rint,
    "sign": lambda x: (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype), "logical_not": lambda x: ~x,
    "stop_gradient": lambda x: x,
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": divide, "mod": modulo,
    "pow": lambda a, b: a**b, "maximum": lambda a, b: np.where(a > b, a, b),
    "minimum": lambda a, b: np.where(a < b, a, b), "equal": lambda a, b: a == b, "not_equal": lambda a, b: a != b,
    "less": lambda a, b: a < b, "less_equal": lambda a, b: ~(a > b), "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: ~(a < b), "logical_and": lambda a, b: a & b, "logical_or": lambda a, b: a | b,
    "logical_xor": lambda a, b: a != b, "bitwise_and": lambda a, b: a & b, "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b, "shift_left": lambda a, b: shifted(a, b, True),
    "shift_right": lambda a, b: shifted(a, b, False), "where": lambda c, a, b: np.choose(c, [b, a]),
    "sum": lambda x, axes: np.add.reduce(x, axis=axes, dtype=x.dtype),
    "prod": lambda x, axes: np.multiply.reduce(x, axis=axes, dtype=x.dtype),
    "max": lambda x, axes: np.maximum.reduce(x, axis=axes), "min": lambda x, axes: np.minimum.reduce(x, axis=axes),
    "astype": lambda x, dtype: x.astype(dtype.numpy), "random_bits": threefry,
    "iota": lambda shape, axis, dtype: np.indices(shape)[axis].astype(dtype.numpy), "const": lambda value: value.array,
    "dot": dot, "reshape": lambda x, shape: np.array(x.ravel().tolist(), x.dtype).reshape(shape),
    "permute_dims": lambda x, axes: np.moveaxis(x, axes, range(x.ndim)),
    "broadcast_to": lambda x, shape: x + np.zeros(shape, x.dtype), "slice": cut, "split": parted,
    "flip": lambda x, axes: x[tuple(slice(None, None, -1 if d in axes else 1) for d in range(x.ndim))],
    "windows": seen, "window_max": window_max, "concat": lambda *xs, axis: np.concatenate(xs, axis),
    "after": lambda x, other: x, "take": take, "scatter_add": scatter_add, "recurrence": recurrence,
    "argsort": argsort, "take_along": lambda x, at: np.take_along_axis(x, at.astype(np.int64), -1),
    "scatter_along": scatter_along, "conv": convolve, "call": called,
}  # fmt: skip


def reference(op: str, arrays: tuple[Array, ...], at: Attrs) -> tuple[Array, ...]:
    """The results, in the types that ``infer`` gives; 16-bit floats are computed with in float32."""
    types = get_op(op).infer([TensorType(dtype(a.dtype), a.shape) for a in arrays], at)
    wide = [a.astype(dtype(a.dtype).computed.numpy) for a in arrays]
    with np.errstate(all="ignore"):
        made = REFERENCE[op](*wide, **at)
        results = [np.asarray(m) for m in (made if isinstance(made, list) else [made])]
        return tuple(m.astype(t.dtype.numpy) if t.dtype.is_half else m for m, t in zip(results, types, strict=True))
