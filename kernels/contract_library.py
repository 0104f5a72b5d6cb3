"""Contractions as calls of a library of products: which of them it can make, and how their arrays look to it.

A library knows matrices of which one dimension is contiguous, a batch with a fixed step, and a few things to do with
each element (`graphc.kernels.contract_activation`). What does not look so is made by our own loops; what does is also
described as a `Gemm`, and the target chooses (`Products`).

The matrices of a library lie column by column. Our results lie row by row, so it is asked for the transposed product,
dᵀ = bᵀ aᵀ: its a is our b, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from graphc.convolution import LibraryCall
from graphc.dtype import DType, uint8
from graphc.gemm import BIAS_ALIGN, SUMS, Gemm, Matrix
from graphc.kernels.contract_activation import followed
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.lower_context import Operand
from graphc.loop import Scratch

__all__ = ["WORKSPACE", "Call", "added", "alignment", "library_call"]

A, B, D = 0, 1, 2  # positions in `Axis.strides`
WORKSPACE = 32 << 20  # bytes that a call may use beside its arguments: what NVIDIA recommends for Hopper
ACCESS = 16  # bytes that are read at a time: greater alignment makes no difference


class Call:
    """The parts of a launch: its one statement, its operands in their order, and its memory."""

    def __init__(self, call: LibraryCall, operands: Sequence[Operand]):
        self.body = (call,)
        self.operands = [replace(o, name=name) for o, name in zip(operands, call.operands, strict=True)]
        self.scratch = (Scratch("workspace", uint8, call.workspace_bytes),)


def library_call(
    p: Problem, dtype: DType, epilogue: Epilogue, factors: Sequence[Operand], tiles: Sequence[Operand]
) -> Call | None:
    """The product of ``factors`` with all that ``epilogue`` does, over ``tiles``, what it reads and then its result;
    None where a library has no call for that. ``dtype``: of the sums."""
    a, b = factors
    *reads, result = tiles
    follow = followed(epilogue, dtype)
    batch = [axis for axis in p.outer if axis.size > 1]
    if follow is None or p.k_outer or p.k.size < 1 or len(batch) > 1 or a.view.dtype != b.view.dtype:
        return None
    if (a.view.dtype.name, dtype.name) not in SUMS or result.view.dtype not in (a.view.dtype, dtype):
        return None
    if follow.activation == "gelu" and not result.view.dtype.is_half:
        return None  # that of libraries is exact to 11 bits
    outer = batch[0] if batch else Axis(1, (0,) * len(p.n.strides))
    left, right = _matrix(p.n, p.k, outer, b, B), _matrix(p.k, p.m, outer, a, A)
    made, more = _matrix(p.n, p.m, outer, result, D), added(p.n, (p.m, outer), epilogue, reads, result)
    if left is None or right is None or made is None or made[1] or more is None:
        return None
    if sorted(follow.added) != sorted(o.name for o in more if o is not None):
        return None
    addend, bias = more
    if dtype.itemsize == 8 and (bias or follow.activation):
        return None  # libraries have no such products
    d = made[0] if addend is None else replace(made[0], align=min(made[0].align, alignment(addend)))
    gemm = Gemm(
        left[0], right[0], d, left[1], right[1], outer.size, dtype.name, follow.alpha,
        addend is not None, bias is not None, follow.activation, workspace_bytes=WORKSPACE,
    )  # fmt: skip
    return Call(gemm, [o for o in (b, a, addend, bias, result) if o is not None])


def _matrix(rows: Axis, columns: Axis, outer: Axis, operand: Operand, array: int) -> tuple[Matrix, bool] | None:
    """How an array lies whose dimensions are these axes, and whether it is turned: its rows are then the ``columns``.
    None where neither dimension is contiguous, or elements overlap."""
    align = alignment(operand)
    for turned, (down, across) in enumerate(((rows, columns), (columns, rows))):
        ld = across.strides[array] if across.size > 1 else down.size
        if (down.strides[array] == 1 or down.size == 1) and ld >= down.size:
            step = outer.strides[array] if outer.size > 1 else 0
            if array == D and outer.size > 1 and step < ld * (across.size - 1) + down.size:
                return None
            return Matrix(operand.view.dtype.name, down.size, across.size, ld, step, align), bool(turned)
    return None


def alignment(operand: Operand) -> int:
    """Of the operand's address, as far as it is known before loops move it."""
    if operand.view.buffer.space == "row":
        return operand.view.dtype.itemsize
    return gcd(operand.arg.offset, ACCESS)


def added(
    across: Axis, others: Sequence[Axis], epilogue: Epilogue, reads: Sequence[Operand], result: Operand
) -> tuple[Operand | None, Operand | None] | None:
    """Which of ``reads`` is an array like the result, and which has an element for each step ``across``; None if one is
    neither, or there are two of a kind."""
    place = epilogue.positions()
    addend: Operand | None = None
    bias: Operand | None = None
    for read in reads:
        array = place[read.name]
        if read.view.dtype != result.view.dtype:
            return None
        if addend is None and all(
            axis.strides[array] == axis.strides[D] for axis in (across, *others) if axis.size > 1
        ):
            addend = read
        elif bias is None and _is_bias(across, others, array) and alignment(read) >= BIAS_ALIGN:
            bias = read
        else:
            return None
    over = bias is not None and bias.view.buffer == result.view.buffer
    moved = addend is not None and addend.view.buffer == result.view.buffer and addend.arg.offset != result.arg.offset
    return None if over or moved else (addend, bias)


def _is_bias(across: Axis, others: Sequence[Axis], array: int) -> bool:
    still = all(axis.strides[array] == 0 for axis in others if axis.size > 1)
    return still and (across.strides[array] == 1 or across.size == 1)
