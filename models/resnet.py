"""ResNet (He et al., 2015, arXiv 1512.03385): the ImageNet networks and the small ones for CIFAR-10.

Tensor names are torchvision's for 18, 34 and 50, and those of akamaster/pytorch_resnet_cifar10 for 20, 32, 44 and 56,
so that published weights load by name. In inference batch norm is one factor and one shift per channel, computed in
the kernel of its convolution. ``data`` names a folder with CIFAR-10's binary files::

    graphc train models/resnet.py --data cifar-10-batches-bin/
    graphc compile models/resnet.py --set preset=resnet50
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import class_loss, random_rows, shuffled_rows
from graphc.data_images import augment, cifar10, normalise
from graphc.errors import error

# blocks per stage; the small networks have three stages and no pooling before them
PRESETS: dict[str, dict[str, Any]] = {
    "resnet20": {"layers": (3, 3, 3), "image_size": 32, "num_classes": 10, "batch_size": 128, "max_iters": 6000},
    "resnet32": {"layers": (5, 5, 5), "image_size": 32, "num_classes": 10, "batch_size": 128, "max_iters": 6000},
    "resnet44": {"layers": (7, 7, 7), "image_size": 32, "num_classes": 10, "batch_size": 128, "max_iters": 6000},
    "resnet56": {"layers": (9, 9, 9), "image_size": 32, "num_classes": 10, "batch_size": 128, "max_iters": 6000},
    "resnet18": {"layers": (2, 2, 2, 2), "image_size": 224, "num_classes": 1000, "batch_size": 8},
    "resnet34": {"layers": (3, 4, 6, 3), "image_size": 224, "num_classes": 1000, "batch_size": 8},
    "resnet50": {"layers": (3, 4, 6, 3), "image_size": 224, "num_classes": 1000, "batch_size": 8, "bottleneck": True},
}
COMMON = {"bottleneck": False, "max_iters": 450_000}


@dataclass
class Config:
    """What ``--set KEY=VALUE`` overrides. Keys that are None come from the preset."""

    preset: str = "resnet20"

    image_size: int | None = None
    num_classes: int | None = None

    data: str = ""  # a folder with data_batch_*.bin and test_batch.bin, or the same as .bin.xz
    seed: int = 0
    batch_size: int | None = None
    max_iters: int | None = None
    augmentation: bool = True
    learning_rate: float = 0.1
    warmup_iters: int = 200
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is one of {', '.join(PRESETS)}, not {self.preset!r}")
        preset = COMMON | PRESETS[self.preset]
        for key in ("image_size", "num_classes", "batch_size", "max_iters"):
            if getattr(self, key) is None:
                setattr(self, key, preset[key])
        self.layers: tuple[int, ...] = preset["layers"]
        self.bottleneck: bool = preset["bottleneck"]

    @property
    def small(self) -> bool:
        """One of the networks for 32 x 32 images."""
        return len(self.layers) == 3


# The model -----------------------------------------------------------------------------------------------------------


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, size // 2, bias=False)


class Narrow(nn.Module):
    """The shortcut without parameters (option A): every second pixel, zeros for the new channels."""

    def __init__(self, channels: int, out: int) -> None:
        self.more = (out - channels) // 2

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return gc.pad(x[:, :, ::2, ::2], [(0, 0), (self.more, self.more), (0, 0), (0, 0)])


def projection(channels: int, out: int, stride: int) -> nn.Sequential:
    """The shortcut of the large networks (option B)."""
    return nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and the shortcut: x [B, C, H, W] → [B, out, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, small: bool) -> None:
        self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.downsample = Narrow(channels, width) if small else projection(channels, width, stride)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        y = gc.relu(self.bn1(self.conv1(x)))
        return gc.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1 x 1 to ``width`` channels, 3 x 3 (with the stride, as torchvision has it), 1 x 1 to four times as many."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, small: bool) -> None:
        out = self.expansion * width
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out, 1), nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.downsample = projection(channels, out, stride)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        y = gc.relu(self.bn1(self.conv1(x)))
        y = gc.relu(self.bn2(self.conv2(y)))
        return gc.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Model(nn.Module):
    """x [B, 3, H, W] float32 → logits [B, num_classes]."""

    def __init__(self, config: Config) -> None:
        assert config.num_classes is not None
        block = Bottleneck if config.bottleneck else BasicBlock
        self.small = config.small
        first = 16 if self.small else 64
        self.conv1 = conv(3, first, 3) if self.small else conv(3, first, 7, 2)
        self.bn1 = nn.BatchNorm2d(first)
        channels = first
        for i, count in enumerate(config.layers):
            width, blocks = first << i, []
            for j in range(count):
                blocks.append(block(channels, width, 2 if i and not j else 1, self.small))
                channels = width * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(config.layers)
        setattr(self, self.head, nn.Linear(channels, config.num_classes))
        self._initialise()

    @property
    def head(self) -> str:
        """The name of the last layer: the publishers differ."""
        return "linear" if self.small else "fc"

    def _initialise(self) -> None:
        """Normal with variance 2 / (out x window), which keeps that of the gradients through a ReLU."""
        for _, p in self.named_parameters():
            if p.ndim == 4:
                nn.init.normal_(p, std=sqrt(2 / (p.shape[0] * p.shape[2] * p.shape[3])))
            elif p.ndim == 2 and self.small:
                nn.init.kaiming_normal_(p)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        x = gc.relu(self.bn1(self.conv1(x)))
        if not self.small:
            x = gc.max_pool2d(x, 3, 2, 1)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        logits: gc.Tensor = getattr(self, self.head)(x.mean((2, 3)))
        return logits


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` (x [batch_size, 3, image_size, image_size], y [batch_size] → loss), ``evaluate`` (→ loss, accuracy),
    ``infer`` (one x → logits)."""
    assert config.batch_size is not None
    assert config.max_iters is not None
    assert config.image_size is not None
    gc.seed(config.seed)
    model = Model(config)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    opt = optim.SGD(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=optim.cosine(config.learning_rate, config.max_iters, warmup=config.warmup_iters),
        momentum=config.momentum,
        nesterov=True,
    )
    size = (3, config.image_size, config.image_size)
    images, labels = gc.spec((config.batch_size, *size), "float32"), gc.spec((config.batch_size,), "int32")

    @gc.entry(x=images, y=labels)
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model.train()(x), y)
        opt.update(gc.grad(loss, matrices + vectors))
        return {"loss": loss}

    @gc.entry(x=images, y=labels)
    def evaluate(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        logits = model.eval()(x)
        return {"loss": gc.cross_entropy(logits, y), "accuracy": gc.accuracy(logits, y)}

    @gc.entry(x=gc.spec((1, *size), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model.eval()(x)}

    return train, evaluate, infer


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """x [batch_size, 3, 32, 32] float32 and y [batch_size] int32 of CIFAR-10: without end from batch ``start`` on for
    "train", shifted and mirrored at random; once over the held-out images for "heldout"."""
    assert config.batch_size is not None
    if config.image_size != 32:
        hint = "--set image_size=32 --set num_classes=10 trains on CIFAR-10; for others, feed the entry train yourself"
        raise error("GC0603", f"there is no data of {config.image_size} x {config.image_size} pixels", hint=hint)
    images, labels = cifar10(config.data, split)
    if split != "train":
        for rows in shuffled_rows(len(labels), config.batch_size):
            yield {"x": normalise(images[rows]), "y": labels[rows]}
        return
    for step, (_, rows) in enumerate(random_rows(len(labels), config.batch_size, config.seed, start), start):
        chosen = augment(images[rows], config.seed, step) if config.augmentation else images[rows]
        yield {"x": normalise(chosen), "y": labels[rows]}


def baselines(config: Config) -> dict[str, float]:
    """The held-out loss in nats that the frequencies of the classes reach."""
    if not config.data:
        return {}
    (_, train), (_, heldout) = (cifar10(config.data, split) for split in ("train", "heldout"))
    return {"prior_loss": class_loss(train, heldout, 10)}
