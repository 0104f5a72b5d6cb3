"""jax.export: StableHLO with the weights in it, in a file that XLA compiles when it is first called. Inference only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from systems import Job, Running


def prepare(job: Job) -> Running:
    path = job.folder / "exported.jax"
    if not path.exists():
        path.write_bytes(exported(job))
    run = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    inputs = [jnp.asarray(a) for a in images_last(job)]
    return Running(lambda: run(*inputs).block_until_ready())


def exported(job: Job) -> bytes:
    import system_jax
    from peers_jax import from_published

    weights = {n: jnp.array(from_published(job.workload.family, n, job.weights[n])) for n in job.weights}
    forward = system_jax.model(job.workload, False)
    inputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in images_last(job)]
    return bytes(export.export(jax.jit(lambda *data: forward(weights, *data)[0]))(*inputs).serialize())


def images_last(job: Job) -> list[np.ndarray]:
    """The inputs, images with their channels last."""
    return [a.transpose(0, 2, 3, 1) if name == "pixel_values" else a for name, a in job.inputs.items()]
