"""From kernels to object code: print, lower, compile with LLVM, keep the result in a cache on disk.

Objects are position-independent ELF with one function ``void gc_<digest>(int64 args, int64 scratch, int64 tid, int64
nthreads)`` and no undefined symbol. The digest covers the kernel's structure, the target, the code generator and the
compiler versions, so equal kernels have equal bytes in every process.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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
    return _digest(target, kernel.key())


def _digest(target: CpuTarget, key: str) -> str:
    return hashlib.sha256(f"{_generator()}\n{target!r}\n{key}".encode()).hexdigest()[:32]


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
    """Parse LLVM IR and optimise it for ``target``.

    The front end writes in SSA form, vectorised, with loop invariants outside and common terms computed once: what is
    left for LLVM before it selects instructions is algebra. Its standard pipeline (O3) takes six times as long, for
    kernels of the same speed.
    """
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(machine(target).target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine(target), llvm.create_pipeline_tuning_options(speed_level=3))
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module


def team_object(target: CpuTarget, cache_dir: Path | None = None) -> bytes:
    """Object code of the thread team (gc_run, gc_worker and gc_stop), from the cache in ``cache_dir``, if given."""
    if cache_dir is not None:
        cache, name = Cache(cache_dir), f"team_{_digest(target, 'team')}"
        if (code := cache.read(name)) is None:
            cache.write_object(name, code := team_object(target))
        return code
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
    """(digest, object) of each source, as they get ready: by this process and, where there is work for them, by forks
    of it, which take the imported compiler along and leave their objects in the cache."""
    machine(target)  # sets LLVM up before the fork
    longest_first = sorted(sources, key=lambda d: (-len(sources[d]), d))
    queue = _queue(len(longest_first))
    mine: set[str] = set()

    def work() -> Iterator[tuple[str, bytes]]:
        while number := os.read(queue, _NUMBER):
            digest = longest_first[int.from_bytes(number, "little")]
            yield digest, _compile_into(digest, sources[digest], target, cache)

    forks = min(_processors(), len(sources) // _KERNELS_PER_PROCESS) - 1
    children = [_fork(work) for _ in range(forks if sys.platform.startswith("linux") else 0)]
    try:
        for digest, code in work():
            mine.add(digest)
            yield digest, code
    finally:
        os.close(queue)
        for child in children:
            os.waitpid(child, 0)
    for digest in longest_first:
        if digest not in mine:  # what a fork could not compile fails here again, and says why
            yield digest, cache.read("gc_" + digest) or _compile_into(digest, sources[digest], target, cache)


_KERNELS_PER_PROCESS = 4  # below that, a fork costs more than it saves
_NUMBER = 4  # bytes


def _queue(count: int) -> int:
    """A pipe to read the numbers below ``count`` from (as many as fit; `_NUMBER` bytes each): of several processes that
    do so, each number goes to one."""
    queue, feed = os.pipe()
    os.set_blocking(feed, False)
    os.write(feed, b"".join(n.to_bytes(_NUMBER, "little") for n in range(count)))
    os.close(feed)
    return queue


def _fork(work: Callable[[], Iterator[object]]) -> int:
    """The number of a new process that does ``work`` and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: ours hold no lock while they compute
        child = os.fork()
    if child == 0:
        with suppress(BaseException):
            deque(work(), maxlen=0)
        os._exit(0)
    return child


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile_into(digest: str, source: str, target: CpuTarget, cache: Cache) -> bytes:
    """Compile one kernel and store it."""
    symbol = "gc_" + digest
    cache.write_source(symbol, source)
    code = compile_source(source, symbol, target)
    cache.write_object(symbol, code)
    return code
