"""Fusion: the patterns that must be one kernel are one kernel, and every fused graph computes what it did before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planned import Arrays, check, check_fn, fused, hints, traced

import graphc as gc
from graphc import nn, optim
from graphc.ir import Graph, Node, Value
from graphc.ops.base import apply
from graphc.passes.fuse import fuse
from graphc.passes.schedule import peak_bytes, schedule


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def integers(*shape: int, high: int) -> np.ndarray:
    return np.random.default_rng([3, *shape]).integers(0, high, shape).astype(np.int32)


def kernels(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call"]


def results(graph: Graph, hint: str) -> list[int]:
    """How many values each kernel of one kind stores."""
    return [len(n.types) for n in kernels(graph) if n.attrs["hint"] == hint]


# One kernel ----------------------------------------------------------------------------------------------------------


def test_softmax_is_one_kernel() -> None:
    graph = check_fn(lambda x: gc.softmax(x), x=floats(4, 9))
    assert hints(graph) == {"row": 1}
    assert results(graph, "row") == [1]


def test_layer_norm_is_one_kernel() -> None:
    graph = check_fn(lambda x, w, b: gc.layer_norm(x, 10, w, b), x=floats(3, 4, 10), w=floats(10), b=floats(10, seed=1))
    assert hints(graph) == {"row": 1}


def test_cross_entropy_is_one_row_kernel() -> None:
    graph = check_fn(lambda x, y: gc.cross_entropy(x, y, reduction="none"), x=floats(6, 11), y=integers(6, high=11))
    assert hints(graph) == {"row": 1, "map": 1, "gather": 1}  # the last two check the labels, one word per row


def test_cross_entropy_and_its_gradient_share_the_row_kernel() -> None:
    """Probabilities are never stored: logits in, their gradient and one number per row out."""

    def step(x: gc.Tensor, y: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(x @ w, y)
        return {"loss": loss, "dw": gc.grad(loss, w)}

    graph = check_fn(step, x=floats(6, 4), y=integers(6, high=11), w=floats(4, 11))
    assert hints(graph)["row"] == 1
    (row,) = (n for n in kernels(graph) if n.attrs["hint"] == "row")
    assert sum(t.shape == (6, 11) for t in row.types) == 1


@pytest.mark.parametrize("activation", [gc.relu, gc.gelu, gc.silu, gc.tanh])
def test_bias_activation_and_residual_join_the_product(activation: object) -> None:
    def layer(x: gc.Tensor, w: gc.Tensor, b: gc.Tensor) -> gc.Tensor:
        return x + activation(x @ w + b)  # type: ignore[operator]

    graph = check_fn(layer, x=floats(5, 8), w=floats(8, 8), b=floats(8))
    assert hints(graph) == {"contract": 1}
    assert results(graph, "contract") == [1]


def test_what_the_backward_pass_needs_is_a_second_result_of_the_product() -> None:
    def step(x: gc.Tensor, w: gc.Tensor, v: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"dw": gc.grad(gc.sum(gc.gelu(x @ w) @ v), w)}

    graph = check_fn(step, x=floats(5, 6), w=floats(6, 7), v=floats(7, 3))
    assert "map" not in hints(graph)  # the derivative of the activation joins the product that it scales
    assert "gelu" not in graph.name
    assert hints(graph)["contract"] == 3


@pytest.mark.parametrize("activation", [gc.gelu, gc.silu])
@pytest.mark.parametrize("bias", [True, False])
def test_the_slope_of_an_activation_is_stored_instead_of_its_argument(activation: object, bias: bool) -> None:
    def step(x: gc.Tensor, w: gc.Tensor, b: gc.Tensor, v: gc.Tensor) -> dict[str, gc.Tensor]:
        y = activation(x @ w + b if bias else x @ w)  # type: ignore[operator]
        return {"dw": gc.grad(gc.sum(gc.tanh(y @ v)), w)}

    graph = check_fn(step, x=floats(5, 6), w=floats(6, 7), b=floats(7), v=floats(7, 3))
    first, *others = (n.attrs["body"] for n in kernels(graph) if n.attrs["hint"] == "contract")
    assert [v.shape for _, v in first.outputs] == [(5, 7), (5, 7)]
    ops = [{n.op for n in body.nodes} for body in others]
    assert not any({"erf", "exp", "sigmoid"} & found for found in ops)


def test_an_argument_that_is_needed_anyway_is_what_is_stored() -> None:
    def step(x: gc.Tensor, w: gc.Tensor, v: gc.Tensor) -> dict[str, gc.Tensor]:
        u = x @ w
        return {"dw": gc.grad(gc.sum(gc.tanh(gc.gelu(u) @ v)), w), "u": u}

    graph = check_fn(step, x=floats(5, 6), w=floats(6, 7), v=floats(7, 3))
    first = next(n for n in kernels(graph) if n.attrs["hint"] == "contract")
    assert len(first.types) == 2  # u and gelu(u)


@pytest.mark.parametrize("clamp", [gc.relu, lambda x: gc.where(x >= 1.0, 1.0, x)])
def test_a_clamp_is_stored_without_its_argument(clamp: Callable[[gc.Tensor], gc.Tensor]) -> None:
    """The gradient sees in the result where the argument was clamped, also where that is NaN."""

    def step(x: gc.Tensor, w: gc.Tensor, v: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"dw": gc.grad(gc.sum(gc.tanh(clamp(x @ w + x) @ v)), w)}

    x = floats(5, 7)
    x[2, 3] = np.nan
    graph = check_fn(step, x=x, w=np.eye(7, dtype=np.float32), v=floats(7, 3))
    first = next(n for n in kernels(graph) if n.attrs["hint"] == "contract")
    assert len(first.types) == 1


def test_scores_that_softmax_reads_are_scaled_and_masked_by_the_product() -> None:
    def scores(q: gc.Tensor, k: gc.Tensor) -> gc.Tensor:
        s = gc.matmul(q, gc.permute_dims(k, (0, 2, 1))) * 0.25
        return gc.softmax(gc.where(gc.iota(s.shape, 1) >= gc.iota(s.shape, 2), s, -1e9))

    graph = check_fn(scores, q=floats(2, 5, 4), k=floats(2, 5, 4, seed=1))
    assert hints(graph) == {"contract": 1, "row": 1}


def test_embedding_with_positions_is_one_gather() -> None:
    def embed(i: gc.Tensor, w: gc.Tensor, p: gc.Tensor) -> gc.Tensor:
        return gc.take(w, i) + p

    graph = check_fn(embed, i=integers(2, 5, high=7), w=floats(7, 6), p=floats(5, 6))
    assert hints(graph) == {"gather": 1}


def test_sums_over_the_same_rows_are_one_kernel() -> None:
    graph = check_fn(lambda x: {"a": gc.sum(x, axis=0), "b": gc.sum(x * x, axis=0)}, x=floats(40, 5))
    assert hints(graph) == {"col": 1}


def test_dropout_masks_are_made_again_not_stored() -> None:
    def step(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.dropout(gc.tanh(x @ w), 0.5)
        return {"dw": gc.grad(gc.sum(y * y), w)}

    gc.seed(1)
    graph = check_fn(step, x=floats(5, 6), w=floats(6, 7))
    assert not any(t.dtype.kind in "bu" and t.size > 1 for n in kernels(graph) for t in n.types)


def test_scalar_arithmetic_gathers() -> None:
    def scalars(t: gc.Tensor, u: gc.Tensor) -> dict[str, gc.Tensor]:
        a = 1.0 - 0.9**t
        return {"a": a, "b": gc.sqrt(1.0 - 0.99**t) / a, "c": gc.minimum(u, 1.0)}

    graph = check_fn(scalars, t=np.float32(3).reshape(()), u=np.float32(7).reshape(()))
    assert hints(graph) == {"map": 1}


# Training steps ------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self) -> None:
        self.fc1, self.norm, self.fc2 = nn.Linear(7, 12), nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return self.fc2(gc.gelu(self.norm(self.fc1(x))))


def training_step() -> tuple[Graph, Arrays, Arrays]:
    gc.seed(0)
    model = MLP()
    opt = optim.AdamW(model.parameters(), lr=1e-2)

    def step(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(model(x), y)
        opt.update(optim.clip_by_global_norm(gc.grad(loss, model.parameters()), 1.0))
        return {"loss": loss}

    inputs = {"x": floats(9, 7), "y": integers(9, high=5)}
    graph, state = traced(step, **inputs)
    return graph, inputs, state


def test_training_step() -> None:
    graph, inputs, state = training_step()
    plan = check(graph, inputs, state, threads=2)
    updates = [x for x in plan.launches if any(a.buffer and a.buffer.name.endswith("exp_avg") for a in x.args)]
    assert len(updates) == 6
    # One kernel for all parameters: the size is an argument. Biases are not decayed, which is another kernel.
    assert len({x.kernel.key for x in updates}) <= 2
    # In place: state is written by the kernels that compute it, and nothing is copied at the end.
    stores = [x for x in plan.launches if any(a.writes and a.buffer and a.buffer.space == "state" for a in x.args)]
    assert not any(x.kernel.name.startswith("map_") and len(x.kernel.params) == 4 for x in stores)


def test_scheduling_keeps_the_meaning_and_never_raises_the_peak() -> None:
    graph, inputs, state = training_step()
    grouped = fuse(graph)
    ordered = schedule(grouped)
    assert set(ordered.nodes) == set(grouped.nodes)
    assert peak_bytes(ordered) <= peak_bytes(grouped)
    check(schedule(graph), inputs, state)  # any graph can be ordered, fused or not


def test_attention_by_hand_and_heads() -> None:
    """The probabilities are an output: softmax and its gradient are one row kernel each, heads are views."""

    def block(x: gc.Tensor, w: gc.Tensor, o: gc.Tensor) -> dict[str, gc.Tensor]:
        b, t, c = x.shape
        q, k, v = (gc.permute_dims(z.reshape((b, t, 2, c // 2)), (0, 2, 1, 3)) for z in gc.split(x @ w, 3))
        p = gc.softmax(gc.matmul(q, gc.permute_dims(k, (0, 1, 3, 2))) * 0.5)
        y = gc.permute_dims(gc.matmul(p, v), (0, 2, 1, 3)).reshape((b, t, c)) @ o
        return {"p": p, "dw": gc.grad(gc.sum(y * y), w)}

    graph = check_fn(block, x=floats(2, 5, 8), w=floats(8, 24), o=floats(8, 8), tolerance=1e-3)
    assert set(hints(graph)) == {"contract", "row"}
    assert hints(graph)["row"] == 2


def test_attention_region_stays_whole() -> None:
    def attend(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.scaled_dot_product_attention(q, k, v, is_causal=True)
        return {"y": y, "dq": gc.grad(gc.sum(y * y), q)}

    graph = check_fn(attend, q=floats(2, 2, 6, 4), k=floats(2, 2, 6, 4, seed=1), v=floats(2, 2, 6, 4, seed=2))
    assert hints(graph)["attention"] == 1
    assert hints(graph)["attention.vjp"] == 1


def test_checkpointed_work_is_done_again() -> None:
    def layers(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        return gc.tanh(gc.tanh(x @ w) @ w)

    def plain(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.sum(layers(x, w))
        return {"loss": loss, "dw": gc.grad(loss, w)}

    def again(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.sum(gc.checkpoint(layers, x, w))
        return {"loss": loss, "dw": gc.grad(loss, w)}

    arrays = {"x": floats(4, 4), "w": floats(4, 4, seed=1)}
    assert hints(check_fn(again, **arrays))["contract"] == hints(check_fn(plain, **arrays))["contract"] + 2


# Where fusion must stop ----------------------------------------------------------------------------------------------


def node(op: str, *inputs: Value, **attrs: object) -> Value:
    return apply(op, *inputs, **attrs)


def test_no_cycle_between_groups() -> None:
    """b reads a twice, once through a product: a and b are of one shape and still two kernels."""

    def fn(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        a = gc.exp(x)
        return {"a": a, "b": a + gc.softmax(a @ w)}

    graph = check_fn(fn, x=floats(4, 4), w=floats(4, 4))
    assert hints(graph) == {"map": 1, "contract": 1, "row": 1}


def test_expensive_values_of_one_row_or_column_are_stored() -> None:
    graph = check_fn(lambda x, b: x * gc.exp(gc.exp(gc.exp(gc.sin(b)))), x=floats(30, 7), b=floats(7))
    assert hints(graph) == {"map": 2}


def test_a_table_that_is_read_repeated_is_made_once() -> None:
    """Sines of positions, for all heads."""
    heads = np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype(np.float32)
    graph = check_fn(lambda x: gc.rope(x, gc.arange(8)), x=heads)
    made = {n.types[0].shape for n in graph if n.op == "call" and {"sin", "cos"} & {b.op for b in n.attrs["body"]}}
    assert made == {(8, 3)}


def test_reductions_of_scattered_axes_are_two_kernels() -> None:
    graph = check_fn(lambda x: gc.sum(x, axis=(0, 2)), x=floats(3, 4, 5))
    assert hints(graph) == {"row": 1, "col": 1}


def test_a_value_read_transposed_is_another_kernel() -> None:
    graph = check_fn(lambda x: gc.softmax(x) + gc.permute_dims(gc.softmax(x), (1, 0)), x=floats(5, 5))
    assert len(kernels(graph)) == 2


def test_results_that_are_inputs_state_or_constants() -> None:
    x = node("input", name="x", dtype=gc.float32, shape=(3,))
    s = node("state", name="s", dtype=gc.float32, shape=(3,), trainable=False)
    t = node("state", name="t", dtype=gc.float32, shape=(3,), trainable=False)
    graph = Graph.build("swap", [x], [("x", x), ("s", s)], [("s", t), ("t", s)])
    assert not kernels(fused(graph))
    check(graph, {"x": floats(3)}, {"s": floats(3, seed=1), "t": floats(3, seed=2)})


def test_merging_looks_along_paths_that_leave_and_return() -> None:
    """The two column sums read one tensor, but the first is part of what the second needs, by way of the rows' kernel:
    were they one kernel, it would wait for itself."""

    def fn(x: gc.Tensor, w: gc.Tensor, labels: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.cross_entropy(x, labels, weight=w)
        return {"loss": loss, "g": gc.grad(loss, x)}

    rng = np.random.default_rng(3)
    arrays = {"x": rng.standard_normal((5, 6)), "w": rng.random(6), "labels": np.array([3, 0, -100, 5, 2])}
    check_fn(fn, **arrays)
