"""Pictures from PNG files, and emoji that are named by their characters."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from graphc.data_emoji import emoji
from graphc.data_png import on_white, read_png
from graphc.errors import GraphcError


def chunk(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def write_png(path: Path, picture: np.ndarray, filters: list[int], form: bytes = b"\x08\x06\0\0\0") -> None:
    """A picture [H, W, 4] whose line i has filter ``filters[i]``, in two pieces of data."""
    height, width, _ = picture.shape
    before = np.zeros((height + 1, width + 1, 4), np.int64)
    before[1:, 1:] = picture
    left, up, corner = before[1:, :-1], before[:-1, 1:], before[:-1, :-1]
    p = left + up - corner
    nearest = np.argmin([abs(p - left), abs(p - up), abs(p - corner)], 0)
    guesses = [0 * left, left, up, (left + up) // 2, np.choose(nearest, [left, up, corner])]
    lines = [bytes([f]) + (picture[i] - guesses[f][i]).astype(np.uint8).tobytes() for i, f in enumerate(filters)]
    data = zlib.compress(b"".join(lines))
    header = chunk(b"IHDR", struct.pack(">II", width, height) + form)
    pieces = chunk(b"IDAT", data[:9]) + chunk(b"IDAT", data[9:])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"tEXt", b"by\0hand") + pieces + chunk(b"IEND", b""))


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 4)).astype(np.uint8)


def test_each_filter(tmp_path: Path) -> None:
    picture = noise(0, 10)
    write_png(tmp_path / "a.png", picture, [0, 1, 2, 3, 4, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), picture)


def test_what_is_transparent_is_white() -> None:
    picture = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
    np.testing.assert_array_equal(on_white(picture), [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(GraphcError, match="GC0603"):
        read_png(path)
    write_png(path, noise(0, 4), [0] * 4, b"\x08\x02\0\0\0")
    with pytest.raises(GraphcError, match=r"GC0604: .* its form is"):
        read_png(path)
    write_png(path, noise(0, 4), [0] * 4)
    whole = path.read_bytes()
    for broken in (whole[:20], whole[:70], b"GIF89a", whole.replace(b"IDAT", b"iDAT")):
        path.write_bytes(broken)
        with pytest.raises(GraphcError, match="GC0604"):
            read_png(path)


NAMES = {"1f600": "grinning face", "1f436": "dog face", "2764": "heavy black heart", "1f98a": "fox face"}


def test_emoji_are_named_by_their_characters(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        write_png(tmp_path / f"emoji_u{name}.png", noise(number), [4] * 32)
    for name in ("1f1e9_1f1ea", "0000"):  # a flag is two characters, and a control character has no name
        write_png(tmp_path / f"emoji_u{name}.png", noise(0), [0] * 32)
    found = {name: np.array([]) for name in NAMES.values()}
    for part in (emoji(str(tmp_path), "train"), emoji(str(tmp_path), "test")):
        found |= {name: part.images[part.owner == i][0] for i, name in enumerate(part.names)}
    assert found.keys() == set(NAMES.values())
    for number, name in enumerate(NAMES.values()):
        np.testing.assert_array_equal(found[name], on_white(noise(number)).transpose(2, 0, 1))


def test_emoji_of_another_size(tmp_path: Path) -> None:
    write_png(tmp_path / "emoji_u1f344.png", noise(0, 16), [0] * 16)
    with pytest.raises(GraphcError, match=r"GC0604: the pictures in .* are not all of 32 x 32"):
        emoji(str(tmp_path), "train")
