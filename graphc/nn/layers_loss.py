"""Losses as modules, by torch's names; the formulas are in `graphc.nn.loss`, the options are theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from graphc.nn import loss as F
from graphc.nn.module import Module
from graphc.tensor import Tensor

__all__ = [
    "BCELoss", "BCEWithLogitsLoss", "ContrastiveLoss", "CosineEmbeddingLoss", "CosineSimilarity", "CrossEntropyLoss",
    "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "NLLLoss", "SmoothL1Loss",
]  # fmt: skip


class _Loss(Module):
    """Calls ``function`` with the options that the module was made with."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any):
        self.options = options

    def forward(self, *tensors: Any) -> Tensor:
        return type(self).function(*tensors, **self.options)


class CrossEntropyLoss(_Loss):
    """(logits [..., C], target); options ``weight``, ``ignore_index``, ``label_smoothing``, ``reduction``."""

    function = staticmethod(F.cross_entropy)


class NLLLoss(_Loss):
    """(log_probs [..., C], target [...]); options ``weight``, ``ignore_index``, ``reduction``."""

    function = staticmethod(F.nll_loss)


class BCELoss(_Loss):
    """(probs, target); options ``weight``, ``reduction``."""

    function = staticmethod(F.binary_cross_entropy)


class BCEWithLogitsLoss(_Loss):
    """(logits, target); options ``weight``, ``pos_weight``, ``reduction``."""

    function = staticmethod(F.binary_cross_entropy_with_logits)


class KLDivLoss(_Loss):
    """(log_probs, target); options ``log_target``, ``reduction`` (also "batchmean")."""

    function = staticmethod(F.kl_div)


class MSELoss(_Loss):
    """(x, target); option ``reduction``."""

    function = staticmethod(F.mse_loss)


class L1Loss(_Loss):
    """(x, target); option ``reduction``."""

    function = staticmethod(F.l1_loss)


class HuberLoss(_Loss):
    """(x, target); options ``delta``, ``reduction``."""

    function = staticmethod(F.huber_loss)


class SmoothL1Loss(_Loss):
    """(x, target); options ``beta``, ``reduction``."""

    function = staticmethod(F.smooth_l1_loss)


class CosineEmbeddingLoss(_Loss):
    """(x1, x2, target of 1 and -1); options ``margin``, ``reduction``."""

    function = staticmethod(F.cosine_embedding_loss)


class ContrastiveLoss(_Loss):
    """(logits [N, N])."""

    function = staticmethod(F.contrastive_loss)


class CosineSimilarity(Module):
    def __init__(self, dim: int = 1, eps: float = 1e-8):
        self.dim, self.eps = dim, eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, eps=self.eps)
