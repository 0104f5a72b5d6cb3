"""Machine code for GPUs, without one: the kernels of the six models' training steps, compiled by NVRTC as they are
shipped, keep their values in registers and access memory 16 bytes at a time."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from graphc.config import settings
from graphc.kernels.cuda import nvrtc
from graphc.kernels.cuda.build import OPTIONS, Compiled
from graphc.kernels.cuda.cubin import Usage, usage
from graphc.kernels.cuda.dialect import source_of
from graphc.kernels.cuda.target import ARCHITECTURES, CudaTarget
from graphc.kernels.cuda.threads import shared_out
from graphc.loop import Kernel, LoadWide, StoreWide

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import cuda_kernels
from gpu_workloads import LARGE
from workloads import WORKLOADS, Workload

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")

# The models at the sizes at which people train them, a layer of each.
MODELS: list[Workload] = [*(w for w in LARGE.values() if w.family != "resnet"), WORKLOADS["resnet18"]]
STEPS = [*((work, "bfloat16") for work in MODELS), (LARGE["gpt2-small"], "float32")]
REGISTERS = 65536  # of a processor, for all threads of its blocks
SPILLED = 64  # bytes of a thread


def shallow(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with one layer."""
    layers = ("n_layer", "num_hidden_layers")
    return {
        key: shallow(value) if isinstance(value, Mapping) else 1 if key in layers else value
        for key, value in config.items()
    }


@dataclass(frozen=True)
class Made:
    """A kernel's machine code for one architecture, and what is in it."""

    kernel: Kernel
    aligned: frozenset[str]
    compiled: Compiled
    usage: Usage

    def __str__(self) -> str:
        return f"{self.kernel.name}: {self.usage}"


@pytest.fixture(scope="module")
def kernels() -> list[tuple[Kernel, frozenset[str]]]:
    """The kernels of all steps, one of those whose texts differ in numbers alone."""
    plans = [cuda_kernels.planned(replace(work, config=shallow(work.config)), factors) for work, factors in STEPS]
    distinct = {}
    for kernel, aligned in zip(*cuda_kernels.kernels(plans), strict=True):
        text = source_of(shared_out(kernel, aligned, CudaTarget().shared_bytes), "k")
        distinct.setdefault(re.sub(r"\d+", "0", re.sub(r"//.*", "", text)), (kernel, aligned))
    return list(distinct.values())


@pytest.fixture(scope="module", params=range(len(ARCHITECTURES)), ids=ARCHITECTURES.__getitem__)
def made(request: pytest.FixtureRequest, kernels: list[tuple[Kernel, frozenset[str]]]) -> list[Made]:
    """Architectures take turns: bench/cuda_kernels.py compiles all kernels for all."""
    arch = ARCHITECTURES[request.param]
    turn, aligned = zip(*kernels[request.param :: len(ARCHITECTURES)], strict=True)
    compiled = cuda_kernels.cubins(turn, aligned, arch, settings().cache)
    return [Made(k, a, c, usage(c.cubins[arch])) for k, a, c in zip(turn, aligned, compiled, strict=True)]


def test_a_block_fits_a_processor(made: list[Made]) -> None:
    for m in made:
        assert -(-m.usage.registers // 8) * 8 * m.compiled.grid.threads <= REGISTERS, m


def test_registers_are_not_spilled(made: list[Made]) -> None:
    assert [str(m) for m in made if m.usage.stack > SPILLED] == []
    assert sum(m.usage.local > 0 for m in made) <= len(made) // 10


def test_wide_accesses_are_wide(made: list[Made]) -> None:
    """No store is taken apart, and where the text loads 16 bytes, so does the machine."""
    for m in made:
        loads, stores = (cuda_kernels.widths(m.kernel, m.aligned, kind) for kind in (LoadWide, StoreWide))
        assert stores <= m.usage.stores.keys(), m
        assert max(loads, default=0) < 16 or 16 in m.usage.loads, m


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("wide", "width"), [("float", 4), ("float2", 8), ("float4", 16), ("short", 2), ("char", 1)])
def test_widths_are_read_from_the_instructions(arch: str, wide: str, width: int) -> None:
    text = f'extern "C" __global__ void k(const {wide} *x, {wide} *y) {{ y[threadIdx.x] = x[threadIdx.x]; }}'
    found = usage(nvrtc.compile_cubin(text, arch, {}, OPTIONS)[0])
    assert (found.loads, found.stores, found.local) == ({width: 1}, {width: 1}, 0)
