"""cuBLASLt, NVIDIA's library of matrix products with what follows per element, as far as programs use it.

Found beside the pip package ``nvidia-cublas``, or where the system's loader looks. Numbers are those of the public
header ``cublasLt.h`` of CUDA 12 and 13 (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api). Nothing here
allocates memory of the device, and calls go to the stream that is given, so that they can be captured as a CUDA graph.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Callable, Mapping
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graphc.errors import error
from graphc.gemm import ALGORITHM_BYTES, BIAS_ALIGN, Gemm, Matrix

__all__ = ["INSTALL", "Algorithm", "Library", "Product", "available", "opened", "release", "version"]

INSTALL = "pip install nvidia-cublas installs it for CUDA 13; compiled with libraries='off', a program needs none"
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType
SUMS = {"float32": (68, TYPES["float32"], c_float), "float64": (70, TYPES["float64"], ctypes.c_double)}
ACTIVATION = {"": 0, "relu": 2, "gelu": 32}  # with those below, bits of cublasLtEpilogue_t
BIAS, NOTHING = 4, 1

Attribute = tuple[int, Any]  # its number, and the type of its value
TURN_A, TURN_B, EPILOGUE, BIAS_POINTER = (3, c_int32), (4, c_int32), (7, c_uint32), (8, c_void_p)  # of a product
BATCH, STEP = (5, c_int32), (6, c_int64)  # of a matrix
WORKSPACE = (1, c_uint64)  # of a preference, as are those of the alignment of a, b, c and d
ALIGNMENTS = ((5, c_uint32), (6, c_uint32), (7, c_uint32), (8, c_uint32))

STATUS = {
    1: "not initialised", 3: "out of memory", 7: "an invalid value", 8: "not for this GPU", 11: "a mapping failed",
    13: "it did not run", 14: "an internal error", 15: "not supported", 16: "no licence",
}  # fmt: skip
UNSUPPORTED = 15

# What the calls take; handles and descriptors are pointers. All return a status.
SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtDestroy": (c_void_p,),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatrixLayoutSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (*(c_void_p,) * 7, c_int, c_void_p, POINTER(c_int)),
    "cublasLtMatmulAlgoCheck": (*(c_void_p,) * 8,),
    "cublasLtMatmul": (*(c_void_p,) * 14, c_size_t, c_void_p),
}


class _Found(Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_ubyte * ALGORITHM_BYTES),
        ("workspace_bytes", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to make one product: what the library calls it, and the memory that it needs."""

    code: bytes
    workspace_bytes: int


@cache
def _loaded() -> ctypes.CDLL | None:
    for name in (*_packaged(), *NAMES):
        try:
            return opened(str(name))
        except OSError:
            continue
    return None


def opened(name: str) -> ctypes.CDLL:
    """The library in a file. Raises OSError."""
    found = ctypes.CDLL(name)
    for call, signature in SIGNATURES.items():
        getattr(found, call).argtypes = signature
    found.cublasLtGetVersion.restype = c_size_t
    return found


