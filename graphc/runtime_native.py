"""Native memory, code and threads of a loaded program: llvmlite and ctypes, no compiler.

The contract with the code in an artifact: every kernel is ``void kernel(int64* args, int64 scratch, int64 tid, int64
nthreads)``, and the team object has::

    void gc_run(int64* ctl, int64* records, int64 n, int64 nthreads, int64 scratch, int64 stride, int64 words,
                int64* times)
    void gc_worker(int64* ctl, int64 tid)      runs in a thread of ours until gc_stop; tid from 1
    void gc_stop(int64* ctl)

The records of the launch table are described in `graphc.runtime_table`; thread t uses the words that lie ``t * words``
bytes behind those that a record points to. ``times`` is 0 or n words, to which the ns of each record are added.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from graphc.artifact import ALIGN, Artifact
from graphc.artifact_records import Build, Manifest
from graphc.errors import error
from graphc.system import TILES, allow_tiles, features

__all__ = ["Block", "Code", "Job", "Team", "best_build", "unfit"]

_WORDS = ctypes.c_int64
_CTL_BYTES = 512
_TEAM_SYMBOLS = ("gc_run", "gc_worker", "gc_stop")
_NO_CLOCK = _WORDS(0)
_HUGE = 1 << 21  # bytes of a huge page: blocks from here on ask for them


class Block:
    """``nbytes`` at ``address``: those of ``memory`` (uint8), or new ones, zeroed and page-aligned, with as many bytes
    of guard behind as asked for."""

    def __init__(self, nbytes: int, guard: int = 0, memory: np.ndarray | None = None):
        self.nbytes = nbytes
        self.bytes = _zeros(nbytes + guard) if memory is None else memory
        self.address: int = self.bytes.ctypes.data

    @classmethod
    def of(cls, data: memoryview) -> Block:
        """``data`` in place where it can be written and is aligned, as in a mapped file; else a copy."""
        if not data:
            return cls(0)
        there = np.frombuffer(data, np.uint8)
        if not data.readonly and there.ctypes.data % ALIGN == 0:
            return cls(len(data), memory=there)
        block = cls(len(data))
        block.bytes[: len(data)] = there
        return block

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> np.ndarray:
        """The tensor at ``offset``, writable, sharing memory."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.bytes[offset : offset + size].view(dtype).reshape(shape)


def _zeros(nbytes: int) -> np.ndarray:
    # Private: after a fork, parent and child each have their own state.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(nbytes, 1), **private)
    if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages: slower, not wrong
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def best_build(manifest: Manifest, name: str = "the artifact") -> int:
    """The number of the first build of an artifact that this machine can run. Raises GC0505 where there is none;
    ``name`` is what to call the artifact."""
    reasons = []
    for number, build in enumerate(manifest.builds):
        why = unfit(build)
        if not why:
            return number
        reasons.append(why)
    raise error("GC0505", f"{name} {'; other code in it '.join(reasons)}", hint=_REBUILD)


def unfit(build: Build) -> str:
    """Why the native code of ``build`` cannot run here; empty if it can."""
    target = build.target
    if target.name == "cuda":
        from graphc.runtime_cuda_device import unfit_gpu  # here, since a program for a CPU needs nothing of it

        return unfit_gpu(build)
    here = llvm.get_process_triple().split("-")
    there = target.triple.split("-")
    if target.name != "cpu" or here[0] != there[0] or here[2:3] != there[2:3]:
        return f"was built for {target.name} on {target.triple}; this machine is cpu on {'-'.join(here)}"
    has = features()
    missing = [f for f in target.features if f not in has]
    if not missing and TILES in target.features and not allow_tiles():
        missing = [TILES]
    return f"needs a CPU with {', '.join(missing)}" if missing else ""


_REBUILD = "Install all of graphc to rebuild it from its graph, or compile the model on this machine."


