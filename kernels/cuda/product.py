"""Block products as calls of ``product.cuh``: which of its building blocks, the memory that it needs, its text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from math import gcd

from graphc.dtype import bfloat16
from graphc.kernels.cuda.facts import Facts
from graphc.kernels.emit_text import short
from graphc.loop import BlockProduct, Contract, Operand, Scratch, Var

__all__ = ["as_block_product", "memory_bytes", "passes_through_result", "printed", "with_wide_factors"]

SMALL = 64  # rows and columns of the smallest product
STEPS, STAGES, PAD = 32, 3, 8  # of `TensorProduct`
TENSOR = 8  # 16-bit elements in 16 bytes


def as_block_product(stmt: Contract) -> BlockProduct | None:
    """A product of a CPU's register tiles as one of a block; None where it is larger than one, or of words."""
    if stmt.words is not None or max(stmt.m, stmt.n) > SMALL:
        return None
    tile = (SMALL, SMALL)
    return BlockProduct(
        stmt.c, stmt.a, stmt.b, stmt.m, stmt.n, stmt.k, stmt.dtype, stmt.dtype, tile, stmt.accumulate, stmt.repeats
    )


def memory_bytes(stmt: BlockProduct) -> int:
    """Shared memory that the factors pass through. ``product.cuh`` has the same sums (BYTES), and checks them."""
    if not stmt.factors.is_half:
        return 16 * (sum(stmt.tile) + 8) * stmt.dtype.itemsize
    together = (stmt.a.col == 1, stmt.b.row == 1)
    lines = [n * (STEPS + PAD) if t else STEPS * (n + PAD) for n, t in zip(stmt.tile, together, strict=True)]
    return STAGES * 2 * sum(lines)


def passes_through_result(stmt: BlockProduct, scratch: Iterable[Scratch]) -> bool:
    """Whether the factors may pass through the memory of the result, which is written when all sums are made."""
    sizes = {s.name: s.size * s.dtype.itemsize for s in scratch}
    return not stmt.accumulate and sizes.get(stmt.c.buffer, 0) >= memory_bytes(stmt)


def with_wide_factors(stmt: BlockProduct, facts: Facts, aligned: Collection[str]) -> BlockProduct:
    """``stmt`` with what is known of its 16-bit factors: whether they may be read 16 bytes at a time."""
    if not stmt.factors.is_half:
        return stmt

    def wide(x: Operand, far: int, near: int, length: int | Var, side: int) -> bool:
        """``near`` is the stride of neighbours, ``length`` their number, ``far`` the other stride."""
        steps = gcd(far, *(r[side] for r in stmt.repeats), facts.place(x.index), facts.multiple(length))
        return near == 1 and x.buffer in aligned and steps % TENSOR == 0

    a, b = stmt.a, stmt.b
    first = wide(a, a.row, a.col, stmt.k, 1) if a.col == 1 else wide(a, a.col, a.row, stmt.m, 1)
    second = wide(b, b.col, b.row, stmt.k, 2) if b.row == 1 else wide(b, b.row, b.col, stmt.n, 2)
    return replace(stmt, wide=(first, second))


def printed(
    stmt: BlockProduct, operands: Sequence[tuple[str, str]], sizes: Sequence[str], threads: int, memory: str
) -> list[str]:
    """The lines of one product; ``operands`` c, a, b are (buffer, index), ``sizes`` are m, n, k, ``memory`` is what the
    factors pass through."""
    (c, a, b), (m, n, k) = operands, sizes
    strides = f"{stmt.a.row}, {stmt.a.col}, {stmt.b.row}, {stmt.b.col}"
    if stmt.factors.is_half:
        kind = "Bf16" if stmt.factors == bfloat16 else "F16"
        wide = ", ".join(str(w).lower() for w in stmt.wide)
        of = f"TensorProduct<{kind}, {threads}, {stmt.tile[0]}, {stmt.tile[1]}, {strides}, {wide}>"
    else:
        of = (
            f"Product<{short(stmt.dtype)}, {short(stmt.factors)}, {threads}, {stmt.tile[0]}, {stmt.tile[1]}, {strides}>"
        )
    at_a, at_b = ("".join(f" + r{d}_ * {r[side]}" for d, r in enumerate(stmt.repeats)) for side in (1, 2))
    add = f"sums_.add({a[0]} + {a[1]}{at_a}, {b[0]} + {b[1]}{at_b}, {m}, {n}, {k}, {memory});"
    for d, (count, _, _) in reversed(list(enumerate(stmt.repeats))):
        add = f"for (i64 r{d}_ = 0; r{d}_ < {count}; r{d}_++) {add}"
    return [
        "{",
        f"    {of} sums_;",
        f'    static_assert(sums_.BYTES <= {memory_bytes(stmt)}, "factors pass through shared memory");',
        f"    {add}",
        f"    sums_.store<{str(stmt.accumulate).lower()}>({c[0]} + {c[1]}, {stmt.c.row}, {m}, {n});",
        "}",
    ]
