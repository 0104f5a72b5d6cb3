"""What `bench/learning.py` trains: small models on real data, each chosen to reach its goal in minutes on two cores.

Dropout is off everywhere, since two systems draw different random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphc.data import TextCorpus, mnist, text_corpus
from graphc.data_emoji import emoji
from graphc.data_images import cifar10
from graphc.data_sentences import naive_bayes_accuracy, sentences

Scores = dict[str, float]
Images = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Recipe:
    """A model file with ``config``, trained on ``data`` (below the folder of all data) and judged on ``split`` by
    ``score``. ``floor`` computes, from the path of the data, what is reached without a network. Through the first
    ``steady`` steps, weights changed in their last bit leave no mark on the loss. Where they soon do, one pair of runs
    does not decide between two systems, and ``seeds`` are several; else the model's own is used."""

    title: str
    data: str
    config: dict[str, Any]
    score: str
    goal: str
    floor: Callable[[str], Scores]
    split: str = "heldout"
    evaluations: int = 12  # of all held-out data, during training
    steady: int = 20
    seeds: tuple[int, ...] = ()


def text_floor(path: str) -> Scores:
    """Nats per character of unigram, bigram and 5-gram."""
    corpus = text_corpus(path)
    return corpus.baselines() | {"5-gram_loss": ngram_loss(corpus, 5)}


def ngram_loss(corpus: TextCorpus, n: int) -> float:
    """Held-out nats per token of p_n(b | a), a the n - 1 tokens before b, with interpolated Witten-Bell smoothing:
    p_k(b | a) = (n(ab) + t(a) p_k-1(b | a')) / (n(a) + t(a)), where t(a) counts the distinct b after a, and a' is a
    without its first token (Witten and Bell, 1991)."""
    size = len(corpus.vocab)
    p = np.full(len(corpus.heldout) - n + 1, 1 / size)
    for k in range(1, n + 1):
        seen, wanted = (np.zeros(len(t) - k + 1, np.int64) for t in (corpus.train, corpus.heldout))
        for i in range(k):
            seen = seen * size + corpus.train[i : len(corpus.train) - k + 1 + i]
            wanted = wanted * size + corpus.heldout[i : len(corpus.heldout) - k + 1 + i]
        wanted = wanted[n - k :]
        grams, times = np.unique(seen, return_counts=True)
        contexts, first = np.unique(grams // size, return_index=True)
        total, distinct = np.add.reduceat(times, first), np.diff([*first, len(grams)])
        of, at = (looked_up(found, keys) for found, keys in ((grams, wanted), (contexts, wanted // size)))
        count, n_a, t_a = (np.append(c, 0)[i] for c, i in ((times, of), (total, at), (distinct, at)))
        p = np.where(n_a > 0, (count + t_a * p) / np.maximum(n_a + t_a, 1), p)
    return float(-np.log(p).mean())


def looked_up(found: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The position in the sorted ``found`` of each key, len(found) where it is not there."""
    at = np.searchsorted(found, keys)
    return np.where(np.append(found, -1)[at] == keys, at, len(found))


def sentiment_floor(path: str) -> Scores:
    """Test accuracy of naive Bayes over words and their pairs, trained on whole sentences and on all phrases."""
    test = sentences(path, "test")
    return {
        "naive_bayes_accuracy": naive_bayes_accuracy(sentences(str(Path(path).parent), "train"), test),
        "naive_bayes_accuracy_with_phrases": naive_bayes_accuracy(sentences(path, "train"), test),
    }


def digit_floor(path: str) -> Scores:
    return {"nearest_neighbour_accuracy": nearest_neighbour_accuracy(mnist(path, "train"), mnist(path, "heldout"))}


def photo_floor(path: str) -> Scores:
    return {"nearest_neighbour_accuracy": nearest_neighbour_accuracy(cifar10(path, "train"), cifar10(path, "heldout"))}


def nearest_neighbour_accuracy(train: Images, heldout: Images, rows: int = 500) -> float:
    """The share of ``heldout`` images (uint8 [N, ...], labels [N]) whose nearest training image, by the distance of
    their pixels, has the same label."""
    known, x = (a.reshape(len(a), -1).astype(np.float32) / 255 for a, _ in (train, heldout))
    squares = (known * known).sum(1)
    nearest = [(squares - 2 * x[i : i + rows] @ known.T).argmin(1) for i in range(0, len(x), rows)]
    return float((train[1][np.concatenate(nearest)] == heldout[1]).mean())


def emoji_floor(path: str) -> Scores:
    """Of the names of the held-out emoji, what guessing finds."""
    n = len(emoji(path, "heldout").names)
    return {f"chance_R@{k}": k / n for k in (1, 5, 10)}


LANGUAGE = {
    "batch_size": 16, "learning_rate": 2e-3, "min_lr": 1e-4, "warmup_iters": 100, "weight_decay": 0.1,
    "initializer_range": 0.05, "max_iters": 1800,
}  # fmt: skip

RECIPES = {
    "convnet": Recipe(
        title="two convolutions",
        data="mnist",
        config={"batch_size": 100, "max_iters": 2400},
        score="accuracy",
        goal="99 %",
        floor=digit_floor,
    ),
    "bert": Recipe(
        title="BERT",
        data="sst2/glue_train.tsv",
        config={
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "batch_size": 64,
            "max_iters": 1200,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_length": 40,
        },
        score="accuracy",
        goal="above naive Bayes",
        floor=sentiment_floor,
        split="test",
    ),
    "llama": Recipe(
        title="Llama",
        data="tinyshakespeare/input.txt",
        config=LANGUAGE
        | {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 128,
        },
        score="loss",
        goal="below 1.60 nats",
        floor=text_floor,
    ),
    "gpt2": Recipe(
        title="GPT-2",
        data="tinyshakespeare/input.txt",
        config=LANGUAGE | {"n_embd": 192, "n_layer": 4, "n_head": 6, "n_positions": 128, "max_iters": 2600},
        score="loss",
        goal="below 1.60 nats",
        floor=text_floor,
    ),
    "vit": Recipe(
        title="ViT",
        data="cifar10",
        config={"batch_size": 50, "max_iters": 3000, "learning_rate": 3e-4},
        score="accuracy",
        goal="within 0.5 points",
        floor=photo_floor,
    ),
    "clip": Recipe(
        title="CLIP",
        data="emoji",
        config={"batch_size": 64, "max_iters": 1000},
        score="R@1",
        goal="far above chance",
        floor=emoji_floor,
    ),
    "resnet": Recipe(
        title="ResNet-20",
        seeds=(0, 1, 2),
        data="cifar10",
        config={"batch_size": 100, "max_iters": 5000, "weight_decay": 5e-4},
        score="accuracy",
        goal="80 %, within 0.5 points",
        floor=photo_floor,
        steady=2,
    ),
}
