"""The workloads' models in plain JAX: functions of a flat dict of parameters under their published names.

Linear weights are [in, out] and convolutions HWIO over NHWC images, as JAX users have them (`from_published`).
Each model takes (parameters, configuration, inputs …) and returns logits; `resnet` also the new running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Config = Mapping[str, Any]
Params = dict[str, jax.Array]


def from_published(family: str, name: str, array: np.ndarray) -> np.ndarray:
    """A parameter in JAX's layout."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    is_linear = array.ndim == 2 and family != "gpt2" and "embed" not in name
    return np.ascontiguousarray(array.T) if is_linear else array


def dense(p: Params, name: str, x: jax.Array) -> jax.Array:
    y = x @ p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def layer_norm(p: Params, name: str, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, **kind: Any) -> jax.Array:
    """q, k, v [B, T, D] → [B, T, D]."""
    split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    return jax.nn.dot_product_attention(*split, **kind).reshape(q.shape)


def mlp(p: Params, c: Config, x: jax.Array) -> jax.Array:
    last = len(c["sizes"]) - 1
    for i in range(1, last):
        x = jax.nn.relu(dense(p, f"fc{i}", x))
    return dense(p, f"fc{last}", x)


# Text ----------------------------------------------------------------------------------------------------------------


def gpt2(p: Params, c: Config, ids: jax.Array) -> jax.Array:
    wte = p["transformer.wte.weight"]
    x = wte[ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(c["n_layer"]):
        h = f"transformer.h.{i}"
        q, k, v = jnp.split(dense(p, f"{h}.attn.c_attn", layer_norm(p, f"{h}.ln_1", x)), 3, axis=-1)
        x = x + dense(p, f"{h}.attn.c_proj", attend(q, k, v, c["n_head"], is_causal=True))
        y = jax.nn.gelu(dense(p, f"{h}.mlp.c_fc", layer_norm(p, f"{h}.ln_2", x)), approximate=True)
        x = x + dense(p, f"{h}.mlp.c_proj", y)
    return layer_norm(p, "transformer.ln_f", x) @ wte.T


def rms_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"]


def rope(x: jax.Array, heads: int) -> jax.Array:
    """x [B, T, D]: the first half of each head is turned with the second, as in `transformers`."""
    b, t, d = x.shape
    depth = d // heads
    angles = np.outer(np.arange(t), 10000.0 ** (-np.arange(0, depth, 2) / depth))[:, None].astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    lo, hi = jnp.split(x.reshape(b, t, heads, depth), 2, axis=-1)
    return jnp.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], -1).reshape(x.shape)


def llama(p: Params, c: Config, ids: jax.Array) -> jax.Array:
    heads = c["num_attention_heads"]
    x = p["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        h = f"model.layers.{i}"
        y = rms_norm(p, f"{h}.input_layernorm", x)
        q, k, v = (dense(p, f"{h}.self_attn.{n}_proj", y) for n in "qkv")
        x = x + dense(p, f"{h}.self_attn.o_proj", attend(rope(q, heads), rope(k, heads), v, heads, is_causal=True))
        y = rms_norm(p, f"{h}.post_attention_layernorm", x)
        y = jax.nn.silu(dense(p, f"{h}.mlp.gate_proj", y)) * dense(p, f"{h}.mlp.up_proj", y)
        x = x + dense(p, f"{h}.mlp.down_proj", y)
    return dense(p, "lm_head", rms_norm(p, "model.norm", x))


def bert(p: Params, c: Config, ids: jax.Array, attention_mask: jax.Array, types: jax.Array) -> jax.Array:
    e = "bert.embeddings"
    x = p[f"{e}.word_embeddings.weight"][ids] + p[f"{e}.token_type_embeddings.weight"][types]
    x = layer_norm(p, f"{e}.LayerNorm", x + p[f"{e}.position_embeddings.weight"][: ids.shape[1]], 1e-12)
    mask = attention_mask[:, None, None, :] != 0
    for i in range(c["num_hidden_layers"]):
        h = f"bert.encoder.layer.{i}"
        q, k, v = (dense(p, f"{h}.attention.self.{n}", x) for n in ("query", "key", "value"))
        y = dense(p, f"{h}.attention.output.dense", attend(q, k, v, c["num_attention_heads"], mask=mask))
        x = layer_norm(p, f"{h}.attention.output.LayerNorm", x + y, 1e-12)
        y = dense(p, f"{h}.output.dense", gelu(dense(p, f"{h}.intermediate.dense", x)))
        x = layer_norm(p, f"{h}.output.LayerNorm", x + y, 1e-12)
    return dense(p, "classifier", jnp.tanh(dense(p, "bert.pooler.dense", x[:, 0])))


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


# Images --------------------------------------------------------------------------------------------------------------


def patches(p: Params, name: str, pixels: jax.Array) -> jax.Array:
    """pixels [B, H, W, 3] → [B, patches, D]."""
    size = p[f"{name}.weight"].shape[0]
    y = convolve(p, name, pixels, size, pad=0)
    y = y.reshape(y.shape[0], -1, y.shape[-1])
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def convolve(p: Params, name: str, x: jax.Array, stride: int = 1, pad: int | None = None) -> jax.Array:
    kernel = p[f"{name}.weight"]
    pad = kernel.shape[0] // 2 if pad is None else pad
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout)


