"""Layers that put elements around an image, by torch's names: constants, or the image's own elements again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from graphc.errors import error
from graphc.nn.conv import pad
from graphc.nn.module import Module
from graphc.scope import user_loc
from graphc.tensor import Tensor

__all__ = [
    "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d", "ConstantPad2d", "ConstantPad3d",
    "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d", "ReplicationPad2d",
    "ReplicationPad3d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
]  # fmt: skip


class _Pad(Module):
    """``padding``: elements on each side, or (before, after) of the last dimension, then of the one before it, and so
    on, as in torch."""

    ndim: ClassVar[int]
    mode: ClassVar[str] = "constant"
    value: float = 0.0

    def __init__(self, padding: int | Sequence[int]):
        self.padding = (padding,) * (2 * self.ndim) if isinstance(padding, int) else tuple(padding)
        if len(self.padding) != 2 * self.ndim:
            message = f"{type(self).__name__} takes one number or {2 * self.ndim}, and not {padding}"
            raise error("GC0217", message, loc=user_loc(), hint="(before, after) of the last dimension come first")

    def forward(self, x: Tensor) -> Tensor:
        widths = [self.padding[i : i + 2] for i in range(2 * self.ndim - 2, -1, -2)]
        return pad(x, [(0, 0)] * (x.ndim - self.ndim) + [(a, b) for a, b in widths], self.value, mode=self.mode)


class _ConstantPad(_Pad):
    """Elements of ``value`` on each side (see `_Pad` for ``padding``)."""

    def __init__(self, padding: int | Sequence[int], value: float):
        super().__init__(padding)
        self.value = value


class ConstantPad1d(_ConstantPad):
    ndim = 1


class ConstantPad2d(_ConstantPad):
    ndim = 2


class ConstantPad3d(_ConstantPad):
    ndim = 3


class ZeroPad1d(_Pad):
    ndim = 1


class ZeroPad2d(_Pad):
    ndim = 2


class ZeroPad3d(_Pad):
    ndim = 3


class ReflectionPad1d(_Pad):
    """The elements next to the first and the last one, mirrored at these."""

    ndim, mode = 1, "reflect"


class ReflectionPad2d(ReflectionPad1d):
    ndim = 2


class ReflectionPad3d(ReflectionPad1d):
    ndim = 3


class ReplicationPad1d(_Pad):
    """The first and the last element again and again."""

    ndim, mode = 1, "edge"


class ReplicationPad2d(ReplicationPad1d):
    ndim = 2


class ReplicationPad3d(ReplicationPad1d):
    ndim = 3


class CircularPad1d(_Pad):
    """The elements of the other end."""

    ndim, mode = 1, "wrap"


class CircularPad2d(CircularPad1d):
    ndim = 2


class CircularPad3d(CircularPad1d):
    ndim = 3
