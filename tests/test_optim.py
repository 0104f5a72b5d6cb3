"""Optimizers, clipping and schedules against torch's formulas in NumPy (float64), over several steps."""

from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest
from tracing import Steps, run, trace

import graphc as gc
from graphc import nn, optim
from graphc.errors import GraphcError
from graphc.optim.rules import one_minus_power

RNG = np.random.default_rng(7)
X = RNG.standard_normal((8, 3)).astype(np.float32)
Y = RNG.standard_normal((8, 2)).astype(np.float32)


class Net(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


def gradients(values, scale=1.0):
    """d mean((x w' + b - y)²) of both parameters."""
    r = 2 * (X @ values["fc.weight"].T + values["fc.bias"] - Y) / Y.size
    return {"fc.weight": scale * (r.T @ X), "fc.bias": scale * r.sum(0)}


def train(net, opt, change=lambda grads: grads, params=None, count=5):
    """The state after each of ``count`` steps."""

    def f(x, y):
        loss = gc.mse_loss(net(x), y)
        opt.update(change(gc.grad(loss, params or net.parameters())))
        return {"loss": loss}

    steps = Steps(trace(f, x=X, y=Y), {"x": X, "y": Y})
    return [next(steps)[1] for _ in range(count)]


def follow(make, rule, rtol=2e-6, **kwargs):
    """Compare ``make(parameters)`` with ``rule(p, g, memory, t)`` in float64; returns the last state."""
    net = Net()
    values = {k: v.astype(np.float64) for k, v in net.state_dict().items()}
    memory = {k: {} for k in values}
    for t, state in enumerate(train(net, make(net.parameters()), **kwargs), 1):
        grads = gradients(values)
        values = {k: rule(values[k], grads[k], memory[k], t) for k in values}
        for k, want in values.items():
            np.testing.assert_allclose(state[k], want, rtol=rtol, atol=1e-7)
    return state


def adam(lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, l2=0.0, decay=0.0):
    def rule(p, g, memory, t):
        g = g + l2 * p
        p = p * (1 - lr * decay)
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
        return p - lr / (1 - b1**t) * m / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)

    return rule


def sgd(lr, momentum=0.0, nesterov=False, decay=0.0):
    def rule(p, g, memory, t):
        g = g + decay * p
        b = memory["b"] = momentum * memory.get("b", 0) + g
        return p - lr * (g + momentum * b if nesterov else b)

    return rule


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, sgd(0.1)),
        ({"weight_decay": 0.1}, sgd(0.1, decay=0.1)),
        ({"momentum": 0.9}, sgd(0.1, 0.9)),
        ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, sgd(0.1, 0.9, True, 0.01)),
    ],
)
def test_sgd(options, rule):
    follow(lambda ps: optim.SGD(ps, lr=0.1, **options), rule)


def test_adam():
    state = follow(lambda ps: optim.Adam(ps, lr=0.01), adam(0.01))
    assert state["optim.step"] == 5
    assert {k for k in state if k.startswith("optim.fc.bias")} == {"optim.fc.bias.exp_avg", "optim.fc.bias.exp_avg_sq"}
    follow(lambda ps: optim.Adam(ps, lr=0.01, weight_decay=0.1), adam(0.01, l2=0.1))


def test_adamw():
    follow(lambda ps: optim.AdamW(ps, lr=0.01), adam(0.01, decay=0.01))
    follow(
        lambda ps: optim.AdamW(ps, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
        adam(0.02, 0.8, 0.95, 1e-6, decay=0.3),
    )


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.999, 0.99999, 0.0])
def test_bias_corrections_have_no_cancellation(beta):
    for t in (1, 2, 10, 1000, 100000):
        got = run(lambda t: one_minus_power(beta, t), t=np.float32(t))
        np.testing.assert_allclose(got, -np.expm1(t * np.log(beta)) if beta else 1.0, rtol=5e-7)


def test_a_schedule_sets_the_rate():
    def rule(p, g, memory, t):
        return p - 0.1 * 0.5 ** (t - 1) * g

    follow(lambda ps: optim.SGD(ps, lr=optim.exponential(0.1, 0.5)), rule)
    follow(
        lambda ps: optim.AdamW(ps, lr=optim.linear(0.02, 10), weight_decay=0.1),
        lambda p, g, memory, t: adam(0.02 * (1 - (t - 1) / 10), decay=0.1)(p, g, memory, t),
    )


