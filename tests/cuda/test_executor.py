"""Programs on a GPU, on a strict fake of CuPy whose kernels run in the shim: results, order, memory, errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from golden_artifacts import loops
from shim import COMPILER, MISSING

import graphc as gc
from graphc import machine, nn, optim, runtime_cublaslt, runtime_cudnn
from graphc.cli import main
from graphc.errors import GraphcError
from graphc.runtime import Program
from graphc.runtime_cuda import CudaProgram
from graphc.runtime_cuda_device import found
from graphc.runtime_cuda_walk import Captured

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cupy() -> Iterator[ModuleType]:
    with fake_cupy.installed() as fake:
        yield fake


class Net(nn.Module):
    def __init__(self) -> None:
        self.embed = nn.Embedding(7, 8)
        self.fc = nn.Linear(8, 7)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc(gc.tanh(self.embed(x)))


def entries() -> tuple[gc.Entry, ...]:
    gc.seed(0)
    net = Net()
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((4,), "int32"), y=gc.spec((4,), "int32"))
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    @gc.entry(x=gc.spec((4,), "int32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"logits": net(x)}

    return train, infer


def batches(count: int) -> list[dict[str, np.ndarray]]:
    return [{name: RNG.integers(0, 7, 4).astype(np.int32) for name in "xy"} for _ in range(count)]


def pair() -> tuple[Any, CudaProgram]:
    """The same program for this machine's processor and for a GPU."""
    on_cpu, on_gpu = gc.compile(*entries(), threads=1), gc.compile(*entries(), target="cuda", arch="sm_90")
    assert isinstance(on_gpu, CudaProgram)
    return on_cpu, on_gpu


@gc.entry(x=gc.spec((3, 40), "float32"))
def scale(x: gc.Tensor) -> dict[str, gc.Tensor]:
    """Without checks, so that nothing has to be looked at."""
    return {"y": x * 2.0 + 1.0, "total": gc.sum(x)}


def for_a_gpu(*made: gc.Entry) -> CudaProgram:
    program = gc.compile(*made, target="cuda", arch="sm_90")
    assert isinstance(program, CudaProgram)
    return program


def refused(program: CudaProgram, code: str, **arguments: Any) -> str:
    with pytest.raises(GraphcError) as caught:
        next(iter(program.entries.values()))(**arguments)
    assert caught.value.code == code
    return str(caught.value)


X = np.arange(120, dtype=np.float32).reshape(3, 40)

# Steps ---------------------------------------------------------------------------------------------------------------


