"""Products of cuBLASLt among the launches of a program."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.errors import error
from graphc.gemm import Gemm
from graphc.runtime_cublaslt import INSTALL, Algorithm, Library, Product, release
from graphc.runtime_cuda_device import Device

__all__ = ["GemmKernel"]


class GemmKernel:
    """A product that is called as a kernel is: ``kernel(blocks, words)`` puts it on the device's stream.

    What was measured to be the fastest holds for the version of the library in which it was measured; another version
    says itself what it prefers, within the same memory. Raises GC0509 where it has nothing."""

    own_code = False  # what it runs is loaded when it first runs

    def __init__(self, device: Device, library: Library, gemm: Gemm):
        self._stream, self._gemm = device.stream, gemm
        self._product = Product(library, gemm)
        self.workspace_bytes = gemm.workspace_bytes
        self._algorithm = self._found()

    def _found(self) -> Algorithm:
        gemm, library = self._gemm, self._product.library
        if gemm.version == library.version:
            measured = Algorithm(bytes.fromhex(gemm.algorithm), gemm.workspace_bytes)
            if self._product.accepts(measured):
                return measured
        preferred = self._product.algorithms(1, gemm.workspace_bytes)
        if not preferred:
            message = f"cuBLASLt {release()} has no product for this GPU: {str(gemm).splitlines()[0]}"
            raise error("GC0509", message, hint=INSTALL)
        return preferred[0]

    def __call__(self, blocks: int, words: Sequence[int]) -> None:
        """``words``: the address of each operand, then that of the workspace, if there is one."""
        names = self._gemm.operands
        workspace = words[-1] if len(words) > len(names) else 0
        addresses = dict(zip(names, words, strict=False))
        self._product(self._algorithm, addresses, workspace, self._stream.ptr)
