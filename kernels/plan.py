"""What lowering hands to code generation, planning and the artifact: buffers, strided views and launches."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from graphc.dtype import DType, Shape, contiguous_strides, same_layout
from graphc.errors import Loc
from graphc.loop import Kernel

__all__ = ["Arg", "Buffer", "EntryPlan", "Flag", "Launch", "Span", "View"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory. ``space`` is "arena" (placed by the planner), "prepared" (the same, but kept between steps),
    "state" (lives between steps; ``name`` is the state's name), "const" (``name`` is the key of `EntryPlan.consts`) or
    "flags" (one int32 word per run-time check); while the body of a loop is lowered also "row" (a row that moves with
    the iteration). ``name`` is unique in its entry."""

    name: str
    space: str
    nbytes: int
    loc: Loc | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a buffer; ``strides`` and ``offset`` count elements."""

    buffer: Buffer
    dtype: DType
    shape: Shape
    strides: Shape
    offset: int = 0

    @classmethod
    def whole(cls, buffer: Buffer, dtype: DType, shape: Shape) -> View:
        return cls(buffer, dtype, shape, contiguous_strides(shape))

    @property
    def contiguous(self) -> bool:
        return same_layout(self.shape, self.strides, contiguous_strides(self.shape))

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Arg:
    """One word of a launch's argument table: the address of element ``offset`` of ``buffer``, or ``value``.

    ``reads`` and ``writes`` say what the kernel does there (for liveness, barriers and the checker)."""

    buffer: Buffer | None = None
    offset: int = 0  # bytes
    value: int = 0
    reads: bool = False
    writes: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """A run of a kernel inside a step; many runs where a `Span` repeats it. ``flops`` and ``bytes``: work and
    compulsory traffic of all these runs, as far as their number is known. ``others``, where they were asked for, are
    kernels that do the same with the same arguments, to the bit, but cut it otherwise."""

    kernel: Kernel
    args: tuple[Arg, ...]
    label: str
    lines: tuple[Loc, ...] = ()
    flops: int = 0
    bytes: int = 0
    others: tuple[Kernel, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Control flow over the launches ``start`` .. ``stop`` (not included). Spans are nested or apart.

    ``kind`` "repeat": they run ``count`` times; ``steps`` are (launch, argument, bytes): addresses that move on by so
    many bytes with each iteration. "while": from ``middle`` on they run, and all are repeated, as long as the byte at
    ``test`` is not 0 at ``middle``. "cond": those before ``middle`` run where the byte at ``test`` is not 0, else those
    from ``middle`` on."""

    kind: Literal["repeat", "while", "cond"]
    start: int
    middle: int
    stop: int
    count: int = 1
    steps: tuple[tuple[int, int, int], ...] = ()
    test: Arg | None = None


@dataclass(frozen=True, slots=True)
class Flag:
    """A run-time check inside kernels: word number = position in `EntryPlan.flags`; non-zero after a step raises."""

    code: str
    message: str
    loc: Loc | None = None


@dataclass(frozen=True)
class EntryPlan:
    """One entry after lowering: launches in order over buffers, before offsets are chosen.

    ``inputs`` and ``outputs`` are contiguous arena views by name: the runtime copies inputs in before the first launch
    and outputs out after the last. Of ``spans``, inner ones come before those around them. The first
    ``prepared`` launches depend on state alone (`graphc.kernels.prepare`)."""

    name: str
    launches: tuple[Launch, ...]
    inputs: tuple[tuple[str, View], ...]
    outputs: tuple[tuple[str, View], ...]
    consts: tuple[tuple[str, np.ndarray], ...] = ()
    flags: tuple[Flag, ...] = ()
    spans: tuple[Span, ...] = ()
    prepared: int = 0

    @property
    def scratch_bytes(self) -> int:
        """Private memory that a thread needs for any launch."""
        return max((e.kernel.scratch_bytes for e in self.launches), default=0)
