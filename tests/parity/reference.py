"""What the parity tests share: workloads, weights and batches that both sides draw from the same generator, the
PyTorch run that fixtures are made of, and the graphc run that is compared with it.

    python tests/parity/reference.py        # writes tests/fixtures/torch_*.npz anew (needs torch)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT / "bench"))

from worker import WORKLOADS, Workload  # noqa: E402

STEPS = 50
NAMES = ("mlp", "gpt2-nano")
SAMPLES = 64  # gradient entries kept per tensor in the fixtures


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
    if not work.positions:
        y = rng.integers(0, 10, work.batch).astype(np.int32)
        x = rng.standard_normal((work.batch, 784), dtype=np.float32) + (y[:, None] % 5).astype(np.float32)
        return x, y
    start = rng.integers(0, work.vocab, (work.batch, 1))
    ids = ((start + np.arange(work.positions + 1) * 7) % work.vocab).astype(np.int32)
    noise = rng.random(ids.shape) < 0.1
    ids[noise] = rng.integers(0, work.vocab, int(noise.sum()))
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def sample(name: str, grad: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """A fixed choice of entries of one gradient."""
    at = np.random.default_rng(len(name)).integers(0, grad.size, count)
    return np.ascontiguousarray(grad).reshape(-1)[at]


def run_torch(work: Workload) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses of `STEPS` optimizer steps and the gradients of the first, by an independent PyTorch model."""
    import peers_torch as peers
    import torch

    torch.manual_seed(0)
    model = peers.model(work)
    peers.load(model, weights({n: tuple(p.shape) for n, p in model.named_parameters()}))
    x, y = (torch.from_numpy(a) for a in batch(work, 0))
    peers.cross_entropy(model(x), y).backward()
    grads = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    step = peers.train_step(model, work.lr, work.betas, peers.decay_groups(model, work.decay), 1.0, compile=False)
    losses = [float(step(*(torch.from_numpy(a) for a in batch(work, i)))) for i in range(STEPS)]
    return np.array(losses), grads


def run_graphc(work: Workload) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same by graphc: one program with an entry that returns the gradients and the entry that trains."""
    import workloads

    import graphc as gc

    net = workloads.model(work)
    named = dict(net.named_parameters())
    x, y = batch(work, 0)
    spec = {"x": gc.spec(x.shape, str(x.dtype)), "y": gc.spec(y.shape, str(y.dtype))}

    @gc.entry(**spec)
    def gradients(x: Any, y: Any) -> dict[str, Any]:
        return dict(zip(named, gc.grad(gc.cross_entropy(net(x), y), list(named.values())), strict=True))

    program = gc.compile(gradients, *workloads.train_entries(work, net))
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
