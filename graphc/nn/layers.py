"""Layers by torch's names, parameter layouts and initial values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from typing import Any

import numpy as np

from graphc.dtype import dtype as as_dtype
from graphc.errors import error
from graphc.functional import logical_not, split, where
from graphc.nn import functional as F
from graphc.nn import init
from graphc.nn.attention import attend, scaled_dot_product_attention
from graphc.nn.module import Module
from graphc.scope import user_loc
from graphc.tensor import Tensor
from graphc.variable import Parameter

__all__ = [
    "Dropout", "Embedding", "Identity", "LayerNorm", "Linear", "ModuleList", "MultiheadAttention", "RMSNorm",
    "Sequential",
]  # fmt: skip


def _empty(*shape: int, dtype: Any) -> Parameter:
    return Parameter(np.zeros(shape, as_dtype(dtype).numpy))


class Linear(Module):
    """``x @ weight.T + bias``: weight [out_features, in_features], bias [out_features]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "float32"):
        self.in_features, self.out_features = in_features, out_features
        self.weight = init.kaiming_uniform_(_empty(out_features, in_features, dtype=dtype), a=sqrt(5))
        bound = 1 / sqrt(max(in_features, 1))
        self.bias = init.uniform_(_empty(out_features, dtype=dtype), -bound, bound) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of weight [num_embeddings, embedding_dim] by integer indices; row ``padding_idx`` starts as zeros, and no
    gradient reaches it."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *, dtype: Any = "float32"
    ):
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise error("GC0217", f"padding_idx {padding_idx} is none of {num_embeddings} rows", loc=user_loc())
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.weight = init.normal_(_empty(num_embeddings, embedding_dim, dtype=dtype))
        if padding_idx is not None:
            self.weight.initial[padding_idx] = 0

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.weight, self.padding_idx)


class LayerNorm(Module):
    """Normalises the last dimensions to mean 0 and variance 1, then scales and shifts (see F.layer_norm)."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight = init.ones_(_empty(*shape, dtype=dtype)) if elementwise_affine else None
        self.bias = _empty(*shape, dtype=dtype) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """Divides by the root of the mean square over the last dimensions, then scales (see F.rms_norm)."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: Any = "float32",
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight = init.ones_(_empty(*shape, dtype=dtype)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class Dropout(Module):
    """Zeroes elements with probability ``p`` while ``training`` (see F.dropout)."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=self.training)


class MultiheadAttention(Module):
    """Attention over projections, as torch's: in_proj_weight [3E, E], in_proj_bias [3E], out_proj.

    ``forward(query, key, value)`` takes [T, B, E], or [B, T, E] with ``batch_first``, and returns (output, weights);
    weights [B, T, S] are the mean over heads when ``need_weights``, else None. As in torch, a bool ``attn_mask``
    [T, S] or ``key_padding_mask`` [B, S] is True where attention is *not* allowed; a float one is added.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        batch_first: bool = False,
        dtype: Any = "float32",
    ):
        if embed_dim % num_heads:
            raise error("GC0217", f"{num_heads} heads do not divide {embed_dim} dimensions", loc=user_loc())
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.in_proj_weight = init.xavier_uniform_(_empty(3 * embed_dim, embed_dim, dtype=dtype))
        self.in_proj_bias = _empty(3 * embed_dim, dtype=dtype) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self._project(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask)
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            out, weights = attend(q, k, v, mask, p, is_causal, 1 / sqrt(q.shape[-1]))
            weights = weights.mean(1)
        else:
            out = scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=is_causal)
        batch, _, length, _ = out.shape
        out = self.out_proj(out.swapaxes(1, 2).reshape(batch, length, self.embed_dim))
        return (out if self.batch_first else out.swapaxes(0, 1)), weights

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        """q, k, v as [B, H, T, E / H]."""
        w, b = self.in_proj_weight, self.in_proj_bias
        if all(x is inputs[0] for x in inputs):
            parts = split(F.linear(inputs[0], w, b), 3)
        else:
            biases = (None,) * 3 if b is None else split(b, 3)
            parts = tuple(map(F.linear, inputs, split(w, 3, axis=0), biases))
        return [self._heads(x if self.batch_first else x.swapaxes(0, 1)) for x in parts]

    def _heads(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.num_heads, -1).swapaxes(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Both masks as one to add to the scores, or one bool that is True where attention is allowed."""
        padding = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
        masks = [m for m in (attn_mask, padding) if m is not None]
        if masks and all(m.dtype.kind == "b" for m in masks):
            return logical_not(masks[0] if len(masks) == 1 else masks[0] | masks[1])
        added = [m if m.dtype.is_float else where(m, -float("inf"), 0.0) for m in masks]
        return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


# Containers ----------------------------------------------------------------------------------------------------------


class ModuleList(Module):
    """A list of modules, named 0, 1, 2 …"""

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> ModuleList:
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (m for _, m in self.named_children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules applied one after the other."""

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


# Activations ---------------------------------------------------------------------------------------------------------


class Identity(Module):
    def forward(self, x: Tensor) -> Tensor:
        return x
