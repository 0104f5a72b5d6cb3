"""The benchmark's train steps in graphc: the same arithmetic as in peers_torch.py and peers_jax.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import graphc as gc
from graphc import nn, optim
from graphc.models import gpt2

if TYPE_CHECKING:
    from worker import Workload


class MLP(nn.Module):
    """784 → 512 → 10 with ReLU."""

    def __init__(self) -> None:
        self.fc1 = nn.Linear(784, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x: Any) -> Any:
        return self.fc2(gc.relu(self.fc1(x)))


def model(w: Workload) -> nn.Module:
    if not w.positions:
        return MLP()
    return gpt2.Model(
        gpt2.Config(
            vocab_size=w.vocab, n_positions=w.positions, n_embd=w.width, n_layer=w.layers, n_head=w.heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def train_entries(w: Workload, net: nn.Module) -> list[Any]:
    named = dict(net.named_parameters())
    opt = optim.AdamW(
        [
            {"params": [p for p in named.values() if len(p.shape) >= 2], "weight_decay": w.decay},
            {"params": [p for p in named.values() if len(p.shape) < 2], "weight_decay": 0.0},
        ],
        lr=w.lr,
        betas=w.betas,
    )
    x, y = w.data()

    @gc.entry(x=gc.spec(x.shape, str(x.dtype)), y=gc.spec(y.shape, str(y.dtype)))
    def train(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(net(x), y)
        grads = gc.grad(loss, net.parameters())
        opt.update(optim.clip_by_global_norm(grads, 1.0))
        return {"loss": loss}

    return [train]


def entries(w: Workload) -> list[Any]:
    return train_entries(w, model(w))
