"""Initial values of parameters, by torch's names. Each function fills the array of a parameter and returns it.

The numbers come from one generator, which `graphc.seed` sets.
"""

from __future__ import annotations

from math import prod, sqrt

import numpy as np

from graphc.random import generator
from graphc.variable import State

__all__ = [
    "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "trunc_normal_", "uniform_",
    "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def _fill(p: State, values: object) -> State:
    p.initial = np.broadcast_to(np.asarray(values, p.dtype.numpy), p.shape).copy()
    return p


def constant_(p: State, value: float) -> State:
    return _fill(p, value)


def zeros_(p: State) -> State:
    return _fill(p, 0)


def ones_(p: State) -> State:
    return _fill(p, 1)


def normal_(p: State, mean: float = 0.0, std: float = 1.0) -> State:
    return _fill(p, generator().standard_normal(p.shape, np.float32) * np.float32(std) + np.float32(mean))


def trunc_normal_(p: State, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> State:
    """Normal values, drawn again where they fall outside of [a, b]."""
    values = generator().normal(mean, std, p.shape)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = generator().normal(mean, std, int(outside.sum()))
    return _fill(p, values)


def uniform_(p: State, a: float = 0.0, b: float = 1.0) -> State:
    return _fill(p, generator().random(p.shape, np.float32) * np.float32(b - a) + np.float32(a))


def _fans(p: State) -> tuple[int, int]:
    """(inputs, outputs) of a weight [out, in, *window]."""
    window = prod(p.shape[2:])
    return p.shape[1] * window, p.shape[0] * window


def xavier_uniform_(p: State, gain: float = 1.0) -> State:
    """Glorot and Bengio, AISTATS 2010."""
    bound = gain * sqrt(6.0 / sum(_fans(p)))
    return uniform_(p, -bound, bound)


def xavier_normal_(p: State, gain: float = 1.0) -> State:
    return normal_(p, 0.0, gain * sqrt(2.0 / sum(_fans(p))))


def kaiming_uniform_(p: State, a: float = 0.0) -> State:
    """He et al., arXiv 1502.01852, for a leaky ReLU of slope ``a``. torch's Linear uses a = sqrt(5)."""
    bound = sqrt(6.0 / ((1 + a * a) * _fans(p)[0]))
    return uniform_(p, -bound, bound)


def kaiming_normal_(p: State, a: float = 0.0) -> State:
    return normal_(p, 0.0, sqrt(2.0 / ((1 + a * a) * _fans(p)[0])))
