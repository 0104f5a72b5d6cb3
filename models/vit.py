"""ViT (Dosovitskiy et al., arXiv 2010.11929): an image as a sequence of patches, read by a transformer encoder.

`Config` keys and tensor names are those of `transformers`' ViTForImageClassification, so that its weights load by name.
``data`` names a folder with CIFAR-10's binary files::

    graphc train models/vit.py --data cifar-10-batches-bin/
    graphc compile models/vit.py --set preset=base
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import class_loss, random_rows, shuffled_rows
from graphc.data_images import augment, cifar10, normalise
from graphc.pretrained import ACTIVATIONS, Pretrained, PretrainedConfig, by_preset

PRESETS: dict[str, dict[str, Any]] = {
    # for CIFAR-10 on a CPU: 64 patches of 4 x 4, 0.8 M parameters
    "tiny": {
        "image_size": 32, "patch_size": 4, "num_labels": 10, "hidden_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 4, "intermediate_size": 256, "batch_size": 64, "max_iters": 4000,
    },
    # the published ViT-B/16, 86 M parameters
    "base": {
        "image_size": 224, "patch_size": 16, "num_labels": 1000, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "batch_size": 8, "max_iters": 100_000,
    },
}  # fmt: skip


@dataclass
class Config(PretrainedConfig):
    """What ``--set KEY=VALUE`` overrides. Model keys are `transformers.ViTConfig`'s."""

    preset: str = "tiny"

    hidden_size: int = by_preset()
    num_hidden_layers: int = by_preset()
    num_attention_heads: int = by_preset()
    intermediate_size: int = by_preset()
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = by_preset()
    patch_size: int = by_preset()
    num_channels: int = 3
    qkv_bias: bool = True
    num_labels: int = by_preset()

    data: str = ""  # a folder with CIFAR-10's binary files
    seed: int = 0
    batch_size: int = by_preset()
    max_iters: int = by_preset()
    augmentation: bool = True
    learning_rate: float = 1e-3
    warmup_iters: int = 200
    beta2: float = 0.99
    weight_decay: float = 0.05
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        self.fill(PRESETS, {})
        if self.image_size % self.patch_size:
            raise ValueError(f"patches of {self.patch_size} do not fill an image of {self.image_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size}")


# The model -----------------------------------------------------------------------------------------------------------


