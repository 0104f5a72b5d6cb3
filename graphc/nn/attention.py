"""Attention: one region (`graphc.ops.attention`), so that no [T, S] matrix need be stored; plain nodes with a mask."""

from __future__ import annotations

from math import prod, sqrt

from graphc.errors import error
from graphc.functional import iota, where
from graphc.nn.functional import dropout, softmax
from graphc.ops.attention import attention
from graphc.random import next_key
from graphc.scope import emit, user_loc
from graphc.tensor import Tensor, TensorLike, as_tensor, matmul

__all__ = ["attend", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: TensorLike | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(query · keyᵀ · scale) · value, per head.

    query [..., T, D], key [..., S, D], value [..., S, D], of one float dtype, with the same leading dimensions
    (usually [B, H]). ``is_causal``: position i sees positions j <= i. ``scale`` is 1/sqrt(D) unless given.
    ``attn_mask`` [..., T, S]: bool (True takes part) or float (added to the scores). Dropout with probability
    ``dropout_p`` (below 1) acts on the weights. Source: Vaswani et al., arXiv 1706.03762. Raises GC0101 and GC0217.
    """
    lead = query.shape[:-2]
    fits = query.ndim >= 2 and key.ndim >= 2 and value.shape[:-1] == key.shape[:-1] and key.shape[:-2] == lead
    if not fits or query.shape[-1] != key.shape[-1]:
        raise error(
            "GC0101",
            f"attention of query {query.type}, key {key.type} and value {value.type}",
            loc=user_loc(),
            hint="query [..., T, D], key [..., S, D], value [..., S, D] with the same leading dimensions",
        )
    if not 0 <= dropout_p < 1:
        raise error("GC0217", f"the dropout of attention is from 0 to below 1, not {dropout_p}", loc=user_loc())
    scale = 1.0 / sqrt(query.shape[-1]) if scale is None else float(scale)
    if attn_mask is not None or value.shape[-1] != query.shape[-1]:
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale)[0]
    heads = (prod(lead[:-1]), lead[-1] if lead else 1)
    operands = [x.reshape(*heads, *x.shape[-2:])._resolve() for x in (query, key, value)]
    if dropout_p:
        operands += [k._resolve() for k in next_key()]
    types = [v.type for v in operands]
    node = emit("call", *operands, **attention(types, is_causal=is_causal, scale=scale, dropout_p=dropout_p))
    return Tensor.of(node.out(0)).reshape(query.shape)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: TensorLike | None, p: float, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(output, weights [..., T, S]): attention with the weights in memory."""
    scores = matmul(query, key.mT) * scale
    if is_causal:
        scores = where(iota(scores.shape, -2) >= iota(scores.shape, -1), scores, -float("inf"))
    if mask is not None:
        mask = as_tensor(mask)
        scores = where(mask, scores, -float("inf")) if mask.dtype.kind == "b" else scores + mask
    weights = dropout(softmax(scores), p)
    return matmul(weights, value), weights
