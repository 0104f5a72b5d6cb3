"""What a cubin says of its kernel: registers, stack, in the attributes that the driver reads when it launches.

A cubin is ELF64; section ``.nv.info`` is a list of attributes, each a format, a number and a value (as cuobjdump
-elf prints them; NVIDIA documents the tools, not the numbers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Usage", "usage"]

WITH_SIZE = 4  # the format of an attribute whose value has so many bytes as the size says
REGISTERS, FRAME = 0x2F, 0x11  # attributes (function, number)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one thread: 32-bit ``registers``, and bytes of local memory, ``stack``, where arrays with indices that are not
    known and registers that were spilled are."""

    registers: int
    stack: int


def usage(cubin: bytes) -> Usage:
    """The most that a function in ``cubin`` uses."""
    found: dict[int, list[int]] = {REGISTERS: [0], FRAME: [0]}
    for name, data in _sections(cubin):
        if name == ".nv.info":
            for attribute, value in _attributes(data):
                if attribute in found:
                    found[attribute].append(struct.unpack("<II", value)[1])
    return Usage(max(found[REGISTERS]), max(found[FRAME]))


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
