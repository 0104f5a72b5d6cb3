"""A product of matrices that a library of the target makes in one call, with what follows per element.

The record is a statement of the loop IR (alone in its kernel), a part of the artifact's manifest, and what the binding
of the library reads. Matrices lie column by column, as BLAS has them: element (i, j) of number n of a batch is ``step *
n + ld * j + i`` elements behind the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import isfinite

from graphc.dtype import DTYPES

__all__ = ["ALGORITHM_BYTES", "BIAS_ALIGN", "SUMS", "Gemm", "Matrix", "is_sound"]

# The type of the factors, and that of their sums.
SUMS = frozenset({("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")})
ACTIVATIONS = ("", "relu", "gelu")  # gelu is the form with tanh
ALGORITHM_BYTES = 64
BIAS_ALIGN = 16  # bytes: of the address of every bias


@dataclass(frozen=True, slots=True)
class Matrix:
    """``rows`` × ``columns`` elements in memory; ``align``: its address is a multiple of so many bytes."""

    dtype: str
    rows: int
    columns: int
    ld: int
    step: int
    align: int

    def nbytes(self, batch: int) -> int:
        """From the first byte of the first matrix to the last byte of the last."""
        if 0 in (self.rows, self.columns, batch):
            return 0
        last = self.step * (batch - 1) + self.ld * (self.columns - 1) + self.rows
        return last * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Gemm:
    """``d = activation(alpha * op(a) @ op(b) + c + bias)``, ``batch`` times, where ``op`` turns what is ``turn_a`` or
    ``turn_b`` and sums are of type ``sums``.

    If it ``adds``, there is a c, of the type and layout of d, which may be d itself; ``bias``, one element of d's type
    for each row of d, is the same for the whole batch. ``algorithm``, in hexadecimal, is what the ``version`` of the
    library found to be the fastest; empty: what it prefers. It uses up to ``workspace_bytes`` of memory beside."""

    a: Matrix
    b: Matrix
    d: Matrix
    turn_a: bool
    turn_b: bool
    batch: int
    sums: str
    alpha: float
    adds: bool
    bias: bool
    activation: str
    algorithm: str = ""
    version: int = 0
    workspace_bytes: int = 0

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the addresses that a call takes, in their order."""
        return ("a", "b", *(("c",) if self.adds else ()), *(("bias",) if self.bias else ()), "d")

    def nbytes(self, operand: str) -> int:
        """The bytes from the address of an operand on that are touched."""
        if operand == "bias":
            return self.d.rows * DTYPES[self.d.dtype].itemsize
        return {"a": self.a, "b": self.b}.get(operand, self.d).nbytes(self.batch)

    def align(self, operand: str) -> int:
        """What its address is a multiple of."""
        if operand == "bias":
            return BIAS_ALIGN
        return {"a": self.a, "b": self.b}.get(operand, self.d).align

    @property
    def code(self) -> bytes:
        """How the library does it; empty: as it prefers."""
        return bytes.fromhex(self.algorithm)

    def by(self, code: bytes, workspace_bytes: int, version: int) -> Gemm:
        """The same, as a version of the library does it."""
        return replace(self, algorithm=code.hex(), workspace_bytes=workspace_bytes, version=version)

    @property
    def depth(self) -> int:
        """The number of products in each sum."""
        return self.a.rows if self.turn_a else self.a.columns

    def __str__(self) -> str:
        """The call for readers."""
        a, b = ("aᵀ" if self.turn_a else "a"), ("bᵀ" if self.turn_b else "b")
        terms = [f"{self.alpha:g} {a} {b}" if self.alpha != 1 else f"{a} {b}", *self.operands[2:-1]]
        total = " + ".join(terms)
        where = [f"{n}: {m.dtype}[{m.rows}, {m.columns}], ld {m.ld}" for n, m in zip("abd", self.matrices, strict=True)]
        lines = [
            f"d = {self.activation}({total})" if self.activation else f"d = {total}",
            f"column by column, {self.batch} times, sums of {self.sums}, workspace of {self.workspace_bytes} bytes",
            *(f"{line}, step {m.step}" for line, m in zip(where, self.matrices, strict=True)),
            f"algorithm of version {self.version}: {self.algorithm}" if self.algorithm else "the library's algorithm",
        ]
        return "\n".join(lines) + "\n"

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix]:
        return self.a, self.b, self.d


def is_sound(gemm: Gemm, limit: int) -> bool:
    """Whether a description from elsewhere makes sense: shapes that fit, known types, no number above ``limit``."""
    a, b, d = gemm.matrices
    numbers = [n for m in gemm.matrices for n in (m.rows, m.columns, m.ld, m.align, m.step + 1)]
    if not all(1 <= n <= limit for n in (*numbers, gemm.batch, gemm.workspace_bytes + 1)):
        return False
    rows, depth = (a.columns, a.rows) if gemm.turn_a else (a.rows, a.columns)
    inner, columns = (b.columns, b.rows) if gemm.turn_b else (b.rows, b.columns)
    return (
        (rows, depth, columns) == (d.rows, inner, d.columns)
        and all(m.ld >= m.rows and m.dtype in DTYPES for m in gemm.matrices)
        and all(gemm.nbytes(name) <= limit for name in gemm.operands)
        and a.dtype == b.dtype
        and (a.dtype, gemm.sums) in SUMS
        and d.dtype in (a.dtype, gemm.sums)
        and gemm.activation in ACTIVATIONS
        and isfinite(gemm.alpha)
        and re.fullmatch(f"([0-9a-f]{{{2 * ALGORITHM_BYTES}}})?", gemm.algorithm) is not None
    )
