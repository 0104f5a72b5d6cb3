"""The block product: one register-tiled matrix product, built as LLVM vector IR, under every contraction.

``C[m, n] (+)= A[m, k] B[k, n]`` is cut into tiles of MR x NR elements of C that stay in vector registers for the whole
of k; each step of k loads one row of B as vectors and MR broadcast elements of A, and issues one fused multiply-add per
accumulator (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", TOMS 2008; Georganas et al.,
arXiv 1906.06440). All strides are literals in the code. It runs at the speed of the FMA units when A and B are packed
(A as [k][MR], B as [k][NR], 64-byte aligned) and stays correct for any stride.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from llvmlite import ir

from graphc.dtype import DType, int8, int32
from graphc.dtype import dtype as dtype_of
from graphc.kernels.cpu.builder import Builder
from graphc.kernels.cpu.lanes import (
    LANE_OPS,
    broadcast,
    constant,
    element_type,
    first_lanes,
    prefetch,
    vector_load,
    vector_store,
)
from graphc.kernels.cpu.matrix import BLOCK, STEP, block_product
from graphc.kernels.cpu.vocabulary import Build, Kind, Rule
from graphc.kernels.cpu.words import FLIP, dot_words, flipped, offset
from graphc.loop import LINE

__all__ = ["microkernel"]

Value = Any  # llvmlite.ir.Value
Rest = Sequence[Value]  # of what a tile gets: k, and where the blocks lie that are fetched meanwhile

_WORD = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
FETCH_STEPS = 2  # along k for each line that is fetched meanwhile
FETCH_LOCALITY = 2  # LLVM's number of the second level of cache
NEAR_STEPS = 8  # along k, from a fetch of a row of B to the first level of cache to its use
NEAR_LOCALITY = 3  # LLVM's number of the first level of cache
REST_ROWS = 12  # of a block at a time, for what is left along k after AMX
_IN_FLIGHT = 8  # independent FMAs that hide the latency of the FMA units (2 units, 4 cycles)


@dataclass(frozen=True)
class _Tile:
    """``rows`` x ``columns`` of C, as one LLVM function tile(c, a, b, k). Strides in elements."""

    dtype: str
    rows: int
    columns: int
    a_row: int
    a_col: int
    b_row: int
    c_row: int
    accumulate: bool
    lanes: int
    words: DType | None
    repeats: tuple[tuple[int, int, int], ...] = ()
    shared: int = 1  # rows of B, a step of the last repeat apart, that meet one element of A: see `over_k`
    shared_step: int = 0
    ahead: tuple[tuple[int, int, int], ...] = ()  # blocks to fetch: rows, bytes between them, lines of each

    @property
    def element(self) -> ir.Type:
        return element_type(dtype_of(self.dtype))

    @property
    def factor(self) -> DType:
        """The type of A's and B's elements: words, or that of C's."""
        return dtype_of(self.dtype) if self.words is None else int32

    @property
    def alignment(self) -> int | None:
        """Of A's elements in bytes, where it is not that of their type."""
        return None if self.words is None else self.words.itemsize

    @property
    def offset(self) -> bool:
        """Whether the products are of A with 128 added to each element."""
        return offset(self.words, self.lanes)

    @property
    def size(self) -> int:
        """Vectors of sums: those of C and, with ``offset``, a row of what is too much in each of C's."""
        return (self.rows + self.offset) * self.vectors

    @property
    def vectors(self) -> int:
        return -(-self.columns // self.lanes)

    @property
    def rounds(self) -> int:
        """How often k is gone through."""
        return prod(count for count, _, _ in self.repeats)

    @property
    def partials(self) -> int:
        """Accumulators per element of C: several where the tile is too small to keep the units busy."""
        return 1 << max(0, (_IN_FLIGHT // (self.rows * self.vectors)).bit_length() - 1)

    def function(self, module: ir.Module) -> ir.Function:
        """The tile's function in ``module``, built on first use."""
        kind, strides = "add" if self.accumulate else "set", f"a{self.a_row}_{self.a_col}_b{self.b_row}_c{self.c_row}"
        what = self.words or self.dtype
        repeats = "".join(f"_r{count}_{a}_{b}" for count, a, b in self.repeats)
        repeats += f"_s{self.shared}_{self.shared_step}" if self.shared > 1 else ""
        repeats += "".join(f"_f{rows}_{step}_{lines}" for rows, step, lines in self.ahead)
        name = f"tile_{what}_{kind}_{self.rows}x{self.columns}_{strides}{repeats}"
        if name in module.globals:
            return module.globals[name]
        sums, factors = self.element.as_pointer(), element_type(self.factor).as_pointer()
        fetched = [_BYTES] * len(self.ahead)
        fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [sums, factors, factors, _WORD, *fetched]), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        fn.attributes.add("nounwind")
        for arg, arg_name in zip(fn.args, "cabk", strict=False):
            arg.name = arg_name
        self.build(Builder(fn.append_basic_block("entry")), *fn.args)
        return fn

    def build(self, builder: ir.IRBuilder, c: Value, a: Value, b: Value, k: Value, *ahead: Value) -> None:
        """The sum over all repeats and all of k, then C."""
        zero = constant(ir.VectorType(self.element, self.lanes), 0.0 if dtype_of(self.dtype).is_float else 0)
        sums = [zero] * (self.partials * self.size)
        sums = self.over(builder, self.repeats, sums, a, b, k, ahead)
        while len(sums) > self.size:
            half = len(sums) // 2
            sums = [self.add(builder, x, y) for x, y in zip(sums[:half], sums[half:], strict=True)]
        if self.offset:
            excess = sums[self.rows * self.vectors :]
            sums = [builder.sub(s, excess[i % self.vectors]) for i, s in enumerate(sums[: -self.vectors])]
        self.write(builder, c, sums)
        builder.ret_void()

    def while_fetching(
        self, builder: ir.IRBuilder, state: list[Value], k: Value, ahead: Sequence[Value]
    ) -> tuple[list[Value], Value]:
        """``state`` after the first steps of k, and how many these are: `FETCH_STEPS` for each line of ``ahead``, lest
        more lines be under way than a core can wait for. Each repeat fetches as many rows."""
        done: Value = _WORD(0)
        for start, block in zip(ahead, self.ahead, strict=True):
            rows, _, lines = block
            rows //= self.rounds
            steps = _WORD(lines * FETCH_STEPS)
            room = builder.udiv(builder.sub(k, done), steps)
            turns = builder.select(builder.icmp_unsigned("<", room, _WORD(rows)), room, _WORD(rows))
            state = self.fetch(builder, state, turns, start, block)
            done = builder.add(done, builder.mul(turns, steps))
        return state, done

    def fetch(
        self, builder: ir.IRBuilder, state: list[Value], turns: Value, start: Value, block: tuple[int, int, int]
    ) -> list[Value]:
        """``state`` after the steps in which ``turns`` rows are fetched, the first from ``start`` on."""
        _, step, lines = block

        def line(_: Value, carried: list[Value]) -> list[Value]:
            at, *state = carried
            prefetch(builder, at, FETCH_LOCALITY)
            for _ in range(FETCH_STEPS):
                state = self.k_step(builder, state)
            return [builder.gep(at, [_WORD(LINE)]), *state]

        def row(_: Value, carried: list[Value]) -> list[Value]:
            _, *state = _sums(builder, "line", (_WORD(0), _WORD(lines), 1), carried, line)
            return [builder.gep(carried[0], [_WORD(step)]), *state]

        return _sums(builder, "fetch", (_WORD(0), turns, 1), [start, *state], row)[1:]

    def over(
        self,
        builder: ir.IRBuilder,
        repeats: tuple[tuple[int, int, int], ...],
        sums: list[Value],
        a: Value,
        b: Value,
        k: Value,
        ahead: Sequence[Value],
    ) -> list[Value]:
        """``sums`` after all ``repeats`` of all of k, and ``ahead`` fetched."""
        if not repeats:
            return self.over_k(builder, sums, a, b, k, ahead)
        (count, a_step, b_step), rest = repeats[0], repeats[1:]
        inside = prod(size for size, _, _ in rest)
        steps = [a_step, b_step, *(rows // self.rounds * inside * step for rows, step, _ in self.ahead)]

        def once(index: Value, carried: list[Value]) -> list[Value]:
            starts = zip((a, b, *ahead), steps, strict=True)
            at_a, at_b, *fetched = (builder.gep(x, [builder.mul(index, _WORD(step))]) for x, step in starts)
            return self.over(builder, rest, carried, at_a, at_b, k, fetched)

        return _sums(builder, "repeat", (_WORD(0), _WORD(count), 1), sums, once)

    def over_k(
        self, builder: ir.IRBuilder, sums: list[Value], a: Value, b: Value, k: Value, ahead: Sequence[Value]
    ) -> list[Value]:
        """``sums`` after all of k, ``partials`` steps at a time into different accumulators, then those left.

        ``shared`` repeats of this, in which A advances by a row, are done at once: row i of A in one is row i - 1 in
        the next, so that each of its elements is brought in once.
        """
        size, state = self.size, [a, b, *sums]
        if ahead and self.partials == 1:
            state, done = self.while_fetching(builder, state, k, ahead)
            k = builder.sub(k, done)

        def steps(count: int) -> Callable[[Value, list[Value]], list[Value]]:
            def body(_: Value, carried: list[Value]) -> list[Value]:
                places, new = carried[:2], carried[2:]
                for u in range(count):
                    own = slice(u * size, (u + 1) * size)
                    first, second, *new[own] = self.k_step(builder, [*places, *new[own]])
                    places = [first, second]
                return [*places, *new]

            return body

        whole = builder.and_(k, _WORD(-self.partials))
        state = _sums(builder, "k", (_WORD(0), whole, self.partials), state, steps(self.partials))
        if self.partials > 1:
            state = _sums(builder, "k_rest", (whole, k, 1), state, steps(1))
        return state[2:]

    def k_step(self, builder: ir.IRBuilder, state: list[Value]) -> list[Value]:
        """One rank-1 update of the tile: a column of A times a row of B. ``state`` is where they lie and the sums; what
        it returns, where the next lie and the new sums. Nothing later finds out that an address is the last one's and a
        step (`graphc.kernels.cpu.build.object_code`)."""
        column, row, *sums = state
        rows = [builder.gep(row, [_WORD(j * self.shared_step)]) for j in range(self.shared)]
        if self.rows + 2 * self.vectors <= self.rows * self.vectors:  # loads and fetches take no longer than the FMAs
            self.fetch_near(builder, rows)
        b_vectors = [[self.load(builder, self.factor, at, v) for v in range(self.vectors)] for at in rows]
        out = list(sums)
        for i in range(self.rows + self.shared - 1):
            element = builder.load(builder.gep(column, [_WORD(i * self.a_row)]), align=self.alignment)
            wide = broadcast(builder, element, self.lanes)
            if self.offset and self.words == int8:
                wide = flipped(builder, wide)
            for j in range(max(0, i - self.rows + 1), min(self.shared, i + 1)):
                for v, b_vector in enumerate(b_vectors[j]):
                    at = (i - j) * self.vectors + v
                    out[at] = self.multiply_add(builder, wide, b_vector, out[at])
        if self.offset:
            excess = broadcast(builder, FLIP, self.lanes)
            for v, b_vector in enumerate(b_vectors[0], self.rows * self.vectors):
                out[v] = self.multiply_add(builder, excess, b_vector, out[v])
        return [builder.gep(column, [_WORD(self.a_col)]), builder.gep(row, [_WORD(self.b_row)]), *out]

    def fetch_near(self, builder: ir.IRBuilder, rows: list[Value]) -> None:
        """Bring the rows of B that follow ``rows`` by some steps to the first level of cache: a panel streams through
        it, and instructions are not reordered across so many cycles that every wait for the second level is hidden."""
        for row in rows:
            for column in range(0, self.columns, LINE // self.factor.itemsize):
                at = builder.gep(row, [_WORD(NEAR_STEPS * self.b_row + column)])
                prefetch(builder, at, NEAR_LOCALITY)

    def multiply_add(self, builder: ir.IRBuilder, a: Value, b: Value, c: Value) -> Value:
        if self.words is None:
            return LANE_OPS["fma"](builder, dtype_of(self.dtype), a, b, c)
        return dot_words(builder, self.words, a, b, c)

    def add(self, builder: ir.IRBuilder, a: Value, b: Value) -> Value:
        return LANE_OPS["add"](builder, dtype_of(self.dtype), a, b)

    def write(self, builder: ir.IRBuilder, c: Value, sums: list[Value]) -> None:
        for i in range(self.rows):
            row = builder.gep(c, [_WORD(i * self.c_row)])
            for v in range(self.vectors):
                value = sums[i * self.vectors + v]
                if self.accumulate:
                    value = self.add(builder, self.load(builder, dtype_of(self.dtype), row, v), value)
                at = builder.gep(row, [_WORD(v * self.lanes)])
                vector_store(builder, dtype_of(self.dtype), at, 1, value, self.mask(v))

    def load(self, builder: ir.IRBuilder, dtype: DType, row: Value, v: int) -> Value:
        at = builder.gep(row, [_WORD(v * self.lanes)])
        return vector_load(builder, dtype, at, 1, self.lanes, self.mask(v))

    def mask(self, v: int) -> Value | None:
        """The lanes of vector ``v`` that lie inside the tile; None for all."""
        active = self.columns - v * self.lanes
        if active >= self.lanes:
            return None
        return first_lanes(active, self.lanes)


def _sums(
    builder: ir.IRBuilder,
    name: str,
    trips: tuple[Value, Value, int],
    sums: list[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    """``sums`` after ``body(index, sums)`` for every index from start to stop by step, which are ``trips``."""
    start, stop, step = trips
    before, loop = builder.block, builder.append_basic_block(name)
    after = builder.append_basic_block(f"{name}_done")
    builder.cbranch(builder.icmp_signed("<", start, stop), loop, after)
    builder.position_at_end(loop)
    index = builder.phi(_WORD, name)
    carried = [builder.phi(s.type) for s in sums]
    new = body(index, list(carried))
    following = builder.add(index, _WORD(step))
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)
    last = builder.block
    for phi, first, value in zip([index, *carried], [start, *sums], [following, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(value, last)
    builder.position_at_end(after)
    results = []
    for first, value in zip(sums, new, strict=True):
        result = builder.phi(first.type)
        result.add_incoming(first, before)
        result.add_incoming(value, last)
        results.append(result)
    return results


def _each(builder: ir.IRBuilder, count: int, body: Callable[[Value], None]) -> None:
    """``body(i)`` for i in 0 … count - 1, as a loop when there are several."""
    if count <= 1:
        for _ in range(count):
            body(_WORD(0))
        return
    before = builder.block
    loop, after = builder.append_basic_block("tiles"), builder.append_basic_block("tiles_done")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_WORD, "tile")
    index.add_incoming(_WORD(0), before)
    body(index)
    following = builder.add(index, _WORD(1))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, _WORD(count)), loop, after)
    builder.position_at_end(after)


def _fetch(builder: ir.IRBuilder, start: Value, block: tuple[int, int, int]) -> None:
    """Fetch a block of `_Tile.ahead` at once."""
    rows, step, lines = block

    def line(i: Value, j: Value) -> None:
        at = builder.add(builder.mul(i, _WORD(step)), builder.mul(j, _WORD(LINE)))
        prefetch(builder, builder.gep(start, [at]), FETCH_LOCALITY)

    _each(builder, rows, lambda i: _each(builder, lines, lambda j: line(i, j)))


def microkernel(
    dtype: str,
    *,
    m: int,
    n: int,
    a: tuple[int, int],
    b: int,
    c: int,
    accumulate: bool,
    tile: tuple[int, int],
    lanes: int,
    words: str = "",
    repeats: tuple[tuple[int, int, int], ...] = (),
    shared: bool = False,
    ahead: tuple[tuple[int, int, int], ...] = (),
    matrix: bool = False,
) -> Rule:
    """The word ``product(c, c_index, a, a_index, b, b_index, k)`` over typed pointers and element indices.

    ``dtype`` is float32, float64 or int32; ``a`` has strides (row, column), ``b`` and ``c`` a row stride and unit
    columns. With ``words`` the elements of A and B are words of several of that type (`Contract.words`), and k counts
    the words; with ``matrix`` the block is whole blocks of AMX, with the rows of A along k. The sum goes over
    ``repeats`` as well, each (count, step of a, step of b); ``shared``: the last of them, in which A advances by a row,
    reads each element of A once. ``ahead`` are blocks of memory that are fetched meanwhile, each (rows, bytes from one
    to the next, lines of each), whose pointers and indices follow k; each repeat fetches as many rows, and what is left
    over is not fetched. ``tile`` is (MR, NR) and ``lanes`` the elements of
    a vector register. A panel of NR columns of B is used by all rows before the next one. Memory past column n of B and
    C is neither read nor written.
    """

    held = dtype_of(words) if words else None

    def blocks(builder: ir.IRBuilder, c0: Value, a0: Value, b0: Value, k: Value) -> None:
        """Whole blocks on AMX, and the words that are left along k on vectors."""
        whole = builder.and_(k, _WORD(-STEP))
        assert held is not None
        block = block_product(builder.module, held, a[0], b, c, accumulate)
        rest = builder.sub(k, whole)

        def each(i: Value, j: Value) -> None:
            c1 = builder.gep(c0, [builder.add(builder.mul(i, _WORD(BLOCK * c)), builder.mul(j, _WORD(BLOCK)))])
            a1 = builder.gep(a0, [builder.mul(i, _WORD(BLOCK * a[0]))])
            b1 = builder.gep(b0, [builder.mul(j, _WORD(BLOCK))])
            builder.call(block, [c1, a1, b1, whole])
            with builder.if_then(builder.icmp_signed(">", rest, _WORD(0))):
                a2, b2 = builder.gep(a1, [whole]), builder.gep(b1, [builder.mul(whole, _WORD(b))])
                for first in range(0, BLOCK, REST_ROWS):
                    rows = min(REST_ROWS, BLOCK - first)
                    shape = _Tile(dtype, rows, BLOCK, a[0], a[1], b, c, True, lanes, held)
                    at = builder.gep(c1, [_WORD(first * c)]), builder.gep(a2, [_WORD(first * a[0])])
                    builder.call(shape.function(builder.module), [*at, b2, rest])

        _each(builder, m // BLOCK, lambda i: _each(builder, n // BLOCK, lambda j: each(i, j)))

    def call_tile(builder: ir.IRBuilder, c0: Value, a0: Value, b0: Value, rest: Rest, rows: int, columns: int) -> None:
        outer, last = (repeats[:-1], repeats[-1]) if shared else (repeats, (1, 0, 0))
        strides = a[0], a[1], b, c
        shape = _Tile(dtype, rows, columns, *strides, accumulate, lanes, held, outer, last[0], last[2], ahead)
        builder.call(shape.function(builder.module), [c0, a0, b0, *rest])

    def panel(builder: ir.IRBuilder, c0: Value, a0: Value, b0: Value, rest: Rest, columns: int) -> None:
        def rows_at(i: Value, rows: int) -> None:
            c1 = builder.gep(c0, [builder.mul(i, _WORD(tile[0] * c))])
            a1 = builder.gep(a0, [builder.mul(i, _WORD(tile[0] * a[0]))])
            call_tile(builder, c1, a1, b0, rest, rows, columns)

        _each(builder, m // tile[0], lambda i: rows_at(i, tile[0]))
        if m % tile[0]:
            rows_at(_WORD(m // tile[0]), m % tile[0])

    def build(builder: ir.IRBuilder, *values: Value) -> None:
        c0, a0, b0 = (builder.gep(values[i], [values[i + 1]]) for i in (0, 2, 4))
        fetched = [builder.bitcast(builder.gep(values[i], [values[i + 1]]), _BYTES) for i in range(7, len(values), 2)]
        if matrix:
            for start, what in zip(fetched, ahead, strict=True):
                _fetch(builder, start, what)
            blocks(builder, c0, a0, b0, values[6])
            return

        def columns_at(j: Value, columns: int) -> None:
            at = builder.mul(j, _WORD(tile[1]))
            panel(builder, builder.gep(c0, [at]), a0, builder.gep(b0, [at]), [values[6], *fetched], columns)

        _each(builder, n // tile[1], lambda j: columns_at(j, tile[1]))
        if n % tile[1]:
            columns_at(_WORD(n // tile[1]), n % tile[1])

    def product(*operands: Kind) -> tuple[Kind, Build]:
        return None, build

    return product
