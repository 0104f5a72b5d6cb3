"""Losses with torch's formulas and reductions. Classes are the last dimension.

``reduction`` is "mean", "sum" or "none" everywhere; another raises GC0217. Losses of 16-bit floats are float32.
"""

from __future__ import annotations

from graphc.errors import error
from graphc.functional import exp, expand_dims, iota, log, maximum, sqrt, take, where, zeros
from graphc.functional import sum as total
from graphc.half import in_float32, rounded_once
from graphc.nn.activation import log_softmax, logsumexp, softplus
from graphc.scope import user_loc
from graphc.tensor import Tensor, TensorLike, as_tensor, astype

__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "contrastive_loss", "cosine_embedding_loss",
    "cosine_similarity", "cross_entropy", "huber_loss", "kl_div", "l1_loss", "mse_loss", "nll_loss", "smooth_l1_loss",
]  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    _check_reduction(reduction)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _check_reduction(reduction: str, known: tuple[str, ...] = REDUCTIONS) -> None:
    if reduction not in known:
        raise error("GC0217", f"no reduction {reduction!r}", loc=user_loc(), hint=f"one of {', '.join(known)}")


# Classes -------------------------------------------------------------------------------------------------------------


@in_float32
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: TensorLike | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood of ``target`` under softmax(logits).

    logits [..., C] float; target [...] int (class numbers; ``ignore_index`` counts for nothing) or [..., C] float
    (probabilities). ``weight`` [C] scales each class. ``label_smoothing`` mixes so much of the uniform distribution
    into the target (Szegedy et al., arXiv 1512.00567). The mean of class numbers is over the weights of those that
    count, the mean of probabilities over all positions. Raises GC0101, GC0217, and GC0420 when it runs with a class
    number out of range.
    """
    _check_reduction(reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        message = f"label_smoothing is from 0 to 1, not {label_smoothing}"
        raise error("GC0217", message, loc=user_loc())
    if target.dtype.is_float:
        return _soft_cross_entropy(logits, target, weight, reduction, label_smoothing)
    if target.shape != logits.shape[:-1]:
        raise _bad_target("cross_entropy", logits, target)
    chosen = iota(logits.shape, -1, dtype=target.dtype) == expand_dims(target, -1)
    lse = logsumexp(logits, -1)
    nll = lse - total(where(chosen, logits, 0), -1)
    losses, weights = _of_labels(nll, target, weight, ignore_index, logits.shape[-1])
    if label_smoothing:
        if weight is None:
            uniform = lse - logits.mean(-1)
        else:
            w = as_tensor(weight, logits.dtype)
            uniform = total(w * (expand_dims(lse, -1) - logits), -1) / logits.shape[-1]
        losses = losses * (1 - label_smoothing) + where(target != ignore_index, uniform, 0) * label_smoothing
    return total(losses) / total(weights) if reduction == "mean" else _reduced(losses, reduction)


def _of_labels(
    losses: Tensor, target: Tensor, weight: TensorLike | None, ignore_index: int, classes: int
) -> tuple[Tensor, Tensor]:
    """``losses`` times the weights of the labels, 0 where they do not count, and these weights.

    Looking the labels up checks them: one out of range is an error of the step. Without weights they are looked up in
    zeros, which are added, so that no gradient depends on it."""
    counts = target != ignore_index
    safe = where(counts, target, 0)
    if weight is None:
        checked = take(zeros((classes,), dtype=losses.dtype), safe)
        return where(counts, losses, 0) + checked, astype(counts, losses.dtype)
    weights = where(counts, take(as_tensor(weight, losses.dtype), safe), 0)
    return where(counts, losses * weights, 0), weights


def _soft_cross_entropy(
    logits: Tensor, target: Tensor, weight: TensorLike | None, reduction: str, smoothing: float
) -> Tensor:
    if target.shape != logits.shape:
        raise _bad_target("cross_entropy", logits, target)
    if smoothing:
        target = target * (1 - smoothing) + smoothing / logits.shape[-1]
    if weight is not None:
        target = target * as_tensor(weight, logits.dtype)
    losses = -total(target * log_softmax(logits), -1)
    return _reduced(losses, reduction)


@in_float32
def nll_loss(
    log_probs: Tensor,
    target: Tensor,
    *,
    weight: TensorLike | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Minus the log-probability of each label: `cross_entropy` after `log_softmax`. log_probs [..., C], target [...].

    Raises GC0101, and GC0420 when it runs with a class number out of range."""
    _check_reduction(reduction)
    if target.shape != log_probs.shape[:-1] or target.dtype.is_float:
        raise _bad_target("nll_loss", log_probs, target)
    chosen = iota(log_probs.shape, -1, dtype=target.dtype) == expand_dims(target, -1)
    nll = -total(where(chosen, log_probs, 0), -1)
    losses, weights = _of_labels(nll, target, weight, ignore_index, log_probs.shape[-1])
    return total(losses) / total(weights) if reduction == "mean" else _reduced(losses, reduction)