def vit(p: Params, c: Config, pixels: jax.Array) -> jax.Array:
    e = "vit.embeddings"
    x = patches(p, f"{e}.patch_embeddings.projection", pixels)
    token = jnp.broadcast_to(p[f"{e}.cls_token"], (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([token, x], 1) + p[f"{e}.position_embeddings"]
    for i in range(c["num_hidden_layers"]):
        h = f"vit.encoder.layer.{i}"
        y = layer_norm(p, f"{h}.layernorm_before", x, 1e-12)
        q, k, v = (dense(p, f"{h}.attention.attention.{n}", y) for n in ("query", "key", "value"))
        x = x + dense(p, f"{h}.attention.output.dense", attend(q, k, v, c["num_attention_heads"]))
        y = gelu(dense(p, f"{h}.intermediate.dense", layer_norm(p, f"{h}.layernorm_after", x, 1e-12)))
        x = x + dense(p, f"{h}.output.dense", y)
    return dense(p, "classifier", layer_norm(p, "vit.layernorm", x, 1e-12)[:, 0])


def clip_encoder(p: Params, c: Config, name: str, x: jax.Array, is_causal: bool) -> jax.Array:
    for i in range(c["num_hidden_layers"]):
        h = f"{name}.encoder.layers.{i}"
        y = layer_norm(p, f"{h}.layer_norm1", x)
        q, k, v = (dense(p, f"{h}.self_attn.{n}_proj", y) for n in "qkv")
        x = x + dense(p, f"{h}.self_attn.out_proj", attend(q, k, v, c["num_attention_heads"], is_causal=is_causal))
        y = dense(p, f"{h}.mlp.fc1", layer_norm(p, f"{h}.layer_norm2", x))
        x = x + dense(p, f"{h}.mlp.fc2", y * jax.nn.sigmoid(1.702 * y))
    return x


def clip(p: Params, c: Config, ids: jax.Array, pixels: jax.Array) -> jax.Array:
    def unit(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True))

    e = "text_model.embeddings"
    x = p[f"{e}.token_embedding.weight"][ids] + p[f"{e}.position_embedding.weight"][: ids.shape[1]]
    x = layer_norm(p, "text_model.final_layer_norm", clip_encoder(p, c["text_config"], "text_model", x, True))
    end = jnp.argmax(ids == c["text_config"]["eos_token_id"], -1)
    texts = unit(dense(p, "text_projection", x[jnp.arange(len(ids)), end]))

    e = "vision_model.embeddings"
    x = patches(p, f"{e}.patch_embedding", pixels)
    token = jnp.broadcast_to(p[f"{e}.class_embedding"], (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([token, x], 1) + p[f"{e}.position_embedding.weight"]
    x = layer_norm(p, "vision_model.pre_layrnorm", x)
    x = clip_encoder(p, c["vision_config"], "vision_model", x, False)[:, 0]
    images = unit(dense(p, "visual_projection", layer_norm(p, "vision_model.post_layernorm", x)))
    return texts @ images.T * jnp.exp(p["logit_scale"])


class BatchNorm:
    """The norms of one pass: with ``train`` by the batch, and ``new`` collects the running statistics after it."""

    def __init__(self, p: Params, train: bool) -> None:
        self.p, self.train, self.new = p, train, {}

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        p, mean_name, var_name = self.p, f"{name}.running_mean", f"{name}.running_var"
        mean, var = p[mean_name], p[var_name]
        if self.train:
            n = x.size // x.shape[-1]
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            self.new[mean_name] = 0.9 * p[mean_name] + 0.1 * mean
            self.new[var_name] = 0.9 * p[var_name] + 0.1 * var * (n / (n - 1))
        scale = lax.rsqrt(var + 1e-5) * p[f"{name}.weight"]
        return (x - mean) * scale + p[f"{name}.bias"]


def resnet(p: Params, c: Config, x: jax.Array, train: bool = False) -> tuple[jax.Array, Params]:
    small = len(c["layers"]) == 3
    norm = BatchNorm(p, train)
    x = jax.nn.relu(norm("bn1", convolve(p, "conv1", x, 1 if small else 2)))
    if not small:
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for stage, count in enumerate(c["layers"], 1):
        for i in range(count):
            h, stride = f"layer{stage}.{i}", 2 if stage > 1 and not i else 1
            first, second = (1, stride) if c.get("bottleneck") else (stride, 1)
            y = jax.nn.relu(norm(f"{h}.bn1", convolve(p, f"{h}.conv1", x, first)))
            y = norm(f"{h}.bn2", convolve(p, f"{h}.conv2", y, second))
            if c.get("bottleneck"):
                y = norm(f"{h}.bn3", convolve(p, f"{h}.conv3", jax.nn.relu(y)))
            if f"{h}.downsample.0.weight" in p:
                x = norm(f"{h}.downsample.1", convolve(p, f"{h}.downsample.0", x, stride))
            elif stride == 2:
                more = (y.shape[-1] - x.shape[-1]) // 2
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (more, more)))
            x = jax.nn.relu(y + x)
    return dense(p, "linear" if small else "fc", x.mean((1, 2))), norm.new


MODELS: dict[str, Callable[..., Any]] = {
    "mlp": mlp, "gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit, "clip": clip, "resnet": resnet,
}  # fmt: skip
