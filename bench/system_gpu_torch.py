"""PyTorch on a GPU: eager, torch.compile (default, max-autotune with CUDA graphs); products in bfloat16 by autocast,
fused AdamW and attention, channels last."""

from __future__ import annotations

from typing import Any

import torch
from gpu_device import PRECISION
from system_torch import arguments, compiled_as, model, train_step
from systems import Job, Running
from torch import Tensor, nn


def prepare(job: Job, style: str = "eager") -> Running:
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    torch.set_float32_matmul_precision("high")
    net = model(job.workload, job.weights).cuda()
    inputs, labels = arguments(job)
    inputs, labels = [x.cuda() for x in inputs], labels.cuda()
    if job.mode == "train":
        step = train_step(net, lambda *x: mixed(net, *x), inputs, labels, style)
    else:
        net.eval()
        forward = compiled_as(style, lambda *x: mixed(net, *x))
        step = torch.inference_mode()(lambda: forward(*inputs))
    return Running(lambda: Fetched(step()), facts=facts, wait=torch.cuda.synchronize)


def mixed(net: nn.Module, *inputs: Tensor) -> Tensor:
    """The logits, in float32."""
    with torch.autocast("cuda", getattr(torch, PRECISION)):
        logits: Tensor = net(*inputs)
    return logits.float()


def facts() -> dict[str, Any]:
    return {"device_bytes": torch.cuda.max_memory_allocated()}


class Fetched:
    """A result on the device, which is copied where an array of NumPy is asked for."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.tensor.float().cpu().numpy()
