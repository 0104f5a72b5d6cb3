"""The inverses of trigonometric and hyperbolic functions, and signs: the rest of the Array API's elementwise functions,
composed of the primitives that there are."""

from __future__ import annotations

from math import inf, pi
from math import log as scalar_log

from graphc.functional import abs, log, sqrt, where
from graphc.functional_math import floats, log1p, to_float
from graphc.half import rounded_once
from graphc.tensor import Tensor, TensorLike

__all__ = ["acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "copysign", "signbit"]

TERMS = 11  # of the series of atan: at 0.2, what is left out is below 2**-53 of the result
HUGE = 1e9  # from here on x² + 1 is x²


# Angles --------------------------------------------------------------------------------------------------------------


@rounded_once
def atan(x: TensorLike) -> Tensor:
    """The angle between -pi/2 and pi/2 whose tangent is ``x``.

    Above 1 it is pi/2 - atan(1/x); then twice atan(x) = 2 atan(x / (1 + sqrt(1 + x²))), which leaves less than 0.2;
    then the series x - x³/3 + x⁵/5 - ..."""
    x = to_float(x)
    large = abs(x) > 1
    near = where(large, 1.0 / where(large, x, 1), x)
    for _ in range(2):
        near = near / (1.0 + sqrt(1.0 + near * near))
    angle = 4.0 * _series(near)
    return where(large, where(x > 0, pi / 2 - angle, -pi / 2 - angle), angle)


def _series(x: Tensor) -> Tensor:
    square = x * x
    total = square * (-1.0 / (2 * TERMS + 1)) + 1.0 / (2 * TERMS - 1)
    for k in reversed(range(TERMS - 1)):
        total = 1.0 / (2 * k + 1) - square * total
    return x * total


@rounded_once
def atan2(y: TensorLike, x: TensorLike) -> Tensor:
    """The angle of the point (x, y), from -pi to pi; that of zeros and infinities by their signs, as in IEEE 754."""
    y, x = floats(y, x)
    steep = abs(y) > abs(x)
    nought, infinite = (x == 0) & (y == 0), (abs(x) == inf) & (abs(y) == inf)
    top, bottom = where(steep, x, y), where(steep, y, x)
    ratio = top / where(nought, 1, where(infinite, 1, bottom))
    ratio = where(infinite, where(signbit(x) == signbit(y), 1, -1), ratio)
    angle = atan(ratio)
    turned = angle + where(signbit(x), copysign(pi, y), copysign(0, y))
    return where(steep, copysign(pi / 2, y) - angle, turned)


@rounded_once
def asin(x: TensorLike) -> Tensor:
    """The angle between -pi/2 and pi/2 whose sine is ``x``; NaN outside of [-1, 1]."""
    x = to_float(x)
    return 2.0 * atan(x / (1.0 + sqrt((1.0 - x) * (1.0 + x))))


@rounded_once
def acos(x: TensorLike) -> Tensor:
    """The angle between 0 and pi whose cosine is ``x``; NaN outside of [-1, 1]."""
    x = to_float(x)
    return 2.0 * atan2(sqrt(1.0 - x), sqrt(1.0 + x))


# Hyperbolic ----------------------------------------------------------------------------------------------------------


def _size(x: Tensor) -> Tensor:
    """|x|, with the derivative 1 at 0."""
    return where(x < 0, -x, x)


@rounded_once
def asinh(x: TensorLike) -> Tensor:
    """The number whose hyperbolic sine is ``x``, without cancellation near 0 and without overflow."""
    x = to_float(x)
    size = _size(x)
    huge = size > HUGE
    fine = where(huge, 1, size)
    near = log1p(fine + fine * fine / (1.0 + sqrt(1.0 + fine * fine)))
    out = where(huge, log(where(huge, size, 1)) + scalar_log(2), near)
    return where(x < 0, -out, out)


@rounded_once
def acosh(x: TensorLike) -> Tensor:
    """The number from 0 on whose hyperbolic cosine is ``x``; NaN below 1."""
    x = to_float(x)
    huge = x > HUGE
    over = where(huge, 1, x - 1.0)
    return where(huge, log(where(huge, x, 1)) + scalar_log(2), log1p(over + sqrt(over * (over + 2.0))))


@rounded_once
def atanh(x: TensorLike) -> Tensor:
    """The number whose hyperbolic tangent is ``x``; NaN outside of [-1, 1]."""
    x = to_float(x)
    size = _size(x)
    out = 0.5 * log1p(2.0 * size / (1.0 - size))
    return where(x < 0, -out, out)


# Signs ---------------------------------------------------------------------------------------------------------------


def signbit(x: TensorLike) -> Tensor:
    """Whether ``x`` is negative or -0.0; False for NaN."""
    x = to_float(x)
    return (x < 0) | ((x == 0) & (1.0 / where(x == 0, x, 1) < 0))


@rounded_once
def copysign(x: TensorLike, y: TensorLike) -> Tensor:
    """The size of ``x`` with the sign of ``y``."""
    x, y = floats(x, y)
    return where(signbit(y), -abs(x), abs(x))
