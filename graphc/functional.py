"""Functions on tensors by the names of the Array API, each a primitive or a short composite of primitives."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.dtype import Shape, bool_, float32, int32
from graphc.errors import error
from graphc.half import rounded_once
from graphc.scope import emit, user_loc
from graphc.tensor import (
    Axis,
    Tensor,
    TensorLike,
    apply,
    as_dtype,
    as_tensor,
    astype,
    binary,
    broadcast_to,
    common_dtype,
    common_shape,
    floor_divide,
    logical,
    matmul,
    normalize_axis,
    power,
    promote_all,
    reduce,
    reshape,
    true_divide,
)  # fmt: skip

__all__ = [
    "abs", "add", "all", "any", "arange", "asarray", "astype", "bitwise_and", "bitwise_or", "bitwise_xor",
    "broadcast_to", "ceil", "clip", "concat", "cos", "divide", "equal", "erf", "exp", "expand_dims",
    "floor", "floor_divide", "full", "full_like", "greater", "greater_equal", "iota", "isfinite", "less", "less_equal",
    "log", "logical_and", "logical_not", "logical_or", "logical_xor", "matmul", "max", "maximum", "mean", "min",
    "minimum", "multiply", "negative", "not_equal", "ones", "ones_like", "permute_dims", "pow", "prod", "remainder",
    "reshape", "round", "rsqrt", "scatter_add", "sign", "sin", "split", "sqrt", "square", "squeeze", "stack", "std",
    "subtract", "sum", "take", "tanh", "tril", "triu", "var", "where", "zeros", "zeros_like",
]  # fmt: skip


# Elementwise ---------------------------------------------------------------------------------------------------------


def _float(x: TensorLike) -> Tensor:
    """``x`` as a float tensor: integers become float32."""
    x = as_tensor(x)
    return x if x.dtype.is_float else astype(x, float32)


def exp(x: TensorLike) -> Tensor:
    return apply("exp", _float(x))


def log(x: TensorLike) -> Tensor:
    """The natural logarithm."""
    return apply("log", _float(x))


def sqrt(x: TensorLike) -> Tensor:
    return apply("sqrt", _float(x))


def rsqrt(x: TensorLike) -> Tensor:
    """1 / sqrt(x)."""
    return apply("rsqrt", _float(x))


def tanh(x: TensorLike) -> Tensor:
    return apply("tanh", _float(x))


def erf(x: TensorLike) -> Tensor:
    """The error function."""
    return apply("erf", _float(x))


def sin(x: TensorLike) -> Tensor:
    return apply("sin", _float(x))


def cos(x: TensorLike) -> Tensor:
    return apply("cos", _float(x))


def abs(x: TensorLike) -> Tensor:
    return apply("abs", as_tensor(x))


def negative(x: TensorLike) -> Tensor:
    return apply("neg", as_tensor(x))


def sign(x: TensorLike) -> Tensor:
    return apply("sign", as_tensor(x))


def square(x: TensorLike) -> Tensor:
    x = as_tensor(x)
    return x * x


def floor(x: TensorLike) -> Tensor:
    return apply("floor", _float(x))


def ceil(x: TensorLike) -> Tensor:
    return apply("ceil", _float(x))


def round(x: TensorLike) -> Tensor:
    """To the nearest whole number, halves to even."""
    return apply("round", _float(x))


def add(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("add", x, y)


def subtract(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("sub", x, y)


def multiply(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("mul", x, y)


def divide(x: TensorLike, y: TensorLike) -> Tensor:
    """True division: integers become float32."""
    return true_divide(x, y)


def remainder(x: TensorLike, y: TensorLike) -> Tensor:
    """With the sign of ``y``, as Python's %."""
    return binary("mod", x, y)


def pow(x: TensorLike, y: TensorLike) -> Tensor:
    return power(as_tensor(x) if isinstance(x, np.ndarray) else x, y)


def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("maximum", x, y)


