"""Emoji and their names for training: small pictures with a few words each, some drawn in two styles."""

from __future__ import annotations

import hashlib
import unicodedata
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from graphc.data_png import on_white, read_png
from graphc.errors import error

__all__ = ["Emoji", "emoji"]

COLUMNS = ("name", "keywords", "split")
STYLES = (("noto32", "noto_id"), ("two32", "two_id"))
PICTURES, TABLE = "emoji_u*.png", "emoji.tsv"
WHERE = """git clone --depth 1 --filter=blob:none --sparse https://github.com/googlefonts/noto-emoji
git -C noto-emoji sparse-checkout set png/32
and --data noto-emoji/png/32: pictures of emoji, called what Unicode calls their characters"""


@dataclass(frozen=True)
class Emoji:
    """``names`` [N]; ``keywords`` [N], some words for each; ``images`` uint8 [M, 3, 32, 32] and ``owner`` int64 [M],
    the emoji that each image shows. Each emoji has at least one image."""

    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    images: np.ndarray
    owner: np.ndarray

    def images_of(self, which: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Numbers of one image of each emoji in ``which`` [K]; where it has several, ``draw`` [K] (from 0 to below 1)
        chooses."""
        order = np.argsort(self.owner, kind="stable")
        first = np.searchsorted(self.owner[order], which, "left")
        count = np.searchsorted(self.owner[order], which, "right") - first
        chosen: np.ndarray = order[first + (draw * count).astype(np.int64)]
        return chosen


@lru_cache(maxsize=2)
def emoji(folder: str, split: str) -> Emoji:
    """Emoji from ``folder``: pictures named by their characters (``emoji_u1f600.png``), as in noto-emoji's ``png/32``;
    or ``emoji.tsv``, a table with the columns name, keywords and split, among others, and ``emoji_32.npz``, with
    ``noto32`` and ``two32`` uint8 [M, 32, 32, 3], ``noto_id`` and ``two_id``, rows of the table.

    "train" are the rows whose split is so, any other split the rest. Raises GC0603 and GC0604."""
    if not folder:
        raise error("GC0603", "there are no pictures with names to train on", hint=WHERE)
    drawn, listed = (any(Path(folder).glob(files)) for files in (PICTURES, TABLE))
    if not (drawn or listed):
        raise error("GC0603", f"{folder} has no pictures with names: no {PICTURES} and no {TABLE}", hint=WHERE)
    rows, pixels, owner = _drawn(folder) if drawn else _listed(folder)
    return _chosen(rows, pixels.transpose(0, 3, 1, 2), owner, split)


@lru_cache(maxsize=1)
def _drawn(folder: str) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    """The texts of `COLUMNS`, pictures [M, 32, 32, 3] and their rows. The names are Unicode's; what is made of several
    characters has none of its own and is left out. A tenth is held out, as a digest of the name decides."""
    rows, pictures = [], []
    for file in sorted(Path(folder).glob(PICTURES)):
        characters = file.stem.removeprefix("emoji_u").split("_")
        name = unicodedata.name(chr(int(characters[0], 16)), "").lower() if len(characters) == 1 else ""
        if name:
            held_out = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 == 0
            rows.append([name, "", "test" if held_out else "train"])
            pictures.append(on_white(read_png(file)))
    if {p.shape for p in pictures} != {(32, 32, 3)}:
        message = f"the pictures in {folder} are not all of 32 x 32 pixels"
        raise error("GC0604", message, hint=WHERE)
    return rows, np.stack(pictures), np.arange(len(pictures))


def _listed(folder: str) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    table, archive = Path(folder) / TABLE, Path(folder) / "emoji_32.npz"
    try:
        header, *lines = table.read_text(encoding="utf-8").splitlines()
        with np.load(archive) as arrays:
            found = [(arrays[pixels], arrays[ids].astype(np.int64)) for pixels, ids in STYLES]
    except OSError as e:
        raise error("GC0603", f"cannot read {e.filename}: {e.strerror}", hint=WHERE) from e
    except (ValueError, KeyError, zipfile.BadZipFile) as e:
        raise error("GC0604", f"the emoji in {folder} are damaged: {e}", hint="get the two files again") from e
    rows = _columns(table, header, lines)
    pixels, owner = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if pixels.shape[1:] != (32, 32, 3) or (len(owner) and owner.max() >= len(rows)):
        message = f"{archive} does not fit {table}"
        raise error("GC0604", message, hint="images are [M, 32, 32, 3], and the ids rows of the table")
    return rows, pixels, owner


def _columns(table: Path, header: str, lines: list[str]) -> list[list[str]]:
    """The texts of `COLUMNS` in each line."""
    names = header.split("\t")
    if missing := [name for name in COLUMNS if name not in names]:
        message = f"{table} has no column {', '.join(missing)}"
        raise error("GC0604", message, hint="the first line names the columns, separated by tabs")
    at = [names.index(name) for name in COLUMNS]
    return [[line.split("\t")[i] for i in at] for line in lines]


def _chosen(rows: list[list[str]], pixels: np.ndarray, owner: np.ndarray, split: str) -> Emoji:
    shown = np.unique(owner)
    kept = [int(i) for i in shown if (rows[i][2] == "train") == (split == "train")]
    number = np.full(len(rows), -1)
    number[kept] = np.arange(len(kept))
    mine = number[owner] >= 0
    return Emoji(
        names=tuple(rows[i][0] for i in kept),
        keywords=tuple(tuple(word for word in rows[i][1].split("|") if word.isascii()) for i in kept),
        images=np.ascontiguousarray(pixels[mine]),
        owner=number[owner[mine]],
    )
