"""The PyTorch twins of the models in `models/`: the same initial weights, optimizer and learning rates.

GPT-2, Llama, BERT, ViT and CLIP are those of `transformers`; ResNet is the reference of the parity tests.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import resnet_reference

Batch = Mapping[str, np.ndarray]
LABELS = ("y", "labels")

HUB = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "bert": "BertForSequenceClassification",
    "vit": "ViTForImageClassification",
    "clip": "CLIPModel",
}
TEXT = ("gpt2", "llama")  # every position has a label
LINEAR = ("bert",)  # whose learning rate falls in a line; that of the others by half a cosine


class ConvNet(torch.nn.Module):
    """`models/convnet.py`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        padding, side = config.kernel_size // 2, config.image_size // 4
        self.conv1 = torch.nn.Conv2d(config.num_channels, config.channels, config.kernel_size, padding=padding)
        self.conv2 = torch.nn.Conv2d(config.channels, 2 * config.channels, config.kernel_size, padding=padding)
        self.fc = torch.nn.Linear(2 * config.channels * side**2, config.num_classes)

    def forward(self, x: torch.Tensor) -> Any:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return SimpleNamespace(logits=self.fc(x.flatten(1)))


class ResNet(torch.nn.Module):
    """`models/resnet.py`: a module around the reference, a function of tensors by name. A module's own names take no
    dots."""

    def __init__(self, module: ModuleType, config: Any) -> None:
        super().__init__()
        known = module.Model(config).state_dict()
        self.names = [name for name in known if not name.endswith("num_batches_tracked")]
        for name in self.names:
            tensor = torch.from_numpy(np.array(known[name]))
            if "running" in name:
                self.register_buffer(name.replace(".", "-"), tensor)
            else:
                self.register_parameter(name.replace(".", "-"), torch.nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> Any:
        tensors = {name: getattr(self, name.replace(".", "-")) for name in self.names}
        return SimpleNamespace(logits=resnet_reference.forward(tensors, x, self.training))


def twin(name: str, module: ModuleType, config: Any) -> torch.nn.Module:
    """The other implementation of ``module.Model(config)``, with weights of its own."""
    if name == "convnet":
        return ConvNet(config)
    if name == "resnet":
        return ResNet(module, config)
    cls = getattr(transformers, HUB[name])
    keys = dataclasses.asdict(config)
    if "rope_theta" in keys and int(transformers.__version__.split(".")[0]) >= 5:
        keys["rope_parameters"] = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    model: torch.nn.Module = cls(cls.config_class(**keys))
    return model


def rate(name: str, config: Any, step: int) -> float:
    """The learning rate of `graphc.optim.cosine` or `linear`, in plain Python."""
    peak, warmup, final = config.learning_rate, config.warmup_iters, getattr(config, "min_lr", 0.0)
    if step < warmup:
        return float(peak * (step + 1) / (warmup + 1))
    progress = min((step - warmup) / max(config.max_iters - warmup, 1), 1.0)
    down = 1 - progress if name in LINEAR else 0.5 * (1 + math.cos(math.pi * progress))
    return float(final + (peak - final) * down)


class Peer:
    """The twin of ``module.Model(config)`` with its initial ``weights``, trained as the model file trains ours."""

    def __init__(self, name: str, module: ModuleType, config: Any, weights: Mapping[str, np.ndarray]) -> None:
        self.name, self.config = name, config
        self.model = twin(name, module, config)
        own_names = getattr(module.Model(config), "own_names", dict)
        self.named = {}
        for theirs, p in self.model.named_parameters():
            (own,) = own_names({theirs.replace("-", "."): None})
            self.named[own] = p
        with torch.no_grad():
            for own, p in self.named.items():
                p.copy_(torch.from_numpy(np.array(weights[own])))
        self.optimizer = self.make_optimizer()

    def make_optimizer(self) -> torch.optim.Optimizer:
        config, parameters = self.config, list(self.named.values())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        if hasattr(config, "momentum"):
            return torch.optim.SGD(groups, config.learning_rate, config.momentum, nesterov=True)
        betas = (getattr(config, "beta1", 0.9), getattr(config, "beta2", 0.999))
        return torch.optim.AdamW(groups, betas=betas, fused=True)

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy() for name, p in self.named.items()}

    def outputs(self, batch: Batch, **more: Any) -> Any:
        """Language models name their input otherwise; PyTorch wants class numbers as int64."""
        names = {"x": "input_ids"} if self.name in TEXT else {}
        arrays = {names.get(n, n): np.ascontiguousarray(a) for n, a in batch.items() if n not in LABELS}
        wide = {n: a.astype(np.int64) if a.dtype == np.int32 else a for n, a in arrays.items()}
        return self.model(**{n: torch.from_numpy(a) for n, a in wide.items()}, **more)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self.name == "clip":
            out = self.outputs(batch, return_loss=True)
            own = torch.arange(len(out.logits_per_image))
            return {"loss": out.loss, "accuracy": (out.logits_per_image.argmax(-1) == own).float().mean()}
        (labels,) = (torch.from_numpy(a.astype(np.int64).ravel()) for n, a in batch.items() if n in LABELS)
        logits = self.outputs(batch).logits.flatten(0, -2)
        right = {} if self.name in TEXT else {"accuracy": (logits.argmax(-1) == labels).float().mean()}
        return {"loss": F.cross_entropy(logits, labels), **right}

    def train(self, batch: Batch, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.name, self.config, step)
        self.optimizer.zero_grad()
        self.model.train()
        loss = self.scores(batch)["loss"]
        loss.backward()
        if hasattr(self.config, "grad_clip"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, **batch: np.ndarray) -> dict[str, float]:
        self.model.eval()
        return {name: float(value) for name, value in self.scores(batch).items()}

    @torch.no_grad()
    def infer(self, **batch: np.ndarray) -> dict[str, np.ndarray]:
        self.model.eval()
        out = self.outputs(batch)
        names = ("logits", "text_embeds", "image_embeds")
        return {name: getattr(out, name).numpy() for name in names if hasattr(out, name)}

    def save(self, path: Path) -> None:
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, path)

    def load(self, path: Path) -> None:
        kept = torch.load(path)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
