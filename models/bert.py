"""BERT (Devlin et al., arXiv 1810.04805): a transformer encoder over text, with the heads that pretrain it (masked
words, next sentence) and the one that classifies.

`Config` keys and tensor names are those of `transformers`' BertForSequenceClassification and BertForPreTraining, so
that their weights load by name. ``data`` names a folder with SST-2's files (is a sentence positive?); without it the
texts are lines of the standard library (is a line of prose a docstring or a comment?)::

    graphc train models/bert.py --data sst2/
    graphc train models/bert.py --set task=pretrain --data book.txt
    graphc train models/bert.py --data sst2/ --set preset=base --set vocab=vocab.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import class_loss, random_rows, shuffled_rows
from graphc.data_sentences import naive_bayes_accuracy, prose, sentences
from graphc.pretrained import ACTIVATIONS, Pretrained, PretrainedConfig, by_preset
from graphc.wordpiece import MASK, SPECIAL, WordPiece

PRESETS: dict[str, dict[str, Any]] = {
    # Google's miniatures (arXiv 1908.08962), over the words of the training texts
    "tiny": {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
        "vocab_size": 0, "batch_size": 32, "max_iters": 1000, "max_length": 64, "initializer_range": 0.05,
    },
    "mini": {
        "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
        "vocab_size": 0, "batch_size": 32, "max_iters": 3000, "max_length": 64, "initializer_range": 0.04,
    },
    # the published bert-base-uncased, 110 M parameters
    "base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 30522, "batch_size": 8, "max_iters": 100_000, "max_length": 128, "initializer_range": 0.02,
        "learning_rate": 5e-5,
    },
}  # fmt: skip
COMMON = {"learning_rate": 5e-4}

IGNORED = -100  # the label of a position that no loss is asked of, as in transformers


@dataclass
class Config(PretrainedConfig):
    """What ``--set KEY=VALUE`` overrides. Model keys are `transformers.BertConfig`'s."""

    preset: str = "tiny"
    task: str = "classify"  # or "pretrain"

    vocab_size: int = by_preset()  # 0: as many as the vocabulary has pieces
    hidden_size: int = by_preset()
    num_hidden_layers: int = by_preset()
    num_attention_heads: int = by_preset()
    intermediate_size: int = by_preset()
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = by_preset()
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    num_labels: int = 2

    data: str = ""  # a folder with SST-2's files; to pretrain, a text file; empty: the standard library's prose
    vocab: str = ""  # a vocab.txt of WordPiece; empty: the words of the training texts
    max_length: int = by_preset()  # pieces of a row, at most max_position_embeddings
    seed: int = 0
    batch_size: int = by_preset()
    max_iters: int = by_preset()
    learning_rate: float = by_preset()
    warmup_iters: int = 100
    weight_decay: float = 0.01
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        self.fill(PRESETS, COMMON)
        if self.task not in ("classify", "pretrain"):
            raise ValueError(f"task is classify or pretrain, not {self.task!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size}")
        self.max_length = min(self.max_length, self.max_position_embeddings)
        self.vocab_size = self.vocab_size or len(tokenizer(self))


# The model -----------------------------------------------------------------------------------------------------------


class Embeddings(nn.Module):
    """input_ids, token_type_ids [B, T] int → [B, T, D]."""

    def __init__(self, config: Config) -> None:
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: gc.Tensor, token_type_ids: gc.Tensor | None) -> gc.Tensor:
        types = gc.zeros(input_ids.shape, dtype="int32") if token_type_ids is None else token_type_ids
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(types)
        return self.dropout(self.LayerNorm(x + self.position_embeddings.weight[: input_ids.shape[1]]))


