"""Tuning: which of several kernels with the same results is the fastest on this machine, measured while it compiles.

A launch may have other kernels beside its own (`graphc.kernels.plan.Launch.others`): they cut the work otherwise and
give the same bits in no more memory, so that what is measured changes how long a step takes and nothing else. What was
chosen is kept in the cache, for this processor, number of threads and code generator, so that the next compile makes
the same artifact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import llvmlite.binding as llvm
import numpy as np

from graphc.kernels.cpu.build import compile_kernels, digest_of, team_object
from graphc.kernels.cpu.cache import Cache
from graphc.kernels.cpu.target import CpuTarget
from graphc.kernels.plan import EntryPlan, Launch
from graphc.runtime_native import Block, Code, Team

__all__ = ["tune"]

ROUNDS = 7  # of all candidates in turn; the best one of each counts
LEAST_SECONDS = 2e-4  # of one measurement: shorter kernels are repeated
WORTH = 0.97  # of the time of the kernel that the cost model prefers
SOME_NUMBER = 0x3F  # in every byte: 0.75 in float32 and bfloat16, 63 in int8


def tune(plans: Sequence[EntryPlan], target: CpuTarget, seconds: float, threads: int, folder: Path) -> list[EntryPlan]:
    """``plans`` with the fastest kernels of those that there are, as far as ``seconds`` of measuring find them.

    The launches with the most work come first; what there is no time for stays as the cost model has it. ``folder`` is
    that of the cache."""
    end, cache = perf_counter() + seconds, Cache(folder)
    plans = [replace(plan, launches=tuple(_small(e, plan.scratch_bytes) for e in plan.launches)) for plan in plans]
    same: dict[str, list[Launch]] = {}
    for launch in (e for plan in plans for e in plan.launches if e.others):
        same.setdefault(_name(launch, target, threads), []).append(launch)
    chosen: dict[str, int] = {}
    for name, launches in sorted(same.items(), key=lambda item: -sum(e.flops for e in item[1])):
        choice = cache.read_choice(name, 1 + len(launches[0].others))
        if choice is None and perf_counter() < end:
            choice = _fastest(launches[0], target, threads, folder)
            cache.write_choice(name, choice)
        chosen[name] = choice or 0

    def tuned(launch: Launch) -> Launch:
        if not launch.others:
            return launch
        kernels = [launch.kernel, *launch.others]
        return replace(launch, kernel=kernels[chosen[_name(launch, target, threads)]], others=())

    return [replace(plan, launches=tuple(map(tuned, plan.launches))) for plan in plans]


def _small(launch: Launch, scratch_bytes: int) -> Launch:
    """``launch`` without the kernels that need more scratch than its entry has."""
    return replace(launch, others=tuple(k for k in launch.others if k.scratch_bytes <= scratch_bytes))


def _name(launch: Launch, target: CpuTarget, threads: int) -> str:
    """What a choice depends on: the kernels, what compiles them, the processor and its threads."""
    digests = [digest_of(kernel, target) for kernel in (launch.kernel, *launch.others)]
    what = [llvm.get_host_cpu_name(), str(threads), *digests]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:32]


def _fastest(launch: Launch, target: CpuTarget, threads: int, folder: Path) -> int:
    """The number of the fastest kernel of a launch: 0 is its own, which stays unless another is clearly faster."""
    built = compile_kernels([launch.kernel, *launch.others], target, folder)
    unique = {b.symbol: b.object for b in built}
    code = Code([team_object(target, folder), *unique.values()], unique)
    stride = max(b.kernel.scratch_bytes for b in built)
    scratch, team = Block(stride * threads), Team(code, threads)
    blocks = {a.buffer: Block(a.buffer.nbytes) for a in launch.args if a.buffer is not None}
    for block in blocks.values():
        block.bytes[:] = SOME_NUMBER
    words = [a.value if a.buffer is None else blocks[a.buffer].address + a.offset for a in launch.args]
    table = np.array(words, np.int64)

    def seconds(symbol: str, repeats: int) -> float:
        """Of one of several runs."""
        records = np.array([[code.address(symbol), table.ctypes.data, 1, 0]] * repeats, np.int64)
        start = perf_counter()
        team.run(records, scratch, stride)
        return (perf_counter() - start) / repeats

    try:
        repeats = [1 + int(LEAST_SECONDS / seconds(b.symbol, 2)) for b in built]
        times = [[seconds(b.symbol, n) for b, n in zip(built, repeats, strict=True)] for _ in range(ROUNDS)]
    finally:
        team.close()
    best = np.min(times, axis=0)
    found = int(np.argmin(best))
    return found if best[found] < WORTH * best[0] else 0
