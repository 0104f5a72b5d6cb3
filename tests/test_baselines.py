"""CPU baselines: code of each level computes what the interpreter computes, and artifacts travel between machines.

GRAPHC_MAX_ISA makes this machine report no more than a level has. What cannot run here is compiled and read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import runnable
from mutations import rewrite
from native import elf_symbols

import graphc as gc
from graphc import nn, runtime_load
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.kernels.cpu.build import compile_kernels, machine, optimise
from graphc.kernels.cpu.frontend import lower as lower_source
from graphc.kernels.cpu.target import BASELINES, host
from graphc.kernels.lower import lower
from graphc.models import gpt2
from graphc.passes import pipeline
from graphc.system import LEVELS, level_of
from graphc.tracing import trace_entries

RUNNABLE = [level for level, target in BASELINES.items() if runnable(target)]
LOWEST = RUNNABLE[-1:]  # the others have this machine in all other tests
NET = Path(__file__).parent / "models" / "net.py"
needs_both = pytest.mark.skipif(
    not {"x86-64-v4", "x86-64-v3"}.issubset(RUNNABLE), reason="this machine has no AVX-512 to hide"
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# Kernels -------------------------------------------------------------------------------------------------------------


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape, np.float32)


def products(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    return gc.gelu(x @ w) @ gc.permute_dims(w, (0, 2, 1))


def attention(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
    return gc.scaled_dot_product_attention(q, k, v, is_causal=True)


def convolution(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    return gc.relu(gc.conv2d(x, w, padding=1))


def rows(x: gc.Tensor, scale: gc.Tensor) -> gc.Tensor:
    return gc.softmax(gc.tanh(nn.functional.layer_norm(x, scale.shape, scale)) * 3.0, axis=-1)


CASES = [
    (products, [(2, 45, 70), (2, 70, 50)]),
    (attention, [(2, 3, 37, 24)] * 3),
    (convolution, [(2, 5, 9, 11), (7, 5, 3, 3)]),
    (rows, [(19, 83), (83,)]),
]


@pytest.mark.parametrize("level", LOWEST)
@pytest.mark.parametrize(("function", "shapes"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_kernels_and_gradients(function: Callable[..., gc.Tensor], shapes: list[tuple[int, ...]], level: str) -> None:
    arrays = {f"x{i}": values(*shape) + i for i, shape in enumerate(shapes)}

    @gc.entry(**{name: gc.spec(a.shape) for name, a in arrays.items()})
    def step(**tensors: gc.Tensor) -> dict[str, gc.Tensor]:
        y = function(*tensors.values())
        grads = gc.grad(gc.sum(y * gc.sin(y)), list(tensors.values()))
        return {"y": y, **{f"d{name}": g for name, g in zip(tensors, grads, strict=True)}}

    (traced,) = trace_entries(step)
    want, _ = interpret(pipeline.run(traced.graph, stop_after="differentiate"), arrays)
    got = gc.compile(step, cpu_baseline=level, threads=2).step(**arrays)
    for name, a in want.items():
        np.testing.assert_allclose(got[name], a, atol=2e-5 * max(1.0, float(np.abs(a).max())), rtol=0, err_msg=name)


@cache
def small_gpt2() -> tuple[Any, tuple[gc.Entry, ...]]:
    """A configuration, whose text is this file, and its entry ``train``."""
    gc.seed(0)
    config = gpt2.Config(data=__file__, n_layer=1, n_embd=40, n_head=2, n_positions=19, batch_size=3)
    return config, tuple(gpt2.entries(config)[:1])


@pytest.mark.parametrize("level", LOWEST)
def test_a_train_step_of_gpt2(level: str) -> None:
    config, entries = small_gpt2()
    (traced,) = trace_entries(*entries)
    state, graph = dict(traced.initial), pipeline.run(traced.graph, stop_after="differentiate")
    program = gc.compile(*entries, cpu_baseline=level, threads=2)
    assert program.code.manifest.target.features == LEVELS[level]
    for batch in islice(gpt2.batches(config, "train"), 3):
        want, state = interpret(graph, batch, state)
        np.testing.assert_allclose(program.train(**batch)["loss"], want["loss"], rtol=2e-5)


@needs_both
def test_code_for_avx2_has_no_wider_instructions() -> None:
    target = BASELINES["x86-64-v3"]
    code = gc.compile_file(NET, cpu_baseline="x86-64-v3").code
    for kernel in code.manifest.kernels:
        module = optimise(lower_source(code.text(kernel.source), kernel.symbol), target)
        text = str(machine(target).emit_assembly(module))
        assert "%zmm" not in text
        assert "%k1" not in text


def test_a_train_step_cross_compiles_to_64_bit_arm(tmp_path: Path) -> None:
    """Every kernel of it is an object on its own, and the products are multiply-adds on vectors."""
    target = BASELINES["neon"]
    (traced,) = trace_entries(*small_gpt2()[1])
    plan = lower(pipeline.run(traced.graph), target)
    built = compile_kernels([launch.kernel for launch in plan.launches], target, tmp_path)
    for made in built:
        assert elf_symbols(made.object) == (183, {made.symbol: True})  # EM_AARCH64
    product = next(b for b in built if "microkernel(" in b.source)
    text = str(machine(target).emit_assembly(optimise(lower_source(product.source, product.symbol), target)))
    assert "fmla" in text


# Travel --------------------------------------------------------------------------------------------------------------


def batch() -> dict[str, np.ndarray]:
    return {"x": values(32, 24), "y": np.arange(32, dtype=np.int32) % 5}


def losses(program: Any) -> list[bytes]:
    return [program.train(**batch())["loss"].tobytes() for _ in range(3)]


@needs_both
def test_an_artifact_for_avx512_is_rebuilt_where_there_is_only_avx2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = gc.compile_file(NET, threads=1)
    assert "avx512f" in wide.code.manifest.target.features
    wide.save(tmp_path / "net.gcx")
    monkeypatch.setenv("GRAPHC_MAX_ISA", "x86-64-v3")
    with pytest.raises(GraphcError, match=r"net\.gcx needs a CPU with avx512bw, .*avx512f") as caught:
        runtime_load.load(tmp_path / "net.gcx")
    assert caught.value.code == "GC0505"
    with pytest.warns(UserWarning, match=r"rebuilt from its graph: .* needs a CPU with avx512bw"):
        narrow = gc.load(tmp_path / "net.gcx", threads=1)
    assert narrow.code.manifest.target.features == LEVELS["x86-64-v3"]
    for name, array in wide.state.items():
        np.testing.assert_array_equal(narrow.state[name], array)
    for _ in range(3):
        np.testing.assert_allclose(narrow.train(**batch())["loss"], wide.train(**batch())["loss"], rtol=1e-5)


@needs_both
def test_an_artifact_for_avx2_has_the_same_bits_on_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gc.compile_file(NET, cpu_baseline="x86-64-v3", threads=1)
    made.save(tmp_path / "net.gcx")
    here = losses(made)
    for level in ("x86-64-v4", "x86-64-v3"):
        monkeypatch.setenv("GRAPHC_MAX_ISA", level)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert losses(gc.load(tmp_path / "net.gcx", threads=1)) == here


@needs_both
def test_one_file_for_several_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine runs the best code that it can run, with the bits of a file for it alone, and saves all of it."""
    path = tmp_path / "net.gcx"
    made = gc.compile_file(NET, cpu_baseline=["x86-64-v3", "native", "x86-64-v4"], threads=1)
    assert made.artifact.manifest.options["cpu_baseline"] == "native x86-64-v3 x86-64-v4"
    assert [level_of(b.target.features) for b in made.artifact.manifest.builds] == ["x86-64-v4", "x86-64-v3"]
    made.save(path)
    for level in ("x86-64-v4", "x86-64-v3"):
        monkeypatch.setenv("GRAPHC_MAX_ISA", level)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = gc.load(path, threads=1)
        assert loaded.code.manifest.target.features == LEVELS[level]
        assert not loaded.code.manifest.alternatives
        loaded.save(tmp_path / "again.gcx")
        assert (tmp_path / "again.gcx").read_bytes() == path.read_bytes()
        assert losses(loaded) == losses(gc.compile_file(NET, cpu_baseline=level, threads=1))


