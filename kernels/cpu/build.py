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
from contextlib import closing, suppress
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

__all__ = ["Compilation", "Compiled", "compile_kernels", "digest_of", "machine", "optimise", "source_of", "team_object"]


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
    return _digest(target, kernel.key)


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


def object_code(module: llvm.ModuleRef, target: CpuTarget) -> bytes:
    """The module as an ELF object.

    LLVM's loop strength reduction takes a quarter of a code generator's time and finds nothing to gain here: the front
    end adds up addresses from the outermost loop to the innermost, and the block product carries its own from step to
    step. Nobody else's modules in this process go without it.
    """
    llvm.set_option("", "-disable-lsr=true")
    try:
        return bytes(machine(target).emit_object(module))
    finally:
        llvm.set_option("", "-disable-lsr=false")


def team_object(target: CpuTarget, cache_dir: Path | None = None) -> bytes:
    """Object code of the thread team (gc_run, gc_worker and gc_stop), from the cache in ``cache_dir``, if given."""
    if cache_dir is not None:
        cache, name = Cache(cache_dir), f"team_{_digest(target, 'team')}"
        if (code := cache.read(name)) is None:
            cache.write_object(name, code := team_object(target))
        return code
    return object_code(optimise(team_ir(target), target), target)


def compile_source(source: str, symbol: str, target: CpuTarget) -> bytes:
    """Object code of the function ``symbol`` in ``source``."""
    return object_code(optimise(lower(source, symbol), target), target)


# Many kernels --------------------------------------------------------------------------------------------------------

Progress = Callable[[int, int], None]


def compile_kernels(
    kernels: Sequence[Kernel], target: CpuTarget, cache_dir: Path, progress: Progress | None = None
) -> list[Compiled]:
    """Object code for each kernel, in order, from the cache in ``cache_dir`` or compiled into it.

    Kernels of equal structure are compiled once. ``progress(done, total)`` is called as distinct kernels get ready.
    """
    with closing(Compilation(kernels, target, cache_dir)) as compilation:
        return compilation.finish(progress)


class Compilation:
    """Kernels on their way to object code, from the cache in ``cache_dir`` or into it.

    Where there is work for them, forks of this process, which take the imported compiler along, begin at once and leave
    their objects in the cache. This process can do something else until it joins them in `finish`.
    """

    def __init__(self, kernels: Sequence[Kernel], target: CpuTarget, cache_dir: Path) -> None:
        machine(target)  # sets LLVM up before the fork
        self.kernels, self.target, self.cache = kernels, target, Cache(cache_dir)
        self.symbols = ["gc_" + digest_of(kernel, target) for kernel in kernels]
        self.distinct = dict(zip(self.symbols, kernels, strict=True))
        self.objects = {s: code for s in self.distinct if (code := self.cache.read(s)) is not None}
        self.sources: dict[str, str] = {}  # of what was compiled just now
        missing = self.distinct.keys() - self.objects.keys()
        self.longest_first = sorted(missing, key=lambda s: (-len(self.distinct[s].key), s))
        self.queue = _queue(len(missing))
        forks = min(_processors(), len(missing) // _KERNELS_PER_PROCESS) - 1
        self.children = [_fork(self.work) for _ in range(forks if sys.platform.startswith("linux") else 0)]

    def work(self) -> Iterator[str]:
        """Compile what no other process has begun; the symbols, one by one."""
        while number := os.read(self.queue, _NUMBER):
            symbol = self.longest_first[int.from_bytes(number, "little")]
            self.compile(symbol)
            yield symbol

    def compile(self, symbol: str) -> None:
        """Compile one kernel and store it."""
        source = self.sources[symbol] = emit(self.distinct[symbol], NumbaDialect(self.target), symbol)
        self.cache.write_source(symbol, source)
        code = self.objects[symbol] = compile_source(source, symbol, self.target)
        self.cache.write_object(symbol, code)

    def finish(self, progress: Progress | None = None) -> list[Compiled]:
        """The kernels, in order, when all are ready; ``progress`` as in `compile_kernels`."""
        total = len(self.distinct)
        if progress:
            progress(len(self.objects), total)
        for _ in self.work():
            if progress:
                progress(len(self.objects), total)
        self.wait()
        for symbol in self.longest_first:
            if symbol in self.objects:
                continue
            code, source = self.cache.read(symbol), self.cache.read_source(symbol)
            if code is None or source is None:  # what a fork could not compile fails here again, and says why
                self.compile(symbol)
            else:
                self.objects[symbol], self.sources[symbol] = code, source
            if progress:
                progress(len(self.objects), total)
        return [
            Compiled(kernel, symbol, symbol[3:], self.source(kernel, symbol), self.objects[symbol])
            for kernel, symbol in zip(self.kernels, self.symbols, strict=True)
        ]

    def source(self, kernel: Kernel, symbol: str) -> str:
        """The text of ``kernel``, under its own name."""
        if kernel is self.distinct[symbol] and symbol in self.sources:
            return self.sources[symbol]
        return emit(kernel, NumbaDialect(self.target), symbol)

    def wait(self) -> None:
        """Until the forks have ended."""
        while self.children:
            os.waitpid(self.children.pop(), 0)

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        while os.read(self.queue, 1 << 16):
            pass
        os.close(self.queue)
        self.wait()


_KERNELS_PER_PROCESS = 2  # below that, a fork costs more than it saves
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
