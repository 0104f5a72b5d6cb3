"""JAX: the whole step jitted, its state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from peers_jax import MODELS, Params, from_published
from systems import Job, Running
from workloads import OPTIMIZER, Workload

Model = Callable[..., tuple[jax.Array, Params]]  # (parameters, inputs …) → logits, running statistics


def prepare(job: Job) -> Running:
    family = job.workload.family
    weights = {n: jnp.array(from_published(family, n, job.weights[n])) for n in job.weights}
    inputs = list(job.inputs.values())
    if "pixel_values" in job.inputs:
        inputs[-1] = inputs[-1].transpose(0, 2, 3, 1)
    data = [jnp.asarray(x) for x in inputs]
    forward = model(job.workload, job.mode == "train")
    if job.mode == "infer":
        infer = jax.jit(lambda p, *data: forward(p, *data)[0])
        return Running(lambda: infer(weights, *data).block_until_ready())
    labels = jnp.arange(len(data[0])) if job.labels is None else jnp.asarray(job.labels)
    step = train_step(forward, family == "clip")
    params = {n: a for n, a in weights.items() if ".running_" not in n}
    stats = {n: a for n, a in weights.items() if ".running_" in n}
    m, v = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
    state = [params, stats, m, v, jnp.zeros((), jnp.int32)]

    def run() -> jax.Array:
        state[:], loss = step(state, labels, *data)
        return loss.block_until_ready()

    return Running(run)


def model(work: Workload, train: bool) -> Model:
    fn = MODELS[work.family]
    if work.family == "resnet":
        return lambda p, *data: fn(p, work.config, *data, train)
    return lambda p, *data: (fn(p, work.config, *data), {})


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - picked).mean()


def train_step(forward: Model, pairs: bool) -> Callable[..., Any]:
    """(state, labels, inputs …) → state, loss before the update; state is parameters, running statistics, the two
    moments of AdamW and the number of steps."""
    lr, (b1, b2), eps, decay = (OPTIMIZER[key] for key in ("lr", "betas", "eps", "weight_decay"))

    def loss_of(params: Params, stats: Params, labels: jax.Array, *data: jax.Array) -> tuple[jax.Array, Params]:
        logits, stats = forward(params | stats, *data)
        loss = cross_entropy(logits, labels)
        return (loss + cross_entropy(logits.T, labels)) / 2 if pairs else loss, stats

    @partial(jax.jit, donate_argnums=0)
    def step(state: list[Any], labels: jax.Array, *data: jax.Array) -> tuple[list[Any], jax.Array]:
        params, stats, m, v, t = state
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, stats, labels, *data)
        t = t + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

        def update(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / (1 - b2**t)) + eps
            return p * (1 - lr * decay) - lr * (m / (1 - b1**t)) / root

        return [jax.tree.map(update, params, m, v), stats, m, v, t], loss

    return step
