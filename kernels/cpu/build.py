"""From kernels to object code: print, lower, compile with LLVM, keep the result in a cache on disk.

Objects are position-independent ELF with one function ``void gc_<digest>(int64 args, int64 scratch, int64 tid, int64
nthreads)`` and no undefined symbol. The digest covers the kernel's structure, the target, the code generator and the
compiler versions, so equal kernels have equal bytes in every process.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

import graphc.loop
from graphc.kernels.cpu.cache import Cache
from graphc.kernels.cpu.dialect import NumbaDialect
from graphc.kernels.cpu.frontend import lower
from graphc.kernels.cpu.target import CpuTarget
from graphc.kernels.cpu.team import team_ir
from graphc.kernels.emit import emit
from graphc.loop import Kernel

__all__ = ["Compiled", "compile_kernels", "digest_of", "machine", "optimise", "source_of", "team_object"]


@dataclass(frozen=True)
class Compiled:
    """A kernel in object code: ``symbol`` is "gc_" + ``digest``, ``source`` the Numba text, ``object`` ELF bytes."""

    kernel: Kernel
    symbol: str
    digest: str
    source: str
    object: bytes


# Names and text ------------------------------------------------------------------------------------------------------


@cache
def _generator() -> str:
    """What the code generator is: its own source and the versions of the compilers below it."""
    here = Path(__file__).parent
    files = [Path(graphc.loop.__file__), here.parent / "emit.py", *sorted(here.glob("*.py"))]
    h = hashlib.sha256(f"{llvmlite.__version__} {llvm.llvm_version_info}".encode())
    for f in files:
        h.update(f.read_bytes())
    return h.hexdigest()


def digest_of(kernel: Kernel, target: CpuTarget) -> str:
    """32 hexadecimal digits: equal for kernels that may share code on ``target``."""
    return hashlib.sha256(f"{_generator()}\n{target!r}\n{kernel.key()}".encode()).hexdigest()[:32]


def source_of(kernel: Kernel, target: CpuTarget) -> str:
    """The Numba source of the kernel."""
    return emit(kernel, NumbaDialect(target), "gc_" + digest_of(kernel, target))


# LLVM: IR → object ---------------------------------------------------------------------------------------------------


@cache
def machine(target: CpuTarget) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = ",".join(f"+{f}" for f in target.features)
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features, opt=3, reloc="pic", codemodel="small"
    )


def optimise(text: str, target: CpuTarget) -> llvm.ModuleRef:
    """Parse LLVM IR and optimise it for ``target``. The vectorisers stay off: kernels are vector code already."""
    tm = machine(target)
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(tm.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(tm, options)
    passes.getModulePassManager().run(module, passes)
    return module


@cache
def team_object(target: CpuTarget) -> bytes:
    """Object code of the thread team: gc_run, gc_worker and gc_stop."""
    return bytes(machine(target).emit_object(optimise(team_ir(target), target)))


def compile_source(source: str, symbol: str, target: CpuTarget) -> bytes:
    """Object code of the function ``symbol`` in ``source``."""
    return bytes(machine(target).emit_object(optimise(lower(source, symbol), target)))


# Many kernels --------------------------------------------------------------------------------------------------------

Progress = Callable[[int, int], None]


def compile_kernels(
    kernels: Sequence[Kernel], target: CpuTarget, cache_dir: Path, progress: Progress | None = None
) -> list[Compiled]:
    """Object code for each kernel, in order, from the cache in ``cache_dir`` or compiled into it.

    Kernels of equal structure are compiled once. ``progress(done, total)`` is called as distinct kernels get ready.
    """
    cache = Cache(cache_dir)
    digests = [digest_of(k, target) for k in kernels]
    sources = [emit(k, NumbaDialect(target), "gc_" + d) for k, d in zip(kernels, digests, strict=True)]
    distinct = dict(zip(digests, sources, strict=True))
    objects = {d: code for d in distinct if (code := cache.read("gc_" + d)) is not None}
    if progress:
        progress(len(objects), len(distinct))
    missing = {d: source for d, source in distinct.items() if d not in objects}
    for digest, code in _compile_all(missing, target, cache):
        objects[digest] = code
        if progress:
            progress(len(objects), len(distinct))
    return [
        Compiled(k, "gc_" + d, d, source, objects[d]) for k, d, source in zip(kernels, digests, sources, strict=True)
    ]


def _compile_all(sources: dict[str, str], target: CpuTarget, cache: Cache) -> Iterator[tuple[str, bytes]]:
    """(digest, object) of each source, as they get ready: in forked processes where there is work for them.

    A fork takes the imported compiler along, where a new interpreter would spend the time of ten kernels on importing.
    """
    workers = min(_processors(), len(sources) // _KERNELS_PER_PROCESS)
    if workers < 2 or not sys.platform.startswith("linux"):
        for digest, source in sources.items():
            yield digest, _compile_into(digest, source, target, cache)
        return
    longest_first = sorted(sources, key=lambda d: (-len(sources[d]), d))
    digest = longest_first.pop(0)
    yield digest, _compile_into(digest, sources[digest], target, cache)  # sets LLVM up before the fork
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: ours hold no lock while they compute
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            jobs = {pool.submit(_compile_into, d, sources[d], target, cache): d for d in longest_first}
            for job in as_completed(jobs):
                yield jobs[job], job.result()


_KERNELS_PER_PROCESS = 6  # below that, starting processes costs more than it saves


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile_into(digest: str, source: str, target: CpuTarget, cache: Cache) -> bytes:
    """Compile one kernel and store it."""
    symbol = "gc_" + digest
    cache.write_source(symbol, source)
    code = compile_source(source, symbol, target)
    cache.write_object(symbol, code)
    return code
