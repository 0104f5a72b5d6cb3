"""JAX on a GPU: the whole step jitted, its state donated, the factors of products rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import jax
from gpu_device import PRECISION
from system_jax import prepare as prepare_anywhere
from systems import Job, Running


def prepare(job: Job) -> Running:
    if jax.default_backend() != "gpu":
        raise RuntimeError("JAX finds no GPU")
    jax.config.update("jax_default_matmul_precision", PRECISION)
    return Running(prepare_anywhere(job).step, facts=facts)  # each step waits: 10 µs, in tens of milliseconds


def facts() -> dict[str, Any]:
    return {"device_bytes": jax.devices()[0].memory_stats()["peak_bytes_in_use"]}
