"""Measures of how well a model does that are not losses: no gradient goes through them."""

from __future__ import annotations

from graphc.dtype import float32
from graphc.errors import error
from graphc.functional import equal, expand_dims, iota, mean, where
from graphc.functional import max as largest
from graphc.scope import user_loc
from graphc.tensor import Tensor, astype

__all__ = ["accuracy"]


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """The share of rows of ``logits`` [..., C] whose largest element is at ``target`` [...] (int): float32 scalar.

    A tie with another class counts as right, so logits that are all equal are always right. Raises GC0101.
    """
    if target.shape != logits.shape[:-1]:
        message = f"accuracy of logits {logits.type} and target {target.type}"
        raise error("GC0101", message, loc=user_loc(), hint="logits [..., classes] and target [...]: classes come last")
    chosen = iota(logits.shape, -1, dtype=target.dtype) == expand_dims(target, -1)
    best = largest(logits, -1)
    return mean(astype(equal(largest(where(chosen, logits, -float("inf")), -1), best), float32))
