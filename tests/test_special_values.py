"""NaN, infinities, zeros of both signs, halves and extremes: what NumPy and SciPy make of them, compiled and not.

Vectors are of odd lengths, so that each value meets the vector body and the tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special

import graphc as gc
from graphc.interp import interpret
from graphc.tracing import trace_entry

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Callable[..., Any], Callable[..., Any]]  # ours, and NumPy's

NAN, INF = float("nan"), float("inf")
VALUES = (
    0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 0.5, -0.5, 1.5, 2.5, -2.5, 2.0, -2.0, 3.0, -3.0, 1e-30, -1e-30, 1e30, -1e30,
    88.0, -104.0, 7.25,
)  # fmt: skip


def nan_to_num(x: Array) -> Array:
    return np.nan_to_num(x)


# The result is one of the operands, or a whole number: equal to NumPy's in every bit, but for which NaN it is.
EXACT: dict[str, Pair] = {
    "abs": (gc.abs, np.abs), "negative": (gc.negative, np.negative), "sign": (gc.sign, np.sign),
    "floor": (gc.floor, np.floor), "ceil": (gc.ceil, np.ceil), "round": (gc.round, np.round),
    "trunc": (gc.trunc, np.trunc), "isnan": (gc.isnan, np.isnan), "isinf": (gc.isinf, np.isinf),
    "isfinite": (gc.isfinite, np.isfinite), "nan_to_num": (gc.nan_to_num, nan_to_num),
    "bool": (lambda x: x.astype("bool"), lambda x: x.astype(bool)), "sqrt": (gc.sqrt, np.sqrt),
    "reciprocal": (gc.reciprocal, np.reciprocal), "square": (gc.square, np.square),
    "logical_not": (gc.logical_not, np.logical_not),
    "other float": (lambda x: x.astype("float64").astype("float32"), lambda x: x.astype("f8").astype("f4")),
}  # fmt: skip
NO_SIGN: dict[str, Pair] = {  # NumPy leaves open which zero of two it gives, and so do we
    "relu": (gc.relu, lambda x: np.maximum(x, 0)), "clip": (lambda x: gc.clip(x, -1, 2), lambda x: np.clip(x, -1, 2)),
    "relu6": (gc.relu6, lambda x: np.clip(x, 0, 6)),
}  # fmt: skip
CLOSE: dict[str, Pair] = {
    "exp": (gc.exp, np.exp), "log": (gc.log, np.log), "log2": (gc.log2, np.log2), "log10": (gc.log10, np.log10),
    "log1p": (gc.log1p, np.log1p), "expm1": (gc.expm1, np.expm1), "exp2": (gc.exp2, np.exp2),
    "rsqrt": (gc.rsqrt, lambda x: 1 / np.sqrt(x)), "tanh": (gc.tanh, np.tanh), "sinh": (gc.sinh, np.sinh),
    "cosh": (gc.cosh, np.cosh), "erf": (gc.erf, scipy.special.erf), "sigmoid": (gc.sigmoid, scipy.special.expit),
    "softplus": (gc.softplus, lambda x: np.logaddexp(x, 0)),
    "log_sigmoid": (gc.log_sigmoid, scipy.special.log_expit), "sin": (lambda x: gc.sin(gc.clip(x, -9, 9)),
    lambda x: np.sin(np.clip(x, -9, 9))), "cube": (lambda x: x**3, lambda x: x**3),
    "root": (lambda x: x**0.5, lambda x: x**0.5), "inverse": (lambda x: x**-1, lambda x: x**-1.0),
}  # fmt: skip
EXACT_OF_TWO: dict[str, Pair] = {
    "add": (gc.add, np.add), "subtract": (gc.subtract, np.subtract), "multiply": (gc.multiply, np.multiply),
    "divide": (gc.divide, np.divide), "equal": (gc.equal, np.equal), "not_equal": (gc.not_equal, np.not_equal),
    "less": (gc.less, np.less), "less_equal": (gc.less_equal, np.less_equal), "greater": (gc.greater, np.greater),
    "greater_equal": (gc.greater_equal, np.greater_equal),
    "where": (lambda x, y: gc.where(x > y, x, y), lambda x, y: np.where(x > y, x, y)),
    "logical_and": (gc.logical_and, np.logical_and), "logical_or": (gc.logical_or, np.logical_or),
    "logical_xor": (gc.logical_xor, np.logical_xor),
}  # fmt: skip
NO_SIGN_OF_TWO: dict[str, Pair] = {
    "maximum": (gc.maximum, np.maximum), "minimum": (gc.minimum, np.minimum),
    "clip to tensors": (lambda x, y: gc.clip(x, y, 2), lambda x, y: np.clip(x, y, 2)),
}  # fmt: skip
CLOSE_OF_TWO: dict[str, Pair] = {
    "pow": (gc.pow, np.power), "remainder": (gc.remainder, np.remainder), "hypot": (gc.hypot, np.hypot),
    "floor_divide": (gc.floor_divide, np.floor_divide), "logaddexp": (gc.logaddexp, np.logaddexp),
}  # fmt: skip


def grid(dt: str) -> tuple[Array, Array]:
    """Each pair of values, in vectors of odd length."""
    x, y = np.meshgrid(np.array(VALUES, dt), np.array(VALUES, dt))
    return x.ravel(), y.ravel()


def rows(dt: str) -> Array:
    """Rows [13, 37] with special values first, in the middle, and last, alone and together."""
    x = np.random.default_rng(3).standard_normal((13, 37)).astype(dt)
    for row, at, value in (
        (1, 0, NAN), (2, 36, NAN), (3, 17, NAN), (4, 5, INF), (5, 36, -INF), (6, 2, INF), (6, 33, -INF), (7, 20, NAN),
        (7, 3, INF), (8, slice(None), -INF), (9, slice(None), NAN), (10, slice(None), -0.0), (11, slice(None), INF),
    ):  # fmt: skip
        x[row, at] = value
    return x


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


ALONG: dict[str, Pair] = {
    "sum": (gc.sum, np.sum), "mean": (gc.mean, np.mean), "max": (gc.max, np.max), "min": (gc.min, np.min),
    "prod": (lambda x, axis: gc.prod(gc.tanh(x), axis), lambda x, axis: np.prod(np.tanh(x), axis)),
    "argmax": (gc.argmax, np.argmax), "argmin": (gc.argmin, np.argmin),
    "any": (lambda x, axis: gc.any(x > 2, axis), lambda x, axis: np.any(x > 2, axis)),
    "all": (lambda x, axis: gc.all(x > -2, axis), lambda x, axis: np.all(x > -2, axis)),
    "count_nonzero": (gc.count_nonzero, np.count_nonzero), "softmax": (gc.softmax, softmax),
    "logsumexp": (gc.logsumexp, lambda x, axis: scipy.special.logsumexp(x, axis=axis)),
    "log_softmax": (gc.log_softmax, lambda x, axis: scipy.special.log_softmax(x, axis=axis)),
    "cumsum": (gc.cumsum, np.cumsum),
    "sort": (lambda x, axis: gc.sort(x, axis=axis), lambda x, axis: np.sort(x, axis)),
    "argsort": (
        lambda x, axis: gc.argsort(x, axis=axis), lambda x, axis: np.argsort(x, axis, stable=True),
    ),
    "sorted away": (
        lambda x, axis: gc.sort(x, axis=axis, descending=True), lambda x, axis: np.flip(np.sort(x, axis), axis),
    ),
    "var": (gc.var, np.var),
}  # fmt: skip
SIGNED = set(EXACT) | set(EXACT_OF_TWO)

Results = dict[str, Array]


def elementwise(x: gc.Tensor, y: gc.Tensor) -> dict[str, gc.Tensor]:
    of_one = {name: ours(x) for name, (ours, _) in {**EXACT, **NO_SIGN, **CLOSE}.items()}
    return of_one | {n: ours(x, y) for n, (ours, _) in {**EXACT_OF_TWO, **NO_SIGN_OF_TWO, **CLOSE_OF_TWO}.items()}


def wanted(x: Array, y: Array) -> Results:
    of_one = {name: theirs(x) for name, (_, theirs) in {**EXACT, **NO_SIGN, **CLOSE}.items()}
    return of_one | {n: theirs(x, y) for n, (_, theirs) in {**EXACT_OF_TWO, **NO_SIGN_OF_TWO, **CLOSE_OF_TWO}.items()}


def results(entry: gc.Entry, compiled: bool, **arrays: Array) -> Results:
    if compiled:
        found: Results = gc.compile(entry, threads=2).entries[entry.name](**arrays)
        return found
    return interpret(trace_entry(entry).graph, arrays)[0]


def check(name: str, got: Array, want: Any, dt: str) -> None:
    want = np.asarray(want)
    assert got.shape == want.shape, name
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    want = want.astype(got.dtype)
    tolerance = 2e-6 if dt == "float32" else 1e-13
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance if name in ALONG else 0, err_msg=name)
    if name in SIGNED:
        zero = want == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]), err_msg=f"zeros of {name}")


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
@pytest.mark.parametrize("dt", ["float32", "float64"])
def test_elementwise(dt: str, compiled: bool) -> None:
    x, y = grid(dt)
    with np.errstate(all="ignore"):
        got = results(gc.entry(x=gc.spec(x.shape, dt), y=gc.spec(x.shape, dt))(elementwise), compiled, x=x, y=y)
        far = np.isfinite(x) & (np.abs(x / y) >= 2.0 ** (24 if dt == "float32" else 53))
        for name, want in wanted(x, y).items():
            near = ~far if name == "remainder" else slice(None)  # as far as a quotient is exact
            check(name, got[name][near], np.asarray(want)[near], dt)


@pytest.mark.parametrize("compiled", [False, True], ids=["interpreted", "compiled"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dt", ["float32", "float64"])
def test_along_an_axis(dt: str, axis: int, compiled: bool) -> None:
    x = rows(dt) if axis == 1 else rows(dt).T.copy()

    def along(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {name: ours(x, axis) for name, (ours, _) in ALONG.items()}

    with np.errstate(all="ignore"):
        got = results(gc.entry(x=gc.spec(x.shape, dt))(along), compiled, x=x)
        for name, (_, theirs) in ALONG.items():
            check(name, got[name], theirs(x, axis), dt)
