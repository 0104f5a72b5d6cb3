"""Gradients of whole graphs, against central differences along random directions in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

import graphc as gc
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.ir import Graph, Node
from graphc.ops import base, get_op
from graphc.ops.base import NotDifferentiable
from graphc.ops.build import Array
from graphc.passes import pipeline
from graphc.passes.differentiate import differentiate
from graphc.passes.schedule import peak_bytes
from graphc.text import parse
from graphc.tracing import trace_entry
from graphc.verify import verify

F64 = "float64"
Loss = Callable[..., gc.Tensor]


def traced(loss: Loss, *shapes: tuple[int, ...]) -> tuple[Graph, dict[str, Array]]:
    """The graph of the loss and its gradients by all arguments, and random arguments with the state."""

    def f(**inputs: gc.Tensor) -> dict[str, gc.Tensor]:
        value = loss(*inputs.values())
        return {"loss": value, **gc.grad(value, inputs)}

    made = trace_entry(gc.entry(f, **{f"x{i}": gc.spec(s, F64) for i, s in enumerate(shapes)}))
    rng = np.random.default_rng(5)
    arrays = {v.node.attrs["name"]: rng.normal(size=v.shape) for v in made.graph.inputs}
    return made.graph, arrays | {k: np.asarray(v) for k, v in made.initial.items()}


def check_against_differences(loss: Loss, *shapes: tuple[int, ...], tolerance: float = 1e-6) -> Graph:
    graph, arrays = traced(loss, *shapes)
    plain = differentiate(graph)
    verify(plain)
    names = [v.node.attrs["name"] for v in graph.inputs]

    def run(values: dict[str, Array], of: Graph = plain) -> dict[str, Array]:
        return interpret(of, {n: values[n] for n in names}, {k: v for k, v in values.items() if k not in names})[0]

    rng, gradients, h = np.random.default_rng(6), run(arrays), 1e-5
    for name in names:
        direction = rng.normal(size=arrays[name].shape)
        high, low = (run(arrays | {name: arrays[name] + s * h * direction})["loss"] for s in (1, -1))
        want = (high - low) / (2 * h)
        assert np.sum(gradients[name] * direction) == pytest.approx(want, rel=tolerance, abs=tolerance), name
    for key, value in run(arrays, pipeline.run(graph, check=True)).items():
        np.testing.assert_allclose(value, gradients[key], rtol=1e-10, atol=1e-10, err_msg=key)
    return plain


def mlp(x: gc.Tensor, w: gc.Tensor, b: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
    return gc.sum(gc.tanh(x @ w + b) @ v)


def test_layers() -> None:
    check_against_differences(mlp, (4, 3), (3, 5), (5,), (5, 2))


def test_a_value_that_is_used_many_times() -> None:
    check_against_differences(lambda x, w: gc.sum(gc.sin(x @ w) @ gc.permute_dims(w, (1, 0)) * x + x), (3, 4), (4, 5))


GELU: list[Callable[[gc.Tensor], gc.Tensor]] = [
    gc.gelu,
    lambda x: gc.gelu(x, approximate="tanh"),
    lambda x: gc.where(x > 0, x * gc.sigmoid(x), gc.tanh(x) * x),
]


@pytest.mark.parametrize("function", GELU)
def test_a_function_of_one_value_has_a_slope(function: Callable[[gc.Tensor], gc.Tensor]) -> None:
    """Its gradient multiplies the cotangent once: all other factors depend on the value alone."""
    plain = check_against_differences(lambda x, w: gc.sum(function(x @ w) @ gc.permute_dims(w, (1, 0))), (3, 4), (4, 5))
    check_against_differences(lambda x: gc.sum(gc.grad(gc.sum(function(x) ** 2), x) * x), (3, 4))
    dots = [n.out() for n in plain.nodes if n.op == "dot"]
    cotangent = next(v for v in dots if v.shape == (3, 5) and v is not dots[0])
    assert [n.op for n in plain.users(cotangent)] == ["mul"]


def test_what_is_inside_of_such_a_function_may_be_used_elsewhere() -> None:
    def loss(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        s = gc.sigmoid(x)
        return gc.sum(x * s * gc.tanh(s) + s * y)

    check_against_differences(loss, (3, 4), (3, 4))


def test_softmax_and_norm() -> None:
    def loss(x: gc.Tensor, w: gc.Tensor, b: gc.Tensor) -> gc.Tensor:
        return gc.sum(gc.softmax(gc.layer_norm(x, 6, w, b)) ** 2)

    check_against_differences(loss, (4, 6), (6,), (6,))


def test_slices_that_tile_an_axis_are_joined_by_one_concat() -> None:
    def loss(x: gc.Tensor) -> gc.Tensor:
        return gc.sum(x[:, 2:5] * gc.exp(x[:, 5:8]) + gc.sin(x[:, 2:5]))

    graph = check_against_differences(loss, (2, 9))
    (joined,) = [n for n in graph if n.op == "concat"]
    assert [v.shape[1] for v in joined.inputs] == [2, 3, 3, 1]


def test_slices_that_overlap_are_added() -> None:
    check_against_differences(lambda x: gc.sum(x[1:4] * x[2:5] * x[0:6:2]), (6,))


def test_split_of_which_one_part_is_unused() -> None:
    def loss(x: gc.Tensor) -> gc.Tensor:
        a, _, c = gc.split(x, 3, axis=1)
        return gc.sum(a * gc.exp(c))

    check_against_differences(loss, (2, 6))


def test_intermediate_values_have_gradients_too() -> None:
    def f(x: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.sin(x)
        loss = gc.sum(y * y)
        dy, dx = gc.grad(loss, [y, x])
        return {"dy": dy, "dx": dx}

    x = np.linspace(-1, 1, 4)
    out, _ = interpret(differentiate(trace_entry(gc.entry(f, x=gc.spec((4,), F64))).graph), {"x": x})
    np.testing.assert_allclose(out["dy"], 2 * np.sin(x))
    np.testing.assert_allclose(out["dx"], 2 * np.sin(x) * np.cos(x))


def test_integers_and_stop_gradient_cut_paths() -> None:
    def f(x: gc.Tensor) -> dict[str, gc.Tensor]:
        rounded = gc.floor(gc.stop_gradient(x)) + gc.astype(gc.astype(x, "int32"), F64)
        return {"dx": gc.grad(gc.sum(x * rounded), x)}

    x = np.array([-1.5, 0.5, 2.5])
    out, _ = interpret(differentiate(trace_entry(gc.entry(f, x=gc.spec((3,), F64))).graph), {"x": x})
    np.testing.assert_array_equal(out["dx"], np.floor(x) + np.trunc(x))


# Higher order --------------------------------------------------------------------------------------------------------


def test_second_order() -> None:
    def loss(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        (dx,) = gc.grad(mlp(x, w, gc.zeros(5, dtype=F64), gc.ones((5, 2), dtype=F64)), [x])
        return gc.sum(dx * dx)  # the penalty of Gulrajani et al., arXiv 1704.00028

    check_against_differences(loss, (4, 3), (3, 5), tolerance=1e-5)


def test_third_order_of_a_scalar() -> None:
    def f(x: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.sin(x) * x
        orders = [y]
        for _ in range(3):
            orders.append(gc.grad(orders[-1], x))
        return {f"d{i}": d for i, d in enumerate(orders)}

    at = 0.7
    out, _ = interpret(differentiate(trace_entry(gc.entry(f, x=gc.spec((), F64))).graph), {"x": np.array(at)})
    assert out["d1"] == pytest.approx(np.cos(at) * at + np.sin(at))
    assert out["d2"] == pytest.approx(2 * np.cos(at) - np.sin(at) * at)
    assert out["d3"] == pytest.approx(-3 * np.sin(at) - np.cos(at) * at)


# Regions -------------------------------------------------------------------------------------------------------------


def test_checkpoint_computes_its_body_again() -> None:
    def block(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return gc.tanh(gc.tanh(x @ w) @ w)

    def loss(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        for _ in range(3):
            x = gc.checkpoint(block, x, w)
        return gc.sum(x * x)

    graph = check_against_differences(loss, (4, 3), (3, 3))
    assert [n.attrs["hint"] for n in graph if n.op == "call"].count("checkpoint.vjp") == 3
    assert count(pipeline.run(traced(loss, (4, 3), (3, 3))[0], stop_after="inline"), "tanh") == 6 + 6


def test_checkpoints_lower_the_peak() -> None:
    def block(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return x + gc.tanh(gc.tanh(x @ w) @ w)

    def peak(checkpointed: bool) -> int:
        def loss(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
            for _ in range(8):
                x = gc.checkpoint(block, x, w) if checkpointed else block(x, w)
            return gc.sum(x * x)

        return peak_bytes(pipeline.run(traced(loss, (64, 8), (8, 8))[0]))

    assert peak(True) < 0.8 * peak(False)


def count(graph: Graph, op: str) -> int:
    return sum(n.op == op for n in graph)


def test_checkpoint_with_an_integer_operand_and_second_order() -> None:
    def loss(table: gc.Tensor) -> gc.Tensor:
        rows = gc.asarray(np.array([0, 2, 2], np.int32))
        picked = gc.checkpoint(lambda t, i: gc.sin(gc.take(t, i, axis=0)), table, rows)
        (first,) = gc.grad(gc.sum(picked * picked), [table])
        return gc.sum(first * table)

    check_against_differences(loss, (3, 2), tolerance=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention(causal: bool, dropout: float) -> None:
    def loss(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
        o = gc.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
        return gc.sum(o * gc.sin(o))

    graph = check_against_differences(loss, (2, 2, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3))
    assert [n.attrs["hint"] for n in graph if n.op == "call"] == ["attention", "attention.vjp"]


@pytest.mark.parametrize("causal", [False, True])
def test_second_order_of_attention(causal: bool) -> None:
    def loss(q: gc.Tensor, k: gc.Tensor) -> gc.Tensor:
        o = gc.scaled_dot_product_attention(q, k, k, is_causal=causal)
        (dq,) = gc.grad(gc.sum(o * o), [q])
        return gc.sum(dq * dq)

    check_against_differences(loss, (1, 2, 4, 3), (1, 2, 4, 3), tolerance=1e-5)


@pytest.mark.parametrize("form", ["where", "where_not", "add", "table", "none", "dropout"])
def test_attention_by_hand_is_found(form: str) -> None:
    """All the ways to write a mask give one region, with the gradients of what was written."""
    triangle = np.tri(5, dtype=bool)

    def loss(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
        s = q @ gc.permute_dims(k, (0, 1, 3, 2)) / sqrt(3)
        match form:
            case "where":
                s = gc.where(gc.tril(gc.ones((5, 5))) > 0, s, -float("inf"))
            case "where_not":
                s = gc.where(gc.tril(gc.ones((5, 5))) == 0, -1e9, s)
            case "add":
                s = s + gc.triu(gc.full((5, 5), -float("inf"), dtype=F64), k=1)
            case "table":
                s = gc.where(gc.asarray(triangle), s, -1e30)
        w = gc.softmax(s)
        return gc.sum(gc.sin((gc.dropout(w, 0.25) if form == "dropout" else w) @ v))

    shapes = [(2, 2, 5, 3)] * 3
    check_against_differences(loss, *shapes)
    (region, _) = [n for n in pipeline.run(traced(loss, *shapes)[0], stop_after="inline") if n.op == "call"]
    assert region.attrs["hint"] == "attention"
    assert region.attrs["is_causal"] == (form not in ("none", "dropout"))
    assert region.attrs["dropout_p"] == (0.25 if form == "dropout" else 0.0)
    assert region.attrs["scale"] == pytest.approx(1 / sqrt(3))


@pytest.mark.parametrize("change", ["upper", "band", "column"])
def test_what_only_looks_like_causal_attention_is_left_alone(change: str) -> None:
    mask = {"upper": np.tri(4, dtype=bool).T, "band": np.tri(4, dtype=bool) & ~np.tri(4, k=-3, dtype=bool)}

    def loss(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor) -> gc.Tensor:
        s = q @ gc.permute_dims(k, (0, 1, 3, 2))
        if change in mask:
            s = gc.where(gc.asarray(mask[change]), s, -float("inf"))
        return gc.sum((gc.softmax(s, axis=-2 if change == "column" else -1) @ v) ** 2)

    graph = pipeline.run(traced(loss, *[(1, 2, 4, 3)] * 3)[0], stop_after="inline")
    assert count(graph, "call") == 0


# Errors --------------------------------------------------------------------------------------------------------------


def test_no_path_is_an_error_that_names_the_state() -> None:
    text = """graph f {
  %0 = state() {dtype=float32, name="used", shape=(), trainable=true} : float32[]
  %1 = state() {dtype=float32, name="fc.bias", shape=(3,), trainable=true} : float32[3]
  %2 = exp(%0) : float32[]
  %3, %4 = grad(%2, %0, %1) {allow_unused=false} : float32[], float32[3] @ net.py:7
  return (a=%3, b=%4) update ()
}"""
    with pytest.raises(GraphcError) as caught:
        differentiate(parse(text))
    assert caught.value.code == "GC0302"
    assert "state 'fc.bias'" in str(caught.value)
    assert "net.py:7" in str(caught.value)


def test_an_op_without_gradient_is_an_error_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = replace(get_op("floor"), vjp=NotDifferentiable("it is a staircase"))
    monkeypatch.setitem(base._TABLE, "floor", stubborn)
    text = """graph f {
  %0 = input() {dtype=float32, name="x", shape=()} : float32[]
  %1 = floor(%0) : float32[] @ net.py:3
  %2 = mul(%0, %1) : float32[]
  %3 = grad(%2, %0) {allow_unused=false} : float32[] @ net.py:7
  return (dx=%3) update ()
}"""
    with pytest.raises(GraphcError) as caught:
        differentiate(parse(text))
    assert caught.value.code == "GC0303"
    assert "floor, which has none: it is a staircase" in str(caught.value)
    assert "net.py:3" in str(caught.value)


def test_gradient_nodes_carry_the_forward_line() -> None:
    graph, _ = traced(mlp, (4, 3), (3, 5), (5,), (5, 2))
    expanded = differentiate(graph)
    lines = {n.loc for n in graph}
    assert {n.loc for n in expanded} <= lines
    assert all(n.loc is not None for n in expanded)


def test_a_gradient_is_the_same_in_every_run() -> None:
    graphs = [differentiate(traced(mlp, (4, 3), (3, 5), (5,), (5, 2))[0]) for _ in range(2)]
    assert graphs[0] == graphs[1]


def test_a_wide_sum_of_cotangents_is_linear_work() -> None:
    """A value with 2,000 users, and a chain of 2,000 nodes: neither recursion nor quadratic time."""

    def loss(x: gc.Tensor) -> gc.Tensor:
        chain, total = x, x
        for i in range(1000):
            chain = gc.sin(chain)
            total = total + x * float(i)
        return gc.sum(chain + total)

    graph, _ = traced(loss, (3,))
    nodes: list[Node] = list(differentiate(graph))
    assert len(nodes) < 5 * len(graph.nodes)


def test_a_sum_of_rows_by_index_is_added_where_the_other_gradient_is() -> None:
    table = gc.nn.Parameter(np.ones((5, 3), np.float32), name="table")

    @gc.entry(ids=gc.spec((4,), "int32"))
    def train(ids: gc.Tensor) -> dict[str, gc.Tensor]:
        scores = gc.take(table, ids, axis=0) @ gc.permute_dims(table, (1, 0))
        (grad,) = gc.grad(gc.sum(scores**2), [table])
        return {"grad": grad}

    program = gc.compile(train, threads=1)
    ids = np.array([0, 2, 2, 4], np.int32)
    got = program.train(ids=ids)["grad"]
    ones = np.ones((5, 3), np.float32)
    ds = 2 * ones[ids] @ ones.T
    want = ds.T @ ones[ids]
    np.add.at(want, ids, ds @ ones)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    (fused,) = (n for n in parse(program.train.fused_graph).nodes if n.attrs.get("hint") == "scatter")
    assert len(fused.inputs) == 3
    assert sum(t.nbytes == 5 * 3 * 4 for t in program.train.memory.tensors) == 1
