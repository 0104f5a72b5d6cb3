"""A strict stand-in for the parts of CuPy that programs on a GPU use, with kernels run by the shim (`shim.py`).

As on a device, nothing that is put on a stream has happened until somebody waits for it: streams are queues, and work
is done when a stream or an event is synchronised, so that a wait that is missing shows. Every call checks its
arguments, and what would be an error or a race on a device is `Misuse`: asynchronous copies from memory that is not
pinned, an allocation while launches are captured, addresses that nothing is allocated at (any more), and reads of bytes
that nothing has written. What is not here cannot be called.
"""

from __future__ import annotations

import ctypes
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
from shim import SHARED_LIMIT, Buffer, Place, compile_kernels

from graphc import runtime_cublaslt, runtime_cudnn
from graphc.kernels.cuda import nvrtc

BUILD = "checked"  # kernels say what they write, and are stopped where they read what nobody has written
CAPACITY = 1 << 30  # bytes of the device
SIGNATURE = re.compile(r"__global__ void __launch_bounds__\((\d+)\) (\w+)\(([^)]*)\)")


class Misuse(AssertionError):
    """A call that a device would not survive, or not always."""


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where CUDA refuses."""


def need(holds: bool, what: str) -> None:
    if not holds:
        raise Misuse(what)


# Memory --------------------------------------------------------------------------------------------------------------


class OutOfMemoryError(MemoryError):
    pass


class Memory:
    """Device memory: the shim knows of each byte whether it was written."""

    live: ClassVar[WeakValueDictionary[int, Memory]] = WeakValueDictionary()
    graveyard: ClassVar[list[Buffer]] = []  # freed memory stays, so that no address is used twice

    def __init__(self, size: int):
        need(type(size) is int and size > 0, f"an allocation of {size!r} bytes")
        need(not Stream.captures(), "an allocation while launches are captured")
        if sum(m.size for m in list(Memory.live.values())) + size > CAPACITY:
            raise OutOfMemoryError(f"Out of memory allocating {size} bytes")
        self.buffer, self.size = Buffer(((size,), np.uint8), f"memory of {size} bytes"), size
        Memory.live[self.buffer.address] = self
        Memory.graveyard.append(self.buffer)

    @classmethod
    def at(cls, address: int, nbytes: int = 1) -> tuple[Memory, int]:
        """The memory that holds so many bytes from an address on, and where in it."""
        for memory in list(cls.live.values()):
            offset = address - memory.buffer.address
            if offset >= 0 and offset + nbytes <= memory.size:
                return memory, offset
        raise Misuse(f"{nbytes} bytes at {address:#x}, where nothing is allocated")

    def written(self, start: int, nbytes: int) -> np.ndarray:
        return self.buffer.cells["wrote"][start : start + nbytes]


class MemoryPointer:
    def __init__(self, mem: Memory, offset: int):
        self.mem, self.offset = mem, offset

    @property
    def ptr(self) -> int:
        return self.mem.buffer.address + self.offset

    def __add__(self, offset: int) -> MemoryPointer:
        need(isinstance(offset, int) and 0 <= self.offset + offset <= self.mem.size, f"{offset!r} bytes further")
        return MemoryPointer(self.mem, self.offset + offset)

    def copy_from_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        source, start = Pinned.at(mem, size), self._inside(size)

        def copy() -> None:
            self.mem.buffer.bytes[start : start + size] = source
            self.mem.written(start, size)[:] = 1

        _given(stream).put(copy)

    def copy_to_host_async(self, mem: int, size: int, stream: Stream | None = None) -> None:
        target, start = Pinned.at(mem, size), self._inside(size)

        def copy() -> None:
            need(bool(self.mem.written(start, size).all()), "a copy to the host of bytes that nothing has written")
            target[:] = self.mem.buffer.bytes[start : start + size]

        _given(stream).put(copy)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Stream | None = None) -> None:
        start, source = self._inside(size), src._inside(size)

        def copy() -> None:
            self.mem.buffer.bytes[start : start + size] = src.mem.buffer.bytes[source : source + size]
            self.mem.written(start, size)[:] = src.mem.written(source, size)

        _given(stream).put(copy)

    def memset_async(self, value: int, size: int, stream: Stream | None = None) -> None:
        need(type(value) is int and 0 <= value < 256, f"a byte {value!r}")
        start = self._inside(size)

        def fill() -> None:
            self.mem.buffer.bytes[start : start + size] = value
            self.mem.written(start, size)[:] = 1
            self.mem.buffer.flags = True  # words that any thread may set

        _given(stream).put(fill)

    def _inside(self, size: int) -> int:
        need(type(size) is int and size > 0 and self.offset + size <= self.mem.size, f"{size!r} bytes, too many")
        return self.offset


class Pinned(ctypes.Array):  # type: ignore[type-arg]
    """Host memory that asynchronous copies may use; kept for ever."""

    _type_, _length_ = ctypes.c_ubyte, 0
    blocks: ClassVar[list[np.ndarray]] = []

    @classmethod
    def at(cls, address: int, size: int) -> np.ndarray:
        need(type(address) is int and type(size) is int and size > 0, f"a copy of {size!r} bytes at {address!r}")
        for block in cls.blocks:
            start = address - block.ctypes.data
            if start >= 0 and start + size <= len(block):
                return block[start : start + size]
        raise Misuse("an asynchronous copy from or to memory that is not pinned")


def alloc(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size), 0)


def alloc_pinned_memory(size: int) -> Any:
    need(type(size) is int and size > 0, f"a pinned allocation of {size!r} bytes")
    need(not Stream.captures(), "an allocation while launches are captured")
    memory = (ctypes.c_ubyte * size)()
    block = np.frombuffer(memory, np.uint8)
    block[:] = 0xA5
    Pinned.blocks.append(block)
    return memory


# Streams -------------------------------------------------------------------------------------------------------------


class Stream:
    """A queue of what is still to be done."""

    current: ClassVar[list[Stream]] = []
    all: ClassVar[list[Stream]] = []

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None):
        need(not ptds and priority is None and null != non_blocking, "a kind of stream that programs do not use")
        self.queue: list[Callable[[], None]] = []
        self.done = 0  # of all that was ever put here
        self.recording: list[Callable[[], None]] | None = None
        self.null = null
        Stream.all.append(self)

    @property
    def ptr(self) -> int:
        return 0 if self.null else id(self)

    def __enter__(self) -> Stream:
        Stream.current.append(self)
        return self

    def __exit__(self, *problem: object) -> None:
        need(Stream.current.pop() is self, "streams left in another order than entered")

    @classmethod
    def captures(cls) -> bool:
        return any(stream.recording is not None for stream in cls.all)

    @classmethod
    def may_wait(cls) -> None:
        if cls.captures():
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: not permitted when a stream is capturing")

    def put(self, work: Callable[[], None]) -> None:
        if self.recording is not None:
            self.recording.append(work)
        else:
            need(not Stream.captures(), "work on a stream while another one is captured")
            self.queue.append(work)

    def run(self, upto: int) -> None:
        """Do what was put here, up to number ``upto`` of all."""
        while self.done < upto:
            self.done += 1
            self.queue.pop(0)()

    @property
    def count(self) -> int:
        return self.done + len(self.queue)

    def synchronize(self) -> None:
        Stream.may_wait()
        self.run(self.count)

    def wait_event(self, event: Event) -> None:
        need(isinstance(event, Event) and self.recording is None, "a wait that is not for an event, or is captured")
        if event.stream is not None:  # one that was never recorded holds nobody up
            other, number = event.stream, event.number  # as they are now
            self.put(lambda: other.run(number))

    def begin_capture(self, mode: int | None = None) -> None:
        need(not self.null and mode is None, "a capture of the null stream")
        need(not Stream.captures(), "a capture within another")
        self.recording = []

    def end_capture(self) -> Graph:
        need(self.recording is not None, "the end of a capture that was not begun")
        graph, self.recording = Graph(self.recording or []), None
        return graph


NULL = Stream(null=True)


def _given(stream: Stream | None) -> Stream:
    need(isinstance(stream, Stream), "work without a stream, which would go to the current one")
    assert stream is not None
    return stream


def get_current_stream() -> Stream:
    return Stream.current[-1] if Stream.current else NULL


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        need(not block and not interprocess, "a kind of event that programs do not use")
        self.timing = not disable_timing
        self.stream: Stream | None = None
        self.number = 0

    def record(self, stream: Stream | None = None) -> None:
        stream = _given(stream)
        need(stream.recording is None, "an event recorded while launches are captured")
        self.stream, self.number = stream, stream.count

    def synchronize(self) -> None:
        Stream.may_wait()
        if self.stream is not None:
            self.stream.run(self.number)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    for event in (start_event, end_event):
        need(event.timing and event.stream is not None, "the time of an event that keeps none")
        assert event.stream is not None
        need(event.stream.done >= event.number, "the time of an event that has not come")
    return 1e-3


class Graph:
    def __init__(self, work: list[Callable[[], None]]):
        self.work = work

    def launch(self, stream: Stream | None = None) -> None:
        for work in self.work:
            _given(stream).put(work)


# Kernels -------------------------------------------------------------------------------------------------------------


class Module:
    """A "cubin" here is the source itself. All that are loaded are compiled together when the first one runs."""

    waiting: ClassVar[dict[str, str]] = {}
    compiled: ClassVar[dict[str, Any]] = {}

    def load(self, cubin: bytes) -> None:
        need(type(cubin) is bytes, "a cubin that is no bytes")
        self.text = cubin.decode()
        plain = re.sub(r"//[^\n]*", "", self.text)
        self.functions = {name: (int(threads), params.split(",")) for threads, name, params in SIGNATURE.findall(plain)}

    def get_function(self, name: str) -> Function:
        if name not in self.functions:
            raise CUDARuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}")
        if name not in Module.compiled:
            Module.waiting[name] = self.text
        return Function(name, *self.functions[name])

    @classmethod
    def kernel(cls, name: str) -> Any:
        if cls.waiting:
            cls.compiled |= compile_kernels({f"{symbol}.cu": text for symbol, text in cls.waiting.items()}, BUILD)
            cls.waiting.clear()
        return cls.compiled[name]


class Function:
    functions: ClassVar[dict[int, Function]] = {}

    def __init__(self, name: str, threads: int, params: list[str]):
        self.name, self.threads, self.params = name, threads, params
        self.shared_limit = 48 << 10
        self.ptr = 1 + len(Function.functions)
        self.loaded = False
        Function.functions[self.ptr] = self

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int, stream: Stream
    ) -> None:
        need(self.loaded, "a launch of code that is loaded only now, maybe while launches are captured")
        for extent in (grid, block):
            need(isinstance(extent, tuple) and all(type(n) is int and n >= 1 for n in extent), f"an extent {extent!r}")
        need(grid[0] < 1 << 31 and grid[1:] == block[1:] == (1, 1) and block[0] == self.threads, "another extent")
        need(type(shared_mem) is int and 0 <= shared_mem <= self.shared_limit, f"{shared_mem} bytes of shared memory")
        need(isinstance(args, tuple) and len(args) == len(self.params), f"{len(args)} arguments for {self.params}")
        need(all(type(a) is np.int64 for a in args), "arguments that are not 8 bytes each")
        _given(stream).put(lambda: self.run(grid, block, args, shared_mem))

    def run(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int) -> None:
        words: list[Any] = []
        for param, word in zip(self.params, args, strict=True):
            words.append(Place(*_buffer(int(word))) if "*" in param else word)
        Module.kernel(self.name)(grid, block, *words, shared_bytes=shared_mem)


def _buffer(address: int) -> tuple[Buffer, int]:
    memory, offset = Memory.at(address)
    return memory.buffer, offset


# Arrays --------------------------------------------------------------------------------------------------------------


class ndarray:
    """A contiguous array on the device."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, memptr: MemoryPointer | None = None):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.data = alloc(max(self.nbytes, 1)) if memptr is None else memptr
        need(self.data.offset + self.nbytes <= self.data.mem.size, "an array that leaves its memory")
        self.device = Device()

    def get(self) -> np.ndarray:
        """The values, when all is done that the current stream has to do or waits for."""
        get_current_stream().synchronize()
        start = self.data.offset
        need(bool(self.data.mem.written(start, self.nbytes).all()), "an array that nothing has written is read")
        return self.data.mem.buffer.bytes[start : start + self.nbytes].view(self.dtype).reshape(self.shape).copy()


