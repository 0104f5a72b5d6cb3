"""LSTM, GRU, RNN and their cells: against stored results of PyTorch (tests/parity/recurrent_reference.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracing import nodes, step, trace

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import recurrent_reference as reference

import graphc as gc
from graphc import nn, optim
from graphc.errors import GraphcError

FIXTURE = dict(np.load(reference.FIXTURE))


def test_the_fixture_has_every_case_and_no_other() -> None:
    assert {k.split("/")[0] for k in FIXTURE} == set(reference.CASES)


@pytest.mark.parametrize("name", reference.CASES)
def test_results_and_gradients(name: str) -> None:
    module = reference.layer(name)
    got, _ = step(lambda **given: reference.entry(name, module, **given), **reference.inputs(name))
    want = {k.split("/")[1]: a for k, a in FIXTURE.items() if k.startswith(f"{name}/")}
    assert got.keys() == want.keys()
    for key, w in want.items():
        np.testing.assert_allclose(got[key], w, rtol=1e-10, atol=1e-12, err_msg=key)


def test_names_and_shapes_are_those_of_torch() -> None:
    module = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    shapes = {n: p.shape for n, p in module.named_parameters()}
    assert list(shapes)[:5] == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse"]
    assert len(shapes) == 16
    assert (shapes["weight_ih_l0"], shapes["weight_ih_l1_reverse"]) == ((16, 3), (16, 8))
    assert all(np.abs(p.initial).max() <= 0.5 for p in module.parameters())  # 1 / sqrt(H)


def test_dropout_lies_between_layers_only() -> None:
    x = np.ones((3, 2, 5), np.float32)
    for layers, count in ((1, 0), (3, 2)):
        module = nn.GRU(5, 4, num_layers=layers, dropout=0.5)
        assert len(nodes(trace(lambda x, m=module: {"y": m(x)[0]}, x=x).graph, "random_bits")) == count
        module.eval()
        assert not nodes(trace(lambda x, m=module: {"y": m(x)[0]}, x=x).graph, "random_bits")


def test_a_chain_of_cells_is_a_layer() -> None:
    layer, cell = nn.LSTM(3, 4, dtype="float64"), nn.LSTMCell(3, 4, dtype="float64")
    cell.load_state_dict({n.removesuffix("_l0"): p.initial for n, p in layer.named_parameters()})
    x = np.random.default_rng(2).standard_normal((5, 2, 3))

    def entry(x: Any) -> Any:
        _, (h, c) = layer(x)
        zeros = gc.zeros((2, 4), dtype="float64")
        (h2, c2), _ = gc.scan(lambda s, row: (cell(row, s), None), (zeros, zeros), x)
        return {"h": h, "c": c, "h2": h2[None], "c2": c2[None]}

    got, _ = step(entry, x=x)
    np.testing.assert_allclose(got["h"], got["h2"])
    np.testing.assert_allclose(got["c"], got["c2"])


@pytest.mark.parametrize(
    ("make", "shape", "code"),
    [
        (lambda: nn.RNN(3, 4, nonlinearity="sine"), (5, 2, 3), "GC0217"),
        (lambda: nn.LSTM(3, 0), (5, 2, 3), "GC0217"),
        (lambda: nn.GRU(3, 4), (5, 2, 4), "GC0107"),
        (lambda: nn.GRU(3, 4), (3,), "GC0217"),
        (lambda: lambda x: nn.LSTM(3, 4)(x, x), (5, 2, 3), "GC0217"),
        (lambda: lambda x: nn.GRU(3, 4)(x, x), (5, 2, 3), "GC0217"),
    ],
)
def test_misuse(make: Any, shape: tuple[int, ...], code: str) -> None:
    with pytest.raises(GraphcError) as caught:
        trace(lambda x: {"y": make()(x)}, x=np.zeros(shape, np.float32))
    assert caught.value.code == code
    assert len(str(caught.value).splitlines()) <= 15


def test_learns_to_remember() -> None:
    """The first of eight numbers, after the last: what a plain feed-forward net of the last number cannot know."""
    gc.seed(3)
    net, head = nn.LSTM(1, 12).named("net"), nn.Linear(12, 1).named("head")
    opt = optim.Adam([*net.parameters(), *head.parameters()], lr=0.02)

    @gc.entry(x=gc.spec((8, 32, 1)))
    def train(x: Any) -> Any:
        loss = gc.mean((head(net(x)[0][-1]) - x[0]) ** 2)
        params = [*net.parameters(), *head.parameters()]
        opt.update(gc.grad(loss, params))
        return {"loss": loss}

    program = gc.compile(train)
    rng = np.random.default_rng(0)
    losses = [float(program.train(x=rng.standard_normal((8, 32, 1), np.float32))["loss"]) for _ in range(300)]
    assert np.mean(losses[:10]) > 0.8
    assert np.mean(losses[-10:]) < 0.1
