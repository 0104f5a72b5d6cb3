"""The GPU as programs use it, through CuPy: its memory, kernels and streams, and what is missing where there is none.

CuPy is imported when a device is opened, so that artifacts for a GPU can be made, read and looked at without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from graphc import runtime_cublaslt as cublaslt
from graphc import runtime_cudnn as cudnn
from graphc.artifact import Artifact
from graphc.artifact_records import Build, GridRecord
from graphc.errors import error

__all__ = ["Device", "DeviceBlock", "Kernel", "architecture_of", "fitting", "found", "missing", "unfit_gpu"]

PACKAGE = "cupy"
INSTALL = "pip install 'graphc[cuda]' installs CuPy for CUDA 13; nvidia-smi shows the driver and the GPUs that it finds"
_CHUNK = 1 << 25  # bytes of pinned memory through which state goes
_DEFAULT_SHARED = 48 * 1024  # bytes of dynamic shared memory that a kernel may have without being asked
_ARCHITECTURE = re.compile(r"sm_([0-9]+)([0-9])([af]?)")


def missing() -> str:
    """Why no GPU can be used here; empty if one can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "CuPy is not installed"
    try:
        cupy = importlib.import_module(PACKAGE)
        count = cupy.cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError) as problem:  # CUDARuntimeError is a RuntimeError
        return f"CuPy finds no GPU ({str(problem).strip().splitlines()[0]})"
    return "" if count else "CuPy finds no GPU"


def found() -> dict[str, str]:
    """For people: the GPUs that CuPy finds, its version, and the versions of CUDA; or what is missing."""
    if why := missing():
        return {"cuda": f"{why}; {INSTALL}"}
    cupy = importlib.import_module(PACKAGE)
    cuda = cupy.cuda.runtime
    gpus = [cuda.getDeviceProperties(i) for i in range(cuda.getDeviceCount())]
    described = [
        f"{g['name'].decode()} (sm_{g['major']}{g['minor']}, {g['totalGlobalMem'] / 2**30:.0f} GiB,"
        f" {g['multiProcessorCount']} multiprocessors)"
        for g in gpus
    ]
    versions = {"driver": cuda.driverGetVersion(), "runtime": cuda.runtimeGetVersion()}
    texts = [f"{name} {v // 1000}.{v % 1000 // 10}" for name, v in versions.items()]
    libraries = {"cublaslt": cublaslt, "cudnn": cudnn}
    releases = {
        n: lib.release() if lib.available() else f"not installed; {lib.INSTALL}" for n, lib in libraries.items()
    }
    cupy_version = f"{cupy.__version__}, for CUDA of {' and '.join(texts)}"
    return {"cuda": "; ".join(described), "cupy": cupy_version, **releases}


def fitting(architectures: Sequence[str], capability: str) -> str | None:
    """The best of ``architectures`` ("sm_90") whose code runs on a device of a compute capability ("90"): code runs on
    the minor versions from its own on; code for "sm_90a" on that alone ("CUDA C++ Programming Guide", 3.1.2)."""
    major, minor = capability[:-1], capability[-1]
    found = []
    for name in architectures:
        parts = _ARCHITECTURE.fullmatch(name)
        if parts is None or parts[1] != major:
            continue
        exact = parts[2] == minor
        if exact or (parts[2] < minor and parts[3] != "a"):
            found.append((parts[2], parts[3], name))
    return max(found)[2] if found else None


def unfit_gpu(build: Build) -> str:
    """Why ``build`` cannot run on the GPU of this machine; empty if it can."""
    target = build.target
    if why := missing():
        return f"was built for an NVIDIA GPU, and {why}"
    capability = str(importlib.import_module(PACKAGE).cuda.Device().compute_capability)
    if fitting(target.features, capability) is None:
        return f"was built for {', '.join(target.features)}, and this GPU is sm_{capability}"
    if any(kernel.gemm for kernel in build.kernels) and not cublaslt.available():
        return "multiplies with cuBLASLt, which is not installed here"
    if any(kernel.convolution for kernel in build.kernels) and not cudnn.available():
        return "convolves with cuDNN, which is not installed here"
    return ""


