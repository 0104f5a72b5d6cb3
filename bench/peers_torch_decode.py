"""One token at a time in PyTorch: the models of `peers_torch` over keys and values of the positions before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers_torch import GPT2, Llama, rotate
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Decoder(nn.Module):
    """token [1] and position [] int64, keys and values [layers, heads, length, depth] → logits [1, vocabulary] of the
    next token, and the new keys and values [layers, heads, depth].

    The caller stores these. So the same graph serves where tensors can be written in place and where they cannot."""

    def __init__(self, net: GPT2 | Llama) -> None:
        super().__init__()
        self.net = net

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = torch.arange(keys.size(2)) < position
        new: list[tuple[Tensor, Tensor]] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """q, k, v [heads, depth] → [1, width]."""
            new.append((k, v))
            past = (keys[layer] @ q[..., None])[..., 0].masked_fill(~seen, -torch.inf)
            scores = torch.cat([past, (q * k).sum(-1, keepdim=True)], -1)
            weights = torch.softmax(scores * q.size(-1) ** -0.5, -1)
            out = (weights[:, None, :-1] @ values[layer])[:, 0] + weights[:, -1:] * v
            return out.reshape(1, -1)

        step = gpt2 if isinstance(self.net, GPT2) else llama
        logits = step(self.net, token, position[None], attend)
        return logits, *(torch.stack(rows) for rows in zip(*new, strict=True))


def gpt2(net: GPT2, token: Tensor, position: Tensor, attend: Attend) -> Tensor:
    t = net.transformer
    x = t.wte(token) + t.wpe(position)
    for i, block in enumerate(t.h):
        q, k, v = (y.view(block.attn.heads, -1) for y in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
        x = x + block.attn.c_proj(attend(i, q, k, v))
        x = x + block.mlp(block.ln_2(x))
    return net.lm_head(t.ln_f(x))


def llama(net: Llama, token: Tensor, position: Tensor, attend: Attend) -> Tensor:
    m = net.model
    x = m.embed_tokens(token)
    cos, sin = m.cos[position][0], m.sin[position][0]
    for i, layer in enumerate(m.layers):
        a, h = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (p(h).view(a.heads, -1) for p in (a.q_proj, a.k_proj, a.v_proj))
        x = x + a.o_proj(attend(i, rotate(q, cos, sin), rotate(k, cos, sin), v))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return net.lm_head(m.norm(x))
