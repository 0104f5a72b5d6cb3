"""What a process has to ask the operating system for before it uses the processor."""

from __future__ import annotations

import ctypes
import sys
from platform import machine

__all__ = ["TILES", "allow_tiles"]

TILES = "amx-tile"  # LLVM's name of the feature

# Of Linux on x86-64 (arch_prctl(2), and Documentation/arch/x86/xstate.rst of the kernel).
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def allow_tiles() -> bool:
    """Ask for the tile registers of AMX, for all threads of this process; whether they may be used now."""
    if not sys.platform.startswith("linux") or machine() != "x86_64":
        return False
    request = ctypes.CDLL(None).syscall
    return bool(request(_ARCH_PRCTL, _REQUEST_PERMISSION, ctypes.c_ulong(_TILE_DATA)) == 0)
