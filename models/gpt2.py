"""GPT-2 (Radford et al., 2019): a decoder-only transformer, and the recipe that trains it.

`Config` keys and tensor names are those of `transformers`' GPT2LMHeadModel, so that its weights load by name; the
training keys and their values are nanoGPT's. Without ``data`` the text is the Python standard library's own source,
one token per character::

    graphc train models/gpt2.py                                   # nano, a minute on two cores
    graphc train models/gpt2.py --data input.txt --set preset=baby
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import TextCorpus, random_windows, sample_text, text_corpus, windows
from graphc.tokenizers import characters

PRESETS: dict[str, dict[str, Any]] = {
    # nanoGPT's settings for a CPU
    "nano": {
        "n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "dropout": 0.0,
        "batch_size": 12, "max_iters": 2000,
        # GPT-2's 0.02 is for a width of 768; a narrow model learns much faster from wider weights.
        "initializer_range": 0.06,
    },
    # nanoGPT's "baby GPT" for tinyshakespeare, trained within the hour on two cores: the text is seen eight times, so
    # that it needs no dropout. On a GPU nanoGPT takes a batch of 64, 5,000 steps and dropout of 0.2.
    "baby": {
        "n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256, "dropout": 0.0,
        "batch_size": 12, "max_iters": 2500, "initializer_range": 0.035,
    },
    # the smallest published GPT-2, 124 M parameters
    "small": {
        "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "dropout": 0.1, "vocab_size": 50257,
        "batch_size": 4, "max_iters": 100_000,
        "learning_rate": 6e-4, "min_lr": 6e-5, "beta2": 0.95, "warmup_iters": 2000,
    },
}  # fmt: skip
COMMON = {
    "vocab_size": 0, "initializer_range": 0.02,
    "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100,
}  # fmt: skip

ACTIVATIONS = {
    "gelu_new": lambda x: gc.gelu(x, approximate="tanh"),  # the name that transformers gives to GPT-2's own
    "gelu": gc.gelu,
    "relu": gc.relu,
    "silu": gc.silu,
}


def by_preset() -> Any:
    """A key whose default depends on ``preset``."""
    return field(default=None)


@dataclass
class Config:
    """What ``--set KEY=VALUE`` overrides. Model keys are `transformers.GPT2Config`'s, training keys nanoGPT's."""

    preset: str = "nano"

    vocab_size: int = by_preset()  # 0: as many as the text has different characters
    n_positions: int = by_preset()
    n_embd: int = by_preset()
    n_layer: int = by_preset()
    n_head: int = by_preset()
    n_inner: int = 0  # 0: four times n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = by_preset()
    embd_pdrop: float = by_preset()
    attn_pdrop: float = by_preset()
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = by_preset()

    data: str = ""  # a UTF-8 text file; empty: the standard library's source
    seed: int = 1337
    batch_size: int = by_preset()
    max_iters: int = by_preset()
    learning_rate: float = by_preset()
    min_lr: float = by_preset()
    warmup_iters: int = by_preset()
    lr_decay_iters: int = 0  # 0: max_iters
    beta1: float = 0.9
    beta2: float = by_preset()
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is one of {', '.join(PRESETS)}, not {self.preset!r}")
        preset = COMMON | PRESETS[self.preset]
        preset |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), preset["dropout"])
        for key, value in preset.items():
            if getattr(self, key, value) is None:
                setattr(self, key, value)
        self.vocab_size = self.vocab_size or len(corpus(self).vocab)
        self.n_inner = self.n_inner or 4 * self.n_embd
        self.lr_decay_iters = self.lr_decay_iters or self.max_iters


# The model -----------------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """x [..., n_in] → x @ weight + bias [..., n_out]. GPT-2 stores weights [in, out], the transpose of `nn.Linear`."""

    def __init__(self, n_in: int, n_out: int) -> None:
        self.weight = nn.Parameter(np.zeros((n_in, n_out), np.float32))
        self.bias = nn.Parameter(np.zeros(n_out, np.float32))

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal self-attention over x [B, T, n_embd]."""

    def __init__(self, config: Config, layer: int) -> None:
        self.n_head, self.attn_pdrop, self.layer = config.n_head, config.attn_pdrop, layer
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: gc.Tensor, past: nn.Context | None = None) -> gc.Tensor:
        b, t, c = x.shape
        qkv = gc.split(self.c_attn(x), 3, axis=-1)
        q, k, v = (gc.permute_dims(z.reshape((b, t, self.n_head, c // self.n_head)), (0, 2, 1, 3)) for z in qkv)
        if past is None:
            dropout = self.attn_pdrop if self.training else 0.0
            y = gc.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        else:
            y = past.attend(self.layer, q, k, v)
        return self.resid_dropout(self.c_proj(gc.permute_dims(y, (0, 2, 1, 3)).reshape((b, t, c))))


class MLP(nn.Module):
    """The position-wise network over x [B, T, n_embd]."""

    def __init__(self, config: Config) -> None:
        self.c_fc = Conv1D(config.n_embd, config.n_inner)
        self.c_proj = Conv1D(config.n_inner, config.n_embd)
        self.act = ACTIVATIONS[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: gc.Tensor, past: nn.Context | None) -> gc.Tensor:
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """ids [B, T] int → hidden states [B, T, n_embd]."""

    def __init__(self, config: Config) -> None:
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([Block(config, i) for i in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, ids: gc.Tensor, past: nn.Context | None = None) -> gc.Tensor:
        positions = self.wpe.weight[: ids.shape[1]] if past is None else self.wpe(past.positions)
        x = self.drop(self.wte(ids) + positions)
        for block in self.h:
            x = block(x, past)
        return self.ln_f(x)


class Model(nn.Module):
    """ids [B, T] int → logits [B, T, vocab_size]; the output layer shares its weight with the token embedding."""

    def __init__(self, config: Config) -> None:
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        initialise(self, config)

    def forward(self, ids: gc.Tensor) -> gc.Tensor:
        return self.lm_head(self.transformer(ids))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Also takes the file as OpenAI's weights are published: without the prefix ``transformer.`` and with the
        causal masks among the tensors."""
        masks = (".attn.bias", ".attn.masked_bias")
        named = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": array
            for name, array in state_dict.items()
            if not name.endswith(masks)
        }
        return super().load_state_dict(named, strict)

    def next_logits(self, ids: gc.Tensor, past: nn.Context, index: gc.TensorLike) -> gc.Tensor:
        """ids [B, T] that stand where ``past`` says → logits [B, vocab_size] of what follows position ``index``."""
        return self.lm_head(gc.take(self.eval().transformer(ids, past), index, axis=1))


def initialise(model: Model, config: Config) -> None:
    """Matrices from a normal distribution, the layers that write to the residual stream scaled by 1/sqrt(2 n_layer)
    so that its variance does not grow with depth; biases stay 0 and norms 1."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            depth = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
            nn.init.normal_(p, std=config.initializer_range / math.sqrt(depth))


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` and ``evaluate`` (x, y [batch_size, n_positions] → loss), ``infer`` (x [1, n_positions] → logits);
    ``prefill`` and ``decode`` (see `nn.generation_entries`)."""
    gc.seed(config.seed)  # initial weights and dropout
    model = Model(config)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    opt = optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=optim.cosine(config.learning_rate, config.lr_decay_iters, warmup=config.warmup_iters, final=config.min_lr),
        betas=(config.beta1, config.beta2),
    )
    ids = gc.spec((config.batch_size, config.n_positions), "int32")

    @gc.entry(x=ids, y=ids)
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model.train()(x), y)
        grads = gc.grad(loss, matrices + vectors)
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(x=ids, y=ids)
    def evaluate(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"loss": gc.cross_entropy(model.eval()(x), y)}

    @gc.entry(x=gc.spec((1, config.n_positions), "int32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model.eval()(x)}

    cache = nn.KVCache(config.n_layer, config.n_head, config.n_positions, config.n_embd // config.n_head)
    return train, evaluate, infer, *nn.generation_entries(model.next_logits, cache)


def corpus(config: Config) -> TextCorpus:
    """The text that this configuration trains on."""
    return text_corpus(config.data)


def metadata(config: Config) -> dict[str, str]:
    """The characters that tokens stand for, unless ``vocab_size`` says that they are no characters."""
    vocabulary = corpus(config).vocab
    return characters(vocabulary) if len(vocabulary) == config.vocab_size else {}


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """x and y [batch_size, n_positions] int32, y one character ahead of x: without end from batch ``start`` on for
    "train", once over the held-out text for "heldout"."""
    tokens = corpus(config).split(split)
    length = config.n_positions + 1
    if split == "train":
        rows = random_windows(tokens, config.batch_size, length, config.seed, start)
    else:
        rows = windows(tokens, config.batch_size, length)
    for row in rows:
        yield {"x": row[:, :-1], "y": row[:, 1:]}


def baselines(config: Config) -> dict[str, float]:
    """Held-out losses in nats per token that need no network."""
    return corpus(config).baselines()


def sample(infer: Callable[..., dict[str, np.ndarray]], config: Config, length: int = 300) -> str:
    """Text that the entry ``infer`` writes, character by character."""
    return sample_text(infer, corpus(config), config.n_positions, length, config.seed)
