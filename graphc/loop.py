"""The loop IR: kernels as loops over buffers, between the graph and the printed code.

A `Kernel` is one function ``kernel(args, scratch, tid, nthreads)``: ``args`` is a table of machine words, one per
`Param` (the address of a tensor's first element, or an int64 value), ``scratch`` this thread's private memory. The
statements of ``body`` run on every thread; the one PARALLEL loop at the top level of ``body`` is split between threads
by index, so that results do not depend on their number.

Grammar::

    stmt   := Let(var, expr)                       bind a scalar (a lane value inside a VECTOR loop); assigned once
            | Store(buffer, index, expr)
            | Acc(var, combine)                    declare an accumulator, at the identity of combine
            | Update(var, expr, factor)            combine into an accumulator declared outside
            | Loop(var, start, stop, step, role, body)
            | If(cond, body)                       cond is scalar (never a lane value)
            | Contract(c, a, b, m, n, k, ...)      one block product on the target's microkernel
            | BlockProduct(c, a, b, m, n, k, ...)  the same, larger, by the threads of a block
            | Transpose(c, a, m, n, ...)           one block turned round, on the target's shuffles
            | Triples(c, a, m, steps, left)        a block of float32 as three bfloat16, where a unit multiplies those
            | TripleProduct(c, a, b, steps, ...)   and a product of such blocks
            | Gemm(...) | Convolution(...)         all of a kernel: a call of a library of the target's
            | Prefetch(buffer, index)              a hint: memory that will be read soon
            | Barrier | Combine | LoadWide | StoreWide | Registers     of one thread of a GPU (see below)
    expr   := Const | Var | Load(buffer, index) | Call(intrinsic, args)
    index  := Affine: offset + sum of coefficient * int64 variable, in elements

Inside a VECTOR loop over v, each statement is done for a vector of lanes. A Load or Store whose index has coefficient 1
for v is a vector access, 0 a broadcast (Load only), other coefficients a gather/scatter. A Var that holds lane values
may not occur in an Affine. Updates of an accumulator from outside the loop keep lane-wise partials that are combined
when the loop ends, in a fixed order. VECTOR loops do not nest; they contain only Let, Store and Update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from graphc.convolution import Convolution, LibraryCall
from graphc.dtype import DType
from graphc.errors import Loc
from graphc.gemm import Gemm
from graphc.loop_expr import (
    COMBINE,
    COMPARISONS,
    Affine,
    Call,
    Const,
    Expr,
    Load,
    Var,
    call,
    converted,
    identity,
)

__all__ = [
    "COMBINE", "COMPARISONS", "LINE", "TRIPLE_BLOCK", "TRIPLE_STEP", "TRIPLE_WORDS", "Acc", "Affine", "Ahead",
    "Barrier", "BlockProduct", "Call", "Combine", "Const", "Contract", "Expr", "If", "Kernel", "Let", "Load",
    "LoadWide", "Loop", "Operand", "Param", "Prefetch", "Registers", "Role", "Scratch", "Stmt", "Store", "StoreWide",
    "ThreadStmt", "TileStmt", "Transpose", "TripleProduct", "Triples", "Update", "Var", "call", "converted",
    "identity", "walk",
]  # fmt: skip


class Role(Enum):
    """What a loop is mapped to: the iterations of a PARALLEL loop go to the threads of a CPU or the blocks of a GPU,
    those of a VECTOR loop to the lanes of a register or the threads of a block. WARP: independent iterations inside of
    a PARALLEL one, which a GPU gives to the warps of its block; elsewhere they are done in order."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    VECTOR = "vector"
    WARP = "warp"


# Statements ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Let:
    var: Var
    expr: Expr


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    index: Affine
    expr: Expr


@dataclass(frozen=True, slots=True)
class Acc:
    """An accumulator; ``combine`` is sum, max, min or prod."""

    var: Var
    combine: str


@dataclass(frozen=True, slots=True)
class Update:
    """With a ``factor`` the product is added, and rounded once with the sum: a dot product."""

    var: Var
    expr: Expr
    factor: Expr | None = None


@dataclass(frozen=True, slots=True)
class Loop:
    """``for var in range(start, stop, step)``. Bounds are ints or int64 Vars. A VECTOR loop has step 1.

    ``unroll`` is the number of vectors in flight in a VECTOR loop (independent partial accumulators), and ``granule`` a
    number of which its trips are a multiple: where that is the width of a vector, no rest is left."""

    var: Var
    stop: int | Var
    body: tuple[Stmt, ...]
    role: Role = Role.SERIAL
    start: int | Var = 0
    step: int = 1
    unroll: int = 1
    granule: int = 1