class PatchProjection(nn.Module):
    """A convolution whose windows do not overlap, stored as one (weight [D, C, P, P]) and computed as a product:
    pixels [B, C, H, W] → [B, patches, D], row by row."""

    def __init__(self, channels: int, width: int, patch: int, bias: bool = True) -> None:
        self.weight = nn.Parameter(np.zeros((width, channels, patch, patch), np.float32))
        self.bias = nn.Parameter(np.zeros(width, np.float32)) if bias else None

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        d, c, p, _ = self.weight.shape
        b, _, h, w = pixels.shape
        patches = gc.permute_dims(pixels.reshape((b, c, h // p, p, w // p, p)), (0, 2, 4, 1, 3, 5))
        flat = patches.reshape((b, h * w // (p * p), c * p * p))
        return nn.functional.linear(flat, self.weight.reshape((d, c * p * p)), self.bias)


class PatchEmbeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        self.projection = PatchProjection(config.num_channels, config.hidden_size, config.patch_size)

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        return self.projection(pixels)


class Embeddings(nn.Module):
    """pixels [B, C, H, W] → [B, 1 + patches, D]: a learned token for the class, then the patches."""

    def __init__(self, config: Config) -> None:
        patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(np.zeros((1, 1, config.hidden_size), np.float32))
        self.position_embeddings = nn.Parameter(np.zeros((1, 1 + patches, config.hidden_size), np.float32))
        self.patch_embeddings = PatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        patches = self.patch_embeddings(pixels)
        token = gc.broadcast_to(self.cls_token, (patches.shape[0], 1, patches.shape[2]))
        return self.dropout(gc.concat([token, patches], axis=1) + self.position_embeddings)


class SelfAttention(nn.Module):
    """x [B, T, D] → what each position reads from all, [B, T, D]."""

    def __init__(self, config: Config) -> None:
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size, config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, config.qkv_bias)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        b, t, d = x.shape
        q, k, v = (
            gc.permute_dims(project(x).reshape((b, t, self.heads, d // self.heads)), (0, 2, 1, 3))
            for project in (self.query, self.key, self.value)
        )
        y = gc.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return gc.permute_dims(y, (0, 2, 1, 3)).reshape((b, t, d))


class Dense(nn.Module):
    """A linear layer named ``dense``, then dropout."""

    def __init__(self, n_in: int, n_out: int, dropout: float = 0.0) -> None:
        self.dense = nn.Linear(n_in, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.dropout(self.dense(x))


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        self.attention = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size, config.hidden_dropout_prob)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.output(self.attention(x))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = Dense(config.intermediate_size, config.hidden_size, config.hidden_dropout_prob)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output(self.act(self.intermediate(self.layernorm_after(x))))


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class Transformer(nn.Module):
    """pixels [B, C, H, W] → hidden states [B, 1 + patches, D]."""

    def __init__(self, config: Config) -> None:
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        return self.layernorm(self.encoder(self.embeddings(pixels)))


class Model(Pretrained):
    """pixel_values [B, num_channels, image_size, image_size] float32 → logits [B, num_labels], read from the first
    position."""

    # transformers 5 holds the same tensors under shorter names in memory; files have those of this model.
    published = (
        (r"^vit\.layers\.", "vit.encoder.layer."),
        (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1."),
        (r"\.attention\.q\.", ".attention.query."),
        (r"\.attention\.k\.", ".attention.key."),
        (r"\.attention\.v\.", ".attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^vit\.pooler\..*", ""),  # of the pretrained encoder; the classifier does not use it
    )

    def __init__(self, config: Config) -> None:
        self.vit = Transformer(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialise(self, config.initializer_range)

    def forward(self, pixel_values: gc.Tensor) -> gc.Tensor:
        return self.classifier(self.vit(pixel_values)[:, 0])


def initialise(model: nn.Module, std: float) -> None:
    """Matrices, kernels and position embeddings from a truncated normal distribution; biases 0 and norms 1."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            nn.init.trunc_normal_(p, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` (pixel_values, labels → loss), ``evaluate`` (→ loss, accuracy), ``infer`` (one image → logits)."""
    gc.seed(config.seed)
    model = Model(config)
    parameters = model.parameters()
    opt = optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=optim.cosine(config.learning_rate, config.max_iters, warmup=config.warmup_iters),
        betas=(0.9, config.beta2),
    )
    image = (config.num_channels, config.image_size, config.image_size)
    pixels, labels = gc.spec((config.batch_size, *image)), gc.spec((config.batch_size,), "int32")

    @gc.entry(pixel_values=pixels, labels=labels)
    def train(pixel_values: gc.Tensor, labels: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model.train()(pixel_values), labels)
        grads = gc.grad(loss, parameters)
        opt.update(optim.clip_by_global_norm(grads, config.grad_clip))
        return {"loss": loss}

    @gc.entry(pixel_values=pixels, labels=labels)
    def evaluate(pixel_values: gc.Tensor, labels: gc.Tensor) -> dict[str, gc.Tensor]:
        logits = model.eval()(pixel_values)
        return {"loss": gc.cross_entropy(logits, labels), "accuracy": gc.accuracy(logits, labels)}

    @gc.entry(pixel_values=gc.spec((1, *image)))
    def infer(pixel_values: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": model.eval()(pixel_values)}

    return train, evaluate, infer


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """pixel_values [batch_size, 3, 32, 32] float32 and labels [batch_size] int32: without end from batch ``start`` on
    for "train", shifted and mirrored at random; once over the held-out images for "heldout"."""
    images, labels = cifar10(config.data, split)
    if split != "train":
        for rows in shuffled_rows(len(labels), config.batch_size):
            yield {"pixel_values": normalise(images[rows]), "labels": labels[rows]}
        return
    for step, (_, rows) in enumerate(random_rows(len(labels), config.batch_size, config.seed, start), start):
        chosen = augment(images[rows], config.seed, step) if config.augmentation else images[rows]
        yield {"pixel_values": normalise(chosen), "labels": labels[rows]}


def baselines(config: Config) -> dict[str, float]:
    """The held-out loss in nats that the frequencies of the classes reach."""
    (_, train), (_, heldout) = (cifar10(config.data, split) for split in ("train", "heldout"))
    return {"prior_loss": class_loss(train, heldout, config.num_labels)}
