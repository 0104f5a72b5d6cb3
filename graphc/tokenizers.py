"""Text to tokens and back: characters, llama2.c's vocabularies, and others by the library `tokenizers`.

A program trained on characters carries its vocabulary in the artifact's metadata (`characters`); others are read from a
file of the machine (`open_tokenizer`).
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphc.errors import error

__all__ = ["Characters", "Library", "Llama2C", "Tokenizer", "characters", "from_metadata", "open_tokenizer"]


class Tokenizer(Protocol):
    """``stop``: tokens that end a text. ``encode`` gives at least one token, so that there is something to continue;
    ``decode`` leaves out the marks of beginning and end."""

    stop: frozenset[int]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


# Characters ----------------------------------------------------------------------------------------------------------


def characters(vocabulary: str) -> dict[str, str]:
    """The metadata of a model whose token i is character i of ``vocabulary``."""
    return {"tokenizer": "characters", "vocabulary": vocabulary}


class Characters:
    """Token i is character i of the vocabulary; an empty text begins with a new line."""

    stop: frozenset[int] = frozenset()

    def __init__(self, vocabulary: str) -> None:
        self.vocabulary = vocabulary
        self.numbers = {char: i for i, char in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        """Raises GC0612 for a character that the model has never seen."""
        unknown = sorted(set(text) - set(self.numbers))
        if unknown:
            listed = ", ".join(map(repr, unknown[:8]))
            hint = f"the model knows {self.vocabulary!r}"
            raise error("GC0612", f"the model has no token for {listed}", hint=hint)
        return [self.numbers[c] for c in text] or [self.numbers.get("\n", 0)]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.vocabulary[t] if 0 <= t < len(self.vocabulary) else "\ufffd" for t in tokens)


# llama2.c ------------------------------------------------------------------------------------------------------------


class Llama2C:
    """A vocabulary of llama2.c (``tok512.bin``): SentencePiece's byte-pair encoding with byte fallback.

    The file is an int32 (the longest piece in bytes), then for each token a float32 score, an int32 length and the
    bytes. Tokens 1 and 2 begin and end a text, and 3 to 258 are single bytes. Source: karpathy/llama2.c, run.c.
    """

    BEGIN, END, BYTES = 1, 2, 3

    def __init__(self, data: bytes) -> None:
        self.stop = frozenset((self.BEGIN, self.END))
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        at = 4
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            piece = data[at + 8 : at + 8 + length]
            if length < 0 or len(piece) != length:
                raise ValueError("a piece is cut off")
            self.pieces.append(piece)
            self.scores.append(score)
            at += 8 + length
        self.numbers = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, text: str) -> list[int]:
        tokens = [self.BEGIN]
        if text:
            for char in " " + text:
                raw = char.encode()
                known = self.numbers.get(raw)
                tokens += [self.BYTES + byte for byte in raw] if known is None else [known]
        while True:  # merge the pair with the best score, the first of equals
            merges = [
                (-self.scores[merged], i, merged)
                for i in range(1, len(tokens) - 1)
                if (merged := self.numbers.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]])) is not None
            ]
            if not merges:
                return tokens
            _, i, merged = min(merges)
            tokens[i : i + 2] = [merged]

    def decode(self, tokens: Sequence[int]) -> str:
        raw = b"".join(self._bytes(t) for t in tokens if t not in self.stop)
        text = raw.decode("utf-8", "replace")
        return text[1:] if text.startswith(" ") and list(tokens[:1]) == [self.BEGIN] else text

    def _bytes(self, token: int) -> bytes:
        if self.BYTES <= token < self.BYTES + 256:
            return bytes([token - self.BYTES])
        return self.pieces[token] if 0 <= token < len(self.pieces) else "\ufffd".encode()


# The library ---------------------------------------------------------------------------------------------------------

BEGINS = ("<s>", "<|begin_of_text|>", "<|endoftext|>")  # an empty text begins with the first of these that there is
ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>")


class Library:
    """A tokenizer of the library `tokenizers` (Hugging Face)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.stop = frozenset(self._known(ENDS))
        self.begin = self._known(BEGINS)[:1]

    def _known(self, names: Sequence[str]) -> list[int]:
        numbers = (self.tokenizer.token_to_id(name) for name in names)
        return [n for n in numbers if n is not None]

    def encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text).ids
        return found or self.begin or [0]

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens))
        return text


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        message = "this tokenizer needs the library tokenizers, which is not installed"
        raise error("GC0612", message, hint="pip install 'graphc[text]'") from None


# Which one -----------------------------------------------------------------------------------------------------------

PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # OpenAI's names and Hugging Face's


def from_metadata(metadata: Mapping[str, str]) -> Tokenizer:
    """The tokenizer that an artifact carries. Raises GC0612 where it carries none."""
    if metadata.get("tokenizer") != "characters":
        hint = "--tokenizer PATH names one: tokenizer.json, a folder with encoder.json and vocab.bpe, or tok512.bin"
        raise error("GC0612", "the artifact carries no tokenizer", hint=hint)
    return Characters(metadata["vocabulary"])


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a local file or folder: a ``tokenizer.json``; a folder with one, or with ``encoder.json`` and
    ``vocab.bpe`` (GPT-2's) or ``vocab.json`` and ``merges.txt``; or llama2.c's ``.bin``. Raises GC0603 and GC0612."""
    path = Path(path)
    pairs = [(path / vocabulary, path / merges) for vocabulary, merges in PAIRS]
    try:
        if path.suffix == ".bin":
            return Llama2C(path.read_bytes())
        for vocabulary, merges in pairs:
            if vocabulary.is_file() and merges.is_file():
                return Library(_library().ByteLevelBPETokenizer(str(vocabulary), str(merges)))
        file = path / "tokenizer.json" if path.is_dir() else path
        text = file.read_text(encoding="utf-8")
    except OSError as e:
        hint = "--tokenizer takes tokenizer.json, a folder with encoder.json and vocab.bpe, or llama2.c's .bin"
        raise error("GC0603", f"cannot read the tokenizer {path}: {e.strerror}", hint=hint) from None
    except (ValueError, struct.error) as e:
        raise error("GC0612", f"{path} is no tokenizer: {e}", hint="download it again") from None
    try:
        return Library(_library().Tokenizer.from_str(text))
    except ValueError as e:
        raise error("GC0612", f"{path} is no tokenizer: {e}", hint="give a tokenizer.json of Hugging Face") from None
