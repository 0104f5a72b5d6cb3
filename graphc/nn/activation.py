"""Activations and softmax, each a short formula over primitives, with torch's names and gradients."""

from __future__ import annotations

from math import pi, sqrt

from graphc.errors import error
from graphc.functional import erf, exp, isfinite, log, maximum, split, tanh, where
from graphc.functional import sum as total
from graphc.functional_math import expm1, log1p
from graphc.half import rounded_once
from graphc.scope import user_loc
from graphc.tensor import Axis, Tensor, TensorLike, apply, as_tensor, normalize_axis, reduce, reshape
from graphc.tracing import stop_gradient

__all__ = [
    "celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "log_softmax",
    "logsumexp", "mish", "prelu", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign",
]  # fmt: skip


def relu(x: TensorLike) -> Tensor:
    """max(x, 0). Its gradient at 0 is 0, as in PyTorch and JAX (`maximum` would share it between the two), and NaN
    stays NaN."""
    x = as_tensor(x)
    return where(x <= 0, 0, x)


def sigmoid(x: TensorLike) -> Tensor:
    return apply("sigmoid", as_tensor(x))


@rounded_once
def silu(x: TensorLike) -> Tensor:
    """x * sigmoid(x)."""
    x = as_tensor(x)
    return x * sigmoid(x)


@rounded_once
def gelu(x: TensorLike, *, approximate: str = "none") -> Tensor:
    """x times the normal distribution function at x; ``approximate="tanh"`` is the form of GPT-2 ("gelu_new").

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
    """
    x = as_tensor(x)
    if approximate == "none":
        return 0.5 * x * (1.0 + erf(x * sqrt(0.5)))
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / pi) * (x + 0.044715 * x**3)))
    raise error("GC0217", f"gelu has no form {approximate!r}", loc=user_loc(), hint='approximate="none" or "tanh"')


@rounded_once
def softplus(x: TensorLike, beta: float = 1.0) -> Tensor:
    """log(1 + exp(beta x)) / beta, without overflow and without losing small results."""
    x = as_tensor(x) if beta == 1 else as_tensor(x) * beta
    out = maximum(x, 0) + log1p(exp(-abs(x)))
    return out if beta == 1 else out / beta


@rounded_once
def logsumexp(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) along ``axis``, shifted by the maximum so that it does not overflow; infinite where that is."""
    x = as_tensor(x)
    top = stop_gradient(reduce("max", x, axis, True))
    shift = where(isfinite(top), top, 0)
    sums = total(exp(x - shift), axis, keepdims=keepdims)
    return log(sums) + shift.reshape(sums.shape)


@rounded_once
def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    x = as_tensor(x)
    e = exp(x - stop_gradient(reduce("max", x, axis, True)))
    return e / total(e, axis, keepdims=True)


@rounded_once
def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    x = as_tensor(x)
    return x - logsumexp(x, axis, keepdims=True)


# Bounded and leaky: gradients at the kinks are torch's ----------------------------------------------------------------


def hardtanh(x: TensorLike, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """``x`` between ``min_val`` and ``max_val``. The gradient at both is 0, and NaN stays NaN."""
    x = as_tensor(x)
    return where(x <= min_val, min_val, where(x >= max_val, max_val, x))


def relu6(x: TensorLike) -> Tensor:
    """``x`` between 0 and 6."""
    return hardtanh(x, 0.0, 6.0)


@rounded_once
def hardsigmoid(x: TensorLike) -> Tensor:
    """relu6(x + 3) / 6."""
    return relu6(as_tensor(x) + 3.0) / 6.0


@rounded_once
def hardswish(x: TensorLike) -> Tensor:
    """x relu6(x + 3) / 6. Source: Howard et al., "Searching for MobileNetV3", arXiv 1905.02244."""
    x = as_tensor(x)
    return x * hardsigmoid(x)


def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """``x`` where it is positive, else ``negative_slope * x``."""
    x = as_tensor(x)
    return where(x > 0, x, x * negative_slope)


def prelu(x: TensorLike, weight: Tensor) -> Tensor:
    """`leaky_relu` with the slope ``weight``: one number, or one for each channel (dimension 1 of ``x``).

    Source: He et al., arXiv 1502.01852. Raises GC0217.
    """
    x = as_tensor(x)
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.size not in (1, channels) or weight.ndim > 1:
        message = f"prelu of {x.type} with slopes {weight.type}"
        raise error("GC0217", message, loc=user_loc(), hint=f"one slope, or one for each of the {channels} channels")
    slope = reshape(weight, (weight.size, *(1,) * (x.ndim - 2))) if weight.size > 1 else weight.reshape(())
    return where(x > 0, x, x * slope)


# Exponential ---------------------------------------------------------------------------------------------------------


@rounded_once
def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """``x`` where it is positive, else alpha (exp(x) - 1). Source: Clevert et al., arXiv 1511.07289."""
    x = as_tensor(x)
    return where(x > 0, x, alpha * expm1(where(x > 0, 0, x)))


@rounded_once
def celu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """`elu` with a continuous derivative: alpha (exp(x / alpha) - 1) below 0. Source: Barron, arXiv 1704.07483."""
    x = as_tensor(x)
    return where(x > 0, x, alpha * expm1(where(x > 0, 0, x) / alpha))


@rounded_once
def selu(x: TensorLike) -> Tensor:
    """`elu` scaled so that activations keep mean 0 and variance 1. Source: Klambauer et al., arXiv 1706.02515."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


@rounded_once
def mish(x: TensorLike) -> Tensor:
    """x tanh(softplus(x)). Source: Misra, arXiv 1908.08681."""
    x = as_tensor(x)
    return x * tanh(softplus(x))


@rounded_once
def log_sigmoid(x: TensorLike) -> Tensor:
    """log(sigmoid(x)), without underflow."""
    return -softplus(-as_tensor(x))


@rounded_once
def softsign(x: TensorLike) -> Tensor:
    """x / (1 + |x|)."""
    x = as_tensor(x)
    return x / (1.0 + abs(x))


@rounded_once
def glu(x: TensorLike, axis: int = -1) -> Tensor:
    """The first half along ``axis`` times the sigmoid of the second. Source: Dauphin et al., arXiv 1612.08083."""
    x = as_tensor(x)
    a, b = split(x, 2, axis=normalize_axis(axis, x.ndim))
    return a * sigmoid(b)
