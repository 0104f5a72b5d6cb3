"""Load object code into this process and call it, as the runtime does: for tests of the CPU target."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np


class Loaded:
    """Object files in executable memory, linked as `graphc.runtime_native.Code` links those of an artifact, with or
    without the thread team; keep it alive while their functions are in use."""

    def __init__(self, objects: Sequence[bytes]):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = llvm.create_lljit_compiler(use_jit_link=True, suppress_errors=True)
        library = llvm.JITLibraryBuilder().add_current_process()
        for data in objects:
            library.add_object_img(data)
            for symbol, is_defined in elf_symbols(data)[1].items():
                if is_defined:
                    library.export_symbol(symbol)
        self._code = library.link(self._jit, "code")

    def address(self, symbol: str) -> int:
        return int(self._code[symbol])

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


def elf_symbols(data: bytes) -> tuple[int, dict[str, bool]]:
    """The machine number of a 64-bit little-endian ELF object, and whether each global symbol is defined in it."""
    assert data[:6] == b"\x7fELF\x02\x01"
    (machine,) = struct.unpack_from("<H", data, 18)
    (sections,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + k * size) for k in range(count)]
    symbols: dict[str, bool] = {}
    for _, kind, _, _, offset, length, link, _, _, entry in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = headers[link][4]
        for at in range(offset, offset + length, entry):
            name, info, _, section = struct.unpack_from("<IBBH", data, at)
            if info >> 4:  # not local
                end = data.index(b"\0", names + name)
                symbols[data[names + name : end].decode()] = section != 0
    return machine, symbols
