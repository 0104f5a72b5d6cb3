"""graphc's side of the workloads: their models, and an entry of each for a mode.

    python bench/peers_graphc.py WORKLOAD_JSON WEIGHTS.npz

writes the initial weights that all systems start from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise

import numpy as np
from workloads import OPTIMIZER, Workload

import graphc as gc
from graphc import nn, optim


class MLP(nn.Module):
    """fc1, fc2 … with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        for i, (a, b) in enumerate(pairwise(sizes), 1):
            setattr(self, f"fc{i}", nn.Linear(a, b))
        self.last = len(sizes) - 1

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        for i in range(1, self.last):
            x = gc.relu(getattr(self, f"fc{i}")(x))
        return getattr(self, f"fc{self.last}")(x)


def model(work: Workload) -> nn.Module:
    gc.seed(0)
    if work.family == "mlp":
        return MLP(work.config["sizes"])
    family = import_module(f"graphc.models.{work.family}")
    keys = {
        key: value
        for key, value in work.config.items()
        if work.family != "resnet" or key not in ("layers", "bottleneck")
    }
    made: nn.Module = family.Model(family.Config(**keys))
    return made


def logits_of(net: nn.Module) -> Callable[..., gc.Tensor]:
    def call(*inputs: gc.Tensor) -> gc.Tensor:
        out = net(*inputs)
        return out["logits_per_text"] if isinstance(out, dict) else out

    return call


def entry(work: Workload, mode: str, parts: int = 1) -> gc.Entry:
    """``train`` (inputs, labels → loss; the gradients are accumulated over ``parts`` of the batch) or ``infer``
    (inputs → logits)."""
    net = model(work)
    logits = logits_of(net)
    inputs, labels = work.data(mode)
    names = list(inputs)

    if mode == "infer":

        @gc.entry(**inputs)
        def infer(**x: gc.Tensor) -> dict[str, gc.Tensor]:
            net.eval()
            return {"logits": logits(*(x[name] for name in names))}

        return infer

    opt = optim.AdamW(net.parameters(), **OPTIMIZER)

    specs = inputs if labels is None else inputs | {"labels": labels}

    @gc.entry(**specs)
    def train(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        def loss_of(*batch: gc.Tensor) -> gc.Tensor:
            out = logits(*batch[: len(names)])
            return gc.contrastive_loss(out) if labels is None else gc.cross_entropy(out, batch[-1])

        batch = [x[name] for name in specs]
        if parts > 1:
            loss, grads = optim.accumulate(loss_of, net.parameters(), *batch, parts=parts)
        else:
            loss = loss_of(*batch)
            grads = gc.grad(loss, net.parameters())
        opt.update(grads)
        return {"loss": loss}

    return train


def main() -> None:
    net = model(Workload.from_json(sys.argv[1]))
    weights = {name: p.initial for name, p in net.named_parameters()}
    statistics = {name: a for name, a in net.state_dict().items() if ".running_" in name}
    np.savez(sys.argv[2], **weights, **statistics)


if __name__ == "__main__":
    main()
