"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphc.functional import clip, minimum, sqrt
from graphc.functional import sum as total
from graphc.optim.base import listed
from graphc.tensor import Tensor, astype

__all__ = ["clip_by_global_norm", "clip_by_value", "global_norm"]


def _each(fn: Callable[[Tensor], Tensor], grads: Any) -> Any:
    """``fn`` of each gradient, in the same form; the results count as gradients of the same parameters."""
    new = []
    for g in listed(grads):
        new.append(fn(g))
        new[-1].gradient_of = g.gradient_of
    return dict(zip(grads, new, strict=True)) if isinstance(grads, Mapping) else new


def global_norm(grads: Any) -> Tensor:
    """sqrt of the sum of all squares."""
    wide = [astype(g, g.dtype.computed) for g in listed(grads)]  # the sum of squares of float16 would overflow
    squares = [total(g * g) for g in wide]
    norm = squares[0]
    for s in squares[1:]:
        norm = norm + s
    return sqrt(norm)


def clip_by_global_norm(grads: Any, max_norm: float) -> Any:
    """``grads`` (a list or dict) times min(1, max_norm / (norm + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``.

    Source: Pascanu et al., arXiv 1211.5063.
    """
    scale = minimum(max_norm / (global_norm(grads) + 1e-6), 1.0)
    return _each(lambda g: g * scale, grads)


def clip_by_value(grads: Any, max_value: float) -> Any:
    """``grads`` (a list or dict), each element clipped to [-max_value, max_value]."""
    return _each(lambda g: clip(g, -max_value, max_value), grads)
