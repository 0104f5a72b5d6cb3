"""Where the values of a program's state come from: a file's own seed, or weights given by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.runtime import Program

NET = """
import graphc as gc
from graphc import nn, optim

net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
opt = optim.AdamW(net.parameters(), lr=0.1)


@gc.entry(x=gc.spec((5, 3)))
def train(x):
    loss = gc.mean(net(x) ** 2)
    opt.update(gc.grad(loss, net.parameters()))
    return {"loss": loss}
"""
WEIGHTS = {
    "0.weight": np.full((4, 3), 2, np.float32),
    "0.bias": np.ones(4, np.float32),
    "2.weight": np.zeros((2, 4), np.float32),
    "2.bias": np.ones(2, np.float32),
}


def compiled(folder: Path) -> Program:
    (folder / "net.py").write_text(NET)
    made: Program = gc.compile_file(folder / "net.py", threads=1)
    return made


def test_a_file_compiles_to_the_same_artifact_each_time(tmp_path: Path) -> None:
    """Though the file sets no seed, and whatever drew random numbers before."""
    first, second = compiled(tmp_path), compiled(tmp_path)
    gc.seed(7)
    third = compiled(tmp_path)
    first.save(tmp_path / "1.gcx")
    second.save(tmp_path / "2.gcx")
    assert (tmp_path / "1.gcx").read_bytes() == (tmp_path / "2.gcx").read_bytes()
    assert first.artifact.digest == third.artifact.digest
    assert np.ptp(first.state["0.weight"]) > 0


# Weights by name -----------------------------------------------------------------------------------------------------


@cache
def artifact_of(folder: Path) -> Any:
    return compiled(folder).artifact


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A program after one step, so that no piece of state is zero by chance."""
    made = Program(artifact_of(tmp_path_factory.getbasetemp()), threads=1)
    made.train(x=np.ones((5, 3), np.float32))
    return made


def values(program: Program) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in program.state.items()}


def test_weights_leave_other_state_alone(program: Program) -> None:
    before = values(program)
    assert {"optim.step", "rng.step", "optim.0.weight.exp_avg"} < before.keys()
    program.load_state_dict(WEIGHTS)
    after = values(program)
    assert {name for name in before if before[name] != after[name]} == WEIGHTS.keys()
    assert all(after[name] == array.tobytes() for name, array in WEIGHTS.items())
    program.load_state_dict({**WEIGHTS, "optim.step": np.int32(7)})  # more than weights, if wanted
    assert program.state["optim.step"] == 7


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (
        lambda w: w.pop("2.bias"),
        "GC0801: the tensors given lack state '2.bias'\n"
        "  hint: strict=False leaves it as it is; nothing was overwritten",
    ),
    "unknown": (
        lambda w: w.update({"3.bias": w["2.bias"]}),
        "GC0801: the program has no state '3.bias'\n"
        "  hint: it has '2.bias', '0.bias'; strict=False skips other names; nothing was overwritten",
    ),
    "shape": (
        lambda w: w.update({"2.weight": w["2.weight"].T}),
        "GC0802: state '2.weight' is float32[2,4], but the value given is float32[4,2]\n"
        "  hint: it belongs to another configuration; nothing was overwritten",
    ),
    "dtype": (
        lambda w: w.update({"2.weight": w["2.weight"].astype(np.float64)}),
        "GC0802: state '2.weight' is float32[2,4], but the value given is float64[2,4]\n"
        "  hint: it belongs to another configuration; nothing was overwritten",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused_and_change_nothing(case: str, program: Program) -> None:
    change, text = WRONG[case]
    given, before = dict(WEIGHTS), values(program)
    change(given)
    with pytest.raises(gc.GraphcError) as caught:
        program.load_state_dict(given)
    assert str(caught.value) == text
    assert values(program) == before


def test_not_strict_takes_what_fits(program: Program) -> None:
    program.load_state_dict({"0.bias": WEIGHTS["0.bias"], "head.bias": np.zeros(2)}, strict=False)
    assert program.state["0.bias"].tolist() == [1, 1, 1, 1]


def test_a_checkpoint_is_all_state(program: Program, tmp_path: Path) -> None:
    """What `load_state` reads must be complete: weights alone do not resume a run."""
    from safetensors.numpy import save_file

    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    with pytest.raises(gc.GraphcError, match="GC0801: the tensors given lack state 'rng"):
        program.load_state(tmp_path / "weights.safetensors")
    program.load_state(tmp_path / "weights.safetensors", strict=False)
    assert program.state["0.bias"].tolist() == [1, 1, 1, 1]