def test_training_is_that_of_the_processor() -> None:
    on_cpu, on_gpu = gc.compile(*entries(), threads=1), for_a_gpu(*entries())
    for batch in batches(3):
        np.testing.assert_allclose(on_gpu.train(**batch)["loss"], on_cpu.train(**batch)["loss"], rtol=1e-5)
    for name, value in on_cpu.state.items():
        np.testing.assert_allclose(on_gpu.state[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    x = batches(1)[0]["x"]
    np.testing.assert_allclose(on_gpu.infer(x=x)["logits"], on_cpu.infer(x=x)["logits"], rtol=1e-4, atol=1e-5)


def test_a_step_is_captured_once() -> None:
    program = for_a_gpu(*entries())
    for batch in batches(2):
        program.train(**batch)
        parts = [part for (part,) in program.train._ready.walk.parts]
        assert all(isinstance(part, Captured) for part in parts)
        graphs = [part.graph for part in parts]
    program.train(**batch)
    assert [part.graph for part in parts] == graphs
    assert sum(len(g.work) for g in graphs) == len(program.train._record.launches)


def test_loops_and_branches() -> None:
    on_cpu, on_gpu = gc.compile(*loops(), threads=1), for_a_gpu(*loops())
    for sign in (1, -1):
        xs = np.linspace(-1, 2, 20, dtype=np.float32).reshape(5, 4) * sign
        want, got = on_cpu.run(xs=xs), on_gpu.run(xs=xs)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(on_gpu.state["total"], on_cpu.state["total"], rtol=1e-5)


def test_what_depends_on_state_alone_runs_when_that_has_changed() -> None:
    weight = gc.state(np.full((40, 5), 0.1, np.float32), name="weight")

    @gc.entry(x=gc.spec((3, 40), "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": x @ gc.cumsum(weight, axis=1)}

    @gc.entry()
    def grow() -> dict[str, gc.Tensor]:
        weight.assign(weight + 1.0)
        return {}

    on_cpu, on_gpu = gc.compile(infer, grow, threads=1), for_a_gpu(infer, grow)
    record = on_gpu.infer._record
    assert 0 < record.prepared < len(record.launches)
    prepared = []
    for change in (None, None, "call", None, "write", None):
        for program in (on_cpu, on_gpu):
            if change == "call":
                program.grow()
            if change == "write":
                program.state["weight"] = np.ones((40, 5), np.float32)
        got, times = on_gpu.infer.timed(x=X)
        np.testing.assert_allclose(got["y"], on_cpu.infer(x=X)["y"], rtol=1e-5)
        prepared.append(bool(times[: record.prepared].any()))
    assert prepared == [True, False, True, False, True, False]


def test_times_of_launches() -> None:
    program = for_a_gpu(scale)
    outputs, nanoseconds = program.scale.timed(x=X)
    np.testing.assert_allclose(outputs["y"], X * 2 + 1)
    assert nanoseconds.tolist() == [1000] * len(program.scale._record.launches)


def test_measured_memory_is_the_predicted() -> None:
    program = for_a_gpu(*entries())
    before = dict(program.state)
    assert program.train.measured_peak_bytes() == program.train.memory.peak_bytes
    for name, value in before.items():
        np.testing.assert_array_equal(program.state[name], value)


# Where arrays are ----------------------------------------------------------------------------------------------------


class Tensor:
    """A tensor of another library on a device: ready on the stream that it is asked for."""

    def __init__(self, array: Any, device: int = 2):
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: int) -> Any:
        assert stream != 0
        return self.array


class OldTensor:
    def __init__(self, array: Any):
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.data.ptr, False), "version": 3
        }  # fmt: skip
        self.array = array


@pytest.mark.parametrize("wrap", [lambda a: a, Tensor, OldTensor])
def test_what_comes_from_the_device_goes_back_there(wrap: Any, cupy: ModuleType) -> None:
    program = for_a_gpu(scale)
    outputs = program.scale(x=wrap(fake_cupy.array(X)))
    assert type(outputs["y"]) is type(outputs["total"]) is cupy.ndarray
    stream = program.on_device.device.stream
    assert stream.queue  # the call has not waited
    np.testing.assert_allclose(outputs["y"].get(), X * 2 + 1)
    np.testing.assert_allclose(outputs["total"].get(), X.sum())
    np.testing.assert_allclose(program.scale(x=outputs["y"])["y"].get(), (X * 2 + 1) * 2 + 1)


def test_what_comes_from_the_host_goes_back_there() -> None:
    program = for_a_gpu(scale)
    first, second = program.scale(x=X)["y"], program.scale(x=-X)["y"]
    np.testing.assert_allclose(first, X * 2 + 1)
    np.testing.assert_allclose(second, 1 - X * 2)


def test_batches_are_sent_ahead() -> None:
    program, data = for_a_gpu(*entries()), batches(5)
    one_by_one = [program.train(**batch)["loss"] for batch in data]
    ahead = [out["loss"] for out in for_a_gpu(*entries()).train.each(iter(data))]
    np.testing.assert_array_equal(ahead, one_by_one)
    assert list(program.train.each([])) == []
    again = for_a_gpu(*entries())
    mixed = ({"x": fake_cupy.array(b["x"]), "y": b["y"]} for b in data)
    np.testing.assert_array_equal([out["loss"].get() for out in again.train.each(mixed)], one_by_one)


def test_arrays_that_do_not_fit() -> None:
    program = for_a_gpu(scale)
    assert "must have shape (3, 40), but has (40, 3)" in refused(program, "GC0403", x=fake_cupy.array(X.T))
    assert "but is float64[3,40]" in refused(program, "GC0402", x=fake_cupy.array(X.astype(np.float64)))
    assert "but is Tensor" in refused(program, "GC0402", x=Tensor(fake_cupy.array(X), device=1))
    other = fake_cupy.array(X)
    other.device.id = 1
    assert "argument 'x' is on GPU 1, and the program on GPU 0" in refused(program, "GC0404", x=other)


