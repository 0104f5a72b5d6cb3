"""cuDNN, NVIDIA's library of convolutions with what follows per element, as far as programs use it.

Found beside the pip package ``nvidia-cudnn-cu13``, or where the system's loader looks. Numbers are those of the public
header ``cudnn_graph.h`` of cuDNN 9 (https://docs.nvidia.com/deeplearning/cudnn/backend/latest/). A convolution and what
follows it are a graph of operations; an *engine* runs that, with choices for its knobs; and a *plan* is an engine with
all that it needs on a device, code that the library compiled for it included. Plans go to artifacts as text, so that
nothing is compiled when a program is loaded. Calls go to the stream that is given, and can be captured as a CUDA graph.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_bool, c_char, c_double, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from graphc import runtime_cublaslt as cublaslt
from graphc.convolution import Convolution, Tensor
from graphc.errors import error
from graphc.runtime_cublaslt import Algorithm

__all__ = ["INSTALL", "SIGNATURES", "Convolved", "Descriptor", "Library", "available", "opened", "release", "version"]

INSTALL = "pip install nvidia-cudnn-cu13 installs it for CUDA 13; compiled with libraries='off', a program needs none"
NAME = "libcudnn.so.9"
NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12")  # with which it compiles some engines

SIGNATURES: Mapping[str, tuple[Any, ...]] = {  # all return a status
    "cudnnCreate": (POINTER(c_void_p),),
    "cudnnDestroy": (c_void_p,),
    "cudnnSetStream": (c_void_p, c_void_p),
    "cudnnBackendCreateDescriptor": (c_int, POINTER(c_void_p)),
    "cudnnBackendDestroyDescriptor": (c_void_p,),
    "cudnnBackendFinalize": (c_void_p,),
    "cudnnBackendSetAttribute": (c_void_p, c_int, c_int, c_int64, c_void_p),
    "cudnnBackendGetAttribute": (c_void_p, c_int, c_int, c_int64, POINTER(c_int64), c_void_p),
    "cudnnBackendExecute": (c_void_p, c_void_p, c_void_p),
}

# Kinds of descriptors.
POINTWISE, CONVOLUTION, ENGINE, ENGINE_CONFIG, HEURISTICS, PLAN = 0, 1, 2, 3, 4, 5
FORWARD, FILTER, POINTWISE_STEP, GRAPH, PACK, TENSOR = 10, 11, 13, 15, 16, 17

# Types of attributes, with their C types.
HANDLE, DATA_TYPE, BOOLEAN, INT64, FLOAT, DOUBLE, ADDRESS, CONVOLUTION_MODE = 0, 1, 2, 3, 4, 5, 6, 7
HEURISTICS_MODE, NOTE, POINTWISE_MODE, DESCRIPTOR, CHAR = 8, 11, 14, 15, 24
C_TYPES: Mapping[int, Any] = {
    HANDLE: c_void_p, DATA_TYPE: c_int, BOOLEAN: c_bool, INT64: c_int64, FLOAT: c_float, DOUBLE: c_double,
    ADDRESS: c_void_p, CONVOLUTION_MODE: c_int, HEURISTICS_MODE: c_int, NOTE: c_int, POINTWISE_MODE: c_int,
    DESCRIPTOR: c_void_p, CHAR: c_char,
}  # fmt: skip

TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 9}  # cudnnDataType_t
CROSS_CORRELATION, ADD, IDENTITY, RELU = 1, 0, 21, 100
MODES = (3, 2)  # what heuristics expect to be fast, then what is there for everything
# What engines may not do: round sums more coarsely, transform (Fourier, Winograd), change from run to run; with float32
# factors also round these, which tensor cores do.
REFUSED = frozenset({2, 3, 4, 5, 6, 7, 8})
TENSOR_CORES = frozenset({0, 1})
NOTES = 16  # more than there are
CONFIGS = 64  # engines with their knobs that heuristics are asked for; some of them are refused

# The addresses of a call, by number; the values between its operations have those from BETWEEN on.
NUMBERS = {"x": 1, "w": 2, "y": 3, "c": 4, "bias": 5}
BETWEEN = 10

STATUS = {1: "not initialised", 2: "a wrong parameter", 3: "not supported", 4: "an internal error", 5: "it did not run"}
UNSUPPORTED = 3  # thousands


@cache
def _loaded() -> ctypes.CDLL | None:
    """The library, after what it looks for by itself: it ends the process where cuBLASLt is missing."""
    if not cublaslt.available():
        return None
    for compiler in _packaged(NVRTC):
        with suppress(OSError):
            ctypes.CDLL(compiler)
    for name in (*_packaged((NAME,)), NAME):
        with suppress(OSError):
            return opened(name)
    return None


def opened(name: str) -> ctypes.CDLL:
    """The library in a file. Raises OSError."""
    found = ctypes.CDLL(name)
    for call, signature in SIGNATURES.items():
        getattr(found, call).argtypes = signature
    found.cudnnGetVersion.restype = c_size_t
    return found


def _packaged(names: Sequence[str]) -> list[str]:
    """Libraries in the folders of NVIDIA's pip packages."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(r) for r in (spec.submodule_search_locations or ())] if spec else []
    return [str(file) for name in names for root in roots for file in sorted(root.glob(f"*/lib/{name}"))]


