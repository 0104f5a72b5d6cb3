"""Functions of neural networks, each a short formula over primitives: a model's own variant fuses as well as these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import expand_dims, iota, mean, rsqrt, where
from graphc.half import rounded_once
from graphc.nn import activation, loss
from graphc.nn.activation import *  # noqa: F403
from graphc.nn.loss import *  # noqa: F403
from graphc.random import bits, next_key
from graphc.scope import user_loc
from graphc.tensor import Tensor, TensorLike, apply, as_tensor, astype, common_dtype
from graphc.tracing import stop_gradient

__all__ = ["dropout", "embedding", "layer_norm", "linear", "one_hot", "rms_norm"]
__all__ += activation.__all__
__all__ += loss.__all__


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


def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight`` [num, dim] by integer ``indices`` [...]: [..., dim]; no gradient reaches row ``padding_idx``
    (counted from the end if negative). Raises GC0103."""
    indices = as_tensor(indices)
    if not indices.dtype.is_integer:
        raise error(
            "GC0103",
            f"embedding: the indices must be integers, and are {indices.type}",
            loc=user_loc(),
            hint='declare the input as integers: gc.spec(shape, "int32"); or convert: gc.astype(x, "int32")',
        )
    rows = apply("take", weight, indices, axis=0)
    if padding_idx is None:
        return rows
    padding = expand_dims(indices == padding_idx % weight.shape[0], -1)
    return where(padding, stop_gradient(rows), rows)


def one_hot(indices: TensorLike, num_classes: int, *, dtype: Any = float32) -> Tensor:
    """1 at the index along a new last dimension of size ``num_classes``, else 0."""
    indices = expand_dims(as_tensor(indices), -1)
    shape = (*indices.shape[:-1], num_classes)
    return astype(iota(shape, -1, dtype=indices.dtype) == indices, dtype)


@rounded_once
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


@rounded_once
def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x**2) + eps) over the last dimensions, times ``weight``; ``eps`` None: that of the dtype.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
    """
    axes = _last_axes(x, normalized_shape)
    least = float(np.finfo(x.dtype.numpy).eps) if eps is None else eps
    out = x * rsqrt(mean(x * x, axes, keepdims=True) + least)
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
