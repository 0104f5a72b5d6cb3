"""Compiled kernels on disk, by content: ``gc_<digest>.py`` is the source, ``gc_<digest>.o`` the object code, and
``tuned_<digest>`` the number of the kernel that was chosen among several.

The digest in the name says what the file was made from, so an entry never goes stale; a checksum behind the object's
last byte says that it is whole. Files are written beside their place and renamed, so several processes may share one
folder: the worst that happens is that two of them compile the same kernel and write the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["Cache"]

_CHECKSUM_BYTES = 32


class Cache:
    """The folder ``root``, made on first use; names of sources and object code end in ``source`` and ``code``."""

    def __init__(self, root: Path, source: str = ".py", code: str = ".o"):
        self.root, self.source, self.code = root, source, code

    def source_path(self, symbol: str) -> Path:
        return self.root / f"{symbol}{self.source}"

    def object_path(self, symbol: str) -> Path:
        return self.root / f"{symbol}{self.code}"

    def read(self, symbol: str) -> bytes | None:
        """The object code of ``symbol``, or None where it is missing or damaged."""
        try:
            data = self.object_path(symbol).read_bytes()
        except OSError:
            return None
        code, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        return code if checksum == _checksum(symbol, code) else None

    def read_source(self, symbol: str) -> str | None:
        try:
            return self.source_path(symbol).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def write_source(self, symbol: str, text: str) -> Path:
        path = self.source_path(symbol)
        _replace(path, text.encode())
        return path

    def write_object(self, symbol: str, code: bytes) -> None:
        _replace(self.object_path(symbol), code + _checksum(symbol, code))

    def read_choice(self, name: str, count: int) -> int | None:
        """The number below ``count`` that was written for ``name``, or None."""
        try:
            text = (self.root / f"tuned_{name}").read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if text.isdecimal() and int(text) < count else None

    def write_choice(self, name: str, number: int) -> None:
        _replace(self.root / f"tuned_{name}", str(number).encode())


def _checksum(symbol: str, code: bytes) -> bytes:
    return hashlib.sha256(symbol.encode() + code).digest()


def _replace(path: Path, data: bytes) -> None:
    """Write ``path`` in one step: readers see the old file, none, or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
