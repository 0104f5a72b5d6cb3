"""Keys and values of the positions that a decoder has seen, as state: `prefill` writes them, `decode` adds to them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from graphc.dtype import DType
from graphc.dtype import dtype as as_dtype
from graphc.functional import arange, concat, iota, take, where, zeros
from graphc.nn.attention import scaled_dot_product_attention
from graphc.tensor import Tensor, astype
from graphc.variable import State

__all__ = ["Context", "KVCache"]


class Context(Protocol):
    """Where in a text a decoder's input stands: ``positions`` [T] int32. ``attend`` is causal attention of
    q [B, H, T, D] over what came before and k, v [B, H_kv, T, D], which it stores as those of layer ``layer``."""

    positions: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class KVCache:
    """Keys and values [batch, heads, length, depth] of ``layers`` layers, and the number of positions that they hold.

    ``dtype`` is how they are stored: "bfloat16" halves what a step reads.
    In a program the state is ``NAME.position``, and ``NAME.0.key``, ``NAME.0.value`` and so on for each layer.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        length: int,
        depth: int,
        *,
        batch: int = 1,
        name: str = "cache",
        dtype: Any = "float32",
    ) -> None:
        self.batch, self.length = batch, length
        self.dtype = as_dtype(dtype)
        empty = np.zeros((batch, heads, length, depth), self.dtype.numpy)
        self.position = State(np.int32(0), f"{name}.position")
        self.keys = [State(empty, f"{name}.{i}.key") for i in range(layers)]
        self.values = [State(empty, f"{name}.{i}.value") for i in range(layers)]

    def start(self, count: int, used: Tensor) -> Context:
        """A text from its beginning, padded on the right to ``count`` tokens of which ``used`` (int32 scalar) count."""
        return _Start(self, count, used)

    def step(self) -> Context:
        """One more token. A step beyond ``length`` is an error when it runs (GC0420)."""
        return _Step(self)


class _Start:
    def __init__(self, cache: KVCache, count: int, used: Tensor) -> None:
        self.cache, self.positions = cache, arange(count)
        cache.position.assign(used)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.keys[layer].assign(self._padded(k, self.cache.dtype))
        self.cache.values[layer].assign(self._padded(v, self.cache.dtype))
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def _padded(self, x: Tensor, dtype: DType) -> Tensor:
        x = astype(x, dtype)
        batch, heads, count, depth = x.shape
        rest = (batch, heads, self.cache.length - count, depth)
        return concat([x, zeros(rest, dtype=x.dtype)], axis=2) if rest[2] else x


class _Step:
    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        # looked up in a table of all positions, so that one beyond the last is an error of the step
        self.positions = take(arange(cache.length), cache.position.reshape(1))
        cache.position.assign(cache.position + 1)
        self.index = iota((cache.length,), 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys = self._stored(self.cache.keys[layer], k)
        values = self._stored(self.cache.values[layer], v)
        return scaled_dot_product_attention(q, keys, values, self.index <= self.positions, enable_gqa=True)

    def _stored(self, old: State, new: Tensor) -> Tensor:
        """All of the cache with ``new`` at the current position, computed over the old in place."""
        old.assign(where((self.index == self.positions)[:, None], astype(new, old.dtype), old))
        return old
