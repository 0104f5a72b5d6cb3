"""What the parity tests share: workloads, weights and batches that both sides draw from the same generator, the
PyTorch run that fixtures are made of, and the graphc run that is compared with it.

    python tests/parity/reference.py        # writes tests/fixtures/torch_*.npz anew (needs torch)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT / "bench"))

import workloads  # noqa: E402
from workloads import Workload  # noqa: E402

STEPS = 50
SAMPLES = 64  # gradient entries kept per tensor in the fixtures
LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0  # as nanoGPT has them: decay of matrices only, the norm clipped

WORKLOADS = {
    "mlp": Workload("mlp", "mlp", batch=128, config={"sizes": (784, 512, 10)}),
    "gpt2-nano": workloads.WORKLOADS["gpt2-nano"],
}
NAMES = tuple(WORKLOADS)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random weights by name: matrices normal(0.05), norm gains near 1, biases near 0 (none exactly, so that every
    gradient path is used)."""
    rng = np.random.default_rng(1234)
    out = {}
    for name in sorted(shapes):
        w = rng.standard_normal(shapes[name], dtype=np.float32) * np.float32(0.05)
        out[name] = w + np.float32(1) if ".ln_" in name and name.endswith("weight") else w
    return out


def batch(work: Workload, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and targets of one step; learnable, so that the loss falls."""
    rng = np.random.default_rng(step)
    if work.family == "mlp":
        y = rng.integers(0, 10, work.batch).astype(np.int32)
        x = rng.standard_normal((work.batch, 784), dtype=np.float32) + (y[:, None] % 5).astype(np.float32)
        return x, y
    vocab = work.config["vocab_size"]
    start = rng.integers(0, vocab, (work.batch, 1))
    ids = ((start + np.arange(work.length + 1) * 7) % vocab).astype(np.int32)
    noise = rng.random(ids.shape) < 0.1
    ids[noise] = rng.integers(0, vocab, int(noise.sum()))
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def sample(name: str, grad: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """A fixed choice of entries of one gradient."""
    at = np.random.default_rng(len(name)).integers(0, grad.size, count)
    return np.ascontiguousarray(grad).reshape(-1)[at]


def run_torch(work: Workload) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses of `STEPS` optimizer steps and the gradients of the first, by an independent PyTorch model."""
    import system_torch
    import torch

    model = system_torch.MODELS[work.family](work.config)
    system_torch.load(model, weights({n: tuple(p.shape) for n, p in model.named_parameters()}))
    groups = decay_groups(list(model.parameters()), lambda p: p.dim())
    opt = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    def loss_of(x: np.ndarray, y: np.ndarray) -> Any:
        logits = model(torch.from_numpy(x)).flatten(0, -2)
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(y).flatten().long())

    def step(x: np.ndarray, y: np.ndarray) -> float:
        opt.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        opt.step()
        return float(loss.detach())

    loss_of(*batch(work, 0)).backward()
    grads = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    return np.array([step(*batch(work, i)) for i in range(STEPS)]), grads


def decay_groups(parameters: list[Any], rank: Callable[[Any], int]) -> list[dict[str, Any]]:
    """The parameter groups of either side's optimizer."""
    return [
        {"params": [p for p in parameters if rank(p) >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if rank(p) < 2], "weight_decay": 0.0},
    ]


def run_graphc(work: Workload) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same by graphc: one program with an entry that returns the gradients and the entry that trains."""
    import peers_graphc

    import graphc as gc
    from graphc import optim

    net = peers_graphc.model(work)
    named = dict(net.named_parameters())
    opt = optim.AdamW(decay_groups(list(named.values()), lambda p: len(p.shape)), lr=LR, betas=BETAS)
    x, y = batch(work, 0)

    @gc.entry(x=x, y=y)
    def gradients(x: Any, y: Any) -> dict[str, Any]:
        return dict(zip(named, gc.grad(gc.cross_entropy(net(x), y), list(named.values())), strict=True))

    @gc.entry(x=x, y=y)
    def train(x: Any, y: Any) -> dict[str, Any]:
        loss = gc.cross_entropy(net(x), y)
        opt.update(optim.clip_by_global_norm(gc.grad(loss, list(named.values())), CLIP))
        return {"loss": loss}

    program = gc.compile(gradients, train)
    program.load_state_dict(weights({n: tuple(p.shape) for n, p in named.items()}))
    grads = program.gradients(x=x, y=y)
    losses = []
    for i in range(STEPS):
        x, y = batch(work, i)
        losses.append(float(program.train(x=x, y=y)["loss"]))
    return np.array(losses), grads


def main() -> None:
    for name in NAMES:
        losses, grads = run_torch(WORKLOADS[name])
        kept: dict[str, Any] = {f"grad/{n}": sample(n, g) for n, g in grads.items()}
        kept |= {f"norm/{n}": np.float64(np.linalg.norm(g)) for n, g in grads.items()}
        np.savez_compressed(FIXTURES / f"torch_{name}.npz", losses=losses, **kept)
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}, {len(grads)} gradients")


if __name__ == "__main__":
    main()
