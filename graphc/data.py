"""Text for training: where it comes from, how characters become numbers, and the losses that a model has to beat.

Without a file the text is the source of the Python standard library: real text that every machine has. The held-out
part is the last tenth, which no training batch touches.
"""

from __future__ import annotations

import gzip
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count
from math import prod
from pathlib import Path

import numpy as np

from graphc.errors import error

__all__ = [
    "TextCorpus", "class_loss", "conditional_loss", "mnist", "random_rows", "random_windows", "read_idx", "read_text",
    "sample_text", "shuffled_rows", "text_corpus", "windows",
]  # fmt: skip

STDLIB_CHARS = 4_000_000  # enough that nano never sees a window twice, small enough to read in a blink
TRAIN_SHARE = 0.9
MNIST = """curl --create-dirs --output-dir mnist --remote-name-all \\
"https://ossci-datasets.s3.amazonaws.com/mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"
and --data mnist: the folder of MNIST's four files"""


@dataclass(frozen=True)
class TextCorpus:
    """A text as numbers. ``name`` is for people; ``vocab`` the sorted characters, so that a token is a position in it;
    ``train`` and ``heldout`` are int32 vectors of tokens."""

    name: str
    vocab: str
    train: np.ndarray
    heldout: np.ndarray

    @cached_property
    def _token(self) -> dict[str, int]:
        return {char: i for i, char in enumerate(self.vocab)}

    def encode(self, text: str) -> np.ndarray:
        """int32 tokens of ``text``; characters outside the vocabulary are dropped."""
        return np.array([self._token[c] for c in text if c in self._token], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of ``tokens``; numbers outside the vocabulary print as U+FFFD."""
        return "".join(self.vocab[t] if 0 <= t < len(self.vocab) else "\ufffd" for t in tokens)

    def split(self, name: str) -> np.ndarray:
        """``train``, or the held-out part for any other name."""
        return self.train if name == "train" else self.heldout

    def baselines(self) -> dict[str, float]:
        """Held-out losses in nats per token that need no network: the keys are those of ``graphc train --json``."""
        size = len(self.vocab)
        return {
            "unigram_loss": class_loss(self.train, self.heldout, size),
            "bigram_loss": conditional_loss(
                (self.train[:-1], self.train[1:]), (self.heldout[:-1], self.heldout[1:]), size
            ),
        }


@lru_cache(maxsize=4)
def text_corpus(path: str | None = None) -> TextCorpus:
    """The corpus of the UTF-8 file ``path``, or of the standard library's source when it is empty or None.

    Raises GraphcError: GC0603 when the file cannot be read, GC0604 when it is not text or too short to train on.
    """
    name, text = (path, read_text(path)) if path else ("the Python standard library's source", _stdlib_source())
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    chars, tokens = np.unique(codes, return_inverse=True)
    tokens = tokens.astype(np.int32)
    cut = int(TRAIN_SHARE * len(tokens))
    return TextCorpus(name, "".join(map(chr, chars)), tokens[:cut], tokens[cut:])


def read_text(path: str) -> str:
    """The text of a file, read as UTF-8 with line ends as they are. Raises GraphcError GC0603, GC0604."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as e:
        hint = "--data takes the path of a UTF-8 text file; without it the standard library's source is used"
        raise error("GC0603", f"cannot read the data file {path}: {e.strerror or e}", hint=hint) from e
    except UnicodeDecodeError as e:
        message = f"the data file {path} is not UTF-8 text: byte {e.object[e.start]:#04x} at position {e.start}"
        raise error("GC0604", message, hint="convert it, for example: iconv -f latin1 -t utf-8 in.txt > out.txt") from e
    if len(text) < 1000:
        message = f"the data file {path} has {len(text)} characters; a tenth of it is held out, so 1000 are the least"
        raise error("GC0604", message, hint="give a longer text")
    return text


def _stdlib_source() -> str:
    """The modules of the standard library in alphabetical order, ASCII characters only, cut at `STDLIB_CHARS`."""
    parts: list[str] = []
    size = 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(file.read_bytes().decode("ascii", "ignore").replace("\r\n", "\n"))
        size += len(parts[-1])
        if size >= STDLIB_CHARS:
            break
    return "".join(parts)[:STDLIB_CHARS]


# Images --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def mnist(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST (LeCun et al., 1998) from its IDX files, gzipped or not: images uint8 [N, 784] and labels int32 [N]; the
    10,000 test images for any split but "train". Raises GraphcError GC0603, GC0604."""
    if not folder:
        raise error("GC0603", "there are no images to train on", hint=MNIST)
    part = "train" if split == "train" else "t10k"
    images = read_idx(f"{folder}/{part}-images-idx3-ubyte")
    labels = read_idx(f"{folder}/{part}-labels-idx1-ubyte")
    return images.reshape(len(images), -1), labels.astype(np.int32)


def read_idx(path: str) -> np.ndarray:
    """The uint8 array in an IDX file, or in ``path`` + ".gz". Raises GraphcError GC0603, GC0604."""
    file = Path(path) if Path(path).exists() else Path(path + ".gz")
    try:
        raw = file.read_bytes()
        data = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise error("GC0604", f"{file} is damaged: {e}", hint="download it again") from e
    except OSError as e:
        raise error("GC0603", f"cannot read the data file {path}: {e.strerror}", hint=MNIST) from e
    ndim = data[3] if data[:3] == b"\0\0\x08" and len(data) > 4 else 0
    shape = tuple(np.frombuffer(data[4 : 4 + 4 * ndim], ">u4").tolist())
    if not ndim or len(data) != 4 + 4 * ndim + prod(shape):
        raise error("GC0604", f"{file} is not a complete IDX file of bytes", hint="download it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


# Batches -------------------------------------------------------------------------------------------------------------


def random_windows(tokens: np.ndarray, batch: int, length: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless int32 arrays [batch, length]: each epoch covers ``tokens`` once, in windows that are cut at another place
    and come in another order each time (windows at independent positions would miss a part and repeat others).

    Array number ``i`` is a function of (seed, i) alone, so that a run resumed at step ``start`` sees what an
    uninterrupted one would have seen.
    """
    _check_length(tokens, length)
    stride = min(length - 1, len(tokens) - length + 1)  # neighbours share a token: a target, then an input
    n = (len(tokens) - length - stride + 1) // stride + 1  # windows that fit wherever the first one starts
    for epoch, rows in random_rows(n, batch, seed, start):
        first = int(_generator(seed, 2 * epoch + 1).integers(stride))
        yield tokens[first + stride * rows[:, None] + np.arange(length)]


def random_rows(n: int, batch: int, seed: int, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Endless pairs (epoch, int64 array [batch]) of row numbers below ``n``: each epoch names each row once, but for a
    rest that fills no batch. Pair number ``i`` is a function of (seed, i) alone."""
    per_epoch = max(n // batch, 1)
    epoch, order = -1, np.empty(0, np.int64)
    for step in count(start):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = _generator(seed, 2 * epoch).permutation(n)
        at = step % per_epoch * batch
        yield epoch, np.take(order, range(at, at + batch), mode="wrap")


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream])


def windows(tokens: np.ndarray, batch: int, length: int) -> Iterator[np.ndarray]:
    """int32 arrays [batch, length] that cover ``tokens`` once, each window sharing one token with the next (the last
    target of one is the first input of the other), in a shuffled but fixed order, so that the first arrays are a fair
    sample. A rest that fills no batch is left out; a text too short for one batch gives one batch of evenly spaced
    windows that overlap."""
    _check_length(tokens, length)
    starts = np.arange(0, len(tokens) - length + 1, length - 1)
    if len(starts) < batch:
        starts = np.linspace(0, len(tokens) - length, batch).astype(np.int64)
    for rows in shuffled_rows(len(starts), batch):
        yield tokens[starts[rows, None] + np.arange(length)]


def shuffled_rows(n: int, batch: int) -> Iterator[np.ndarray]:
    """int64 arrays [batch] that name each row below ``n`` once, in a shuffled but fixed order; a rest is left out."""
    order = np.random.default_rng(0).permutation(n)
    yield from order[: n // batch * batch].reshape(-1, batch)


def _check_length(tokens: np.ndarray, length: int) -> None:
    if len(tokens) < length:
        message = f"a window of {length} tokens does not fit into a split of {len(tokens)} tokens"
        raise error("GC0604", message, hint="give a longer text, or a shorter context with --set n_positions=…")


# Baselines -----------------------------------------------------------------------------------------------------------


def _frequencies(train: np.ndarray, classes: int) -> np.ndarray:
    """Probability of each class, add-one smoothed: one that only the held-out part has still gets some."""
    times: np.ndarray = (np.bincount(train, minlength=classes) + 1.0) / (len(train) + classes)
    return times


def class_loss(train: np.ndarray, heldout: np.ndarray, classes: int) -> float:
    """Cross-entropy in nats of the class frequencies of ``train`` [N] on ``heldout`` [M]: for text, the unigram."""
    return float(-np.log(_frequencies(train, classes)[heldout]).mean())


def conditional_loss(
    train: tuple[np.ndarray, np.ndarray], heldout: tuple[np.ndarray, np.ndarray], classes: int
) -> float:
    """Cross-entropy in nats of p(b | a), counted over the pairs ``train`` = (a [N], b [N]), on the pairs ``heldout``.

    With Witten-Bell smoothing: p(b | a) = (n(ab) + t(a) p(b)) / (n(a) + t(a)), t(a) the number of distinct b seen
    after a (Witten and Bell, 1991). For text, with b the token after a, the bigram.
    """
    a, b = train
    pairs, times = np.unique(a.astype(np.int64) * classes + b, return_counts=True)
    first = pairs // classes
    contexts = 1 + max(int(a.max()), int(heldout[0].max()))
    n = np.bincount(first, weights=times, minlength=contexts)
    t = np.bincount(first, minlength=contexts)
    a, b = heldout
    wanted = a.astype(np.int64) * classes + b
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, times[at], 0)
    backoff = _frequencies(train[1], classes)[b]
    total = (n + t)[a]
    p = np.where(total > 0, (seen + t[a] * backoff) / np.maximum(total, 1), backoff)
    return float(-np.log(p).mean())


# Sampling ------------------------------------------------------------------------------------------------------------


def sample_text(
    infer: Callable[..., dict[str, np.ndarray]], corpus: TextCorpus, context: int, length: int, seed: int = 0
) -> str:
    """``length`` characters that ``infer(x=[1, context] int32)["logits"] [1, context, vocabulary]`` writes after a
    newline, each drawn from the model's own distribution. Texts shorter than the window are padded on the right,
    which a causal model does not see."""
    rng = np.random.default_rng(seed)
    tokens = list(corpus.encode("\n")) or [0]
    for _ in range(length):
        window = tokens[-context:]
        x = np.zeros((1, context), np.int32)
        x[0, : len(window)] = window
        logits = infer(x=x)["logits"][0, len(window) - 1, : len(corpus.vocab)].astype(np.float64)
        p = np.exp(logits - logits.max())
        tokens.append(int(rng.choice(len(p), p=p / p.sum())))
    return corpus.decode(np.array(tokens[1:]))
