"""What an entry computes of its state alone is computed again when that has changed, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import runnable
from mutations import rewrite

import graphc as gc
from graphc import nn, optim
from graphc.artifact import Artifact
from graphc.errors import GraphcError
from graphc.kernels.cpu.target import BASELINES
from graphc.runtime import Program
from graphc.runtime_load import load

VECTORS = next(level for level, target in BASELINES.items() if runnable(target))  # where panels are packed ahead
SHAPE = (2, 16, 16, 16)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
LABELS = np.array([3, 1], np.int32)


class Net(nn.Module):
    """A folded norm, and a weight that is transformed."""

    def __init__(self) -> None:
        self.norm, self.conv, self.fc = nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc(gc.mean(gc.relu(self.conv(self.norm(x))), axis=(2, 3)))


def entries() -> dict[str, gc.Entry]:
    gc.seed(0)
    net = Net()
    opt = optim.SGD(net.parameters(), lr=0.1)

    @gc.entry(x=gc.spec(SHAPE, "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        net.eval()
        return {"y": net(x)}

    @gc.entry(x=gc.spec(SHAPE, "float32"), labels=gc.spec((2,), "int32"))
    def train(x: gc.Tensor, labels: gc.Tensor) -> dict[str, gc.Tensor]:
        net.train()
        loss = gc.cross_entropy(net(x), labels)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return {"infer": infer, "train": train}


def inference(**options: Any) -> Program:
    return gc.compile(entries()["infer"], **options)


def answer(program: Program, x: np.ndarray = X) -> np.ndarray:
    return program.infer(x=x)["y"]


def preparations(program: Program) -> int:
    """How many prepared launches a call runs."""
    count = program.code.manifest.entries[0].prepared
    return int(np.count_nonzero(program.infer.timed(x=X)[1][:count]))


def unprepared(program: Program) -> np.ndarray:
    """What a program that prepares nothing answers with the same state."""
    whole = inference(threads=1).infer.memory.peak_bytes
    plain = inference(memory_budget=whole - 1, threads=1)
    assert plain.infer.memory.prepared_bytes == 0
    plain.load_state_dict(dict(program.state), strict=False)
    return answer(plain)


# When ----------------------------------------------------------------------------------------------------------------


def test_it_runs_once() -> None:
    program = inference(threads=1)
    (entry,) = program.code.manifest.entries
    assert entry.prepared > 0
    assert entry.prepared_bytes > 0
    assert {"conv.weight", "norm.running_mean", "norm.weight"} <= set(entry.prepared_from)
    assert [preparations(program) > 0, preparations(program) > 0] == [True, False]


def test_the_same_bits_with_and_without() -> None:
    program = inference(threads=1)
    first = answer(program)
    np.testing.assert_array_equal(answer(program), first)
    np.testing.assert_array_equal(unprepared(program), first)
    np.testing.assert_array_equal(answer(inference(threads=2)), first)


def assigned(program: Program, path: Path) -> None:
    program.state["conv.weight"] = np.ones((32, 16, 3, 3), np.float32)


def written(program: Program, path: Path) -> None:
    program.state["norm.running_var"][1:3] = 4


def given(program: Program, path: Path) -> None:
    program.load_state_dict({"conv.weight": np.ones((32, 16, 3, 3), np.float32)}, strict=False)


def loaded(program: Program, path: Path) -> None:
    other = inference(threads=1)
    other.state["conv.weight"][:] = 2
    other.save_state(path / "state.safetensors")
    program.load_state(path / "state.safetensors")


@pytest.mark.parametrize("change", [assigned, written, given, loaded])
def test_a_change_of_the_state_is_noticed(change: Callable[[Program, Path], None], tmp_path: Path) -> None:
    program = inference(threads=1)
    before = answer(program)
    change(program, tmp_path)
    after = answer(program)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, unprepared(program))
    assert [preparations(program) > 0, preparations(program) > 0] == [True, False]  # `unprepared` read the state


def test_an_array_that_is_held_may_be_written_at_any_time() -> None:
    program = inference(threads=1)
    row = program.state["conv.weight"][3]  # the array itself is gone
    found = []
    for value in (1.0, 2.0, 3.0):
        row[:] = value
        found.append(answer(program))
    row[:] = 4.0
    del row
    found.append(answer(program))
    assert len({y.tobytes() for y in found}) == 4
    np.testing.assert_array_equal(found[-1], unprepared(program))
    other = program.state["fc.bias"]  # nothing is made of that
    assert other.size == 10
    assert [preparations(program) > 0, preparations(program) > 0] == [True, False]


def test_what_another_entry_writes_is_noticed() -> None:
    both = entries()
    program = gc.compile(*both.values(), threads=1)
    infer, train = program.code.manifest.entries
    assert infer.prepared > 0
    assert train.prepared == 0
    assert set(infer.prepared_from) <= set(train.writes)
    found = [answer(program)]
    for _ in range(2):
        program.train(x=X, labels=LABELS)
        found.append(answer(program))
    assert len({y.tobytes() for y in found}) == 3
    np.testing.assert_array_equal(found[-1], unprepared(program))


def test_two_entries_prepare_for_themselves() -> None:
    net = Net()

    @gc.entry(x=gc.spec(SHAPE, "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        net.eval()
        return {"y": net(x)}

    @gc.entry(x=gc.spec((1, *SHAPE[1:]), "float32"))
    def one(x: gc.Tensor) -> dict[str, gc.Tensor]:
        net.eval()
        return {"y": net(x)}

    program = gc.compile(infer, one, threads=1)
    first = answer(program), program.one(x=X[:1])["y"]
    program.state["conv.weight"] = np.ones((32, 16, 3, 3), np.float32)
    for _ in range(2):
        second = answer(program), program.one(x=X[:1])["y"]
        np.testing.assert_allclose(second[0][:1], second[1], rtol=1e-4)
    assert not any(map(np.array_equal, first, second))
    kept = sum(e.prepared_bytes for e in program.code.manifest.entries)
    assert program.infer.memory.prepared_bytes == program.one.memory.prepared_bytes == kept


def test_state_that_the_entry_writes_is_not_prepared() -> None:
    fixed, total = gc.state(np.ones((4, 4), np.float32), name="fixed"), gc.state(np.ones(4, np.float32), name="total")

    @gc.entry(x=gc.spec((4,), "float32"))
    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        total.assign(gc.softmax(fixed, axis=0) @ total + x)
        return {"y": gc.softmax(total) @ x}

    program = gc.compile(step, threads=1)
    (entry,) = program.code.manifest.entries
    assert entry.prepared_from == ("fixed",)
    assert entry.writes == ("total",)
    want = np.ones(4)
    for _ in range(3):
        program.step(x=np.ones(4, np.float32))
        want = want + 1
        np.testing.assert_allclose(program.state["total"], want, rtol=1e-6)


def test_loops_and_branches_read_what_is_prepared() -> None:
    w = gc.state(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4), name="w")

    @gc.entry(xs=gc.spec((5, 4), "float32"))
    def run(xs: gc.Tensor) -> dict[str, gc.Tensor]:
        turn = gc.softmax(w, axis=0)
        last, rows = gc.scan(lambda h, x: (gc.tanh(turn @ h + x), gc.sum(h)), xs[0], xs)
        return {"rows": rows, "y": gc.cond(gc.sum(turn[0]) > 1.0, lambda v: v, lambda v: -v, last)}

    program = gc.compile(run, threads=1)
    (entry,) = program.code.manifest.entries
    assert entry.prepared > 0
    assert entry.spans
    xs = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
    for sign in (1, -1):
        e = np.exp(sign * np.linspace(-1, 1, 16).reshape(4, 4))
        turn, h, rows = e / e.sum(axis=0), xs[0].astype(np.float64), []
        for x in xs:
            rows.append(h.sum())
            h = np.tanh(turn @ h + x)
        for _ in range(2):
            found = program.run(xs=xs)
            np.testing.assert_allclose(found["rows"], rows, rtol=1e-5)
            np.testing.assert_allclose(found["y"], h if turn[0].sum() > 1 else -h, rtol=1e-5)
        program.state["w"] = -np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


# Panels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "columns", "precision"), [(96, 70, "float32"), (33, 128, "float32"), (96, 70, "bfloat16")]
)
def test_panels_are_packed_ahead(depth: int, columns: int, precision: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 200, depth)).astype(np.float32)
    weights = rng.standard_normal((2, columns, depth)).astype(np.float32)
    w = gc.state(weights, name="w")

    @gc.entry(x=gc.spec(x.shape, "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": gc.relu(x @ gc.permute_dims(w, (0, 2, 1)))}

    def found(**options: Any) -> tuple[Program, list[bytes]]:
        vectors = {"cpu_baseline": VECTORS} if precision == "float32" else {}
        program = gc.compile(infer, precision=precision, **vectors, **options)
        answers = [answer(program, x)]
        program.state["w"] = weights + 1
        answers += [answer(program, x) for _ in range(2)]
        exact = x.astype(np.float64) @ weights.swapaxes(1, 2)
        bound = 1e-5 if precision == "float32" else 2e-2
        assert np.abs(answers[0] - np.maximum(exact, 0)).max() <= bound * np.abs(exact).max()
        return program, [y.tobytes() for y in answers]

    program, want = found(threads=1)
    memory = program.infer.memory
    assert any(k.name.endswith("_panels") and k.prepared and not k.count for k in program.infer.kernels)
    plain, without = found(threads=1, memory_budget=memory.peak_bytes - 1)
    assert plain.infer.memory.prepared_bytes == 0
    assert found(threads=2)[1] == without == want


@pytest.mark.parametrize(("layout", "rows", "columns"), [("nk", 30, 1056), ("kn", 30, 1056), ("kn", 41, 1000)])
def test_panels_of_large_weights_are_packed_ahead_for_few_rows(layout: str, rows: int, columns: int) -> None:
    rng, depth = np.random.default_rng(0), 700
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    weights = rng.standard_normal((columns, depth) if layout == "nk" else (depth, columns)).astype(np.float32)
    w = gc.state(weights, name="w")

    @gc.entry(x=gc.spec(x.shape, "float32"))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": gc.relu(x @ (w.T if layout == "nk" else w))}

    program = gc.compile(infer, threads=1, cpu_baseline=VECTORS)
    memory = program.infer.memory
    assert memory.prepared_bytes >= weights.nbytes
    plain = gc.compile(infer, threads=1, cpu_baseline=VECTORS, memory_budget=memory.peak_bytes - 1)
    assert plain.infer.memory.prepared_bytes == 0
    found = answer(program, x)
    exact = x.astype(np.float64) @ (weights.T if layout == "nk" else weights)
    assert np.abs(found - np.maximum(exact, 0)).max() <= 1e-5 * np.abs(exact).max()
    for other in (plain, gc.compile(infer, threads=2, cpu_baseline=VECTORS)):
        np.testing.assert_array_equal(answer(other, x), found)


# Memory --------------------------------------------------------------------------------------------------------------


def test_memory_is_counted() -> None:
    program = inference(threads=1)
    memory = program.infer.memory
    assert " + prepared " in str(memory).splitlines()[0]
    assert program.infer.measured_peak_bytes(x=X) == memory.peak_bytes
    assert memory.arena_bytes <= 1.02 * memory.lower_bound_bytes + 64 * len(memory.tensors)
    exact = inference(threads=1, memory_budget=memory.peak_bytes)
    assert exact.infer.memory.prepared_bytes == memory.prepared_bytes


def test_one_answer_while_memory_is_measured() -> None:
    program = inference(threads=1)
    before = answer(program)
    program.infer.measured_peak_bytes(x=X)
    np.testing.assert_array_equal(answer(program), before)


# Files ---------------------------------------------------------------------------------------------------------------


def saved(path: Path) -> tuple[Path, np.ndarray]:
    program = inference(threads=1)
    program.save(path / "net.gcx")
    return path / "net.gcx", answer(program)


def test_a_reader_that_does_not_know_of_it_runs_all_in_every_step(tmp_path: Path) -> None:
    path, want = saved(tmp_path)

    def older(m: dict[str, Any]) -> None:
        m["format"] = "1.0"
        for key in ("prepared", "prepared_bytes", "prepared_from", "writes"):
            del m["entries"][0][key]

    np.testing.assert_array_equal(answer(load(path, threads=1)), want)
    rewrite(path, older)
    program = load(path, trusted=True, threads=1)
    assert program.infer.memory.prepared_bytes == 0
    for _ in range(2):
        np.testing.assert_array_equal(answer(program), want)


@pytest.mark.parametrize(
    "damage",
    [
        {"prepared": -1},
        {"prepared": 10_000},
        {"prepared_bytes": 1 << 40},
        {"prepared_bytes": -64},
        {"prepared_bytes": 96},  # in the middle of a tensor
        {"prepared_from": ["nothing"]},
        {"writes": ["nothing"]},
        {"writes": ["conv.weight"]},
    ],
)
def test_damage_is_found(damage: dict[str, Any], tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    rewrite(path, lambda m: m["entries"][0].update(damage))
    with pytest.raises(GraphcError) as caught:
        Artifact.read(path)
    assert caught.value.code == "GC0502"