@dataclass(frozen=True, slots=True)
class If:
    cond: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix in memory: ``buffer[index + i*row + j*col]``, strides in elements."""

    buffer: str
    index: Affine
    row: int
    col: int = 1


@dataclass(frozen=True, slots=True)
class Ahead:
    """``rows`` rows of ``columns`` elements, ``row`` elements apart, that are read or written after a block product:
    they are brought to the second level of cache while it runs. A hint, like `Prefetch`."""

    buffer: str
    index: Affine
    row: int
    rows: int
    columns: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Contract:
    """``c[m, n] = (c[m, n] if accumulate else 0) + sum_k a[m, k] * b[k, n]`` on the target's register tiles.

    ``a`` may have any strides; ``b`` and ``c`` have col == 1. ``m`` and ``n`` are ints; ``k`` may be a Var. All
    operands have ``dtype``. With ``words``, a and b have int32 instead, each of which holds several elements of that
    type, whose products are all added: two bfloat16 (``dtype`` is float32), two int16 or four int8 (int32). Words of
    uint8 hold int8: in b as they are, in a with 128 added to each. Memory past column n of b and c is not touched.
    ``repeats`` are further loops that the sum goes over, outer first: each (count, step of a, step of b) in elements.
    They stay inside of the register tile. ``ahead`` is what is needed after the product; each repeat brings in as many
    of its rows.
    """

    c: Operand
    a: Operand
    b: Operand
    m: int
    n: int
    k: int | Var
    dtype: DType
    accumulate: bool = False
    words: DType | None = None
    repeats: tuple[tuple[int, int, int], ...] = ()
    ahead: tuple[Ahead, ...] = ()


@dataclass(frozen=True, slots=True)
class Transpose:
    """``c[j, i] = a[i, j]`` for i < m and j < n. Both have col == 1; ``m`` is an int, ``n`` may be a Var.

    ``c`` has elements of ``dtype``, ``a`` of ``source``: the same, or a 16-bit float that is widened to float32."""

    c: Operand
    a: Operand
    m: int
    n: int | Var
    dtype: DType
    source: DType


@dataclass(frozen=True, slots=True)
class Triples:
    """The elements of a block of float32, each as three bfloat16 whose sum it is: what `TripleProduct` multiplies.

    Two elements that are 16 apart along k share a word: the first one in the lower half. For each `TRIPLE_STEP` along k
    there are three matrices of words in ``c``, of the highest parts first. Those of a left factor (``left``) have a row
    for each of the block's: ``a`` is a[i, k], i < ``m``, of which at most `TRIPLE_BLOCK`; what rows are missing stays
    as it was. Those of a right factor have a row for each word along k: ``a`` is a[k, j], j < ``m``, and missing
    columns are 0. Both have col == 1; ``steps`` is an int or a Var.
    """

    c: Operand
    a: Operand
    m: int
    steps: int | Var
    left: bool


@dataclass(frozen=True, slots=True)
class TripleProduct:
    """``c[m, n] = (c[m, n] if accumulate else 0) + sum_k a[m, k] * b[k, n]`` on tile registers, m and n of
    `TRIPLE_BLOCK`, over ``steps`` steps along k of what `Triples` wrote. Of the nine products of parts the six largest
    are added: what is left out is below 2**-24 of the product of the elements (Henry, Tang and Heinecke, "Leveraging
    the bfloat16 Artificial Intelligence Datatype for Higher-Precision Computations", arXiv 1904.06376). ``ahead`` is
    what is needed after the product, as in `Contract`."""

    c: Operand
    a: Operand
    b: Operand
    steps: int | Var
    accumulate: bool = False
    ahead: tuple[Ahead, ...] = ()


TRIPLE_BLOCK = 32  # rows and columns of a product of triples
TRIPLE_STEP = 32  # elements along k
TRIPLE_WORDS = 3 * TRIPLE_BLOCK * TRIPLE_STEP // 2  # int32 of a step of either factor


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The cache line of ``buffer[index]`` (in a VECTOR loop, that of the first lane) is brought to the cache of
    ``level``. A hint: nothing depends on it, and the element need not exist."""

    buffer: str
    index: Affine
    level: int = 1


LINE = 64  # bytes of a line of the cache


@dataclass(frozen=True, slots=True)
class BlockProduct:
    """``c[m, n] = (c[m, n] if accumulate else 0) + sum_k a[m, k] * b[k, n]`` by all threads that share an iteration of
    the PARALLEL loop: ``m`` × ``n`` is at most the ``tile``. a and b have any strides, and elements of ``factors``; c
    has col == 1, and ``dtype``. ``repeats`` are as in `Contract`. What is ``wide``, a or b, may be read 16 bytes at a
    time."""

    c: Operand
    a: Operand
    b: Operand
    m: int | Var
    n: int | Var
    k: int | Var
    dtype: DType
    factors: DType
    tile: tuple[int, int]
    accumulate: bool = False
    repeats: tuple[tuple[int, int, int], ...] = ()
    wide: tuple[bool, bool] = (False, False)


# Of one thread of a GPU: targets put these in where they share out VECTOR loops; lowering makes none of them. A group
# are the threads that share an iteration of the PARALLEL loop, some lanes of a warp or a block.


@dataclass(frozen=True, slots=True)
class Barrier:
    """The threads of a group, ``lanes`` of them, wait for each other, and see what the others stored before."""

    lanes: int


@dataclass(frozen=True, slots=True)
class Combine:
    """``partial`` of all ``lanes`` of the group are combined into ``var``, in a fixed order; each thread gets it."""

    var: Var
    partial: Var
    combine: str
    lanes: int


@dataclass(frozen=True, slots=True)
class Registers:
    """An array of ``size`` elements that a thread keeps to itself; Loads and Stores name it like a buffer."""

    name: str
    dtype: DType
    size: int


@dataclass(frozen=True, slots=True)
class LoadWide:
    """``into``, declared here, gets its elements from ``buffer[index]`` on in one access."""

    into: Registers
    buffer: str
    index: Affine


@dataclass(frozen=True, slots=True)
class StoreWide:
    """The elements of ``source`` to ``buffer[index]`` and on, in one access."""

    buffer: str
    index: Affine
    source: Registers


ThreadStmt = Barrier | Combine | LoadWide | Registers | StoreWide
TileStmt = Triples | TripleProduct  # of machines that have tile registers
Stmt = (
    Let
    | Store
    | Acc
    | Update
    | Loop
    | If
    | Contract
    | BlockProduct
    | Transpose
    | TileStmt
    | LibraryCall
    | Prefetch
    | ThreadStmt
)


# Kernels -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Param:
    """One word of the argument table: a buffer's address (``dtype`` of its elements) or, if ``scalar``, an int64."""

    name: str
    dtype: DType
    scalar: bool = False
    written: bool = False
    comment: str = ""  # for the reader: shape and what it is


@dataclass(frozen=True, slots=True)
class Scratch:
    """Thread-private memory of ``size`` elements, 64-byte aligned, alive during the kernel."""

    name: str
    dtype: DType
    size: int


@dataclass(frozen=True)
class Kernel:
    """One function of generated code. ``name`` is for people; kernels are shared by structure (`key`).

    ``lines`` are the user's lines that it came from; ``doc`` one sentence for the header. Neither is part of the key.
    """

    name: str
    params: tuple[Param, ...]
    body: tuple[Stmt, ...]
    scratch: tuple[Scratch, ...] = ()
    lines: tuple[Loc, ...] = field(default=(), compare=False)
    doc: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """A canonical text of the structure: equal for kernels that may share code."""
        params = tuple((p.name, p.dtype, p.scalar, p.written) for p in self.params)
        return repr((params, self.scratch, self.body))

    @property
    def library_call(self) -> LibraryCall | None:
        """The call of a library that this is, with its workspace as scratch; None where it is code."""
        return next((stmt for stmt in self.body if isinstance(stmt, Gemm | Convolution)), None)

    @property
    def scratch_bytes(self) -> int:
        return sum(-(-s.size * s.dtype.itemsize // 64) * 64 for s in self.scratch)


def walk(body: tuple[Stmt, ...]) -> list[Stmt]:
    """All statements, outer before inner, in order."""
    out: list[Stmt] = []
    for stmt in body:
        out.append(stmt)
        if isinstance(stmt, Loop | If):
            out.extend(walk(stmt.body))
    return out
