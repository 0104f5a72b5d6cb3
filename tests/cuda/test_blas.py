"""Products by cuBLASLt, on a stand-in for it: which are asked for, what comes out, what is chosen, what is refused."""

from __future__ import annotations

import gc as memory
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_cublaslt
import fake_cupy
import numpy as np
import pytest
from fake_cublaslt import Blas
from golden_artifacts import loops
from shim import COMPILER, MISSING

import graphc as gc
from graphc import driver_libraries, nn, optim, runtime_cublaslt
from graphc.artifact import Artifact
from graphc.errors import GraphcError
from graphc.gemm import Gemm
from graphc.kernels.plan import Launch
from graphc.runtime import Program
from graphc.runtime_cublaslt import Library, Product
from graphc.runtime_cuda import CudaProgram
from graphc.runtime_cuda_device import found
from graphc.runtime_cuda_walk import Captured

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
RNG = np.random.default_rng(0)
Function = Callable[..., gc.Tensor]
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(autouse=True)
def cupy() -> Iterator[ModuleType]:
    with fake_cupy.installed() as fake:
        yield fake


@pytest.fixture(autouse=True)
def blas(cupy: ModuleType) -> Iterator[Blas]:
    with fake_cublaslt.installed() as stub:
        yield stub


def entry_of(function: Function, shapes: Shapes, dtype: str = "float32") -> gc.Entry:
    def product(**arrays: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": function(**arrays)}

    return gc.Entry(product, {name: gc.spec(shape, dtype) for name, shape in shapes.items()})


def entry_of_all(cases: Sequence[tuple[Function, Shapes]], dtype: str = "float32") -> gc.Entry:
    """Result number i is that of case number i, on arrays of its own."""

    def product(**arrays: gc.Tensor) -> dict[str, gc.Tensor]:
        mine = lambda i, shapes: {name: arrays[f"{name}{i}"] for name in shapes}  # noqa: E731
        return {f"y{i}": function(**mine(i, shapes)) for i, (function, shapes) in enumerate(cases)}

    return gc.Entry(product, {f"{n}{i}": gc.spec(s, dtype) for i, (_, of) in enumerate(cases) for n, s in of.items()})


def for_a_gpu(*made: gc.Entry, libraries: str = "on", **options: Any) -> CudaProgram:
    program = gc.compile(*made, target="cuda", arch="sm_90", libraries=libraries, **options)
    assert isinstance(program, CudaProgram)
    return program


def gemms(program: CudaProgram) -> list[Gemm]:
    return [k.gemm for k in program.code.manifest.kernels if k.gemm is not None]


def compared(made: gc.Entry, tolerance: float = 1e-5, **options: Any) -> CudaProgram:
    """The program of ``made``, whose second and third steps, the one captured and the other not, are right."""
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

X, W, B, R = (6, 20), (20, 9), (9,), (6, 9)
XWBR = {"x": X, "w": W, "b": B, "r": R}


def tanh_gelu(x: gc.Tensor) -> gc.Tensor:
    return nn.functional.gelu(x, approximate="tanh")


FOLLOWS: dict[str, tuple[Function, str, Shapes]] = {
    "nothing": (lambda x, w: x @ w, "d = a b", {"x": X, "w": W}),
    "a bias": (lambda x, w, b: x @ w + b, "d = a b + bias", {"x": X, "w": W, "b": B}),
    "an array": (lambda x, w, r: r + x @ w, "d = a b + c", {"x": X, "w": W, "r": R}),
    "both": (lambda x, w, b, r: r + (x @ w + b), "d = a b + c + bias", XWBR),
    "a factor": (lambda x, w, b: (x @ w) * 0.25 + b, "d = 0.25 a b + bias", {"x": X, "w": W, "b": B}),
    "relu": (lambda x, w, b: gc.relu(x @ w + b), "d = relu(a b + bias)", {"x": X, "w": W, "b": B}),
    "relu by hand": (lambda x, w: gc.maximum(x @ w, gc.zeros(R)), "d = relu(a b)", {"x": X, "w": W}),
    "a row": (lambda x, w, b: x @ w + b, "d = a b + c", {"x": (1, 20), "w": W, "b": B}),
}


def test_what_follows_is_done_by_the_way(blas: Blas) -> None:
    program = compared(entry_of_all([(function, shapes) for function, _, shapes in FOLLOWS.values()]))
    asked = [str(k.gemm).splitlines()[0] for k in program.code.manifest.kernels]
    assert sorted(asked) == sorted(text for _, text, _ in FOLLOWS.values())
    assert blas.faults == []


REST: dict[str, Function] = {
    "gelu in float32, which is exact to 11 bits": lambda x, w, b, r: tanh_gelu(x @ w + b) + 0 * r,
    "relu6": lambda x, w, b, r: gc.minimum(gc.relu(x @ w), gc.full(R, 6.0)),
    "tanh": lambda x, w, b, r: gc.tanh(x @ w + b) * r,
    "an array that is not like the result": lambda x, w, b, r: x @ w + gc.permute_dims(gc.reshape(r, (9, 6)), (1, 0)),
    "a difference": lambda x, w, b, r: r - x @ w,
}


def test_what_the_library_does_not_know_is_a_kernel_of_our_own(blas: Blas) -> None:
    program = compared(entry_of_all([(function, XWBR) for function in REST.values()]))
    (gemm,) = gemms(program)  # for all of them
    assert str(gemm).startswith("d = a b\n")
    assert sum(k.name.endswith("_rest") for k in program.code.manifest.kernels) == len(REST)
    assert blas.calls == 2 * len(REST)
    assert blas.faults == []


@pytest.mark.parametrize("form", ["library", "by hand"])
def test_gelu_of_16_bits(form: str) -> None:
    def by_hand(x: gc.Tensor) -> gc.Tensor:
        return x * gc.sigmoid(1.5957691216057308 * (x + 0.044715 * x**3))

    gelu = tanh_gelu if form == "library" else by_hand
    shapes = {"x": X, "w": W, "b": B}

    def product(x: gc.Tensor, w: gc.Tensor, b: gc.Tensor) -> gc.Tensor:
        wide = gc.astype(gc.matmul(x, w), gc.float32) + gc.astype(b, gc.float32)
        return gc.astype(gelu(wide), gc.bfloat16)

    (gemm,) = gemms(compared(entry_of(product, shapes, "bfloat16"), 2e-2))
    assert str(gemm).startswith("d = gelu(a b + bias)\n")
    assert (gemm.a.dtype, gemm.sums) == ("bfloat16", "float32")


SHAPES: dict[str, tuple[Function, Shapes]] = {
    "a turned": (lambda a, b: gc.permute_dims(a, (1, 0)) @ b, {"a": (20, 6), "b": W}),
    "b turned": (lambda a, b: a @ gc.permute_dims(b, (1, 0)), {"a": X, "b": (9, 20)}),
    "both turned": (lambda a, b: gc.permute_dims(a, (1, 0)) @ gc.permute_dims(b, (1, 0)), {"a": (20, 6), "b": (9, 20)}),
    "a batch": (lambda a, b: a @ b, {"a": (3, 6, 20), "b": (3, 20, 9)}),
    "a batch with one factor for all": (lambda a, b: gc.permute_dims(a, (0, 2, 1)) @ b, {"a": (3, 20, 6), "b": W}),
    "rows of a batch": (lambda a, b: a @ b, {"a": (3, 6, 20), "b": W}),
    "parts of arrays": (lambda a, b: a[1:5, 3:17] @ b[2:16, 1:], {"a": X, "b": W}),
    "one column": (lambda a, b: a @ b, {"a": X, "b": (20, 1)}),
    "one row": (lambda a, b: a @ b, {"a": (1, 20), "b": W}),
    "a sum of one": (lambda a, b: a @ b, {"a": (6, 1), "b": (1, 9)}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_layouts(dtype: str, blas: Blas) -> None:
    tolerance = {"float32": 1e-5, "float64": 1e-12}.get(dtype, 2e-2)
    compared(entry_of_all(list(SHAPES.values()), dtype), tolerance)
    assert blas.calls == 2 * len(SHAPES)
    assert blas.faults == []


def test_what_no_library_has_is_our_own() -> None:
    def integers(a: gc.Tensor, b: gc.Tensor) -> gc.Tensor:
        return gc.astype(gc.astype(a, gc.int32) @ gc.astype(b, gc.int32), gc.float32)

    def steps(a: gc.Tensor, b: gc.Tensor) -> gc.Tensor:
        return a[:, ::2] @ b[::2, ::2]

    for function in (integers, steps):
        assert not gemms(compared(entry_of(function, {"a": X, "b": W})))


# Programs ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        self.fc1, self.fc2 = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(gc.relu(self.fc1(x)))


def training() -> gc.Entry:
    gc.seed(0)
    net = Net()
    opt = optim.AdamW(net.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((8, 12), "float32"), y=gc.spec((8,), "int32"))
    def train(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(x), y)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return train


def batch() -> dict[str, np.ndarray]:
    return {"x": RNG.standard_normal((8, 12)).astype(np.float32), "y": RNG.integers(0, 5, 8).astype(np.int32)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_that_of_the_processor(precision: str, blas: Blas) -> None:
    plain = gc.compile(training(), threads=1, precision=precision)
    program = for_a_gpu(training(), precision=precision)
    assert len(gemms(program)) >= 4
    for data in (batch() for _ in range(4)):
        np.testing.assert_allclose(program.train(**data)["loss"], plain.train(**data)["loss"], rtol=1e-4)
    assert blas.faults == []


def test_loops_and_branches(blas: Blas) -> None:
    plain, program = gc.compile(*loops(), threads=1), for_a_gpu(*loops())
    xs = np.linspace(-1, 2, 20, dtype=np.float32).reshape(5, 4)
    for _ in range(3):
        want, got = plain.run(xs=xs), program.run(xs=xs)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert blas.faults == []


def test_rows_of_a_scan_are_aligned_as_promised(blas: Blas) -> None:
    def scanned(xs: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        def step(carry: gc.Tensor, row: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
            made = carry @ w + row
            return made, made

        return gc.scan(step, gc.zeros((3, 5)), xs)[1]

    assert gemms(compared(entry_of(scanned, {"xs": (4, 3, 5), "w": (5, 5)})))
    assert blas.faults == []


def test_a_step_is_captured_once_its_code_is_loaded(blas: Blas) -> None:
    program, data = for_a_gpu(training()), batch()
    calls = sum(e.blocks == 0 for e in program.train._record.launches)
    graphs = []
    for count in (calls, 2 * calls, 2 * calls):  # as they are, captured, replayed
        program.train(**data)
        assert blas.calls == count
        parts = [part for (part,) in program.train._ready.walk.parts if isinstance(part, Captured)]
        graphs.append([part.graph for part in parts])
    assert None in graphs[0]
    assert graphs[1] == graphs[2]
    assert all(graphs[1])


def test_nothing_is_left_behind(blas: Blas) -> None:
    memory.collect()
    before = blas.alive
    program = compared(entry_of(lambda x, w: x @ w, {"x": X, "w": W}))
    assert blas.alive > before
    del program
    memory.collect()
    assert blas.alive == before


def test_the_workspace_is_part_of_the_plan() -> None:
    with_calls, without = (for_a_gpu(training(), libraries=mode) for mode in ("on", "off"))
    most = max(gemm.workspace_bytes for gemm in gemms(with_calls))
    assert with_calls.train.memory.scratch_bytes == most > without.train.memory.scratch_bytes
    assert with_calls.train.measured_peak_bytes() == with_calls.train.memory.peak_bytes
    with pytest.raises(GraphcError, match="GC0701"):
        for_a_gpu(training(), memory_budget=most)


def test_a_saved_program_is_loaded(tmp_path: Path) -> None:
    program, data = for_a_gpu(training()), batch()
    program.save(tmp_path / "net.gcx")
    loaded = gc.load(tmp_path / "net.gcx", trust=True)
    assert isinstance(loaded, CudaProgram)
    assert gemms(loaded) == gemms(program)
    assert [loaded.train(**data)["loss"] for _ in range(3)] == [program.train(**data)["loss"] for _ in range(3)]


# The choice ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Seconds of what is measured: of our own kernels, of calls, of calls by their best algorithm."""
    found = {"own": 1.0, "call": 1.0, "best": 1.0}
    counted: list[int] = []

    def seconds(self: driver_libraries.Rig, runs: Any) -> list[float]:
        for run in runs:
            run()
        self.device.stream.synchronize()
        counted.append(len(runs))
        return [found["own"]] if len(runs) == 1 else [found["call"], found["best"], found["call"]]

    monkeypatch.setattr(driver_libraries.Rig, "seconds", seconds)
    monkeypatch.setattr(driver_libraries, "settings", lambda: SimpleNamespace(cache=tmp_path))
    found["counted"] = counted  # type: ignore[assignment]
    return found


def product() -> gc.Entry:
    return entry_of(lambda x, w, b: gc.relu(x @ w + b), {"x": X, "w": W, "b": B})


def test_what_is_not_clearly_faster_is_not_taken(times: dict[str, float], blas: Blas) -> None:
    assert not gemms(compared(product(), libraries="auto"))
    assert blas.faults == []


def test_the_fastest_is_taken_and_kept(times: Any, blas: Blas) -> None:
    times.update(call=0.5, best=0.25)
    (gemm,) = gemms(program := compared(product(), libraries="auto"))
    assert (gemm.version, gemm.workspace_bytes, len(gemm.algorithm)) == (130100, 0, 128)
    assert gemm.activation == "relu"
    measured = len(times["counted"])
    assert measured == 4  # our own, one call with all, a call and the rest
    times.update(call=2.0, best=2.0)
    assert for_a_gpu(product(), libraries="auto").code.digest == program.code.digest
    assert len(times["counted"]) == measured
    assert blas.faults == []


def test_a_call_and_a_kernel_may_be_faster_than_one_call(times: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    best = driver_libraries.Rig.best

    def only_without_a_bias(self: driver_libraries.Rig, way: list[Launch]) -> Any:
        found = best(self, way)
        assert found is not None
        takes = {1: 1.0, 2: 0.5}[len(way)]
        calls = [e.kernel.library_call for e in way]
        return None if any(isinstance(call, Gemm) and call.bias for call in calls) else (takes, found[1])

    monkeypatch.setattr(driver_libraries.Rig, "best", only_without_a_bias)
    (gemm,) = gemms(program := compared(product(), libraries="auto"))
    assert str(gemm).startswith("d = a b\n")
    assert len(program.code.manifest.kernels) == 2


def test_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cupy: ModuleType, blas: Blas) -> None:
    """With the clock of the fake, in which all takes the same time."""
    monkeypatch.setattr(driver_libraries, "MICROSECONDS", 0)
    monkeypatch.setattr(driver_libraries, "settings", lambda: SimpleNamespace(cache=tmp_path))
    assert not gemms(for_a_gpu(product(), libraries="auto"))
    assert blas.calls > 3 * driver_libraries.ROUNDS
    assert blas.faults == []
    without = for_a_gpu(product(), libraries="auto", cache=False)
    assert not gemms(without)


def test_another_version_chooses_itself(times: Any, blas: Blas, monkeypatch: pytest.MonkeyPatch) -> None:
    times.update(call=0.5, best=0.25)
    program = for_a_gpu(product(), libraries="auto")
    (gemm,) = gemms(program)
    library = Library()
    library.version += 1
    monkeypatch.setattr(runtime_cublaslt, "Library", lambda: library)
    program.product(x=np.ones(X, np.float32), w=np.ones(W, np.float32), b=np.ones(B, np.float32))
    (kernel,) = program.on_device.kernels
    assert kernel._algorithm.code.hex() != gemm.algorithm
    assert kernel._algorithm.workspace_bytes <= gemm.workspace_bytes


def test_without_a_gpu_or_the_library_products_are_our_own(monkeypatch: pytest.MonkeyPatch, cupy: ModuleType) -> None:
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert not gemms(for_a_gpu(product(), libraries="auto"))
    assert gemms(for_a_gpu(product(), libraries="on"))
    monkeypatch.undo()
    monkeypatch.setattr(runtime_cublaslt, "_loaded", lambda: None)
    assert not gemms(for_a_gpu(product(), libraries="auto"))


def test_a_gpu_that_our_own_kernels_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.Device, "capability", "80")
    assert not gemms(for_a_gpu(product(), libraries="auto"))


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_mode_that_there_is_not() -> None:
    with pytest.raises(GraphcError, match="GC0607"):
        for_a_gpu(product(), libraries="maybe")


def test_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = for_a_gpu(product())
    program.save(tmp_path / "net.gcx")
    monkeypatch.setattr(runtime_cublaslt, "_loaded", lambda: None)
    values = {"x": np.ones(X, np.float32), "w": np.ones(W, np.float32), "b": np.ones(B, np.float32)}
    with pytest.raises(GraphcError, match="GC0509") as caught:
        program.product(**values)
    assert "pip install nvidia-cublas" in str(caught.value)
    assert found()["cublaslt"].startswith("not installed; pip install")
    with pytest.warns(UserWarning, match="multiplies with cuBLASLt, which is not installed here"):
        loaded = gc.load(tmp_path / "net.gcx", trust=True, threads=1)
    assert type(loaded) is Program
    assert (loaded.product(**values)["y"] == 21).all()


def test_where_the_library_has_no_such_product(monkeypatch: pytest.MonkeyPatch) -> None:
    program = for_a_gpu(product())
    monkeypatch.setattr(Product, "algorithms", lambda *args: [])
    with pytest.raises(GraphcError, match=r"cuBLASLt 13\.1\.0 has nothing for this on this GPU: d = relu"):
        program.product(x=np.ones(X, np.float32), w=np.ones(W, np.float32), b=np.ones(B, np.float32))


def test_an_artifact_whose_arguments_are_too_small(tmp_path: Path) -> None:
    program = for_a_gpu(product())
    manifest = program.code.manifest
    (kernel,), (entry,) = manifest.kernels, manifest.entries
    assert kernel.gemm is not None
    larger = replace(kernel.gemm.b, ld=kernel.gemm.b.ld + 1)
    for changed in (
        replace(manifest, kernels=(replace(kernel, gemm=replace(kernel.gemm, b=larger)),)),
        replace(manifest, entries=(replace(entry, scratch_bytes=0),)),
    ):
        with pytest.raises(GraphcError, match=r"GC0502.*call of launch 0"):
            Artifact.of(changed, {n: m for n, m in program.code.members.items() if n != "state.safetensors"})
