"""gc.scan, gc.cond and gc.while_loop: against plain loops, finite differences, and themselves after every pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from loop_interp import run_plan
from planned import compare
from tracing import nodes, run, step, trace

import graphc as gc
from graphc import nn
from graphc.driver_link import plan_arena
from graphc.dtype import bfloat16
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.passes import pipeline
from graphc.passes.differentiate import differentiate
from graphc.text import parse, print_graph

Arrays = dict[str, np.ndarray]

RNG = np.random.default_rng(5)
XS = RNG.standard_normal((5, 3))
W = RNG.standard_normal(3)


def everywhere(fn: Callable[..., Arrays], **arrays: np.ndarray) -> Arrays:
    """The outputs of ``fn``: the same from the interpreter before and after all passes, and from the lowered plan,
    whose memory the checker has proved; the text form of each graph is read back."""
    traced = trace(fn, **arrays)
    want, want_state = interpret(differentiate(traced.graph), arrays, traced.initial)
    graph = pipeline.run(traced.graph, check=True)
    for g in (traced.graph, graph):
        assert parse(print_graph(g)) == g
    same, same_state = interpret(graph, arrays, traced.initial)
    compare(same, want, 1e-12)
    compare(same_state, want_state, 1e-12)
    plan = lower(graph, BASELINES["x86-64-v4"])
    plan_arena(plan)
    state = {name: a.copy() for name, a in traced.initial.items()}
    got = run_plan(plan, arrays, state, nthreads=3)
    got.pop("flags")
    compare(got, want, 1e-9)
    compare(state, want_state, 1e-9)
    return want


def slopes(loss: Callable[..., Any], *, order: int = 1, tolerance: float = 1e-6, **arrays: np.ndarray) -> None:
    """The gradient of ``loss`` (a scalar function) along a random direction is a finite difference; with ``order`` 2
    that of the gradient's own projection, too."""
    directions = {n: np.random.default_rng(len(n)).standard_normal(a.shape) for n, a in arrays.items()}
    for _ in range(order):
        slope = along(loss, directions)
        exact = float(everywhere(lambda slope=slope, **t: {"slope": slope(**t)}, **arrays)["slope"])
        e = 1e-5
        ahead, behind = (
            float(run(loss, **{n: a + sign * e * directions[n] for n, a in arrays.items()})) for sign in (1, -1)
        )
        assert exact == pytest.approx((ahead - behind) / (2 * e), rel=tolerance, abs=tolerance)
        loss = slope


def along(loss: Callable[..., Any], directions: Arrays) -> Callable[..., Any]:
    """The slope of ``loss`` along ``directions``."""

    def slope(**tensors: gc.Tensor) -> gc.Tensor:
        grads = gc.grad(loss(**tensors), [tensors[n] for n in directions])
        return sum(gc.sum(g * d) for g, d in zip(grads, directions.values(), strict=True))

    return slope


