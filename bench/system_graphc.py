"""graphc: one entry per workload and mode, compiled or loaded from the artifact that an earlier process left."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from systems import Job, Running

import graphc as gc

ARTIFACT = "program.gcx"


def imports(folder: Path) -> None:
    """The compiler and the model, where they are needed: ``import graphc`` imports neither."""
    if not (folder / ARTIFACT).exists():
        import_module("graphc.driver")
        import_module("peers_graphc")


def prepare(job: Job) -> Running:
    artifact = job.folder / ARTIFACT
    if artifact.exists():
        program = gc.load(artifact, threads=job.threads)
    else:
        from peers_graphc import entry  # here, since a program that is loaded needs no model

        with gc.nn.init.skipped():  # the weights are given, to all systems
            made = entry(job.workload, job.mode)
        program = gc.compile(made, threads=job.threads, precision=job.workload.precision)
        program.load_state_dict(dict(job.weights), strict=False)
    run, result = program.entries[job.mode], {"train": "loss", "infer": "logits"}[job.mode]
    arrays = job.inputs if job.mode == "infer" or job.labels is None else job.inputs | {"labels": job.labels}

    def facts() -> dict[str, Any]:
        return {
            "kernels": len(run.kernels),
            "launches": sum(k.count for k in run.kernels),
            "state_bytes": run.memory.state_bytes,
            "plan": {"lower_bound": run.memory.lower_bound_bytes, "arena": run.memory.arena_bytes},
            "planned_peak_bytes": run.memory.peak_bytes,
            "measured_peak_bytes": run.measured_peak_bytes(**arrays),
        }

    return Running(
        step=lambda: run(**arrays)[result],
        keep=lambda: program.save(artifact),
        facts=facts,
        profile=lambda steps: profile(run, arrays, steps),
    )


# Where the time goes -------------------------------------------------------------------------------------------------


def profile(run: Any, arrays: dict[str, np.ndarray], steps: int) -> list[dict[str, Any]]:
    """Each kernel with its class, launches, seconds (the median over ``steps``), FLOP and bytes of all its launches."""
    seconds = 1e-9 * np.median([run.timed(**arrays)[1] for _ in range(steps)], axis=0)
    return [
        {
            "class": kernel_class(kernel),
            "name": kernel.name,
            "launches": kernel.count,
            "seconds": float(seconds[list(launches)].sum()),
            "flops": kernel.flops,
            "bytes": kernel.bytes,
            "lines": [loc.source() for loc in kernel.lines],
        }
        for kernel, launches in run.launches().items()
    ]


def kernel_class(kernel: Any) -> str:
    """ "optimizer" where a kernel serves only the update; else the kind of loop that its name begins with."""
    if kernel.lines and all("opt.update(" in loc.source() for loc in kernel.lines):
        return "optimizer"
    return str(kernel.name).split("_")[0]
