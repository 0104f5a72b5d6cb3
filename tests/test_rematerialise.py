"""A budget below the peak: values are computed again, the results keep their bits, and the plan says so."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.driver import CompileReport
from graphc.driver import compile as compile_entries
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.passes import pipeline
from graphc.passes.rematerialise import rematerialise
from graphc.passes.schedule import peak_bytes, schedule
from graphc.tracing import Entry, trace_entries
from graphc.verify import verify

BATCH, WIDTH, LAYERS = 64, 32, 6


def entries(dropout: float = 0.0) -> Entry:
    """A training step of a deep network whose activations are most of its memory."""
    gc.seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    net = nn.Sequential(*(m for layer in layers for m in (layer, nn.GELU(), nn.LayerNorm(WIDTH), nn.Dropout(dropout))))
    opt = optim.AdamW(net.parameters(), lr=1e-3)

    @gc.entry(x=gc.spec((BATCH, WIDTH)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(net(x) ** 2)
        opt.update(optim.clip_by_global_norm(gc.grad(loss, net.parameters()), 1.0))
        return {"loss": loss}

    return train


def arena_and_rest(program: gc.Program) -> tuple[int, int]:
    memory = program.train.memory
    return memory.arena_bytes, memory.peak_bytes - memory.arena_bytes


def losses(program: gc.Program) -> list[bytes]:
    x = np.random.default_rng(1).standard_normal((BATCH, WIDTH)).astype(np.float32)
    return [program.train(x=x)["loss"].tobytes() for _ in range(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_smaller_budget_gives_the_same_bits(dropout: float) -> None:
    whole = gc.compile(entries(dropout), threads=1)
    arena, rest = arena_and_rest(whole)
    report = CompileReport()
    budget = rest + arena * 17 // 20  # of what is left once late kernels write what they can by the way
    fitted = compile_entries(entries(dropout), threads=1, memory_budget=budget, report=report)
    assert fitted.train.memory.peak_bytes <= budget < whole.train.memory.peak_bytes
    again = report.recomputed["train"]
    assert again.launches > 0
    assert 0 < again.share < 0.5
    assert losses(fitted) == losses(whole)
    for name, value in whole.state.items():
        np.testing.assert_array_equal(value, fitted.state[name], err_msg=name)


def test_a_budget_that_is_large_enough_changes_nothing() -> None:
    whole = gc.compile(entries(), threads=1)
    report = CompileReport()
    fitted = compile_entries(entries(), threads=1, memory_budget=whole.train.memory.peak_bytes, report=report)
    assert not report.recomputed
    assert len(fitted.train.kernels) == len(whole.train.kernels)


def test_the_error_names_a_budget_that_fits() -> None:
    with pytest.raises(GraphcError) as caught:
        gc.compile(entries(), threads=1, memory_budget=1000)
    assert caught.value.code == "GC0701"
    (line,) = [line for line in str(caught.value).splitlines() if "smallest budget" in line]
    least = int(line.split()[-2])
    assert gc.compile(entries(), threads=1, memory_budget=least).train.memory.peak_bytes <= least
    with pytest.raises(GraphcError):
        gc.compile(entries(), threads=1, memory_budget=least - 1)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.0])
def test_the_pass_keeps_the_meaning_and_lowers_the_peak(share: float) -> None:
    (traced,) = trace_entries(entries(0.2))
    graph = pipeline.run(traced.graph, stop_after="schedule", check=True)
    peak = peak_bytes(graph)
    made = rematerialise(graph, int(peak * share))
    verify(made)
    assert peak_bytes(made) < peak
    assert share < 0.7 or peak_bytes(made) <= peak * share
    assert peak_bytes(schedule(made)) <= peak_bytes(made)
    x = np.random.default_rng(2).standard_normal((BATCH, WIDTH)).astype(np.float32)
    want, got = (interpret(g, {"x": x}, traced.initial) for g in (graph, made))
    assert want[0]["loss"] == got[0]["loss"]
    for name, value in want[1].items():
        np.testing.assert_array_equal(value, got[1][name], err_msg=name)


def test_a_graph_below_the_limit_is_left_alone() -> None:
    (traced,) = trace_entries(entries())
    graph = pipeline.run(traced.graph)
    assert rematerialise(graph, peak_bytes(graph)) is graph
