"""Images for training: CIFAR-10's files, normalisation, and augmentation that a seed and a step decide."""

from __future__ import annotations

import lzma
from functools import lru_cache
from pathlib import Path

import numpy as np

from graphc.errors import error

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "augment", "cifar10", "normalise"]

RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane
WHERE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

# Of the 50,000 training images, per channel.
CIFAR10_MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
CIFAR10_STD = np.array([0.2471, 0.2435, 0.2616], np.float32)


@lru_cache(maxsize=2)
def cifar10(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 (Krizhevsky, 2009) from its binary files, ``.bin`` or ``.bin.xz``: images uint8 [N, 3, 32, 32] and
    labels int32 [N]. "train" reads ``data_batch_*``, any other split ``val_*`` if there are such files, else
    ``test_batch*``.

    Raises GraphcError: GC0603 when there are no such files, GC0604 when one is not whole records.
    """
    root = Path(folder)
    root = inner if folder and (inner := root / "cifar-10-batches-bin").is_dir() else root
    files = sorted(f for f in root.glob("*batch*") if f.name.endswith((".bin", ".bin.xz"))) if folder else []
    held_out = [f for f in files if f.name.startswith("val_")] or [f for f in files if f.name.startswith("test_")]
    chosen = [f for f in files if f.name.startswith("data_batch")] if split == "train" else held_out
    if not chosen:
        what = f"{folder} has no CIFAR-10 files for {split}" if folder else "there are no images to train on"
        hint = f"curl -LO {WHERE} && tar xzf cifar-10-binary.tar.gz\n"
        hint += "and --data cifar-10-batches-bin: data_batch_*.bin and test_batch.bin"
        raise error("GC0603", what, hint=hint)
    records = np.concatenate([_records(f) for f in chosen])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int32)


def _records(file: Path) -> np.ndarray:
    """uint8 [N, 3073]."""
    try:
        raw = file.read_bytes()
        raw = lzma.decompress(raw) if file.suffix == ".xz" else raw
    except (lzma.LZMAError, EOFError) as e:
        raise error("GC0604", f"{file} is damaged: {e}", hint="download it again") from e
    except OSError as e:
        raise error("GC0603", f"cannot read the data file {file}: {e.strerror}", hint="check its permissions") from e
    records = np.frombuffer(raw[: len(raw) // RECORD * RECORD], np.uint8).reshape(-1, RECORD)
    if len(raw) % RECORD or not len(raw) or records[:, 0].max() > 9:
        message = f"{file} does not hold CIFAR-10 records: a label below 10, then 3,072 bytes"
        raise error("GC0604", message, hint=f"download it again: {WHERE}")
    return records


def normalise(images: np.ndarray, mean: np.ndarray = CIFAR10_MEAN, std: np.ndarray = CIFAR10_STD) -> np.ndarray:
    """uint8 [N, C, H, W] → float32: (x / 255 - mean) / std per channel."""
    scale, shift = 1 / (255 * std), mean / std
    return np.asarray(images * scale[:, None, None] - shift[:, None, None], np.float32)


def augment(images: np.ndarray, seed: int, step: int, padding: int = 4, mirror: bool = True) -> np.ndarray:
    """Each image [N, C, H, W] shifted by up to ``padding`` pixels in both directions (zeros move in) and, with
    ``mirror``, mirrored with probability 1/2: a function of the images, ``seed`` and ``step`` alone.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
    """
    n, _, height, width = images.shape
    rng = np.random.default_rng([seed, 7, step])
    top, left = rng.integers(0, 2 * padding + 1, (2, n))
    mirrored = rng.integers(0, 2 if mirror else 1, (n, 1))
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    columns = left[:, None] + np.where(mirrored, np.arange(width)[::-1], np.arange(width))
    rows = top[:, None] + np.arange(height)
    return np.ascontiguousarray(
        padded[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    )
