"""Pictures in PNG files, as far as training data needs them: 8-bit colour with transparency, not interlaced."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from graphc.errors import error

__all__ = ["on_white", "read_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = 4


def read_png(path: Path) -> np.ndarray:
    """uint8 [H, W, 4], red, green, blue and opacity. Source: ISO/IEC 15948. Raises GC0603 and GC0604."""
    try:
        return _decoded(path.read_bytes())
    except OSError as e:
        raise error("GC0603", f"cannot read the picture {path}: {e.strerror}", hint="check the path") from e
    except (ValueError, struct.error, zlib.error) as e:
        hint = "8-bit colour with transparency, not interlaced, is read; another program can convert it"
        raise error("GC0604", f"the picture {path} cannot be read: {e}", hint=hint) from e


def on_white(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] → [H, W, 3], what is transparent before a white ground."""
    colour, opacity = picture[..., :3].astype(np.uint32), picture[..., 3:].astype(np.uint32)
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _decoded(data: bytes) -> np.ndarray:
    if data[:8] != SIGNATURE:
        raise ValueError("it is no PNG file")
    width, height, *kind = struct.unpack(">IIBBBBB", data[16:29])
    if kind != [8, 6, 0, 0, 0]:
        raise ValueError(f"its form is {kind}: bits, colours, compression, filter, interlacing")
    packed, at = [], 8
    while at + 8 <= len(data):
        length, tag = struct.unpack_from(">I4s", data, at)
        if tag == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        at += length + 12  # its length, its name, and a checksum behind it
    lines = np.frombuffer(zlib.decompress(b"".join(packed)), np.uint8)
    if len(lines) != height * (1 + CHANNELS * width):
        raise ValueError("it is cut off")
    lines = lines.reshape(height, -1)
    picture = np.zeros((height + 1, CHANNELS * width), np.uint8)  # with an empty line above
    for row, line in enumerate(lines):
        picture[row + 1] = _unfiltered(int(line[0]), line[1:], picture[row])
    pixels: np.ndarray = picture[1:].reshape(height, width, CHANNELS)
    return pixels


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A line from its differences: to nothing, to the left, to above, to the mean of both, or to the one of left, above
    and above left that is nearest to left + above - above left (Paeth, 1991)."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line.reshape(-1, CHANNELS), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:
        total: np.ndarray = line + above
        return total
    if kind not in (3, 4):
        raise ValueError(f"a line has filter {kind}")
    out, up = [0] * CHANNELS, [0] * CHANNELS + above.tolist()
    for i, difference in enumerate(line.tolist()):
        a, b, c = out[i], up[i + CHANNELS], up[i]
        out.append((difference + ((a + b) // 2 if kind == 3 else _paeth(a, b, c))) & 255)
    return np.array(out[CHANNELS:], np.uint8)


def _paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    far = abs(p - a), abs(p - b), abs(p - c)
    return a if far[0] <= far[1] and far[0] <= far[2] else b if far[1] <= far[2] else c
