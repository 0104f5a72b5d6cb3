"""Llama (Touvron et al., 2023): a decoder-only transformer with RMSNorm, rotary positions, SwiGLU and grouped queries.

`Config` keys and tensor names are those of `transformers`' LlamaForCausalLM, so that its weights load by name; the
training keys are those of ``models/gpt2.py``. Without ``data`` the text is the Python standard library's own source,
one token per character::

    graphc train models/llama.py                                  # nano, a minute or two on two cores
    graphc train models/llama.py --data input.txt --set preset=baby
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import TextCorpus, random_windows, sample_text, text_corpus, windows
from graphc.tokenizers import characters

PRESETS: dict[str, dict[str, Any]] = {
    # as wide and deep as nanoGPT's settings for a CPU
    "nano": {
        "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "batch_size": 12, "max_iters": 2000,
        # Llama's 0.02 is for a width of thousands; a narrow model learns much faster from wider weights.
        "initializer_range": 0.06,
    },
    # the size of nanoGPT's "baby GPT", for tinyshakespeare
    "baby": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 3, "max_position_embeddings": 256, "attention_dropout": 0.2, "hidden_dropout": 0.2,
        "batch_size": 64, "max_iters": 5000, "initializer_range": 0.035,
    },
    # karpathy/tinyllamas, trained on TinyStories with a vocabulary of 512
    "stories260K": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "batch_size": 16, "max_iters": 10_000, "initializer_range": 0.06,
    },
    # TinyLlama/TinyLlama-1.1B
    "tinyllama": {
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "batch_size": 1, "max_iters": 100_000, "learning_rate": 4e-4, "min_lr": 4e-5, "beta2": 0.95,
        "warmup_iters": 2000,
    },
}  # fmt: skip
COMMON = {
    "vocab_size": 0, "tie_word_embeddings": False, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "initializer_range": 0.02, "learning_rate": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100,
}  # fmt: skip

ACTIVATIONS: dict[str, Callable[[gc.Tensor], gc.Tensor]] = {"silu": gc.silu, "gelu": gc.gelu, "relu": gc.relu}


def by_preset() -> Any:
    """A key whose default depends on ``preset``."""
    return field(default=None)


@dataclass
class Config:
    """What ``--set KEY=VALUE`` overrides. Model keys are `transformers.LlamaConfig`'s; ``hidden_dropout``, on what each
    layer adds to the residual stream, is ours, for small texts. Training keys are nanoGPT's."""

    preset: str = "nano"

    vocab_size: int = by_preset()  # 0: as many as the text has different characters
    hidden_size: int = by_preset()
    intermediate_size: int = by_preset()
    num_hidden_layers: int = by_preset()
    num_attention_heads: int = by_preset()
    num_key_value_heads: int = by_preset()
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = by_preset()
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = by_preset()
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = by_preset()
    hidden_dropout: float = by_preset()
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
        for key, value in (COMMON | PRESETS[self.preset]).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads divides num_attention_heads")
        self.vocab_size = self.vocab_size or len(corpus(self).vocab)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.lr_decay_iters = self.lr_decay_iters or self.max_iters


# The model -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal self-attention over x [B, T, hidden_size]; groups of query heads share a key and value head."""

    def __init__(self, config: Config, layer: int) -> None:
        self.heads, self.kv_heads, self.depth = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer = layer
        self.theta, self.dropout = config.rope_theta, config.attention_dropout
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * self.depth, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.depth, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.depth, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.depth, width, bias=bias)

    def forward(self, x: gc.Tensor, past: nn.Context | None = None) -> gc.Tensor:
        b, t, _ = x.shape
        positions = gc.arange(t) if past is None else past.positions
        q = gc.rope(self.split(self.q_proj(x), self.heads), positions, self.theta)
        k = gc.rope(self.split(self.k_proj(x), self.kv_heads), positions, self.theta)
        v = self.split(self.v_proj(x), self.kv_heads)
        if past is None:
            dropout = self.dropout if self.training else 0.0
            y = gc.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True)
        else:
            y = past.attend(self.layer, q, k, v)
        return self.o_proj(gc.permute_dims(y, (0, 2, 1, 3)).reshape(b, t, self.heads * self.depth))

    def split(self, x: gc.Tensor, heads: int) -> gc.Tensor:
        """[B, T, heads · depth] → [B, heads, T, depth]"""
        return gc.permute_dims(x.reshape(*x.shape[:2], heads, self.depth), (0, 2, 1, 3))


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020): down(act(gate(x)) · up(x)) over x [B, T, hidden_size]."""

    def __init__(self, config: Config) -> None:
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: gc.Tensor, past: nn.Context | None) -> gc.Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), past))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """ids [B, T] int → hidden states [B, T, hidden_size]."""

    def __init__(self, config: Config) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, ids: gc.Tensor, past: nn.Context | None = None) -> gc.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, past)
        return self.norm(x)


class Model(nn.Module):
    """ids [B, T] int → logits [B, T, vocab_size]."""

    def __init__(self, config: Config) -> None:
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        initialise(self, config)

    def forward(self, ids: gc.Tensor) -> gc.Tensor:
        return self.lm_head(self.model(ids))

    def next_logits(self, ids: gc.Tensor, past: nn.Context, index: gc.TensorLike) -> gc.Tensor:
        """ids [B, T] that stand where ``past`` says → logits [B, vocab_size] of what follows position ``index``."""
        return self.lm_head(gc.take(self.eval().model(ids, past), index, axis=1))


def initialise(model: Model, config: Config) -> None:
    """Matrices from a normal distribution, the layers that write to the residual stream scaled by
    1/sqrt(2 num_hidden_layers) so that its variance does not grow with depth; biases 0 and norms 1."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            depth = 2 * config.num_hidden_layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            nn.init.normal_(p, std=config.initializer_range / math.sqrt(depth))
        elif name.endswith("bias"):
            nn.init.zeros_(p)


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` and ``evaluate`` (x, y [batch_size, T] → loss), ``infer`` (x [1, T] → logits [1, T, vocab_size]), where
    T is max_position_embeddings; ``prefill`` and ``decode`` (see `nn.generation_entries`)."""
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
    ids = gc.spec((config.batch_size, config.max_position_embeddings), "int32")

    @gc.entry(x=ids, y=ids)
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model.train()(x), y)
        grads = gc.grad(loss, matrices + vectors)
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(x=ids, y=ids)
    def evaluate(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"loss": gc.cross_entropy(model.eval()(x), y)}

    @gc.entry(x=gc.spec((1, config.max_position_embeddings), "int32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model.eval()(x)}

    heads, depth = config.num_key_value_heads, config.head_dim
    cache = nn.KVCache(config.num_hidden_layers, heads, config.max_position_embeddings, depth)
    return train, evaluate, infer, *nn.generation_entries(model.next_logits, cache)


def corpus(config: Config) -> TextCorpus:
    """The text that this configuration trains on."""
    return text_corpus(config.data)


def metadata(config: Config) -> dict[str, str]:
    """The characters that tokens stand for, unless ``vocab_size`` says that they are no characters."""
    vocabulary = corpus(config).vocab
    return characters(vocabulary) if len(vocabulary) == config.vocab_size else {}


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """x and y [batch_size, max_position_embeddings] int32, y one character ahead of x: without end from batch ``start``
    on for "train", once over the held-out text for "heldout"."""
    tokens = corpus(config).split(split)
    length = config.max_position_embeddings + 1
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
    return sample_text(infer, corpus(config), config.max_position_embeddings, length, config.seed)
