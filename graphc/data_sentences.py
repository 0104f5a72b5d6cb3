"""Labelled sentences for training: SST-2's files; and, where there are none, comments and docstrings of the standard
library, real text that every machine has."""

from __future__ import annotations

import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np

from graphc.data import read_text
from graphc.errors import error
from graphc.wordpiece import words

__all__ = ["Sentences", "naive_bayes_accuracy", "prose", "sentences"]

# The names that carry a split: of whole sentences, and in GLUE's form, whose training set has their phrases as well.
FILES = {
    "train": ("stsa.binary.train", "train.tsv", "glue_train.tsv"),
    "heldout": ("stsa.binary.dev", "dev.tsv", "glue_dev.tsv"),
    "test": ("stsa.binary.test", "test.tsv", "glue_test.tsv"),
}
STDLIB_FILES = 120
WHERE = """curl -LO https://dl.fbaipublicfiles.com/glue/data/SST-2.zip && unzip SST-2.zip
and --data SST-2; without --data the task is to tell docstrings from comments"""
HELD_OUT = 8  # of the standard library, each eighth file is held out


@dataclass(frozen=True)
class Sentences:
    """``texts`` and ``labels`` (int32, from 0 on) of the same length."""

    texts: tuple[str, ...]
    labels: np.ndarray


@lru_cache(maxsize=4)
def sentences(folder: str, split: str) -> Sentences:
    """The sentences of "train", "heldout" or "test" in ``folder``: SST-2 (Socher et al., EMNLP 2013), as lines
    "label text" (``stsa.binary.*``) or in GLUE's tables (``*.tsv``). Where a folder has several forms, the name of a
    training file (``sst2/glue_train.tsv``) chooses one.

    Without a folder: lines of prose in the standard library; is it a docstring (1) or a comment (0)?
    Raises GraphcError GC0603 when there is no such file and GC0604 when a line is not of this form.
    """
    if not folder:
        return _docstring_or_comment(split)
    root, names = Path(folder), list(FILES[split])
    if root.name in FILES["train"]:
        root, names = root.parent, [names[FILES["train"].index(root.name)]]
    for name in names:
        if (path := root / name).exists():
            return _read_table(path) if path.suffix == ".tsv" else _read_lines(path)
    message = f"{root} has no sentences for {split}: none of {', '.join(names)}"
    raise error("GC0603", message, hint=WHERE)


def _read_lines(path: Path) -> Sentences:
    pairs = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return _made(path, [(label, rest[0] if rest else "") for label, *rest in pairs])


def _read_table(path: Path) -> Sentences:
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    if "label" not in columns or len(columns) != 2:
        message = f"{path} has the columns {', '.join(columns)}"
        raise error("GC0604", message, hint="two columns are needed, label and sentence, separated by a tab")
    label = columns.index("label")
    rows = [line.split("\t") for line in lines if line]
    return _made(path, [(row[label], row[1 - label] if len(row) == 2 else "") for row in rows])


def _made(path: Path, pairs: list[tuple[str, str]]) -> Sentences:
    bad = next((i for i, (label, text) in enumerate(pairs) if not label.isdigit() or not text.strip()), None)
    if bad is not None or not pairs:
        where = f"sentence {bad + 1}" if bad is not None else "the file"
        raise error("GC0604", f"{where} of {path} is no label and text", hint="each line is a class number and a text")
    return Sentences(tuple(text for _, text in pairs), np.array([int(label) for label, _ in pairs], np.int32))


# The standard library ------------------------------------------------------------------------------------------------


def _docstring_or_comment(split: str) -> Sentences:
    kinds = [(text, kind) for file, lines in enumerate(_library()) for text, kind in lines if _belongs(file, split)]
    return Sentences(tuple(text for text, _ in kinds), np.array([kind for _, kind in kinds], np.int32))


def _belongs(file: int, split: str) -> bool:
    return (file % HELD_OUT == HELD_OUT - 1) != (split == "train")


@lru_cache(maxsize=1)
def _library() -> tuple[tuple[tuple[str, int], ...], ...]:
    """For each file, its lines of prose and whether they stand in a docstring (1) or behind a # (0), as often."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:STDLIB_FILES]
    return tuple(_balanced(_prose_lines(f.read_bytes().decode("ascii", "ignore").splitlines())) for f in files)


def _prose_lines(lines: list[str]) -> list[tuple[str, int]]:
    found, inside = [], False
    for line in lines:
        text = line.strip()
        quotes = text.count('"""')
        if inside or text.startswith('"""'):
            found.append((text.replace('"""', " ").strip(), 1))
        elif text.startswith("#"):
            found.append((text.lstrip("#!").strip(), 0))
        inside ^= quotes % 2 == 1
    return [(text, kind) for text, kind in found if len(words(text)) >= 4]


def _balanced(found: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    room = [min(sum(kind == k for _, kind in found) for k in (0, 1))] * 2
    kept = []
    for text, kind in found:
        if room[kind]:
            room[kind] -= 1
            kept.append((text, kind))
    return tuple(kept)


@lru_cache(maxsize=2)
def prose(path: str, split: str) -> tuple[str, ...]:
    """Lines of text in their order, of the UTF-8 file ``path`` (its last tenth held out) or, when it is empty, of the
    docstrings and comments of the standard library. Raises GC0603 and GC0604."""
    if not path:
        return tuple(t for file, lines in enumerate(_library()) for t, _ in lines if _belongs(file, split))
    lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    cut = len(lines) * 9 // 10
    return lines[:cut] if split == "train" else lines[cut:]


# A baseline ----------------------------------------------------------------------------------------------------------


def naive_bayes_accuracy(train: Sentences, heldout: Sentences) -> float:
    """The share of ``heldout`` that naive Bayes gets right, from words and pairs of neighbouring words, each counted
    once per text, add-one smoothed. Source: Wang and Manning, ACL 2012, "MNB-bi"."""
    classes = int(train.labels.max()) + 1
    counts = [Counter[object]() for _ in range(classes)]
    for text, label in zip(train.texts, train.labels, strict=True):
        counts[label].update(_features(text))
    size = len(set().union(*counts))
    totals = [sum(c.values()) + size for c in counts]
    priors = np.log(np.bincount(train.labels, minlength=classes) / len(train.labels))

    def best(text: str) -> int:
        features = [f for f in _features(text) if any(f in c for c in counts)]
        scores = [
            prior + sum(log((c[f] + 1) / n) for f in features)
            for prior, c, n in zip(priors, counts, totals, strict=True)
        ]
        return int(np.argmax(scores))

    return float(np.mean([best(text) == label for text, label in zip(heldout.texts, heldout.labels, strict=True)]))


def _features(text: str) -> set[object]:
    found = words(text)
    return {*found, *pairwise(found)}
