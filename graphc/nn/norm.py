"""Normalisation over batches, groups and images, and resampling, by torch's names: x [B, C, *sizes]."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import maximum, mean, rsqrt, take, var
from graphc.half import rounded_once
from graphc.scope import user_loc
from graphc.tensor import Tensor, apply, as_tensor, astype, broadcast_to
from graphc.tracing import stop_gradient
from graphc.variable import State

__all__ = ["batch_norm", "group_norm", "instance_norm", "interpolate"]


def _channels(v: Tensor, x: Tensor) -> Tensor:
    """One number per channel, beside x [B, C, *sizes]."""
    if v.shape != x.shape[1:2]:
        raise error("GC0101", f"a norm of {v.size} channels does not fit {x.type}", loc=user_loc(),
                    hint="x is [batch, channels, *sizes]")  # fmt: skip
    return v.reshape((v.size, *(1,) * (x.ndim - 2)))


def batch_norm(
    x: Tensor,
    running_mean: State | None,
    running_var: State | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, per channel of x [B, C, *sizes].

    In ``training`` (or without running statistics) mean and variance are those of the batch, over all dimensions but
    the channels, and the running ones are assigned ``(1 - momentum) running + momentum batch``, the variance divided by
    n - 1 as in torch. Else the running statistics are used, as one factor and one shift per channel: they join the
    kernel of the convolution before, so that the norm costs nothing there.
    Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167.
    """
    if x.dtype.is_half:  # computed in float32; the running statistics keep their type
        wide = astype(x, float32)
        return astype(batch_norm(wide, running_mean, running_var, weight, bias, training, momentum, eps), x.dtype)
    if x.ndim < 2:
        raise error("GC0101", f"batch_norm needs [batch, channels, ...], and got {x.type}", loc=user_loc())
    if running_mean is not None and running_var is not None and not training:
        scale = rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale
        shift = shift if bias is None else shift + bias
        return x * _channels(scale, x) + _channels(shift, x)
    axes = (0, *range(2, x.ndim))
    count = x.size // max(x.shape[1], 1)
    if count < 2:
        raise error("GC0101", f"batch statistics of {x.type}: one value per channel has no variance", loc=user_loc())
    shift, offset, spread = _moments(x, axes)
    if running_mean is not None and running_var is not None:
        _track(running_mean, shift + offset, momentum)
        _track(running_var, spread * (count / (count - 1)), momentum)
    scale = rsqrt(spread + eps)
    scale = scale if weight is None else scale * _channels(weight, x)
    y = (x - shift - offset) * scale
    return y if bias is None else y + _channels(bias, x)


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Per channel, beside x: an element of x, the mean of the distances from it, and the variance (over n).

    Both sums are taken in one pass over x. That the shift is one of the values keeps what cancels small: its distance
    from the mean is a few standard deviations (Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance",
    The American Statistician 37(3), 1983). Mean and variance do not depend on it, so no gradient flows through it.
    """
    middle = tuple(slice(None) if d == 1 else slice(x.shape[d] // 2, x.shape[d] // 2 + 1) for d in range(x.ndim))
    shift = stop_gradient(x[middle])
    distance = x - shift
    offset = mean(distance, axes, keepdims=True)
    spread = mean(distance * distance, axes, keepdims=True) - offset * offset
    return shift, offset, maximum(spread, 0)


def _track(running: State, now: Tensor, momentum: float | Tensor) -> None:
    batch = stop_gradient(now).reshape(running.shape)
    running.assign(astype(running * (1 - momentum) + batch * momentum, running.dtype))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * _channels(weight, x)
    return x if bias is None else x + _channels(bias, x)


@rounded_once
def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Mean 0 and variance 1 for each image and group of channels of x [B, C, *sizes]; then weight and bias per channel.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494.
    """
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise error("GC0101", f"{num_groups} groups do not divide the channels of {x.type}", loc=user_loc())
    rows = x.reshape((x.shape[0], num_groups, x.size // max(x.shape[0] * num_groups, 1)))
    rows = (rows - mean(rows, -1, keepdims=True)) * rsqrt(var(rows, -1, keepdims=True) + eps)
    return _affine(rows.reshape(x.shape), weight, bias)


def instance_norm(
    x: Tensor,
    running_mean: State | None = None,
    running_var: State | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 for each image and channel of x [B, C, *sizes]; then weight and bias per channel.

    Running statistics, if given, are assigned as by `batch_norm`, with the means over the images of their means and
    variances; without ``use_input_stats`` they are used in place of the input's.
    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", arXiv 1607.08022.
    """
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise error("GC0217", "instance_norm has neither the input's statistics nor running ones", loc=user_loc())
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None and running_var is not None:
        axes = tuple(range(2, x.ndim))
        _track(running_mean, mean(x, (0, *axes)), momentum)
        _track(running_var, mean(var(x, axes, correction=1), 0), momentum)
    return group_norm(x, x.shape[1], weight, bias, eps)


@rounded_once
def interpolate(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """x [B, C, *sizes] resampled to ``size``, or to sizes times ``scale_factor`` rounded down.

    ``mode``: "nearest" (element floor(i L / M)), or "linear" = "bilinear" = "trilinear": between the centres of the
    elements, or with ``align_corners`` so that the first and last elements stay where they are. Raises GC0217.
    """
    n = x.ndim - 2
    if mode not in ("nearest", "linear", "bilinear", "trilinear") or (size is None) == (scale_factor is None):
        hint = 'mode="nearest" or "bilinear", and either size= or scale_factor='
        raise error("GC0217", f"interpolate with mode {mode!r}", loc=user_loc(), hint=hint)
    if size is not None:
        sizes = (size,) * n if isinstance(size, int) else tuple(size)
    else:
        assert scale_factor is not None
        factors = (scale_factor,) * n if isinstance(scale_factor, int | float) else tuple(scale_factor)
        sizes = tuple(int(d * f) for d, f in zip(x.shape[2:], factors, strict=True))
    for axis, wanted in enumerate(sizes, 2):
        if x.shape[axis] != wanted:
            x = _nearest(x, axis, wanted) if mode == "nearest" else _linear(x, axis, wanted, bool(align_corners))
    return x


def _nearest(x: Tensor, axis: int, wanted: int) -> Tensor:
    length = x.shape[axis]
    if wanted % length == 0:  # each element a whole number of times: nothing to look up
        column = x.reshape((*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
        wide = (*x.shape[: axis + 1], wanted // length, *x.shape[axis + 1 :])
        return broadcast_to(column, wide).reshape((*x.shape[:axis], wanted, *x.shape[axis + 1 :]))
    return take(x, np.arange(wanted, dtype=np.int32) * length // wanted, axis=axis)


def _linear(x: Tensor, axis: int, wanted: int, align_corners: bool) -> Tensor:
    """The product with a matrix [wanted, length] that has two weights a row."""
    length = x.shape[axis]
    if align_corners:
        at = np.arange(wanted) * ((length - 1) / max(wanted - 1, 1))
    else:
        at = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    low = np.floor(at).astype(int)
    matrix = np.zeros((wanted, length), x.dtype.numpy)
    rows = np.arange(wanted)
    np.add.at(matrix, (rows, low), 1 - (at - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, length - 1)), at - low)
    y = apply("dot", x, as_tensor(matrix, x.dtype), batch=((), ()), contract=((axis,), (1,)))
    order = [*range(axis), x.ndim - 1, *range(axis, x.ndim - 1)]
    return y if prod(x.shape) == 0 else y.permute_dims(order)
