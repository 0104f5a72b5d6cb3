"""The hand-written kernels in ``kernels/``: how each is launched, and what it must compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shim import FORWARD, Buffer, Kernel, Place, Schedule

KERNELS = Path(__file__).parent / "kernels"
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Case:
    """A kernel with its inputs, what follows the result's address in its parameters, and the result."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    inputs: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]
    want: np.ndarray
    shared_bytes: int = 0
    tolerance: float = 1e-6

    @property
    def text(self) -> str:
        return (KERNELS / f"{self.name}.cu").read_text()

    def run(self, kernel: Kernel, schedule: Schedule = FORWARD) -> Buffer:
        """Launch; the result, with NaN where the kernel has not written. Raises KernelFault."""
        result = Buffer((self.want.shape, self.want.dtype), "the result")
        inputs = [Place(Buffer(x, f"input {i}"), writable=False) for i, x in enumerate(self.inputs)]
        kernel(self.grid, self.block, *inputs, result, *self.sizes, shared_bytes=self.shared_bytes, schedule=schedule)
        return result

    def right(self, result: Buffer) -> bool:
        return np.allclose(result.array, self.want, rtol=self.tolerance, atol=self.tolerance)


def _softmax() -> Case:
    x = RNG.standard_normal((3, 300), np.float32)
    e = np.exp(x - x.max(1, keepdims=True))
    return Case("softmax", (3,), (128,), (x,), (300,), e / e.sum(1, keepdims=True))


def _reduction() -> Case:
    x = RNG.standard_normal(1000, np.float32)
    parts = [sum(x[i : i + 128].sum() for i in range(128 * b, 1000, 512)) for b in range(4)]
    return Case("reduction", (4,), (128,), (x,), (1000,), np.array(parts, np.float32), tolerance=1e-5)


def _matmul() -> Case:
    a, b = RNG.standard_normal((20, 37), np.float32), RNG.standard_normal((37, 18), np.float32)
    return Case("matmul", (2, 2), (16, 16), (a, b), (20, 18, 37), a @ b, 2048, tolerance=1e-5)


def _tensor_cores() -> Case:
    a, b = (RNG.integers(-8, 8, shape).astype(np.float32) for shape in ((32, 48), (16, 48)))
    bits = tuple((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))  # small integers are bfloat16
    return Case("tensor_cores", (2, 2), (32,), bits, (16, 48), a @ b.T)


def _scale() -> Case:
    x = RNG.standard_normal(200, np.float32)
    return Case("scale", (2,), (32,), (x,), (200,), 2 * x)


MAKERS: tuple[Callable[[], Case], ...] = (_softmax, _reduction, _matmul, _tensor_cores, _scale)
CASES = {case.name: case for case in (make() for make in MAKERS)}