class Code:
    """Native objects in executable memory, with the addresses of the team's functions and of ``symbols``. Raises GC0502
    where they cannot be linked.

    Each object lies in one piece: code reaches its constants by 32 bits, and MCJIT puts them anywhere, which in a
    process that has mapped much is too far."""

    def __init__(self, objects: Iterable[bytes], symbols: Iterable[str]):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = llvm.create_lljit_compiler(use_jit_link=True, suppress_errors=True)
        library = llvm.JITLibraryBuilder().add_current_process()
        for data in objects:
            library.add_object_img(data)
        for symbol in dict.fromkeys([*_TEAM_SYMBOLS, *symbols]):
            library.export_symbol(symbol)
        try:
            self._code = library.link(self._jit, "code")
        except RuntimeError as problem:
            why = str(problem).partition("\n")[0]
            raise error("GC0502", f"the artifact is damaged: its native code cannot be linked: {why}") from None

    @classmethod
    def of(cls, artifact: Artifact) -> Code:
        """The code of an artifact."""
        manifest = artifact.manifest
        members = dict.fromkeys([manifest.team, *(k.object for k in manifest.kernels)])
        return cls((bytes(artifact.members[m]) for m in members), [k.symbol for k in manifest.kernels])

    def address(self, symbol: str) -> int:
        """The address of a function."""
        return int(self._code[symbol])


class Job:
    """The ``records`` of a launch table ([n, 4] int64), to be walked by ``nthreads`` threads.

    ``stride`` and ``moves`` are the bytes from one thread's part of ``scratch`` and of the table's words to the next's.
    The arguments of the native call are converted once: most of the cost of a call from Python is that.
    """

    def __init__(self, records: np.ndarray, nthreads: int, scratch: Block, stride: int, moves: int = 0):
        self.nthreads = nthreads
        numbers = (records.ctypes.data, len(records), nthreads, scratch.address, stride, moves)
        self.words = tuple(map(_WORDS, numbers))
        self._keep = records


class Team:
    """``nthreads`` threads that run launches together: the caller's and ``nthreads - 1`` workers.

    Workers start with the first run that needs them and stop when the team is closed, collected, or Python exits.
    After a fork the child starts its own. Not thread-safe: the program holds a lock.
    """

    def __init__(self, code: Code, nthreads: int):
        self.nthreads = nthreads
        self._code = code
        self._run = ctypes.CFUNCTYPE(None, *[_WORDS] * 8)(code.address("gc_run"))
        self._worker = ctypes.CFUNCTYPE(None, _WORDS, _WORDS)(code.address("gc_worker"))
        self._stop = ctypes.CFUNCTYPE(None, _WORDS)(code.address("gc_stop"))
        self._new_ctl()
        self._close: weakref.finalize[Any, Any] | None = None
        self._pid = 0

    def run(
        self, records: np.ndarray, scratch: Block, stride: int, words: int = 0, times: np.ndarray | None = None
    ) -> None:
        """Walk the ``records`` of a launch table once; see `Job` and `start`."""
        self.start(Job(records, self.nthreads, scratch, stride, words), times)

    def start(self, job: Job, times: np.ndarray | None = None) -> None:
        """Do a job; returns when all threads are done. ``times`` takes the nanoseconds of each record."""
        if job.nthreads > 1 and self._pid != os.getpid():
            self._start()
        clock = _NO_CLOCK if times is None else _WORDS(times.ctypes.data)
        self._run(self._ctl_word, *job.words, clock)

    def close(self) -> None:
        """Stop the workers; a later run starts new ones."""
        if self._close is not None and self._pid == os.getpid():
            self._close()
        self._close, self._pid = None, 0

    def _new_ctl(self) -> None:
        self._ctl = Block(_CTL_BYTES)
        self._ctl_word = _WORDS(self._ctl.address)

    def _start(self) -> None:
        if self._close is not None:  # we are the child of a fork: the workers stayed behind
            self._close.detach()
        self._new_ctl()
        # A worker keeps alive what it runs on, and nothing that leads back to the program.
        work, hold = self._worker, (self._ctl, self._code)
        threads = [
            threading.Thread(target=_work, args=(work, self._ctl.address, tid, hold), name=f"graphc-{tid}", daemon=True)
            for tid in range(1, self.nthreads)
        ]
        for thread in threads:
            thread.start()
        self._pid = os.getpid()
        self._close = weakref.finalize(self, _halt, self._stop, self._ctl, threads, self._pid)


def _work(worker: Any, ctl: int, tid: int, hold: tuple[object, ...]) -> None:
    worker(ctl, tid)
    del hold


def _halt(stop: Any, ctl: Block, threads: Sequence[threading.Thread], pid: int) -> None:
    if pid == os.getpid():
        stop(ctl.address)
        for thread in threads:
            thread.join()
