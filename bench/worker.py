"""One system on one workload in its own process; driven over a pipe by `bench/train_step.py`.

It prepares the step, prints one JSON line with the seconds of the import and of all that comes after it up to the end
of the first step, then answers each line ``N`` on standard input with the seconds of N steps, and the line ``memory``
with graphc's own account of its memory. Peak resident memory is that of the process, so nothing else runs in it.
Compiled code is kept in the folder BENCH_CACHE: a first process compiles, a second one loads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A train step: AdamW with decay on matrices, global-norm clipping at 1, no dropout, float32."""

    name: str
    batch: int
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.1
    vocab: int = 65
    positions: int = 0  # 0: the MLP
    width: int = 0
    layers: int = 0
    heads: int = 0

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        if not self.positions:
            return rng.standard_normal((self.batch, 784), dtype=np.float32), rng.integers(0, 10, self.batch, np.int32)
        ids = rng.integers(0, self.vocab, (self.batch, self.positions + 1), np.int32)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


WORKLOADS = {
    w.name: w
    for w in (
        Workload("mlp", batch=128),
        Workload("gpt2-nano", batch=12, positions=64, width=128, layers=4, heads=4),
        Workload("gpt2-baby", batch=12, positions=256, width=384, layers=6, heads=6),
    )
}


def torch_step(w: Workload, compile: bool) -> Callable[[], object]:
    import peers_torch as peers
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = peers.model(w)
    step = peers.train_step(model, w.lr, w.betas, peers.decay_groups(model, w.decay), 1.0, compile)
    x, y = (torch.from_numpy(a) for a in w.data())
    return lambda: step(x, y)


def jax_step(w: Workload) -> Callable[[], object]:
    import jax
    import peers_jax as peers

    rng = np.random.default_rng(0)
    if w.positions:
        params = peers.gpt2_params(rng, w.vocab, w.positions, w.width, w.layers)

        def model(p: Any, x: Any) -> Any:
            return peers.gpt2(p, x, w.heads)
    else:
        params, model = peers.mlp_params(rng), peers.mlp
    fn = peers.train_step(model, w.lr, w.betas, w.decay, 1.0)
    params = jax.tree.map(jax.numpy.asarray, params)
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    state = [params, zeros, jax.tree.map(jax.numpy.zeros_like, params), jax.numpy.zeros((), "int32")]
    x, y = w.data()

    def step() -> object:
        *state[:], loss = fn(*state, x, y)
        return loss.block_until_ready()

    return step


def graphc_step(w: Workload) -> Callable[[], object]:
    import graphc as gc

    artifact = Path(os.environ["BENCH_CACHE"]) / f"{w.name}.gcx"
    if artifact.exists():
        program = gc.load(artifact)
    else:
        import workloads

        program = gc.compile(*workloads.entries(w))
        program.save(artifact)
    x, y = w.data()
    MEMORY["predicted"] = lambda: program.train.memory.peak_bytes
    MEMORY["measured"] = lambda: program.train.measured_peak_bytes(x=x, y=y)
    return lambda: program.train(x=x, y=y)["loss"]


# What graphc says of its memory: the plan's peak, and the peak found by looking at which bytes a step wrote.
MEMORY: dict[str, Callable[[], int]] = {}

SYSTEMS: dict[str, Callable[[Workload], Callable[[], object]]] = {
    "graphc": graphc_step,
    "torch-eager": lambda w: torch_step(w, compile=False),
    "torch-compile": lambda w: torch_step(w, compile=True),
    "jax": jax_step,
}
FRAMEWORKS = {"graphc": "graphc", "torch-eager": "torch", "torch-compile": "torch", "jax": "jax"}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("system", choices=SYSTEMS)
    ap.add_argument("workload", choices=WORKLOADS)
    args = ap.parse_args()
    work = WORKLOADS[args.workload]
    start = time.perf_counter()
    import_module(FRAMEWORKS[args.system])
    imported = time.perf_counter()
    step = SYSTEMS[args.system](work)
    loss = float(np.asarray(step()))
    ready = time.perf_counter()
    print(json.dumps({"import": imported - start, "ready": ready - imported, "loss": loss}), flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(json.dumps({kind: ask() for kind, ask in MEMORY.items()}), flush=True)
            continue
        n = int(line)
        t0 = time.perf_counter()
        for _ in range(n):
            step()
        seconds = time.perf_counter() - t0
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_rss": rss}), flush=True)


if __name__ == "__main__":
    main()
