"""The machine's limits, measured in turn with the systems and for as long: independent FMAs in registers (or what else
multiplies factors of the workload's precision fastest), the same in tile registers, and a stream through memory that
reads and writes each byte, all on all threads.

The fastest run of such a loop is what the machine can do. The mean of its turn is what the machine gave at that time,
which is less where others use it, or where it slows down under such work."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from peaks import READ_SYMBOL, peak_object, peak_symbol, peak_work, read_object
from systems import TURN, Job, Running
from workloads import FLOAT32

import graphc as gc
from graphc.dtype import DType, bfloat16
from graphc.kernels.cpu.build import team_object
from graphc.kernels.cpu.target import CpuTarget, host, with_words
from graphc.runtime_native import Block, Code, Team

STREAM = 1 << 27  # bytes of the array: far beyond the caches of a core


def prepare(job: Job) -> Running:
    narrow = with_words(host(), [bfloat16])
    wide = job.workload.precision == FLOAT32 or narrow == host()
    units = {"flops_per_second": (None, host()) if wide else (bfloat16, narrow)}
    if wide and narrow.block(bfloat16):
        units["tile_flops_per_second"] = (bfloat16, narrow)
    loops = {name: (job.threads * peak_work(*u), fma_kernel(job.threads, *u)) for name, u in units.items()}
    loops["bytes_per_second"] = 2 * STREAM, stream(job.threads)

    def facts() -> dict[str, Any]:
        """The best rate of each loop, and the mean over its turn."""
        found = {name: (work, *seconds(run)) for name, (work, run) in loops.items()}
        means = {name: work / mean for name, (work, _, mean) in found.items()}
        return {name: work / least for name, (work, least, _) in found.items()} | {"mean": means}

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


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Of the fastest run in a turn, and of a run in the mean."""
    run()
    times = [time.perf_counter()]
    while times[-1] - times[0] < TURN:
        run()
        times.append(time.perf_counter())
    return min(b - a for a, b in pairwise(times)), (times[-1] - times[0]) / (len(times) - 1)
