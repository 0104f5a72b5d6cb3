"""JAX with products of bfloat16: what `system_jax` runs, with the model computed in bfloat16 but for batch norms.
Parameters, running statistics, losses and the optimizer stay float32 in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import peers_jax
import system_jax
from peers_jax import MODELS, Config, Params
from systems import Job, Running


def prepare(job: Job) -> Running:
    family, train = job.workload.family, job.mode == "train"
    MODELS[family] = in_bfloat16(MODELS[family], train)  # in this process, which runs no other
    peers_jax.BatchNorm = BatchNorm  # type: ignore[misc]
    if not train:
        job = replace(job, weights={n: as_type(jnp.bfloat16, jnp.asarray(job.weights[n])) for n in job.weights})
    return system_jax.prepare(job)


def in_bfloat16(model: Callable[..., Any], train: bool) -> Callable[..., Any]:
    """``model`` with parameters and inputs as bfloat16, and its results as float32."""

    def call(p: Params, c: Config, *data: Any) -> Any:
        narrow = {n: a if train and ".running_" in n else as_type(jnp.bfloat16, a) for n, a in p.items()}
        return as_type(jnp.float32, model(narrow, c, *as_type(jnp.bfloat16, data)))

    return call


class BatchNorm(peers_jax.BatchNorm):
    """With statistics in float32, as libraries have it: those of bfloat16 change the loss by 7 %."""

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        y: jax.Array = super().__call__(name, x.astype(jnp.float32))
        return y.astype(jnp.bfloat16)


def as_type(dtype: Any, tree: Any) -> Any:
    """All arrays of floats in ``tree`` as ``dtype``."""

    def convert(x: Any) -> Any:
        return x.astype(dtype) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(convert, tree)