# scan ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_a_loop(reverse: bool) -> None:
    def body(c: gc.Tensor, x: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
        new = gc.tanh(c * 0.5 + x)
        return new, new * 2

    def entry(xs: gc.Tensor) -> Any:
        last, ys = gc.scan(body, gc.zeros(3, dtype="float64"), xs, reverse=reverse)
        return {"last": last, "ys": ys}

    got = everywhere(entry, xs=XS)
    c, ys = np.zeros(3), np.zeros((5, 3))
    for i in reversed(range(5)) if reverse else range(5):
        c = np.tanh(c * 0.5 + XS[i])
        ys[i] = 2 * c
    np.testing.assert_allclose(got["last"], c)
    np.testing.assert_allclose(got["ys"], ys)


class Pair(NamedTuple):
    left: Any
    right: Any


def test_carries_and_rows_are_trees() -> None:
    def body(carry: Any, x: Any) -> Any:
        assert set(carry) == {"pair", "n"}
        assert isinstance(carry["pair"], Pair)
        new = {"n": carry["n"] + 1, "pair": Pair(carry["pair"].right, carry["pair"].left + x["a"] * x["b"][0])}
        return new, (None, [new["n"]])

    def entry(xs: gc.Tensor) -> Any:
        init = {"pair": Pair(xs[0], xs[1]), "n": 0}
        last, (nothing, [numbers]) = gc.scan(body, init, {"b": (xs,), "a": xs})
        assert nothing is None
        return {"left": last["pair"].left, "right": last["pair"].right, "n": last["n"], "numbers": numbers}

    got = everywhere(entry, xs=XS)
    a, b = XS[0], XS[1]
    for x in XS:
        a, b = b, a + x * x
    np.testing.assert_allclose(got["left"], a)
    np.testing.assert_allclose(got["right"], b)
    assert got["n"] == 5
    assert got["numbers"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan_without_rows(length: int) -> None:
    def entry(w: gc.Tensor) -> Any:
        last, ys = gc.scan(lambda c, _: (c * 2, c), w, length=length)
        return {"last": last, "ys": ys}

    got = everywhere(entry, w=W)
    np.testing.assert_array_equal(got["last"], W * 2**length)
    np.testing.assert_array_equal(got["ys"], [W * 2**i for i in range(length)] if length else np.zeros((0, 3)))


def test_carries_may_swap_and_stand_still() -> None:
    def entry(xs: gc.Tensor) -> Any:
        (a, b, c, d), _ = gc.scan(lambda s, x: ((s[1], s[0], s[2], s[0] + x), None), (xs[0], xs[1], xs[2], xs[3]), xs)
        return {"a": a, "b": b, "c": c, "d": d}

    got = everywhere(entry, xs=XS)
    np.testing.assert_array_equal([got[k] for k in "abc"], [XS[1], XS[0], XS[2]])
    np.testing.assert_array_equal(got["d"], XS[0] + XS[4])


def test_rows_of_views() -> None:
    def entry(xs: gc.Tensor) -> Any:
        last, ys = gc.scan(lambda c, x: (c + gc.flip(x, axis=0), gc.concat([x, c])), gc.zeros(5, dtype="float64"), xs.T)
        return {"last": last, "ys": ys.T, "again": gc.scan(lambda c, x: (c, x[0] + c), 1.0, ys[:, 2:6])[1]}

    everywhere(entry, xs=XS)


def test_scan_in_scan_with_a_branch() -> None:
    def entry(xs: gc.Tensor) -> Any:
        def outer(c: gc.Tensor, x: gc.Tensor) -> Any:
            def inner(d: gc.Tensor, z: gc.Tensor) -> Any:
                d = gc.cond(z > 0, lambda d: d + z, lambda d: d * 0.5, d)
                return d, d * c

            d, ys = gc.scan(inner, gc.sum(c), x, reverse=True)
            return c + d, (ys, d)

        c, (ys, d) = gc.scan(outer, gc.ones(3, dtype="float64"), xs)
        return {"c": c, "ys": ys, "d": d, "g": gc.grad(gc.sum(ys) + gc.sum(c * c), xs)}

    everywhere(entry, xs=XS)


def test_bodies_of_16_bit_floats() -> None:
    def entry(xs: gc.Tensor) -> Any:
        last, ys = gc.scan(lambda c, x: (c * 0.5 + x, gc.sum(c)), xs[0], xs)
        return {"last": last, "ys": ys, "g": gc.grad(gc.astype(gc.sum(last * 2), "float32"), xs)}

    got = everywhere(entry, xs=XS.astype(bfloat16.numpy))
    assert got["ys"].dtype == got["g"].dtype == bfloat16.numpy


def test_what_does_not_change_runs_once() -> None:
    def entry(xs: gc.Tensor, w: gc.Tensor) -> Any:
        def body(c: gc.Tensor, x: gc.Tensor) -> Any:
            m = gc.softmax(gc.exp(w) * w)  # the same in each iteration
            kept = gc.cond(gc.sum(c) > 0, lambda: c * m, lambda: c - m)
            return gc.tanh(kept + x), gc.sum(m)

        last, ys = gc.scan(body, w, xs)
        y = gc.while_loop(lambda v: gc.sum(v * v) < gc.sum(gc.exp(w)), lambda v: v * 2 + gc.abs(w), last)
        return {"last": last, "ys": ys, "y": y}

    everywhere(entry, xs=XS, w=W)
    plan = lower(pipeline.run(trace(entry, xs=XS, w=W).graph), BASELINES["x86-64-v4"])
    loop = next(s for s in plan.spans if s.kind == "repeat")
    assert any("exp" in plan.launches[i].label for i in range(loop.start))
    assert not any("exp" in plan.launches[i].label for s in plan.spans for i in range(s.start, s.stop))


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_scan(reverse: bool) -> None:
    def loss(xs: gc.Tensor, w: gc.Tensor, c: gc.Tensor) -> gc.Tensor:
        def body(carry: Any, x: gc.Tensor) -> Any:
            h, n = carry
            h = gc.sin(h * w + x) + w
            return (h, n + 1), (h * x, n)

        (last, _), (ys, _) = gc.scan(body, (c, 0), xs, reverse=reverse)
        return gc.sum(last * last) + gc.sum(gc.sin(ys))

    slopes(loss, order=2, xs=XS, w=W, c=W[::-1].copy())


def test_gradients_of_products_over_time() -> None:
    def loss(xs: gc.Tensor, m: gc.Tensor) -> gc.Tensor:
        last, _ = gc.scan(lambda h, x: (gc.tanh(m @ h + x), None), gc.zeros(3, dtype="float64"), xs)
        return gc.sum(last * last)

    slopes(loss, order=2, xs=XS, m=RNG.standard_normal((3, 3)))


def test_gradients_of_scan_in_scan() -> None:
    def loss(xs: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        def outer(c: gc.Tensor, x: gc.Tensor) -> Any:
            return gc.scan(lambda d, z: (gc.sin(d * z + w), d), c, x)

        last, ys = gc.scan(outer, w, xs)
        return gc.sum(last) + gc.sum(ys * ys)

    slopes(loss, order=2, xs=XS, w=W)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_cond(sign: float) -> None:
    def loss(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        y, z = gc.cond(
            gc.sum(x * x) * sign > 0, lambda a: (gc.sin(a) * w, a), lambda a: (gc.exp(a), gc.zeros_like(a)), x
        )
        return gc.sum(y * y) + gc.sum(z * x)

    slopes(loss, order=2, x=W, w=W * 0.3)


def test_a_gradient_inside_of_a_body() -> None:
    """Newton's iteration with a derivative that the body takes itself, and the gradient through all of it."""

    def root(a: gc.Tensor) -> gc.Tensor:
        def body(x: gc.Tensor, _: None) -> Any:
            f = x * x - a
            return x - f / gc.grad(f, x), None

        return gc.scan(body, a, length=8)[0]

    got = everywhere(lambda a: {"root": root(a), "slope": gc.grad(root(a), a)}, a=np.array(2.0))
    assert got["root"] == pytest.approx(2**0.5)
    assert got["slope"] == pytest.approx(0.5 / 2**0.5)


def test_checkpoints_and_loops_inside_each_other() -> None:
    def loss(xs: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        def inner(c: gc.Tensor) -> gc.Tensor:
            return gc.scan(lambda c, x: (gc.sin(c * w + x), None), c, xs)[0]

        return gc.sum(gc.scan(lambda c, x: (gc.checkpoint(inner, c) + x, None), w, xs)[0])

    slopes(loss, xs=XS, w=W)


def test_only_what_matters_has_a_gradient() -> None:
    """A carry that the loss does not depend on leaves no trace."""

    def entry(xs: gc.Tensor, w: gc.Tensor) -> Any:
        (a, _), _ = gc.scan(lambda c, x: ((c[0] * w, c[1] + gc.sin(x)), c[1]), (w, w), xs)
        return {"g": gc.grad(gc.sum(a), w), "a": a}

    graph = pipeline.run(trace(entry, xs=XS, w=W).graph, check=True)
    assert sorted(n.attrs["carries"] for n in nodes(graph, "scan")) == [1, 2]
    assert all(len(n.inputs) <= 5 for n in nodes(graph, "scan"))


def test_the_forward_scan_runs_once() -> None:
    def entry(xs: gc.Tensor, w: gc.Tensor) -> Any:
        last, ys = gc.scan(lambda c, x: ((c := gc.tanh(c * w + x)), c), w, xs)
        gx, gw = gc.grad(gc.sum(last) + gc.sum(ys * ys), (xs, w))
        return {"last": last, "gx": gx, "gw": gw}

    graph = pipeline.run(trace(entry, xs=XS, w=W).graph)
    assert sorted(n.attrs["reverse"] for n in nodes(graph, "scan")) == [False, True]
    everywhere(entry, xs=XS, w=W)


def test_a_parameter_that_does_not_matter_is_found() -> None:
    def entry(xs: gc.Tensor, w: gc.Tensor) -> Any:
        (a, _), _ = gc.scan(lambda c, x: ((c[0] + x, c[1] * w), None), (xs[0], xs[0]), xs)
        return {"g": gc.grad(gc.sum(a), w)}

    with pytest.raises(GraphcError, match="GC0302"):
        trace(entry, xs=XS, w=W)


# cond and while_loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [-1, 0, 3])
def test_cond_takes_one_way(n: int) -> None:
    def entry(n: gc.Tensor, x: gc.Tensor) -> Any:
        y, [z] = gc.cond(n, lambda a, b: (a + b["w"], [a]), lambda a, b: (a, [gc.exp(a)]), x, {"w": x})
        return {"y": y, "z": z, "constant": gc.cond(True, lambda: 1.0, lambda: 2.0)}

    got = everywhere(entry, n=np.array(n, np.int32), x=W)
    np.testing.assert_allclose(got["y"], 2 * W if n else W)
    np.testing.assert_allclose(got["z"], W if n else np.exp(W))
    assert got["constant"] == 1


def test_branches_share_memory() -> None:
    """What one way reads may be written over in the other, and the result has no memory before it is written."""

    def much(x: gc.Tensor, k: float) -> gc.Tensor:
        y = gc.sin(x) @ x
        return gc.exp(gc.softmax(y) @ (y.T @ y)) * k

    def arena(fn: Callable[..., gc.Tensor]) -> int:
        traced = trace(lambda p, x: {"y": fn(p, x)}, p=np.array(True), x=np.ones((32, 32), np.float32))
        return plan_arena(lower(pipeline.run(traced.graph), BASELINES["x86-64-v4"])).arena_bytes

    one = arena(lambda p, x: much(x, 2.0))
    assert arena(lambda p, x: gc.cond(p, lambda x: much(x, 2.0), lambda x: much(x, 3.0), x)) == one
    nested = arena(
        lambda p, x: gc.cond(
            p, lambda x: gc.cond(p, lambda x: much(x, 1.0), lambda x: x + 1, x), lambda x: much(x, 3.0), x
        )
    )
    assert nested == one


@pytest.mark.parametrize("start", [1.0, 1e-3, 1e3])
def test_while_runs_as_long_as_it_must(start: float) -> None:
    def entry(x: gc.Tensor) -> Any:
        limit = gc.sum(x) * 0 + 100
        n, y = gc.while_loop(lambda s: gc.sum(s[1]) < limit, lambda s: (s[0] + 1, s[1] * 1.5), (0, x))
        return {"n": n, "y": y}

    x = np.full(3, start)
    got = everywhere(entry, x=x)
    n = 0
    while x.sum() < 100:
        n, x = n + 1, x * 1.5
    assert got["n"] == n
    np.testing.assert_allclose(got["y"], x)


def test_while_in_scan() -> None:
    def entry(xs: gc.Tensor) -> Any:
        def body(c: gc.Tensor, x: gc.Tensor) -> Any:
            big = gc.while_loop(lambda v: gc.sum(v * v) < 50, lambda v: v * 2 + c, gc.abs(x) + 0.1)
            return c + 0.1, big

        return {"ys": gc.scan(body, 0.5, xs.astype("float32"))[1]}

    everywhere(entry, xs=XS)


# State and randomness -------------------------------------------------------------------------------------------------


def test_state_in_loops_and_branches() -> None:
    count, total, kept = (gc.state(np.zeros(3), name=name) for name in ("count", "total", "kept"))

    def entry(xs: gc.Tensor) -> Any:
        def body(c: gc.Tensor, x: gc.Tensor) -> Any:
            total.assign(total * 0.5 + x)
            return c + total, total

        c, ys = gc.scan(body, xs[0] * 0, xs)

        def more(v: gc.Tensor) -> gc.Tensor:
            count.assign(count + 1)
            return v + count

        c = gc.while_loop(lambda v: (gc.sum(gc.abs(v)) < 100) & (gc.sum(count) < 9), more, c)
        gc.cond(gc.sum(c) > 1e6, lambda: kept.assign(kept + 1), lambda: None)
        return {"c": c, "ys": ys, "total": total + 0}

    got = everywhere(entry, xs=XS)
    value, rows = np.zeros(3), []
    for x in XS:
        value = value * 0.5 + x
        rows.append(value)
    np.testing.assert_allclose(got["ys"], rows)
    np.testing.assert_allclose(got["total"], value)
    _, state = step(entry, xs=XS)
    assert state["count"].tolist() == [3, 3, 3]
    assert state["kept"].tolist() == [0, 0, 0]


def test_each_iteration_has_its_own_random_numbers() -> None:
    def entry(x: gc.Tensor) -> Any:
        def body(c: gc.Tensor, _: Any) -> Any:
            return gc.scan(lambda c, _: (c, gc.dropout(x, 0.5)), c, length=4)

        _, masks = gc.scan(body, 0.0, length=4)
        n, sums = gc.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * 10 + gc.dropout(x, 0.5)), (0, x * 0))
        return {"masks": masks, "sums": sums, "n": n}

    got = everywhere(entry, x=np.ones(64))
    rows = got["masks"].reshape(16, 64)
    assert len(np.unique(rows, axis=0)) == 16
    assert 0.4 < (rows > 0).mean() < 0.6
    assert len(np.unique(got["sums"])) == 4  # both masks in both forms


def test_dropout_has_the_same_mask_backwards() -> None:
    def entry(xs: gc.Tensor) -> Any:
        _, ys = gc.scan(lambda c, x: (c, gc.dropout(x * x, 0.5)), 0.0, xs)
        return {"ys": ys, "g": gc.grad(gc.sum(ys), xs)}

    got = everywhere(entry, xs=XS)
    np.testing.assert_allclose(got["g"], np.where(got["ys"] > 0, 4 * XS, 0))


# Layers ---------------------------------------------------------------------------------------------------------------


def test_layers_are_used_in_a_body() -> None:
    """One layer, applied again and again: its parameters get the sum of the gradients."""
    net = nn.Linear(3, 3, dtype="float64")

    def entry(x: gc.Tensor) -> Any:
        looped, _ = gc.scan(lambda h, _: (gc.tanh(net(h)), None), x, length=3)
        plain = gc.tanh(net(gc.tanh(net(gc.tanh(net(x))))))
        grads = [gc.grad(gc.sum(y * y), [net.weight, net.bias]) for y in (looped, plain)]
        return {f"{n}{i}": g for i, pair in enumerate(grads) for n, g in zip("wb", pair, strict=True)}

    got = everywhere(entry, x=XS)
    np.testing.assert_allclose(got["w0"], got["w1"])
    np.testing.assert_allclose(got["b0"], got["b1"])


def test_kernels_of_their_own_are_used_in_a_body() -> None:
    """Convolution, pooling, norms, attention, gathers and sorting, under a scan that is differentiated."""
    images, tokens = RNG.standard_normal((3, 2, 3, 6, 6)), RNG.standard_normal((2, 2, 5, 4))
    kernel, table = RNG.standard_normal((4, 3, 3, 3)), RNG.standard_normal((7, 4))

    def entry(images: gc.Tensor, tokens: gc.Tensor, kernel: gc.Tensor, table: gc.Tensor) -> Any:
        def body(t: gc.Tensor, x: gc.Tensor) -> Any:
            features = gc.avg_pool2d(gc.relu(gc.conv2d(x, kernel, padding=1)), 3)
            scale = gc.softmax(gc.sum(features, axis=(0, 2, 3)))
            t = gc.layer_norm(gc.scaled_dot_product_attention(t, t * scale, t, is_causal=True), 4)
            order = gc.argsort(gc.sum(t * tokens, axis=(0, 1, 3)))
            return t + gc.take(table, order, axis=0), features

        last, features = gc.scan(body, tokens, images)
        loss = gc.sum(last * last * tokens) + gc.sum(features * features)
        grads = gc.grad(loss, [images, tokens, kernel, table])
        return {"last": last, **{f"g{i}": g for i, g in enumerate(grads)}}

    everywhere(entry, images=images, tokens=tokens, kernel=kernel, table=table)
