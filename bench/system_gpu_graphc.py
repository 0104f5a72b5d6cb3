"""graphc on a GPU: an entry per workload and mode, its arguments on the device."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import system_graphc
from gpu_device import PRECISION, architecture, device, is_dry
from system_graphc import ARTIFACT, profile
from systems import Job, Running

import graphc as gc

PROCESS = ExitStack()  # for as long as the process lives


def imports(folder: Path) -> None:
    PROCESS.enter_context(device())
    import_module("cupy")
    system_graphc.imports(folder)


def prepare(job: Job, libraries: str = "auto") -> Running:
    """``libraries``: whether calls of NVIDIA's are taken, where they are faster; "off": all kernels are our own."""
    cupy = import_module("cupy")
    artifact = job.folder / ARTIFACT
    if artifact.exists():
        program = gc.load(artifact)
    else:
        from peers_graphc import entry  # here, since a program that is loaded needs no model

        precision = "float32" if is_dry() else PRECISION
        with gc.nn.init.skipped():  # the weights are given, to all systems
            made = entry(job.workload, job.mode)
        program = gc.compile(made, target="cuda", arch=architecture(), precision=precision, libraries=libraries)
        program.load_state_dict(dict(job.weights), strict=False)
    run, result = program.entries[job.mode], {"train": "loss", "infer": "logits"}[job.mode]
    host = job.inputs if job.mode == "infer" or job.labels is None else job.inputs | {"labels": job.labels}
    arrays = host if is_dry() else {name: cupy.asarray(a) for name, a in host.items()}

    def facts() -> dict[str, Any]:
        return {
            "kernels": len(run.kernels),
            "launches": sum(k.count for k in run.kernels),
            "device_bytes": run.memory.peak_bytes,
            # Beside the plan of a large model, a copy of the arena on the host and two looks at it take minutes.
            **({"measured_device_bytes": run.measured_peak_bytes(**arrays)} if is_dry() else {}),
        }

    def step() -> Any:
        out = run(**arrays)[result]
        return Fetched(out) if hasattr(out, "get") else out

    return Running(
        step=step,
        wait=lambda: cupy.cuda.get_current_stream().synchronize(),
        keep=lambda: program.save(artifact),
        facts=facts,
        profile=lambda steps: profile(run, arrays, steps),
    )


class Fetched:
    """A result on the device, which is copied where an array of NumPy is asked for."""

    def __init__(self, array: Any):
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array.get()
