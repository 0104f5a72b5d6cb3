"""Loops and branches compiled: results, bits for any number of threads, memory as predicted, artifacts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import nn
from graphc.artifact import Artifact
from graphc.artifact_check import check_manifest
from graphc.artifact_records import ARENA, VALUE, EntryRecord, SpanRecord
from graphc.driver import Program
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.passes.differentiate import differentiate
from graphc.runtime_table import BRANCH, CALL, REPEAT
from graphc.tracing import trace_entries

RNG = np.random.default_rng(9)
ARRAYS = {"xs": RNG.standard_normal((6, 40, 8), np.float32), "n": np.array(3, np.int32)}
SPECS = {name: gc.spec(a.shape, str(a.dtype)) for name, a in ARRAYS.items()}


def entries() -> list[gc.Entry]:
    """Two entries over one state, with all kinds of control flow, inside each other and differentiated."""
    gc.seed(1)
    net = nn.GRU(8, 16).named("net")
    calls = gc.state(np.int32(0), name="calls")

    @gc.entry(**SPECS)
    def train(xs: gc.Tensor, n: gc.Tensor) -> Any:
        ys, last = net(xs)

        def halve(v: gc.Tensor) -> gc.Tensor:
            calls.assign(calls + 1)
            return v * 0.5

        small = gc.while_loop(lambda v: gc.sum(v * v) > 0.01, halve, last)
        scaled = gc.cond(n > 2, lambda v: gc.tanh(v) * n, lambda v: v + 1.0, ys)
        loss = gc.sum(scaled * scaled) + gc.sum(last)
        grads = gc.grad(loss, list(net.parameters()))
        for p, g in zip(net.parameters(), grads, strict=True):
            p.assign(p - 1e-3 * g)
        return {"loss": loss, "small": small, "scaled": scaled}

    @gc.entry(**SPECS)
    def nested(xs: gc.Tensor, n: gc.Tensor) -> Any:
        def outer(c: gc.Tensor, x: gc.Tensor) -> Any:
            def inner(d: gc.Tensor, row: gc.Tensor) -> Any:
                d = gc.cond(gc.sum(row) > 0, lambda: d + row, lambda: d * 0.5 - row)
                return d, gc.sin(d) * row

            d, ys = gc.scan(inner, c * 0.1, x, reverse=True)
            k, d = gc.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] * 0.5 + c), (0, d))
            return d, (ys, k)

        last, (ys, k) = gc.scan(outer, gc.zeros(8), xs)
        weighted, _ = gc.scan(lambda c, x: (gc.tanh(c + gc.sum(x, axis=0)), None), gc.zeros(8), xs)
        return {"last": last, "ys": ys, "k": k, "g": gc.grad(gc.sum(weighted * weighted), xs)}

    return [train, nested]


@pytest.fixture(scope="module")
def program() -> Program:
    return gc.compile(*entries(), threads=2)


def test_results_are_the_interpreters(program: Program) -> None:
    for traced in trace_entries(*entries()):
        graph = differentiate(traced.graph)
        state = {name: a.copy() for name, a in program.state.items()}
        for _ in range(3):  # a second step finds the tables as the first has found them
            want, state = interpret(graph, ARRAYS, state)
            got = program.entries[graph.name](**ARRAYS)
            for name, array in want.items():
                np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-5, err_msg=name)
        for name, array in state.items():
            np.testing.assert_allclose(program.state[name], array, rtol=2e-4, atol=2e-5, err_msg=name)


def test_the_same_bits_for_any_number_of_threads() -> None:
    results = []
    for threads in (1, 2, 3):
        it = gc.compile(*entries(), threads=threads)
        for _ in range(5):
            outputs = {**it.train(**ARRAYS), **it.nested(**ARRAYS)}
        results.append({**outputs, **{n: np.array(a) for n, a in it.state.items()}})
        it.close()
    for other in results[1:]:
        for name, array in results[0].items():
            assert other[name].tobytes() == array.tobytes(), name


def test_measured_memory_is_the_predicted() -> None:
    xs = gc.spec((6, 40, 8))
    net = nn.LSTM(8, 16)

    @gc.entry(xs=xs)
    def train(xs: gc.Tensor) -> Any:
        ys, _ = net(xs)
        return {"g": gc.grad(gc.sum(ys * ys), xs)}

    it = gc.compile(train)
    assert it.train.measured_peak_bytes(xs=ARRAYS["xs"]) == it.train.memory.peak_bytes


def test_a_loop_is_a_loop() -> None:
    """The number of kernels and launches does not depend on the number of iterations; the work does."""

    def compiled(times: int) -> Program:
        net = nn.RNN(8, 16).named("net")

        @gc.entry(x=gc.spec((times, 4, 8)))
        def infer(x: gc.Tensor) -> Any:
            return {"y": net(x)[1]}

        return gc.compile(infer)

    short, long = compiled(3).infer, compiled(300).infer
    assert len(short._record.launches) == len(long._record.launches)
    (span,) = long._record.spans
    assert (span.kind, span.count) == ("repeat", 300)
    assert long.flops > 50 * short.flops


def test_indices_are_checked_in_every_iteration() -> None:
    @gc.entry(i=gc.spec((5,), "int32"))
    def pick(i: gc.Tensor) -> Any:
        table = gc.arange(4)
        return {"y": gc.scan(lambda c, k: (c + gc.take(table, k[None]), None), gc.zeros(1, dtype="int32"), i)[0]}

    it = gc.compile(pick)
    assert it.pick(i=np.array([0, 1, 2, 3, 1], np.int32))["y"] == 7
    for bad in range(5):
        with pytest.raises(GraphcError, match="GC0420"):
            it.pick(i=np.where(np.arange(5) == bad, 4, 0).astype(np.int32))


# The artifact --------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "loops.gcx")
    loaded = gc.load(tmp_path / "loops.gcx", trust=True)
    got, want = loaded.nested(**ARRAYS), program.nested(**ARRAYS)
    for name, array in want.items():
        assert got[name].tobytes() == array.tobytes(), name
    assert Artifact.read(tmp_path / "loops.gcx").manifest.entries == program.code.manifest.entries


def test_times_cover_all_iterations(program: Program) -> None:
    _, nanoseconds = program.nested.timed(**ARRAYS)
    assert nanoseconds.shape == (len(program.nested._record.launches),)
    assert (nanoseconds >= 0).all()


def test_the_table_has_a_record_for_each_turn(program: Program) -> None:
    kinds = program.nested._table.records[:, 3].tolist()
    spans = [s.kind for s in program.nested._record.spans]
    assert kinds.count(CALL) == len(program.nested._record.launches)
    assert kinds.count(REPEAT) == spans.count("repeat")
    assert kinds.count(BRANCH) == 2 * (spans.count("while") + spans.count("cond"))


def changed(entry: EntryRecord, which: str, /, **values: Any) -> EntryRecord:
    """``entry`` with the first span of kind ``which`` changed."""
    i = next(i for i, s in enumerate(entry.spans) if s.kind == which)
    return replace(entry, spans=(*entry.spans[:i], replace(entry.spans[i], **values), *entry.spans[i + 1 :]))


def step_of(entry: EntryRecord) -> tuple[int, int, int]:
    return next(s for s in entry.spans if s.kind == "repeat" and s.steps).steps[0]


BAD: dict[str, Any] = {
    "kind": lambda e: changed(e, "repeat", kind="goto"),
    "launches that are not there": lambda e: changed(e, "repeat", stop=len(e.launches) + 1),
    "backwards": lambda e: changed(e, "cond", middle=0, start=1),
    "empty": lambda e: changed(e, "cond", start=0, middle=0, stop=0),
    "no iteration": lambda e: changed(e, "repeat", count=0),
    "too many iterations": lambda e: changed(e, "repeat", count=1 << 20),
    "a loop with a test": lambda e: changed(e, "repeat", test=(ARENA, 0, 1)),
    "a branch without one": lambda e: changed(e, "cond", test=None),
    "a test outside": lambda e: changed(e, "while", test=(ARENA, e.arena_bytes, 1)),
    "a test of no bytes": lambda e: changed(e, "while", test=(ARENA, 0, 0)),
    "a test that is no memory": lambda e: changed(e, "cond", test=(VALUE, 0, 1)),
    "a branch that repeats": lambda e: changed(e, "cond", count=2),
    "a step of another launch": lambda e: changed(e, "repeat", steps=((len(e.launches) - 1, 0, 4),)),
    "a step of no argument": lambda e: changed(e, "repeat", steps=((step_of(e)[0], 99, 4),)),
    "a step too far": lambda e: changed(e, "repeat", steps=((*step_of(e)[:2], e.arena_bytes),)),
    "a step too far back": lambda e: changed(e, "repeat", steps=((*step_of(e)[:2], -e.arena_bytes),)),
    "spans across each other": lambda e: replace(e, spans=(*e.spans, SpanRecord("repeat", e.spans[0].start + 1,
        e.spans[0].start + 1, len(e.launches), 1, (), None, False))),
    "outer before inner": lambda e: replace(e, spans=e.spans[::-1]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_loop_is_refused(program: Program, what: str) -> None:
    members = program.code.members | {"state.safetensors": b""}
    manifest = replace(program.code.manifest, digests=dict.fromkeys(members, ""))
    bad = replace(manifest, entries=(manifest.entries[0], BAD[what](manifest.entries[1])))
    check_manifest(manifest, members)
    with pytest.raises(GraphcError, match="GC0502"):
        check_manifest(bad, members)
