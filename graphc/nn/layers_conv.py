"""Layers of convolutional networks by torch's names, parameter layouts and initial values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt
from typing import Any, ClassVar

import numpy as np

from graphc.dtype import dtype as as_dtype
from graphc.errors import error
from graphc.nn import conv as C
from graphc.nn import init
from graphc.nn.module import Module
from graphc.nn.norm import batch_norm, group_norm, instance_norm, interpolate
from graphc.scope import user_loc
from graphc.tensor import Tensor, as_tensor
from graphc.variable import Parameter, State

__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d",
    "ConvTranspose3d", "Flatten", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "MaxPool1d",
    "MaxPool2d", "MaxPool3d", "Upsample",
]  # fmt: skip

Sizes = int | Sequence[int]


def _parameter(shape: Sequence[int], dtype: Any, value: float = 0.0) -> Parameter:
    return Parameter(np.full(tuple(shape), value, as_dtype(dtype).numpy))


# Convolution ---------------------------------------------------------------------------------------------------------


class _Conv(Module):
    """weight [out_channels, in_channels / groups, *kernel_size], bias [out_channels]; initial values as torch's."""

    ndim: ClassVar[int]
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Any = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ):
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = (kernel_size,) * self.ndim if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        if groups < 1 or in_channels % groups or out_channels % groups:
            message = f"{groups} groups do not divide {in_channels} and {out_channels} channels"
            raise error("GC0113", message, loc=user_loc())
        self._initialise((out_channels, in_channels // groups, *self.kernel_size), bias, dtype)

    def _initialise(self, shape: Sequence[int], bias: bool, dtype: Any) -> None:
        self.weight = init.kaiming_uniform_(_parameter(shape, dtype), a=sqrt(5))
        bound = 1 / sqrt(max(prod(shape[1:]), 1))
        self.bias = init.uniform_(_parameter((self.out_channels,), dtype), -bound, bound) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        function = type(self).function
        return function(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """x [B, C, L] (see gc.conv1d)."""

    ndim, function = 1, staticmethod(C.conv1d)


class Conv2d(_Conv):
    """x [B, C, H, W] (see gc.conv2d)."""

    ndim, function = 2, staticmethod(C.conv2d)


class Conv3d(_Conv):
    """x [B, C, D, H, W] (see gc.conv3d)."""

    ndim, function = 3, staticmethod(C.conv3d)


class _ConvTranspose(_Conv):
    """weight [in_channels, out_channels / groups, *kernel_size], bias [out_channels]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        *,
        dtype: Any = "float32",
    ):
        self.output_padding = output_padding
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype=dtype)

    def _initialise(self, shape: Sequence[int], bias: bool, dtype: Any) -> None:
        turned = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        super()._initialise(turned, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        function = type(self).function
        return function(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class ConvTranspose1d(_ConvTranspose):
    """x [B, C, L] (see gc.conv_transpose1d)."""

    ndim, function = 1, staticmethod(C.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """x [B, C, H, W] (see gc.conv_transpose2d)."""

    ndim, function = 2, staticmethod(C.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """x [B, C, D, H, W] (see gc.conv_transpose3d)."""

    ndim, function = 3, staticmethod(C.conv_transpose3d)


# Pooling -------------------------------------------------------------------------------------------------------------


class _MaxPool(Module):
    """The maximum of each window; ``stride`` is the window's size unless given."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        *,
        ceil_mode: bool = False,
    ):
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return type(self).function(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(_MaxPool):
    function = staticmethod(C.max_pool1d)


class MaxPool2d(_MaxPool):
    function = staticmethod(C.max_pool2d)


class MaxPool3d(_MaxPool):
    function = staticmethod(C.max_pool3d)


class _AvgPool(Module):
    """The mean of each window; ``stride`` is the window's size unless given."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        function = type(self).function
        return function(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool1d(_AvgPool):
    function = staticmethod(C.avg_pool1d)


class AvgPool2d(_AvgPool):
    function = staticmethod(C.avg_pool2d)


class AvgPool3d(_AvgPool):
    function = staticmethod(C.avg_pool3d)


class _AdaptivePool(Module):
    """Means or maxima of parts that cover the input evenly; ``output_size=1`` takes that of everything."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, output_size: Any):
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return type(self).function(x, self.output_size)


class AdaptiveAvgPool1d(_AdaptivePool):
    function = staticmethod(C.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptivePool):
    function = staticmethod(C.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptivePool):
    function = staticmethod(C.adaptive_avg_pool3d)


class AdaptiveMaxPool1d(_AdaptivePool):
    function = staticmethod(C.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptivePool):
    function = staticmethod(C.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptivePool):
    function = staticmethod(C.adaptive_max_pool3d)


# Normalisation -------------------------------------------------------------------------------------------------------


class _BatchNorm(Module):
    """weight and bias [num_features]; state running_mean, running_var [num_features] and num_batches_tracked.

    In training the entry that runs it assigns the running statistics (see `graphc.nn.norm.batch_norm`); ``momentum``
    None makes them plain averages over all batches. After ``eval()`` they take the place of the batch's.
    """

    ndims: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
    ):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = _parameter((num_features,), dtype, 1.0) if affine else None
        self.bias = _parameter((num_features,), dtype) if affine else None
        self.running_mean = State(np.zeros(num_features, as_dtype(dtype).numpy)) if track_running_stats else None
        self.running_var = State(np.ones(num_features, as_dtype(dtype).numpy)) if track_running_stats else None
        self.num_batches_tracked = State(np.int64(0)) if track_running_stats else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            message = f"{type(self).__name__}({self.num_features}) does not fit {x.type}"
            raise error("GC0101", message, loc=user_loc(), hint="x is [batch, channels, *sizes]")
        momentum: float | Tensor = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.assign(self.num_batches_tracked + 1)
            if self.momentum is None:
                momentum = 1.0 / as_tensor(self.num_batches_tracked).astype(x.dtype)
        return batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )


class BatchNorm1d(_BatchNorm):
    """x [B, C] or [B, C, L]."""

    ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """x [B, C, H, W]."""

    ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """x [B, C, D, H, W]."""

    ndims = (5,)


class GroupNorm(Module):
    """Normalises groups of channels of each image (see `graphc.nn.norm.group_norm`)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, dtype: Any = "float32"
    ):
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = _parameter((num_channels,), dtype, 1.0) if affine else None
        self.bias = _parameter((num_channels,), dtype) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _InstanceNorm(Module):
    """Normalises each channel of each image; no weights unless ``affine``, as in torch.

    With ``track_running_stats`` the state running_mean and running_var [num_features] is assigned in training, and used
    after ``eval()``."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        dtype: Any = "float32",
    ):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = _parameter((num_features,), dtype, 1.0) if affine else None
        self.bias = _parameter((num_features,), dtype) if affine else None
        self.running_mean = State(np.zeros(num_features, as_dtype(dtype).numpy)) if track_running_stats else None
        self.running_var = State(np.ones(num_features, as_dtype(dtype).numpy)) if track_running_stats else None

    def forward(self, x: Tensor) -> Tensor:
        own = self.training or self.running_mean is None
        return instance_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, own, self.momentum, self.eps
        )


class InstanceNorm1d(_InstanceNorm):
    """x [B, C, L]."""


class InstanceNorm2d(_InstanceNorm):
    """x [B, C, H, W]."""


class InstanceNorm3d(_InstanceNorm):
    """x [B, C, D, H, W]."""


# Shapes --------------------------------------------------------------------------------------------------------------


class Flatten(Module):
    """Dimensions ``start_dim`` to ``end_dim`` as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.start_dim % max(x.ndim, 1), self.end_dim % max(x.ndim, 1)
        return x.reshape((*x.shape[:first], prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


class Upsample(Module):
    """Resamples to ``size`` or by ``scale_factor`` (see `graphc.nn.norm.interpolate`)."""

    def __init__(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None
    ):
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)
