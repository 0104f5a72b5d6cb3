"""The workloads' models in plain PyTorch, written independently of graphc: for parity tests and benchmarks.

Parameter names and layouts are the published ones (`transformers`, torchvision), so that graphc's weights load by name.
Each model takes a configuration, a mapping with the keys of `models/`; there is no dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Config = Mapping[str, Any]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """q, k, v [B, T, D] → [B, T, D]; ``mask`` [B, 1, 1, T] is True where there is something to read."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2)


def padding(attention_mask: Tensor) -> Tensor:
    return attention_mask[:, None, None, :].bool()


class MLP(nn.Module):
    """fc1, fc2 … with ReLU between them."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        for i, (a, b) in enumerate(pairwise(c["sizes"]), 1):
            setattr(self, f"fc{i}", nn.Linear(a, b))
        self.last = len(c["sizes"]) - 1

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.last):
            x = F.relu(getattr(self, f"fc{i}")(x))
        return getattr(self, f"fc{self.last}")(x)


# GPT-2 ---------------------------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """Linear with GPT-2's [in, out] weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * 0.02)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class GPT2Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(attend(*self.c_attn(x).chunk(3, -1), self.heads, causal=True))


class GPT2MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(width, 4 * width), Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), GPT2Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), GPT2MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2Transformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c["n_embd"]
        self.wte, self.wpe = nn.Embedding(c["vocab_size"], width), nn.Embedding(c["n_positions"], width)
        self.h = nn.ModuleList(GPT2Block(width, c["n_head"]) for _ in range(c["n_layer"]))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe.weight[: ids.size(1)]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT2(nn.Module):
    """The output layer is tied to the token embedding."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.transformer = GPT2Transformer(c)
        self.lm_head = nn.Linear(c["n_embd"], c["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.transformer(ids))


# Llama ---------------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, H, D]: the first half of a head with the second, as in `transformers`."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class LlamaAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k = (rotate(p(x).unflatten(-1, (self.heads, -1)), cos, sin).flatten(2) for p in (self.q_proj, self.k_proj))
        return self.o_proj(attend(q, k, self.v_proj(x), self.heads, causal=True))


class LlamaMLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, inner = c["hidden_size"], c["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(c), LlamaMLP(c)
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], eps=1e-5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaTransformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, depth = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], width)
        self.layers = nn.ModuleList(LlamaLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        turns = 10000.0 ** (-torch.arange(0, depth, 2) / depth)
        angles = torch.outer(torch.arange(c["max_position_embeddings"]), turns)[:, None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = self.cos[: ids.size(1)], self.sin[: ids.size(1)]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.model = LlamaTransformer(c)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.model(ids))


# BERT ----------------------------------------------------------------------------------------------------------------


class BertEmbeddings(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c["hidden_size"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], width)
        self.position_embeddings = nn.Embedding(c["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings(types)
        return self.LayerNorm(x + self.position_embeddings.weight[: ids.size(1)])


class QueryKeyValue(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return attend(self.query(x), self.key(x), self.value(x), self.heads, mask)


class Dense(nn.Module):
    """A linear layer with the name ``dense``; in BERT a norm follows what is added to it."""

    def __init__(self, n_in: int, n_out: int, norm: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)
        if norm:
            self.LayerNorm = nn.LayerNorm(n_out, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class BertAttention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.self, self.output = QueryKeyValue(c), Dense(c["hidden_size"], c["hidden_size"], norm=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output.LayerNorm(x + self.output(self.self(x, mask)))


class BertLayer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.attention = BertAttention(c)
        self.intermediate = Dense(c["hidden_size"], c["intermediate_size"])
        self.output = Dense(c["intermediate_size"], c["hidden_size"], norm=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.output.LayerNorm(x + self.output(F.gelu(self.intermediate(x))))


class Layers(nn.Module):
    """An encoder: layers under the published name of their list."""

    def __init__(self, name: str, layers: list[nn.Module]) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.ModuleList(layers))

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        for layer in getattr(self, self.name):
            x = layer(x, *more)
        return x


class BertTransformer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(c)
        self.encoder = Layers("layer", [BertLayer(c) for _ in range(c["num_hidden_layers"])])
        self.pooler = Dense(c["hidden_size"], c["hidden_size"])

    def forward(self, ids: Tensor, attention_mask: Tensor, types: Tensor) -> Tensor:
        return torch.tanh(self.pooler(self.encoder(self.embeddings(ids, types), padding(attention_mask))[:, 0]))


class Bert(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.bert = BertTransformer(c)
        self.classifier = nn.Linear(c["hidden_size"], c["num_labels"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.classifier(self.bert(input_ids, attention_mask, token_type_ids))
