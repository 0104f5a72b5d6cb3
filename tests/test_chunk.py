"""Losses over large vocabularies in chunks of rows: the same values, in less memory, and only where it pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from planned import Arrays, check, compare, traced
from tracing import trace

import graphc as gc
from graphc.interp import interpret
from graphc.ir import Graph, Node
from graphc.passes import chunk, pipeline
from graphc.passes.differentiate import differentiate
from graphc.verify import verify

ROWS, COLUMNS, DEPTH, CHUNK = (3, 8), 50, 4, 6
RNG = np.random.default_rng(3)
IDS = RNG.integers(0, COLUMNS, ROWS).astype(np.int32)
WITH_IGNORED = np.where(RNG.random(ROWS) < 0.3, -100, IDS).astype(np.int32)

Loss = Callable[[gc.Tensor, gc.Tensor], gc.Tensor]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size count as large, and chunks are short."""
    monkeypatch.setattr(chunk, "LARGE", 0)
    monkeypatch.setattr(chunk, "NEAR", 0)
    monkeypatch.setattr(chunk, "ROWS", CHUNK)
    monkeypatch.setattr(chunk, "SMALL_ROWS", CHUNK // 2)
    monkeypatch.setattr(chunk, "LEAST_ROWS", 2)


def by_hand(logits: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
    """With a cap on logits, as Gemma has it, and a term that keeps their scale (PaLM's z-loss)."""
    capped = 3.0 * gc.tanh(logits / 3.0)
    lse = gc.log(gc.sum(gc.exp(capped), axis=-1))
    chosen = gc.sum(gc.one_hot(y, COLUMNS) * capped, axis=-1)
    return (lse - chosen + 1e-2 * lse * lse).mean()


def soft(logits: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
    return gc.cross_entropy(logits, gc.one_hot(y, COLUMNS) * 0.9 + 0.1 / COLUMNS)


LOSSES: dict[str, Loss] = {
    "mean": gc.cross_entropy,
    "sum": lambda logits, y: gc.cross_entropy(logits, y, reduction="sum"),
    "smoothed": lambda logits, y: gc.cross_entropy(logits, y, label_smoothing=0.2),
    "weighted": lambda logits, y: gc.cross_entropy(logits, y, weight=np.linspace(0.5, 2, COLUMNS, dtype=np.float32)),
    "flat": lambda logits, y: gc.cross_entropy(logits.reshape((-1, COLUMNS)), y.reshape((-1,))),
    "shifted": lambda logits, y: gc.cross_entropy(logits[:, :-1], y[:, 1:]),
    "soft": soft,
    "by hand": by_hand,
}


def head(loss: Loss, tied: bool = False) -> tuple[Callable[..., Any], Arrays]:
    """Embedding, tanh, logits, ``loss`` and all gradients; with a bias where the two tables are not one."""
    arrays = {"ids": IDS, "y": WITH_IGNORED, "table": RNG.standard_normal((COLUMNS, DEPTH), np.float32)}
    if not tied:
        arrays["w"] = RNG.standard_normal((DEPTH, COLUMNS), np.float32)
        arrays["b"] = RNG.standard_normal(COLUMNS, np.float32)

    def fn(ids: gc.Tensor, y: gc.Tensor, table: gc.Tensor, **last: gc.Tensor) -> dict[str, gc.Tensor]:
        x = gc.tanh(gc.take(table, ids, axis=0))
        logits = x @ last["w"] + last["b"] if last else x @ table.T
        value = loss(logits, y)
        wrt = {"table": table, **last}
        return {"loss": value, **dict(zip(wrt, gc.grad(value, list(wrt.values())), strict=True))}

    return fn, arrays


def loops(graph: Graph) -> list[Node]:
    return [node for node in graph if node.op == "scan"]


def chunked(fn: Callable[..., Any], arrays: Arrays) -> Graph:
    """The graph after the pass, which verifies and has the results of the graph as it was traced."""
    made = trace(fn, **arrays)
    graph = pipeline.run(made.graph, stop_after="chunk", check=True)
    want, _ = interpret(differentiate(made.graph), arrays, made.initial)
    got, _ = interpret(graph, arrays, made.initial)
    compare(got, want, 1e-5)
    return graph


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "shifted"])
def test_losses_and_gradients(name: str, tied: bool) -> None:
    fn, arrays = head(LOSSES[name], tied)
    graph = chunked(fn, arrays)
    (loop,) = loops(graph)
    assert loop.attrs["length"] == 4
    assert loop.attrs["carries"] >= (1 if tied else 2)
    plan = check(graph, arrays, threads=2)
    assert max(a.buffer.nbytes for launch in plan.launches for a in launch.args if a.buffer) < 24 * COLUMNS * 4


@pytest.mark.usefixtures("small")
def test_a_loss_alone() -> None:
    fn, arrays = head(gc.cross_entropy)
    graph = chunked(lambda **tensors: {"loss": fn(**tensors)["loss"]}, arrays)
    (loop,) = loops(graph)
    assert not loop.attrs["carries"]
    assert [t.shape for t in loop.types] == [(4, 6)] * len(loop.types)


@pytest.mark.usefixtures("small")
def test_half_precision_adds_up_in_float32() -> None:
    fn, arrays = head(gc.cross_entropy, tied=True)
    arrays["table"] = arrays["table"].astype(np.float16)
    graph, state = traced(fn, **arrays)
    (loop,) = loops(graph)
    assert [str(t.dtype) for t in loop.types[: loop.attrs["carries"]]] == ["float32"]
    check(graph, arrays, state, tolerance=2e-2)


@pytest.mark.usefixtures("small")
def test_what_does_not_keep_rows_together_stays_whole() -> None:
    assert not loops(chunked(*head(LOSSES["shifted"])))


@pytest.mark.usefixtures("small")
def test_logits_that_are_a_result_stay_whole() -> None:
    def fn(x: gc.Tensor, w: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        logits = x @ w
        return {"loss": gc.cross_entropy(logits, y), "logits": logits}

    arrays = {"x": np.ones((24, DEPTH), np.float32), "w": np.ones((DEPTH, COLUMNS), np.float32)}
    assert not loops(chunked(fn, {**arrays, "y": IDS.reshape(-1)}))


@pytest.mark.usefixtures("small")
def test_a_gradient_that_needs_the_whole_loss_first() -> None:
    def squared(logits: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        loss = gc.cross_entropy(logits, y)
        return loss * loss

    assert not loops(chunked(*head(squared)))


@pytest.mark.usefixtures("small")
def test_inside_a_loop() -> None:
    """Micro-batches, each with its own loss."""
    fn, arrays = head(gc.cross_entropy, tied=True)

    def steps(ids: gc.Tensor, y: gc.Tensor, table: gc.Tensor) -> gc.Tensor:
        def body(total: gc.Tensor, rows: tuple[gc.Tensor, gc.Tensor]) -> tuple[gc.Tensor, None]:
            return total + fn(*rows, table)["table"], None

        return gc.scan(body, gc.zeros_like(table), (ids, y))[0]

    arrays |= {name: np.stack([arrays[name]] * 2) for name in ("ids", "y")}
    graph = chunked(lambda **tensors: {"total": steps(**tensors)}, arrays)
    (outer,) = loops(graph)
    assert len(loops(outer.attrs["body"])) == 1
    check(graph, arrays)


@pytest.mark.usefixtures("small")
def test_compiled_with_any_number_of_threads() -> None:
    fn, arrays = head(LOSSES["smoothed"], tied=True)
    one, two = (gc.compile(gc.entry(**arrays)(fn), threads=n).entries["fn"](**arrays) for n in (1, 2))
    want, _ = interpret(differentiate(trace(fn, **arrays).graph), arrays, {})
    compare(two, want, 1e-5)
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


@pytest.mark.usefixtures("small")
def test_a_memory_budget_makes_chunks_smaller() -> None:
    fn, arrays = head(gc.cross_entropy, tied=True)
    entry = gc.entry(**arrays)(fn)
    free = gc.compile(entry)
    tight = gc.compile(entry, memory_budget=free.fn.memory.peak_bytes - 256)
    for program, rows in ((free, CHUNK), (tight, CHUNK // 2)):
        assert f"contract_{rows}x{COLUMNS}x{DEPTH}" in [k.name for k in program.fn.kernels]
    compare(tight.fn(**arrays), free.fn(**arrays), 1e-5)


# Where it pays -------------------------------------------------------------------------------------------------------


def loops_of(rows: int, columns: int, depth: int, gradients: bool = True) -> int:
    """The loops of a loss over so large a vocabulary, which nobody runs."""

    def fn(x: gc.Tensor, w: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(x @ w.T, y)
        return {"loss": loss, **(dict(zip("xw", gc.grad(loss, [x, w]), strict=True)) if gradients else {})}

    shapes = {"x": gc.spec((rows, depth)), "w": gc.spec((columns, depth)), "y": gc.spec((rows,), "int32")}
    graph = pipeline.run(trace(fn, **shapes).graph, stop_after="chunk")
    verify(graph)
    return len(loops(graph))


def test_only_where_it_saves_memory() -> None:
    assert loops_of(2048, 50257, 768) == 1
    assert loops_of(1024, 50257, 768) == 0, "the gradient of the table, from the beginning, is no smaller than logits"
    assert loops_of(1024, 50257, 768, gradients=False) == 1
    assert loops_of(128, 50257, 768, gradients=False) == 0, "logits are small"
    assert loops_of(1024, 4096, 288) == 1, "a small table is read again for fewer logits"
    assert loops_of(65536, 3072, 768) == 0, "a layer inside a network, not a vocabulary"
    assert loops_of(2027, 50257, 768) == 0, "a prime number of rows has no chunks"
