"""Randomness: one seed for initial values (a NumPy generator) and one counter-based stream inside programs.

In a program the key (``rng.key``) and a step counter (``rng.step``) are state, and each call site has a number, so a
mask is a pure function of (key, step, site, position): it is computed again where it is needed and never stored, and a
resumed run continues the stream.
"""

from __future__ import annotations

import numpy as np

from graphc.scope import entering
from graphc.tensor import Tensor, apply, broadcast_to, scope
from graphc.variable import State

__all__ = ["bits", "generator", "next_key", "seed"]

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
    """The key (k0, k1), scalars uint32, of a new call site. Marks the entry as one that advances ``rng.step``."""
    root = scope().root
    if "rng" not in root.memo:
        with entering(root):
            root.memo["rng"] = (_KEY[0], _KEY[1] + _STEP)
            _STEP.assign(_STEP + 1)
    k0, k1 = root.memo["rng"]
    site = root.memo["rng.sites"] = root.memo.get("rng.sites", 0) + 1
    return k0 ^ (site * GOLDEN & 0xFFFFFFFF), k1


def bits(key: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Random words uint32 of ``shape``: Threefry-2x32 of the key and the row-major position (see op random_bits)."""
    return apply("random_bits", broadcast_to(key[0], shape), broadcast_to(key[1], shape))
