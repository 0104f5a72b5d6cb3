"""Functions along one axis: running results, positions, sorting, and elements by index."""

from __future__ import annotations

from typing import Any

from graphc.dtype import bool_, int32, uint8
from graphc.errors import error
from graphc.functional import concat, full, iota, where
from graphc.scope import user_loc
from graphc.tensor import (
    Axis,
    Tensor,
    TensorLike,
    apply,
    as_dtype,
    as_tensor,
    astype,
    broadcast_to,
    common_shape,
    normalize_axis,
    reduce,
    reshape,
)  # fmt: skip

__all__ = [
    "argmax", "argmin", "argsort", "count_nonzero", "cumprod", "cumsum", "cumulative_prod", "cumulative_sum", "diff",
    "recurrence", "scatter_along_axis", "searchsorted", "sort", "take_along_axis", "top_k",
]  # fmt: skip


def _to_last(x: Tensor, axis: int) -> Tensor:
    """``x`` with ``axis`` as its last dimension, the others in their order."""
    at = normalize_axis(axis, x.ndim)
    return x.permute_dims([*(d for d in range(x.ndim) if d != at), at])


def _from_last(x: Tensor, axis: int) -> Tensor:
    """What `_to_last` did, undone."""
    at = normalize_axis(axis, x.ndim)
    return x.permute_dims([d if d < at else x.ndim - 1 if d == at else d - 1 for d in range(x.ndim)])


def _numbers(x: TensorLike) -> Tensor:
    """Bools as uint8."""
    x = as_tensor(x)
    return astype(x, uint8) if x.dtype is bool_ else x


# Running results -----------------------------------------------------------------------------------------------------


def recurrence(a: TensorLike, b: TensorLike, *, axis: int = -1, reverse: bool = False) -> Tensor:
    """y[i] = a[i] * y[i-1] + b[i] along ``axis``, from y[-1] = 0; from the other end with ``reverse``.

    ``a`` broadcasts to ``b``. Sums, products, moving averages and discounted returns are recurrences. The gradient is
    a recurrence in the other direction, exact where elements are zero.
    """
    b = as_tensor(b)
    a = broadcast_to(as_tensor(a, b.dtype), b.shape)
    return _from_last(apply("recurrence", _to_last(a, axis), _to_last(b, axis), reverse=reverse), axis)


