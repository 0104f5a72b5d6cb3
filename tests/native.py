"""Load object code into this process and call it, as the runtime does: for tests of the CPU target."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np


class Loaded:
    """Object files in executable memory; keep it alive while their functions are in use."""

    def __init__(self, objects: Sequence[bytes]):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        for data in objects:
            self.engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        self.engine.finalize_object()

    def address(self, symbol: str) -> int:
        found: int = self.engine.get_function_address(symbol)
        assert found, f"no function {symbol}"
        return found

    def function(self, symbol: str, arity: int) -> Callable[..., None]:
        """``void symbol(int64, …)``."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arity)(self.address(symbol))

    def run(self, symbol: str, args: Sequence[np.ndarray | int], nthreads: int = 1, scratch_bytes: int = 0) -> None:
        """Run a kernel as each thread in turn; arrays are passed by address."""
        words = np.array([a if isinstance(a, int) else a.ctypes.data for a in args], np.int64)
        scratch = aligned(scratch_bytes, np.uint8)
        for tid in range(nthreads):
            self.function(symbol, 4)(words.ctypes.data, scratch.ctypes.data, tid, nthreads)


def load_objects(objects: Sequence[bytes]) -> Loaded:
    return Loaded(objects)


def aligned(shape: Any, dtype: Any) -> np.ndarray:
    """Zeros on a 64-byte boundary."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
