"""PyTorch on a GPU: eager, torch.compile (default, max-autotune with CUDA graphs); products in bfloat16 by autocast,
fused AdamW and attention, channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_device import PRECISION
from peers_torch_images import Clip
from system_torch import arguments, compiled_as, model
from systems import Job, Running
from torch import Tensor, nn
from workloads import OPTIMIZER


def prepare(job: Job, style: str = "eager") -> Running:
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    torch.set_float32_matmul_precision("high")
    net = model(job.workload, job.weights).cuda()
    inputs, labels = arguments(job)
    inputs, labels = [x.cuda() for x in inputs], labels.cuda()
    if job.mode == "train":
        step = train_step(net, inputs, labels, style)
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


def train_step(net: nn.Module, inputs: list[Tensor], labels: Tensor, style: str) -> Callable[[], Tensor]:
    """Forward, backward, AdamW; returns the loss before the update."""
    opt = torch.optim.AdamW(net.parameters(), **OPTIMIZER, fused=True)
    pairs = isinstance(net, Clip)

    def loss_of(*inputs: Tensor) -> Tensor:
        logits = mixed(net, *inputs).flatten(0, -2)
        loss = F.cross_entropy(logits, labels)
        return (loss + F.cross_entropy(logits.T, labels)) / 2 if pairs else loss

    forward = compiled_as(style, loss_of)

    def step() -> Tensor:
        opt.zero_grad(set_to_none=True)
        loss = forward(*inputs)
        loss.backward()
        opt.step()
        return loss.detach()

    return step


def facts() -> dict[str, Any]:
    return {"device_bytes": torch.cuda.max_memory_allocated()}


class Fetched:
    """A result on the device, which is copied where an array of NumPy is asked for."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.tensor.float().cpu().numpy()
