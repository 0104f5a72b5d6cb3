"""The whole path: a model is compiled, trained, saved, loaded elsewhere; every bit is accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import driver, modelfile
from graphc.artifact import STATE_FILE, Artifact
from graphc.driver import CompileReport, rebuild
from graphc.driver import compile as compile_entries
from graphc.driver_link import plan_arena
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.kernels.cpu.target import host
from graphc.kernels.lower import lower
from graphc.models import gpt2
from graphc.passes import pipeline
from graphc.runtime import Program
from graphc.text import parse
from graphc.tracing import trace_entries

NET = Path(__file__).parent / "models" / "net.py"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def artifact() -> Artifact:
    return gc.compile_file(NET, check=True, threads=1).artifact


def program(threads: int = 1) -> Program:
    return Program(artifact(), threads=threads)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((32, 24), dtype=np.float32)
    return {"x": x, "y": (x @ np.arange(24 * 5).reshape(24, 5) % 7).argmax(1).astype(np.int32)}


def losses(p: Program, steps: int) -> list[bytes]:
    return [p.train(**batch(i))["loss"].tobytes() for i in range(steps)]


def bits(p: Program) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in p.state.items()}


def test_training_lowers_the_loss() -> None:
    p = program()
    first = float(p.train(**batch())["loss"])
    for _ in range(100):
        last = float(p.train(**batch())["loss"])
    assert first > 1.3
    assert last < 0.2 * first
    hits = p.infer(x=batch()["x"])["logits"].argmax(1) == batch()["y"]
    assert hits.mean() > 0.9


def test_steps_agree_with_the_interpreter() -> None:
    p = program()
    graph = pipeline.run(parse(p.train.graph), stop_after="differentiate")
    state = {name: array.copy() for name, array in p.state.items()}
    for i in range(3):
        outputs, state = interpret(graph, batch(i), state)
        np.testing.assert_allclose(p.train(**batch(i))["loss"], outputs["loss"], rtol=1e-5)
    for name, array in p.state.items():
        np.testing.assert_allclose(array, state[name], rtol=1e-4, atol=1e-5, err_msg=name)
    logits, _ = interpret(parse(p.infer.graph), {"x": batch()["x"]}, state)
    np.testing.assert_allclose(p.infer(x=batch()["x"])["logits"], logits["logits"], rtol=1e-4, atol=1e-5)


def test_same_bits_from_run_to_run_and_for_any_number_of_threads() -> None:
    runs = [program(1), program(1), program(2), program(3)]
    found = [(losses(p, 4), bits(p)) for p in runs]
    assert all(f == found[0] for f in found)


def test_predicted_memory_is_measured_memory() -> None:
    p = program(2)
    for entry in p.entries.values():
        assert entry.measured_peak_bytes(**{n: a for n, a in batch().items() if n in entry.specs}) == (
            entry.memory.peak_bytes
        )
        assert entry.memory.arena_bytes <= 1.02 * entry.memory.lower_bound_bytes + 64 * 16  # tiny tensors, aligned
    table = str(p.train.memory)
    assert "net.py:" in table
    assert "scratch" in table


def test_kernels_can_be_read() -> None:
    kernels = program().train.kernels
    assert sum(k.flops * k.count for k in kernels) > 0
    for kernel in kernels:
        assert kernel.symbol in kernel.source
        assert kernel.doc
    assert any(loc.file.endswith("net.py") for k in kernels for loc in k.lines)


def test_save_and_load(tmp_path: Path) -> None:
    p = program()
    losses(p, 2)
    p.save(tmp_path / "net.gcx")
    again = gc.load(tmp_path / "net.gcx", threads=2)
    assert bits(again) == bits(p)
    assert losses(again, 2) == losses(p, 2)


def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    p = program()
    losses(p, 2)
    p.save_state(tmp_path / "s.safetensors")
    other = program()
    other.load_state(tmp_path / "s.safetensors")
    assert losses(other, 3) == losses(p, 3)
    assert bits(other) == bits(p)


def test_a_file_from_elsewhere_is_rebuilt_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = program()
    losses(p, 1)
    p.save(tmp_path / "net.gcx")
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "another user"))
    with pytest.warns(UserWarning, match="rebuilt from its graph: .* was not built by this user"):
        again = gc.load(tmp_path / "net.gcx", threads=1)
    assert losses(again, 2) == losses(p, 2)


def test_a_rebuilt_artifact_is_the_same_artifact() -> None:
    again = rebuild(artifact(), threads=1).artifact
    assert again.manifest.kernels == artifact().manifest.kernels
    assert again.digest == artifact().digest


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [("fc1.weight", "fc9.weight", "GC0502"), ("return", "retrun", "GC0550"), ("dot(", "max(", "GC0502")],
)
def test_a_rebuild_does_not_believe_the_graph(old: str, new: str, code: str) -> None:
    made = artifact()
    text = made.text("graph/infer.txt").replace(old, new).encode()
    forged = Artifact.of(made.manifest, {**made.members, "graph/infer.txt": text})
    with pytest.raises(GraphcError) as caught:
        rebuild(forged)
    assert caught.value.code == code


# Other processes -----------------------------------------------------------------------------------------------------

COMPILE = """
import sys
import graphc as gc
gc.compile_file(sys.argv[1], cache=False, threads=1).save(sys.argv[2])
"""

TRAIN = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "networkx", "rich", "safetensors"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
import numpy as np
import graphc as gc
program = gc.load(sys.argv[1], threads=2)
data = dict(np.load(sys.argv[2]))
losses = [program.train(**data)["loss"].tobytes().hex() for _ in range(3)]
print(" ".join(losses))
"""


