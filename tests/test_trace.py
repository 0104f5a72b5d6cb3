"""Tracing: graphs, source lines, promotion, indexing, state, checkpoints and gradients, run by the interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracing import Steps, nodes, run, step, trace

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError
from graphc.text import parse, print_graph
from graphc.tracing import trace_entries, trace_entry

RNG = np.random.default_rng(3)
X = RNG.standard_normal((4, 5)).astype(np.float32)
Y = RNG.standard_normal((4, 5)).astype(np.float32)


def here() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


# Entries and lines ---------------------------------------------------------------------------------------------------


def test_an_entry_becomes_a_graph_with_its_name_arguments_and_outputs():
    @gc.entry(x=gc.spec((2, 3)), n=gc.spec((), "int32"))
    def twice(x, n):
        return {"y": x * 2, "same": n}

    graph = trace_entry(twice).graph
    assert graph.name == "twice"
    assert [(v.node.attrs["name"], str(v.type)) for v in graph.inputs] == [("x", "float32[2,3]"), ("n", "int32[]")]
    assert [(name, str(v.type)) for name, v in graph.outputs] == [("y", "float32[2,3]"), ("same", "int32[]")]
    assert parse(print_graph(graph)) == graph


def test_every_node_carries_the_users_line_even_through_layers():
    layer = nn.Linear(5, 2)
    lines = {}

    def f(x):
        lines["matmul"] = here() + 1
        h = layer(x)
        lines["softmax"] = here() + 1
        return {"y": gc.softmax(h)}

    graph = trace(f, x=X).graph
    assert {n.loc.line for n in graph.nodes if n.op == "dot"} == {lines["matmul"]}
    assert {n.loc.line for n in graph.nodes if n.op in ("exp", "max", "div")} == {lines["softmax"]}
    loc = nodes(graph, "exp")[0].loc
    assert not Path(loc.file).is_absolute()
    assert loc.file.endswith("test_trace.py")
    assert loc.source() == 'return {"y": gc.softmax(h)}'


def test_an_entry_calls_another_inline():
    @gc.entry(x=X)
    def inner(x):
        return {"y": x + 1}

    np.testing.assert_array_equal(run(lambda x: inner(x)["y"] * 2, x=X), (X + 1) * 2)


def test_import_is_light():
    code = "import graphc, sys; print([m for m in ('numba', 'llvmlite', 'networkx', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Operators -----------------------------------------------------------------------------------------------------------

BINARY = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "pow": lambda a, b: abs(a) ** b,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "and": lambda a, b: (a > 0) & (b > 0),
    "or": lambda a, b: (a > 0) | (b > 0), "xor": lambda a, b: (a > 0) ^ (b > 0), "unary": lambda a, b: -a + abs(b),
    "scalars": lambda a, b: 1 + a * 2.5 - 3 / b, "reflected": lambda a, b: 2 - a + (1 // abs(b)),
    "invert": lambda a, b: ~(a > b), "power": lambda a, b: a**2 + b**3 - a**1 + b**4, "array": lambda a, b: Y + a,
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_operators_are_numpys(name):
    op = BINARY[name]
    got, want = run(lambda a, b: op(a, b), a=X, b=Y[0]), op(X, Y[0])
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_integer_operators():
    a, b = np.array([7, -7, 5], np.int32), np.array([2, 2, -3], np.int32)
    for op in (lambda a, b: a // b, lambda a, b: a % b, lambda a, b: a & b, lambda a, b: ~a | b, lambda a, b: a << 2):
        np.testing.assert_array_equal(run(lambda a, b, op=op: op(a, b), a=a, b=b), op(a, b))
    quotient = run(lambda a, b: a / b, a=a, b=b)
    assert quotient.dtype == np.float32
    np.testing.assert_allclose(quotient, a / b, rtol=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [
        ("float32", 1, "float32"),
        ("float32", 1.5, "float32"),
        ("int32", 1, "int32"),
        ("int32", 1.5, "float32"),
        ("bool", 1, "int32"),
        ("float64", 1.5, "float64"),
        ("float32", np.float64(2), "float32"),
        ("float32", np.arange(3), "float32"),
        ("float32", np.ones(3), "float32"),
        ("int32", np.ones(3), "float32"),
        ("int32", np.ones(3, np.float32), "float32"),
        ("int8", np.ones(3, np.uint8), "int16"),
        ("float32", np.ones(3, np.int32), "float32"),
    ],
)
def test_promotion_keeps_the_tensors_dtype(left, right, result):
    graph = trace(lambda x: {"y": x + right}, x=gc.spec((3,), left)).graph
    assert graph.outputs[0][1].dtype.name == result


@pytest.mark.parametrize(
    ("a", "b"),
    [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((4, 2, 3), (3, 5)), ((4, 2, 3), (4, 3, 5)), ((2, 3), (4, 3, 5)),
     ((3,), (4, 3, 5)), ((2, 1, 2, 3), (4, 3, 5)), ((4, 2, 3), (3,))],
)  # fmt: skip
def test_matmul_is_numpys(a, b):
    x, y = RNG.standard_normal(a).astype(np.float32), RNG.standard_normal(b).astype(np.float32)
    np.testing.assert_allclose(run(lambda x, y: x @ y, x=x, y=y), x @ y, rtol=1e-5, atol=1e-6)


# Indexing ------------------------------------------------------------------------------------------------------------

CUBE = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
KEYS = {
    "int": 1, "negative": -1, "ints": (2, 3, 4), "slice": slice(1, 3), "step": (slice(None), slice(0, 4, 2)),
    "ellipsis": (..., 2), "both": (1, ..., slice(1, -1)), "new axis": (None, slice(None), None, 2),
    "empty": slice(2, 1), "list": [2, 0], "array": np.array([[0, 2], [1, 1]]),
    "array later": (slice(None), np.array([3, 0])),
    "pairs": (np.array([0, 2, 1]), np.array([3, 0, 2])), "pairs later": (1, np.array([0, 2]), np.array([3, 4])),
    "mixed": (slice(0, 2), np.array([1, 3]), None), "broadcast": (np.array([[0], [2]]), np.array([1, 3])),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_indexing_is_numpys(name):
    key = KEYS[name]
    np.testing.assert_array_equal(run(lambda x: x[key], x=CUBE), CUBE[key])


def test_tensors_index():
    rows, columns = np.array([2, 0], np.int32), np.array([1, 3], np.int32)
    got = run(lambda x, i, j: x[i, j] + x[1][i, 0:1], x=CUBE, i=rows, j=columns)
    np.testing.assert_array_equal(got, CUBE[rows, columns] + CUBE[1][rows, 0:1])


# State ---------------------------------------------------------------------------------------------------------------


def test_state_is_read_before_and_after_its_assignment():
    count = gc.state(np.int32(5), name="count")

    def f():
        before = count + 0
        count.assign(count + 1)
        return {"before": before, "after": count * 1}

    traced = trace(f)
    assert [(s.name, str(s.type), s.trainable) for s in traced.states] == [("count", "int32[]", False)]
    steps = Steps(traced, {})
    for n in (5, 6, 7):
        outputs, state = next(steps)
        assert (outputs["before"], outputs["after"], state["count"]) == (n, n + 1, n + 1)


def test_state_takes_its_dtype_from_the_array_and_numbers_are_narrow():
    assert gc.state(np.zeros(3), name="a").dtype is gc.float64
    assert gc.state(0.5, name="a").dtype is gc.float32
    assert gc.state([1, 2], name="a").dtype is gc.int32
    assert gc.state("a", np.zeros(2, np.uint8)).name == "a"


def test_entries_share_state_by_name_and_two_owners_of_a_name_are_refused():
    shared = gc.state(np.float32(1), name="s")
    first = gc.entry(lambda: {"a": shared + 1})
    assert trace_entries(first, gc.entry(lambda: {"b": shared * 2}))[1].graph.nodes[0].attrs["name"] == "s"
    other = gc.state(np.float32(2), name="s")
    with pytest.raises(GraphcError, match="GC0211: two pieces of state are both named 's'"):
        trace_entries(first, gc.entry(lambda: {"b": other * 2}))


def test_initial_values_come_with_the_trace():
    w = nn.Parameter(np.full((2, 2), 3, np.float32), name="w")
    traced = trace(lambda: {"y": w.sum()})
    assert traced.trainable == ("w",)
    np.testing.assert_array_equal(traced.initial["w"], w.initial)


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_a_region_with_closures_as_operands():
    def f(x, y):
        scale = x.mean()
        return {"z": gc.checkpoint(lambda a: gc.exp(a) * y * scale, x)}

    graph = trace(f, x=X, y=Y).graph
    (call,) = nodes(graph, "call")
    assert call.attrs["hint"] == "checkpoint"
    assert len(call.inputs) == 3
    np.testing.assert_allclose(step(f, x=X, y=Y)[0]["z"], np.exp(X) * Y * X.mean(), rtol=1e-5)


def test_checkpoints_nest_return_tuples_and_assign_state():
    seen = gc.state(np.float32(0), name="seen")

    def block(a):
        seen.assign(seen + a.sum())
        return a * 2, gc.checkpoint(gc.exp)(a) + seen

    outputs, state = step(lambda x: dict(zip("ab", gc.checkpoint(block)(x), strict=True)), x=X)
    np.testing.assert_allclose(outputs["b"], np.exp(X) + X.sum(), rtol=1e-5)
    np.testing.assert_allclose(state["seen"], X.sum(), rtol=1e-5)


def test_gradients_pass_through_checkpoints():
    def f(x, y):
        loss = gc.checkpoint(lambda a: (gc.tanh(a) * y).sum(), x)
        return {"g": gc.grad(loss, x)}

    np.testing.assert_allclose(step(f, x=X, y=Y)[0]["g"], Y * (1 - np.tanh(X) ** 2), rtol=1e-4, atol=1e-6)


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_have_the_form_of_what_was_asked():
    w = nn.Parameter(np.ones((5, 2), np.float32), name="w")

    def f(x):
        loss = (x @ w).sum()
        by_name, (first,) = gc.grad(loss, {"w": w}), gc.grad(loss, (x,))
        return {"w": by_name["w"], "list": gc.grad(loss, [w])[0], "x": first, "one": gc.grad(loss, x)}

    out, _ = step(f, x=X)
    np.testing.assert_allclose(out["w"], X.sum(0)[:, None].repeat(2, 1), rtol=1e-5)
    np.testing.assert_array_equal(out["w"], out["list"])
    np.testing.assert_array_equal(out["x"], np.full((4, 5), 2))
    np.testing.assert_array_equal(out["x"], out["one"])


def test_gradients_of_gradients():
    def f(x):
        slope = gc.grad((x**3).sum(), x)
        return {"second": gc.grad(slope.sum(), x)}

    np.testing.assert_allclose(step(f, x=X)[0]["second"], 6 * X, rtol=1e-5)


def test_unused_tensors_have_zero_gradients_on_request():
    out, _ = step(lambda x, y: {"g": gc.grad(x.sum(), y, allow_unused=True)}, x=X, y=Y)
    np.testing.assert_array_equal(out["g"], np.zeros_like(Y))


def test_stop_gradient_is_a_constant_to_grad():
    out, _ = step(lambda x: {"g": gc.grad((gc.stop_gradient(x) * x).sum(), x)}, x=X)
    np.testing.assert_array_equal(out["g"], X)
