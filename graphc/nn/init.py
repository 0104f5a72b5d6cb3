"""Initial values of parameters, by torch's names. Each function fills the array of a parameter and returns it.

The numbers come from one generator, which `graphc.seed` sets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from math import prod, sqrt

import numpy as np

from graphc.errors import error
from graphc.random import generator
from graphc.scope import user_loc
from graphc.variable import State

__all__ = [
    "calculate_gain", "constant_", "eye_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "orthogonal_",
    "skipped", "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


_SKIPPED: ContextVar[bool] = ContextVar("skipped", default=False)


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Inside, nothing is drawn: parameters that start at random numbers start at zeros. For models whose weights are
    read from a file, which then are made in no time::

        with nn.init.skipped():
            net = Model(config)
        net.load_state_dict(gc.load_safetensors(path))
    """
    token = _SKIPPED.set(True)
    try:
        yield
    finally:
        _SKIPPED.reset(token)


def _fill(p: State, values: object) -> State:
    array = np.asarray(values, p.dtype.numpy)
    fresh = array.shape == p.shape and array.flags.c_contiguous  # every caller has just made ``values``
    p.initial = array if fresh else np.broadcast_to(array, p.shape).copy()
    return p


def _scaled(values: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """``values * scale + shift`` in place: weights are large, and memory that was never touched is slow."""
    values *= np.float32(scale)
    values += np.float32(shift)
    return values


def constant_(p: State, value: float) -> State:
    return _fill(p, value)


def zeros_(p: State) -> State:
    return _fill(p, 0)


def ones_(p: State) -> State:
    return _fill(p, 1)


def normal_(p: State, mean: float = 0.0, std: float = 1.0) -> State:
    if _SKIPPED.get():
        return p
    return _fill(p, _scaled(generator().standard_normal(p.shape, np.float32), std, mean))


def trunc_normal_(p: State, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> State:
    """Normal values, drawn again where they fall outside of [a, b]."""
    if _SKIPPED.get():
        return p
    values = generator().normal(mean, std, p.shape)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = generator().normal(mean, std, int(outside.sum()))
    return _fill(p, values)


def uniform_(p: State, a: float = 0.0, b: float = 1.0) -> State:
    if _SKIPPED.get():
        return p
    return _fill(p, _scaled(generator().random(p.shape, np.float32), b - a, a))


def eye_(p: State) -> State:
    """Ones on the diagonal of a matrix, zeros elsewhere."""
    _require_matrix(p, "eye_")
    return _fill(p, np.eye(p.shape[0], p.shape[1]))


def orthogonal_(p: State, gain: float = 1.0) -> State:
    """A matrix [rows, all other dimensions] with orthonormal rows or columns, times ``gain``.

    The Q of a QR decomposition, with signs such that all rotations are equally likely.
    Source: Saxe et al., arXiv 1312.6120; Mezzadri, arXiv math-ph/0609050."""
    _require_matrix(p, "orthogonal_")
    if _SKIPPED.get():
        return p
    rows, columns = p.shape[0], prod(p.shape[1:])
    values = generator().standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(values)
    q *= np.sign(np.diag(r))
    return _fill(p, gain * (q.T if rows < columns else q).reshape(p.shape))


# Scaled by the number of inputs and outputs --------------------------------------------------------------------------

GAINS = {"linear": 1.0, "conv": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": sqrt(2.0), "selu": 3 / 4}


def calculate_gain(nonlinearity: str, param: float = 0.01) -> float:
    """What an activation shrinks its input by, undone: torch's table. ``param``: the slope of "leaky_relu"."""
    if nonlinearity == "leaky_relu":
        return sqrt(2.0 / (1 + param * param))
    if nonlinearity not in GAINS:
        names = ", ".join([*GAINS, "leaky_relu"])
        raise error("GC0217", f"no gain is known for {nonlinearity!r}", loc=user_loc(), hint=f"one of {names}")
    return GAINS[nonlinearity]


def _require_matrix(p: State, what: str) -> None:
    if len(p.shape) < 2:
        message = f"{what} needs a weight of two dimensions or more, and got {p.type}"
        raise error("GC0217", message, loc=user_loc(), hint="biases start at init.zeros_ or init.uniform_")


def _fans(p: State, what: str) -> tuple[int, int]:
    """(inputs, outputs) of a weight [out, in, *window]."""
    _require_matrix(p, what)
    window = prod(p.shape[2:])
    return p.shape[1] * window, p.shape[0] * window


def xavier_uniform_(p: State, gain: float = 1.0) -> State:
    """Uniform of variance 2 gain² / (inputs + outputs). Source: Glorot and Bengio, AISTATS 2010."""
    bound = gain * sqrt(6.0 / sum(_fans(p, "xavier_uniform_")))
    return uniform_(p, -bound, bound)


def xavier_normal_(p: State, gain: float = 1.0) -> State:
    """Normal of variance 2 gain² / (inputs + outputs). Source: Glorot and Bengio, AISTATS 2010."""
    return normal_(p, 0.0, gain * sqrt(2.0 / sum(_fans(p, "xavier_normal_"))))


def kaiming_uniform_(p: State, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> State:
    """Uniform of variance gain² / fan, for a leaky ReLU of slope ``a`` or another activation. torch's Linear uses
    a = sqrt(5). Source: He et al., arXiv 1502.01852."""
    bound = sqrt(3.0) * _kaiming(p, a, mode, nonlinearity, "kaiming_uniform_")
    return uniform_(p, -bound, bound)


def kaiming_normal_(p: State, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> State:
    """Normal of variance gain² / fan, for a leaky ReLU of slope ``a`` or another activation.

    Source: He et al., arXiv 1502.01852."""
    return normal_(p, 0.0, _kaiming(p, a, mode, nonlinearity, "kaiming_normal_"))


def _kaiming(p: State, a: float, mode: str, nonlinearity: str, what: str) -> float:
    """The standard deviation."""
    if mode not in ("fan_in", "fan_out"):
        raise error("GC0217", f"{what} has no mode {mode!r}", loc=user_loc(), hint='"fan_in" or "fan_out"')
    fan = _fans(p, what)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / sqrt(max(fan, 1))
