"""Convolutions by cuDNN, on a stand-in for it: which are asked for, what comes out, what is chosen, what is refused."""

from __future__ import annotations

import gc as memory
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_cublaslt
import fake_cudnn
import fake_cupy
import numpy as np
import pytest
from fake_cudnn import Dnn
from shim import COMPILER, MISSING

import graphc as gc
from graphc import driver_libraries, nn, optim, runtime_cudnn
from graphc.artifact import Artifact
from graphc.convolution import Convolution, Tensor, is_sound_convolution
from graphc.errors import GraphcError
from graphc.nn.conv import conv2d
from graphc.runtime import Program
from graphc.runtime_cublaslt import Algorithm
from graphc.runtime_cuda import CudaProgram
from graphc.runtime_cuda_device import Device, found
from graphc.runtime_cudnn import Convolved, Library

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
RNG = np.random.default_rng(0)
Function = Callable[..., gc.Tensor]
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def cupy() -> Iterator[ModuleType]:
    with fake_cupy.installed() as fake:
        yield fake


@pytest.fixture(autouse=True)
def dnn(cupy: ModuleType) -> Iterator[Dnn]:
    with fake_cublaslt.installed(), fake_cudnn.installed() as stub:
        yield stub


def entry_of(function: Function, shapes: Shapes, dtype: str = "float32") -> gc.Entry:
    def convolve(**arrays: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": function(**arrays)}

    return gc.Entry(convolve, {name: gc.spec(shape, dtype) for name, shape in shapes.items()})


def for_a_gpu(*made: gc.Entry, libraries: str = "on", **options: Any) -> CudaProgram:
    program = gc.compile(*made, target="cuda", arch="sm_90", libraries=libraries, **options)
    assert isinstance(program, CudaProgram)
    return program


def convolutions(program: CudaProgram) -> list[Convolution]:
    return [k.convolution for k in program.code.manifest.kernels if k.convolution is not None]


def compared(made: gc.Entry, tolerance: float = 1e-5, **options: Any) -> CudaProgram:
    """The program of ``made``, whose first and second steps, the latter captured, are right."""
    program, plain = for_a_gpu(made, **options), gc.compile(made, threads=1)
    (entry,), (want_of,) = program.entries.values(), plain.entries.values()
    for _ in range(2):
        values = {n: RNG.standard_normal(t.shape).astype(t.dtype.numpy) for n, t in entry.specs.items()}
        got, want = entry(**values), want_of(**values)
        for name, value in want.items():
            wide = [np.asarray(a, np.float64) for a in (got[name], value)]
            np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance, err_msg=name)
    return program


# What is asked for ---------------------------------------------------------------------------------------------------

X, W = (2, 9, 10, 8), (16, 8, 3, 3)


def conv(x: gc.Tensor, w: gc.Tensor, **how: Any) -> gc.Tensor:
    """Channels last, as images are between the convolutions of a model."""
    return gc.permute_dims(conv2d(gc.permute_dims(x, (0, 3, 1, 2)), w, **how), (0, 2, 3, 1))