def test_groups_have_their_own_options_and_any_order():
    net = Net()
    groups = [{"params": [net.fc.bias], "lr": 1.0}, {"params": [net.fc.weight]}]
    before = net.state_dict()
    grads = gradients(before)
    (state,) = train(net, optim.SGD(groups, lr=0.5), count=1)
    np.testing.assert_allclose(state["fc.bias"], before["fc.bias"] - grads["fc.bias"], rtol=1e-5)
    np.testing.assert_allclose(state["fc.weight"], before["fc.weight"] - 0.5 * grads["fc.weight"], rtol=1e-5)


def test_gradients_may_come_as_a_dict_or_as_other_tensors():
    net = Net()
    wanted = train(net, optim.SGD(net.parameters(), lr=0.5), count=1)[0]["fc.weight"]
    named = dict(net.named_parameters())
    opt = optim.SGD(named, lr=0.5)
    np.testing.assert_array_equal(train(net, opt, params=named, count=1)[0]["fc.weight"], wanted)
    doubled = optim.SGD(net.parameters(), lr=0.25)
    state = train(net, doubled, change=lambda grads: [g * 2 for g in grads], count=1)[0]
    np.testing.assert_allclose(state["fc.weight"], wanted, rtol=1e-6)


def test_two_optimizers_have_two_names():
    net = Net()
    first, second = optim.Adam([net.fc.weight], name="first"), optim.Adam([net.fc.bias], name="second")

    def f(x, y):
        grads = gc.grad(gc.mse_loss(net(x), y), {"w": net.fc.weight, "b": net.fc.bias})
        first.update([grads["w"]])
        second.update([grads["b"]])

    names = {s.name for s in trace(f, x=X, y=Y).states}
    assert {"first.step", "second.step", "first.fc.weight.exp_avg", "second.fc.bias.exp_avg_sq"} <= names


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda net: optim.SGD([]), "an optimizer needs parameters, and got none"),
        (lambda net: optim.SGD([X]), "an optimizer takes parameters, not ndarray"),
        (lambda net: optim.SGD([net.fc.bias, net.fc.bias]), "a parameter is listed twice"),
        (lambda net: optim.SGD([{"params": [net.fc.bias], "rate": 1}]), "an optimizer has no option rate"),
        (lambda net: optim.SGD(net.parameters(), nesterov=True), "nesterov needs a momentum, and no dampening"),
    ],
)
def test_misuse(make, text):
    with pytest.raises(GraphcError) as caught:
        make(Net())
    assert caught.value.message == text


# Clipping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_by_global_norm_is_torchs(limit):
    def rule_with(values):
        grads = gradients(values)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        return {k: g * min(1, limit / (norm + 1e-6)) for k, g in grads.items()}

    net = Net()
    before = net.state_dict()
    opt = optim.SGD(net.parameters(), lr=1.0)
    state = train(net, opt, change=lambda g: optim.clip_by_global_norm(g, limit), count=1)[0]
    for k, g in rule_with(before).items():
        np.testing.assert_allclose(state[k], before[k] - g, rtol=1e-5, atol=1e-6)


def test_clipping_by_value():
    got = run(lambda x: optim.clip_by_value({"g": x}, 0.5)["g"], x=X)
    np.testing.assert_array_equal(got, np.clip(X, -0.5, 0.5))


# Schedules -----------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "constant": (optim.constant(0.1), lambda s: 0.1),
    "constant warm": (optim.constant(0.1, warmup=4), lambda s: 0.1 * min((s + 1) / 5, 1)),
    "linear": (optim.linear(0.1, 20, final=0.02), lambda s: 0.1 - 0.08 * min(s / 20, 1)),
    "linear warm": (
        optim.linear(0.1, 20, warmup=5),
        lambda s: 0.1 * (s + 1) / 6 if s < 5 else 0.1 * (1 - min((s - 5) / 15, 1)),
    ),
    "cosine": (
        optim.cosine(0.1, 20, warmup=5, final=0.01),
        lambda s: 0.1 * (s + 1) / 6 if s < 5 else 0.01 + 0.045 * (1 + cos(pi * min((s - 5) / 15, 1))),
    ),
    "step": (optim.step_decay(0.1, 3, 0.5), lambda s: 0.1 * 0.5 ** (s // 3)),
    "exponential": (optim.exponential(0.1, 0.9), lambda s: 0.1 * 0.9**s),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    schedule, formula = SCHEDULES[name]
    for s in (0, 1, 3, 4, 5, 6, 10, 19, 20, 30):
        np.testing.assert_allclose(run(lambda s: schedule(s), s=np.float32(s)), formula(s), rtol=1e-5, atol=1e-8)
