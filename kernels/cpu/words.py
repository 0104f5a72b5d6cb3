"""Instructions that multiply words: 32 bits that hold several elements, of which all products are added to one sum.

What a word holds (`Contract.words`) says which instruction that is; the number of lanes, at which width. Products of
integers are exact. LLVM's names of the instructions are in its IntrinsicsX86.td and IntrinsicsAArch64.td.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from graphc.dtype import DType, bfloat16, int8, int16, uint8
from graphc.kernels.cpu.lanes import broadcast

__all__ = ["FLIP", "dot_words", "flipped", "offset"]

Value = Any  # llvmlite.ir.Value

_WORD = ir.IntType(32)
FLIP = ir.Constant(_WORD, 0x80808080 - (1 << 32))  # as a mask, it adds 128 to each of four int8; as words of uint8, 128


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's type, for the intrinsics that want it."""

    is_pointer = False
    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_ELEMENTS = {bfloat16: _BFloat(), int16: ir.IntType(16), int8: ir.IntType(8), uint8: ir.IntType(8)}

# Of sums with so many lanes. Those of words of int16 give the products of a word alone.
_NAMES = {
    (bfloat16, 16): "x86.avx512bf16.dpbf16ps.512",  # rounds once to nearest; subnormal numbers count as zero
    (uint8, 16): "x86.avx512.vpdpbusd.512",
    (uint8, 8): "x86.avx512.vpdpbusd.256",
    (int16, 16): "x86.avx512.pmaddw.d.512",
    (int16, 8): "x86.avx2.pmadd.wd",
    (int8, 4): "aarch64.neon.sdot.v4i32.v16i8",
}


def offset(words: DType | None, lanes: int) -> bool:
    """Whether the instruction takes each element of a as 128 more than it is."""
    return words == uint8 or (words == int8 and (int8, lanes) not in _NAMES)


def dot_words(builder: ir.IRBuilder, words: DType, a: Value, b: Value, c: Value) -> Value:
    """c + the products of what the words of a and b hold, lane by lane. Where `offset` says so, a has 128 added to each
    element, and so have the products."""
    lanes = c.type.count
    kind = ir.VectorType(_ELEMENTS[words], lanes * 4 // (1 if words in (int8, uint8) else 2))
    name = "llvm." + _NAMES[uint8 if offset(words, lanes) else words, lanes]
    factors = [builder.bitcast(x, kind) for x in (a, b)]
    args = factors if words == int16 else [c, *factors]
    fn = builder.module.globals.get(name)
    fn = fn or ir.Function(builder.module, ir.FunctionType(c.type, [x.type for x in args]), name)
    products = builder.call(fn, args)
    return builder.add(c, products) if words == int16 else products


def flipped(builder: ir.IRBuilder, words: Value) -> Value:
    """``words`` of int8 with 128 added to each."""
    return builder.xor(words, broadcast(builder, FLIP, words.type.count))