class Device:
    """The GPU that is CuPy's current one when this is made. Raises GC0508 where there is none.

    ``stream`` is the program's own: all its work is done there, in order.
    """

    def __init__(self) -> None:
        if why := missing():
            raise error("GC0508", f"this program runs on an NVIDIA GPU, and {why}", hint=INSTALL)
        self.cupy: ModuleType = importlib.import_module(PACKAGE)
        self.gpu: Any = self.cupy.cuda.Device()
        self.stream: Any = self.cupy.cuda.Stream(non_blocking=True)
        self._chunk = self.pinned(_CHUNK)

    def alloc(self, nbytes: int, what: str) -> DeviceBlock:
        """So many bytes, of any content. Raises GC0702."""
        try:
            return DeviceBlock(self, self.cupy.cuda.alloc(max(nbytes, 1)), nbytes)
        except self.cupy.cuda.memory.OutOfMemoryError:
            free, total = self.gpu.mem_info
            message = f"{what} needs {nbytes} bytes of the GPU's memory, and {free} of {total} are free"
            hint = "--memory-budget makes the plan smaller; cupy.get_default_memory_pool().free_all_blocks() frees more"
            raise error("GC0702", message, hint=hint) from None

    def pinned(self, nbytes: int) -> np.ndarray:
        """Host memory, [nbytes] uint8, that asynchronous copies may use."""
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(max(nbytes, 1)), np.uint8, nbytes)

    def event(self, timing: bool = False) -> Any:
        return self.cupy.cuda.Event(disable_timing=not timing)

    def chunks(self, nbytes: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The parts of ``nbytes`` that go through pinned memory one after the other, and that memory."""
        for start in range(0, nbytes, _CHUNK):
            part = slice(start, min(start + _CHUNK, nbytes))
            yield part, self._chunk[: part.stop - part.start]


class DeviceBlock:
    """``nbytes`` of a device's memory from ``address`` on; the memory lives as long as this."""

    def __init__(self, device: Device, pointer: Any, nbytes: int):
        self._device, self.pointer, self.nbytes = device, pointer, nbytes
        self.address: int = pointer.ptr

    def write(self, array: np.ndarray, offset: int = 0) -> None:
        """Copy an array to ``offset``; done on return."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        stream = self._device.stream
        with self._device.gpu:
            for part, chunk in self._device.chunks(len(data)):
                chunk[:] = data[part]
                (self.pointer + offset + part.start).copy_from_host_async(chunk.ctypes.data, len(chunk), stream)
                stream.synchronize()

    def read(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
        """The tensor at ``offset``, as a fresh array."""
        array = np.empty(shape, dtype)
        data = array.reshape(-1).view(np.uint8)
        stream = self._device.stream
        with self._device.gpu:
            for part, chunk in self._device.chunks(len(data)):
                (self.pointer + offset + part.start).copy_to_host_async(chunk.ctypes.data, len(chunk), stream)
                stream.synchronize()
                data[part] = chunk
        return array


class Kernel:
    """A kernel that is loaded on a device: ``kernel(blocks, words)`` puts a launch on the device's stream."""

    own_code = True

    def __init__(self, device: Device, cubin: bytes, symbol: str, grid: GridRecord):
        driver, module = device.cupy.cuda.driver, device.cupy.cuda.Module()
        module.load(cubin)
        function = module.get_function(symbol)
        if grid.shared_bytes > _DEFAULT_SHARED:
            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, attribute, grid.shared_bytes)
        # Code is loaded when it is first needed, which must not be while launches are captured.
        driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_NUM_REGS, function.ptr)
        self._function, self._grid, self._stream = function, grid, device.stream
        self.workspace_bytes = grid.workspace_bytes

    def __call__(self, blocks: int, words: Sequence[int]) -> None:
        """``words``: an address or a number for each parameter, then the address of the workspace, if there is one."""
        args = tuple(map(np.int64, words))
        block = (self._grid.threads, 1, 1)
        self._function((blocks, 1, 1), block, args, shared_mem=self._grid.shared_bytes, stream=self._stream)


def architecture_of(device: Device, artifact: Artifact) -> str:
    """The best of the architectures of an artifact for this device. Raises GC0505 where there is none."""
    features, capability = artifact.manifest.target.features, str(device.gpu.compute_capability)
    found = fitting(features, capability)
    if found is None:
        message = f"the artifact has code for {', '.join(features)}; this GPU is sm_{capability}"
        raise error("GC0505", message, hint=f"graphc compile FILE.py --target cuda --arch sm_{capability}")
    return found
