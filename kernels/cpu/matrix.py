"""The block product on AMX: 32 x 32 elements of C in four tile registers, words of A and B in four more.

A tile register has 16 rows of 64 bytes. One instruction multiplies 16 rows of A, of 16 words of two bfloat16 or four
int8 each, by 16 rows of B, and adds to 16 x 16 sums: 8,192 or 16,384 products (Intel, "Intrinsics Guide", AMX-BF16 and
AMX-INT8; measured: 2.6 TFLOP/s a core in bfloat16, 16 times float32). Sums of bfloat16 are float32 and round to
nearest; subnormal numbers count as zero. A kernel sets the registers up when it begins and releases them when it ends,
so that nothing else of the process knows of them; both together take as long as a block over 200 words.
"""

from __future__ import annotations

import struct
from typing import Any

from llvmlite import ir

from graphc.dtype import DType, bfloat16, int8
from graphc.kernels.cpu.builder import Builder

__all__ = [
    "BLOCK", "CONFIG", "PRODUCT", "STEP", "SUMS", "block_product", "load_tile", "release", "set_up", "store_tile",
    "tile_call", "zero_tile",
]  # fmt: skip

Value = Any  # llvmlite.ir.Value

BLOCK = 32  # rows and columns of C
STEP = 16  # words along k of one instruction

_WORD, _BYTE = ir.IntType(64), ir.IntType(8)
_ANY = _BYTE.as_pointer()
SUMS = ((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1))  # register, its place in C: row and column of tiles
PRODUCT = {bfloat16: "tdpbf16ps", int8: "tdpbssd"}
# Palette 1; eight registers of 64 bytes a row, 16 rows each.
CONFIG = struct.pack("<B15x8H16x8B8x", 1, *[64] * 8, *[16] * 8)


def block_product(module: ir.Module, words: DType, a_row: int, b_row: int, c_row: int, accumulate: bool) -> ir.Function:
    """``block(c, a, b, k)`` in ``module``: C (+)= A B over ``k`` words, a multiple of `STEP`. Row strides in elements;
    c is a pointer to float32 or int32, a and b are pointers to int32. The registers are set up."""
    name = f"block_{words}_{'add' if accumulate else 'set'}_a{a_row}_b{b_row}_c{c_row}"
    if name in module.globals:
        return module.globals[name]
    factors = ir.IntType(32).as_pointer()
    sums = ir.FloatType().as_pointer() if words.is_float else factors
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [sums, factors, factors, _WORD]), name)
    fn.linkage = "internal"
    fn.attributes.add("noinline")
    fn.attributes.add("nounwind")
    builder = Builder(fn.append_basic_block("entry"))
    c, a, b, k = fn.args
    _Block(builder, PRODUCT[words], a_row, b_row, c_row).build(c, a, b, k, accumulate)
    return fn


class _Block:
    """The instructions of one function."""

    def __init__(self, builder: ir.IRBuilder, product: str, a_row: int, b_row: int, c_row: int):
        self.product = product
        self.builder, self.a_row, self.b_row, self.c_row = builder, a_row, b_row, c_row

    def build(self, c: Value, a: Value, b: Value, k: Value, accumulate: bool) -> None:
        builder = self.builder
        for register, i, j in SUMS:
            if accumulate:
                load_tile(builder, register, c, i * 16 * self.c_row + j * 16, self.c_row)
            else:
                zero_tile(builder, register)
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("k_done")
        builder.cbranch(builder.icmp_signed("<", _WORD(0), k), loop, after)
        builder.position_at_end(loop)
        at = builder.phi(_WORD, "k")
        at.add_incoming(_WORD(0), before)
        self.step(builder.gep(a, [at]), builder.gep(b, [builder.mul(at, _WORD(self.b_row))]))
        following = builder.add(at, _WORD(STEP))
        at.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
        builder.position_at_end(after)
        for register, i, j in SUMS:
            store_tile(builder, register, c, i * 16 * self.c_row + j * 16, self.c_row)
        builder.ret_void()

    def step(self, a: Value, b: Value) -> None:
        """16 words along k: two registers of A, two of B, four products."""
        for i in range(2):
            load_tile(self.builder, 4 + i, a, i * 16 * self.a_row, self.a_row)
            load_tile(self.builder, 6 + i, b, i * 16, self.b_row)
        for register, i, j in SUMS:
            tile_call(self.builder, self.product, register, 4 + i, 6 + j)


def load_tile(builder: ir.IRBuilder, register: int, base: Value, offset: int, row: int) -> None:
    """16 rows, ``row`` elements apart, from element ``offset`` on to a register."""
    _move(builder, "tileloadd64", register, base, offset, row)


def store_tile(builder: ir.IRBuilder, register: int, base: Value, offset: int, row: int) -> None:
    """The other way round."""
    _move(builder, "tilestored64", register, base, offset, row)


def zero_tile(builder: ir.IRBuilder, register: int) -> None:
    tile_call(builder, "tilezero", register)


def tile_call(builder: ir.IRBuilder, name: str, *registers: int) -> None:
    """An instruction that has registers alone."""
    _call(builder, name, *map(_register, registers))


def _move(builder: ir.IRBuilder, what: str, register: int, base: Value, offset: int, row: int) -> None:
    at = builder.bitcast(builder.gep(base, [_WORD(offset)]), _ANY)
    _call(builder, what, _register(register), at, _WORD(4 * row))


def set_up(builder: ir.IRBuilder) -> None:
    """From here to `release` the tile registers are as `block_product` wants them."""
    _call(builder, "ldtilecfg", builder.bitcast(_config(builder.module), _ANY))


def release(builder: ir.IRBuilder) -> None:
    _call(builder, "tilerelease")


def _call(builder: ir.IRBuilder, name: str, *args: Value) -> None:
    module, full = builder.module, f"llvm.x86.{name}"
    kind = ir.FunctionType(ir.VoidType(), [a.type for a in args])
    builder.call(module.globals.get(full) or ir.Function(module, kind, full), args)


def _register(number: int) -> ir.Constant:
    return ir.Constant(_BYTE, number)


def _config(module: ir.Module) -> ir.GlobalVariable:
    """How the registers are set up, as a constant of ``module``."""
    if "tile_config" in module.globals:
        return module.globals["tile_config"]
    kind = ir.ArrayType(_BYTE, len(CONFIG))
    config = ir.GlobalVariable(module, kind, "tile_config")
    config.linkage, config.global_constant, config.align = "internal", True, 64
    config.initializer = ir.Constant(kind, bytearray(CONFIG))
    return config
