"""A convolution that a library of the target makes in one call, with what follows per element.

As `graphc.gemm.Gemm`, the record is a statement of the loop IR (alone in its kernel), a part of the artifact's
manifest, and what the binding of the library reads. Dimensions are those of cuDNN, whatever their order in memory:
[images, channels, rows, columns], and of filters [outputs, channels, rows, columns]. Images are padded already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc.dtype import DTYPES
from graphc.gemm import SUMS, Gemm

__all__ = ["KINDS", "Convolution", "LibraryCall", "Tensor", "is_sound_convolution"]

KINDS = ("forward", "filter")
ACTIVATIONS = ("", "relu")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Elements in memory, ``strides`` apart; ``align``: the address is a multiple of so many bytes."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    align: int

    @property
    def nbytes(self) -> int:
        """From the first byte to the last."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Convolution:
    """``y = activation(x ⋆ w + c + bias)``, or, of ``kind`` "filter", ``w = x ⋆ y``, the gradient of the filters::

        y[n, o, p, q] = Σ over c, r, s of x[n, c, p step + r dilation, q step + s dilation] w[o, c, r, s]
        w[o, c, r, s] = Σ over n, p, q of x[n, c, p step + r dilation, q step + s dilation] y[n, o, p, q]

    with sums of type ``sums``. If it ``adds``, there is a c, of the type and layout of y; ``bias`` has one element of
    y's type for each output. ``plan`` is how the ``version`` of the library does it (in an artifact, it is a member
    instead); empty: as it prefers. That uses up to ``workspace_bytes`` of memory beside."""

    kind: str
    x: Tensor
    w: Tensor
    y: Tensor
    steps: tuple[int, ...]
    dilations: tuple[int, ...]
    sums: str
    adds: bool = False
    bias: bool = False
    activation: str = ""
    plan: str = ""
    version: int = 0
    workspace_bytes: int = 0

    @property
    def result(self) -> str:
        return "y" if self.kind == "forward" else "w"

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the addresses that a call takes, in their order."""
        if self.kind == "filter":
            return ("x", "y", "w")
        return ("x", "w", *(("c",) if self.adds else ()), *(("bias",) if self.bias else ()), "y")

    def tensor(self, operand: str) -> Tensor:
        """How an operand lies."""
        if operand == "bias":
            outputs = self.w.shape[0]
            return Tensor(self.y.dtype, (1, outputs, 1, 1), (outputs, 1, outputs, outputs), 16)
        return {"x": self.x, "w": self.w}.get(operand, self.y)

    def nbytes(self, operand: str) -> int:
        """The bytes from the address of an operand on that are touched."""
        return self.tensor(operand).nbytes

    def align(self, operand: str) -> int:
        """What its address is a multiple of."""
        return self.tensor(operand).align

    @property
    def code(self) -> bytes:
        """How the library does it; empty: as it prefers."""
        return self.plan.encode()

    def by(self, code: bytes, workspace_bytes: int, version: int) -> Convolution:
        """The same, as a version of the library does it."""
        return replace(self, plan=code.decode(), workspace_bytes=workspace_bytes, version=version)

    def __str__(self) -> str:
        """The call for readers."""
        terms = " + ".join(["x ⋆ y" if self.kind == "filter" else "x ⋆ w", *self.operands[2:-1]])
        total = f"{self.activation}({terms})" if self.activation else terms
        tensors = [(name, self.tensor(name)) for name in "xwy"]
        lines = [
            f"{self.result} = {total}",
            f"steps {list(self.steps)}, dilations {list(self.dilations)}, sums of {self.sums}, workspace of "
            f"{self.workspace_bytes} bytes",
            *(f"{name}: {t.dtype}{list(t.shape)}, strides {list(t.strides)}" for name, t in tensors),
            f"a plan of version {self.version}" if self.version else "the library's plan",
        ]
        return "\n".join(lines) + "\n"


LibraryCall = Gemm | Convolution


def is_sound_convolution(conv: Convolution, limit: int) -> bool:
    """Whether a description from elsewhere makes sense: shapes that fit, known types, no number above ``limit``."""
    x, w, y = tensors = conv.x, conv.w, conv.y
    lists = [*(t.shape for t in tensors), *(t.strides for t in tensors)]
    if any(len(numbers) != 4 for numbers in lists) or len(conv.steps) != 2 or len(conv.dilations) != 2:
        return False
    numbers = [n for row in (*lists, conv.steps, conv.dilations) for n in row] + [t.align for t in tensors]
    if not all(1 <= n <= limit for n in (*numbers, conv.workspace_bytes + 1)):
        return False
    spans = [
        (p - 1) * step + (r - 1) * dilation + 1
        for p, r, step, dilation in zip(y.shape[2:], w.shape[2:], conv.steps, conv.dilations, strict=True)
    ]
    result = conv.tensor(conv.result)
    return (
        x.shape == (y.shape[0], w.shape[1], *spans)
        and y.shape[1] == w.shape[0]
        and conv.kind in KINDS
        and all(t.dtype in DTYPES for t in tensors)
        and all(conv.nbytes(name) <= limit for name in conv.operands)
        and (x.dtype, conv.sums) in SUMS
        and all(t.dtype == x.dtype for t in tensors if t is not result)
        and result.dtype in (x.dtype, conv.sums)
        and conv.activation in ACTIVATIONS
        and not (conv.kind == "filter" and (conv.adds or conv.bias or conv.activation))
    )