# Checks and state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_device", [False, True])
def test_a_failed_check_names_the_line_and_leaves_the_state(on_device: bool) -> None:
    program, (batch,) = for_a_gpu(*entries()), batches(1)
    program.train(**batch)
    before = dict(program.state)
    wrong = batch | {"x": np.full(4, 7, np.int32)}
    text = refused(program, "GC0420", **({k: fake_cupy.array(a) for k, a in wrong.items()} if on_device else wrong))
    assert "test_executor.py" in text
    assert "the state is unchanged" in text
    for name, value in before.items():
        np.testing.assert_array_equal(program.state[name], value)
    program.train(**batch)


def test_state_is_read_as_copies_and_written_by_name() -> None:
    program = for_a_gpu(*entries())
    for _ in range(2):  # before the first step, and after it
        with pytest.raises(ValueError, match="read-only"):
            program.state["fc.bias"][0] = 1
        program.state["fc.bias"] = np.full(7, 2, np.float32)
        assert (program.state["fc.bias"] == 2).all()
        with pytest.raises(GraphcError, match="GC0802"):
            program.state["fc.bias"] = np.zeros(3, np.float32)
        program.infer(x=np.zeros(4, np.int32))


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    program, data = for_a_gpu(*entries()), batches(3)
    program.train(**data[0])
    program.save_state(tmp_path / "state.safetensors")
    want = [program.train(**batch)["loss"] for batch in data[1:]]
    again = for_a_gpu(*entries())
    again.load_state(tmp_path / "state.safetensors")
    assert [again.train(**batch)["loss"] for batch in data[1:]] == want


def test_a_saved_program_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, (batch,) = for_a_gpu(*entries()), batches(1)
    program.train(**batch)
    program.save(tmp_path / "net.gcx")
    loaded = gc.load(tmp_path / "net.gcx", trust=True)
    assert isinstance(loaded, CudaProgram)
    assert loaded.train(**batch)["loss"] == program.train(**batch)["loss"]


# What is missing -----------------------------------------------------------------------------------------------------


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    program, find = for_a_gpu(scale), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "cupy" else find(name, *a))
    text = refused(program, "GC0508", x=X)
    assert "CuPy is not installed" in text
    assert "pip install" in text


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, cupy: ModuleType) -> None:
    def none() -> int:
        raise fake_cupy.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", none)
    assert "CuPy finds no GPU (cudaErrorNoDevice: " in refused(for_a_gpu(scale), "GC0508", x=X)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert "CuPy finds no GPU\n" in refused(for_a_gpu(scale), "GC0508", x=X)


def test_the_target_that_fits_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cupy: ModuleType) -> None:
    program = gc.compile(scale, target=["cuda", "cpu"], arch="sm_90", threads=1)
    assert type(program) is CudaProgram
    program.save(tmp_path / "net.gcx")
    monkeypatch.setattr(fake_cupy.Device, "capability", "80")
    loaded = gc.load(tmp_path / "net.gcx", trust=True, threads=1)
    assert type(loaded) is Program
    np.testing.assert_allclose(loaded.scale(x=X)["y"], X * 2 + 1)


def test_without_code_for_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.Device, "capability", "120")
    text = refused(for_a_gpu(scale), "GC0505", x=X)
    assert "the artifact has code for sm_90; this GPU is sm_120" in text
    assert "--target cuda --arch sm_120" in text


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy, "CAPACITY", 1000)
    assert "of the GPU's memory, and" in refused(for_a_gpu(scale), "GC0702", x=X)


def test_graphc_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(machine.SIZES, "cuda", (16, (1 << 9, 1 << 10)))
    monkeypatch.setattr(machine, "SECONDS", 0.0)
    for_a_gpu(scale).save(tmp_path / "net.gcx")
    assert main(["bench", str(tmp_path / "net.gcx"), "--steps", "1"]) == 0
    assert "kernels on a GPU" in capsys.readouterr().out


def test_what_doctor_shows(monkeypatch: pytest.MonkeyPatch, cupy: ModuleType) -> None:
    assert found() == {
        "cuda": "Fake GPU (sm_90, 1 GiB, 4 multiprocessors)",
        "cupy": "14.2.0, for CUDA of driver 13.0 and runtime 13.0",
        "cublaslt": f"not installed; {runtime_cublaslt.INSTALL}",
        "cudnn": f"not installed; {runtime_cudnn.INSTALL}",
    }
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert found()["cuda"].startswith("CuPy finds no GPU; pip install")
