"""Weights of convolutions lie in memory as their kernels read them; whoever looks at the state does not see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tracing import trace

import graphc as gc
from graphc import nn, optim
from graphc.interp import interpret
from graphc.passes import pipeline
from graphc.passes.state_order import state_orders
from graphc.text import parse


def step_of(layer: nn.Conv2d) -> Callable[[gc.Tensor], dict[str, gc.Tensor]]:
    opt = optim.AdamW(list(layer.parameters()), lr=0.1)

    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(layer(x) ** 2)
        opt.update(gc.grad(loss, list(layer.parameters())))
        return {"loss": loss}

    return step


def test_weights_of_convolutions_and_the_optimizers_state() -> None:
    traced = trace(step_of(nn.Conv2d(3, 4, 3)), x=gc.spec((2, 3, 6, 6)))
    orders = state_orders(traced.states, [traced.graph])
    shaped = {s.name for s in traced.states if s.type.shape == (4, 3, 3, 3)}
    assert len(shaped) == 3  # the weight and two moments
    assert orders == dict.fromkeys(shaped, (2, 3, 1, 0))


def test_what_is_read_and_written_has_the_users_shape(tmp_path: Path) -> None:
    program = gc.compile(gc.entry(x=gc.spec((2, 3, 6, 6)))(step_of(nn.Conv2d(3, 4, 3))))
    rng = np.random.default_rng(0)
    start = {n: np.abs(rng.standard_normal(a.shape)).astype(a.dtype) for n, a in program.state.items()}
    program.load_state_dict(start, strict=False)
    for name, a in start.items():
        np.testing.assert_array_equal(program.state[name], a)
    (record,) = [s for s in program.artifact.manifest.state if s.name.endswith("weight") and s.order]
    assert program.state[record.name].strides == (4, 16, 144, 48)  # [window, in, out] in memory
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    graph = pipeline.run(parse(program.step.graph), stop_after="differentiate")
    outputs, after = interpret(graph, {"x": x}, start)
    np.testing.assert_allclose(program.step(x=x)["loss"], outputs["loss"], rtol=1e-5)
    for name, a in after.items():
        np.testing.assert_allclose(program.state[name], a, rtol=1e-4, atol=1e-5, err_msg=name)
    program.save_state(tmp_path / "state.safetensors")
    program.save(tmp_path / "step.gcx")
    again = gc.load(tmp_path / "step.gcx")
    again.load_state(tmp_path / "state.safetensors")
    for name, a in program.state.items():
        np.testing.assert_array_equal(again.state[name], a)
    np.testing.assert_array_equal(again.step(x=x)["loss"], program.step(x=x)["loss"])