def test_one_file_for_two_architectures() -> None:
    builds = gc.compile_file(NET, cpu_baseline=["native", "x86-64-v3", "neon"]).artifact
    found = {elf_symbols(bytes(builds.members[k.object]))[0] for b in builds.manifest.builds for k in b.kernels}
    assert found == {62, 183}  # EM_X86_64, EM_AARCH64


def test_no_code_for_this_machine(tmp_path: Path) -> None:
    def for_others(manifest: dict[str, Any]) -> None:
        manifest["target"]["features"].append("avx9000")
        manifest["alternatives"][0]["target"]["triple"] = "riscv64-unknown-linux-gnu"

    gc.compile_file(NET, cpu_baseline=["native", "neon"]).save(tmp_path / "net.gcx")
    rewrite(tmp_path / "net.gcx", for_others)
    with pytest.raises(GraphcError, match=r"needs a CPU with avx9000; other code in it was built for .* on riscv") as e:
        runtime_load.load(tmp_path / "net.gcx", trusted=True)
    assert e.value.code == "GC0505"


@needs_both
def test_a_machine_with_avx2_compiles_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_MAX_ISA", "x86-64-v3")
    assert host().features == LEVELS["x86-64-v3"]
    with pytest.raises(GraphcError, match="cannot run code for x86-64-v4: it has no avx512bw") as caught:
        gc.compile_file(NET, cpu_baseline="x86-64-v4")
    assert caught.value.code == "GC0505"


def test_levels_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraphcError, match="there is no CPU baseline 'avx2'") as caught:
        gc.compile_file(NET, cpu_baseline="avx2")
    assert caught.value.code == "GC0607"
    monkeypatch.setenv("GRAPHC_MAX_ISA", "avx2")
    with pytest.raises(GraphcError, match="GRAPHC_MAX_ISA='avx2' is not one of x86-64-v4, x86-64-v3, neon") as caught:
        gc.compile_file(NET)
    assert caught.value.code == "GC0602"