def cumulative_sum(
    x: TensorLike, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The sums of the elements so far along ``axis`` (may be left out for one dimension).

    bools and small integers are summed as int32, as by `sum`. ``include_initial``: one more, the 0 at the start.
    """
    return _cumulative("sum", x, axis, dtype, include_initial)


def cumulative_prod(
    x: TensorLike, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The products of the elements so far along ``axis``; ``include_initial``: one more, the 1 at the start."""
    return _cumulative("prod", x, axis, dtype, include_initial)


def _cumulative(op: str, x: TensorLike, axis: int | None, dtype: Any, include_initial: bool) -> Tensor:
    x = as_tensor(x)
    if axis is None and x.ndim != 1:
        message = f"a cumulative {op} of {x.type} needs an axis"
        raise error("GC0104", message, loc=user_loc(), hint="axis=... names the dimension to go along")
    axis = normalize_axis(axis or 0, x.ndim)
    small = not x.dtype.is_float and x.dtype.itemsize < 4
    x = astype(x, as_dtype(dtype) if dtype is not None else int32 if small else x.dtype)
    edge = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    if op == "sum":
        out = recurrence(1, x, axis=axis)
    else:  # y[0] = x[0], y[i] = x[i] y[i-1]
        out = recurrence(x, where(iota(x.shape, axis) == 0, x, 0), axis=axis)
    initial = full(edge, 0 if op == "sum" else 1, dtype=x.dtype)
    return concat([initial, out], axis=axis) if include_initial else out


def cumsum(x: TensorLike, axis: int, *, dtype: Any = None) -> Tensor:
    """`cumulative_sum` by NumPy's and torch's name."""
    return cumulative_sum(x, axis=axis, dtype=dtype)


def cumprod(x: TensorLike, axis: int, *, dtype: Any = None) -> Tensor:
    """`cumulative_prod` by NumPy's and torch's name."""
    return cumulative_prod(x, axis=axis, dtype=dtype)


def diff(x: TensorLike, *, axis: int = -1, n: int = 1) -> Tensor:
    """Each element less the one before it along ``axis``, ``n`` times."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    before = (slice(None),) * at
    for _ in range(n):
        x = x[(*before, slice(1, None))] - x[(*before, slice(None, -1))]
    return x


# Positions -----------------------------------------------------------------------------------------------------------


def argmax(x: TensorLike, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position (int32) of the largest element along ``axis``, or in all of ``x``: the first of equal ones, and the
    first NaN if there is one."""
    return _position("max", x, axis, keepdims)


def argmin(x: TensorLike, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position (int32) of the smallest element along ``axis``, or in all of ``x``: the first of equal ones, and
    the first NaN if there is one."""
    return _position("min", x, axis, keepdims)


def _position(op: str, x: TensorLike, axis: int | None, keepdims: bool) -> Tensor:
    """The least position of what equals the extreme; where that is NaN, the least position of NaN."""
    x = _numbers(x)
    flat = reshape(x, (-1,)) if axis is None else x
    at = -1 if axis is None else axis
    chosen = flat == reduce(op, flat, at, True)
    if x.dtype.is_float:
        chosen = chosen | (flat != flat)
    size = flat.shape[normalize_axis(at, flat.ndim)]
    out = reduce("min", where(chosen, iota(flat.shape, at), size), at, keepdims)
    return reshape(out, (1,) * x.ndim) if axis is None and keepdims else out


def count_nonzero(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """How many elements are not zero (NaN is not), int32."""
    x = as_tensor(x)
    return reduce("sum", astype(x if x.dtype is bool_ else x != 0, int32), axis, keepdims)


def searchsorted(x1: TensorLike, x2: TensorLike, *, side: str = "left") -> Tensor:
    """Where each element of ``x2`` would go in the sorted vector ``x1``, int32: before its equals (``side="left"``) or
    after them. Every element is compared with all of ``x1``, which suits the few thousand bins that one has."""
    x1, x2 = as_tensor(x1), as_tensor(x2)
    if x1.ndim != 1 or side not in ("left", "right"):
        message = f"searchsorted in {x1.type} with side {side!r}"
        raise error("GC0217", message, loc=user_loc(), hint='x1 is a sorted vector, side "left" or "right"')
    query = reshape(x2, (*x2.shape, 1))
    return reduce("sum", astype(x1 < query if side == "left" else x1 <= query, int32), -1, False)


# Sorting -------------------------------------------------------------------------------------------------------------


def argsort(x: TensorLike, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The positions (int32) that sort ``x`` along ``axis``. Equal elements stay in their order, and NaN counts as the
    largest number, whatever ``stable`` says."""
    x = _numbers(x)
    return _from_last(apply("argsort", _to_last(x, axis), descending=descending), axis)


def sort(x: TensorLike, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """``x`` sorted along ``axis``; NaN counts as the largest number. Gradients go where the elements came from."""
    x = as_tensor(x)
    last = _to_last(x, axis)
    order = apply("argsort", _numbers(last), descending=descending)
    return _from_last(apply("take_along", last, order), axis)


def top_k(x: TensorLike, k: int, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The ``k`` largest elements along ``axis``, the largest first, and their positions (int32).

    Of equal elements those with the lowest positions come first; NaN counts as the largest number. Raises GC0217."""
    x = as_tensor(x)
    last = _to_last(x, axis)
    if not 0 <= k <= last.shape[-1]:
        message = f"top_k cannot choose {k} of the {last.shape[-1]} elements along axis {axis} of {x.type}"
        raise error("GC0217", message, loc=user_loc(), hint=f"k is from 0 to {last.shape[-1]}")
    order = apply("argsort", _numbers(last), descending=True)[..., :k]
    return _from_last(apply("take_along", last, order), axis), _from_last(order, axis)


# Elements by index ---------------------------------------------------------------------------------------------------


def take_along_axis(x: TensorLike, indices: TensorLike, *, axis: int = -1) -> Tensor:
    """``x[..., indices[..., i, ...], ...]``: for each place its own position along ``axis`` (torch's ``gather``).

    The other dimensions broadcast. Positions are from 0 on; one out of range is an error when it runs.
    """
    x, indices = as_tensor(x), as_tensor(indices)
    if x.ndim != indices.ndim:
        message = f"take_along_axis of {x.type} needs indices of {x.ndim} dimensions, and got {indices.type}"
        raise error("GC0101", message, loc=user_loc(), hint="one index per element of the result")
    rows, at = _to_last(x, axis), _to_last(indices, axis)
    lead = common_shape("take_along_axis", rows[..., :1], at[..., :1])[:-1]
    rows, at = broadcast_to(rows, (*lead, rows.shape[-1])), broadcast_to(at, (*lead, at.shape[-1]))
    return _from_last(apply("take_along", rows, at), axis)


def scatter_along_axis(indices: TensorLike, x: TensorLike, size: int, *, axis: int = -1) -> Tensor:
    """Zeros of length ``size`` along ``axis``, to which each element of ``x`` is added at its index, in order
    (torch's ``scatter_add``). ``indices`` and ``x`` have one shape; an index out of range is an error when it runs."""
    indices, x = _to_last(as_tensor(indices), axis), _to_last(as_tensor(x), axis)
    return _from_last(apply("scatter_along", indices, x, size=size), axis)
