"""Functions that rearrange, repeat and lay out: more names of the Array API over the movements that there are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import arange, concat, expand_dims, full, iota, permute_dims, split, squeeze, where
from graphc.scope import user_loc
from graphc.tensor import (
    Tensor,
    TensorLike,
    apply,
    as_dtype,
    as_tensor,
    astype,
    broadcast_to,
    common_dtype,
    common_shape,
    normalize_axis,
    reduce,
    reshape,
)  # fmt: skip

__all__ = [
    "broadcast_arrays", "diag", "diagonal", "empty", "empty_like", "eye", "flatten", "linspace", "matrix_transpose",
    "meshgrid", "moveaxis", "outer", "repeat", "roll", "swapaxes", "tensordot", "tile", "trace", "unstack", "vecdot",
]  # fmt: skip

Axes = int | Sequence[int]


def _axes(axis: Axes, ndim: int) -> list[int]:
    return [normalize_axis(a, ndim) for a in ((axis,) if isinstance(axis, int) else axis)]


# Order of dimensions -------------------------------------------------------------------------------------------------


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    return as_tensor(x).swapaxes(axis1, axis2)


def matrix_transpose(x: TensorLike) -> Tensor:
    """The last two dimensions swapped."""
    return as_tensor(x).mT


def moveaxis(x: TensorLike, source: Axes, destination: Axes) -> Tensor:
    """Dimensions ``source`` at the places ``destination``, the others in their order. Raises GC0104."""
    x = as_tensor(x)
    start, end = _axes(source, x.ndim), _axes(destination, x.ndim)
    if len(start) != len(end) or len(set(start)) != len(start) or len(set(end)) != len(end):
        message = f"moveaxis cannot move dimensions {source} of {x.type} to {destination}"
        raise error("GC0104", message, loc=user_loc(), hint="one destination for each source, none of them twice")
    places = dict(zip(end, start, strict=True))
    rest = iter(d for d in range(x.ndim) if d not in start)
    return permute_dims(x, [places[d] if d in places else next(rest) for d in range(x.ndim)])


def flatten(x: TensorLike, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions ``start_dim`` to ``end_dim``, both included, as one (torch's ``flatten``)."""
    x = as_tensor(x)
    if not x.ndim:
        return reshape(x, (1,))
    first, last = normalize_axis(start_dim, x.ndim), normalize_axis(end_dim, x.ndim)
    merged = prod(x.shape[first : last + 1])
    return reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


# Repetition ----------------------------------------------------------------------------------------------------------


def tile(x: TensorLike, repetitions: Sequence[int]) -> Tensor:
    """``x`` side by side with itself, ``repetitions[d]`` times along dimension d (counted from the last)."""
    x = as_tensor(x)
    ndim = max(x.ndim, len(repetitions))
    times = (1,) * (ndim - len(repetitions)) + tuple(repetitions)
    shape = (1,) * (ndim - x.ndim) + x.shape
    wide = [d for n, size in zip(times, shape, strict=True) for d in (n, size)]
    apart = reshape(x, [d for size in shape for d in (1, size)])
    return reshape(broadcast_to(apart, wide), [n * size for n, size in zip(times, shape, strict=True)])


def repeat(x: TensorLike, repeats: int, *, axis: int | None = None) -> Tensor:
    """Each element ``repeats`` times in a row along ``axis``; of ``x`` flattened if None."""
    x = as_tensor(x)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    at = normalize_axis(axis, x.ndim)
    apart = expand_dims(x, at + 1)
    wide = broadcast_to(apart, (*x.shape[: at + 1], repeats, *x.shape[at + 1 :]))
    return reshape(wide, (*x.shape[:at], x.shape[at] * repeats, *x.shape[at + 1 :]))


def roll(x: TensorLike, shift: Axes, *, axis: Axes | None = None) -> Tensor:
    """Elements moved by ``shift`` places along ``axis``; what leaves at the end comes back at the start."""
    x = as_tensor(x)
    if axis is None:
        return reshape(roll(reshape(x, (x.size,)), shift, axis=0), x.shape)
    shifts = (shift,) if isinstance(shift, int) else tuple(shift)
    dims = _axes(axis, x.ndim)
    for at, by in zip(dims, shifts if len(shifts) == len(dims) else shifts * len(dims), strict=True):
        size = x.shape[at]
        if size and by % size:
            first, last = split(x, (size - by % size, by % size), axis=at)
            x = concat([last, first], axis=at)
    return x


def broadcast_arrays(*arrays: TensorLike) -> tuple[Tensor, ...]:
    """All of one shape: that to which they broadcast."""
    tensors = [as_tensor(x) for x in arrays]
    shape = common_shape("broadcast_arrays", *tensors)
    return tuple(broadcast_to(x, shape) for x in tensors)


