"""cuBLASLt without a GPU: the library of ``cublaslt_stub.cpp`` on the memory and the streams of the fake of CuPy.

The stub checks what a call says; here is what it touches: memory that is allocated and, where it is read, written. A
product is made when its stream comes to it, once for each time that a graph is launched.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import fake_cupy
import numpy as np
import shim

from graphc import runtime_cublaslt
from graphc.config import settings

SOURCE = Path(__file__).parent / "cublaslt_stub.cpp"
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror")
OPERANDS = ("a", "b", "c", "d", "bias", "workspace")
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_void_p)


class Blas:
    """The library, for tests: ``calls`` counts the products that were put on streams."""

    def __init__(self, path: Path):
        self.path, self.calls = path, 0
        self._library = library = ctypes.CDLL(str(path))
        library.stub_faults.restype = ctypes.c_char_p
        library.stub_alive.restype = ctypes.c_int64
        self._callback = CALLBACK(self._called)
        library.stub_on_call(self._callback)

    @property
    def faults(self) -> list[str]:
        """What calls were refused for, so far."""
        return str(self._library.stub_faults().decode()).splitlines()

    def forget(self) -> None:
        self._library.stub_forget()

    @property
    def alive(self) -> int:
        """Handles and descriptors that nobody has destroyed."""
        return int(self._library.stub_alive())

    def _called(self, number: int, stream: int) -> int:
        self.calls += 1
        try:
            (found,) = (s for s in fake_cupy.Stream.all if s.ptr == stream)
            found.put(lambda: self._run(number))
        except (ValueError, fake_cupy.Misuse):
            return 1
        return 0

    def _run(self, number: int) -> None:
        rows = np.zeros((len(OPERANDS), 6), np.int64)
        self._library.stub_regions(ctypes.c_int64(number), ctypes.c_void_p(rows.ctypes.data))
        regions = dict(zip(OPERANDS, rows.tolist(), strict=True))
        for name in ("a", "b", "c", "bias"):
            for part in touched(*regions[name]):
                fake_cupy.need(bool(part.all()), f"a product reads bytes of {name} that nothing has written")
        self._library.stub_run(ctypes.c_int64(number))
        for part in (*touched(*regions["d"]), *touched(*regions["workspace"])):
            part[:] = 1


def touched(address: int, nbytes: int, ld: int, columns: int, step: int, batch: int) -> Iterator[np.ndarray]:
    """For each column of a matrix, whether its bytes are written. Raises Misuse where nothing is allocated."""
    for number in range(batch if nbytes else 0):
        for column in range(columns):
            memory, offset = fake_cupy.Memory.at(address + number * step + column * ld, nbytes)
            yield memory.written(offset, nbytes)


@cache
def built() -> Path:
    """The library, compiled once for each text."""
    stamp = shim._digest([*FLAGS, SOURCE.read_text()])
    library = settings().cache / "cuda-shim" / f"cublaslt-{stamp}" / "libcublasLt.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        part = f"{os.getpid()}.part"
        shim._run(["g++", *FLAGS, str(SOURCE), "-o", part], library.parent)
        (library.parent / part).rename(library)
    return library


@cache
def _blas() -> Blas:
    return Blas(built())


@contextmanager
def installed() -> Iterator[Blas]:
    """graphc finds the stub as cuBLASLt. The fake of CuPy has to be installed, too."""
    blas, library, kept = _blas(), runtime_cublaslt.opened(str(built())), runtime_cublaslt._loaded
    blas.forget()
    blas.calls = 0
    vars(runtime_cublaslt)["_loaded"] = lambda: library
    try:
        yield blas
    finally:
        vars(runtime_cublaslt)["_loaded"] = kept
