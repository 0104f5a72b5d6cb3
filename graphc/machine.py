"""What this machine can do at best, measured with graphc's own kernels: the roof of the roofline model.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

import graphc as gc

__all__ = ["Peaks", "measure"]

SIDE = 1024  # of the matrices of the product: large enough for full speed, 4 MB each
WORDS = 24_000_000  # of the arrays that are streamed: far larger than any cache
REPEATS = 7  # the best counts: a roof is what the machine can do, not what it did


@dataclass(frozen=True)
class Peaks:
    """``flops`` a second in float32, and ``bytes`` a second to and from memory, with ``threads`` threads."""

    flops: float
    bytes: float
    threads: int

    def seconds(self, flops: float, nbytes: float) -> float:
        """The least time for so much work and traffic."""
        return max(flops / self.flops, nbytes / self.bytes)


@lru_cache(maxsize=2)
def measure(threads: int) -> Peaks:
    """Time a matrix product and a stream through memory; about a second."""

    @gc.entry(a=gc.spec((SIDE, SIDE)), b=gc.spec((SIDE, SIDE)))
    def product(a: gc.Tensor, b: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"c": a @ b}

    stream = gc.state(np.zeros(WORDS, np.float32), name="stream")

    @gc.entry
    def traffic() -> dict[str, gc.Tensor]:
        stream.assign(stream + 1.0)
        return {}

    program = gc.compile(product, traffic, threads=threads)
    try:
        a = np.ones((SIDE, SIDE), np.float32)
        fastest = min(int(program.product.timed(a=a, b=a)[1].max()) for _ in range(REPEATS))
        streamed = min(int(program.traffic.timed()[1].max()) for _ in range(REPEATS))
    finally:
        program.close()
    return Peaks(2 * SIDE**3 / (fastest * 1e-9), 8 * WORDS / (streamed * 1e-9), threads)
