"""What a GPU is, as far as lowering depends on it: the sizes by which loops are cut."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.dtype import DType
from graphc.kernels.contract_schedule import Products

__all__ = ["ARCHITECTURES", "CudaTarget"]

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # Ampere, Hopper, Blackwell: cubins for each run on its minor versions


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """Every GPU from Ampere on. A block may have ``shared_bytes`` of shared memory: what the smallest of them has, with
    some left for a second block. ``products`` chooses between our own and those of cuBLASLt, if these may be used; what
    a kernel is does not depend on it."""

    name: str = "cuda"
    triple: str = "nvptx64-nvidia-cuda"
    vector_bytes: int = 16
    architectures: tuple[str, ...] = ARCHITECTURES
    shared_bytes: int = 96 << 10
    registers: int = 255
    processors: int = 132
    units: int = 1 << 17
    chunk: int = 512
    products: Products | None = field(default=None, repr=False, compare=False)

    def tile(self, dtype: DType) -> tuple[int, int]:
        """Rows and columns of the result that a block product makes."""
        return (64, 64)

    def lanes(self, dtype: DType) -> int:
        """Elements of the widest access."""
        return 16 // dtype.itemsize

    def words(self, factors: DType, least: int) -> DType | None:
        return None

    @property
    def triples(self) -> bool:
        return False

    def block(self, words: DType | None) -> int:
        return 0