def _packaged() -> list[Path]:
    """The library in the folders of NVIDIA's pip packages, newest first."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(r) for r in (spec.submodule_search_locations or ())] if spec else []
    return [file for name in NAMES for root in roots for file in sorted(root.glob(f"*/lib/{name}"))]


def available() -> bool:
    """Whether this machine has the library."""
    return _loaded() is not None


def version() -> int:
    """Such as 130100 for 13.1.0; 0 where there is none."""
    found = _loaded()
    return 0 if found is None else int(found.cublasLtGetVersion())


def release() -> str:
    """The version for people."""
    return f"{version() // 10000}.{version() // 100 % 100}.{version() % 100}"


class Library:
    """The library on the device that is current when this is made. Raises GC0509."""

    def __init__(self) -> None:
        found = _loaded()
        if found is None:
            raise error("GC0509", "this program multiplies with cuBLASLt, which is not installed here", hint=INSTALL)
        self._library, self.version = found, version()
        self.handle = self.made("cublasLtCreate", "cublasLtDestroy")

    def call(self, name: str, *args: object) -> None:
        """Raises GC0509 where the library refuses."""
        self.checked(name, getattr(self._library, name)(*args))

    def status(self, name: str, *args: object) -> int:
        return int(getattr(self._library, name)(*args))

    def checked(self, name: str, status: int) -> None:
        if status:
            why = STATUS.get(status, f"status {status}")
            raise error("GC0509", f"{name} of cuBLASLt {release()}: {why}", hint="libraries='off' compiles without it")

    def made(self, create: str, destroy: str, *args: object) -> Handle:
        """A thing of the library, which is gone when the result is."""
        address = c_void_p()
        self.call(create, byref(address), *args)
        return Handle(address, getattr(self._library, destroy))


class Handle:
    """Something that the library made."""

    def __init__(self, address: c_void_p, destroy: Callable[[c_void_p], int]):
        self.address = self._as_parameter_ = address
        weakref.finalize(self, destroy, address)


class Product:
    """A `Gemm`, ready to be called. ``library`` is kept alive."""

    def __init__(self, library: Library, gemm: Gemm):
        self.library, self.gemm = library, gemm
        sums, scale, number = SUMS[gemm.sums]
        self._alpha, self._beta = number(gemm.alpha), number(gemm.adds)
        self._what = library.made("cublasLtMatmulDescCreate", "cublasLtMatmulDescDestroy", sums, scale)
        epilogue = ACTIVATION[gemm.activation] | (BIAS if gemm.bias else 0)
        for attribute, value in ((TURN_A, gemm.turn_a), (TURN_B, gemm.turn_b), (EPILOGUE, epilogue or NOTHING)):
            self._describe(attribute, int(value))
        if gemm.bias:  # before there is one, its alignment is looked at
            self._describe(BIAS_POINTER, BIAS_ALIGN)
        self._a, self._b, self._d = map(self._layout, gemm.matrices)
        self._layouts = (self._a, self._b, self._d, self._d)  # of a, b, c and d

    def _describe(self, attribute: Attribute, value: int) -> None:
        _set(self.library, "cublasLtMatmulDescSetAttribute", self._what, attribute, value)

    def _layout(self, matrix: Matrix) -> Handle:
        shape = (TYPES[matrix.dtype], matrix.rows, matrix.columns, matrix.ld)
        made = self.library.made("cublasLtMatrixLayoutCreate", "cublasLtMatrixLayoutDestroy", *shape)
        for attribute, value in ((BATCH, self.gemm.batch), (STEP, matrix.step)) if self.gemm.batch > 1 else ():
            _set(self.library, "cublasLtMatrixLayoutSetAttribute", made, attribute, value)
        return made

    def algorithms(self, most: int, workspace_bytes: int) -> list[Algorithm]:
        """Up to ``most`` that need no more memory, what the library expects to be fastest first; none where it has
        nothing for such a product."""
        library = self.library
        preference = library.made("cublasLtMatmulPreferenceCreate", "cublasLtMatmulPreferenceDestroy")
        a, b, d = (matrix.align for matrix in self.gemm.matrices)
        for attribute, value in ((WORKSPACE, workspace_bytes), *zip(ALIGNMENTS, (a, b, d, d), strict=True)):
            _set(library, "cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
        found, count = (_Found * most)(), c_int()
        name = "cublasLtMatmulAlgoGetHeuristic"
        status = library.status(name, library.handle, self._what, *self._layouts, preference, most, found, byref(count))
        if status == UNSUPPORTED:
            return []
        library.checked(name, status)
        good = [f for f in found[: count.value] if f.status == 0]
        return [Algorithm(bytes(f.algorithm), f.workspace_bytes) for f in good]

    def accepts(self, algorithm: Algorithm) -> bool:
        """Whether this library, on this device, makes the product so in no more memory."""
        result = _Found()
        status = self.library.status(
            "cublasLtMatmulAlgoCheck", self.library.handle, self._what, *self._layouts, algorithm.code, byref(result)
        )
        return status == 0 and result.status == 0 and result.workspace_bytes <= algorithm.workspace_bytes

    def __call__(self, algorithm: Algorithm, addresses: Mapping[str, int], workspace: int, stream: int) -> None:
        """Put the product on a stream. ``addresses`` are those of `Gemm.operands`."""
        a, b, d = (addresses[name] for name in "abd")
        if self.gemm.bias:
            self._describe(BIAS_POINTER, addresses["bias"])
        self.library.call(
            "cublasLtMatmul", self.library.handle, self._what,
            byref(self._alpha), a, self._a, b, self._b, byref(self._beta), addresses.get("c", d), self._d, d, self._d,
            algorithm.code, workspace, algorithm.workspace_bytes, stream,
        )  # fmt: skip


def _set(library: Library, call: str, thing: Handle, attribute: Attribute, value: int) -> None:
    number, kind = attribute
    word = kind(value)
    library.call(call, thing, number, byref(word), ctypes.sizeof(word))
