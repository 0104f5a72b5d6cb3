"""Layers, initialisers and optimizers take what torch's take, in the same order; what is left out comes last or is
given by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'graphc[peers]' compares the names")

import torch

from graphc import nn, optim

PAIRS = {
    f"{theirs.__name__}.{name}": (getattr(ours, name), getattr(theirs, name))
    for ours, theirs in ((nn, torch.nn), (optim, torch.optim), (nn.init, torch.nn.init))
    for name in ours.__all__
    if hasattr(theirs, name) and not inspect.ismodule(getattr(ours, name))
}
# Parts of ours that are something else: a parameter holds an initial value, the base class is for new rules.
OTHERS = {"torch.nn.Parameter", "torch.optim.Optimizer"}
RECURRENT = {"torch.nn.RNN", "torch.nn.LSTM", "torch.nn.GRU"}  # torch's take *args, which their base class names
RENAMED = {"p": "tensor", "value": "val"}  # initialisers fill a parameter


def positional(function: Callable[..., Any]) -> list[str]:
    named = inspect.signature(function).parameters.values()
    return [p.name for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_arguments_of_recurrent_layers(name: str) -> None:
    _, *theirs = positional(torch.nn.RNNBase)  # the first is the kind of layer
    mine = [n for n in positional(PAIRS[name][0]) if n != "nonlinearity"]  # of RNN, before the bias
    assert len(mine) >= 7
    assert mine == theirs[: len(mine)]


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - OTHERS - RECURRENT))
def test_arguments(name: str) -> None:
    ours, theirs = PAIRS[name]
    mine = [RENAMED.get(n, n) if ".init." in name else n for n in positional(ours)]
    assert mine == positional(theirs)[: len(mine)]
