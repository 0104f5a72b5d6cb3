"""The workloads in plain JAX: jitted whole steps with donated state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]


def mlp_params(rng: np.random.Generator, sizes: tuple[int, int, int] = (784, 512, 10)) -> Params:
    p: Params = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        bound = a**-0.5
        p[f"w{i}"] = rng.uniform(-bound, bound, (a, b)).astype(np.float32)
        p[f"b{i}"] = rng.uniform(-bound, bound, (b,)).astype(np.float32)
    return p


def mlp(p: Params, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]


def gpt2_params(rng: np.random.Generator, vocab: int, positions: int, width: int, layers: int) -> Params:
    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)

    zeros, ones = partial(np.zeros, dtype=np.float32), partial(np.ones, dtype=np.float32)
    p: Params = {"wte": normal(vocab, width), "wpe": normal(positions, width), "lnf": (ones(width), zeros(width))}
    p["h"] = [
        {
            "ln1": (ones(width), zeros(width)),
            "attn": (normal(width, 3 * width), zeros(3 * width)),
            "proj": (normal(width, width), zeros(width)),
            "ln2": (ones(width), zeros(width)),
            "fc": (normal(width, 4 * width), zeros(4 * width)),
            "out": (normal(4 * width, width), zeros(width)),
        }
        for _ in range(layers)
    ]
    return p


def layer_norm(x: jax.Array, wb: tuple[jax.Array, jax.Array]) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * wb[0] + wb[1]


def dense(x: jax.Array, wb: tuple[jax.Array, jax.Array]) -> jax.Array:
    return x @ wb[0] + wb[1]


def gpt2(p: Params, ids: jax.Array, heads: int) -> jax.Array:
    t = ids.shape[1]
    x = p["wte"][ids] + p["wpe"][:t]
    for h in p["h"]:
        q, k, v = jnp.split(dense(layer_norm(x, h["ln1"]), h["attn"]), 3, axis=-1)
        q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in (q, k, v))
        a = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(a.reshape(x.shape), h["proj"])
        x = x + dense(jax.nn.gelu(dense(layer_norm(x, h["ln2"]), h["fc"]), approximate=True), h["out"])
    return layer_norm(x, p["lnf"]) @ p["wte"].T


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    lse = jax.nn.logsumexp(logits, axis=-1)
    return (lse - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()


def train_step(
    model: Callable[[Params, jax.Array], jax.Array], lr: float, betas: tuple[float, float], decay: float, clip: float
) -> Callable[..., Any]:
    """One jitted step: (params, m, v, t, x, y) → (params, m, v, t, loss); the state is donated."""

    def step(p: Params, m: Params, v: Params, t: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        loss, g = jax.value_and_grad(lambda p: cross_entropy(model(p, x), y))(p)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(g)))
        g = jax.tree.map(lambda a: a * jnp.minimum(1.0, clip / (norm + 1e-6)), g)
        t = t + 1
        m = jax.tree.map(lambda m, a: betas[0] * m + (1 - betas[0]) * a, m, g)
        v = jax.tree.map(lambda v, a: betas[1] * v + (1 - betas[1]) * a * a, v, g)

        def update(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            wd = decay if p.ndim >= 2 else 0.0
            mh, vh = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
            return p * (1 - lr * wd) - lr * mh / (jnp.sqrt(vh) + 1e-8)

        return jax.tree.map(update, p, m, v), m, v, t, loss

    return jax.jit(step, donate_argnums=(0, 1, 2, 3))
