"""More elementwise functions of the Array API, composed of the primitives that there are."""

from __future__ import annotations

from math import log as scalar_log

from graphc.dtype import finfo, float32
from graphc.functional import abs, ceil, cos, exp, floor, isfinite, log, sign, sin, sqrt, tanh, where
from graphc.functional import sum as total
from graphc.half import rounded_once
from graphc.tensor import Axis, Tensor, TensorLike, as_tensor, astype, binary, common_dtype, promote_all
from graphc.tracing import stop_gradient

__all__ = [
    "bitwise_invert", "bitwise_left_shift", "bitwise_right_shift", "cosh", "exp2", "expm1", "hypot", "isinf", "isnan",
    "log1p", "log2", "log10", "logaddexp", "nan_to_num", "norm", "positive", "reciprocal", "sinh", "tan", "trunc",
]  # fmt: skip


def to_float(x: TensorLike) -> Tensor:
    """``x`` as a float tensor: integers become float32."""
    x = as_tensor(x)
    return x if x.dtype.is_float else astype(x, float32)


def floats(x: TensorLike, y: TensorLike) -> list[Tensor]:
    """Both in the float type where they meet."""
    to = common_dtype(x, y)
    return promote_all("a function of two numbers", x, y, to=to if to.is_float else float32)


# Exponentials and logarithms -----------------------------------------------------------------------------------------


@rounded_once
def expm1(x: TensorLike) -> Tensor:
    """exp(x) - 1 without cancellation near 0: there it is 2 t / (1 - t) where t = tanh(x / 2)."""
    x = to_float(x)
    near = abs(x) < 0.5
    t = tanh(0.5 * where(near, x, 0))
    return where(near, 2 * t / (1 - t), exp(x) - 1)


@rounded_once
def log1p(x: TensorLike) -> Tensor:
    """log(1 + x) without losing a small x: with u = 1 + x rounded, log(u) + (x - (u - 1)) / u."""
    x = to_float(x)
    u = 1 + x
    exact = (u > 0) & isfinite(u)
    lost = where(exact, (x - (u - 1)) / where(exact, u, 1), 0)
    return log(u) + stop_gradient(lost)


@rounded_once
def log2(x: TensorLike) -> Tensor:
    return log(x) * (1 / scalar_log(2))


@rounded_once
def log10(x: TensorLike) -> Tensor:
    return log(x) * (1 / scalar_log(10))


@rounded_once
def exp2(x: TensorLike) -> Tensor:
    return 2.0 ** to_float(x)


@rounded_once
def logaddexp(x: TensorLike, y: TensorLike) -> Tensor:
    """log(exp(x) + exp(y)) without overflow."""
    x, y = floats(x, y)
    apart = where((x == y) & isinf(x), 0, x - y)
    return binary("maximum", x, y) + log1p(exp(-abs(apart)))


@rounded_once
def sinh(x: TensorLike) -> Tensor:
    """(exp(x) - exp(-x)) / 2, without cancellation near 0 and without overflow before the result does."""
    x = to_float(x)
    near = abs(x) < 1
    e = expm1(where(near, x, 0))
    half = exp(0.5 * abs(x))
    return where(near, 0.5 * (e + e / (e + 1)), sign(x) * (0.5 * half * half - 0.5 / half / half))


@rounded_once
def cosh(x: TensorLike) -> Tensor:
    """(exp(x) + exp(-x)) / 2, without overflow before the result does."""
    half = exp(0.5 * abs(to_float(x)))
    return 0.5 * half * half + 0.5 / half / half


@rounded_once
def tan(x: TensorLike) -> Tensor:
    return sin(x) / cos(x)


# Numbers -------------------------------------------------------------------------------------------------------------


def isnan(x: TensorLike) -> Tensor:
    x = as_tensor(x)
    return x != x


def isinf(x: TensorLike) -> Tensor:
    return abs(to_float(x)) == float("inf")


def nan_to_num(x: TensorLike, nan: float = 0.0) -> Tensor:
    """``x`` with ``nan`` in place of NaN, and the largest finite numbers in place of infinities."""
    x = as_tensor(x)
    if not x.dtype.is_float:
        return x
    largest = finfo(x.dtype).max
    bounded = where(x == float("inf"), largest, where(x == float("-inf"), -largest, x))
    return where(isnan(x), nan, bounded)


def reciprocal(x: TensorLike) -> Tensor:
    """1 / x."""
    return 1.0 / to_float(x)


def positive(x: TensorLike) -> Tensor:
    return as_tensor(x)


def trunc(x: TensorLike) -> Tensor:
    """Towards zero to a whole number."""
    x = as_tensor(x)
    return where(x < 0, ceil(x), floor(x)) if x.dtype.is_float else x


@rounded_once
def hypot(x: TensorLike, y: TensorLike) -> Tensor:
    """sqrt(x² + y²) without overflow on the way; infinite where x or y is, whatever the other."""
    a, b = map(abs, floats(x, y))
    scale = stop_gradient(binary("maximum", a, b))
    safe = where((scale > 0) & isfinite(scale), scale, 1)
    return where(isinf(a) | isinf(b), float("inf"), sqrt((a / safe) ** 2 + (b / safe) ** 2) * safe)


@rounded_once
def norm(x: TensorLike, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """The vector norm over ``axis``: 2 (Euclid's), 1 (sum of sizes) or any other positive number; inf is the largest
    size."""
    x = to_float(x)
    if ord == 2:
        return sqrt(total(x * x, axis, keepdims=keepdims))
    if ord == float("inf"):
        return abs(x).max(axis, keepdims=keepdims)
    if ord == 1:
        return total(abs(x), axis, keepdims=keepdims)
    return total(abs(x) ** ord, axis, keepdims=keepdims) ** (1 / ord)


# Bits ----------------------------------------------------------------------------------------------------------------


def bitwise_invert(x: TensorLike) -> Tensor:
    return ~as_tensor(x)


def bitwise_left_shift(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("shift_left", x, y)


def bitwise_right_shift(x: TensorLike, y: TensorLike) -> Tensor:
    return binary("shift_right", x, y)
