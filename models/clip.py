"""CLIP (Radford et al., arXiv 2103.00020): an encoder of images and one of texts, trained so that what belongs together
points into the same direction.

`Config` keys and tensor names are those of `transformers`' CLIPModel, so that its weights load by name. ``data`` names
a folder with pictures of emoji; after training, each held-out picture has to find its name among all of these::

    git clone --depth 1 https://github.com/googlefonts/noto-emoji
    graphc train models/clip.py --data noto-emoji/png/32
    graphc compile models/clip.py --set preset=base
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

import graphc as gc
from graphc import nn, optim
from graphc.data import random_rows, shuffled_rows
from graphc.data_emoji import emoji
from graphc.data_images import augment, normalise
from graphc.models.vit import PatchProjection
from graphc.pretrained import ACTIVATIONS, Pretrained, PretrainedConfig, by_preset
from graphc.wordpiece import SEP, SPECIAL, WordPiece

TINY = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
PRESETS: dict[str, dict[str, Any]] = {
    # for pictures of 32 x 32 and names of a few words, on a CPU
    "tiny": {
        "text_config": TINY | {"vocab_size": 4000, "max_position_embeddings": 24, "eos_token_id": SPECIAL.index(SEP)},
        "vision_config": TINY | {"image_size": 32, "patch_size": 4},
        "projection_dim": 128, "batch_size": 64, "max_iters": 2000,
    },
    # the published ViT-B/32, 151 M parameters
    "base": {
        "text_config": {}, "vision_config": {}, "projection_dim": 512, "batch_size": 8, "max_iters": 100_000,
    },
}  # fmt: skip

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of the pixels that CLIP was trained on
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

LEGACY_EOS = 2  # in the first published configurations; the end of the text is then its largest number


@dataclass
class TowerConfig(PretrainedConfig):
    """What both encoders have."""

    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass
class TextConfig(TowerConfig):
    """Keys of `transformers.CLIPTextConfig`."""

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407


@dataclass
class VisionConfig(TowerConfig):
    """Keys of `transformers.CLIPVisionConfig`."""

    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32


@dataclass
class Config(PretrainedConfig):
    """What ``--set KEY=VALUE`` overrides. Model keys are `transformers.CLIPConfig`'s; the two inner configurations may
    be given as dicts, as in a config.json."""

    preset: str = "tiny"

    text_config: Any = field(default=None)  # a TextConfig or its values
    vision_config: Any = field(default=None)  # a VisionConfig or its values
    projection_dim: int = by_preset()
    logit_scale_init_value: float = 2.6592  # log(1 / 0.07)
    initializer_factor: float = 1.0

    data: str = ""  # a folder with emoji_u*.png, or with emoji.tsv and emoji_32.npz
    seed: int = 0
    batch_size: int = by_preset()
    max_iters: int = by_preset()
    augmentation: bool = True
    learning_rate: float = 1e-3
    warmup_iters: int = 100
    beta2: float = 0.98
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        self.fill(PRESETS, {})
        for key, cls in (("text_config", TextConfig), ("vision_config", VisionConfig)):
            given = getattr(self, key)
            if isinstance(given, Mapping):
                setattr(self, key, cls.from_json(given))
            inner = getattr(self, key)
            if inner.hidden_size % inner.num_attention_heads:
                raise ValueError(f"{key}: {inner.num_attention_heads} heads do not divide {inner.hidden_size}")


# The model -----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """x [B, T, D] → [B, T, D]; with ``is_causal``, a position reads those before it and itself."""

    def __init__(self, config: TowerConfig, is_causal: bool) -> None:
        self.heads, self.dropout, self.is_causal = config.num_attention_heads, config.attention_dropout, is_causal
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        b, t, d = x.shape
        q, k, v = (
            gc.permute_dims(project(x).reshape((b, t, self.heads, d // self.heads)), (0, 2, 1, 3))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        y = gc.scaled_dot_product_attention(q, k, v, mask, is_causal=self.is_causal, dropout_p=dropout)
        return self.out_proj(gc.permute_dims(y, (0, 2, 1, 3)).reshape((b, t, d)))


class MLP(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: TowerConfig, is_causal: bool) -> None:
        self.self_attn = Attention(config, is_causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None) -> gc.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: TowerConfig, is_causal: bool) -> None:
        self.layers = nn.ModuleList([Layer(config, is_causal) for _ in range(config.num_hidden_layers)])

    def forward(self, x: gc.Tensor, mask: gc.Tensor | None = None) -> gc.Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: gc.Tensor) -> gc.Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class TextTransformer(nn.Module):
    """input_ids [B, T] int → [B, D], read where the text ends. What stands behind the end is not seen."""

    def __init__(self, config: TextConfig) -> None:
        self.eos = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config, is_causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: gc.Tensor, attention_mask: gc.Tensor | None = None) -> gc.Tensor:
        mask = None if attention_mask is None else attention_mask[:, None, None, :] != 0
        x = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask))
        last = gc.max(input_ids, 1, keepdims=True) if self.eos == LEGACY_EOS else self.eos
        at = gc.iota(input_ids.shape, 1)
        first = gc.min(gc.where(input_ids == last, at, input_ids.shape[1]), 1, keepdims=True)
        return gc.sum(gc.where((at == first)[:, :, None], x, 0), 1)


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(np.zeros(config.hidden_size, np.float32))
        self.patch_embedding = PatchProjection(config.num_channels, config.hidden_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + patches, config.hidden_size)

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        patches = self.patch_embedding(pixels)
        token = gc.broadcast_to(self.class_embedding, (patches.shape[0], 1, patches.shape[2]))
        return gc.concat([token, patches], axis=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """pixels [B, C, H, W] → [B, D], read from the first position."""

    def __init__(self, config: VisionConfig) -> None:
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # the published spelling
        self.encoder = Encoder(config, is_causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: gc.Tensor) -> gc.Tensor:
        return self.post_layernorm(self.encoder(self.pre_layrnorm(self.embeddings(pixels)))[:, 0])


class Model(Pretrained):
    """input_ids [B, T] int (each row with an end of text), pixel_values [A, C, H, W] → ``text_embeds`` [B, P] and
    ``image_embeds`` [A, P] of length 1, ``logits_per_text`` [B, A] their products times exp(logit_scale), and
    ``logits_per_image`` [A, B]."""

    published = ((r"^(text|vision)_model\.embeddings\.position_ids$", ""),)  # in old files

    def __init__(self, config: Config) -> None:
        text, vision = config.text_config, config.vision_config
        self.logit_scale = nn.Parameter(np.array(config.logit_scale_init_value, np.float32))
        self.text_model = TextTransformer(text)
        self.vision_model = VisionTransformer(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        initialise(self, config)

    def forward(
        self, input_ids: gc.Tensor, pixel_values: gc.Tensor, attention_mask: gc.Tensor | None = None
    ) -> dict[str, gc.Tensor]:
        images = unit(self.visual_projection(self.vision_model(pixel_values)))
        texts = unit(self.text_projection(self.text_model(input_ids, attention_mask)))
        logits = texts @ images.T * gc.exp(self.logit_scale)
        return {
            "logits_per_image": logits.T,
            "logits_per_text": logits,
            "text_embeds": texts,
            "image_embeds": images,
        }


def unit(x: gc.Tensor) -> gc.Tensor:
    """x [B, P] / its length."""
    return x * gc.rsqrt(gc.sum(x * x, -1, keepdims=True))


def initialise(model: Model, config: Config) -> None:
    """As published: normal distributions whose widths keep the variance through the depth; biases 0 and norms 1."""
    factor = config.initializer_factor
    for name, p in model.named_parameters():
        tower = config.vision_config if name.startswith("vis") else config.text_config
        width, depth = tower.hidden_size**-0.5, (2 * tower.num_hidden_layers) ** -0.5
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif "embedding" in name:
            nn.init.normal_(p, std=(width if "class" in name else 0.02) * factor)
        elif p.ndim == 2:
            std = {"fc1": width * 2**-0.5, "out_proj": width}.get(name.split(".")[-2], width * depth)
            nn.init.normal_(p, std=(width if "_projection" in name else std) * factor)


# Training ------------------------------------------------------------------------------------------------------------


def entries(config: Config) -> tuple[gc.Entry, ...]:
    """``train`` (input_ids, pixel_values, row by row together → loss), ``evaluate`` (→ loss, accuracy: how many images
    find their text in the batch), ``infer`` (→ text_embeds, image_embeds)."""
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
    vision, b = config.vision_config, config.batch_size
    ids = gc.spec((b, config.text_config.max_position_embeddings), "int32")
    pixels = gc.spec((b, vision.num_channels, vision.image_size, vision.image_size))

    @gc.entry(input_ids=ids, pixel_values=pixels)
    def train(input_ids: gc.Tensor, pixel_values: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.contrastive_loss(model.train()(input_ids, pixel_values)["logits_per_text"])
        opt.update(optim.clip_by_global_norm(gc.grad(loss, parameters), config.grad_clip))
        return {"loss": loss}

    @gc.entry(input_ids=ids, pixel_values=pixels)
    def evaluate(input_ids: gc.Tensor, pixel_values: gc.Tensor) -> dict[str, gc.Tensor]:
        logits = model.eval()(input_ids, pixel_values)["logits_per_image"]
        return {"loss": gc.contrastive_loss(logits), "accuracy": gc.accuracy(logits, gc.iota((b,), 0))}

    @gc.entry(input_ids=ids, pixel_values=pixels)
    def infer(input_ids: gc.Tensor, pixel_values: gc.Tensor) -> dict[str, gc.Tensor]:
        out = model.eval()(input_ids, pixel_values)
        return {name: out[name] for name in ("text_embeds", "image_embeds")}

    return train, evaluate, infer


# Data ----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def tokenizer(data: str, size: int) -> WordPiece:
    """Of the names and keywords to train on."""
    known = emoji(data, "train")
    return WordPiece.of([*known.names, *(word for words in known.keywords for word in words)], size)


def encode(config: Config, texts: list[str]) -> np.ndarray:
    """int32 [N, max_position_embeddings]: [CLS] text [SEP], then padding."""
    text = config.text_config
    pieces = tokenizer(config.data, text.vocab_size)
    return pieces.rows([(t,) for t in texts], text.max_position_embeddings)["input_ids"]


def batches(config: Config, split: str, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """input_ids [batch_size, max_position_embeddings] int32 and pixel_values [batch_size, 3, 32, 32] float32, a name
    and a picture of it in each row, no emoji twice: without end from batch ``start`` on for "train", where pictures
    move by up to 3 pixels and up to 3 keywords follow the name; once over the held-out emoji for "heldout"."""
    known = emoji(config.data, split)
    if split != "train":
        for rows in shuffled_rows(len(known.names), config.batch_size):
            pixels = known.images[known.images_of(rows, np.zeros(len(rows)))]
            names = [known.names[i] for i in rows]
            yield {"input_ids": encode(config, names), "pixel_values": normalise(pixels, MEAN, STD)}
        return
    rows_of = random_rows(len(known.names), config.batch_size, config.seed, start)
    for step, (_, rows) in enumerate(rows_of, start):
        rng = np.random.default_rng([config.seed, 13, step])
        pixels = known.images[known.images_of(rows, rng.random(len(rows)))]
        texts = [known.names[i] for i in rows]
        if config.augmentation:
            pixels = 255 - augment(255 - pixels, config.seed, step, padding=3, mirror=False)  # the ground is white
            more = [rng.permutation(known.keywords[i])[: rng.integers(4)] if known.keywords[i] else () for i in rows]
            texts = [" ".join([text, *extra]) for text, extra in zip(texts, more, strict=True)]
        yield {"input_ids": encode(config, texts), "pixel_values": normalise(pixels, MEAN, STD)}


def baselines(config: Config) -> dict[str, float]:
    """What guessing reaches within a batch."""
    return {"chance_loss": math.log(config.batch_size), "chance_accuracy": 1 / config.batch_size}


def embeddings(infer: Callable[..., dict[str, np.ndarray]], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(names [N, P], images [M, P]) of the held-out emoji."""
    known = emoji(config.data, "heldout")
    ids, pixels = encode(config, list(known.names)), normalise(known.images, MEAN, STD)
    texts, images = [], []
    for begin in range(0, max(len(ids), len(pixels)), config.batch_size):
        rows = np.arange(begin, begin + config.batch_size)
        out = infer(input_ids=ids[rows % len(ids)], pixel_values=pixels[rows % len(pixels)])
        texts.append(out["text_embeds"])
        images.append(out["image_embeds"])
    return np.concatenate(texts)[: len(ids)], np.concatenate(images)[: len(pixels)]


def retrieval(texts: np.ndarray, images: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """R@1, R@5 and R@10: how many ``images`` [M, P] have their own name (``texts`` [N, P] at ``owner`` [M]) among the
    1, 5 and 10 nearest names."""
    scores = images @ texts.T
    own = scores[np.arange(len(images)), owner]
    rank = (scores > own[:, None]).sum(1)
    return {f"R@{k}": float((rank < k).mean()) for k in (1, 5, 10)}


def sample(infer: Callable[..., dict[str, np.ndarray]], config: Config) -> str:
    """Retrieval of names by images over all held-out emoji."""
    known = emoji(config.data, "heldout")
    found = retrieval(*embeddings(infer, config), known.owner)
    n = len(known.names)
    recalls = ", ".join(f"{name} {value:.1%} (chance {int(name[2:]) / n:.1%})" for name, value in found.items())
    return f"{len(known.owner)} held-out images look for their names among {n}: {recalls}"
