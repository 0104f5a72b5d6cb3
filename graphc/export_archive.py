"""Static libraries of ELF objects: the ``ar`` format with the System V symbol table that linkers look in.

Source: "File format" of ar(5); the table, member ``/``, has a big-endian count, as many offsets of members, and as many
names that end with 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Object", "archive"]


@dataclass(frozen=True)
class Object:
    """An object file and the global symbols that it defines. ``name`` has at most 15 characters."""

    name: str
    data: bytes
    symbols: Sequence[str]


def archive(objects: Sequence[Object]) -> bytes:
    """The library's bytes: equal for equal objects."""
    names = b"".join(symbol.encode() + b"\0" for o in objects for symbol in o.symbols)
    count = sum(len(o.symbols) for o in objects)
    at = len(_MAGIC) + len(_member("", bytes(4 + 4 * count + len(names))))
    starts: list[int] = []
    members = []
    for o in objects:
        starts += [at] * len(o.symbols)
        members.append(_member(o.name, o.data))
        at += len(members[-1])
    table = struct.pack(f">{count + 1}I", count, *starts) + names
    return b"".join([_MAGIC, _member("", table), *members])


_MAGIC = b"!<arch>\n"


def _member(name: str, data: bytes) -> bytes:
    """A header (name, time, owner, group, mode, size as text) and the data, padded to an even length."""
    head = f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n"
    return head.encode() + data + b"\n" * (len(data) % 2)
