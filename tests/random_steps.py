"""The steps of random programs (`random_graphs`): each draws operands from a maker and returns what it made, or None
where it does not fit what there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from random_control import CONTROL
from random_maps import MAPS, SMOOTH

import graphc as gc
from graphc import random as draws

if TYPE_CHECKING:
    from random_graphs import Maker

__all__ = ["STEPS"]

T = gc.Tensor
Made = T | Sequence[T] | None
Step = Callable[["Maker"], Made]


# Movement ------------------------------------------------------------------------------------------------------------

ANY = "fiub"


def permuted(m: Maker) -> Made:
    x = m.pick(ANY, ndim=2)
    return None if x is None else gc.permute_dims(x, tuple(int(a) for a in m.rng.permutation(x.ndim)))


def reshaped(m: Maker) -> Made:
    x = m.pick(ANY)
    if x is None or not x.size:
        return None
    dims, left = [], x.size
    while left > 1 and len(dims) < 4:
        d = m.choose([d for d in range(1, left + 1) if left % d == 0 and (d > 1 or m.chance(0.2))])
        dims, left = [*dims, d], left // d
    return gc.reshape(x, (*dims, left) if left > 1 else dims)


def cut(m: Maker) -> Made:
    """Basic indexing: ranges with steps, single positions, new dimensions; now and then of no elements."""
    x = m.pick(ANY, ndim=1)
    if x is None:
        return None
    key: list[Any] = []
    for n in x.shape:
        start = m.choose(n) if n else 0
        match m.choose(6):
            case 0 if n:
                key.append(start)
            case 1 | 2 if n:
                key.append(slice(start, start + 1 + m.choose(n - start), m.choose((1, 2, 3))))
            case 3 if m.chance(0.1):
                key.append(slice(start, start))
            case 4 if m.chance(0.3):
                key += [None, slice(None)]
            case _:
                key.append(slice(None))
    return x[tuple(key)]


def turned(m: Maker) -> Made:
    x = m.pick(ANY, ndim=1)
    return None if x is None else gc.flip(x, m.subset(x.ndim))


def rolled(m: Maker) -> Made:
    x = m.pick(ANY, ndim=1)
    return None if x is None else gc.roll(x, m.choose(9) - 4, axis=m.choose(x.ndim))


def repeated(m: Maker) -> Made:
    x = m.pick(ANY, ndim=1)
    if x is None:
        return None
    match m.choose(3):
        case 0:
            return gc.tile(x, [m.choose((1, 2, 3)) for _ in x.shape])
        case 1:
            return gc.repeat(x, m.choose((2, 3)), axis=m.choose(x.ndim))
    axis = m.choose(x.ndim + 1)
    wide = gc.expand_dims(x, axis)
    return gc.broadcast_to(wide, (*x.shape[:axis], m.choose((1, 2, 5)), *x.shape[axis:]))


def padded(m: Maker) -> Made:
    x = m.pick("fiu", ndim=1)
    if x is None:
        return None
    widths = [(m.choose(3), m.choose(3) - 1 if n > 1 else m.choose(2)) for n in x.shape]
    return gc.pad(x, widths, m.choose((0, 0, 1, 2)))


def joined(m: Maker) -> Made:
    x = m.pick(ANY, ndim=1)
    y = None if x is None else m.pick(x.dtype.kind, shape=x.shape)
    if x is None or y is None or x.dtype != y.dtype:
        return None
    if m.chance(0.3):
        return gc.stack([x, y], axis=m.choose(x.ndim + 1))
    return gc.concat([x, y, x][: 2 + m.choose(2)], axis=m.choose(x.ndim))


def parted(m: Maker) -> Made:
    x = m.pick(ANY, ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None or x.shape[axis] < 2:
        return None
    first = 1 + m.choose(x.shape[axis] - 1)
    return gc.split(x, (first, x.shape[axis] - first), axis=axis)


# Reductions ----------------------------------------------------------------------------------------------------------


def reduced(m: Maker) -> Made:
    x = m.pick("fiu", ndim=1)
    if x is None:
        return None
    axes, kept = m.subset(x.ndim), m.chance(0.5)
    if x.dtype.kind != "f":
        return gc.sum(x, axes, keepdims=kept)
    return m.choose((gc.sum, gc.sum, gc.mean, gc.logsumexp))(x, axes, keepdims=kept) if x.size else None


def extreme(m: Maker) -> Made:
    x = m.pick("fiu", ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None or not x.size or (x.dtype.kind == "f" and not m.distinct(x, axis)):
        return None
    return m.choose((gc.max, gc.min, gc.argmax, gc.argmin))(x, axis, keepdims=m.chance(0.5))


def spread(m: Maker) -> Made:
    x = m.pick(ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None or x.shape[axis] < 2:
        return None
    match m.choose(3):
        case 0:
            return gc.var(x, axis, keepdims=True)
        case 1:
            return gc.prod(gc.tanh(x) + 0.5, axis)
    return gc.sqrt(gc.sum(x * x, axis) + 0.1)


def normalised(m: Maker) -> Made:
    """Softmax and norms: what is computed of a row, and read again."""
    x = m.pick(ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None or not x.size:
        return None
    match m.choose(6):
        case 0:
            return gc.softmax(x, axis)
        case 1:
            return gc.log_softmax(x, axis)
        case 2:
            return gc.layer_norm(x, x.shape[-1], m.weight(x.shape[-1:]), m.weight(x.shape[-1:]), eps=0.1)
        case 3:
            return gc.rms_norm(x, x.shape[-1], m.weight(x.shape[-1:]), eps=0.1)
        case 4:
            centred = x - gc.mean(x, axis, keepdims=True)
            return centred * gc.rsqrt(gc.mean(centred * centred, axis, keepdims=True) + 0.1)
    seen = gc.iota(x.shape, -1) <= gc.iota(x.shape, 0)
    return gc.softmax(gc.where(seen, x, -float("inf"))) if x.ndim > 1 else None


def running(m: Maker) -> Made:
    x = m.pick("fi", ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None:
        return None
    if x.dtype.kind == "f" and m.chance(0.5):
        return gc.recurrence(gc.sigmoid(x), x, axis=axis, reverse=m.chance(0.5))
    return gc.cumsum(x, axis) if m.chance(0.7) or x.dtype.kind == "i" else gc.cumprod(gc.tanh(x), axis)


# Products ------------------------------------------------------------------------------------------------------------


def product(m: Maker) -> Made:
    """A product with a weight, plain or turned, and what often follows it."""
    x = m.pick(ndim=1)
    if x is None or not x.shape[-1]:
        return None
    n = m.choose((1, 2, 3, 5, 8, 16, 17, 33))
    w = m.weight((n, x.shape[-1])).T if m.chance(0.5) else m.weight((x.shape[-1], n))
    y = x @ w * x.shape[-1] ** -0.5
    match m.choose(4):
        case 0:
            return y + m.weight((n,))
        case 1:
            return gc.gelu(y + m.weight((n,)))
        case 2:
            return gc.tanh(y) * y
    return y


def products(m: Maker) -> Made:
    """A product of tensors: of one with itself turned round, batched, or an outer one."""
    x = m.pick(ndim=2)
    if x is None or not x.size:
        return None
    y = m.pick(shape=x.shape)
    assert y is not None
    scale = x.shape[-1] ** -0.5
    match m.choose(4):
        case 0:
            return x @ y.mT * scale
        case 1:
            return x.mT @ y * scale
        case 2 if x.ndim == 3:
            return gc.einsum(m.choose(("bij,bkj->ibk", "bij,kij->bk", "bij,bik->bjk", "aij,bij->iab")), x, y) * scale
    return x @ (y.mT @ x) * 0.1 if x.size < 500 else None


def convolved(m: Maker) -> Made:
    x = m.pick(ndim=3)
    if x is None or x.ndim > 4 or not x.size:
        return None
    n = x.ndim - 2
    sizes = [m.choose((1, 2, 3)) for _ in range(n)]
    padding, stride, dilation = m.choose((0, 1)), m.choose((1, 1, 2)), m.choose((1, 1, 2))
    if any((k - 1) * dilation + 1 > d + 2 * padding for k, d in zip(sizes, x.shape[2:], strict=True)):
        return None
    groups = m.choose((1, 1, x.shape[1]))
    w = m.weight((m.choose((1, 2, 3)) * groups, x.shape[1] // groups, *sizes))
    if prod(w.shape) * x.size > 50_000:
        return None
    convolution = gc.conv1d if n == 1 else gc.conv2d
    y = convolution(x, w, None, stride, padding, dilation, groups) * prod(w.shape[1:]) ** -0.5
    return gc.relu(y) if m.chance(0.3) and m.apart(y, 0.0) else y


def pooled(m: Maker) -> Made:
    x = m.pick(ndim=3)
    if x is None or x.ndim > 4 or min(x.shape) < 2:
        return None
    flat = x.ndim == 3
    if m.chance(0.5):
        return (gc.avg_pool1d if flat else gc.avg_pool2d)(x, 2, m.choose((1, 2)))
    return (gc.max_pool1d if flat else gc.max_pool2d)(x, 2, m.choose((1, 2))) if m.exact(x) else None


def attended(m: Maker) -> Made:
    """Attention by its function, or written by hand."""
    x = m.pick(ndim=2)
    if x is None or not x.size or x.ndim > 4 or x.shape[-2] > 17:
        return None
    q, k, v = (x @ m.weight((x.shape[-1], 8)) * x.shape[-1] ** -0.5 for _ in range(3))
    causal, t = m.chance(0.5), x.shape[-2]
    match m.choose(4):
        case 0:
            mask = gc.iota((t, t), 0) >= gc.iota((t, t), 1)
            if causal:
                mask = gc.where(mask, 0.0, -1e9) if t % 2 else gc.iota((t,), 0) < t - 2
            return gc.scaled_dot_product_attention(q, k, v, mask)
        case 1:
            scores = q @ k.mT * 8**-0.5
            if causal:
                scores = gc.where(gc.iota((t, t), 0) >= gc.iota((t, t), 1), scores, -float("inf"))
            return gc.softmax(scores) @ v
        case 2:
            return gc.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=0.25)
    return gc.scaled_dot_product_attention(q, k, v, is_causal=causal)


# Elements by index ---------------------------------------------------------------------------------------------------


def indices(m: Maker, shape: Sequence[int], size: int) -> T:
    """Positions below ``size``: a constant, or computed from integers that there are."""
    found = m.pick("iu", shape=shape)
    if found is not None and found.dtype.name != "uint32" and m.chance(0.7):
        return (found % min(size, 100)).astype("int32")
    return gc.asarray(m.rng.integers(0, size, shape).astype(m.choose((np.int32, np.int64))))


def gathered(m: Maker) -> Made:
    """Rows by index, and the sums of rows by index."""
    x = m.pick("fi", ndim=1)
    if x is None or not x.size:
        return None
    axis = m.choose(x.ndim)
    if m.chance(0.5):
        return gc.take(x, indices(m, m.choose(((3,), (1,), (2, 4), ())), x.shape[axis]), axis=axis)
    return gc.scatter_add(indices(m, x.shape[: 1 + m.choose(x.ndim)], 4), x, 4)


def along(m: Maker) -> Made:
    x = m.pick("fi", ndim=1)
    if x is None or not x.size:
        return None
    axis = m.choose(x.ndim)
    if m.chance(0.5):
        return gc.take_along_axis(x, indices(m, x.shape, x.shape[axis]), axis=axis)
    size = x.shape[axis] + m.choose(3)
    return gc.scatter_along_axis(indices(m, x.shape, size), x, size, axis=axis)


def ordered(m: Maker) -> Made:
    x = m.pick("fiu", ndim=1)
    axis = m.choose(x.ndim) if x is not None else 0
    if x is None or not x.size or (x.dtype.kind == "f" and not m.distinct(x, axis)):
        return None
    match m.choose(3):
        case 0:
            return gc.argsort(x, axis=axis, descending=m.chance(0.5))
        case 1:
            return gc.top_k(x, 1 + m.choose(x.shape[axis]), axis=axis)
    return gc.sort(x, axis=axis, descending=m.chance(0.5))


def classes(m: Maker) -> Made:
    """One-hot rows, or the loss of labels."""
    x = m.pick(ndim=2)
    if x is None or not x.size or x.ndim > 2:
        return None
    labels = indices(m, x.shape[:1], x.shape[1])
    return gc.cross_entropy(x, labels) if m.chance(0.5) else gc.one_hot(labels, x.shape[1], dtype=m.float) * x


# The rest ------------------------------------------------------------------------------------------------------------


def random(m: Maker) -> Made:
    x = m.pick(ndim=1)
    if x is None:
        return None
    match m.choose(4):
        case 0:
            return gc.dropout(x, 0.4)
        case 1:
            return x * draws.uniform(x.shape, dtype=m.float)
        case 2:
            return x + draws.normal(x.shape, dtype=m.float)
    return draws.randint(0, 7, x.shape)


def recomputed(m: Maker) -> Made:
    x = m.pick()
    if x is None:
        return None
    f = m.choose(SMOOTH)
    return gc.checkpoint(lambda t: f(gc.tanh(t)) * t, x)


def stopped(m: Maker) -> Made:
    x = m.pick()
    return None if x is None else x * gc.stop_gradient(gc.tanh(x))


STEPS: tuple[Step, ...] = (
    *MAPS, permuted, permuted, reshaped, cut, cut, turned, rolled, repeated, padded, joined, parted, reduced, reduced,
    extreme, spread, normalised, normalised, running, product, product, products, convolved, pooled, attended, gathered,
    along, ordered, classes, random, recomputed, stopped, *CONTROL,
)  # fmt: skip