def minimum(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("minimum", x, y)


def clip(x: TensorLike, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    x = as_tensor(x)
    x = x if min is None else maximum(x, min)
    return x if max is None else minimum(x, max)


def equal(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("equal", x, y)


def not_equal(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("not_equal", x, y)


def less(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("less", x, y)


def less_equal(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("less_equal", x, y)


def greater(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("greater", x, y)


def greater_equal(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("greater_equal", x, y)


def logical_and(x: TensorLike, y: TensorLike) -> Tensor:
    return apply("logical_and", *promote_all("logical_and", x, y, to=bool_))


def logical_or(x: TensorLike, y: TensorLike) -> Tensor:
    return apply("logical_or", *promote_all("logical_or", x, y, to=bool_))


def logical_xor(x: TensorLike, y: TensorLike) -> Tensor:
    return apply("logical_xor", *promote_all("logical_xor", x, y, to=bool_))


def logical_not(x: TensorLike) -> Tensor:
    return apply("logical_not", astype(x, bool_))


def bitwise_and(x: TensorLike, y: TensorLike) -> Tensor:
    return logical("and", x, y)


def bitwise_or(x: TensorLike, y: TensorLike) -> Tensor:
    return logical("or", x, y)


def bitwise_xor(x: TensorLike, y: TensorLike) -> Tensor:
    return logical("xor", x, y)


def isfinite(x: TensorLike) -> Tensor:
    """False where x is NaN or infinite."""
    x = _float(x)
    return abs(x) < float("inf")


def where(condition: TensorLike, x: TensorLike, y: TensorLike) -> Tensor:
    """``x`` where ``condition`` (bool) holds, else ``y``; all three broadcast."""
    to = common_dtype(x, y)
    cond, a, b = as_tensor(condition), as_tensor(x, to), as_tensor(y, to)
    shape = common_shape("where", cond, a, b)
    return apply("where", broadcast_to(cond, shape), broadcast_to(a, shape), broadcast_to(b, shape))


# Reductions ----------------------------------------------------------------------------------------------------------


def sum(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("sum", x, axis, keepdims)


def max(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("max", x, axis, keepdims)


def min(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("min", x, axis, keepdims)


def prod(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("prod", x, axis, keepdims)


def mean(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return as_tensor(x).mean(axis, keepdims=keepdims)


@rounded_once
def var(x: TensorLike, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean, divided by (n - correction)."""
    x = _float(x)
    centred = x - mean(x, axis, keepdims=True)
    total = reduce("sum", centred * centred, axis, keepdims)
    return total / (x.size / (total.size or 1) - correction)


@rounded_once
def std(x: TensorLike, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    return sqrt(var(x, axis, correction=correction, keepdims=keepdims))


def all(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("min", astype(astype(x, bool_), int32), axis, keepdims) > 0


def any(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    return reduce("max", astype(astype(x, bool_), int32), axis, keepdims) > 0


# Movement ------------------------------------------------------------------------------------------------------------


def permute_dims(x: TensorLike, axes: Sequence[int]) -> Tensor:
    return as_tensor(x).permute_dims(axes)


def expand_dims(x: TensorLike, axis: int = 0) -> Tensor:
    """A new dimension of size 1 at position ``axis`` of the result."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: TensorLike, axis: int | Sequence[int]) -> Tensor:
    """Without the dimensions ``axis``, which must have size 1."""
    x = as_tensor(x)
    dims = {normalize_axis(a, x.ndim) for a in ((axis,) if isinstance(axis, int) else axis)}
    for d in dims:
        if x.shape[d] != 1:
            message = f"cannot squeeze dimension {d} of {x.type}: its size is {x.shape[d]}"
            raise error("GC0104", message, loc=user_loc(), hint="only dimensions of size 1 can go; x.sum(axis) adds up")
    return reshape(x, [n for i, n in enumerate(x.shape) if i not in dims])


def concat(arrays: Sequence[TensorLike], *, axis: int = 0) -> Tensor:
    """Joined along ``axis``; the other dimensions must be equal."""
    if len(arrays) == 0:
        raise error("GC0111", "concat of no tensors", loc=user_loc(), hint="give one tensor or more: gc.concat([a, b])")
    to = common_dtype(*arrays)
    tensors = [as_tensor(x, to) for x in arrays]
    return apply("concat", *tensors, axis=normalize_axis(axis, tensors[0].ndim))


def stack(arrays: Sequence[TensorLike], *, axis: int = 0) -> Tensor:
    """Joined along a new dimension ``axis``."""
    return concat([expand_dims(x, axis) for x in arrays], axis=axis)


def split(x: TensorLike, sections: int | Sequence[int], *, axis: int = -1) -> tuple[Tensor, ...]:
    """Parts along ``axis``: ``sections`` equal ones (an int, as in NumPy) or parts of these sizes (a sequence, as in
    torch). Raises GC0108 when they do not fill the dimension."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    size = x.shape[at]
    sizes = (size // sections,) * sections if isinstance(sections, int) else tuple(int(s) for s in sections)
    if builtins.sum(sizes) != size:
        parts = f"{sections} equal parts" if isinstance(sections, int) else f"parts of {', '.join(map(str, sizes))}"
        raise error(
            "GC0108",
            f"cannot split dimension {at} of {x.type} into {parts}",
            loc=user_loc(),
            hint=f"the sizes must add up to {size}: gc.split(x, [sizes], axis=...), or a number that divides {size}",
        )
    node = emit("split", x._resolve(), axis=at, sizes=sizes)
    return tuple(Tensor.of(v) for v in node.outs)


def take(x: TensorLike, indices: TensorLike, *, axis: int = 0) -> Tensor:
    """Rows of ``x`` along ``axis`` by integer ``indices`` (from 0 on; out of range is an error when it runs)."""
    x, at = as_tensor(x), as_tensor(indices)
    return apply("take", x, at, axis=normalize_axis(axis, x.ndim))


def scatter_add(indices: TensorLike, rows: TensorLike, size: int) -> Tensor:
    """(size, *row shape): for each index, the sum of the ``rows`` that name it, in a fixed order."""
    return apply("scatter_add", as_tensor(indices), as_tensor(rows), size=size)


# Creation ------------------------------------------------------------------------------------------------------------


def _shape(shape: int | Sequence[int]) -> Shape:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def asarray(x: TensorLike, dtype: Any = None) -> Tensor:
    """``x`` as a tensor. A NumPy array keeps its dtype, unless ``dtype`` says otherwise."""
    if dtype is None and isinstance(x, np.ndarray | np.generic):
        dtype = x.dtype
    return as_tensor(x, None if dtype is None else as_dtype(dtype))


def full(shape: int | Sequence[int], fill_value: float, *, dtype: Any = None) -> Tensor:
    to = common_dtype(fill_value) if dtype is None else as_dtype(dtype)
    return broadcast_to(as_tensor(fill_value, to), _shape(shape))


def zeros(shape: int | Sequence[int], *, dtype: Any = float32) -> Tensor:
    return full(shape, 0, dtype=dtype)


def ones(shape: int | Sequence[int], *, dtype: Any = float32) -> Tensor:
    return full(shape, 1, dtype=dtype)


def full_like(x: Tensor, fill_value: float, *, dtype: Any = None) -> Tensor:
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


def zeros_like(x: Tensor, *, dtype: Any = None) -> Tensor:
    return full_like(x, 0, dtype=dtype)


def ones_like(x: Tensor, *, dtype: Any = None) -> Tensor:
    return full_like(x, 1, dtype=dtype)


def arange(start: float, stop: float | None = None, step: float = 1, *, dtype: Any = None) -> Tensor:
    """``start, start + step, ...`` below ``stop``: Python numbers, since the length is part of the graph."""
    start, stop = (0, start) if stop is None else (start, stop)
    to = common_dtype(start, stop, step) if dtype is None else as_dtype(dtype)
    length = len(np.arange(start, stop, step))
    count = iota((length,), 0, dtype=to.computed)
    scaled = count if step == 1 else count * step
    return astype(scaled if start == 0 else scaled + start, to)


def iota(shape: Sequence[int], axis: int, *, dtype: Any = int32) -> Tensor:
    """The position along ``axis``, at each element of ``shape``."""
    return apply("iota", shape=tuple(shape), axis=normalize_axis(axis, len(shape)), dtype=as_dtype(dtype))


def tril(x: TensorLike, *, k: int = 0) -> Tensor:
    """The lower triangles of the last two dimensions: zero where column > row + k."""
    x = as_tensor(x)
    return where(iota(x.shape, -1) <= iota(x.shape, -2) + k, x, 0)


def triu(x: TensorLike, *, k: int = 0) -> Tensor:
    """The upper triangles of the last two dimensions: zero where column < row + k."""
    x = as_tensor(x)
    return where(iota(x.shape, -1) >= iota(x.shape, -2) + k, x, 0)
