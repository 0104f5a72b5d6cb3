"""PyTorch: eager, torch.compile (default, max-autotune); fused AdamW and attention, channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import peers_torch
import peers_torch_images
import torch
import torch.nn.functional as F
from systems import Job, Running
from torch import Tensor, nn
from workloads import OPTIMIZER, Workload

MODELS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "mlp": peers_torch.MLP,
    "gpt2": peers_torch.GPT2,
    "llama": peers_torch.Llama,
    "bert": peers_torch.Bert,
    "vit": peers_torch_images.ViT,
    "clip": peers_torch_images.Clip,
    "resnet": peers_torch_images.ResNet,
}


def prepare(job: Job, style: str = "eager") -> Running:
    torch.set_num_threads(job.threads)
    net = model(job.workload, job.weights)
    inputs, labels = arguments(job)
    if job.mode == "train":
        return Running(train_step(net, net, inputs, labels, style))
    net.eval()
    if style == "eager":
        return Running(torch.inference_mode()(lambda: net(*inputs)))
    torch._inductor.config.freezing = True  # weights become constants of the compiled code
    compiled = compiled_as(style, net)
    return Running(torch.no_grad()(lambda: compiled(*inputs)))


def model(work: Workload, weights: Mapping[str, np.ndarray]) -> nn.Module:
    net = MODELS[work.family](work.config)
    load(net, weights)
    return net.to(memory_format=torch.channels_last) if work.family == "resnet" else net


def load(net: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights by name; every parameter must be there."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.from_numpy(np.asarray(weights[name])))


def arguments(job: Job) -> tuple[list[Tensor], Tensor]:
    """The inputs, and the labels as int64; texts and images without labels belong together row by row."""
    inputs = [torch.from_numpy(a) for a in job.inputs.values()]
    if job.workload.family == "resnet":
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    labels = torch.arange(len(inputs[0])) if job.labels is None else torch.from_numpy(job.labels).long()
    return inputs, labels.flatten()


def compiled_as(style: str, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if style == "eager":
        return fn
    return torch.compile(fn, mode="default" if style == "compile" else style)


def train_step(
    net: nn.Module, logits_of: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor, style: str
) -> Callable[[], Tensor]:
    """Forward, by ``logits_of``, backward and AdamW over the parameters of ``net``; returns the loss before the
    update."""
    opt = torch.optim.AdamW(net.parameters(), **OPTIMIZER, fused=True)
    pairs = isinstance(net, peers_torch_images.Clip)

    def loss_of(*inputs: Tensor) -> Tensor:
        logits = logits_of(*inputs).flatten(0, -2)
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