def available() -> bool:
    """Whether this machine has the library."""
    return _loaded() is not None


def version() -> int:
    """Such as 91900 for 9.19.0; 0 where there is none."""
    found = _loaded()
    return 0 if found is None else int(found.cudnnGetVersion())


def release() -> str:
    """The version for people."""
    return f"{version() // 10000}.{version() // 100 % 100}.{version() % 100}"


class Refused(Exception):
    """The library has nothing for what it was asked."""


class Library:
    """The library on the device that is current when this is made. Raises GC0509."""

    def __init__(self) -> None:
        found = _loaded()
        if found is None:
            raise error("GC0509", "this program convolves with cuDNN, which is not installed here", hint=INSTALL)
        self._library, self.version = found, version()
        self.handle = self._handle()

    def _handle(self) -> c_void_p:
        handle = c_void_p()
        self.call("cudnnCreate", byref(handle))
        weakref.finalize(self, self._library.cudnnDestroy, handle)
        return handle

    def call(self, name: str, *args: object) -> None:
        """Raises `Refused` for what the library does not support, GC0509 for what it takes to be wrong."""
        status = int(getattr(self._library, name)(*args))
        if status // 1000 == UNSUPPORTED:
            raise Refused(f"{name}: status {status}")
        if status:
            why = f"{STATUS.get(status // 1000, 'a failure')} (status {status})"
            raise error("GC0509", f"{name} of cuDNN {release()}: {why}", hint="libraries='off' compiles without it")

    def made(self, kind: int) -> Descriptor:
        """An empty descriptor, which is gone when the result is."""
        address = c_void_p()
        self.call("cudnnBackendCreateDescriptor", kind, byref(address))
        return Descriptor(self, address, self._library.cudnnBackendDestroyDescriptor)

    def described(self, kind: int, *attributes: tuple[int, int, Sequence[Any]]) -> Descriptor:
        """A descriptor with attributes (number, type, values)."""
        made = self.made(kind)
        for number, of, values in attributes:
            made.set(number, of, values)
        self.call("cudnnBackendFinalize", made)
        return made


class Descriptor:
    """Something that the library made. It keeps what it was made from."""

    def __init__(self, library: Library, address: c_void_p, destroy: Callable[[c_void_p], int]):
        self.address = self._as_parameter_ = address
        self._library, self._kept = library, list[object]()
        weakref.finalize(self, destroy, address)

    def set(self, number: int, of: int, values: Sequence[Any]) -> None:
        """An attribute of a type; of CHAR, bytes."""
        self._kept.append(values)
        words = values if of == CHAR else [v.address.value if isinstance(v, Descriptor) else v for v in values]
        array = (C_TYPES[of] * len(words))(*words)
        self._library.call("cudnnBackendSetAttribute", self, number, of, len(words), array)

    def values(self, number: int, of: int, most: int) -> list[Any]:
        """Up to ``most`` values of an attribute."""
        array, count = (C_TYPES[of] * most)(), c_int64()
        self._library.call("cudnnBackendGetAttribute", self, number, of, most, byref(count), array)
        return list(array[: min(most, count.value)])

    def text(self, number: int) -> bytes:
        """An attribute of characters."""
        size = c_int64()
        self._library.call("cudnnBackendGetAttribute", self, number, CHAR, 0, byref(size), None)
        array = (c_char * size.value)()
        self._library.call("cudnnBackendGetAttribute", self, number, CHAR, size.value, byref(size), array)
        return array.raw[: size.value]

    def filled(self, number: int, kind: int, most: int) -> list[Descriptor]:
        """Up to ``most`` descriptors that an attribute has, of one kind."""
        empty = [self._library.made(kind) for _ in range(most)]
        array, count = (c_void_p * most)(*[d.address.value for d in empty]), c_int64()
        self._library.call("cudnnBackendGetAttribute", self, number, DESCRIPTOR, most, byref(count), array)
        return empty[: min(most, count.value)]