def array(values: np.ndarray) -> ndarray:
    """For tests: an array whose values come by way of the current stream."""
    made, stream = ndarray(values.shape, values.dtype), get_current_stream()
    source = np.ascontiguousarray(values).reshape(-1).view(np.uint8).copy()

    def copy() -> None:
        made.data.mem.buffer.bytes[: len(source)] = source
        made.data.mem.written(0, len(source))[:] = 1

    stream.put(copy)
    return made


def ascontiguousarray(a: ndarray) -> ndarray:
    need(isinstance(a, ndarray), "no array of the device")
    return a


def asarray(a: Any) -> ndarray:
    face = a.__cuda_array_interface__
    memory, offset = Memory.at(face["data"][0])
    return ndarray(face["shape"], face["typestr"], MemoryPointer(memory, offset))


def from_dlpack(array: Any) -> ndarray:
    need(not get_current_stream().null, "a tensor that is made ready for the null stream")
    found = array.__dlpack__(stream=get_current_stream().ptr)
    need(isinstance(found, ndarray), "a capsule of the device")
    return found  # type: ignore[no-any-return]


# The device ----------------------------------------------------------------------------------------------------------


class Device:
    capability = "90"
    number = 0

    def __init__(self, device: int | None = None):
        self.id = Device.number if device is None else device

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    @property
    def compute_capability(self) -> str:
        return self.capability

    @property
    def mem_info(self) -> tuple[int, int]:
        return CAPACITY - sum(m.size for m in list(Memory.live.values())), CAPACITY


