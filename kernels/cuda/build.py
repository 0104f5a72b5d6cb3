"""From kernels to cubins: shared out between threads, printed, compiled by NVRTC for each architecture, kept on disk.

A kernel is compiled with what holds in all of its launches: which addresses are multiples of 16. So it is named by its
structure, these addresses, the target and the generator; equal names have equal cubins on every machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import graphc.loop
from graphc.errors import error
from graphc.kernels.cpu.cache import Cache
from graphc.kernels.cuda import nvrtc
from graphc.kernels.cuda.dialect import source_of
from graphc.kernels.cuda.grid import Grid
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.cuda.threads import Threads, shared_out
from graphc.kernels.cuda.wide import ACCESS
from graphc.kernels.plan import Arg, EntryPlan
from graphc.loop import Kernel

__all__ = ["OPTIONS", "Compilation", "Compiled", "aligned_params", "generator", "headers"]

# Rounding is what the kernel says; warnings are of the header's functions for every type.
OPTIONS = ("--std=c++17", "--fmad=false", "--disable-warnings")


@dataclass(frozen=True)
class Compiled:
    """A kernel in machine code: ``source`` is CUDA C++, ``cubins`` are by architecture."""

    kernel: Kernel
    symbol: str
    source: str
    grid: Grid
    cubins: dict[str, bytes]


@cache
def headers() -> dict[str, str]:
    """What sources include, by name."""
    return {file.name: file.read_text() for file in sorted(Path(__file__).parent.glob("*.cuh"))}


# What holds in all launches ------------------------------------------------------------------------------------------


def aligned_params(plans: Iterable[EntryPlan]) -> dict[str, frozenset[str]]:
    """By the key of each kernel, the parameters whose addresses are multiples of `ACCESS` in all its launches, of all
    iterations of loops. Buffers begin at multiples of more."""
    found: dict[str, frozenset[str]] = {}
    for plan in plans:
        steps: dict[tuple[int, int], int] = {}
        for span in plan.spans:
            for number, arg, by in span.steps:
                steps[number, arg] = steps.get((number, arg), 0) | by  # of numbers that are all multiples, so is this
        for number, launch in enumerate(plan.launches):
            args = zip(launch.kernel.params, launch.args, strict=True)
            here = frozenset(p.name for i, (p, a) in enumerate(args) if _aligned(a, steps.get((number, i), 0)))
            key = launch.kernel.key
            found[key] = found.get(key, here) & here
    return found


def _aligned(arg: Arg, step: int) -> bool:
    return arg.buffer is not None and arg.buffer.space != "flags" and (arg.offset | step) % ACCESS == 0


# Compilation ---------------------------------------------------------------------------------------------------------


class Compilation:
    """Kernels on their way to cubins, from the cache in ``cache_dir`` or into it, on threads: NVRTC compiles without
    Python's lock. ``aligned`` are the parameters of each kernel that are multiples of 16 in all launches.

    Raises GC0011 where there is no NVRTC, and in `finish` `nvrtc.CompileError`."""

    def __init__(
        self, kernels: Sequence[Kernel], aligned: Sequence[frozenset[str]], target: CudaTarget, cache_dir: Path
    ):
        if not nvrtc.available():
            raise error(
                "GC0011", "target cuda needs NVRTC, NVIDIA's compiler as a library, which is not installed here"
            )
        self.kernels, self.target = kernels, target
        self.cache = Cache(cache_dir, source=".cu", code=".cubin")
        self.printed = [_printed(k, a, target) for k, a in zip(kernels, aligned, strict=True)]
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.cubins = {
            (symbol, arch): self.pool.submit(self.cubin, symbol, source, arch)
            for symbol, source, _ in self.printed
            for arch in target.architectures
        }

    def cubin(self, symbol: str, source: str, arch: str) -> bytes:
        """The machine code of one kernel for one architecture."""
        name = f"{symbol}.{arch}"
        code = self.cache.read(name)
        if code is None:
            self.cache.write_source(symbol, source)
            code, _ = nvrtc.compile_cubin(source, arch, headers(), OPTIONS)
            self.cache.write_object(name, code)
        return code

    def finish(self) -> list[Compiled]:
        """The kernels, in order, when all are ready."""
        archs = self.target.architectures
        return [
            Compiled(kernel, symbol, source, threads.grid, {a: self.cubins[symbol, a].result() for a in archs})
            for kernel, (symbol, source, threads) in zip(self.kernels, self.printed, strict=True)
        ]

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self.pool.shutdown(cancel_futures=True)


def _printed(kernel: Kernel, aligned: frozenset[str], target: CudaTarget) -> tuple[str, str, Threads]:
    """The symbol, the source, and what a thread does."""
    text = f"{generator()}\n{target!r}\n{sorted(aligned)}\n{kernel.key}"
    symbol = "gc_" + hashlib.sha256(text.encode()).hexdigest()[:32]
    threads = shared_out(kernel, aligned, target.shared_bytes)
    return symbol, source_of(threads, symbol), threads


@cache
def generator() -> str:
    """What the code generator is: its own source, the header, and the version of the compiler below it."""
    here = Path(__file__).parent
    files = [Path(graphc.loop.__file__), here.parent / "emit.py", here.parent / "c.py", *sorted(here.glob("*.py"))]
    h = hashlib.sha256(f"{nvrtc.version()} {OPTIONS}{sorted(headers().items())}".encode())
    for f in files:
        h.update(f.read_bytes())
    return h.hexdigest()
