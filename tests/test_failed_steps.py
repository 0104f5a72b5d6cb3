"""A step that finds an index out of range ends with an error that names the user's line, and has changed nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_models import SMALL

import graphc as gc
from graphc import nn, optim
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.passes import pipeline
from graphc.tracing import Entry, trace_entry

Arrays = dict[str, np.ndarray]


def words() -> tuple[Entry, Arrays]:
    """Tokens and labels, all kinds of state: moments of the optimizer, a step, random numbers, averages."""
    net = nn.Sequential(nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 5))
    opt = optim.AdamW(net.parameters(), lr=0.1)
    average = optim.EMA(net.parameters())

    @gc.entry(token=gc.spec((6,), "int32"), label=gc.spec((6,), "int32"))
    def train(token: gc.Tensor, label: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(token), label)
        opt.update(optim.clip_by_global_norm(gc.grad(loss, net.parameters()), 1.0))
        average.update()
        return {"loss": loss}

    return train, {"token": np.arange(6, dtype=np.int32), "label": np.arange(6, dtype=np.int32) % 5}


def images() -> tuple[Entry, Arrays]:
    """Running statistics, assigned in the forward pass, and weighted classes."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5))
    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    @gc.entry(x=gc.spec((6, 2, 6, 6)), label=gc.spec((6,), "int32"))
    def train(x: gc.Tensor, label: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(net(x), label, weight=np.arange(1, 6, dtype=np.float32))
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    x = np.random.default_rng(0).standard_normal((6, 2, 6, 6), np.float32)
    return train, {"x": x, "label": np.arange(6, dtype=np.int32) % 5}


def elements() -> tuple[Entry, Arrays]:
    """Elements by index, in a state that is written first of all."""
    count, table = gc.state(np.int32(0), name="count"), nn.Parameter(np.eye(6, 4, dtype=np.float32), name="table")

    @gc.entry(at=gc.spec((6, 2), "int64"))
    def train(at: gc.Tensor) -> dict[str, gc.Tensor]:
        count.assign(count + 1)
        chosen = gc.take_along_axis(table, at)
        table.assign(table + gc.sum(chosen))
        return {"chosen": chosen}

    return train, {"at": np.zeros((6, 2), np.int64)}


CASES: dict[str, tuple[Callable[[], tuple[Entry, Arrays]], str, int]] = {
    "a token above": (words, "token", 7),
    "a token below": (words, "token", -1),
    "a label above": (words, "label", 5),
    "a label below": (words, "label", -7),
    "a label with weights": (images, "label", 5),
    "an element": (elements, "at", 4),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_overwritten(case: str, threads: int) -> None:
    build, name, bad = CASES[case]
    entry, good = build()
    program = gc.compile(entry, threads=threads)
    program.train(**good)
    before = {n: a.tobytes() for n, a in program.state.items()}
    wrong = good[name].copy()
    wrong.reshape(-1)[3] = bad
    with pytest.raises(gc.GraphcError) as caught:
        program.train(**(good | {name: wrong}))
    problem = caught.value
    assert problem.code == "GC0420"
    assert problem.loc is not None
    assert problem.loc.file.endswith("test_failed_steps.py")
    assert problem.hint == "check the arrays given; the state is unchanged"
    assert {n: a.tobytes() for n, a in program.state.items()} == before
    program.train(**good)  # and the program goes on
    assert {n: a.tobytes() for n, a in program.state.items()} != before


def test_where_new_state_is_looked_up_the_step_says_so() -> None:
    table, at = gc.state(np.arange(3.0, dtype=np.float32), name="table"), gc.state(np.int32(0), name="at")

    @gc.entry
    def step() -> dict[str, gc.Tensor]:
        at.assign(at + 2)
        return {"y": gc.take(table, at)}

    program = gc.compile(step, threads=1)
    assert program.step()["y"] == 2
    with pytest.raises(gc.GraphcError) as caught:
        program.step()
    if program.state["at"] == 2:
        assert "the state is unchanged" in str(caught.value)
    else:
        assert "the state is what it made of it" in str(caught.value)


@pytest.mark.parametrize("name", SMALL)
def test_in_the_models_all_checks_come_before_the_first_change(name: str) -> None:
    module, sizes = SMALL[name]
    train = next(e for e in module.entries(module.Config(**sizes)) if e.name == "train")
    plan = lower(pipeline.run(trace_entry(train).graph), BASELINES["x86-64-v4"])
    checks: list[set[tuple[str, object]]] = [set(), set()]  # before the first change of state, and from there on
    changed = False
    for launch in plan.launches:
        changed |= any(a.writes and a.buffer is not None and a.buffer.space == "state" for a in launch.args)
        flags = [a for a in launch.args if a.buffer is not None and a.buffer.space == "flags"]
        checks[changed] |= {(plan.flags[a.offset // 4].message, plan.flags[a.offset // 4].loc) for a in flags}
    assert checks[False]
    assert checks[True] <= checks[False]  # what is checked again later, as in the gradient of an embedding, has passed