def unstack(x: TensorLike, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The parts of ``x`` along ``axis``, without that dimension."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    return tuple(squeeze(part, at) for part in split(x, x.shape[at], axis=at)) if x.shape[at] else ()


# Diagonals -----------------------------------------------------------------------------------------------------------


def diagonal(x: TensorLike, *, offset: int = 0) -> Tensor:
    """The diagonals of the last two dimensions: column - row = ``offset``."""
    x = as_tensor(x)
    if x.ndim < 2:
        raise error("GC0104", f"diagonal needs two dimensions, and got {x.type}", loc=user_loc(), hint="gc.diag builds")
    rows, columns = x.shape[-2:]
    length = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    if not length:
        return full((*x.shape[:-2], 0), 0, dtype=x.dtype)
    first = offset if offset >= 0 else -offset * columns
    flat = reshape(x, (*x.shape[:-2], rows * columns))
    return flat[..., first : first + (length - 1) * (columns + 1) + 1 : columns + 1]


def diag(x: TensorLike, *, k: int = 0) -> Tensor:
    """The diagonal ``k`` of a matrix, or the matrix that has the vector ``x`` there and zeros elsewhere."""
    x = as_tensor(x)
    if x.ndim == 2:
        return diagonal(x, offset=k)
    if x.ndim != 1:
        message = f"diag takes a vector or a matrix, and got {x.type}"
        raise error("GC0104", message, loc=user_loc(), hint="gc.diagonal takes those of stacked matrices")
    n = x.size + abs(k)
    beside = full((abs(k),), 0, dtype=x.dtype)
    column = concat([x, beside] if k >= 0 else [beside, x], axis=0)
    return where(iota((n, n), 1) == iota((n, n), 0) + k, expand_dims(column, 1), 0)


def trace(x: TensorLike, *, offset: int = 0) -> Tensor:
    """The sum of each diagonal of the last two dimensions."""
    return reduce("sum", diagonal(x, offset=offset), -1, False)


# Creation ------------------------------------------------------------------------------------------------------------


def empty(shape: int | Sequence[int], *, dtype: Any = float32) -> Tensor:
    """Zeros: nothing in a graph is undefined."""
    return full(shape, 0, dtype=dtype)


def empty_like(x: Tensor, *, dtype: Any = None) -> Tensor:
    return full(x.shape, 0, dtype=x.dtype if dtype is None else dtype)


def eye(n_rows: int, n_cols: int | None = None, *, k: int = 0, dtype: Any = float32) -> Tensor:
    """Ones on diagonal ``k``, zeros elsewhere."""
    shape = (n_rows, n_rows if n_cols is None else n_cols)
    return astype(iota(shape, 1) == iota(shape, 0) + k, dtype)


def linspace(start: float, stop: float, num: int, *, dtype: Any = None, endpoint: bool = True) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop`` (which is one of them, unless ``endpoint`` is false)."""
    to = float32 if dtype is None else as_dtype(dtype)
    steps = num - 1 if endpoint else num
    if steps < 1:
        return full((num,), start, dtype=to)
    at = arange(num, dtype=to.computed if to.is_float else float32)
    # From the nearer end, so that both ends are exact.
    up, down = start + at * ((stop - start) / steps), stop - (steps - at) * ((stop - start) / steps)
    return astype(where(2 * at <= steps, up, down), to)


def meshgrid(*arrays: TensorLike, indexing: str = "xy") -> list[Tensor]:
    """Coordinate grids of vectors: one dimension per vector; "xy" swaps the first two (NumPy's default)."""
    vectors = [as_tensor(x) for x in arrays]
    if indexing not in ("xy", "ij") or any(v.ndim > 1 for v in vectors):
        message = f"meshgrid of {', '.join(str(v.type) for v in vectors)} with indexing {indexing!r}"
        raise error("GC0217", message, loc=user_loc(), hint='vectors, and indexing "xy" or "ij"')
    n = len(vectors)
    grids = broadcast_arrays(*(reshape(v, (1,) * i + (v.size,) + (1,) * (n - 1 - i)) for i, v in enumerate(vectors)))
    return [g.swapaxes(0, 1) if indexing == "xy" and n > 1 else g for g in grids]


# Products ------------------------------------------------------------------------------------------------------------


def outer(x: TensorLike, y: TensorLike) -> Tensor:
    """All products of an element of ``x`` with one of ``y``, both flattened: (x.size, y.size)."""
    x, y = as_tensor(x), as_tensor(y)
    return reshape(x, (x.size, 1)) * reshape(y, (1, y.size))


def vecdot(x: TensorLike, y: TensorLike, *, axis: int = -1) -> Tensor:
    """The sum of products along ``axis``; the other dimensions broadcast."""
    x, y = as_tensor(x), as_tensor(y)
    return reduce("sum", x * y, axis, False)


def tensordot(x: TensorLike, y: TensorLike, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """The sum of products over ``axes``: the last so many of ``x`` with the first of ``y``, or two lists of axes."""
    to = common_dtype(x, y)
    x, y = as_tensor(x, to), as_tensor(y, to)
    if isinstance(axes, int):
        left, right = range(x.ndim - axes, x.ndim), range(axes)
    else:
        left, right = axes  # type: ignore[assignment]
    pair = (tuple(_axes(tuple(left), x.ndim)), tuple(_axes(tuple(right), y.ndim)))
    return apply("dot", x, y, batch=((), ()), contract=pair)
