"""JAX with products of bfloat16: what `system_jax` runs, with the model computed in bfloat16. Parameters, running
statistics, losses and the optimizer stay float32 in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import system_jax
from peers_jax import MODELS, Config, Params
from systems import Job, Running


def prepare(job: Job) -> Running:
    family, train = job.workload.family, job.mode == "train"
    MODELS[family] = in_bfloat16(MODELS[family], train)  # for this process, which runs no other
    if not train:
        job = replace(job, weights={n: as_type(jnp.bfloat16, jnp.asarray(job.weights[n])) for n in job.weights})
    return system_jax.prepare(job)


def in_bfloat16(model: Callable[..., Any], train: bool) -> Callable[..., Any]:
    """``model`` with parameters and inputs as bfloat16, and its results as float32."""

    def call(p: Params, c: Config, *data: Any) -> Any:
        narrow = {n: a if train and ".running_" in n else as_type(jnp.bfloat16, a) for n, a in p.items()}
        return as_type(jnp.float32, model(narrow, c, *as_type(jnp.bfloat16, data)))

    return call


def as_type(dtype: Any, tree: Any) -> Any:
    """All arrays of floats in ``tree`` as ``dtype``."""

    def convert(x: Any) -> Any:
        return x.astype(dtype) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(convert, tree)