GEOMETRY: dict[str, tuple[Function, Shapes, str]] = {
    "plain": (lambda x, w: conv(x, w), {"x": X, "w": W}, "steps [1, 1], dilations [1, 1]"),
    "padded": (lambda x, w: conv(x, w, padding=1), {"x": X, "w": W}, "steps [1, 1], dilations [1, 1]"),
    "a stride": (lambda x, w: conv(x, w, stride=2, padding=1), {"x": X, "w": W}, "steps [2, 2], dilations [1, 1]"),
    "two strides": (lambda x, w: conv(x, w, stride=(2, 3)), {"x": X, "w": W}, "steps [2, 3], dilations [1, 1]"),
    "dilated": (lambda x, w: conv(x, w, dilation=2), {"x": X, "w": W}, "steps [1, 1], dilations [2, 2]"),
    "one image": (lambda x, w: conv(x, w), {"x": (1, *X[1:]), "w": W}, "steps [1, 1], dilations [1, 1]"),
    "three channels": (lambda x, w: conv(x, w), {"x": (2, 9, 10, 3), "w": (16, 3, 3, 3)}, "steps [1, 1]"),
    "a row": (lambda x, w: conv(x, w), {"x": X, "w": (16, 8, 1, 3)}, "steps [1, 1]"),
    "a column": (lambda x, w: conv(x, w), {"x": X, "w": (16, 8, 3, 1)}, "steps [1, 1]"),
    "one place": (lambda x, w: conv(x, w, stride=2), {"x": X, "w": (16, 8, 1, 1)}, "steps [1, 1]"),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry(name: str, dnn: Dnn) -> None:
    function, shapes, text = GEOMETRY[name]
    (call,) = convolutions(compared(entry_of(function, shapes)))
    assert str(call).splitlines()[1].startswith(text)
    assert call.kind == "forward"
    assert dnn.calls == 2
    assert dnn.faults == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types(dtype: str, dnn: Dnn) -> None:
    (call,) = convolutions(compared(entry_of(lambda x, w: conv(x, w), {"x": X, "w": W}, dtype), 3e-2))
    assert (call.x.dtype, call.y.dtype, call.sums) == (dtype, dtype, "float32")
    assert dnn.faults == []


Y, B = (2, 7, 8, 16), (16,)
FOLLOWS: dict[str, tuple[Function, str, Shapes]] = {
    "relu": (lambda x, w: gc.relu(conv(x, w)), "y = relu(x ⋆ w)", {}),
    "a bias": (lambda x, w, b: conv(x, w) + b, "y = x ⋆ w + bias", {"b": B}),
    "an array": (lambda x, w, r: conv(x, w) + r, "y = x ⋆ w + c", {"r": Y}),
    "all": (lambda x, w, b, r: gc.relu(conv(x, w) + b + r), "y = relu(x ⋆ w + c + bias)",
            {"b": B, "r": Y}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_is_done_by_the_way(name: str, dnn: Dnn) -> None:
    function, text, more = FOLLOWS[name]
    (call,) = convolutions(compared(entry_of(function, {"x": X, "w": W, **more})))
    assert str(call).splitlines()[0] == text
    assert dnn.faults == []


def test_what_the_library_does_not_know_is_a_kernel_of_our_own(dnn: Dnn) -> None:
    def function(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return gc.tanh(conv(x, w)) * 2

    program = compared(entry_of(function, {"x": X, "w": W}))
    (call,) = convolutions(program)
    assert str(call).startswith("y = x ⋆ w\n")
    assert [k.name.split("_")[-1] for k in program.code.manifest.kernels if "contract" in k.name] == [
        "filters", "product", "rest"
    ]  # fmt: skip
    assert dnn.faults == []


def test_what_no_library_has_is_our_own() -> None:
    def groups(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return conv(x, w, groups=2)

    assert not convolutions(compared(entry_of(groups, {"x": X, "w": (16, 4, 3, 3)})))
    assert not convolutions(compared(entry_of(lambda x, w: conv(x, w), {"x": X, "w": W}, "float64"), 1e-12))


# Programs ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=stride, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc(gc.mean(gc.relu(self.second(gc.relu(self.first(x)))), axis=(2, 3)))


def training(stride: int = 1) -> gc.Entry:
    gc.seed(0)
    net = Net(stride)
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((2, 3, 8, 8), "float32"), y=gc.spec((2,), "int32"))
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return train


def batch() -> dict[str, np.ndarray]:
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    return {"x": x, "y": RNG.integers(0, 5, 2).astype(np.int32)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_training_is_that_of_the_processor(precision: str, stride: int, dnn: Dnn) -> None:
    plain = gc.compile(training(stride), threads=1, precision=precision)
    program = for_a_gpu(training(stride), precision=precision)
    kinds = [call.kind for call in convolutions(program)]
    assert kinds.count("forward") >= 3  # two, and the gradient of an input
    assert kinds.count("filter") == (2 if precision == "float32" else 1)  # of three channels, none in 16 bits
    for data in (batch() for _ in range(3)):
        np.testing.assert_allclose(program.train(**data)["loss"], plain.train(**data)["loss"], rtol=1e-4)
    assert dnn.faults == []


def test_nothing_is_left_behind(dnn: Dnn) -> None:
    memory.collect()
    before = dnn.alive
    program = compared(convolved())
    assert dnn.alive > before
    del program
    memory.collect()
    assert dnn.alive == before


# The choice ----------------------------------------------------------------------------------------------------------


def convolved() -> gc.Entry:
    return entry_of(lambda x, w: gc.relu(conv(x, w)), {"x": X, "w": W})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Calls take half the time of our own kernel, the last of their plans a quarter; how many were compared."""
    counted: list[int] = []

    def seconds(self: driver_libraries.Rig, runs: Any) -> list[float]:
        for run in runs:
            run()
        self.device.stream.synchronize()
        counted.append(len(runs))
        if len(runs) == 1:  # our own, and then what copies filters or follows
            return [1.0 if len(counted) == 1 else 0.1]
        return [*[0.5] * (len(runs) - 1), 0.25]

    monkeypatch.setattr(driver_libraries.Rig, "seconds", seconds)
    monkeypatch.setattr(driver_libraries, "settings", lambda: SimpleNamespace(cache=tmp_path))
    return counted


def test_the_fastest_is_taken_and_kept(fast: list[int], dnn: Dnn, tmp_path: Path, monkeypatch: Any) -> None:
    program = compared(convolved(), libraries="auto")
    (kernel,) = (k for k in program.code.manifest.kernels if k.convolution)
    call = kernel.convolution
    assert call is not None
    assert (call.version, call.workspace_bytes, call.plan) == (fake_cudnn.VERSION, 0, "")
    assert kernel.object in program.code.manifest.builds[0].code
    assert b'"engine": 6' in program.code.members[kernel.object]
    measured = len(fast)
    assert for_a_gpu(convolved(), libraries="auto").code.digest == program.code.digest
    assert len(fast) == measured
    program.save(tmp_path / "net.gcx")
    monkeypatch.setattr(Convolved, "algorithms", None)  # the plan is in the file
    loaded = gc.load(tmp_path / "net.gcx", trust=True)
    values = {"x": np.ones(X, np.float32), "w": np.ones(W, np.float32)}
    assert (loaded.convolve(**values)["y"] == 72).all()
    assert dnn.faults == []


def test_another_version_chooses_itself(fast: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    program = for_a_gpu(convolved(), libraries="auto")
    monkeypatch.setattr(fake_cudnn, "VERSION", fake_cudnn.VERSION + 1)
    values = {"x": np.ones(X, np.float32), "w": np.ones(W, np.float32)}
    assert (program.convolve(**values)["y"] == 72).all()


def test_float32_stays_float32() -> None:
    call = replace(CALL, workspace_bytes=4096)
    plans = Convolved(Library(), call).algorithms(8, call.workspace_bytes)
    assert [a.workspace_bytes for a in plans] == [1024, 0, 1024, 0]  # of either mode: no tensor cores, no Winograd
    half = replace(CALL, **{n: replace(call.tensor(n), dtype="bfloat16") for n in "xwy"})
    assert b'"engine": 0' in Convolved(Library(), half).algorithms(1, 0)[0].code


# What is refused -----------------------------------------------------------------------------------------------------


def test_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = for_a_gpu(convolved())
    program.save(tmp_path / "net.gcx")
    monkeypatch.setattr(runtime_cudnn, "_loaded", lambda: None)
    values = {"x": np.ones(X, np.float32), "w": np.ones(W, np.float32)}
    with pytest.raises(GraphcError, match="GC0509") as caught:
        program.convolve(**values)
    assert "pip install nvidia-cudnn" in str(caught.value)
    assert found()["cudnn"].startswith("not installed; pip install")
    with pytest.warns(UserWarning, match="convolves with cuDNN, which is not installed here"):
        loaded = gc.load(tmp_path / "net.gcx", trust=True, threads=1)
    assert type(loaded) is Program
    assert (loaded.convolve(**values)["y"] == 72).all()


def test_where_the_library_has_no_such_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    program = for_a_gpu(convolved())
    monkeypatch.setattr(Convolved, "algorithms", lambda *args: [])
    with pytest.raises(GraphcError, match=r"cuDNN 9\.19\.0 has nothing for this on this GPU: y = relu"):
        program.convolve(x=np.ones(X, np.float32), w=np.ones(W, np.float32))


def test_an_artifact_whose_arguments_are_too_small() -> None:
    program = for_a_gpu(convolved())
    manifest = program.code.manifest
    kernels, (entry,) = manifest.kernels, manifest.entries
    (at,) = (i for i, k in enumerate(kernels) if k.convolution)
    call = kernels[at].convolution
    assert call is not None
    larger = replace(call.x, strides=(call.x.strides[0] + 1, *call.x.strides[1:]))
    changed = replace(kernels[at], convolution=replace(call, x=larger))
    for damaged in (
        replace(manifest, kernels=(*kernels[:at], changed, *kernels[at + 1 :])),
        replace(manifest, entries=(replace(entry, scratch_bytes=0),)),
    ):
        with pytest.raises(GraphcError, match=r"GC0502.*call of launch"):
            Artifact.of(damaged, {n: m for n, m in program.code.members.items() if n != "state.safetensors"})


def dense(n: int, c: int, h: int, w: int) -> Tensor:
    return Tensor("float32", (n, c, h, w), (h * w * c, 1, w * c, c), 16)


CALL = Convolution(
    "forward", dense(2, 8, 9, 10), dense(16, 8, 3, 3), dense(2, 16, 7, 8), (1, 1), (1, 1), "float32", bias=True
)


def test_descriptions_from_elsewhere() -> None:
    good = CALL
    assert is_sound_convolution(good, 1 << 46)
    bad = [
        replace(good, kind="backward"),
        replace(good, steps=(1,)),
        replace(good, steps=(2, 1)),
        replace(good, dilations=(0, 1)),
        replace(good, x=replace(good.x, shape=(2, 8, 9))),
        replace(good, x=replace(good.x, strides=(720, 1, 80, -8))),
        replace(good, w=replace(good.w, dtype="float16")),
        replace(good, y=replace(good.y, shape=(2, 15, 7, 8))),
        replace(good, y=replace(good.y, strides=(1 << 50, 1, 1, 1))),
        replace(good, activation="gelu"),
        replace(good, kind="filter"),
        replace(good, workspace_bytes=-1),
    ]
    assert not any(is_sound_convolution(call, 1 << 46) for call in bad)


# The stand-in itself: mistakes that it has to find -------------------------------------------------------------------


class Planted:
    """A convolution of the library, called as programs do it, but for one mistake."""

    def __init__(self, call: Convolution = CALL):
        self.call = call
        self.convolved = Convolved(Library(), call)
        self.device = Device()
        self.blocks = {name: self.device.alloc(call.nbytes(name), "a test") for name in call.operands}
        for block in self.blocks.values():
            block.write(np.zeros(block.nbytes, np.uint8))
        self.addresses = {name: block.address for name, block in self.blocks.items()}
        self.memory = self.device.alloc(1024, "a test")
        self.workspace = self.memory.address

    def run(self) -> None:
        algorithm = self.convolved.algorithms(1, 1024)[0]
        self.convolved(algorithm, self.addresses, self.workspace, self.device.stream.ptr)
        self.device.stream.synchronize()


def constant(name: str, value: int) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(runtime_cudnn, name, value)


DESCRIBED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Convolution, str]] = {
    "a step": (lambda patch: None, replace(CALL, steps=(2, 2)), "shapes that do not fit"),
    "a shape": (lambda patch: None, replace(CALL, w=dense(16, 4, 3, 3)), "channels that do not fit"),
    "an overlap": (lambda patch: None, replace(CALL, x=replace(CALL.x, strides=(720, 1, 8, 8))),
                   "elements of a tensor overlap"),
    "an alignment": (lambda patch: None, replace(CALL, x=replace(CALL.x, align=2)),
                     "an alignment that is none of the type"),
    "a mode": (constant("CROSS_CORRELATION", 0), CALL, "a convolution that is not known here"),
    "an operation": (constant("ADD", 21), CALL, "an operand too many, or too few"),
    "a kind": (constant("TENSOR", 99), CALL, "descriptors of kind 99 are not known"),
    "a type": (constant("INT64", 23), CALL, "attribute 906 has another type"),
    "a number": (lambda patch: patch.setitem(runtime_cudnn.NUMBERS, "w", 1), CALL, "two tensors with one number"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_wrong_descriptions_are_found(name: str, dnn: Dnn, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, call, fault = DESCRIBED[name]
    plant(monkeypatch)
    if name == "a type":
        monkeypatch.setitem(vars(runtime_cudnn), "C_TYPES", {**runtime_cudnn.C_TYPES, 23: runtime_cudnn.c_int64})
    with pytest.raises(GraphcError, match="GC0509"):
        Convolved(Library(), call)
    assert dnn.faults == [fault]


def unaligned(p: Planted) -> None:
    p.addresses["x"] += 4


def no_bias(p: Planted) -> None:
    del p.addresses["bias"]


def no_workspace(p: Planted) -> None:
    p.workspace += 8


def gone(p: Planted) -> None:
    p.convolved.library.call("cudnnBackendDestroyDescriptor", p.convolved._graph)


def damaged(p: Planted) -> None:
    p.convolved.accepts(Algorithm(b"{", 0))


CALLED: dict[str, tuple[Callable[[Planted], None], str]] = {
    "an address": (unaligned, "address 1 is not aligned as promised"),
    "no bias": (no_bias, "other tensors than those of the graph"),
    "a workspace": (no_workspace, "a workspace that is not aligned"),
    "a descriptor that is gone": (gone, "no graph, or none any more"),
    "a plan that is none": (damaged, "a plan that is none"),
}


@pytest.mark.parametrize("name", CALLED)
def test_wrong_calls_are_found(name: str, dnn: Dnn) -> None:
    plant, fault = CALLED[name]

    def run() -> None:
        planted = Planted()
        plant(planted)
        planted.run()

    with pytest.raises(GraphcError, match="GC0509"):
        run()
    assert dnn.faults[0] == fault


def test_memory_that_nothing_has_written_is_found() -> None:
    planted = Planted()
    planted.blocks["w"] = planted.device.alloc(planted.call.nbytes("w"), "a test")
    planted.addresses["w"] = planted.blocks["w"].address
    with pytest.raises(fake_cupy.Misuse, match="bytes of tensor 2 that nothing has written"):
        planted.run()


def test_memory_that_is_not_there_is_found() -> None:
    planted = Planted()
    planted.addresses["y"] += 64
    with pytest.raises(fake_cupy.Misuse, match="where nothing is allocated"):
        planted.run()