def _bad_target(what: str, logits: Tensor, target: Tensor) -> Exception:
    return error(
        "GC0101",
        f"{what} of logits {logits.type} and target {target.type}",
        loc=user_loc(),
        hint="logits [..., classes] and target [...] of ints, or [..., classes] of probabilities: classes come last",
    )


@in_float32
def binary_cross_entropy_with_logits(
    logits: Tensor,
    target: TensorLike,
    *,
    weight: TensorLike | None = None,
    pos_weight: TensorLike | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-(y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))), without overflow; ``pos_weight`` scales the first term."""
    y = as_tensor(target, logits.dtype)
    positive = 1.0 if pos_weight is None else 1.0 + (as_tensor(pos_weight, logits.dtype) - 1.0) * y
    losses = (1.0 - y) * logits + positive * softplus(-logits)
    return _reduced(losses if weight is None else losses * weight, reduction)


@in_float32
def binary_cross_entropy(
    probs: Tensor, target: TensorLike, *, weight: TensorLike | None = None, reduction: str = "mean"
) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)), with logarithms of -100 at least, as torch has it."""
    y = as_tensor(target, probs.dtype)
    losses = -(y * maximum(log(probs), -100.0) + (1.0 - y) * maximum(log(1.0 - probs), -100.0))
    return _reduced(losses if weight is None else losses * weight, reduction)


@in_float32
def kl_div(log_probs: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target (log target - log_probs), 0 where the target is 0; ``log_target``: the target is given as logarithms.

    ``reduction`` "batchmean" divides the sum by the first dimension, which is the divergence's definition."""
    _check_reduction(reduction, ("batchmean", *REDUCTIONS))
    if log_target:
        losses = exp(target) * (target - log_probs)
    else:
        some = target > 0
        losses = where(some, target * log(where(some, target, 1)), 0) - target * log_probs
    if reduction == "batchmean":
        return losses.sum() / losses.shape[0]
    return _reduced(losses, reduction)


# Distances -----------------------------------------------------------------------------------------------------------


@in_float32
def mse_loss(x: Tensor, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """The squared difference."""
    difference = x - target
    return _reduced(difference * difference, reduction)


@in_float32
def l1_loss(x: Tensor, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """The size of the difference."""
    return _reduced(abs(x - target), reduction)


@in_float32
def huber_loss(x: Tensor, target: TensorLike, *, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """d²/2 where |d| < delta, else delta (|d| - delta/2). Source: Huber, Annals of Mathematical Statistics 35, 1964."""
    difference = x - target
    size = abs(difference)
    return _reduced(where(size < delta, 0.5 * difference * difference, delta * (size - 0.5 * delta)), reduction)


@in_float32
def smooth_l1_loss(x: Tensor, target: TensorLike, *, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """`huber_loss` divided by its ``delta``, here called ``beta``; `l1_loss` for 0."""
    if beta == 0:
        return l1_loss(x, target, reduction=reduction)
    return huber_loss(x, target, delta=beta, reduction=reduction) / beta


@rounded_once
def cosine_similarity(x1: Tensor, x2: Tensor, axis: int = -1, *, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors along ``axis``; each norm counts as ``eps`` at least."""
    norms = [sqrt(maximum(total(x * x, axis), eps * eps)) for x in (x1, x2)]
    return total(x1 * x2, axis) / (norms[0] * norms[1])


@in_float32
def cosine_embedding_loss(
    x1: Tensor, x2: Tensor, target: TensorLike, *, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """1 - cosine where the target is 1, max(0, cosine - margin) where it is -1, along the last dimension."""
    norms = [total(x * x, -1) + 1e-12 for x in (x1, x2)]
    cosine = total(x1 * x2, -1) / sqrt(norms[0] * norms[1])
    apart = where(cosine > margin, cosine - margin, 0)
    losses = where(as_tensor(target) == 1, 1.0 - cosine, where(as_tensor(target) == -1, apart, 0))
    return _reduced(losses, reduction)


@in_float32
def contrastive_loss(logits: Tensor) -> Tensor:
    """The mean of the cross-entropies of rows and of columns of ``logits`` [N, N], whose pairs are on the diagonal.

    Source: Radford et al. (CLIP), arXiv 2103.00020. Raises GC0101."""
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        message = f"contrastive_loss takes the similarities of N with N, and got {logits.type}"
        raise error("GC0101", message, loc=user_loc(), hint="scale * images @ texts.T of equally many images and texts")
    matched = total(where(iota(logits.shape, 0) == iota(logits.shape, 1), logits, 0), 0)
    return 0.5 * (logsumexp(logits, 0) - matched).mean() + 0.5 * (logsumexp(logits, 1) - matched).mean()
