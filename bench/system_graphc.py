"""graphc: one entry per workload and mode, compiled or loaded from the artifact that an earlier process left.

    python bench/system_graphc.py WORKLOAD_JSON WEIGHTS.npz

writes the initial weights that all systems start from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from systems import Job, Running
from workloads import OPTIMIZER, Workload

import graphc as gc
from graphc import nn, optim


def prepare(job: Job) -> Running:
    artifact = job.folder / "program.gcx"
    if artifact.exists():
        program = gc.load(artifact, threads=job.threads)
    else:
        with nn.init.skipped():  # the weights are given, to all systems
            made = entry(job.workload, job.mode)
        program = gc.compile(made, threads=job.threads)
        program.load_state_dict(dict(job.weights), strict=False)
    run, result = program.entries[job.mode], {"train": "loss", "infer": "logits"}[job.mode]
    arrays = job.inputs if job.mode == "infer" or job.labels is None else job.inputs | {"labels": job.labels}

    def facts() -> dict[str, Any]:
        return {
            "kernels": len(run.kernels),
            "launches": sum(k.count for k in run.kernels),
            "state_bytes": run.memory.state_bytes,
            "plan": {"lower_bound": run.memory.lower_bound_bytes, "arena": run.memory.arena_bytes},
            "planned_peak_bytes": run.memory.peak_bytes,
            "measured_peak_bytes": run.measured_peak_bytes(**arrays),
        }

    return Running(
        step=lambda: run(**arrays)[result],
        keep=lambda: program.save(artifact),
        facts=facts,
        profile=lambda steps: profile(run, arrays, steps),
    )


# Models --------------------------------------------------------------------------------------------------------------


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
    keys = {key: value for key, value in work.config.items() if (work.family, key) != ("resnet", "layers")}
    made: nn.Module = family.Model(family.Config(**keys))
    return made


def logits_of(net: nn.Module) -> Callable[..., gc.Tensor]:
    def call(*inputs: gc.Tensor) -> gc.Tensor:
        out = net(*inputs)
        return out["logits_per_text"] if isinstance(out, dict) else out

    return call


def entry(work: Workload, mode: str) -> gc.Entry:
    """``train`` (inputs, labels → loss) or ``infer`` (inputs → logits)."""
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

    @gc.entry(**inputs if labels is None else inputs | {"labels": labels})
    def train(**x: gc.Tensor) -> dict[str, gc.Tensor]:
        out = logits(*(x[name] for name in names))
        loss = gc.contrastive_loss(out) if labels is None else gc.cross_entropy(out, x["labels"])
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return train


# Where the time goes -------------------------------------------------------------------------------------------------


def profile(run: Any, arrays: dict[str, np.ndarray], steps: int) -> list[dict[str, Any]]:
    """Each kernel with its class, launches, seconds (the median over ``steps``), FLOP and bytes of all its launches."""
    seconds = 1e-9 * np.median([run.timed(**arrays)[1] for _ in range(steps)], axis=0)
    return [
        {
            "class": kernel_class(kernel),
            "name": kernel.name,
            "launches": kernel.count,
            "seconds": float(seconds[list(launches)].sum()),
            "flops": kernel.flops,
            "bytes": kernel.bytes,
            "lines": [loc.source() for loc in kernel.lines],
        }
        for kernel, launches in run.launches().items()
    ]


def kernel_class(kernel: Any) -> str:
    """ "optimizer" where a kernel serves only the update; else the kind of loop that its name begins with."""
    if kernel.lines and all("opt.update(" in loc.source() for loc in kernel.lines):
        return "optimizer"
    return str(kernel.name).split("_")[0]


def main() -> None:
    net = model(Workload.from_json(sys.argv[1]))
    weights = {name: p.initial for name, p in net.named_parameters()}
    statistics = {name: a for name, a in net.state_dict().items() if ".running_" in name}
    np.savez(sys.argv[2], **weights, **statistics)


if __name__ == "__main__":
    main()
