"""The workloads that are timed: their sizes, their data, and how many FLOP the products of a step have.

Nothing of graphc or of a peer is imported here, so that a process that measures one system holds that system only.
Configurations have the keys of `models/`, which are those of `transformers`; dropout is 0 everywhere, since the random
numbers of the systems differ. A train step is forward, backward and AdamW (`OPTIMIZER`); inference is forward.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

MODES = ("train", "infer")
FLOAT32, BFLOAT16 = "float32", "bfloat16"
OPTIMIZER: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """``length``: tokens of a text; ``infer_batch``: of inference where it is not ``batch``; ``precision``: in which
    products are computed, from parameters that are float32."""

    name: str
    family: str
    batch: int
    config: Mapping[str, Any] = field(default_factory=dict)
    length: int = 0
    infer_batch: int = 0
    modes: tuple[str, ...] = MODES
    precision: str = FLOAT32

    def rows(self, mode: str) -> int:
        return self.infer_batch or self.batch if mode == "infer" else self.batch

    def data(self, mode: str) -> tuple[Arrays, np.ndarray | None]:
        """The model's arguments in their order, and the labels where the loss needs some (int32)."""
        inputs, labels = FAMILIES[self.family].data(self, self.rows(mode), np.random.default_rng(0))
        return inputs, None if labels is None else labels.astype(np.int32)

    def flops(self, mode: str) -> int:
        """FLOP of the matrix products and convolutions of a step, causal attention counted in full; backward takes
        twice as many as forward, but nobody computes the gradient of the data."""
        forward, first = FAMILIES[self.family].flops(self, self.rows(mode))
        return 3 * forward - first if mode == "train" else forward

    def to_json(self) -> str:
        """Without the usual precision, so that what was compiled before there was another keeps its name."""
        fields = {k: v for k, v in asdict(self).items() if (k, v) != ("precision", FLOAT32)}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Workload:
        given = json.loads(text)
        return cls(**given | {"modes": tuple(given["modes"])})

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Family:
    """``data(workload, batch, rng)``: arguments and labels; ``flops(workload, batch)``: of the forward pass, and of the
    gradient of the data, which no step computes."""

    data: Callable[[Workload, int, np.random.Generator], tuple[Arrays, np.ndarray | None]]
    flops: Callable[[Workload, int], tuple[int, int]]


# Data ----------------------------------------------------------------------------------------------------------------


