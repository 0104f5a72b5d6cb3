"""PyTorch models as files: torch.export (a graph, run by PyTorch) and AOTInductor (a shared library in a package). A
process that finds the file loads it and nothing else. Inference only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from systems import Job, Running

FILE = {"export": "exported.pt2", "aoti": "package.pt2"}


def prepare(job: Job, style: str) -> Running:
    torch.set_num_threads(job.threads)
    path = job.folder / FILE[style]
    inputs = [torch.from_numpy(a) for a in job.inputs.values()]
    if job.workload.family == "resnet":
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    if not path.exists():
        write(job, style, path)
    run = load(path)
    return Running(torch.inference_mode()(lambda: run(*inputs)))


def load(path: Path) -> Callable[..., Any]:
    if path.name == FILE["export"]:
        return torch.export.load(path).module()
    return torch._inductor.aoti_load_package(str(path))


def write(job: Job, style: str, path: Path) -> None:
    import system_torch

    net = system_torch.model(job.workload, job.weights).eval()
    inputs, _ = system_torch.arguments(job)
    with torch.no_grad():
        exported = torch.export.export(net, tuple(inputs))
    if style == "export":
        torch.export.save(exported, path)
    else:
        settings = {"freezing": True}
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=settings)
