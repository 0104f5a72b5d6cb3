"""What this machine can do at best, measured with graphc's own kernels: the roof of the roofline model.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np

import graphc as gc
from graphc.cli_output import count
from graphc.runtime import KernelInfo

__all__ = ["Peaks", "measure"]

# By target, the side of the matrices of the product, large enough for full speed; and bytes of traffic: within each
# cache (L1, L2, L3; of a GPU the one that its multiprocessors share), and far beyond.
SIZES = {
    "cpu": (1024, (1 << 17, 1 << 20, 1 << 23, 1 << 28)),
    "cuda": (4096, (1 << 24, 1 << 30)),
}
SECONDS = 0.05  # of each measurement; the best run counts: a roof is what the machine can do, not what it did


@dataclass(frozen=True)
class Peaks:
    """``flops`` a second in float32, and ``levels``: (bytes, bytes a second), how fast a kernel can move so many bytes
    that are used again and again, to and from the cache that holds them. All with ``threads`` threads."""

    flops: float
    levels: tuple[tuple[int, float], ...]
    threads: int

    @property
    def memory(self) -> float:
        """Bytes a second to and from main memory."""
        return self.levels[-1][1]

    def bandwidth(self, nbytes: float) -> float:
        """Bytes a second for a kernel that moves ``nbytes``."""
        return next((rate for most, rate in self.levels if nbytes <= most), self.memory)

    def seconds(self, flops: float, nbytes: float) -> float:
        """The least time of one launch with so much work and traffic."""
        return max(flops / self.flops, nbytes / self.bandwidth(nbytes))

    def kernel_seconds(self, kernel: KernelInfo) -> float:
        """The least time of all launches of a kernel."""
        return kernel.count * self.seconds(kernel.flops / kernel.count, kernel.bytes / kernel.count)

    def __str__(self) -> str:
        return (
            f"{count(self.flops)}FLOP/s, {count(self.memory)}B/s from memory, {count(self.levels[0][1])}B/s from cache"
        )


@lru_cache(maxsize=2)
def measure(threads: int, target: str = "cpu") -> Peaks:
    """Time a matrix product and streams through each level of memory; about a second."""
    side, sizes = SIZES[target]
    matrix = np.ones((side, side), np.float32)
    arrays = [gc.state(np.zeros(nbytes // 8, np.float32), name=f"stream.{nbytes}") for nbytes in sizes]
    streams = [_traffic(a, f"stream_{i}") for i, a in enumerate(arrays)]
    program = gc.compile(_product(side), *streams, threads=threads, target=target)
    try:
        flops = 2 * side**3 / _best(program.product, a=matrix, b=matrix)
        rates = [nbytes / _best(program.entries[f"stream_{i}"]) for i, nbytes in enumerate(sizes)]
    finally:
        program.close()
    # A smaller level is never slower: what was measured so is the cost of a launch, not of memory.
    levels = tuple((nbytes, max(rates[i:])) for i, nbytes in enumerate(sizes))
    return Peaks(flops, levels, threads)


def _product(side: int) -> gc.Entry:
    @gc.entry(a=gc.spec((side, side)), b=gc.spec((side, side)))
    def product(a: gc.Tensor, b: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"c": a @ b}

    return product


def _traffic(array: gc.State, name: str) -> gc.Entry:
    """An entry that reads and writes ``array`` once."""

    def add_one() -> dict[str, gc.Tensor]:
        array.assign(array + 1.0)
        return {}

    add_one.__name__ = name
    return gc.entry(add_one)


def _best(entry: Any, **arguments: np.ndarray) -> float:
    """Seconds of the longest launch in the fastest of some runs."""
    best, end = float("inf"), perf_counter() + SECONDS
    runs = 0
    while runs < 5 or perf_counter() < end:
        best = min(best, float(entry.timed(**arguments)[1].max()))
        runs += 1
    return 1e-9 * best
