"""A multilayer perceptron: 784 features → 512 → 10 classes, the smallest model that shows every part of the compiler.

``data`` names a folder with MNIST's IDX files. Without it the task is one of the same shape that every machine has: of
what kind is the next character of Python source (a letter, a digit, a bracket …), given the 8 characters before it,
each one-hot over 98 (8 × 98 = 784)? ::

    graphc train models/mlp.py
    graphc train models/mlp.py --data mnist/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import class_loss, conditional_loss, mnist, random_rows, shuffled_rows, text_corpus

CONTEXT = 8
CHARS = "\n\t" + "".join(map(chr, range(32, 127)))  # position 97 stands for every other character
KINDS = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "_", " ", "\n", "\"'", "([{", ")]}")


@dataclass
class Config:
    """What ``--set KEY=VALUE`` overrides."""

    in_features: int = 784
    hidden_features: int = 512
    out_features: int = 10

    data: str = ""  # a folder with MNIST's IDX files; empty: characters of the standard library's source
    seed: int = 0
    batch_size: int = 128
    max_iters: int = 2000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    grad_clip: float = 1.0


class Model(nn.Module):
    """x [B, in_features] float32 → logits [B, out_features]."""

    def __init__(self, config: Config) -> None:
        self.fc1 = nn.Linear(config.in_features, config.hidden_features)
        self.fc2 = nn.Linear(config.hidden_features, config.out_features)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight)  # for ReLU; biases as torch has them

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(gc.relu(self.fc1(x)))


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` and ``evaluate`` (x [batch_size, in_features], y [batch_size] → loss), ``infer`` (one x → logits)."""
    gc.seed(config.seed)
    model = Model(config)
    opt = optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    features = gc.spec((config.batch_size, config.in_features), "float32")
    labels = gc.spec((config.batch_size,), "int32")

    @gc.entry(x=features, y=labels)
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model(x), y)
        grads = gc.grad(loss, model.parameters())
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(x=features, y=labels)
    def evaluate(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"loss": gc.cross_entropy(model(x), y)}

    @gc.entry(x=gc.spec((1, config.in_features), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model(x)}

    return train, evaluate, infer


# Data ----------------------------------------------------------------------------------------------------------------


@cache
def next_kind(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The task without ``data``: the 8 last characters [N, 8] as positions in `CHARS`, the kind of the next one [N]."""
    corpus = text_corpus()
    position = np.array([CHARS.find(c) % (len(CHARS) + 1) for c in corpus.vocab], np.int32)
    kind = np.array([next((k for k, s in enumerate(KINDS) if c in s), len(KINDS)) for c in corpus.vocab], np.int32)
    tokens = corpus.split(split)
    contexts = np.lib.stride_tricks.sliding_window_view(position[tokens[:-1]], CONTEXT)
    return contexts, kind[tokens[CONTEXT:]]


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """x [batch_size, in_features] float32 and y [batch_size] int32: without end from batch ``start`` on for "train",
    once over the held-out part for "heldout"."""
    x, y = mnist(config.data, split) if config.data else next_kind(split)
    size = config.batch_size
    train = (row for _, row in random_rows(len(y), size, config.seed, start))
    rows = train if split == "train" else shuffled_rows(len(y), size)
    one_hot = np.eye(len(CHARS) + 1, dtype=np.float32)
    for row in rows:
        features = x[row] / np.float32(255) if config.data else one_hot[x[row]].reshape(size, -1)
        yield {"x": features, "y": y[row]}


def baselines(config: Config) -> dict[str, float]:
    """Held-out losses in nats that need no network: the classes' frequencies and, for characters, their frequencies
    after the last character seen."""
    if config.data:
        (_, train), (_, heldout) = (mnist(config.data, split) for split in ("train", "heldout"))
        return {"prior_loss": class_loss(train, heldout, config.out_features)}
    (a, b), (c, d) = next_kind("train"), next_kind("heldout")
    return {
        "unigram_loss": class_loss(b, d, config.out_features),
        "bigram_loss": conditional_loss((a[:, -1], b), (c[:, -1], d), config.out_features),
    }
