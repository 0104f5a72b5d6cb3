"""Activations and losses, with their gradients, against stored results of PyTorch (tests/parity/formulas.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tracing import run, step

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import formulas
from formulas import CALLS, Call, label

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError

FIXTURE = dict(np.load(formulas.FIXTURE))


def test_the_fixture_has_every_call_and_no_other():
    assert {k.split("/")[0] for k in FIXTURE} == set(map(label, CALLS))


@pytest.mark.parametrize("call", CALLS, ids=label)
def test_values_and_gradients(call: Call):
    def entry(**tensors):
        y, g = formulas.run_graphc(call, tensors)
        return {"y": y, "g": g}

    got, _ = step(entry, **formulas.ARRAYS)
    for what in "yg":
        want = FIXTURE[f"{label(call)}/{what}"]
        # PyTorch has the slope of hardsigmoid, 1/6, in float32 only.
        np.testing.assert_allclose(got[what], want, rtol=1e-7 if "hardsigmoid" in call else 1e-10, atol=1e-13)


MODULES = {
    "CELU": "celu", "ELU": "elu", "GELU": "gelu", "GLU": "glu", "SELU": "selu", "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish", "Hardtanh": "hardtanh", "LeakyReLU": "leaky_relu", "LogSigmoid": "log_sigmoid",
    "LogSoftmax": "log_softmax", "Mish": "mish", "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu",
    "Sigmoid": "sigmoid", "Softmax": "softmax", "Softplus": "softplus", "Softsign": "softsign",
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_activation_modules_are_their_functions(name: str):
    module, function = getattr(nn, name)(), getattr(gc, MODULES[name])
    x = formulas.ARRAYS["x"]
    np.testing.assert_array_equal(run(lambda x: module(x), x=x), run(lambda x: function(x), x=x))


def test_prelu_learns_its_slope():
    module = nn.PReLU(6)
    assert list(dict(module.named_parameters())) == ["weight"]
    x = formulas.ARRAYS["x"].astype(np.float32)
    out, _ = step(lambda x: {"y": module(x), "g": gc.grad(gc.sum(module(x)), module.weight)}, x=x)
    np.testing.assert_allclose(out["y"], np.where(x > 0, x, 0.25 * x), rtol=1e-6)
    np.testing.assert_allclose(out["g"], np.where(x > 0, 0, x).sum(0), rtol=1e-5)


LOSSES = {
    "CrossEntropyLoss": ("cross_entropy", ("y", "labels"), {"label_smoothing": 0.1}),
    "NLLLoss": ("nll_loss", ("y", "labels"), {"reduction": "sum"}),
    "BCELoss": ("binary_cross_entropy", ("p", "q"), {}),
    "BCEWithLogitsLoss": ("binary_cross_entropy_with_logits", ("x", "p"), {}),
    "KLDivLoss": ("kl_div", ("y", "q"), {"reduction": "batchmean"}),
    "MSELoss": ("mse_loss", ("x", "y"), {}),
    "L1Loss": ("l1_loss", ("x", "y"), {}),
    "HuberLoss": ("huber_loss", ("x", "y"), {"delta": 0.5}),
    "SmoothL1Loss": ("smooth_l1_loss", ("x", "y"), {}),
    "CosineEmbeddingLoss": ("cosine_embedding_loss", ("x", "y", "signs"), {"margin": 0.1}),
    "CosineSimilarity": ("cosine_similarity", ("x", "y"), {}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_modules_are_their_functions(name: str):
    function, arguments, options = LOSSES[name]
    module, arrays = getattr(nn, name)(**options), {a: formulas.ARRAYS[a] for a in arguments}
    got = run(lambda **t: module(*(t[a] for a in arguments)), **arrays)
    want = run(lambda **t: getattr(gc, function)(*(t[a] for a in arguments), **options), **arrays)
    np.testing.assert_array_equal(got, want)


def test_contrastive_loss_is_the_mean_of_both_directions():
    logits = formulas.ARRAYS["x"][:, :5]
    labels = np.arange(5)
    got = run(lambda x: nn.ContrastiveLoss()(x), x=logits)
    rows, columns = (run(lambda x, y: gc.cross_entropy(x, y), x=v, y=labels) for v in (logits, logits.T.copy()))
    np.testing.assert_allclose(got, (rows + columns) / 2, rtol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_a_label_out_of_range_is_an_error_of_the_step(loss: str):
    @gc.entry(x=gc.spec((4, 3)), y=gc.spec((4,), "int32"))
    def entry(x, y):
        return {"loss": getattr(gc, loss)(x, y, weight=[1.0, 2.0, 3.0])}

    program = gc.compile(entry)
    x = np.zeros((4, 3), np.float32)
    program.entry(x=x, y=np.int32([0, 1, -100, 2]))
    with pytest.raises(GraphcError) as caught:
        program.entry(x=x, y=np.int32([0, 1, 3, 2]))
    assert caught.value.code == "GC0420"


REFUSED = {
    "GC0217 reduction": lambda x: gc.mse_loss(x, x, reduction="batchmean"),
    "GC0217 reduction of classes": lambda x: gc.cross_entropy(x, x, reduction="all"),
    "GC0217 label_smoothing": lambda x: gc.cross_entropy(x, x, label_smoothing=2.0),
    "GC0101 target": lambda x: gc.cross_entropy(x, x[:, :2]),
    "GC0101 labels": lambda x: gc.nll_loss(x, x),
    "GC0101 contrastive": lambda x: gc.contrastive_loss(x),
    "GC0217 prelu": lambda x: gc.prelu(x, x[0, :4]),
    "GC0108 glu": lambda x: gc.glu(x[:, :5]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    with pytest.raises(GraphcError) as caught:
        run(lambda x: REFUSED[name](x), x=formulas.ARRAYS["x"])
    assert caught.value.code == name.split()[0]
