"""Functions of the Array API that are composed of primitives, against NumPy: traced and interpreted, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tracing import run

import graphc as gc
from graphc.errors import GraphcError

RNG = np.random.default_rng(5)
ARRAYS: dict[str, np.ndarray] = {
    "x": RNG.standard_normal((4, 5)),
    "y": RNG.standard_normal((5, 3)),
    "c": RNG.standard_normal((2, 3, 4)),
    "v": RNG.standard_normal(6),
    "n": np.array([[3.0, np.nan, -1.0, 3.0], [np.inf, -np.inf, 0.0, -0.0], [2.0, np.nan, np.nan, 5.0]]),
    "i": RNG.integers(0, 4, (4, 5)).astype(np.int32),
    "b": RNG.integers(0, 2, (4, 5)).astype(bool),
}
a = ARRAYS
Case = tuple[Callable[..., Any], Any]


def descending(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """The stable descending order, NaN first."""
    size = x.shape[axis]
    return size - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, stable=True), axis)


CASES: dict[str, Case] = {
    # along an axis
    "cumsum": (lambda x, **_: gc.cumsum(x, 0), a["x"].cumsum(0)),
    "cumsum of a vector": (lambda v, **_: gc.cumulative_sum(v), a["v"].cumsum()),
    "cumsum from zero": (
        lambda x, **_: gc.cumulative_sum(x, axis=1, include_initial=True),
        np.concatenate([np.zeros((4, 1)), a["x"].cumsum(1)], 1),
    ),
    "cumsum of bools": (lambda b, **_: gc.cumsum(b, 1), a["b"].cumsum(1).astype(np.int32)),
    "cumsum to float": (lambda i, **_: gc.cumsum(i, 1, dtype="float64"), a["i"].cumsum(1).astype(np.float64)),
    "cumprod": (lambda c, **_: gc.cumprod(c, 1), a["c"].cumprod(1)),
    "cumprod from one": (
        lambda v, **_: gc.cumulative_prod(v, include_initial=True), np.concatenate([[1.0], a["v"].cumprod()]),
    ),
    "diff": (lambda x, **_: gc.diff(x, n=2), np.diff(a["x"], n=2)),
    "diff of rows": (lambda x, **_: gc.diff(x, axis=0), np.diff(a["x"], axis=0)),
    "argmax": (lambda c, **_: gc.argmax(c, 1), a["c"].argmax(1).astype(np.int32)),
    "argmax of all": (lambda c, **_: gc.argmax(c), np.int32(a["c"].argmax())),
    "argmax kept": (lambda x, **_: gc.argmax(x, keepdims=True), np.int32([[a["x"].argmax()]])),
    "argmax of NaN": (lambda n, **_: gc.argmax(n, -1), a["n"].argmax(-1).astype(np.int32)),
    "argmin of NaN": (lambda n, **_: gc.argmin(n, 0, keepdims=True), a["n"].argmin(0, keepdims=True).astype(np.int32)),
    "argmin of ints": (lambda i, **_: gc.argmin(i, 1), a["i"].argmin(1).astype(np.int32)),
    "argmax of bools": (lambda b, **_: gc.argmax(b, 1), a["b"].argmax(1).astype(np.int32)),
    "count_nonzero": (lambda i, **_: gc.count_nonzero(i, 0), np.count_nonzero(a["i"], 0).astype(np.int32)),
    "searchsorted": (
        lambda v, x, **_: gc.searchsorted(gc.sort(v), x), np.searchsorted(np.sort(a["v"]), a["x"]).astype(np.int32),
    ),
    "searchsorted after": (
        lambda i, **_: gc.searchsorted(gc.arange(4), i, side="right"),
        np.searchsorted(np.arange(4), a["i"], side="right").astype(np.int32),
    ),
    "sort": (lambda c, **_: gc.sort(c, axis=1), np.sort(a["c"], axis=1)),
    "sort of NaN": (lambda n, **_: gc.sort(n), np.sort(a["n"])),
    "sort downwards": (lambda x, **_: gc.sort(x, axis=0, descending=True), -np.sort(-a["x"], axis=0)),
    "sort of bools": (lambda b, **_: gc.sort(b), np.sort(a["b"])),
    "argsort": (lambda i, **_: gc.argsort(i), np.argsort(a["i"], stable=True).astype(np.int32)),
    "argsort downwards": (
        lambda n, **_: gc.argsort(n, axis=0, descending=True), descending(a["n"], 0).astype(np.int32),
    ),
    "top_k": (lambda x, **_: gc.top_k(x, 2)[0], -np.sort(-a["x"])[:, :2]),
    "top_k positions": (
        lambda i, **_: gc.top_k(i, 3, axis=0)[1], descending(a["i"], 0)[:3].astype(np.int32),
    ),
    "take_along_axis": (
        lambda x, i, **_: gc.take_along_axis(x, i, axis=0), np.take_along_axis(a["x"], a["i"], 0),
    ),
    "take_along_axis, broadcast": (
        lambda x, i, **_: gc.take_along_axis(x, i[:1]), np.take_along_axis(a["x"], a["i"][:1], 1),
    ),
    "recurrence backwards": (
        lambda x, **_: gc.recurrence(1, x, axis=0, reverse=True), a["x"][::-1].cumsum(0)[::-1],
    ),
    # shapes
    "moveaxis": (lambda c, **_: gc.moveaxis(c, 0, -1), np.moveaxis(a["c"], 0, -1)),
    "moveaxis of two": (lambda c, **_: gc.moveaxis(c, (0, 1), (2, 0)), np.moveaxis(a["c"], (0, 1), (2, 0))),
    "flatten": (lambda c, **_: gc.flatten(c, 1), a["c"].reshape(2, 12)),
    "matrix_transpose": (lambda c, **_: gc.matrix_transpose(c), a["c"].swapaxes(1, 2)),
    "swapaxes": (lambda c, **_: gc.swapaxes(c, 0, 2), a["c"].swapaxes(0, 2)),
    "tile": (lambda x, **_: gc.tile(x, (2, 1, 3)), np.tile(a["x"], (2, 1, 3))),
    "tile of few": (lambda c, **_: gc.tile(c, (2,)), np.tile(a["c"], (2,))),
    "repeat": (lambda x, **_: gc.repeat(x, 3, axis=1), a["x"].repeat(3, 1)),
    "repeat of all": (lambda x, **_: gc.repeat(x, 2), a["x"].repeat(2)),
    "roll": (lambda x, **_: gc.roll(x, 2, axis=1), np.roll(a["x"], 2, 1)),
    "roll of two": (lambda c, **_: gc.roll(c, (-1, 5), axis=(0, 2)), np.roll(a["c"], (-1, 5), (0, 2))),
    "roll of all": (lambda x, **_: gc.roll(x, -3), np.roll(a["x"], -3)),
    "broadcast_arrays": (lambda x, v, **_: gc.broadcast_arrays(x, v[:5])[1], np.broadcast_to(a["v"][:5], (4, 5))),
    "unstack": (lambda c, **_: gc.unstack(c, axis=1)[2], a["c"][:, 2]),
    "diagonal": (lambda x, **_: gc.diagonal(x), a["x"].diagonal()),
    "diagonal above": (lambda c, **_: gc.diagonal(c, offset=1), a["c"].diagonal(1, 1, 2)),
    "diagonal below": (lambda x, **_: gc.diagonal(x, offset=-2), a["x"].diagonal(-2)),
    "diag": (lambda v, **_: gc.diag(v, k=-1), np.diag(a["v"], -1)),
    "diag of a matrix": (lambda x, **_: gc.diag(x, k=2), np.diag(a["x"], 2)),
    "trace": (lambda c, **_: gc.trace(c), a["c"].trace(0, 1, 2)),
    "eye": (lambda **_: gc.eye(3, 4, k=1, dtype="float64"), np.eye(3, 4, 1)),
    "linspace": (lambda **_: gc.linspace(-1, 2, 7, dtype="float64"), np.linspace(-1, 2, 7)),
    "linspace, open": (
        lambda **_: gc.linspace(0, 1, 4, dtype="float64", endpoint=False), np.linspace(0, 1, 4, endpoint=False),
    ),
    "meshgrid": (lambda v, x, **_: gc.meshgrid(v, x[0])[1], np.meshgrid(a["v"], a["x"][0])[1]),
    "meshgrid ij": (
        lambda v, x, **_: gc.meshgrid(v, x[0], x[1], indexing="ij")[2],
        np.meshgrid(a["v"], a["x"][0], a["x"][1], indexing="ij")[2],
    ),
    # products
    "outer": (lambda v, x, **_: gc.outer(v, x[0]), np.outer(a["v"], a["x"][0])),
    "vecdot": (lambda c, **_: gc.vecdot(c, c, axis=1), (a["c"] * a["c"]).sum(1)),
    "tensordot": (
        lambda c, **_: gc.tensordot(c, c, axes=([1, 2], [1, 2])), np.tensordot(a["c"], a["c"], ([1, 2], [1, 2])),
    ),
    "tensordot of one": (lambda x, y, **_: gc.tensordot(x, y, axes=1), a["x"] @ a["y"]),
    "einsum of three": (
        lambda x, y, c, **_: gc.einsum("ij,jk,bki->b", x, y, c), np.einsum("ij,jk,bki->b", a["x"], a["y"], a["c"]),
    ),
    "einsum without result": (lambda x, y, **_: gc.einsum("ba,ac", x, y), np.einsum("ba,ac", a["x"], a["y"])),
    "einsum of a diagonal": (lambda x, **_: gc.einsum("ii->i", x[:, :4]), np.einsum("ii->i", a["x"][:, :4])),
    "einsum of a trace": (lambda x, **_: gc.einsum("ii", x[:, :4]), np.einsum("ii", a["x"][:, :4])),
    "einsum with dots": (
        lambda c, x, **_: gc.einsum("...ij,kj->...ki", c, x[:, :4]),
        np.einsum("...ij,kj->...ki", a["c"], a["x"][:, :4]),
    ),
    "einsum of one": (lambda c, **_: gc.einsum("abc->ca", c), np.einsum("abc->ca", a["c"])),
    "einsum of dots alone": (lambda c, **_: gc.einsum("...,b...", c[0], c), np.einsum("...,b...", a["c"][0], a["c"])),
    # elementwise
    "expm1": (lambda x, **_: gc.expm1(1e-6 * x), np.expm1(1e-6 * a["x"])),
    "expm1 of large": (lambda x, **_: gc.expm1(40 * x), np.expm1(40 * a["x"])),
    "log1p": (lambda x, **_: gc.log1p(1e-9 * x), np.log1p(1e-9 * a["x"])),
    "log1p of large": (lambda x, **_: gc.log1p(gc.exp(30 * x)), np.log1p(np.exp(30 * a["x"]))),
    "log2": (lambda x, **_: gc.log2(gc.abs(x)), np.log2(np.abs(a["x"]))),
    "log10": (lambda x, **_: gc.log10(gc.abs(x)), np.log10(np.abs(a["x"]))),
    "exp2": (lambda x, **_: gc.exp2(x), np.exp2(a["x"])),
    "logaddexp": (lambda x, **_: gc.logaddexp(500 * x, 490 * x), np.logaddexp(500 * a["x"], 490 * a["x"])),
    "logaddexp of infinities": (lambda n, **_: gc.logaddexp(n[1], 0.0), np.logaddexp(a["n"][1], 0.0)),
    "sinh": (lambda x, **_: gc.sinh(3 * x), np.sinh(3 * a["x"])),
    "sinh of small": (lambda x, **_: gc.sinh(1e-7 * x), np.sinh(1e-7 * a["x"])),
    "cosh": (lambda x, **_: gc.cosh(3 * x), np.cosh(3 * a["x"])),
    "tan": (lambda x, **_: gc.tan(x), np.tan(a["x"])),
    "isnan": (lambda n, **_: gc.isnan(n), np.isnan(a["n"])),
    "isinf": (lambda n, **_: gc.isinf(n), np.isinf(a["n"])),
    "isfinite": (lambda n, **_: gc.isfinite(n), np.isfinite(a["n"])),
    "nan_to_num": (lambda n, **_: gc.nan_to_num(n, 7.0), np.nan_to_num(a["n"], nan=7.0)),
    "reciprocal": (lambda x, **_: gc.reciprocal(x), 1 / a["x"]),
    "trunc": (lambda x, **_: gc.trunc(3 * x), np.trunc(3 * a["x"])),
    "hypot": (lambda x, **_: gc.hypot(1e200 * x, 1e200), np.hypot(1e200 * a["x"], 1e200)),
    "norm": (lambda c, **_: gc.norm(c, axis=(0, 2)), np.sqrt((a["c"] ** 2).sum((0, 2)))),
    "norm of sizes": (lambda x, **_: gc.norm(x, ord=1), np.abs(a["x"]).sum()),
    "norm of the largest": (lambda x, **_: gc.norm(x, axis=1, ord=float("inf")), np.abs(a["x"]).max(1)),
    "norm 3": (lambda x, **_: gc.norm(x, axis=0, ord=3), (np.abs(a["x"]) ** 3).sum(0) ** (1 / 3)),
    "bitwise_invert": (lambda i, **_: gc.bitwise_invert(i), ~a["i"]),
    "bitwise_invert of unsigned": (lambda i, **_: ~i.astype("uint8"), ~a["i"].astype(np.uint8)),
    "floor_divide": (lambda i, **_: i.astype("float64") // 0.1, a["i"].astype(np.float64) // 0.1),
    "shifts": (lambda i, **_: gc.bitwise_right_shift(gc.bitwise_left_shift(i, 5), 2), a["i"] << 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_interpreted(name: str):
    fn, want = CASES[name]
    got = run(fn, **ARRAYS)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=0 if "1e" in name else 1e-14)


def test_compiled():
    """All of them in one program."""
    names = {f"y{k}": name for k, name in enumerate(CASES)}

    @gc.entry(**ARRAYS)
    def everything(**tensors):
        return {key: CASES[name][0](**tensors) for key, name in names.items()}

    got = gc.compile(everything).everything(**ARRAYS)
    for key, name in names.items():
        np.testing.assert_allclose(got[key], CASES[name][1], rtol=1e-11, atol=1e-14, err_msg=name)


REFUSED: dict[str, Case] = {
    "GC0104 cumsum": (lambda x, **_: gc.cumulative_sum(x), "needs an axis"),
    "GC0104 moveaxis": (lambda x, **_: gc.moveaxis(x, 0, (0, 1)), "cannot move"),
    "GC0104 diagonal": (lambda v, **_: gc.diagonal(v), "two dimensions"),
    "GC0104 diag": (lambda c, **_: gc.diag(c), "vector or a matrix"),
    "GC0217 top_k": (lambda x, **_: gc.top_k(x, 6), "cannot choose 6 of the 5"),
    "GC0217 searchsorted": (lambda x, **_: gc.searchsorted(x, x), "searchsorted"),
    "GC0217 meshgrid": (lambda x, **_: gc.meshgrid(x, x), "meshgrid"),
    "GC0101 take_along_axis": (lambda x, v, **_: gc.take_along_axis(x, v), "2 dimensions"),
    "GC0107 einsum of too few": (lambda x, **_: gc.einsum("ij,jk->ik", x), "2 terms"),
    "GC0107 einsum of sizes": (lambda x, **_: gc.einsum("ij,jk->ik", x, x), "'j' is both 5 and 4"),
    "GC0107 einsum of letters": (lambda x, **_: gc.einsum("i1->i", x), "one letter"),
    "GC0107 einsum of a result": (lambda x, **_: gc.einsum("ij->iji", x), "twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str):
    fn, says = REFUSED[name]
    with pytest.raises(GraphcError, match=says) as caught:
        run(fn, **{**ARRAYS, "i": ARRAYS["i"]})
    assert caught.value.code == name.split()[0]
    assert caught.value.loc is not None


def test_an_index_out_of_range_is_an_error_of_the_step():
    @gc.entry(x=gc.spec((2, 3)), i=gc.spec((2, 2), "int32"))
    def pick(x, i):
        return {"y": gc.take_along_axis(x, i)}

    program = gc.compile(pick)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(program.pick(x=x, i=np.int32([[2, 0], [1, 1]]))["y"], [[2, 0], [4, 4]])
    with pytest.raises(GraphcError, match="out of range: it must be from 0 to 2") as caught:
        program.pick(x=x, i=np.int32([[2, 0], [1, 3]]))
    assert caught.value.code == "GC0420"
    assert caught.value.loc.file.endswith("test_functions.py")


# Gradients -----------------------------------------------------------------------------------------------------------


def slope(fn: Callable[..., Any], x: np.ndarray) -> tuple[float, float]:
    """The gradient of a weighted sum of ``fn(x)`` along a random direction, and the finite difference."""
    weights = np.random.default_rng(0).standard_normal(run(fn, x=x).shape)
    direction = np.random.default_rng(1).standard_normal(x.shape)
    g = run(lambda x: gc.grad(gc.sum(fn(x) * gc.asarray(weights)), x), x=x)
    h = 1e-6
    up, down = (float((run(fn, x=x + s * h * direction) * weights).sum()) for s in (1, -1))
    return float((g * direction).sum()), (up - down) / (2 * h)


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "cumsum": lambda x: gc.cumsum(x, 0),
    "cumprod": lambda x: gc.cumprod(x, 1),
    "sort": lambda x: gc.sort(x, axis=0),
    "top_k": lambda x: gc.top_k(x, 2)[0],
    "scatter_along_axis": lambda x: gc.scatter_along_axis(gc.asarray(a["i"]), x, 4, axis=1),
    "diag": lambda x: gc.diagonal(x, offset=1) * gc.trace(x),
    "roll": lambda x: gc.roll(x, 2, axis=0) * gc.tile(x, (1, 1)),
    "einsum": lambda x: gc.einsum("ij,kj,ik->j", x, x, x @ x.T),
    "expm1": lambda x: gc.expm1(0.3 * x),
    "log1p": lambda x: gc.log1p(0.2 * x),
    "sinh": lambda x: gc.sinh(x) + gc.cosh(x),
    "logaddexp": lambda x: gc.logaddexp(x, 0.5),
    "hypot": lambda x: gc.hypot(x, 2.0),
    "norm": lambda x: gc.norm(x, axis=1),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str):
    got, want = slope(DIFFERENTIABLE[name], a["x"])
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


def test_the_gradient_of_cumprod_is_exact_at_zeros():
    x = np.array([2.0, 0.0, 3.0, 0.0, 5.0])
    got = run(lambda x: gc.grad(gc.sum(gc.cumprod(x, 0)), x), x=x)
    products = [[np.prod(np.delete(x[: j + 1], i)) if i <= j else 0 for j in range(5)] for i in range(5)]
    np.testing.assert_array_equal(got, np.sum(products, axis=1))
