"""The ways to run a loop-IR kernel that must agree: the interpreter, the CPU target at each width, and C."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from loop_interp import Pointer, run_kernel
from native import aligned, load_objects

from graphc.kernels.c import CDialect
from graphc.kernels.cpu.build import compile_kernels
from graphc.kernels.cpu.target import BASELINES, CpuTarget
from graphc.kernels.emit import emit
from graphc.loop import Kernel

Args = Sequence[np.ndarray | int]
Runner = Callable[[Kernel, Args, int], None]  # kernel, arguments, nthreads: writes into the arrays


def interpret(kernel: Kernel, args: Args, nthreads: int = 1) -> None:
    run_kernel(kernel, [a if isinstance(a, int) else Pointer(a.reshape(-1).view(np.uint8)) for a in args], nthreads)


def runnable(target: CpuTarget) -> bool:
    """Whether this machine can run code for ``target``."""
    has = llvm.get_host_cpu_features()
    same = llvm.get_process_triple().split("-")[0] == target.triple.split("-")[0]
    return same and all(has.get(f, False) for f in target.features)


def on_cpu(level: str, cache: Path) -> Runner:
    def run(kernel: Kernel, args: Args, nthreads: int = 1) -> None:
        built = compile_kernels([kernel], BASELINES[level], cache)[0]
        load_objects([built.object]).run(built.symbol, args, nthreads, kernel.scratch_bytes)

    return run


def in_c(compiler: str, folder: Path) -> Runner:
    """Compile with the system's C compiler, without contraction of a * b + c."""

    def run(kernel: Kernel, args: Args, nthreads: int = 1) -> None:
        source, library = folder / f"{kernel.name}.c", folder / f"{kernel.name}_{abs(hash(kernel))}.so"
        source.write_text(emit(kernel, CDialect(), "kernel"))
        flags = [
            "-std=c99",
            "-O1",
            "-fwrapv",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wno-unused-variable",
        ]
        subprocess.run([compiler, *flags, "-o", str(library), str(source), "-lm"], check=True)
        words = np.array([a if isinstance(a, int) else a.ctypes.data for a in args], np.int64)
        scratch = aligned(kernel.scratch_bytes, np.uint8)
        function = ctypes.CDLL(str(library)).kernel
        for tid in range(nthreads):
            function(*(ctypes.c_int64(v) for v in (words.ctypes.data, scratch.ctypes.data, tid, nthreads)))

    return run
