"""A small convolutional network for handwritten digits, after LeNet (LeCun et al., 1998): two convolutions, each with
ReLU and pooling, and one linear layer; 29 thousand parameters, above 99 % of the test images after a few epochs.

Tensor names are those of the same layers in torch. ``data`` names a folder with MNIST's IDX files::

    graphc train models/convnet.py --data mnist/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import class_loss, mnist, random_rows, shuffled_rows
from graphc.data_images import augment, normalise

MEAN = np.array([0.1307], np.float32)  # of the 60,000 training images
STD = np.array([0.3081], np.float32)


@dataclass
class Config:
    """What ``--set KEY=VALUE`` overrides."""

    image_size: int = 28
    num_channels: int = 1
    channels: int = 16  # of the first convolution; the second has twice as many
    kernel_size: int = 5
    num_classes: int = 10

    data: str = ""  # a folder with MNIST's IDX files
    seed: int = 0
    batch_size: int = 100
    max_iters: int = 3000
    augmentation: bool = True
    learning_rate: float = 2e-3
    warmup_iters: int = 100
    weight_decay: float = 0.01
    grad_clip: float = 1.0


class Model(nn.Module):
    """x [B, num_channels, image_size, image_size] float32 → logits [B, num_classes]."""

    def __init__(self, config: Config) -> None:
        size, padding = config.kernel_size, config.kernel_size // 2
        side = config.image_size // 4  # after two poolings
        self.conv1 = nn.Conv2d(config.num_channels, config.channels, size, padding=padding)
        self.conv2 = nn.Conv2d(config.channels, 2 * config.channels, size, padding=padding)
        self.fc = nn.Linear(2 * config.channels * side * side, config.num_classes)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        for conv in (self.conv1, self.conv2):
            x = gc.max_pool2d(gc.relu(conv(x)), 2)
        return self.fc(x.reshape((x.shape[0], -1)))


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` (x [batch_size, num_channels, image_size, image_size], y [batch_size] → loss), ``evaluate`` (→ loss,
    accuracy), ``infer`` (one x → logits)."""
    gc.seed(config.seed)
    model = Model(config)
    parameters = model.parameters()
    opt = optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=optim.cosine(config.learning_rate, config.max_iters, warmup=config.warmup_iters),
    )
    size = (config.num_channels, config.image_size, config.image_size)
    images, labels = gc.spec((config.batch_size, *size), "float32"), gc.spec((config.batch_size,), "int32")

    @gc.entry(x=images, y=labels)
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model(x), y)
        grads = gc.grad(loss, parameters)
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(x=images, y=labels)
    def evaluate(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        logits = model(x)
        return {"loss": gc.cross_entropy(logits, y), "accuracy": gc.accuracy(logits, y)}

    @gc.entry(x=gc.spec((1, *size), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model(x)}

    return train, evaluate, infer


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """x [batch_size, 1, 28, 28] float32 and y [batch_size] int32: without end from batch ``start`` on for "train",
    shifted by up to 2 pixels; once over the test images for "heldout"."""
    flat, labels = mnist(config.data, split)
    images = flat.reshape(-1, config.num_channels, config.image_size, config.image_size)
    if split != "train":
        for rows in shuffled_rows(len(labels), config.batch_size):
            yield {"x": normalise(images[rows], MEAN, STD), "y": labels[rows]}
        return
    for step, (_, rows) in enumerate(random_rows(len(labels), config.batch_size, config.seed, start), start):
        chosen = images[rows]
        if config.augmentation:
            chosen = augment(chosen, config.seed, step, padding=2, mirror=False)
        yield {"x": normalise(chosen, MEAN, STD), "y": labels[rows]}


def baselines(config: Config) -> dict[str, float]:
    """The held-out loss in nats that the frequencies of the classes reach."""
    (_, train), (_, heldout) = (mnist(config.data, split) for split in ("train", "heldout"))
    return {"prior_loss": class_loss(train, heldout, config.num_classes)}
