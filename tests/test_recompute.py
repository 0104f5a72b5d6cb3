"""Recompute: late kernels write again what gradients need; the results keep their bits, and the peak falls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.driver_link import plan_arena
from graphc.interp import interpret
from graphc.ir import Graph
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.passes import fuse_values, pipeline
from graphc.passes.recompute import recompute
from graphc.passes.schedule import peak_bytes
from graphc.tracing import Entry, trace_entries
from graphc.verify import verify

BATCH, WIDTH, LAYERS = 96, 32, 4

Activation = Callable[[gc.Tensor], gc.Tensor]


class Block(nn.Module):
    """A residual block: norm, a wide layer, an activation and a narrow layer."""

    def __init__(self, activation: Activation):
        self.norm, self.activation = nn.LayerNorm(WIDTH), activation
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        return x + self.down(self.activation(self.up(self.norm(x))))


def entry(activation: Activation) -> Entry:
    gc.seed(0)
    net = nn.Sequential(*(Block(activation) for _ in range(LAYERS)))
    opt = optim.AdamW(net.parameters(), lr=1e-3)

    @gc.entry(x=gc.spec((BATCH, WIDTH)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(net(x) ** 2)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    return train


def scheduled(activation: Activation) -> tuple[Graph, dict[str, np.ndarray]]:
    (traced,) = trace_entries(entry(activation))
    return pipeline.run(traced.graph, stop_after="schedule"), traced.initial


def calls(graph: Graph) -> int:
    return sum(node.op == "call" for node in graph)


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((BATCH, WIDTH)).astype(np.float32)}


def relu_squared(x: gc.Tensor) -> gc.Tensor:
    return gc.relu(x) ** 2


# Of each block's x, norm(x), h and activation(h), with 1, 1, 4 and 4 parts, x and h stay; where the slope of an
# activation is stored in place of h, the activation stays as well.
@pytest.mark.parametrize(("activation", "share"), [(relu_squared, 0.75), (gc.gelu, 0.98)])
def test_the_peak_falls_and_the_meaning_stays(activation: Activation, share: float) -> None:
    graph, state = scheduled(activation)
    made = recompute(graph)
    verify(made)
    assert calls(made) == calls(graph)
    assert peak_bytes(made) < share * peak_bytes(graph)
    want, got = (interpret(g, data(), state) for g in (graph, made))
    assert want[0]["loss"] == got[0]["loss"]
    for name, value in want[1].items():
        np.testing.assert_array_equal(value, got[1][name], err_msg=name)


def test_large_arguments_of_activations_are_stored_in_place_of_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The activation is then written again beside the gradient, and of 6 parts one of 4 takes the place of two."""
    graph, state = scheduled(gc.gelu)
    slopes = recompute(graph)
    monkeypatch.setattr(fuse_values, "NEAR", 0)
    arguments = recompute(scheduled(gc.gelu)[0])
    assert calls(arguments) == calls(slopes)
    assert peak_bytes(arguments) < 0.75 * peak_bytes(slopes)
    want, got = (interpret(g, data(), state) for g in (slopes, arguments))
    assert want[0]["loss"] == got[0]["loss"]


def test_compiled_steps_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> tuple[int, list[bytes]]:
        program = gc.compile(entry(relu_squared), threads=2)
        losses = [program.train(**data())["loss"].tobytes() for _ in range(3)]
        return program.train.memory.arena_bytes, losses + [a.tobytes() for a in program.state.values()]

    less, with_copies = steps()
    monkeypatch.setattr(pipeline, "PIPELINE", [p for p in pipeline.PIPELINE if p.name != "recompute"])
    more, without = steps()
    assert with_copies == without
    assert less < more


class Residual(nn.Module):
    """Two convolutions that read padded images, with a batch norm behind each, and a shortcut."""

    def __init__(self) -> None:
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        y = gc.relu(self.norm1(self.conv1(x)))
        return gc.relu(self.norm2(self.conv2(y)) + x)


def test_what_lies_in_a_padding_is_computed_again() -> None:
    gc.seed(0)
    net = nn.Sequential(*(Residual() for _ in range(LAYERS)))
    opt = optim.SGD(net.parameters(), lr=1e-3)

    @gc.entry(x=gc.spec((8, 4, 6, 6)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(net(x) ** 2)
        opt.update(gc.grad(loss, net.parameters()))
        return {"loss": loss}

    (traced,) = trace_entries(train)
    graph = pipeline.run(traced.graph, stop_after="schedule")
    made = recompute(graph)
    verify(made)
    assert calls(made) == calls(graph)
    assert peak_bytes(made) < 0.75 * peak_bytes(graph)
    x = np.random.default_rng(1).standard_normal((8, 4, 6, 6)).astype(np.float32)
    want, got = (interpret(g, {"x": x}, traced.initial) for g in (graph, made))
    assert want[0]["loss"] == got[0]["loss"]
    for name, value in want[1].items():
        np.testing.assert_array_equal(value, got[1][name], err_msg=name)
    less, more = (plan_arena(lower(g, BASELINES["x86-64-v4"])).arena_bytes for g in (made, graph))
    assert less < 0.8 * more


def test_inference_is_left_alone() -> None:
    net = Block(gc.gelu)

    @gc.entry(x=gc.spec((BATCH, WIDTH)))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": net(x)}

    (traced,) = trace_entries(infer)
    graph = pipeline.run(traced.graph, stop_after="schedule")
    assert recompute(graph) is graph
