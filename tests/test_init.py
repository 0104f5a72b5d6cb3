"""Initial values: variances and bounds by torch's formulas, and orthogonality."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError
from graphc.nn import init
from graphc.variable import Parameter

SHAPE = (60, 20, 3, 3)
FAN_IN, FAN_OUT = 180, 540


def filled(fill, *shape: int, dtype: str = "float32") -> np.ndarray:
    gc.seed(4)
    p = Parameter(np.zeros(shape or SHAPE, dtype))
    assert fill(p) is p
    assert p.initial.dtype == dtype
    return p.initial


NORMAL = {
    "normal_": (lambda p: init.normal_(p, 2.0, 0.5), 2.0, 0.5),
    "xavier_normal_": (lambda p: init.xavier_normal_(p, 3.0), 0.0, 3 * sqrt(2 / (FAN_IN + FAN_OUT))),
    "kaiming_normal_": (init.kaiming_normal_, 0.0, sqrt(2 / FAN_IN)),
    "kaiming_normal_ out": (lambda p: init.kaiming_normal_(p, mode="fan_out"), 0.0, sqrt(2 / FAN_OUT)),
    "kaiming_normal_ tanh": (lambda p: init.kaiming_normal_(p, nonlinearity="tanh"), 0.0, 5 / 3 / sqrt(FAN_IN)),
}


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name: str):
    fill, mean, std = NORMAL[name]
    assert stats.kstest(filled(fill).ravel(), stats.norm(mean, std).cdf).pvalue > 1e-3


UNIFORM = {
    "uniform_": (lambda p: init.uniform_(p, -1.0, 3.0), -1.0, 3.0),
    "xavier_uniform_": (init.xavier_uniform_, -sqrt(6 / (FAN_IN + FAN_OUT)), sqrt(6 / (FAN_IN + FAN_OUT))),
    "kaiming_uniform_": (lambda p: init.kaiming_uniform_(p, sqrt(5)), -1 / sqrt(FAN_IN), 1 / sqrt(FAN_IN)),
}


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name: str):
    fill, low, high = UNIFORM[name]
    values = filled(fill).ravel()
    assert low <= values.min()
    assert values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_truncated_normal():
    values = filled(lambda p: init.trunc_normal_(p, 1.0, 2.0, -1.0, 2.0)).ravel()
    cdf = stats.truncnorm(-1.0, 0.5, loc=1.0, scale=2.0).cdf
    assert stats.kstest(values, cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3)])
def test_orthogonal(shape: tuple[int, ...]):
    matrix = filled(lambda p: init.orthogonal_(p, 2.0), *shape, dtype="float64").reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-12)


def test_constants():
    np.testing.assert_array_equal(filled(init.eye_, 2, 3), np.eye(2, 3))
    assert (filled(init.ones_, 3) == 1).all()
    assert (filled(lambda p: init.constant_(p, 2.5), 3) == 2.5).all()


@pytest.mark.parametrize(
    ("fill", "says"),
    [
        (init.xavier_normal_, "two dimensions"),
        (init.orthogonal_, "two dimensions"),
        (lambda p: init.kaiming_normal_(Parameter(np.zeros((2, 2))), mode="fan"), "no mode"),
        (lambda p: init.calculate_gain("swish"), "no gain"),
    ],
)
def test_refused(fill, says: str):
    with pytest.raises(GraphcError, match=says) as caught:
        fill(Parameter(np.zeros(3)))
    assert caught.value.code == "GC0217"


def test_skipped() -> None:
    """Nothing is drawn, so that what is drawn afterwards is what it would have been; constants are set."""
    gc.seed(3)
    want = nn.Linear(3, 5).weight.initial
    gc.seed(3)
    with init.skipped():
        made = nn.Linear(3, 5)
        norm = nn.LayerNorm(3)
        init.trunc_normal_(made.weight)
        init.orthogonal_(made.weight)
        init.normal_(made.weight)
    assert not made.weight.initial.any()
    assert (norm.weight.initial == 1).all()
    np.testing.assert_array_equal(nn.Linear(3, 5).weight.initial, want)