class SelfAttention(nn.Module):
    """x [B, T, D] → what each position reads from those where ``mask`` [B, 1, 1, T] holds, [B, T, D]."""

    def __init__(self, config: Config) -> None:
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        b, t, d = x.shape
        q, k, v = (
            gc.permute_dims(project(x).reshape((b, t, self.heads, d // self.heads)), (0, 2, 1, 3))
            for project in (self.query, self.key, self.value)
        )
        y = gc.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        return gc.permute_dims(y, (0, 2, 1, 3)).reshape((b, t, d))


class Output(nn.Module):
    """LayerNorm(residual + dropout(dense(x))): the norm comes after the sum."""

    def __init__(self, n_in: int, config: Config) -> None:
        self.dense = nn.Linear(n_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: gc.Tensor, residual: gc.Tensor) -> gc.Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class Dense(nn.Module):
    """activation(dense(x))."""

    def __init__(self, n_in: int, n_out: int, activation: Any) -> None:
        self.dense = nn.Linear(n_in, n_out)
        self.activation = activation

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.activation(self.dense(x))


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        return self.output(self.self(x, mask), x)


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        self.attention = Attention(config)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size, ACTIVATIONS[config.hidden_act])
        self.output = Output(config.intermediate_size, config)

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Transformer(nn.Module):
    """(hidden states [B, T, D], the pooled first position [B, D])."""

    def __init__(self, config: Config) -> None:
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Dense(config.hidden_size, config.hidden_size, gc.tanh)

    def forward(
        self, input_ids: gc.Tensor, attention_mask: gc.Tensor | None, token_type_ids: gc.Tensor | None
    ) -> tuple[gc.Tensor, gc.Tensor]:
        mask = None if attention_mask is None else attention_mask[:, None, None, :] != 0
        x = self.encoder(self.embeddings(input_ids, token_type_ids), mask)
        return x, self.pooler(x[:, 0])


class Bert(Pretrained):
    """What both models share. Old files name the parameters of norms gamma and beta, and hold the position numbers."""

    published = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"), (r"^bert\.embeddings\.position_ids$", ""))

    def __init__(self, config: Config) -> None:
        self.bert = Transformer(config)

    def initialise(self, config: Config) -> None:
        """Matrices from a normal distribution, the padding's embedding 0; biases 0 and norms 1."""
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        self.bert.embeddings.word_embeddings.weight.initial[config.pad_token_id] = 0


class Model(Bert):
    """input_ids, attention_mask (0 where there is padding), token_type_ids [B, T] int → logits [B, num_labels]."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        p = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if p is None else p)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialise(config)

    def forward(
        self, input_ids: gc.Tensor, attention_mask: gc.Tensor | None = None, token_type_ids: gc.Tensor | None = None
    ) -> gc.Tensor:
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classifier(self.dropout(pooled))


class Transform(Dense):
    def __init__(self, config: Config) -> None:
        super().__init__(config.hidden_size, config.hidden_size, ACTIVATIONS[config.hidden_act])
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.LayerNorm(super().forward(x))


class Predictions(nn.Module):
    """hidden states [B, T, D] → logits over words [B, T, vocab_size]; ``words`` is the embedding's weight."""

    def __init__(self, config: Config, words: gc.State) -> None:
        self.transform = Transform(config)
        self.bias = nn.Parameter(np.zeros(config.vocab_size, np.float32))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight, self.decoder.bias = words, self.bias

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.decoder(self.transform(x))


class PretrainingHeads(nn.Module):
    def __init__(self, config: Config, words: gc.State) -> None:
        self.predictions = Predictions(config, words)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class PretrainingModel(Bert):
    """As `Model`, but → ``prediction_logits`` [B, T, vocab_size], the word at each position, and
    ``seq_relationship_logits`` [B, 2]: whether the second text follows the first (class 0)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cls = PretrainingHeads(config, self.bert.embeddings.word_embeddings.weight)
        self.initialise(config)

    def forward(
        self, input_ids: gc.Tensor, attention_mask: gc.Tensor | None = None, token_type_ids: gc.Tensor | None = None
    ) -> dict[str, gc.Tensor]:
        x, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return {
            "prediction_logits": self.cls.predictions(x),
            "seq_relationship_logits": self.cls.seq_relationship(pooled),
        }


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` (a batch of `batches` → loss), ``evaluate`` (→ loss, accuracy), ``infer`` (one row → logits)."""
    gc.seed(config.seed)
    pretrain = config.task == "pretrain"
    model = PretrainingModel(config) if pretrain else Model(config)
    parameters = model.parameters()
    opt = optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=optim.linear(config.learning_rate, config.max_iters, warmup=config.warmup_iters),
    )
    text = ("input_ids", "attention_mask", "token_type_ids")
    ids = gc.spec((config.batch_size, config.max_length), "int32")
    classes = gc.spec((config.batch_size,), "int32")
    targets = {"labels": ids, "next_sentence_label": classes} if pretrain else {"labels": classes}

    def measured(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        out = model(*[x[name] for name in text])
        if not pretrain:
            return {"loss": gc.cross_entropy(out, x["labels"]), "accuracy": gc.accuracy(out, x["labels"])}
        masked = gc.cross_entropy(out["prediction_logits"], x["labels"], ignore_index=IGNORED)
        following = gc.cross_entropy(out["seq_relationship_logits"], x["next_sentence_label"])
        right = gc.accuracy(out["seq_relationship_logits"], x["next_sentence_label"])
        return {"loss": masked + following, "masked_word_loss": masked, "accuracy": right}

    @gc.entry(**dict.fromkeys(text, ids), **targets)
    def train(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        model.train()
        loss = measured(**x)["loss"]
        grads = gc.grad(loss, parameters)
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(**dict.fromkeys(text, ids), **targets)
    def evaluate(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        model.eval()
        return measured(**x)

    @gc.entry(**dict.fromkeys(text, gc.spec((1, config.max_length), "int32")))
    def infer(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        out = model.eval()(*[x[name] for name in text])
        return out if pretrain else {"logits": out}

    return train, evaluate, infer


# Data ----------------------------------------------------------------------------------------------------------------


def tokenizer(config: Config) -> WordPiece:
    """The one of ``vocab``, or one made of the training texts."""
    return _tokenizer(config.vocab, config.data, config.task)


@lru_cache(maxsize=4)
def _tokenizer(vocab: str, data: str, task: str) -> WordPiece:
    if vocab:
        return WordPiece.read(vocab)
    return WordPiece.of(prose(data, "train") if task == "pretrain" else sentences(data, "train").texts)


@lru_cache(maxsize=4)
def _rows(vocab: str, data: str, length: int, split: str) -> dict[str, np.ndarray]:
    texts = [(text,) for text in sentences(data, split).texts]
    return _tokenizer(vocab, data, "classify").rows(texts, length)


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """input_ids, attention_mask, token_type_ids [batch_size, max_length] int32 with labels [batch_size], or to pretrain
    labels [batch_size, max_length] and next_sentence_label [batch_size]: without end from batch ``start`` on for
    "train", once over the sentences of "heldout" or "test"."""
    if config.task == "pretrain":
        yield from pretraining_batches(config, split, start)
        return
    labels = sentences(config.data, split).labels
    rows = _rows(config.vocab, config.data, config.max_length, split)
    train = (r for _, r in random_rows(len(labels), config.batch_size, config.seed, start))
    for chosen in train if split == "train" else shuffled_rows(len(labels), config.batch_size):
        yield {name: array[chosen] for name, array in rows.items()} | {"labels": labels[chosen]}


def pretraining_batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Two lines of text a row, neighbours in half of the rows, with 15 % of the pieces to be guessed."""
    lines, words = prose(config.data, split), tokenizer(config)
    train = random_rows(len(lines) - 1, config.batch_size, config.seed, start)
    held_out = enumerate(shuffled_rows(len(lines) - 1, config.batch_size))
    for step, (_, rows) in enumerate(train if split == "train" else held_out, start):
        rng = np.random.default_rng([config.seed, 11, step, split == "train"])
        other = rng.integers(0, 2, len(rows)).astype(np.int32)
        second = np.where(other, rng.integers(0, len(lines), len(rows)), rows + 1)
        batch = words.rows([(lines[a], lines[b]) for a, b in zip(rows, second, strict=True)], config.max_length)
        yield mask_words(batch, words, rng) | {"next_sentence_label": other}


def mask_words(batch: dict[str, np.ndarray], words: WordPiece, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """15 % of the pieces become targets (``labels``; `IGNORED` elsewhere): 80 % of them are shown as [MASK], 10 % as
    another piece, 10 % as they are."""
    ids = batch["input_ids"]
    special = np.isin(ids, [words.number(piece) for piece in SPECIAL])
    chosen = (rng.random(ids.shape) < 0.15) & ~special
    how = rng.random(ids.shape)
    shown = np.where(how < 0.8, words.number(MASK), rng.integers(0, len(words), ids.shape))
    seen = np.where(chosen & (how < 0.9), shown, ids)
    return batch | {"input_ids": seen.astype(np.int32), "labels": np.where(chosen, ids, IGNORED).astype(np.int32)}


def baselines(config: Config) -> dict[str, float]:
    """Held out: the loss in nats that the frequencies of the classes reach (of the words and, for the second text, a
    guess, where it pretrains), and the accuracy of naive Bayes over words and pairs of words."""
    if config.task == "pretrain":
        words = tokenizer(config)
        train, heldout = (
            np.array([n for t in prose(config.data, split) for n in words.encode(t)]) for split in ("train", "heldout")
        )
        return {"unigram_loss": class_loss(train, heldout, len(words)) + float(np.log(2)), "chance_accuracy": 0.5}
    train_set, held_out = (sentences(config.data, split) for split in ("train", "heldout"))
    return {
        "prior_loss": class_loss(train_set.labels, held_out.labels, config.num_labels),
        "naive_bayes_accuracy": naive_bayes_accuracy(train_set, held_out),
    }
