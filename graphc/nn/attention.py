"""Attention: one region (`graphc.ops.attention`), so that no [T, S] matrix need be stored; plain nodes where a mask is
added to the scores, and for a single query."""

from __future__ import annotations

from math import prod, sqrt

from graphc.dtype import Shape, finfo
from graphc.errors import error
from graphc.functional import exp, expand_dims, iota, maximum, where
from graphc.half import rounded_once
from graphc.nn.functional import dropout, softmax
from graphc.ops.attention import attention
from graphc.random import next_key
from graphc.scope import emit, user_loc
from graphc.tensor import Tensor, TensorLike, as_tensor, astype, broadcast_to, matmul
from graphc.tracing import stop_gradient

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
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query · keyᵀ · scale) · value, per head.

    query [..., T, D], key [..., S, D], value [..., S, D], with the same leading dimensions (usually [B, H]). 16-bit
    floats are computed in float32; the result has the type of the query. ``is_causal``: position i sees positions
    j <= i. ``scale`` is 1/sqrt(D) unless given.
    ``attn_mask``, of a shape that broadcasts to [..., T, S]: bool (True takes part; a query that sees no key gives 0)
    or float (added to the scores). Dropout with probability ``dropout_p`` (below 1) acts on the weights.
    With ``enable_gqa`` key and value may have fewer heads [..., H_kv, S, D]: query head h uses head h · H_kv // H.
    Source: Vaswani et al., arXiv 1706.03762; Ainslie et al., "GQA", arXiv 2305.13245. Raises GC0101 and GC0217.
    """
    groups = _groups(query, key, enable_gqa)
    fits = query.ndim >= 2 and value.shape[:-1] == key.shape[:-1] and groups > 0
    if not fits or query.shape[-1] != key.shape[-1]:
        hint = "query [..., T, D], key [..., S, D], value [..., S, D] with the same leading dimensions"
        if enable_gqa:
            hint += "; with enable_gqa a number of heads that divides that of query"
        elif _groups(query, key, True):
            hint = "the key has fewer heads: enable_gqa=True shares them"
        message = f"attention of query {query.type}, key {key.type} and value {value.type}"
        raise error("GC0101", message, loc=user_loc(), hint=hint)
    if not 0 <= dropout_p < 1:
        raise error("GC0217", f"the dropout of attention is from 0 to below 1, not {dropout_p}", loc=user_loc())
    scale = 1.0 / sqrt(query.shape[-1]) if scale is None else float(scale)
    mask = None if attn_mask is None else _mask_of(attn_mask, (*query.shape[:-1], key.shape[-2]))
    if value.shape[-1] != query.shape[-1] or not _in_region(query, mask):
        out, _ = attend(query, key, value, mask, dropout_p, is_causal, scale)
        return astype(out, query.dtype)
    if groups > 1:
        key, value = repeat_heads(key, groups), repeat_heads(value, groups)
    lead = query.shape[:-2] or (1,)
    heads = (prod(lead[:-1]), lead[-1])
    operands = [x.reshape(*heads, *x.shape[-2:])._resolve() for x in (query, key, value)]
    if mask is not None:
        operands.append(_by_heads(mask, lead, key.shape[-2])._resolve())
    if dropout_p:
        operands += [k._resolve() for k in next_key()]
    types = [v.type for v in operands]
    node = emit("call", *operands, **attention(types, is_causal=is_causal, scale=scale, dropout_p=dropout_p))
    return Tensor.of(node.out(0)).reshape(query.shape)


def _mask_of(mask: TensorLike, scores: Shape) -> Tensor:
    """``mask`` as a tensor that broadcasts to ``scores`` [..., T, S]."""
    mask = as_tensor(mask)
    if len(mask.shape) > len(scores) or any(
        m not in (1, n) for m, n in zip(mask.shape[::-1], scores[::-1], strict=False)
    ):
        message = f"a mask {mask.type} of attention whose scores are {list(scores)}"
        hint = "its dimensions must be equal to those of the scores or 1, counted from the last"
        raise error("GC0101", message, loc=user_loc(), hint=hint + "; mask[:, None, None, :] is one of keys per row")
    return mask


def _in_region(query: Tensor, mask: Tensor | None) -> bool:
    """Whether the region has such a mask. A single query, of a decoder, reads keys once for all heads that share them,
    which is what its time goes into; and a mask that is added may have a gradient."""
    return mask is None or (mask.dtype.kind == "b" and query.shape[-2] > 1)


def _by_heads(mask: Tensor, lead: Shape, keys: int) -> Tensor:
    """A mask that broadcasts to [*lead, T, keys] as [B, H, T, keys], whose first three dimensions may be 1."""
    *outer, heads, queries, _ = (1,) * (len(lead) + 2 - mask.ndim) + mask.shape
    if prod(outer) != 1:
        outer = list(lead[:-1])
    return broadcast_to(mask, (*outer, heads, queries, keys)).reshape(prod(outer), heads, queries, keys)


def _groups(query: Tensor, key: Tensor, shared: bool) -> int:
    """How many query heads use one key head; 0 where the leading dimensions do not fit."""
    ours, theirs = query.shape[:-2], key.shape[:-2]
    if ours == theirs and key.ndim >= 2:
        return 1
    if not shared or len(ours) != len(theirs) or not ours or ours[:-1] != theirs[:-1] or not theirs[-1]:
        return 0
    return 0 if ours[-1] % theirs[-1] else ours[-1] // theirs[-1]


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """[..., H, S, D] → [..., H · times, S, D], each head ``times`` times in a row."""
    *lead, heads, length, depth = x.shape
    wide = broadcast_to(expand_dims(x, -3), (*lead, heads, times, length, depth))
    return wide.reshape(*lead, heads * times, length, depth)


@rounded_once
def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: TensorLike | None, p: float, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """(output, weights [..., T, S]): attention with the weights in memory.

    Queries that share a key head are rows of one product, so that no key or value is repeated.
    """
    *lead, length, depth = query.shape
    *shared, keys, _ = key.shape
    rows = prod(lead) * length // (prod(shared) or 1)
    scores = matmul(query.reshape(*shared, rows, depth), key.mT).reshape(*lead, length, keys) * scale
    if is_causal:
        scores = where(iota(scores.shape, -2) >= iota(scores.shape, -1), scores, -float("inf"))
    if mask is not None:
        mask = as_tensor(mask)
        scores = where(mask, scores, -float("inf")) if mask.dtype.kind == "b" else scores + mask
    weights = dropout(softmax(scores) if mask is None else _masked_softmax(scores), p)
    output = matmul(weights.reshape(*shared, rows, keys), value)
    return output.reshape(*lead, length, value.shape[-1]), weights


def _masked_softmax(scores: Tensor) -> Tensor:
    """softmax along the last dimension; 0 in a row that is minus infinity throughout, as in PyTorch."""
    top = stop_gradient(scores.max(-1, keepdims=True))
    e = exp(scores - maximum(top, finfo(scores.dtype).min))
    total = e.sum(-1, keepdims=True)
    return e / where(total == 0, 1, total)
