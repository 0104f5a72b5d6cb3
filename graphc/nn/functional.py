"""Functions of neural networks, each a short formula over primitives: a model's own variant fuses as well as these."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import erf, exp, expand_dims, iota, log, maximum, mean, rsqrt, take, tanh, where, zeros
from graphc.functional import sum as total
from graphc.random import bits, next_key
from graphc.scope import user_loc
from graphc.tensor import Axis, Tensor, TensorLike, apply, as_tensor, astype, common_dtype, reduce
from graphc.trace import stop_gradient

__all__ = [
    "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear", "log_softmax", "logsumexp", "mse_loss",
    "one_hot", "relu", "rms_norm", "sigmoid", "silu", "softmax", "softplus",
]  # fmt: skip


# Activations ---------------------------------------------------------------------------------------------------------


def relu(x: TensorLike) -> Tensor:
    """max(x, 0). Its gradient at 0 is 0, as in PyTorch and JAX (`maximum` would share it between the two), and NaN
    stays NaN."""
    x = as_tensor(x)
    return where(x <= 0, 0, x)


def sigmoid(x: TensorLike) -> Tensor:
    return apply("sigmoid", as_tensor(x))


def silu(x: TensorLike) -> Tensor:
    """x * sigmoid(x)."""
    x = as_tensor(x)
    return x * sigmoid(x)


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


def softplus(x: TensorLike) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    x = as_tensor(x)
    return maximum(x, 0) + log(1.0 + exp(-abs(x)))


def logsumexp(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) along ``axis``, shifted by the maximum so that it does not overflow."""
    x = as_tensor(x)
    shift = stop_gradient(reduce("max", x, axis, True))
    sums = total(exp(x - shift), axis, keepdims=keepdims)
    return log(sums) + shift.reshape(sums.shape)


def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    x = as_tensor(x)
    e = exp(x - stop_gradient(reduce("max", x, axis, True)))
    return e / total(e, axis, keepdims=True)


def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    x = as_tensor(x)
    return x - logsumexp(x, axis, keepdims=True)


# Layers as functions -------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x [..., in], weight [out, in] (torch's layout), bias [out]."""
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise error(
            "GC0107",
            f"linear: the last dimension of x ({x.type}) must be the second of the weight ({weight.type})",
            loc=user_loc(),
            hint=f"nn.Linear({x.shape[-1]}, {weight.shape[0]}) fits this x" if x.ndim and weight.ndim == 2 else None,
        )
    to = common_dtype(x, weight)
    out = apply("dot", astype(x, to), astype(weight, to), batch=((), ()), contract=((x.ndim - 1,), (1,)))
    return out if bias is None else out + bias


def embedding(indices: Tensor, weight: Tensor) -> Tensor:
    """Rows of ``weight`` [num, dim] by integer ``indices`` [...]: [..., dim]. Raises GC0103."""
    indices = as_tensor(indices)
    if not indices.dtype.is_integer:
        raise error(
            "GC0103",
            f"embedding: the indices must be integers, and are {indices.type}",
            loc=user_loc(),
            hint='declare the input as integers: gc.spec(shape, "int32"); or convert: gc.astype(x, "int32")',
        )
    return apply("take", weight, indices, axis=0)


def one_hot(indices: TensorLike, num_classes: int, *, dtype: Any = float32) -> Tensor:
    """1 at the index along a new last dimension of size ``num_classes``, else 0."""
    indices = expand_dims(as_tensor(indices), -1)
    shape = (*indices.shape[:-1], num_classes)
    return astype(iota(shape, -1, dtype=indices.dtype) == indices, dtype)


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the last dimensions, times ``weight`` plus ``bias``.

    Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.
    """
    axes = _last_axes(x, normalized_shape)
    centred = x - mean(x, axes, keepdims=True)
    out = centred * rsqrt(mean(centred * centred, axes, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) over the last dimensions, times ``weight``.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """
    axes = _last_axes(x, normalized_shape)
    out = x * rsqrt(mean(x * x, axes, keepdims=True) + eps)
    return out if weight is None else out * weight


def _last_axes(x: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        hint = f"the norm is made for the last dimensions of x: {x.shape[-len(shape) :]} fits" if x.ndim else None
        raise error("GC0101", f"a norm over {shape} does not fit {x.type}", loc=user_loc(), hint=hint)
    return tuple(range(x.ndim - len(shape), x.ndim))


def dropout(x: Tensor, p: float = 0.5, *, training: bool = True) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p).

    The mask is a function of the program's random state and is made again in the backward pass.
    Source: Srivastava et al., "Dropout", JMLR 15 (2014).
    """
    if not 0 <= p <= 1:
        raise error("GC0217", f"the probability of dropout is from 0 to 1, not {p}", loc=user_loc())
    if p == 0 or not training:
        return x
    return x * 0 if p == 1 else where(keep_mask(bits(next_key(), x.shape), p), x * (1 / (1 - p)), 0)


def keep_mask(words: Tensor, p: float) -> Tensor:
    """True with probability 1 - p, from random words uint32."""
    return words >= min(int(p * 2**32), 2**32 - 1)


# Losses --------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor, *, reduction: str = "mean", ignore_index: int = -100) -> Tensor:
    """The negative log-likelihood of ``target`` under softmax(logits).

    logits [..., C] float; target [...] int (class numbers; ``ignore_index`` counts for nothing) or [..., C] float
    (probabilities). ``reduction``: "mean" (over the targets that count), "sum" or "none". Raises GC0101, and GC0420
    when it runs with a class number out of range.
    """
    if target.dtype.is_float:
        if target.shape != logits.shape:
            raise _bad_target(logits, target)
        return _reduced(-total(target * log_softmax(logits), -1), reduction)
    if target.shape != logits.shape[:-1]:
        raise _bad_target(logits, target)
    chosen = iota(logits.shape, -1, dtype=target.dtype) == expand_dims(target, -1)
    nll = logsumexp(logits, -1) - total(where(chosen, logits, 0), -1)
    counts = target != ignore_index
    # Looking the labels up in zeros checks them: one out of range is an error of the step. No gradient depends on it.
    checked = take(zeros(logits.shape[-1:], dtype=logits.dtype), where(counts, target, 0))
    losses = where(counts, nll, 0) + checked
    if reduction == "mean":
        return total(losses) / total(astype(counts, logits.dtype))
    return _reduced(losses, reduction)


def _bad_target(logits: Tensor, target: Tensor) -> Exception:
    return error(
        "GC0101",
        f"cross_entropy of logits {logits.type} and target {target.type}",
        loc=user_loc(),
        hint="logits [..., classes] and target [...] of ints, or [..., classes] of probabilities: classes come last",
    )


def mse_loss(x: Tensor, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """The squared difference; ``reduction``: "mean", "sum" or "none"."""
    difference = x - target
    return _reduced(difference * difference, reduction)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise error("GC0217", f"no reduction {reduction!r}", loc=user_loc(), hint='"mean", "sum" or "none"')
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
