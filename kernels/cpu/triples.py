"""Products of float32 on AMX, which multiplies bfloat16: each factor as three bfloat16, and six products of those.

x = x1 + x2 + x3 without an error: x1 is x rounded to the 8 bits of bfloat16, x2 what is left, rounded, x3 the rest,
which has 8 bits. All products of parts are exact in float32. Those of x1 y1, x1 y2, x2 y1, x1 y3, x2 y2 and x3 y1 are
added in float32; the others are below 2**-24 of x y. So the sums are as good as those of multiply-adds of float32
(Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision Computations",
arXiv 1904.06376; XLA calls it BF16_BF16_F32_X6), at up to 16 / 6 of the speed of the vectors' multiply-adds.

Where it differs: AMX takes subnormal numbers as zero, so parts below 2**-126 are lost, and with them bits of elements
below 2**-110; an infinity leaves a part that is not a number, so its products are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from graphc.dtype import bfloat16, float32
from graphc.kernels.cpu.builder import Builder
from graphc.kernels.cpu.lanes import constant, first_lanes, prefetch, vector_load
from graphc.kernels.cpu.matrix import PRODUCT, SUMS, load_tile, store_tile, tile_call, zero_tile
from graphc.kernels.cpu.microkernel import FETCH_LOCALITY
from graphc.kernels.cpu.transpose import loop
from graphc.kernels.cpu.vocabulary import Build, Kind, Rule
from graphc.loop import LINE, TRIPLE_BLOCK, TRIPLE_STEP, TRIPLE_WORDS

__all__ = ["triple_product", "triples"]

Value = Any  # llvmlite.ir.Value

_WORD = ir.IntType(64)
_INT32 = ir.IntType(32)
_BYTES = ir.IntType(8).as_pointer()
_LANES = 16
_FLOATS, _BITS = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(_INT32, _LANES)
_PART = TRIPLE_WORDS // 3  # words of the parts of one kind in a step
_UPPER = constant(_BITS, -(1 << 16))  # the bits of a float32 that a bfloat16 has
_HALF = constant(_BITS, 1 << 15)  # half of their last place

# Parts of A and B, of which each product needs one more than the one before.
_PRODUCTS = ((2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2))
_A, _B = 4, 6  # registers of two tiles each


def triples(*, m: int, a: int, left: bool) -> Rule:
    """The word ``split(c, c_index, a, a_index, steps)``: `graphc.loop.Triples` of ``m`` rows or columns; ``a`` is the
    row stride."""
    block = _Split(m, a, left)

    def build(builder: ir.IRBuilder, *values: Value) -> None:
        c, x = (builder.gep(values[i], [values[i + 1]]) for i in (0, 2))
        builder.call(block.function(builder.module), [c, x, values[4]])

    return _statement(build)


def triple_product(*, c: int, accumulate: bool, ahead: tuple[tuple[int, int, int], ...] = ()) -> Rule:
    """The word ``product(c, c_index, a, a_index, b, b_index, steps)``: `graphc.loop.TripleProduct`; ``c`` is the row
    stride. ``ahead`` are blocks that are fetched meanwhile, each (rows of a step, bytes from one to the next, lines of
    each), whose pointers and indices follow."""
    block = _Product(c, accumulate, ahead)

    def build(builder: ir.IRBuilder, *values: Value) -> None:
        places = [builder.gep(values[i], [values[i + 1]]) for i in (0, 2, 4)]
        fetched = [builder.bitcast(builder.gep(values[i], [values[i + 1]]), _BYTES) for i in range(7, len(values), 2)]
        builder.call(block.function(builder.module), [*places, values[6], *fetched])

    return _statement(build)


def _statement(build: Build) -> Rule:
    def rule(*operands: Kind) -> tuple[Kind, Build]:
        return None, build

    return rule


def _function(module: ir.Module, name: str, arguments: list[ir.Type]) -> ir.Function:
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    fn.linkage = "internal"
    fn.attributes.add("noinline")
    fn.attributes.add("nounwind")
    return fn


@dataclass(frozen=True)
class _Split:
    """One LLVM function split(c, a, steps)."""

    m: int
    a: int
    left: bool

    def function(self, module: ir.Module) -> ir.Function:
        name = f"triples_{'left' if self.left else 'right'}_{self.m}_a{self.a}"
        if name in module.globals:
            return module.globals[name]
        fn = _function(module, name, [_INT32.as_pointer(), ir.FloatType().as_pointer(), _WORD])
        builder = Builder(fn.append_basic_block("entry"))
        c, a, steps = fn.args
        advance = TRIPLE_STEP if self.left else TRIPLE_STEP * self.a

        def step(s: Value) -> None:
            c0 = builder.gep(c, [builder.mul(s, _WORD(TRIPLE_WORDS))])
            a0 = builder.gep(a, [builder.mul(s, _WORD(advance))])
            (self.rows if self.left else self.columns)(builder, c0, a0)

        loop(builder, steps, 1, step)
        builder.ret_void()
        return fn

    def rows(self, builder: ir.IRBuilder, c: Value, a: Value) -> None:
        """A step of a left factor: elements along k lie together."""

        def row(i: Value) -> None:
            at = builder.gep(a, [builder.mul(i, _WORD(self.a))])
            pair = (at, builder.gep(at, [_WORD(_LANES)]))
            self.split(builder, builder.gep(c, [builder.mul(i, _WORD(_LANES))]), pair, None)

        loop(builder, _WORD(self.m), 1, row)

    def columns(self, builder: ir.IRBuilder, c: Value, a: Value) -> None:
        """A step of a right factor: its columns lie together."""

        def row(k: Value) -> None:
            at = builder.gep(a, [builder.mul(k, _WORD(self.a))])
            below = builder.gep(at, [_WORD(_LANES * self.a)])
            into = builder.gep(c, [builder.mul(k, _WORD(TRIPLE_BLOCK))])
            for first in range(0, TRIPLE_BLOCK, _LANES):
                there = min(max(self.m - first, 0), _LANES)
                mask = None if there == _LANES else first_lanes(there, _LANES)
                pair = builder.gep(at, [_WORD(first)]), builder.gep(below, [_WORD(first)])
                self.split(builder, builder.gep(into, [_WORD(first)]), pair, mask)

        loop(builder, _WORD(_LANES), 1, row)

    def split(self, builder: ir.IRBuilder, c: Value, pair: tuple[Value, Value], mask: Value | None) -> None:
        """A vector of words of each part, from the elements for their lower and for their upper halves."""
        x, y = (vector_load(builder, float32, at, 1, _LANES, mask) for at in pair)
        for part in range(3):
            (low, x), (high, y) = (_part(builder, v, part) for v in (x, y))
            words = builder.or_(builder.lshr(low, constant(_BITS, 16)), high)
            at = builder.gep(c, [_WORD(part * _PART)])
            builder.store(words, builder.bitcast(at, _BITS.as_pointer()), align=LINE)


def _part(builder: ir.IRBuilder, x: Value, part: int) -> tuple[Value, Value]:
    """The highest bits of ``x``, as bits of float32, and what is left of it. The last part is cut off, not rounded:
    it has no more bits, and a NaN stays one. Of those before, rounding may make one of the largest NaN a number; what
    is left is NaN then."""
    bits = builder.bitcast(x, _BITS)
    if part == 2:
        return builder.and_(bits, _UPPER), x
    upper = builder.and_(builder.add(bits, _HALF), _UPPER)
    return upper, builder.fsub(x, builder.bitcast(upper, _FLOATS))


@dataclass(frozen=True)
class _Product:
    """One LLVM function product(c, a, b, steps, places to fetch from...). The registers are set up."""

    c: int
    accumulate: bool
    ahead: tuple[tuple[int, int, int], ...]

    def function(self, module: ir.Module) -> ir.Function:
        blocks = "".join(f"_{rows}x{step}x{lines}" for rows, step, lines in self.ahead)
        name = f"triple_product_{'add' if self.accumulate else 'set'}_c{self.c}{blocks}"
        if name in module.globals:
            return module.globals[name]
        words = _INT32.as_pointer()
        fn = _function(module, name, [ir.FloatType().as_pointer(), words, words, _WORD, *[_BYTES] * len(self.ahead)])
        builder = Builder(fn.append_basic_block("entry"))
        c, a, b, steps, *fetched = fn.args
        for register, i, j in SUMS:
            if self.accumulate:
                load_tile(builder, register, c, i * 16 * self.c + j * 16, self.c)
            else:
                zero_tile(builder, register)

        def step(s: Value) -> None:
            at = builder.mul(s, _WORD(TRIPLE_WORDS))
            self.products(builder, builder.gep(a, [at]), builder.gep(b, [at]))
            for start, block in zip(fetched, self.ahead, strict=True):
                self.fetch(builder, s, start, *block)

        loop(builder, steps, 1, step)
        for register, i, j in SUMS:
            store_tile(builder, register, c, i * 16 * self.c + j * 16, self.c)
        builder.ret_void()
        return fn

    def products(self, builder: ir.IRBuilder, a: Value, b: Value) -> None:
        """Of one step: two tiles of each part of A, one below the other; two of B, side by side."""
        held: tuple[int, int] = (-1, -1)
        for parts in _PRODUCTS:
            for tile in range(2):
                if parts[0] != held[0]:
                    load_tile(builder, _A + tile, a, parts[0] * _PART + tile * _PART // 2, _LANES)
                if parts[1] != held[1]:
                    load_tile(builder, _B + tile, b, parts[1] * _PART + tile * _LANES, TRIPLE_BLOCK)
            for register, i, j in SUMS:
                tile_call(builder, PRODUCT[bfloat16], register, _A + i, _B + j)
            held = parts

    def fetch(self, builder: ir.IRBuilder, s: Value, start: Value, rows: int, step: int, lines: int) -> None:
        """A step's rows of a block."""
        for row in range(rows):
            at = builder.gep(start, [builder.mul(builder.add(builder.mul(s, _WORD(rows)), _WORD(row)), _WORD(step))])
            for line in range(lines):
                prefetch(builder, builder.gep(at, [_WORD(line * LINE)]), FETCH_LOCALITY)
