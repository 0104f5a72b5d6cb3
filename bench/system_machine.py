"""The machine's limits, measured in turn with the systems: independent FMAs in registers (or what else multiplies
factors of the workload's precision fastest), a stream through memory that reads and writes each byte, and one that only
reads, all on all threads."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from peaks import READ_SYMBOL, peak_object, peak_symbol, peak_work, read_object
from systems import Job, Running
from workloads import FLOAT32

import graphc as gc
from graphc.dtype import DType, bfloat16
from graphc.kernels.cpu.build import team_object
from graphc.kernels.cpu.target import CpuTarget, host, with_words
from graphc.runtime_native import Block, Code, Team

STREAM = 1 << 27  # bytes of the array: far beyond the caches of a core
SECONDS = 0.06  # of each measurement; the best run counts: a limit is what the machine can do, not what it did


def prepare(job: Job) -> Running:
    target = host() if job.workload.precision == FLOAT32 else with_words(host(), [bfloat16])
    unit = None if target == host() else bfloat16
    fma, copy = fma_kernel(job.threads, unit, target), stream(job.threads)
    flops = job.threads * peak_work(unit, target)

    def facts() -> dict[str, float]:
        return {"flops_per_second": flops / best(fma), "bytes_per_second": 2 * STREAM / best(copy)}

    return Running(lambda: 0.0, facts=facts)


def fma_kernel(threads: int, unit: DType | None, target: CpuTarget) -> Callable[[], object]:
    """The loop of `peak_object` on all threads."""
    code = Code([team_object(host()), peak_object(unit, target)], [peak_symbol(unit)])
    team = Team(code, threads)
    nothing = np.zeros(1, np.int64)
    stride = 4096
    scratch = Block(stride * threads)
    record = np.array([[code.address(peak_symbol(unit)), nothing.ctypes.data, 1, 0]], np.int64)
    keep = (nothing,)
    return lambda: keep and team.run(record, scratch, stride)


def stream(threads: int) -> Callable[[], object]:
    array = gc.state(np.zeros(STREAM // 4, np.float32), name="stream")

    @gc.entry()
    def add_one() -> dict[str, gc.Tensor]:
        array.assign(array + 1.0)
        return {}

    return gc.compile(add_one, threads=threads).add_one


def reader(nbytes: int, threads: int) -> Callable[[], object]:
    """All threads together bring in so many bytes."""
    code, block = Code([team_object(host()), read_object(host())], [READ_SYMBOL]), Block(nbytes)
    block.bytes[:] = 0
    team = Team(code, threads)
    words = np.array([block.address, nbytes], np.int64)
    stride = 4096
    scratch = Block(stride * threads)
    record = np.array([[code.address(READ_SYMBOL), words.ctypes.data, 1, 0]], np.int64)
    keep = (block, words)
    return lambda: keep and team.run(record, scratch, stride)


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    run()
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