def funcSetAttribute(f: int, attribute: int, value: int) -> None:
    need(attribute == 8 and 0 < value <= SHARED_LIMIT, f"attribute {attribute} = {value}")
    Function.functions[f].shared_limit = value


def funcGetAttribute(attribute: int, f: int) -> int:
    need(attribute == 4, f"attribute {attribute}")
    Function.functions[f].loaded = True
    return 32


def getDeviceCount() -> int:
    return 1


def getDeviceProperties(device: int) -> dict[str, Any]:
    return {"name": b"Fake GPU", "major": 9, "minor": 0, "totalGlobalMem": CAPACITY, "multiProcessorCount": 4}


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


def module() -> types.ModuleType:
    """The module ``cupy``."""
    top, cuda = types.ModuleType("cupy"), types.ModuleType("cupy.cuda")
    here = globals()
    for name in ("ndarray", "ascontiguousarray", "asarray", "from_dlpack"):
        setattr(top, name, here[name])
    for name in ("Device", "Event", "Module", "Stream", "alloc", "alloc_pinned_memory", "get_current_stream"):
        setattr(cuda, name, here[name])
    cuda.get_elapsed_time = get_elapsed_time  # type: ignore[attr-defined]
    parts = {
        "runtime": ("getDeviceCount", "getDeviceProperties", "driverGetVersion", "runtimeGetVersion"),
        "driver": ("funcSetAttribute", "funcGetAttribute"),
        "memory": ("OutOfMemoryError",),
    }
    for part, names in parts.items():
        inner = types.SimpleNamespace(**{name: here[name] for name in names})
        setattr(cuda, part, inner)
    cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # type: ignore[attr-defined]
    cuda.driver.CU_FUNC_ATTRIBUTE_NUM_REGS = 4  # type: ignore[attr-defined]
    top.cuda, top.__version__ = cuda, "14.2.0"  # type: ignore[attr-defined]
    top.__spec__ = types.SimpleNamespace(name="cupy")  # type: ignore[assignment]
    return top


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """``import cupy`` finds the fake; kernels of target cuda are "compiled" by keeping their source. There are
    no libraries: real ones would look for a GPU."""
    was = sys.modules.get("cupy")
    kept = {name: getattr(nvrtc, name) for name in ("available", "version", "compile_cubin")}
    fakes = {"available": lambda: True, "version": lambda: (0, 0), "compile_cubin": lambda s, *_: (s.encode(), "")}
    sys.modules["cupy"] = fake = module()
    libraries = {library: library._loaded for library in (runtime_cublaslt, runtime_cudnn)}
    vars(nvrtc).update(fakes)
    for library in libraries:
        vars(library)["_loaded"] = lambda: None
    try:
        yield fake
    finally:
        vars(nvrtc).update(kept)
        for library, loaded in libraries.items():
            vars(library)["_loaded"] = loaded
        del sys.modules["cupy"]
        if was is not None:
            sys.modules["cupy"] = was
