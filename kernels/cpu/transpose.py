"""The block transposition: squares of vectors turned in registers, under every packing of a matrix that lies the
other way round.

A square of ``lanes`` vectors is transposed by log2(lanes) rounds of perfect shuffles: each round interleaves vector i
with vector i + lanes/2 (Stone, "Parallel processing with the perfect shuffle", IEEE Trans. Computers C-20, 1971). Per
element that is a quarter of a shuffle on AVX-512, where a gather costs a load and more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from graphc.dtype import DType
from graphc.dtype import dtype as dtype_of
from graphc.kernels.cpu.builder import Builder
from graphc.kernels.cpu.lanes import cast, constant, element_type, first_lanes, ramp, vector_load, vector_store
from graphc.kernels.cpu.vocabulary import Build, Kind, Rule

__all__ = ["loop", "transpose"]

Value = Any  # llvmlite.ir.Value

_WORD = ir.IntType(64)
_LANE = ir.IntType(32)


def transpose(dtype: str, *, m: int, a: int, c: int, lanes: int, source: str | None = None) -> Rule:
    """The word ``turn(c, c_index, a, a_index, n)``: c[j, i] = a[i, j] for i < m, j < n, over typed pointers.

    ``a`` and ``c`` are the row strides in elements; columns are contiguous. Nothing past row or column m, n is touched.
    ``source`` is the type of a's elements, if it is not ``dtype``.
    """
    block = _Block(dtype_of(source or dtype), dtype_of(dtype), m, a, c, lanes)

    def build(builder: ir.IRBuilder, *values: Value) -> None:
        c0, a0 = (builder.gep(values[i], [values[i + 1]]) for i in (0, 2))
        n = values[4]
        whole = isinstance(n, ir.Constant) and n.constant % lanes == 0
        builder.call(block.function(builder.module, whole), [c0, a0, n])

    def turn(*operands: Kind) -> tuple[Kind, Build]:
        return None, build

    return turn


@dataclass(frozen=True)
class _Block:
    """``rows`` rows of A, with row stride ``a``, that become columns of C, with row stride ``c``, as one LLVM function
    turn(c, a, n)."""

    source: DType
    target: DType
    rows: int
    a: int
    c: int
    lanes: int

    def function(self, module: ir.Module, whole: bool) -> ir.Function:
        """The block's function in ``module``, built on first use; ``whole``: n is a multiple of the lanes."""
        name = f"turn_{self.source}_{self.target}_{self.rows}_a{self.a}_c{self.c}{'_whole' if whole else ''}"
        if name in module.globals:
            return module.globals[name]
        pointers = [element_type(d).as_pointer() for d in (self.target, self.source)]
        fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [*pointers, _WORD]), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        fn.attributes.add("nounwind")
        self.build(Builder(fn.append_basic_block("entry")), *fn.args, whole=whole)
        return fn

    def build(self, builder: ir.IRBuilder, c0: Value, a0: Value, n: Value, *, whole: bool) -> None:
        stop = builder.and_(n, _WORD(-self.lanes))
        loop(builder, stop, self.lanes, lambda j: self.squares(builder, c0, a0, j, None))
        if not whole:
            rest = builder.sub(n, stop)
            with builder.if_then(builder.icmp_signed(">", rest, _WORD(0))):
                self.squares(builder, c0, a0, stop, rest)
        builder.ret_void()

    def squares(self, builder: ir.IRBuilder, c0: Value, a0: Value, j: Value, columns: Value | None) -> None:
        """All rows of up to ``lanes`` columns (``columns``; None for all) from column j on."""

        def square(i: Value, rows: int) -> None:
            first = builder.gep(a0, [builder.add(j, builder.mul(i, _WORD(self.a)))])
            target = builder.gep(c0, [builder.add(builder.mul(j, _WORD(self.c)), i)])
            kinds = self.source, self.target
            _square(builder, kinds, first, self.a, target, self.c, self.lanes, rows, columns)

        full = self.rows // self.lanes * self.lanes
        if full:
            loop(builder, _WORD(full), self.lanes, lambda i: square(i, self.lanes))
        if self.rows > full:
            square(_WORD(full), self.rows - full)


def _square(
    builder: ir.IRBuilder,
    kinds: tuple[DType, DType],
    source: Value,
    a: int,
    target: Value,
    c: int,
    lanes: int,
    rows: int,
    columns: Value | None,
) -> None:
    """``rows`` rows of up to ``lanes`` elements (``columns``; None for all) become the columns of ``target``;
    ``kinds`` are the types of both."""
    inside = None if columns is None else _below(builder, columns, lanes)
    zero = constant(ir.VectorType(element_type(kinds[1]), lanes), 0)

    def row(i: int) -> Value:
        vector = vector_load(builder, kinds[0], builder.gep(source, [_WORD(i * a)]), 1, lanes, inside)
        return cast(builder, vector, *kinds)

    vectors = [row(i) if i < rows else zero for i in range(lanes)]
    mask = None if rows == lanes else first_lanes(rows, lanes)
    for j, vector in enumerate(_turned(builder, vectors)):

        def put(j: int = j, vector: Value = vector) -> None:
            vector_store(builder, kinds[1], builder.gep(target, [_WORD(j * c)]), 1, vector, mask)

        if columns is None:
            put()
        else:
            with builder.if_then(builder.icmp_signed("<", _WORD(j), columns)):
                put()


def _turned(builder: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """The columns of a square of vectors."""
    lanes = len(vectors)
    half = lanes // 2
    low = ir.Constant(ir.VectorType(_LANE, lanes), [i // 2 + i % 2 * lanes for i in range(lanes)])
    high = ir.Constant(ir.VectorType(_LANE, lanes), [half + i // 2 + i % 2 * lanes for i in range(lanes)])
    for _ in range(lanes.bit_length() - 1):
        vectors = [
            builder.shuffle_vector(vectors[i], vectors[i + half], order) for i in range(half) for order in (low, high)
        ]
    return vectors


def loop(builder: ir.IRBuilder, stop: Value, step: int, body: Callable[[Value], None]) -> None:
    """``body(j)`` for j = 0, step, … below ``stop``."""
    before = builder.block
    inside, after = builder.append_basic_block("turn"), builder.append_basic_block("turned")
    builder.cbranch(builder.icmp_signed("<", _WORD(0), stop), inside, after)
    builder.position_at_end(inside)
    j = builder.phi(_WORD, "column")
    j.add_incoming(_WORD(0), before)
    body(j)
    following = builder.add(j, _WORD(step))
    j.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)
    builder.position_at_end(after)


def _below(builder: ir.IRBuilder, count: Value, lanes: int) -> Value:
    """The mask of the first ``count`` lanes."""
    one = builder.insert_element(ir.Constant(ir.VectorType(_WORD, lanes), ir.Undefined), count, _LANE(0))
    all_ = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_LANE, lanes), [0] * lanes))
    return builder.icmp_signed("<", ramp(_WORD, lanes), all_)