def python(code: str, *args: object, **env: str) -> str:
    run = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_compiles_give_the_same_file(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        python(COMPILE, NET, tmp_path / f"{seed}.gcx", PYTHONHASHSEED=seed)
    one, two = (tmp_path / "1.gcx").read_bytes(), (tmp_path / "2.gcx").read_bytes()
    assert one == two
    for private in (str(NET.parent), str(tmp_path), str(Path.home()) + "/"):
        assert private.encode() not in one


def test_training_without_the_compiler_has_the_same_bits(tmp_path: Path) -> None:
    p = program()
    p.save(tmp_path / "net.gcx")
    np.savez(tmp_path / "batch.npz", **batch())
    found = python(TRAIN, tmp_path / "net.gcx", tmp_path / "batch.npz").split()
    assert found == [p.train(**batch())["loss"].tobytes().hex() for _ in range(3)]


# What a compile is asked ---------------------------------------------------------------------------------------------


def test_options_of_a_model_file() -> None:
    p = gc.compile_file(NET, entry="infer", set={"hidden": "8"}, threads=1)
    assert list(p.entries) == ["infer"]
    assert p.state["fc1.weight"].shape == (8, 24)
    with pytest.raises(GraphcError, match="has no entry 'inferr'"):
        gc.compile_file(NET, entry="inferr")


def test_a_report_has_times_and_every_pass() -> None:
    report = CompileReport()
    gc.compile_file(NET, entry="infer", report=report, threads=1)
    assert list(report.seconds) == ["trace", "passes", "lower", "kernels", "memory", "load"]
    assert [p.name for p in report.passes] == [p.name for p in pipeline.PIPELINE]
    assert report.passes[0].after is report.passes[1].before


def test_over_budget_is_an_error_before_running() -> None:
    with pytest.raises(GraphcError) as caught:
        gc.compile_file(NET, memory_budget=1000)
    text = str(caught.value)
    assert caught.value.code == "GC0701"
    assert "and the budget is 1000 B" in text
    assert "net.py:" in text
    assert "launches" in text
    assert len(text.splitlines()) <= 15


def test_no_such_target() -> None:
    with pytest.raises(GraphcError, match="there is no target 'tpu'"):
        compile_entries(target="tpu")


def test_constants_and_flags_reach_the_kernels() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)

    @gc.entry(i=gc.spec((2,), "int32"))
    def look(i: gc.Tensor) -> dict[str, Any]:
        return {"rows": gc.take(gc.asarray(table), i, axis=0)}

    p = gc.compile(look, threads=2, check=True)
    np.testing.assert_array_equal(p.look(i=np.array([3, 1], np.int32))["rows"], table[[3, 1]])
    with pytest.raises(GraphcError, match=r"at (tests/)?test_driver.py"):
        p.look(i=np.array([3, 4], np.int32))
    np.testing.assert_array_equal(p.look(i=np.array([0, 2], np.int32))["rows"], table[[0, 2]])


