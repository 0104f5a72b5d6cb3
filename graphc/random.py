"""Randomness: one seed for initial values (a NumPy generator) and one counter-based stream inside programs.

In a program the key (``rng.key``) and a step counter (``rng.step``) are state, and each call site has a number, so a
mask is a pure function of (key, step, site, position): it is computed again where it is needed and never stored, and a
resumed run continues the stream. Functions that draw take a ``key`` to draw from another stream: equal keys and shapes
give equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np

from graphc.dtype import float32, int32, uint32
from graphc.errors import error
from graphc.functional import abs as size
from graphc.functional import cos, log, sqrt
from graphc.functional_along import argmax, argsort
from graphc.scope import entering, user_loc
from graphc.tensor import Tensor, TensorLike, apply, as_dtype, as_tensor, astype, broadcast_to, scope
from graphc.variable import State

__all__ = [
    "bernoulli", "bits", "categorical", "exponential", "fold_in", "generator", "gumbel", "key", "next_key", "normal",
    "permutation", "randint", "seed", "uniform",
]  # fmt: skip

Key = tuple[Tensor, Tensor]
Shape = int | Sequence[int]

GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads the site numbers over the word

_KEY = State(np.zeros(2, np.uint32), "rng.key")
_STEP = State(np.zeros((), np.uint32), "rng.step")
_seed = 0
_generator: np.random.Generator | None = None  # made at first use: importing numpy.random takes a tenth of our time


def seed(n: int) -> None:
    """Seed the initial values of parameters made from now on and the random stream of programs compiled from now on."""
    global _generator, _seed
    _generator, _seed = None, n
    _KEY.initial = np.array(_mixed(n), np.uint32)


def _mixed(n: int) -> tuple[int, int]:
    """Two words from ``n`` by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (n + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


seed(0)


def generator() -> np.random.Generator:
    """The generator of initial values."""
    global _generator
    _generator = _generator or np.random.default_rng(_seed)
    return _generator


def next_key() -> tuple[Tensor, Tensor]:
    """The key (k0, k1), scalars uint32, of a new call site. Marks the entry as one that advances ``rng.step``. In the
    body of a loop, each iteration has a key of its own."""
    root = scope().root
    if "rng" not in root.memo:
        with entering(root):
            root.memo["rng"] = (_KEY[0], _KEY[1] + _STEP)
            _STEP.assign(_STEP + 1)
    k0, k1 = root.memo["rng"]
    site = root.memo["rng.sites"] = root.memo.get("rng.sites", 0) + 1
    key = k0 ^ (site * GOLDEN & 0xFFFFFFFF), k1
    for loop in scope().enclosing():
        if loop.iteration is not None:
            key = fold_in(key, Tensor.of(scope().bring(loop.iteration(), loop)))
    return key


def bits(key: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Random words uint32 of ``shape``: Threefry-2x32 of the key and the row-major position (see op random_bits)."""
    return apply("random_bits", broadcast_to(key[0], shape), broadcast_to(key[1], shape))


def key(n: int) -> Key:
    """The key of a stream that is the same in every step, from any whole number."""
    k0, k1 = _mixed(n)
    return as_tensor(np.uint32(k0), uint32), as_tensor(np.uint32(k1), uint32)


def fold_in(key: Key, number: Tensor | int) -> Key:
    """The key of stream ``number`` (an int, or an integer scalar such as a step counter) beside ``key``."""
    k0, k1 = key
    number = astype(number, uint32) if isinstance(number, Tensor) else number & 0xFFFFFFFF
    # One word of Threefry: neighbouring numbers give unrelated keys.
    word = apply("random_bits", k0, k1 ^ number)
    return word, k1 ^ number


# Distributions -------------------------------------------------------------------------------------------------------


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _words(shape: tuple[int, ...], own: Key | None) -> tuple[Tensor, Tensor]:
    """Two independent random words uint32 for each element of ``shape``."""
    both = bits(next_key() if own is None else own, (2, *shape))
    return both[0], both[1]


def _unit(high: Tensor, low: Tensor, dtype: Any) -> Tensor:
    """Numbers in [0, 1), evenly spaced: 24 random bits for float32, 53 for float64. For 16-bit floats, float32."""
    to = as_dtype(dtype).computed
    if not to.is_float:
        raise error("GC0103", f"random numbers of type {to}: a float is needed", loc=user_loc(), hint="float32")
    if to.itemsize == 4:
        return astype(high >> 8, to) * 2.0**-24
    return (astype(high >> 5, to) * 2.0**26 + astype(low >> 6, to)) * 2.0**-53


def _rounded(x: Tensor, dtype: Any) -> Tensor:
    """Numbers that were computed in float32, in the 16-bit type that is asked for."""
    return astype(x, dtype) if as_dtype(dtype).is_half else x


def uniform(
    shape: Shape = (), low: float = 0.0, high: float = 1.0, *, dtype: Any = float32, key: Key | None = None
) -> Tensor:
    """Evenly distributed in [low, high); rounded to 16 bits, ``high`` itself may occur."""
    unit = _unit(*_words(_shape(shape), key), dtype)
    return _rounded(unit if (low, high) == (0.0, 1.0) else low + unit * (high - low), dtype)


def normal(
    shape: Shape = (),
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
    *,
    dtype: Any = float32,
    key: Key | None = None,
) -> Tensor:
    """Normally distributed, by the transformation of Box and Muller (Ann. Math. Statist. 29, 1958): of two uniform
    numbers, sqrt(-2 log(1 - u)) cos(2 pi v)."""
    k = next_key() if key is None else key
    u, v = (_unit(*_words(_shape(shape), fold_in(k, i)), dtype) for i in (0, 1))
    z = sqrt(size(-2.0 * log(1.0 - u))) * cos(2.0 * pi * v)
    return _rounded(z * std + mean, dtype)


def exponential(shape: Shape = (), *, dtype: Any = float32, key: Key | None = None) -> Tensor:
    """-log(1 - u) of a uniform u: mean 1."""
    return _rounded(-log(1.0 - _unit(*_words(_shape(shape), key), dtype)), dtype)


def gumbel(shape: Shape = (), *, dtype: Any = float32, key: Key | None = None) -> Tensor:
    """-log(-log(u)), where u is uniform and neither 0 nor 1."""
    high, _ = _words(_shape(shape), key)
    u = (astype(high >> 9, as_dtype(dtype).computed) + 0.5) * 2.0**-23
    return _rounded(-log(-log(u)), dtype)


def bernoulli(p: TensorLike = 0.5, shape: Shape | None = None, *, key: Key | None = None) -> Tensor:
    """True with probability ``p`` (a number, or one for each element), bool."""
    p = as_tensor(p)
    return _unit(*_words(p.shape if shape is None else _shape(shape), key), float32) < p


def categorical(logits: Tensor, axis: int = -1, *, key: Key | None = None) -> Tensor:
    """A class number (int32) with the probabilities softmax(logits) along ``axis``: the largest of the logits plus
    Gumbel noise (Gumbel, 1954)."""
    return argmax(logits + gumbel(logits.shape, dtype=logits.dtype.computed, key=key), axis)


def randint(low: int, high: int, shape: Shape = (), *, dtype: Any = int32, key: Key | None = None) -> Tensor:
    """Whole numbers in [low, high), as even as 32 random bits allow. Raises GC0217."""
    if not 0 < high - low <= 2**32:
        raise error("GC0217", f"no whole number is in [{low}, {high})", loc=user_loc(), hint="low < high")
    word, _ = _words(_shape(shape), key)
    return astype(word % (high - low) if high - low < 2**32 else word, dtype) + low


def permutation(n: int, *, key: Key | None = None) -> Tensor:
    """The numbers from 0 to n - 1 in random order, int32: the order of random words."""
    return argsort(_words((n,), key)[0])
