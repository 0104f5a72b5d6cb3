"""Text generation as two entries: `prefill` reads a prompt, `decode` one token; both choose the token that follows.

Random numbers are a function of the seed and the position, so a text is a function of prompt, settings and seed.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.functional import arange, max, maximum, min, minimum, sum, where
from graphc.functional_along import argmax
from graphc.functional_control import cond
from graphc.nn.cache import Context, KVCache
from graphc.nn.functional import softmax
from graphc.random import gumbel
from graphc.tensor import Tensor, TensorLike, as_tensor, astype
from graphc.tracing import Entry, entry, spec

__all__ = ["NextLogits", "generation_entries", "sample"]

# (ids [B, T], where they stand, index of the one that counts) → logits [B, vocabulary] of the token after that one
NextLogits = Callable[[Tensor, Context, TensorLike], Tensor]

# A threshold is found by cutting its range into WAYS parts ROUNDS times: values nearer than 2**-28 of it are equal.
WAYS, ROUNDS = 16, 7


def generation_entries(logits: NextLogits, cache: KVCache, prompt: int | None = None) -> tuple[Entry, Entry]:
    """``prefill`` and ``decode`` over one ``cache``.

    prefill: ids [B, prompt] int32 (``prompt`` is the cache's length unless given), padded on the right, of which
    ``length`` (int32 scalar, at least 1) count. decode: ``token`` [B] int32, what follows. Both also take the scalars
    of `sample`: temperature, top_k, top_p and seed; both return token [B] int32 and logits [B, vocabulary].
    """
    settings = {
        "temperature": spec((), "float32"),
        "top_k": spec((), "int32"),
        "top_p": spec((), "float32"),
        "seed": spec((), "uint32"),
    }
    width = prompt or cache.length

    @entry(ids=spec((cache.batch, width), "int32"), length=spec((), "int32"), **settings)
    def prefill(
        ids: Tensor, length: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor
    ) -> dict[str, Tensor]:
        length = maximum(length, 1)
        last = logits(ids, cache.start(width, length), length - 1)
        return {"token": sample(last, temperature, top_k, top_p, seed, length), "logits": last}

    @entry(token=spec((cache.batch,), "int32"), **settings)
    def decode(token: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor) -> dict[str, Tensor]:
        last = logits(token.reshape(cache.batch, 1), cache.step(), 0)
        return {"token": sample(last, temperature, top_k, top_p, seed, cache.position), "logits": last}

    return prefill, decode


def sample(
    logits: Tensor,
    temperature: TensorLike,
    top_k: TensorLike,
    top_p: TensorLike,
    seed: TensorLike,
    position: TensorLike,
) -> Tensor:
    """Tokens [B] int32 drawn from softmax(logits / temperature), logits [B, V]; with temperature 0 the most likely one.

    ``top_k``: only the k most likely take part (0: all). ``top_p``: of those, only the smallest set of most likely ones
    whose probability is at least top_p (1: all). Equal logits take part together. Random words are Threefry of the key
    (``seed``, ``position``), both uint32. Source: Fan et al., arXiv 1805.04833 (top-k); Holtzman et al., "The Curious
    Case of Neural Text Degeneration", arXiv 1904.09751 (top-p); the draw is by Gumbel's trick.
    """
    temperature, top_k, top_p = map(as_tensor, (temperature, top_k, top_p))

    def draw() -> Tensor:
        scaled = logits / temperature
        scaled = cond(top_k > 0, lambda x: _most_likely(x, top_k), lambda x: x, scaled)
        scaled = cond(top_p < 1, lambda x: _nucleus(x, top_p), lambda x: x, scaled)
        key = (astype(as_tensor(seed), "uint32"), astype(as_tensor(position), "uint32"))
        return argmax(scaled + gumbel(logits.shape, key=key), -1)

    drawn: Tensor = cond(temperature > 0, draw, lambda: argmax(logits, -1))
    return drawn


def _most_likely(x: Tensor, k: Tensor) -> Tensor:
    """``x`` [B, V] where it is among the ``k`` largest of its row, else -inf."""
    lowest = min(where(x > -float("inf"), x, float("inf")), -1)
    low = _largest(lowest, max(x, -1), lambda at: sum(astype(_reach(x, at), "int32"), -1) >= k)
    return where(x >= low[:, None], x, -float("inf"))


def _nucleus(x: Tensor, share: Tensor) -> Tensor:
    """``x`` [B, V] where its softmax is in the smallest set of largest elements that sums to ``share`` or more, else
    -inf."""
    p = softmax(x)
    top = max(p, -1)
    low = _largest(top * 0, top, lambda at: sum(where(_reach(p, at), p[:, None], 0), -1) >= share)
    return where(p >= low[:, None], x, -float("inf"))


def _reach(x: Tensor, at: Tensor) -> Tensor:
    """x [B, V] >= at [B, W], each with each: bool [B, W, V]."""
    return x[:, None] >= at[..., None]


def _largest(low: Tensor, high: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The largest number from ``low`` to ``high`` [B] for which a condition holds that holds for ``low`` and for all
    that is below a number for which it holds. ``holds`` maps [B, W] to bool [B, W]."""
    for _ in range(ROUNDS):
        at = low[:, None] + (high - low)[:, None] * arange(1 / WAYS, 1 + 1 / WAYS, 1 / WAYS)
        yes = holds(at)
        low = maximum(low, max(where(yes, at, -float("inf")), -1))
        high = minimum(high, min(where(yes, float("inf"), at), -1))
    return low