def test_state_without_updates_and_entries_without_state() -> None:
    @gc.entry(a=gc.spec((3,), "float32"))
    def double(a: gc.Tensor) -> dict[str, Any]:
        return {"twice": a + a, "same": a}

    p = gc.compile(double, threads=1, check=True)
    out = p.double(a=[1, 2, 3])
    np.testing.assert_array_equal(out["twice"], [2, 4, 6])
    np.testing.assert_array_equal(out["same"], [1, 2, 3])
    assert len(p.state) == 0
    assert p.artifact.tensors(STATE_FILE) == {}


def test_the_arena_of_gpt2_is_within_two_percent_of_the_bound() -> None:
    module = modelfile.load_model_file(Path(gpt2.__file__))
    for traced in trace_entries(*modelfile.file_entries(module, modelfile.make_config(module))):
        plan = plan_arena(lower(pipeline.run(traced.graph), host()))
        aligned = 64 * 16  # tensors start at multiples of 64 bytes, which matters where all of them are small
        assert plan.arena_bytes <= 1.02 * plan.lower_bound_bytes + aligned, traced.graph.name


# Threads and processes -----------------------------------------------------------------------------------------------


def test_calls_from_several_threads_take_turns() -> None:
    p, alone = program(2), program(1)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: p.infer(x=batch()["x"])["logits"].tobytes(), range(40)))
    assert set(results) == {alone.infer(x=batch()["x"])["logits"].tobytes()}


def test_workers_stop_and_start_again() -> None:
    p = program(3)
    first = losses(p, 1)
    assert sum(t.name.startswith("graphc-") for t in threading.enumerate()) >= 2
    p.close()
    p.close()
    fresh = program()
    assert [first, losses(p, 1)] == [losses(fresh, 1), losses(fresh, 1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own() -> None:
    p = program(2)
    losses(p, 1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, losses(p, 1)[0])
        os._exit(0)
    assert os.read(reader, 4) == losses(p, 1)[0]
    assert os.waitpid(child, 0)[1] == 0


# When the machine is in the way --------------------------------------------------------------------------------------


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("LLVM says no\nand more")

    monkeypatch.setattr(driver, "begin", broken)
    with pytest.raises(GraphcError, match="a kernel did not compile: LLVM says no") as caught:
        gc.compile_file(NET)
    assert caught.value.code == "GC0009"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "file"))
    with pytest.raises(GraphcError, match="cannot write compiled kernels to"):
        gc.compile_file(NET)
    assert list(gc.compile_file(NET, entry="infer", cache=False, threads=1).entries) == ["infer"]


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAPHC_THREADS", "3")
    monkeypatch.setenv("GRAPHC_DEBUG", "5")
    assert gc.compile_file(NET, entry="infer").threads == 3
    said = capsys.readouterr().err
    for part in ("graphc: kernels ", "infer: fuse: ", "graph infer {", "def gc_"):
        assert part in said
    monkeypatch.setenv("GRAPHC_THREADS", "many")
    with pytest.raises(GraphcError, match="GRAPHC_THREADS='many' is not a number from 1 to 1024"):
        gc.compile_file(NET)
