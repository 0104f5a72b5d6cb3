"""Optimizers and schedules against stored results of PyTorch, averages of weights, and accumulation of gradients."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tracing import Steps, run, trace

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import optimizers
from optimizers import CASES, GRADIENTS, PARAMETERS, SCHEDULES, TOTAL

import graphc as gc
from graphc import nn, optim
from graphc.errors import GraphcError
from graphc.tracing import trace_entry

FIXTURE = dict(np.load(optimizers.FIXTURE))


def follow(opt_of) -> np.ndarray:
    """All parameters after each step, flat."""
    entry, params = optimizers.entry_of(opt_of)
    traced = trace_entry(entry)
    state, rows = dict(traced.initial), []
    for grads in GRADIENTS:
        steps = Steps(traced, grads)
        steps.state = state
        outputs, state = next(steps)
        rows.append(np.concatenate([state[k].ravel() for k in params]))
        for k in params:  # what the entry reads after the update is the new value
            np.testing.assert_array_equal(outputs[k], state[k])
    return np.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_optimizers_are_those_of_torch(name: str):
    kind, options = CASES[name]
    # What depends on the step alone (bias corrections, decayed rates) is float32.
    np.testing.assert_allclose(follow(partial(getattr(optim, kind), **options)), FIXTURE[name], rtol=3e-6, atol=1e-7)


def test_lion():
    got = follow(partial(optim.Lion, lr=0.01, betas=(0.9, 0.98), weight_decay=0.1))
    p = {k: v.copy() for k, v in PARAMETERS.items()}
    m = {k: np.zeros_like(v) for k, v in PARAMETERS.items()}
    for t, grads in enumerate(GRADIENTS):
        for k, g in grads.items():
            p[k] = p[k] * (1 - 0.01 * 0.1) - 0.01 * np.sign(0.9 * m[k] + 0.1 * g)
            m[k] = 0.98 * m[k] + 0.02 * g
        np.testing.assert_allclose(got[t], np.concatenate([v.ravel() for v in p.values()]), rtol=1e-7)


def test_adafactor_keeps_a_row_and_a_column_per_matrix():
    net = nn.Linear(6, 4)
    opt = optim.Adafactor(net.parameters())

    def f(x):
        opt.update(gc.grad(gc.sum(net(x) ** 2), net.parameters()))
        return {}

    shapes = {name: v.shape for name, v in trace(f, x=np.ones((2, 6), np.float32)).initial.items() if "var" in name}
    assert sorted(shapes.values()) == [(1, 6), (4,), (4, 1)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(name: str):
    schedule = SCHEDULES[name][0]
    got = [run(lambda t: schedule(t), t=np.float32(t)) for t in range(TOTAL)]
    np.testing.assert_allclose(got, FIXTURE[name], rtol=2e-5, atol=1e-8)


# Averages ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


X = np.random.default_rng(1).standard_normal((8, 3)).astype(np.float32)


@pytest.mark.parametrize("warmup", [False, True])
def test_averages_follow_the_weights_and_serve_inference(warmup: bool):
    net = Net()
    opt, ema = optim.SGD(net.parameters(), lr=0.1), optim.EMA(net.parameters(), 0.8, warmup=warmup)

    @gc.entry(x=gc.spec(X.shape))
    def train(x):
        opt.update(gc.grad(gc.sum(net(x) ** 2), net.parameters()))
        ema.update()
        return {"w": net.fc.weight + 0}

    @gc.entry(x=gc.spec(X.shape))
    def infer(x):
        ema.use()
        return {"y": net(x)}

    net.fc.weight.initial[...] = 0.5  # loaded after the average was declared
    program = gc.compile(train, infer)
    average = {k: v.astype(np.float64) for k, v in program.state.items() if k in ("fc.weight", "fc.bias")}
    for t in range(4):
        program.train(x=X)
        decay = min(0.8, (1 + t) / (10 + t)) if warmup else 0.8
        state = {k: v.copy() for k, v in program.state.items()}
        average = {k: decay * a + (1 - decay) * state[k] for k, a in average.items()}
        for k, want in average.items():
            np.testing.assert_allclose(state[f"ema.{k}"], want, rtol=1e-5, atol=1e-6)
    want = X @ average["fc.weight"].T + average["fc.bias"]
    np.testing.assert_allclose(program.infer(x=X)["y"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(program.state["fc.weight"], state["fc.weight"])  # inference changed nothing


def test_averages_are_asked_for_first():
    net = Net()
    ema = optim.EMA(net.parameters())

    def late(x):
        y = net(x)
        ema.use()
        return {"y": y}

    with pytest.raises(GraphcError, match="before its average") as caught:
        trace(late, x=X)
    assert caught.value.code == "GC0206"


# Accumulation --------------------------------------------------------------------------------------------------------


def program_of(batch: int, parts: int, width: int = 64):
    """A step of an MLP on ``batch`` rows in ``parts``; 0 takes the plain gradient."""
    gc.seed(0)
    net = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Tanh())
    opt = optim.SGD(net.parameters(), lr=0.1)

    @gc.entry(x=gc.spec((batch, width)), y=gc.spec((batch, width)))
    def train(x, y):
        def loss_of(x, y):
            return gc.mse_loss(net(x), y)

        if parts:
            loss, grads = optim.accumulate(loss_of, net.parameters(), x, y, parts=parts)
        else:
            loss = loss_of(x, y)
            grads = gc.grad(loss, net.parameters())
        opt.update(optim.clip_by_global_norm(grads, 1.0))
        return {"loss": loss}

    return gc.compile(train)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 32, 64)).astype(np.float32)
    whole, parts = program_of(32, 0), program_of(32, 4)
    for _ in range(3):
        np.testing.assert_allclose(parts.train(x=x, y=y)["loss"], whole.train(x=x, y=y)["loss"], rtol=1e-5)
    for name, want in whole.state.items():
        np.testing.assert_allclose(parts.state[name], want, rtol=1e-4, atol=1e-6, err_msg=name)


def test_accumulation_has_the_memory_of_one_part():
    """The arena is that of a step on one part, all of the inputs, and the sums of gradients; more parts take nothing
    but their inputs."""
    one, four, eight = (program_of(128 * n, n).train.memory.arena_bytes for n in (1, 4, 8))
    part = 2 * 128 * 64 * 4
    sums = 2 * (64 * 64 + 64) * 4
    assert four <= one + 4 * part + sums
    assert eight - four <= 4 * part + 64
    assert program_of(512, 0).train.memory.arena_bytes >= four + part


def test_accumulation_refuses_parts_that_do_not_fit():
    with pytest.raises(GraphcError, match="into 3 equal parts") as caught:
        program_of(32, 3)
    assert caught.value.code == "GC0108"
