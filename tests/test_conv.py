"""Convolution and pooling: against PyTorch's stored results, compiled against interpreted, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracing import nodes, run, trace

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.ops.base import Meta, apply, get_op
from graphc.ops.windows import pad, padded_array
from graphc.passes import pipeline
from graphc.passes.expand import expand

sys.path.insert(0, str(Path(__file__).parent / "parity"))

import windows_reference as reference


@pytest.mark.parametrize("name", reference.CASES)
def test_results_and_gradients_are_those_of_pytorch(name: str) -> None:
    got = reference.run_graphc(name)
    with np.load(reference.FIXTURE) as stored:
        assert {f"{name}/{k}" for k in got} == {k for k in stored.files if k.startswith(f"{name}/")}
        for key, a in got.items():
            want = stored[f"{name}/{key}"]
            np.testing.assert_allclose(a, want, atol=2e-6 * max(1.0, float(np.abs(want).max())), rtol=0, err_msg=key)


# The pass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["conv", "window_max"])
def test_expand_keeps_the_values(function: str) -> None:
    op = get_op(function)
    for sample in op.samples():
        arrays = {f"x{i}": a for i, a in enumerate(sample.arrays)}
        inputs = [apply("input", name=n, dtype=gc.spec(a.shape, str(a.dtype)).dtype, shape=a.shape)
                  for n, a in arrays.items()]  # fmt: skip
        before = Graph.build("g", inputs, [("y", apply(function, *inputs, **sample.attrs))])
        after = expand(before)
        assert not [n for n in after if isinstance(get_op(n.op).lower, Meta)]
        (want,), (got,) = (interpret(g, arrays)[0].values() for g in (before, after))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_padding_of_a_step_is_made_once() -> None:
    """Forward and backward see windows of the same padded input."""

    def step(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.conv2d(x, w, padding=1)
        return {"w": gc.grad(gc.sum(y * y), w)}

    traced = trace(step, x=gc.spec((2, 3, 12, 12)), w=gc.spec((4, 3, 3, 3)))
    graph = pipeline.run(traced.graph, stop_after="dce")
    assert len([n for n in nodes(graph, "concat") if n.types[0].shape == (2, 14, 14, 3)]) == 1


def test_what_is_padded_is_computed_in_place() -> None:
    """The borders are filled, the layer before writes between them, and all that read that layer read it there."""

    @gc.entry(x=gc.spec((2, 3, 12, 12)), w=gc.spec((3, 3, 3, 3)))
    def step(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.exp(x)
        return {"y": gc.conv2d(y, w, padding=1) + y}

    program = gc.compile(step)
    # above and below, left and right, exp, the weight in panels, the product, and the result with channels first
    assert len(program.step.kernels) == 6
    x, w = values(2, 3, 12, 12).astype(np.float32), values(3, 3, 3, 3).astype(np.float32)
    padded = np.pad(np.exp(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    want = np.einsum("bcyxkl,ockl->boyx", seen, w) + np.exp(x)
    np.testing.assert_allclose(program.step(x=x, w=w)["y"], want, rtol=1e-4, atol=1e-4)


# Windows, padding and reversal ---------------------------------------------------------------------------------------


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape)


def compiled(fn: Callable[..., gc.Tensor], **arrays: np.ndarray) -> np.ndarray:
    @gc.entry(**{n: gc.spec(a.shape, str(a.dtype)) for n, a in arrays.items()})
    def step(**xs: Any) -> dict[str, Any]:
        return {"y": fn(**xs)}

    result: np.ndarray = gc.compile(step).step(**arrays)["y"]
    return result


@pytest.mark.parametrize("low", [-2, 0, 1, 3])
@pytest.mark.parametrize("high", [-1, 0, 2])
@pytest.mark.parametrize("interior", [0, 2])
def test_pad(low: int, high: int, interior: int) -> None:
    x = values(2, 5)
    value: Value = apply("input", name="x", dtype=gc.float64, shape=x.shape)
    y = pad(value, (1, low), (0, high), (0, interior), 7.0)
    got = interpret(Graph.build("g", [value], [("y", y)]), {"x": x})[0]["y"]
    np.testing.assert_array_equal(got, padded_array(x, (1, low), (0, high), (0, interior), 7.0))
    if not interior and low >= 0 and high >= 0:
        np.testing.assert_array_equal(got, np.pad(x, ((1, 0), (low, high)), constant_values=7.0))


PADS = {"Constant": "constant", "Zero": "constant", "Reflection": "reflect", "Replication": "edge", "Circular": "wrap"}


def test_layers_pad_as_numpy_does() -> None:
    """torch counts from the last dimension on."""
    x, widths = values(2, 2, 3, 4, 5), [1, 2, 0, 1, 2, 2]
    pairs = [(1, 2), (0, 1), (2, 2)]

    @gc.entry(x=gc.spec(x.shape, "float64"))
    def padded(x: gc.Tensor) -> dict[str, gc.Tensor]:
        out = {}
        for kind, n in product(PADS, (1, 2, 3)):
            layer = getattr(nn, f"{kind}Pad{n}d")
            out[f"{kind}{n}"] = layer(widths[: 2 * n], 7.0)(x) if kind == "Constant" else layer(widths[: 2 * n])(x)
        return out

    got = gc.compile(padded).padded(x=x)
    for kind, n in product(PADS, (1, 2, 3)):
        value = {"constant_values": 7.0} if kind == "Constant" else {}
        want = np.pad(x, [(0, 0)] * (5 - n) + pairs[:n][::-1], PADS[kind], **value)
        np.testing.assert_array_equal(got[f"{kind}{n}"], want, err_msg=f"{kind}{n}")


def test_pads_that_cannot_be() -> None:
    x = values(2, 3)
    for mode in PADS.values():
        cut = run(lambda x, mode=mode: gc.pad(x, [(1, -1), (-2, 1)], mode=mode), x=x)
        want = np.pad(x, [(1, 0), (0, 1)], mode)[:-1, 2:]
        np.testing.assert_array_equal(cut, want)
    for shape, mode in (((2, 3), "mirror"), ((2, 0), "edge")):
        with pytest.raises(GraphcError, match="GC0217: pad with mode"):
            trace(lambda x, mode=mode: {"y": gc.pad(x, [(0, 0), (1, 1)], mode=mode)}, x=gc.spec(shape))
    with pytest.raises(GraphcError, match="GC0217: ZeroPad2d takes one number or 4"):
        nn.ZeroPad2d((1, 2))


def test_windows_are_those_of_numpy() -> None:
    x = values(3, 9, 8)
    want = np.lib.stride_tricks.sliding_window_view(x, (2, 3), (1, 2))[:, ::2]
    np.testing.assert_array_equal(compiled(lambda x: gc.windows(x, (1, 2), (2, 3), (2, 1)) * 1.0, x=x), want)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
def test_flip(axis: Any) -> None:
    x = values(3, 5, 35)
    np.testing.assert_array_equal(compiled(lambda x: gc.flip(x, axis), x=x), np.flip(x, axis))
    got = compiled(lambda x: gc.flip(x + 1, axis) * x, x=x)
    np.testing.assert_allclose(got, np.flip(x + 1, axis) * x)
    total = compiled(lambda x: gc.sum(gc.flip(x, axis) * x, -1), x=x)
    np.testing.assert_allclose(total, (np.flip(x, axis) * x).sum(-1), rtol=1e-12)


def test_a_matrix_product_of_flipped_operands() -> None:
    a, b = values(33, 17), values(17, 40)
    got = compiled(lambda a, b: gc.flip(a, 1) @ gc.flip(b, (0, 1)), a=a, b=b)
    np.testing.assert_allclose(got, a[:, ::-1] @ b[::-1, ::-1], rtol=1e-12)


# What does not fit ---------------------------------------------------------------------------------------------------

X, W = gc.spec((2, 3, 8, 8)), gc.spec((4, 3, 3, 3))
REFUSED: list[tuple[Callable[..., gc.Tensor], str]] = [
    (lambda x, w: gc.conv2d(x[:, :2], w), "fits 3 channels"),
    (lambda x, w: gc.conv2d(x, w, groups=2), "groups"),
    (lambda x, w: gc.conv2d(x, w, dilation=4), "do not fit the input"),
    (lambda x, w: gc.conv1d(x, w), "needs 3 dimensions"),
    (lambda x, w: gc.conv2d(x, w, padding="same", stride=2), "no padding 'same'"),
    (lambda x, w: gc.conv2d(x, w, stride=(1, 2, 3)), "2 of them"),
    (lambda x, w: gc.conv_transpose2d(x, w), "transposed convolution"),
    (lambda x, w: gc.max_pool2d(x, 9), "a window of 9"),
    (lambda x, w: gc.max_pool2d(x, 2, padding=2), "more than half"),
    (lambda x, w: gc.avg_pool3d(x[0, 0], 2), "pooling over 3 dimensions"),
]


@pytest.mark.parametrize(("fn", "says"), REFUSED)
def test_what_does_not_fit_is_refused_at_the_users_line(fn: Callable[..., gc.Tensor], says: str) -> None:
    @gc.entry(x=X, w=W)
    def step(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": fn(x, w)}

    with pytest.raises(GraphcError) as caught:
        gc.compile(step)
    assert caught.value.code == "GC0113"
    assert says in caught.value.message
    assert caught.value.loc is not None
    assert caught.value.loc.file.endswith("test_conv.py")


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_the_gradient_of_a_weight_with_many_channels(groups: int, stride: int) -> None:
    """Its right factor, which has channels first here, is copied into panels before (`kernels/contract_direct.py`)."""
    x, g = values(3, 6, 12, 20).astype(np.float32), values(3, 24, 12 // stride, 20 // stride).astype(np.float32)

    @gc.entry(x=gc.spec(x.shape), w=gc.spec((24, 6 // groups, 3, 3)), g=gc.spec(g.shape))
    def step(x: gc.Tensor, w: gc.Tensor, g: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.conv2d(x, w, padding=1, groups=groups, stride=stride)
        return {"w": gc.grad(gc.sum(y * g), w)}

    program = gc.compile(step)
    assert any(k.name.endswith("panels") for k in program.step.kernels)
    got = program.step(x=x, w=np.zeros((24, 6 // groups, 3, 3), np.float32), g=g)["w"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(seen, groups, 1), np.split(g, groups, 1), strict=True)
    want = np.concatenate([np.einsum("bcyxkl,boyx->ockl", s, d) for s, d in parts])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
