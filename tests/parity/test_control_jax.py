"""Live parity with JAX: the same functions of loops and branches, written once, with their values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import graphc as gc

jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'graphc[peers]' runs the live comparison")

OURS = SimpleNamespace(scan=gc.scan, cond=gc.cond, while_loop=gc.while_loop, tanh=gc.tanh, sum=gc.sum, sin=gc.sin)
THEIRS = SimpleNamespace(
    scan=jax.lax.scan, cond=jax.lax.cond, while_loop=jax.lax.while_loop, tanh=jax.numpy.tanh, sum=jax.numpy.sum,
    sin=jax.numpy.sin,
)  # fmt: skip

RNG = np.random.default_rng(4)
XS, W = RNG.standard_normal((6, 3), np.float32), RNG.standard_normal((3, 3), np.float32)


def recurrent(lib: Any, xs: Any, w: Any) -> Any:
    def body(carry: Any, x: Any) -> Any:
        h = lib.tanh(w @ carry["h"] + x)
        return {"h": h, "n": carry["n"] + 1}, (h, {"n": carry["n"], "x": x * 2.0})

    last, (hs, rest) = lib.scan(body, {"n": 0, "h": xs[0]}, xs, reverse=True)
    return lib.sum(hs * hs) + lib.sum(last["h"] * rest["x"]) + last["n"] * lib.sum(rest["n"] * 1.0)


def counted(lib: Any, xs: Any, w: Any) -> Any:
    total, powers = lib.scan(lambda c, _: (c @ w, lib.sum(c)), w * 0.5, None, length=5)
    return lib.sum(total * total) + powers[3]


def branched(lib: Any, xs: Any, w: Any) -> Any:
    def body(c: Any, x: Any) -> Any:
        y = lib.cond(lib.sum(x) > 0, lambda c, x: (lib.sin(c), x), lambda c, x: (c - x, c * 0.5), c, x)
        return y[0], y[1]

    last, ys = lib.scan(body, w[0], xs)
    return lib.sum(last * w[1]) + lib.sum(ys * ys)


def nested(lib: Any, xs: Any, w: Any) -> Any:
    def row(c: Any, x: Any) -> Any:
        d, parts = lib.scan(lambda d, z: (lib.sin(d * z), d), lib.sum(c), x)
        return c + d, parts

    last, parts = lib.scan(row, w[2], xs)
    return lib.sum(last) + lib.sum(parts * xs)


@pytest.mark.parametrize("fn", [recurrent, counted, branched, nested])
def test_values_and_gradients(fn: Callable[..., Any]) -> None:
    @gc.entry(xs=gc.spec(XS.shape), w=gc.spec(W.shape))
    def entry(xs: Any, w: Any) -> Any:
        value = fn(OURS, xs, w)
        gx, gw = gc.grad(value, (xs, w), allow_unused=True)
        return {"value": value, "gx": gx, "gw": gw}

    got = gc.compile(entry).entry(xs=XS, w=W)
    value, (gx, gw) = jax.value_and_grad(lambda xs, w: fn(THEIRS, xs, w), (0, 1))(XS, W)
    for name, want in {"value": value, "gx": gx, "gw": gw}.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


def test_while_loop() -> None:
    def run(lib: Any, xs: Any) -> Any:
        return lib.while_loop(lambda s: lib.sum(s["x"] * s["x"]) > 1e-3, lambda s: {"x": s["x"] * 0.5, "n": s["n"] + 1},
                              {"x": xs, "n": 0})  # fmt: skip

    @gc.entry(xs=gc.spec(XS.shape))
    def entry(xs: Any) -> Any:
        return run(OURS, xs)

    got, want = gc.compile(entry).entry(xs=XS), run(THEIRS, XS)
    assert got["n"] == want["n"]
    np.testing.assert_allclose(got["x"], want["x"])
