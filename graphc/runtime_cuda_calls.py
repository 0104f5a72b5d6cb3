"""Calls of NVIDIA's libraries among the launches of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

from graphc import runtime_cublaslt as cublaslt
from graphc import runtime_cudnn as cudnn
from graphc.convolution import LibraryCall
from graphc.errors import error
from graphc.gemm import Gemm
from graphc.runtime_cublaslt import Algorithm
from graphc.runtime_cuda_device import Device

__all__ = ["CalledKernel", "Libraries", "Prepared"]


class Prepared(Protocol):
    """A call with its descriptors, in the library that makes it."""

    def algorithms(self, most: int, workspace_bytes: int) -> list[Algorithm]:
        """Up to ``most`` that need no more memory, what the library expects to be fastest first."""
        ...

    def accepts(self, algorithm: Algorithm) -> bool:
        """Whether the library, on this device, can do it so in no more memory."""
        ...

    def __call__(self, algorithm: Algorithm, addresses: Mapping[str, int], workspace: int, stream: int) -> None:
        """Put it on a stream."""
        ...


class Libraries:
    """The libraries on the device that is current when they are first asked for. Raises GC0509."""

    @cached_property
    def products(self) -> cublaslt.Library:
        return cublaslt.Library()

    @cached_property
    def convolutions(self) -> cudnn.Library:
        return cudnn.Library()

    def version(self, call: LibraryCall) -> int:
        """Of the library that makes ``call``."""
        return self.products.version if isinstance(call, Gemm) else self.convolutions.version

    def prepared(self, call: LibraryCall) -> Prepared:
        if isinstance(call, Gemm):
            return cublaslt.Product(self.products, call)
        return cudnn.Convolved(self.convolutions, call)


class CalledKernel:
    """A call that is launched as a kernel is: ``kernel(blocks, words)`` puts it on the device's stream.

    What was measured to be the fastest holds for the version of the library in which it was measured; another version
    says itself what it prefers, within the same memory. Raises GC0509 where it has nothing."""

    own_code = False  # what it runs is loaded when it first runs

    def __init__(self, device: Device, libraries: Libraries, call: LibraryCall):
        self._stream, self._call = device.stream, call
        self._prepared = libraries.prepared(call)
        self.workspace_bytes = call.workspace_bytes
        self._algorithm = self._found(libraries.version(call))

    def _found(self, version: int) -> Algorithm:
        call = self._call
        if call.version == version:
            measured = Algorithm(call.code, call.workspace_bytes)
            if self._prepared.accepts(measured):
                return measured
        preferred = self._prepared.algorithms(1, call.workspace_bytes)
        if not preferred:
            library = f"cuBLASLt {cublaslt.release()}" if isinstance(call, Gemm) else f"cuDNN {cudnn.release()}"
            message = f"{library} has nothing for this on this GPU: {str(call).splitlines()[0]}"
            raise error("GC0509", message, hint="compile with libraries='off'")
        return preferred[0]

    def __call__(self, blocks: int, words: Sequence[int]) -> None:
        """``words``: the address of each operand, then that of the workspace, if there is one."""
        names = self._call.operands
        workspace = words[-1] if len(words) > len(names) else 0
        addresses = dict(zip(names, words, strict=False))
        self._prepared(self._algorithm, addresses, workspace, self._stream.ptr)
