"""Programs for GPUs, as far as they go without one: compiled by NVRTC, looked at, saved, read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.artifact import Artifact
from graphc.errors import GraphcError
from graphc.kernels.cuda import nvrtc
from graphc.kernels.cuda.build import OPTIONS, headers
from graphc.kernels.cuda.cubin import usage

pytestmark = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")


class Net(nn.Module):
    def __init__(self) -> None:
        self.inner = nn.Linear(8, 6)
        self.norm = nn.LayerNorm(6)
        self.outer = nn.Linear(6, 4)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.outer(self.norm(gc.gelu(self.inner(x))))


net = Net()
opt = optim.SGD(net.parameters(), lr=0.1)


@gc.entry(x=gc.spec((5, 8), "float32"), y=gc.spec((5,), "int32"))
def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
    loss = gc.cross_entropy(net(x), y)
    opt.update(gc.grad(loss, net.parameters()))
    return {"loss": loss}


@gc.entry(x=gc.spec((5, 8), "float32"))
def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
    return {"y": net(x)}


@gc.entry(x=gc.spec((64, 256), "float32"))
def soften(x: gc.Tensor) -> dict[str, gc.Tensor]:
    return {"y": gc.softmax(x)}


DATA = {"x": np.ones((5, 8), np.float32), "y": np.zeros(5, np.int32)}


def test_cubins_and_sources_are_in_the_file(tmp_path: Path) -> None:
    program = gc.compile(infer, target="cuda", arch=["sm_80", "sm_90"])
    program.save(tmp_path / "net.gcx")
    artifact = Artifact.read(tmp_path / "net.gcx")
    manifest = artifact.manifest
    assert (manifest.target.name, manifest.target.features, manifest.team) == ("cuda", ("sm_80", "sm_90"), "")
    for kernel in manifest.kernels:
        assert all(bytes(artifact.members[cubin]).startswith(b"\x7fELF") for cubin in kernel.cubins.values())
        assert kernel.grid is not None
        assert f"__launch_bounds__({kernel.grid.threads}) {kernel.symbol}(" in artifact.text(kernel.source)
    assert "source/graphc.cuh" in artifact.members
    assert all(launch.blocks >= 1 for entry in manifest.entries for launch in entry.launches)


def test_running_without_a_gpu_is_one_error() -> None:
    program = gc.compile(train, target="cuda", arch="sm_90")
    assert program.train.memory.peak_bytes > 0
    assert sum(k.count for k in program.train.kernels) == len(program.code.manifest.entries[0].launches)
    with pytest.raises(GraphcError, match="GC0508: this program runs on an NVIDIA GPU"):
        program.train(**DATA)


def test_one_file_for_both(tmp_path: Path) -> None:
    program = gc.compile(train, target=["cpu", "cuda"], arch="sm_90")
    program.save(tmp_path / "net.gcx")
    loaded = gc.load(tmp_path / "net.gcx")
    assert [b.target.name for b in Artifact.read(tmp_path / "net.gcx").manifest.builds] == ["cuda", "cpu"]
    assert loaded.train(**DATA)["loss"] == program.train(**DATA)["loss"]


def test_equal_compiles_give_equal_files() -> None:
    first, second = (gc.compile(infer, target="cuda", arch="sm_80", cache=cache).artifact for cache in (True, False))
    assert first.manifest.digests == second.manifest.digests


def test_what_is_asked_for_must_exist() -> None:
    with pytest.raises(GraphcError, match=r"GC0607.*'gpu'"):
        gc.compile(infer, target="gpu")
    with pytest.raises(GraphcError, match=r"GC0607.*'90'"):
        gc.compile(infer, target="cuda", arch="90")


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    with pytest.raises(GraphcError, match="GC0011"):
        gc.compile(infer, target="cuda")


def test_wide_accesses_are_one_instruction() -> None:
    """A row's sum and what is made with it: every load and store of the row takes 16 bytes."""
    program = gc.compile(soften, target="cuda", arch="sm_90")
    (source,) = (k.source for k in program.soften.kernels)
    ptx = nvrtc.compile_ptx(source, "compute_90", headers(), OPTIONS)
    assert (
        ptx.count("ld.global.v4.f32") + ptx.count("ld.global.v4.b32") == 2
    )  # the third pass has exponentials in shared memory
    assert ptx.count("st.global.v4.f32") + ptx.count("st.global.v4.b32") == 1
    assert not re.search(r"(ld|st)\.global\.[a-z0-9]+ ", ptx)


def test_registers_and_stack_are_read_from_the_cubin() -> None:
    """As the compiler's own log says, for a kernel that spills and one that does not."""
    body = 'extern "C" __global__ void k(float *x, int n) {{ {} }}'
    for text in ("x[0] = n;", "float a[40]; for (int i = 0; i < 40; i++) a[i] = x[i]; x[0] = a[n];"):
        cubin, log = nvrtc.compile_cubin(body.format(text), "sm_90", {}, ("--ptxas-options=-v",))
        found = usage(cubin)
        assert f"Used {found.registers} registers" in log
        assert f"{found.stack} bytes stack frame" in log
