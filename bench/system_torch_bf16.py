"""PyTorch with products of bfloat16, as mixed precision has them: what `system_torch` runs, under autocast. Parameters,
losses and AdamW stay float32."""

from __future__ import annotations

import torch
from system_torch import arguments, compiled_as, model, train_step
from systems import Job, Running
from torch import Tensor, nn


class Autocast(nn.Module):
    """``net`` under autocast, with its logits in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.net(*inputs)
        return logits.float()


def prepare(job: Job, style: str = "eager") -> Running:
    torch.set_num_threads(job.threads)
    net = Autocast(model(job.workload, job.weights))
    inputs, labels = arguments(job)
    if job.mode == "train":
        return Running(train_step(net, net, inputs, labels, style))
    net.eval()
    torch._inductor.config.freezing = True  # weights become constants of the compiled code, in bfloat16
    forward = compiled_as(style, net)
    without_gradients = torch.inference_mode if style == "eager" else torch.no_grad
    return Running(without_gradients()(lambda: forward(*inputs)))
