"""What a cubin says of its kernel: registers, stack, and the widths of its accesses to memory.

A cubin is ELF64. Section ``.nv.info`` is a list of attributes, each a format, a number and a value (as cuobjdump -elf
prints them; NVIDIA documents the tools, not the numbers); ``.text.*`` are the instructions, of 16 bytes each from Volta
on: bits 0-8 are the operation, bits 73-75 the width of what a load or store moves.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Usage", "usage"]

WITH_SIZE = 4  # the format of an attribute whose value has so many bytes as the size says
REGISTERS, FRAME = 0x2F, 0x11  # attributes (function, number)
GLOBAL_LOAD, GLOBAL_STORE = 0x181, 0x186  # LDG, STG
LOCAL = (0x183, 0x187)  # LDL, STL
BYTES = (1, 1, 2, 2, 4, 8, 16, 16)  # by width; the narrow ones have a sign or not


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one thread: 32-bit ``registers``, and bytes of local memory, ``stack``, where arrays with indices that are not
    known and registers that were spilled are. Of the code: how many instructions access local memory, and how many load
    from and store to global memory, by their bytes (asynchronous copies are not counted)."""

    registers: int
    stack: int
    local: int
    loads: Counter[int]
    stores: Counter[int]


def usage(cubin: bytes) -> Usage:
    """The most that a function in ``cubin`` uses, and what all of them do."""
    found: dict[int, list[int]] = {REGISTERS: [0], FRAME: [0]}
    accesses: dict[int, Counter[int]] = {code: Counter() for code in (GLOBAL_LOAD, GLOBAL_STORE, *LOCAL)}
    for name, data in _sections(cubin):
        if name == ".nv.info":
            for attribute, value in _attributes(data):
                if attribute in found:
                    found[attribute].append(struct.unpack("<II", value)[1])
        elif name.startswith(".text."):
            for low, high in struct.iter_unpack("<QQ", data):
                if low & 0x1FF in accesses:
                    accesses[low & 0x1FF][BYTES[high >> 9 & 7]] += 1
    local = sum(accesses[code].total() for code in LOCAL)
    return Usage(max(found[REGISTERS]), max(found[FRAME]), local, accesses[GLOBAL_LOAD], accesses[GLOBAL_STORE])


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)

    def header(number: int) -> tuple[int, int, int]:
        """Name, place and size."""
        name, _, _, _, place, length = struct.unpack_from("<IIQQQQ", elf, start + number * size)
        return name, place, length

    _, table, _ = header(names)
    for number in range(count):
        name, place, length = header(number)
        end = elf.index(b"\0", table + name)
        yield elf[table + name : end].decode(), elf[place : place + length]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        kind, attribute, size = struct.unpack_from("<BBH", data, at)
        at += 4
        if kind == WITH_SIZE:
            yield attribute, data[at : at + size]
            at += size
