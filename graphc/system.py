"""What the processor of this machine can do, and what has to be asked of the operating system before it is used."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection
from platform import machine

import llvmlite.binding as llvm

from graphc.config import settings
from graphc.errors import error

__all__ = ["LEVELS", "TILES", "allow_tiles", "features", "level_of"]

TILES = "amx-tile"  # LLVM's name of the feature

_AVX2 = (
    "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.1", "sse4.2", "ssse3",
)  # fmt: skip

# What a processor of each level has, by LLVM's names (x86-64 psABI, "Micro-Architecture Levels"; Armv8-A).
LEVELS = {
    "x86-64-v4": (*_AVX2, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
    "x86-64-v3": _AVX2,
    "neon": ("neon",),
}


def features() -> frozenset[str]:
    """LLVM's names of what this processor has; of these, where GRAPHC_MAX_ISA names a level, what belongs to it.

    Raises GC0602 for a level that does not exist."""
    has = frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
    level = settings().max_isa
    if not level:
        return has
    if level not in LEVELS:
        raise error("GC0602", f"GRAPHC_MAX_ISA={level!r} is not one of {', '.join(LEVELS)}")
    return has.intersection(LEVELS[level])


def level_of(needed: Collection[str]) -> str:
    """The best of `LEVELS` that code which needs these features has, with what it needs beyond it: "x86-64-v3",
    "x86-64-v4 + amx-int8, amx-tile". Empty where it has none."""
    for level, features in LEVELS.items():
        if set(features).issubset(needed):
            return " + ".join([level, *filter(None, [", ".join(sorted(set(needed) - set(features)))])])
    return ""


# Of Linux on x86-64 (arch_prctl(2), and Documentation/arch/x86/xstate.rst of the kernel).
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def allow_tiles() -> bool:
    """Ask for the tile registers of AMX, for all threads of this process; whether they may be used now."""
    if not sys.platform.startswith("linux") or machine() != "x86_64":
        return False
    request = ctypes.CDLL(None).syscall
    return bool(request(_ARCH_PRCTL, _REQUEST_PERMISSION, ctypes.c_ulong(_TILE_DATA)) == 0)
