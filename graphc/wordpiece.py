"""WordPiece as in BERT's uncased models (Devlin et al., arXiv 1810.04805; Wu et al., arXiv 1609.08144), and a
vocabulary for texts that come without one."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from graphc.errors import error

__all__ = ["SPECIAL", "WordPiece", "words"]

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; a longer one is unknown, as in BERT


def words(text: str) -> list[str]:
    """Lower-case words without accents; each punctuation mark and each Chinese character is a word of its own."""
    spaced = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if char.isspace():
            spaced.append(" ")
        elif category == "Mn" or category.startswith("C") or char == "\ufffd":
            continue
        elif _stands_alone(char, category):
            spaced.append(f" {char} ")
        else:
            spaced.append(char)
    return "".join(spaced).split()


def _stands_alone(char: str, category: str) -> bool:
    """ASCII symbols such as $ count as punctuation."""
    symbol = char.isascii() and not char.isalnum()
    return symbol or category.startswith("P") or "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"


class WordPiece:
    """Texts to numbers: each word is its longest known beginning, then its longest known continuation (``##``), and so
    on; a word that cannot be spelled like this is ``[UNK]``."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = list(vocabulary)
        self._number = {piece: i for i, piece in enumerate(self.vocabulary)}
        self._known: dict[str, list[int]] = {}
        missing = [piece for piece in SPECIAL if piece not in self._number]
        if missing:
            message = f"the vocabulary has no {', '.join(missing)}"
            raise error("GC0604", message, hint="give a vocab.txt of a BERT model: one piece a line")

    @classmethod
    def read(cls, path: str | Path) -> WordPiece:
        """From a ``vocab.txt``, one piece a line. Raises GC0603 and GC0604."""
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except OSError as e:
            message = f"cannot read the vocabulary {path}: {e.strerror}"
            raise error("GC0603", message, hint="--set vocab=FILE takes a vocab.txt of a BERT model") from e
        except UnicodeDecodeError as e:
            raise error("GC0604", f"the vocabulary {path} is not UTF-8 text", hint="give a vocab.txt") from e
        return cls([line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)])

    @classmethod
    def of(cls, texts: Iterable[str], size: int = 8000) -> WordPiece:
        """From texts: their characters, alone and as continuations, so that any word over them can be spelled, then
        their words that occur at least twice, the most frequent first, up to ``size`` pieces."""
        times = Counter(word for text in texts for word in words(text))
        characters = sorted({char for word in times for char in word})
        vocabulary = [*SPECIAL, *characters, *(f"##{char}" for char in characters)]
        frequent = sorted((-n, word) for word, n in times.items() if n > 1 and len(word) > 1)
        return cls(vocabulary + [word for _, word in frequent[: max(size - len(vocabulary), 0)]])

    def __len__(self) -> int:
        return len(self.vocabulary)

    def number(self, piece: str) -> int:
        """The position of ``piece`` in the vocabulary, or that of ``[UNK]``."""
        return self._number.get(piece, self._number[UNK])

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of ``text``, without ``[CLS]`` and ``[SEP]``."""
        return [number for word in words(text) for number in self._spelled(word)]

    def decode(self, numbers: Iterable[int]) -> str:
        """The pieces joined to words again."""
        return " ".join(self.vocabulary[n] for n in numbers).replace(" ##", "")

    def _spelled(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self._spell(word)
        return self._known[word]

    def _spell(self, word: str) -> list[int]:
        pieces: list[int] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            lead = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if lead + word[start:e] in self._number), None)
            if end is None:
                break
            pieces.append(self._number[lead + word[start:end]])
            start = end
        return pieces if start == len(word) else [self._number[UNK]]

    def rows(self, texts: Sequence[Sequence[str]], length: int) -> dict[str, np.ndarray]:
        """One row of ``length`` numbers for each item of ``texts``, which is one text or two: [CLS] a [SEP], or
        [CLS] a [SEP] b [SEP]; what is too long is cut, the longer text first. int32 [N, length] each: ``input_ids``,
        ``attention_mask`` (1 where there is text), ``token_type_ids`` (1 for the second text)."""
        ids = np.full((len(texts), length), self.number(PAD), np.int32)
        types = np.zeros_like(ids)
        mask = np.zeros_like(ids)
        for row, item in enumerate(texts):
            parts = _cut([self.encode(text) for text in item], length - 1 - len(item))
            at = 1
            ids[row, 0] = self.number(CLS)
            for kind, part in enumerate(parts):
                end = at + len(part) + 1
                ids[row, at:end] = [*part, self.number(SEP)]
                types[row, at:end] = kind
                at = end
            mask[row, :at] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _cut(parts: list[list[int]], room: int) -> list[list[int]]:
    """``parts`` shortened from their ends until they fit into ``room``."""
    parts = [part[:room] for part in parts]
    while sum(map(len, parts)) > room:
        max(parts, key=len).pop()
    return parts
