"""Update: products that are gradients update the weights; bits stay, gradients need no memory, the peak never rises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.interp import interpret
from graphc.ir import Graph, Node
from graphc.optim.base import Optimizer
from graphc.passes import pipeline
from graphc.passes.schedule import peak_bytes
from graphc.passes.update import update
from graphc.tracing import Entry, trace_entries
from graphc.verify import verify

BATCH, SIZES = 24, (20, 48, 36, 5)

Rule = Callable[[nn.Module], Optimizer]

RULES: dict[str, Rule] = {
    "adamw": lambda net: optim.AdamW(net.parameters(), lr=1e-2),
    "momentum": lambda net: optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd": lambda net: optim.SGD(net.parameters(), lr=1e-2),
    "lion": lambda net: optim.Lion(net.parameters(), lr=1e-3),
    "rmsprop": lambda net: optim.RMSprop(net.parameters(), lr=1e-3, centered=True, momentum=0.5),
}


class MLP(nn.Module):
    def __init__(self) -> None:
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(SIZES)))

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        for layer in self.layers:
            x = gc.tanh(layer(x))
        return x


def entry(rule: Rule, norm: float | None = None) -> Entry:
    gc.seed(0)
    net = MLP()
    opt = rule(net)

    @gc.entry(x=gc.spec((BATCH, SIZES[0])))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(net(x) ** 2)
        grads = gc.grad(loss, net.parameters())
        opt.update(grads if norm is None else optim.clip_by_global_norm(grads, norm))
        return {"loss": loss}

    return train


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((BATCH, SIZES[0])).astype(np.float32)}


def before(made: Entry) -> tuple[Graph, dict[str, np.ndarray]]:
    (traced,) = trace_entries(made)
    return pipeline.run(traced.graph, stop_after="recompute"), traced.initial


def updating(graph: Graph) -> list[Node]:
    """The products that make new state."""
    new = {value.node for _, value in graph.updates}
    return [n for n in graph if n in new and n.op == "call" and n.attrs["hint"] == "contract"]


@pytest.mark.parametrize("name", RULES)
def test_weights_change_where_their_gradients_are_made(name: str) -> None:
    graph, state = before(entry(RULES[name]))
    made = update(graph)
    verify(made)
    assert not updating(graph)
    assert len(updating(made)) == len(SIZES) - 1
    assert peak_bytes(made) < peak_bytes(graph)
    want, got = (interpret(g, data(), state) for g in (graph, made))
    assert want[0]["loss"] == got[0]["loss"]
    for key, value in want[1].items():
        np.testing.assert_array_equal(value, got[1][key], err_msg=key)


@pytest.mark.parametrize("name", RULES)
def test_compiled_steps_keep_their_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(threads: int) -> tuple[int, list[bytes]]:
        program = gc.compile(entry(RULES[name]), threads=threads)
        losses = [program.train(**data())["loss"].tobytes() for _ in range(3)]
        return program.train.memory.arena_bytes, losses + [a.tobytes() for a in program.state.values()]

    more, apart = steps(2)
    merging = [replace(p, run=update) if p.name == "update" else p for p in pipeline.PIPELINE]
    monkeypatch.setattr(pipeline, "PIPELINE", merging)
    (less, merged), (_, alone) = steps(2), steps(1)
    assert merged == alone == apart
    assert less < more


def test_a_budget_can_do_without_gradients_in_memory() -> None:
    whole = gc.compile(entry(RULES["adamw"]), threads=2)
    fitted = gc.compile(entry(RULES["adamw"]), threads=2, memory_budget=whole.train.memory.peak_bytes - 1024)
    assert fitted.train.memory.peak_bytes <= whole.train.memory.peak_bytes - 1024
    assert any("sub" in k.name for k in fitted.train.kernels if k.name.startswith("contract"))
    for _ in range(3):
        assert whole.train(**data())["loss"] == fitted.train(**data())["loss"]
    for key, value in whole.state.items():
        np.testing.assert_array_equal(value, fitted.state[key], err_msg=key)


def test_clipping_by_the_norm_of_all_gradients_comes_first() -> None:
    graph, _ = before(entry(RULES["adamw"], norm=1.0))
    assert update(graph) is graph


def test_the_peak_does_not_rise_for_it() -> None:
    """The gradient of the last layer is small, but what it is made of is a view of something large."""
    gc.seed(0)
    body, head = nn.Linear(64, 64).named("body"), nn.Linear(64, 4).named("head")
    opt = optim.SGD([*body.parameters(), *head.parameters()], lr=1e-2)

    @gc.entry(x=gc.spec((16, 32, 64)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(head(body(x)[:, 0]) ** 2)
        opt.update(gc.grad(loss, [*body.parameters(), *head.parameters()]))
        return {"loss": loss}

    graph, _ = before(train)
    made = update(graph)
    assert peak_bytes(made) <= peak_bytes(graph)
    assert [n.types[0].shape for n in updating(made)] == [(64, 64)]


def test_a_gradient_that_is_used_for_something_else_stays() -> None:
    gc.seed(0)
    layer = nn.Linear(32, 32, bias=False)
    opt = optim.SGD(layer.parameters(), lr=1e-2)

    @gc.entry(x=gc.spec((16, 32)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(layer(x) ** 2)
        grads = gc.grad(loss, layer.parameters())
        opt.update(grads)
        return {"loss": loss, "gradient": grads[0]}

    graph, _ = before(train)
    assert update(graph) is graph


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_multiplied_may_be_state_that_changes(which: int) -> None:
    """The product of an old weight must not move behind what makes the new one, nor into it."""
    weights = [nn.Parameter(np.eye(16, dtype=np.float32), name) for name in "ab"]

    @gc.entry(x=gc.spec((16, 16)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        product = weights[which] @ x
        weights[0].assign(weights[0] - 0.5 * product)
        weights[1].assign(weights[1] * 2.0)
        return {"sum": gc.sum(x)}

    graph, _ = before(train)
    assert update(graph) is graph