class Convolved:
    """A `Convolution`, ready to be called. ``library`` is kept alive."""

    def __init__(self, library: Library, convolution: Convolution):
        self.library, self.convolution = library, convolution
        self._graph = library.described(
            GRAPH, (800, HANDLE, [library.handle.value]), (801, DESCRIPTOR, list(self._steps()))
        )
        self._plans: dict[bytes, Descriptor] = {}

    def _steps(self) -> Iterator[Descriptor]:
        """The operations: the convolution, its sums between operations in their own type, then what follows."""
        conv, library = self.convolution, self.library
        x, w, y = (self._tensor(name) for name in "xwy")
        result = conv.tensor(conv.result)
        follow = [(ADD, name) for name in conv.operands[2:-1]] if conv.kind == "forward" else []
        follow += [(RELU, "")] if conv.activation else []
        if not follow and result.dtype != conv.x.dtype:
            follow = [(IDENTITY, "")]
        last = {"w": w, "y": y}[conv.result]
        values = [self._between(i, result) for i in range(len(follow))] + [last]
        window = library.described(
            CONVOLUTION, (100, DATA_TYPE, [TYPES[conv.sums]]), (101, CONVOLUTION_MODE, [CROSS_CORRELATION]),
            (106, INT64, [2]), (102, INT64, conv.dilations), (103, INT64, conv.steps), (104, INT64, [0, 0]),
            (105, INT64, [0, 0]),
        )  # fmt: skip
        w, y = (values[0], y) if conv.kind == "filter" else (w, values[0])
        kind, first = (FILTER, 712) if conv.kind == "filter" else (FORWARD, 700)
        yield library.described(
            kind, (first, FLOAT, [1.0]), (first + 1, FLOAT, [0.0]), (first + 2, DESCRIPTOR, [window]),
            *((first + 3 + i, DESCRIPTOR, [t]) for i, t in enumerate((w, x, y))),
        )  # fmt: skip
        for i, (mode, name) in enumerate(follow):
            what = library.described(POINTWISE, (0, POINTWISE_MODE, [mode]), (1, DATA_TYPE, [TYPES[conv.sums]]))
            second = [(752, DESCRIPTOR, [self._tensor(name)])] if name else []
            yield library.described(
                POINTWISE_STEP, (750, DESCRIPTOR, [what]), (751, DESCRIPTOR, [values[i]]), *second,
                (753, DESCRIPTOR, [values[i + 1]]),
            )  # fmt: skip

    def _tensor(self, name: str) -> Descriptor:
        return self._described(self.convolution.tensor(name), NUMBERS[name])

    def _between(self, number: int, like: Tensor) -> Descriptor:
        """A value that is never in memory."""
        sums = Tensor(self.convolution.sums, like.shape, like.strides, 16)
        return self._described(sums, BETWEEN + number, (907, BOOLEAN, [True]))

    def _described(self, t: Tensor, number: int, *more: tuple[int, int, Sequence[Any]]) -> Descriptor:
        return self.library.described(
            TENSOR, (906, INT64, [number]), (901, DATA_TYPE, [TYPES[t.dtype]]), (900, INT64, [t.align]),
            (902, INT64, t.shape), (903, INT64, t.strides), *more,
        )  # fmt: skip

    def algorithms(self, most: int, workspace_bytes: int) -> list[Algorithm]:
        """Up to ``most`` plans that need no more memory, what the library expects to be fastest first; none where it
        has nothing for such a convolution. What has to be compiled for one takes seconds."""
        found: list[Algorithm] = []
        for config in self._configs():
            try:
                plan = self._planned((401, DESCRIPTOR, [config]))
            except Refused:
                continue
            (needed,) = plan.values(402, INT64, 1)
            if needed <= workspace_bytes:
                made = Algorithm(plan.text(405).rstrip(b"\0"), needed)
                self._plans[made.code] = plan
                found.append(made)
            if len(found) == most:
                break
        return found

    def _configs(self) -> Iterator[Descriptor]:
        """Engines with choices for their knobs, but for those that round or transform."""
        refused = REFUSED | (TENSOR_CORES if self.convolution.x.dtype == "float32" else frozenset())
        for mode in MODES:
            attributes = ((201, DESCRIPTOR, [self._graph]), (200, HEURISTICS_MODE, [mode]))
            try:
                heuristics = self.library.described(HEURISTICS, *attributes)
                configs = heuristics.filled(202, ENGINE_CONFIG, CONFIGS)
            except Refused:
                continue
            for config in configs:
                (engine,) = config.filled(300, ENGINE, 1)
                if refused.isdisjoint(engine.values(1303, NOTE, NOTES)):
                    yield config

    def _planned(self, what: tuple[int, int, Sequence[Any]]) -> Descriptor:
        return self.library.described(PLAN, (400, HANDLE, [self.library.handle.value]), what)

    def accepts(self, algorithm: Algorithm) -> bool:
        """Whether this library, on this device, runs the plan in no more memory."""
        try:
            plan = self._planned((405, CHAR, algorithm.code))
        except Refused:
            return False
        self._plans[algorithm.code] = plan
        return bool(plan.values(402, INT64, 1)[0] <= algorithm.workspace_bytes)

    def __call__(self, algorithm: Algorithm, addresses: Mapping[str, int], workspace: int, stream: int) -> None:
        """Put the convolution on a stream. ``addresses`` are those of `Convolution.operands`."""
        pack = self.library.described(
            PACK, (1000, INT64, [NUMBERS[name] for name in addresses]), (1001, ADDRESS, list(addresses.values())),
            (1003, ADDRESS, [workspace]),
        )  # fmt: skip
        self.library.call("cudnnSetStream", self.library.handle, stream)
        self.library.call("cudnnBackendExecute", self.library.handle, self._plans[algorithm.code], pack)
