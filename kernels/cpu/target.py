"""What a CPU is, as far as generated code depends on it: ISA level, vector width, registers, register tiles."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache

import llvmlite.binding as llvm

from graphc.dtype import DType, bfloat16, float32, int8, int16, uint8
from graphc.errors import error
from graphc.loop import Contract, Kernel, Stmt, TileStmt, walk
from graphc.system import LEVELS, TILES, allow_tiles, features

__all__ = [
    "BASELINES", "MATRIX", "NATIVE", "PAIRS", "CpuTarget", "baseline", "host", "needed", "runs_here", "targets",
    "with_words",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """An ISA level. ``cpu`` is LLVM's name of a generic processor of that level, not of a model, so that objects run on
    every machine that has ``features`` (LLVM's feature names). ``registers`` counts vector registers of
    ``vector_bytes``; ``tiles`` maps an element size to the microkernel's tile (rows, columns)."""

    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    registers: int
    tiles: tuple[tuple[int, tuple[int, int]], ...]
    name: str = "cpu"

    @property
    def processors(self) -> int:
        """Of blocks of threads: a thread works by itself here."""
        return 0

    @property
    def products(self) -> None:
        """All products are our own."""
        return None

    @property
    def units(self) -> int:
        """Enough for any team of threads."""
        return 64

    @property
    def chunk(self) -> int:
        """16 KiB of float32: a part of the first level of cache."""
        return 4096

    def tile(self, dtype: DType) -> tuple[int, int]:
        """(MR, NR): rows and columns of C that stay in registers during a block product."""
        return dict(self.tiles)[dtype.itemsize]

    def tile_of(self, dtype: DType, m: int, n: int) -> tuple[int, int]:
        """The tile for a block of ``m`` × ``n``: all of it, where it stays in registers."""
        return (m, n) if self.fits(dtype, m + 1, n) else self.tile(dtype)

    def fits(self, dtype: DType, rows: int, columns: int) -> bool:
        """Whether as many rows (of sums, and of b) stay in registers beside an element of a."""
        return -(-columns // self.lanes(dtype)) * rows < self.registers

    def words(self, factors: DType, least: int) -> DType | None:
        """What is in the words in which factors of a type are multiplied (see `Contract.words`), for results with
        ``least`` rows and columns; None where each factor is an element."""
        for feature, words in _WORDS.get(factors, ()):
            if feature in self.features and least >= self.block(words):
                return words
        return None

    def block(self, words: DType | None) -> int:
        """Rows and columns of C in the tile registers of AMX, where these multiply ``words``; else 0."""
        return 32 if words is not None and _MATRIX.get(words) in self.features else 0

    @property
    def triples(self) -> bool:
        """Whether products of float32 can be made of three bfloat16 a factor, in tile registers."""
        return _MATRIX[bfloat16] in self.features

    def lanes(self, dtype: DType) -> int:
        return self.vector_bytes // dtype.itemsize


PAIRS = "avx512bf16"
MATRIX = ("amx-bf16", TILES, PAIRS)
_MATRIX = {bfloat16: "amx-bf16", int8: "amx-int8"}

# Which feature multiplies factors of a type in which words; the best first.
_WORDS: dict[DType, tuple[tuple[str, DType], ...]] = {
    bfloat16: ((PAIRS, bfloat16),),
    int8: (("amx-int8", int8), ("avx512vnni", uint8), ("avxvnni", uint8), ("dotprod", int8), ("avx2", int16)),
}

# Tiles leave room for one row of B and a broadcast of A beside the accumulators: 12*2 of 32, 6*2 of 16, 8*3 of 32.
BASELINES = {
    "x86-64-v4": CpuTarget(
        "x86_64-unknown-linux-gnu", "x86-64-v4", LEVELS["x86-64-v4"], 64, 32, ((4, (12, 32)), (8, (12, 16)))
    ),
    "x86-64-v3": CpuTarget(
        "x86_64-unknown-linux-gnu", "x86-64-v3", LEVELS["x86-64-v3"], 32, 16, ((4, (6, 16)), (8, (6, 8)))
    ),
    "neon": CpuTarget("aarch64-unknown-linux-gnu", "generic", LEVELS["neon"], 16, 32, ((4, (8, 12)), (8, (8, 6)))),
}


NATIVE = "native"  # the best level of this machine, with what more of it a program uses


def host() -> CpuTarget:
    """The best level of `BASELINES` that this machine has. Raises GC0010 where it has none."""
    return _best(features())


@cache
def _best(has: frozenset[str]) -> CpuTarget:
    triple = llvm.get_process_triple()
    for base in BASELINES.values():
        if same_processor(triple, base) and has.issuperset(base.features):
            return replace(base, triple=triple)
    raise error("GC0010", f"no code generator for this processor ({triple} without AVX2)")


def same_processor(triple: str, target: CpuTarget) -> bool:
    """Whether ``triple`` names the architecture of ``target``."""
    return triple.split("-")[0].replace("arm64", "aarch64") == target.triple.split("-")[0]


def baseline(level: str) -> CpuTarget:
    """The target of all machines of a level of `BASELINES`. Raises GC0607 for a level that does not exist."""
    if level not in BASELINES:
        raise error("GC0607", f"there is no CPU baseline {level!r}", hint=f"one of {', '.join([NATIVE, *BASELINES])}")
    base, triple = BASELINES[level], llvm.get_process_triple()
    return replace(base, triple=triple) if same_processor(triple, base) else base


def runs_here(target: CpuTarget) -> bool:
    """Whether this machine can run code for ``target``."""
    return same_processor(llvm.get_process_triple(), target) and features().issuperset(target.features)


def targets(levels: Sequence[str], factors: Collection[DType]) -> list[CpuTarget]:
    """The targets of ``levels``, `NATIVE` or of `BASELINES`, for a program with products of ``factors`` (`with_words`),
    the best first. Raises GC0505 where this machine can run none of them, GC0607 for a level that does not exist."""
    found = {level: with_words(host(), factors) if level == NATIVE else baseline(level) for level in levels}
    if not any(map(runs_here, found.values())):
        level, target = next(iter(found.items()))
        missing = ", ".join(f for f in target.features if f not in features())
        hint = "A program is compiled on a machine that can run it; without a baseline it is for this one."
        raise error("GC0505", f"this machine cannot run code for {level}: it has no {missing}", hint=hint)
    return sorted(set(found.values()), key=lambda t: (-t.vector_bytes, -len(t.features), t.triple))


def with_words(target: CpuTarget, factors: Collection[DType]) -> CpuTarget:
    """``target`` with the instructions of this machine that multiply words of ``factors`` (bfloat16, int8), where it
    gains by them: for programs with such products alone, since no other machine can run them then.

    AMD's cores (Zen 4 on) issue vdpbf16ps as often as float32's multiply-add, which makes twice the products. Intel's
    issue it every other cycle on one of two units, so that factors that are widened while they are packed are
    multiplied twice as fast; but many have AMX, which makes sixteen times the products of float32."""
    has, more = features(), set[str]()
    tiles = TILES in has and target.vector_bytes == 64 and bool(factors) and allow_tiles()
    if bfloat16 in factors:
        if tiles and has.issuperset(MATRIX):
            more.update(MATRIX)
        elif llvm.get_host_cpu_name().startswith("znver"):
            more.add(PAIRS)
    if float32 in factors and tiles:
        more.update((_MATRIX[bfloat16], TILES))
    if int8 in factors:
        more.update(("amx-int8", TILES) if tiles else ())
        more.add({64: "avx512vnni", 32: "avxvnni", 16: "dotprod"}[target.vector_bytes])
    more.intersection_update(has)
    return replace(target, features=tuple(sorted({*target.features, *more}))) if more else target


def needed(target: CpuTarget, kernels: Sequence[Kernel]) -> CpuTarget:
    """``target`` without the tile registers of AMX, where none of its ``kernels`` has work for them: products that are
    small, or made another way."""

    def on_tiles(stmt: Stmt) -> bool:
        return isinstance(stmt, TileStmt) or (isinstance(stmt, Contract) and target.block(stmt.words) > 0)

    if TILES not in target.features or any(on_tiles(stmt) for kernel in kernels for stmt in walk(kernel.body)):
        return target
    return replace(target, features=tuple(f for f in target.features if f not in (TILES, *_MATRIX.values())))
