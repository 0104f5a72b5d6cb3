"""The systems that are compared, and what a process that runs one is given and gives back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from workloads import FLOAT32, MODES, Arrays, Workload

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("graphc", "passes", "kernels", "models")  # folders of graphc's own code
TURN = 0.4  # seconds that a system runs before the next one does


@dataclass(frozen=True)
class Job:
    """``folder`` is the system's own: what it keeps there, a later process finds. ``model`` is an ONNX file."""

    workload: Workload
    mode: str
    inputs: Arrays
    labels: np.ndarray | None
    weights: Mapping[str, np.ndarray]
    model: Path
    folder: Path
    threads: int


@dataclass(frozen=True)
class Running:
    """``step()`` runs once over the job's data and returns the loss or the logits. ``keep()`` writes to the folder what
    the system does not keep by itself; ``facts()``: what else it knows of itself; ``profile(steps)``: its kernels with
    their seconds, FLOP and bytes. ``wait()`` returns when all steps are done."""

    step: Callable[[], Any]
    keep: Callable[[], object] = lambda: None
    facts: Callable[[], dict[str, Any]] = dict
    profile: Callable[[int], list[dict[str, Any]]] = lambda steps: []
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class System:
    """``module``.prepare(job, **options) → `Running`, after ``package`` was imported; ``narrow`` is the module for
    workloads of bfloat16, "" where the system has nothing for them.

    ``variants``: settings of the environment between which a short calibration chooses for each workload.
    """

    module: str
    package: str
    modes: tuple[str, ...] = MODES
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: {"": {}})
    optional: bool = False  # only when it is asked for by name
    onnx: bool = False  # runs the model of an ONNX file, which `system_onnx` exports
    device: str = "cpu"
    narrow: str = ""

    def module_for(self, work: Workload) -> str:
        return self.module if work.precision == FLOAT32 else self.narrow

    def runs(self, work: Workload, mode: str) -> bool:
        return mode in self.modes and bool(self.module_for(work))

    def missing(self) -> list[str]:
        return [p for p in (self.package, *self.needs) if p != "graphc" and find_spec(p) is None]


def xla(fusion: str) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_cpu_experimental_ynn_fusion_type={fusion}"}


# XLA's library fusions help some workloads and cost others.
XLA = {
    "": {},
    "fusion of products": xla("LIBRARY_FUSION_TYPE_DOT"),
    "single products": xla("LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
}
NO_CACHE = {"": {"JAX_ENABLE_COMPILATION_CACHE": "false"}}  # the machine that a file is shipped to has none
INFER = ("infer",)
EXPORT = ("torch", "onnx", "onnxscript")

SYSTEMS = {
    "graphc": System("system_graphc", "graphc", narrow="system_graphc"),
    "torch": System("system_torch", "torch", narrow="system_torch_bf16"),
    "torch-compile": System("system_torch", "torch", options={"style": "compile"}, narrow="system_torch_bf16"),
    "torch-max-autotune": System("system_torch", "torch", options={"style": "max-autotune"}, optional=True),
    "torch-aoti": System("system_torch_export", "torch", INFER, {"style": "aoti"}, optional=True),
    "jax": System("system_jax", "jax", variants=XLA, narrow="system_jax_bf16"),
    "torch-export": System("system_torch_export", "torch", INFER, {"style": "export"}, optional=True),
    "jax-export": System("system_jax_export", "jax", INFER, variants=NO_CACHE, optional=True),
    "onnxruntime": System("system_onnx", "onnxruntime", INFER, {"runtime": "onnxruntime"}, EXPORT, onnx=True),
    "openvino": System(
        "system_onnx", "openvino", INFER, {"runtime": "openvino"}, EXPORT, onnx=True, narrow="system_onnx"
    ),
    "machine": System("system_machine", "graphc", modes=(), narrow="system_machine"),
    "gpu-graphc": System("system_gpu_graphc", "graphc", device="gpu"),
    "gpu-graphc-own": System("system_gpu_graphc", "graphc", options={"libraries": "off"}, device="gpu"),
    "gpu-torch": System("system_gpu_torch", "torch", device="gpu"),
    "gpu-torch-compile": System("system_gpu_torch", "torch", options={"style": "compile"}, device="gpu"),
    "gpu-torch-max-autotune": System("system_gpu_torch", "torch", options={"style": "max-autotune"}, device="gpu"),
    "gpu-jax": System("system_gpu_jax", "jax", device="gpu"),
    "gpu-machine": System("system_gpu_machine", "graphc", modes=(), device="gpu"),
}
BASE = "graphc"  # what the others are divided by

# glibc keeps large blocks instead of returning them to the system: up to 1.5 times for PyTorch and JAX.
MALLOC = ("hugetlb=1", "mmap_threshold=4294967296", "trim_threshold=8589934592")
# Where each system keeps what it compiled.
CACHES = ("GRAPHC_CACHE", "TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")


def environment(folder: Path, threads: int, variant: Mapping[str, str]) -> dict[str, str]:
    """The same for all systems."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GRAPHC_THREADS"), str(threads))
    keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    malloc = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{setting}" for setting in MALLOC)}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    return os.environ | counts | keep_all | malloc | path | dict.fromkeys(CACHES, str(folder)) | variant


@cache
def identity(name: str, narrow: bool = False) -> str:
    """Changes when the system does, so that what an older one compiled is not taken for its work."""
    system = SYSTEMS[name]
    files = [HERE / f"{system.module}.py", *sorted(HERE.glob(f"{system.module.replace('system', 'peers')}*.py"))]
    files += [HERE / f"{system.narrow}.py"] if narrow and system.narrow != system.module else []
    if system.package == "graphc":
        files += sorted(f for part in PARTS for f in (ROOT / part).rglob("*.py"))
        version = ""
    else:
        version = metadata.version(system.package)
    digest = hashlib.sha256(f"{version} {system.options}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
