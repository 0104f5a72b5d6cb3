"""The interpreter: steps over inputs and state, regions, freed values."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from graphc.dtype import float32, int32
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.ops import apply
from graphc.ops.region import walk_graph


def tensor(name: str, *shape: int) -> Value:
    return apply("input", name=name, dtype=float32, shape=shape)


def state(name: str, *shape: int) -> Value:
    return apply("state", name=name, dtype=float32, shape=shape, trainable=False)


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_step_reads_old_state_and_writes_new():
    x, a, b = tensor("x", 2), state("a", 2), state("b", 2)
    graph = Graph.build("step", [x], [("sum", apply("add", x, a))], [("a", b), ("b", apply("add", a, x))])
    given = {"a": array(1, 2), "b": array(3, 4), "other": array(9)}
    outputs, new = interpret(graph, {"x": array(10, 20)}, given)
    np.testing.assert_array_equal(outputs["sum"], [11, 22])
    np.testing.assert_array_equal(new["a"], [3, 4])
    np.testing.assert_array_equal(new["b"], [11, 22])
    np.testing.assert_array_equal(new["other"], [9])
    np.testing.assert_array_equal(given["a"], [1, 2])


def test_results_share_no_memory_with_what_was_given():
    x, a = tensor("x", 2), state("a", 2)
    graph = Graph.build("step", [x], [("same", x), ("wide", apply("broadcast_to", x, shape=(3, 2)))], [("a", x)])
    values, old = array(1, 2), array(3, 4)
    outputs, new = interpret(graph, {"x": values}, {"a": old})
    for result in (*outputs.values(), *new.values()):
        assert not np.shares_memory(result, values)
        assert not np.shares_memory(result, old)
        result[...] = 0  # writable, element by element
    assert a.shape == (2,)


def test_regions_run_inside_regions():
    p = tensor("p", 2)
    inner = Graph.build("inner", [p], [("o", apply("mul", p, p))])
    q = tensor("q", 2)
    outer = Graph.build("outer", [q], [("o", apply("neg", apply("call", q, body=inner, hint="map", vjp=None)))])
    x = tensor("x", 2)
    graph = Graph.build("g", [x], [("y", apply("call", x, body=outer, hint="map", vjp=None))])
    np.testing.assert_array_equal(interpret(graph, {"x": array(2, 3)})[0]["y"], [-4, -9])


def test_split_gives_one_value_per_size():
    from graphc.ops import apply_node

    x = tensor("x", 5)
    parts = apply_node("split", x, axis=0, sizes=(2, 3)).outs
    outputs, _ = interpret(Graph.build("g", [x], [("b", parts[1]), ("a", parts[0])]), {"x": array(1, 2, 3, 4, 5)})
    np.testing.assert_array_equal(outputs["a"], [1, 2])
    np.testing.assert_array_equal(outputs["b"], [3, 4, 5])


def test_values_are_dropped_after_their_last_use(monkeypatch: pytest.MonkeyPatch):
    """In a chain of n nodes no more than the operand and the result of one node are alive."""
    from graphc.ops import region

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    class Watched:
        def __init__(self, op):
            self.op = op

        def evaluate(self, arrays, at):
            nonlocal most
            (result,) = self.op.evaluate(arrays, at)
            alive.append(weakref.ref(result))
            most = max(most, sum(r() is not None for r in alive))
            return (result,)

    original = region.get_op
    monkeypatch.setattr(region, "get_op", lambda name: Watched(original(name)))
    x = tensor("x", 2)
    v = x
    for _ in range(10):
        v = apply("exp", apply("neg", v))
    gc.collect()
    values = walk_graph(Graph.build("g", [x], [("y", v)]), [array(0, 0)], {})
    assert most == 2
    assert list(values) == [v]


def test_what_is_missing_or_does_not_fit_is_refused():
    x, a = tensor("x", 2), state("a", 2)
    graph = Graph.build("g", [x], [("y", apply("add", x, a))])
    good = {"x": array(1, 2)}
    for inputs, held, says in (
        ({}, {"a": array(1, 2)}, r"input x \(float32\[2\]\) was not given"),
        (good, {}, r"state a \(float32\[2\]\) was not given"),
        ({"x": array(1, 2, 3)}, {"a": array(1, 2)}, r"input x must be float32\[2\], and is float32\[3\]"),
        ({"x": np.zeros(2)}, {"a": array(1, 2)}, r"and is float64\[2\]"),
        ({"x": np.zeros(2, np.complex64)}, {"a": array(1, 2)}, r"and is complex64\[2\]"),
    ):
        with pytest.raises(GraphcError, match=f"GC0003: .*{says}"):
            interpret(graph, inputs, held)


def test_grad_has_no_value_of_its_own():
    x = apply("input", name="x", dtype=float32, shape=())
    graph = Graph.build("g", [x], [("dx", apply("grad", x, x))])
    with pytest.raises(GraphcError, match="GC0002"):
        interpret(graph, {"x": np.float32(1).reshape(())})


def test_indices_are_checked():
    x, i = tensor("x", 2), apply("input", name="i", dtype=int32, shape=(1,))
    graph = Graph.build("g", [x, i], [("y", apply("take", x, i, axis=0))])
    with pytest.raises(GraphcError, match="GC0420: index 2 is out of range for 2 rows"):
        interpret(graph, {"x": array(1, 2), "i": np.array([2], np.int32)})