def vectors(w: Workload, batch: int, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    sizes = w.config["sizes"]
    return {"x": rng.standard_normal((batch, sizes[0]), np.float32)}, rng.integers(0, sizes[-1], batch)


def tokens(w: Workload, batch: int, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    ids = rng.integers(0, w.config["vocab_size"], (batch, w.length + 1), np.int32)
    return {"ids": np.ascontiguousarray(ids[:, :-1])}, np.ascontiguousarray(ids[:, 1:])


def padded_text(w: Workload, batch: int, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    """Pairs of texts, together at least half as long as a row."""
    at = np.arange(w.length)
    end = rng.integers(w.length // 2, w.length + 1, (batch, 1))
    inputs = {
        "input_ids": np.where(at < end, rng.integers(1, w.config["vocab_size"], (batch, w.length)), 0),
        "attention_mask": at < end,
        "token_type_ids": (at >= end // 2) & (at < end),
    }
    return {name: a.astype(np.int32) for name, a in inputs.items()}, rng.integers(0, 2, batch)


def images(w: Workload, batch: int, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    side = w.config["image_size"]
    classes = w.config.get("num_labels") or w.config["num_classes"]
    return {"pixel_values": rng.standard_normal((batch, 3, side, side), np.float32)}, rng.integers(0, classes, batch)


def images_and_texts(w: Workload, batch: int, rng: np.random.Generator) -> tuple[Arrays, None]:
    """Each text ends with the token of its end, the last of the vocabulary."""
    text, side = w.config["text_config"], w.config["vision_config"]["image_size"]
    ids = rng.integers(0, text["eos_token_id"], (batch, w.length))
    ids[np.arange(batch), rng.integers(w.length // 2, w.length, batch)] = text["eos_token_id"]
    pixels = rng.standard_normal((batch, 3, side, side), np.float32)
    return {"input_ids": ids.astype(np.int32), "pixel_values": pixels}, None


# FLOP ----------------------------------------------------------------------------------------------------------------


def linear(rows: int, n_in: int, n_out: int) -> int:
    return 2 * rows * n_in * n_out


def transformer(batch: int, length: int, width: int, hidden: int, layers: int, matrices: int = 2) -> int:
    """``matrices``: width × hidden, in the network of each position."""
    products = linear(batch * length, width, 4 * width + matrices * hidden)
    return layers * (products + 4 * batch * length**2 * width)


def mlp_flops(w: Workload, batch: int) -> tuple[int, int]:
    sizes = w.config["sizes"]
    layers = [linear(batch, a, b) for a, b in pairwise(sizes)]
    return sum(layers), layers[0]


def gpt2_flops(w: Workload, batch: int) -> tuple[int, int]:
    c, width = w.config, w.config["n_embd"]
    blocks = transformer(batch, w.length, width, 4 * width, c["n_layer"])
    return blocks + linear(batch * w.length, width, c["vocab_size"]), 0


def llama_flops(w: Workload, batch: int) -> tuple[int, int]:
    c, width = w.config, w.config["hidden_size"]
    blocks = transformer(batch, w.length, width, c["intermediate_size"], c["num_hidden_layers"], matrices=3)
    return blocks + linear(batch * w.length, width, c["vocab_size"]), 0


def encoder_flops(c: Mapping[str, Any], batch: int, length: int) -> int:
    return transformer(batch, length, c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"])


def bert_flops(w: Workload, batch: int) -> tuple[int, int]:
    width = w.config["hidden_size"]
    return encoder_flops(w.config, batch, w.length) + linear(batch, width, width + w.config["num_labels"]), 0


def vision_flops(c: Mapping[str, Any], batch: int) -> tuple[int, int]:
    patches = (c["image_size"] // c["patch_size"]) ** 2
    first = linear(batch * patches, 3 * c["patch_size"] ** 2, c["hidden_size"])
    return first + encoder_flops(c, batch, patches + 1), first


def vit_flops(w: Workload, batch: int) -> tuple[int, int]:
    forward, first = vision_flops(w.config, batch)
    return forward + linear(batch, w.config["hidden_size"], w.config["num_labels"]), first


def clip_flops(w: Workload, batch: int) -> tuple[int, int]:
    text, vision, out = (w.config[key] for key in ("text_config", "vision_config", "projection_dim"))
    forward, first = vision_flops(vision, batch)
    heads = linear(batch, text["hidden_size"] + vision["hidden_size"], out) + linear(batch, out, batch)
    return forward + encoder_flops(text, batch, w.length) + heads, first


def resnet_flops(w: Workload, batch: int) -> tuple[int, int]:
    """The small networks narrow without parameters where the large have a 1 × 1 convolution."""
    blocks, side = w.config["layers"], w.config["image_size"]
    small = len(blocks) == 3
    width, window, stride = (16, 3, 1) if small else (64, 7, 2)

    def conv(n_in: int, n_out: int, size: int) -> int:
        return linear(batch * side**2, n_in * size**2, n_out)

    side //= stride
    total = first = conv(3, width, window)
    side //= stride  # pooling
    channels = width
    for stage, count in enumerate(blocks):
        out = width << stage
        before, side = side, side // 2 if stage else side
        if w.config.get("bottleneck"):
            for _ in range(count):  # the 3 × 3 convolution has the stride
                first_product = linear(batch * before**2, channels, out)
                shortcut = conv(channels, 4 * out, 1) if channels != 4 * out else 0
                total += first_product + conv(out, out, 3) + conv(out, 4 * out, 1) + shortcut
                before, channels = side, 4 * out
            continue
        shortcut = conv(channels, out, 1) if stage and not small else 0
        total += conv(channels, out, 3) + (2 * count - 1) * conv(out, out, 3) + shortcut
        channels = out
    return total + linear(batch, channels, w.config["num_classes"]), first


FAMILIES = {
    "mlp": Family(vectors, mlp_flops),
    "gpt2": Family(tokens, gpt2_flops),
    "bert": Family(padded_text, bert_flops),
    "vit": Family(images, vit_flops),
    "clip": Family(images_and_texts, clip_flops),
    "llama": Family(tokens, llama_flops),
    "resnet": Family(images, resnet_flops),
}


# The table -----------------------------------------------------------------------------------------------------------


def gpt2(name: str, batch: int, length: int, layers: int, heads: int, width: int, **more: Any) -> Workload:
    """``vocab``, ``positions`` and the fields of `Workload` by name."""
    config = {
        "vocab_size": more.pop("vocab", 65), "n_positions": more.pop("positions", length), "n_embd": width,
        "n_layer": layers, "n_head": heads, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    return Workload(name, "gpt2", batch, config, length, **more)


def encoder(width: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return sizes | {"intermediate_size": hidden} | more


def bert(**sizes: int) -> dict[str, Any]:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return encoder(**sizes, vocab_size=30522, max_position_embeddings=512, num_labels=2) | dropout


MLP = {"sizes": (784, 512, 512, 10)}
VISION = {"image_size": 32, "patch_size": 4}
CLIP = {
    "text_config": encoder(192, 4, 3, 768, vocab_size=4096, max_position_embeddings=32, eos_token_id=4095),
    "vision_config": encoder(192, 4, 3, 768, **VISION),
    "projection_dim": 192,
}
LLAMA = encoder(288, 6, 6, 768, num_key_value_heads=6, vocab_size=4096, max_position_embeddings=256)
RESNET20 = {"preset": "resnet20", "layers": (3, 3, 3), "image_size": 32, "num_classes": 10}
RESNET18 = {"preset": "resnet18", "layers": (2, 2, 2, 2), "image_size": 224, "num_classes": 1000}

WORKLOADS = {
    w.name: w
    for w in (
        Workload("mlp", "mlp", 128, MLP),
        gpt2("gpt2-nano", batch=12, length=64, layers=4, heads=4, width=128),
        gpt2("gpt2-baby", batch=8, length=256, layers=6, heads=6, width=384),
        gpt2("gpt2-small", batch=1, length=128, layers=12, heads=12, width=768, vocab=50257, positions=1024),
        Workload("bert", "bert", 16, bert(width=256, layers=4, heads=4, hidden=1024), 128),
        Workload("vit", "vit", 32, encoder(192, 6, 3, 768, num_labels=10, **VISION)),
        Workload("clip", "clip", 32, CLIP, 32),
        Workload("llama", "llama", 4, LLAMA, 256),
        Workload("resnet20", "resnet", 64, RESNET20),
        Workload("resnet18", "resnet", 4, RESNET18, infer_batch=1),
        Workload("bert-base", "bert", 1, bert(width=768, layers=12, heads=12, hidden=3072), 128, modes=("infer",)),
        # latency
        Workload("mlp-1", "mlp", 1, MLP, modes=("infer",)),
        gpt2("gpt2-nano-1", batch=1, length=64, layers=4, heads=4, width=128, modes=("infer",)),
    )
}

# Products of bfloat16, as mixed precision has them.
NARROW = {
    w.name: w
    for w in (replace(WORKLOADS[name], name=f"{name}-bf16", precision=BFLOAT16) for name in ("gpt2-baby", "resnet20"))
}
