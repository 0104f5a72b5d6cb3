"""Convolutions as kernels: geometries against the interpreter, layout, phases, parts of a sum, and batch statistics."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_interp import run_plan
from lowered import blank, like, run_lowered
from tracing import trace

import graphc as gc
from graphc import nn
from graphc.dtype import contiguous_strides, float32
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_direct import as_direct, packs_panels
from graphc.kernels.contract_problem import problem
from graphc.kernels.cpu.target import BASELINES, host
from graphc.kernels.lower import lower
from graphc.kernels.lower_context import LowerContext
from graphc.ops.base import Map, apply, get_op
from graphc.passes import pipeline

Shape = tuple[int, ...]


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# (input, weight, stride, padding, dilation, groups)
GEOMETRIES: list[tuple[Shape, Shape, int, int, int, int]] = [
    ((2, 3, 6, 7), (4, 3, 3, 3), 1, 1, 1, 1),
    ((2, 3, 6, 7), (4, 3, 3, 3), 2, 1, 1, 1),
    ((1, 4, 7, 6), (5, 4, 3, 3), 3, 2, 1, 1),
    ((2, 4, 7, 8), (6, 4, 3, 3), 1, 2, 2, 1),
    ((2, 2, 9, 8), (3, 2, 3, 3), 2, 3, 2, 1),
    ((2, 3, 5, 5), (20, 3, 1, 1), 1, 0, 1, 1),
    ((2, 3, 6, 5), (20, 3, 1, 1), 2, 0, 1, 1),
    ((3, 20, 5, 5), (17, 20, 2, 2), 1, 0, 1, 1),
    ((1, 3, 8, 8), (4, 3, 4, 4), 4, 0, 1, 1),
    ((1, 2, 10, 10), (3, 2, 5, 5), 5, 0, 1, 1),  # more phases than are taken apart
    ((2, 4, 6, 5), (6, 2, 3, 3), 2, 1, 1, 2),
    ((2, 4, 6, 6), (4, 1, 3, 3), 1, 1, 1, 4),  # depthwise
    ((2, 4, 6, 6), (8, 1, 3, 3), 2, 1, 1, 4),
    ((2, 4, 9, 10), (4, 1, 3, 3), 1, 1, 1, 4),  # long windows of the gradient of a depthwise weight
    ((1, 3, 19, 18), (3, 1, 3, 2), 2, 2, 1, 3),
    ((2, 3, 11), (5, 3, 4), 3, 2, 1, 1),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), 2, 1, 1, 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_loops_of_a_convolution_and_its_gradients(geometry: Any) -> None:
    x_shape, w_shape, stride, padding, dilation, groups = geometry
    conv = {3: gc.conv1d, 4: gc.conv2d, 5: gc.conv3d}[len(x_shape)]

    def step(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        y = conv(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
        dx, dw = gc.grad(gc.sum(y * gc.sin(y)), [x, w])
        return {"y": y, "dx": dx, "dw": dw}

    arrays = {"x": values(*x_shape), "w": values(*w_shape)}
    traced = trace(step, **{n: gc.spec(a.shape) for n, a in arrays.items()})
    want, _ = interpret(pipeline.run(traced.graph, stop_after="differentiate"), arrays)
    got = run_plan(lower(pipeline.run(traced.graph, check=True), host()), arrays, nthreads=3)
    for name, a in want.items():
        np.testing.assert_allclose(got[name], a, atol=1e-5 * max(1.0, float(np.abs(a).max())), rtol=0, err_msg=name)


# The product ---------------------------------------------------------------------------------------------------------


def inputs(*arrays: np.ndarray) -> list[Value]:
    return [apply("input", name=f"x{i}", dtype=float32, shape=a.shape) for i, a in enumerate(arrays)]


def windows(x: Value, sizes: Shape) -> Value:
    """[B, H, W, C] → [B, H', W', C, *sizes]."""
    return apply("windows", x, axes=(1, 2), sizes=sizes, strides=(1, 1), dilations=(1, 1))


@pytest.mark.parametrize("target", sorted(BASELINES))
@pytest.mark.parametrize("sizes", [(2, 5, 6, 3, 4), (1, 9, 9, 4, 35), (2, 4, 33, 2, 16)], ids=str)
def test_direct_products_for_every_target(sizes: Shape, target: str) -> None:
    *shape, o = sizes
    arrays = [values(*shape), values(o, shape[-1], 3, 3)]
    x, w = inputs(*arrays)
    y = apply("dot", windows(x, (3, 3)), w, batch=((), ()), contract=((3, 4, 5), (1, 2, 3)))
    body = Graph.build("contract", [x, w], [("y0", apply("maximum", y, apply("mul", y, y))), ("y1", y)])
    outs = [blank(y.shape, "float32") for _ in body.outputs]
    run_lowered(lower_contract, body, arrays, outs, target=target)
    seen = np.lib.stride_tricks.sliding_window_view(arrays[0], (3, 3), (1, 2))
    want = np.einsum("bhwckl,ockl->bhwo", seen, arrays[1])
    np.testing.assert_allclose(outs[1], want, atol=1e-5)
    np.testing.assert_allclose(outs[0], np.maximum(want, want * want), atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2)], ids=["rows", "turned"])
@pytest.mark.parametrize(
    ("sizes", "deep"),
    [
        ((1, 9, 9, 512, 200), True),
        ((2, 6, 6, 512, 528), True),
        ((1, 5, 6, 1024, 96), True),  # several slabs, of turned filters
        ((1, 10, 16, 256, 136), False),
    ],
)
def test_wide_filters_come_from_memory_panel_by_panel(
    sizes: Any, deep: bool, order: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters that no cache holds, in panels that are prepared, or packed by the tasks of long sums: the same bits."""
    b, h, w, c, o = sizes
    arrays = [values(b, h, w, c), like(values(3, 3, c, o), order)]
    x, f = inputs(*arrays)
    y = apply("dot", windows(x, (3, 3)), f, batch=((), ()), contract=((4, 5, 3), (0, 1, 2)))
    left = (y.node.inputs[0].shape, (h * w * c, w * c, c, 1, w * c, c))
    right = (f.shape, tuple(s // 4 for s in arrays[1].strides))
    direct = as_direct(problem(left, right, y.node.attrs, [contiguous_strides(y.shape)]), float32, host())
    assert direct is not None
    assert (direct.parts > 1, packs_panels(direct), direct.panels) == (deep, deep, 1)
    body = Graph.build("contract", [x, f], [("y0", y)])
    outs = []
    for prepared in (False, True):
        monkeypatch.setattr(LowerContext, "is_prepared", lambda _, __, prepared=prepared: prepared)
        for n in (1, 2, 7):
            out = [blank(y.shape, "float32")]
            outs += run_lowered(lower_contract, body, arrays, out, compiled=tmp_path / str(prepared), nthreads=n)
    seen = np.lib.stride_tricks.sliding_window_view(arrays[0], (3, 3), (1, 2))
    np.testing.assert_allclose(outs[0], np.einsum("bhwckl,klco->bhwo", seen, arrays[1], optimize=True), atol=1e-3)
    for other in outs[1:]:
        np.testing.assert_array_equal(other, outs[0])


@pytest.mark.parametrize(
    ("sizes", "parts", "slabs", "copied"),
    [
        ((8, 66, 66, 40, 32), 16, True, False),
        ((2, 14, 14, 4, 8), 1, False, False),
        ((2, 8, 9, 8, 130), 1, False, True),
        ((4, 34, 30, 64, 130), 2, True, True),
    ],
)
def test_long_sums_run_in_parts_and_slabs(sizes: Any, parts: int, slabs: bool, copied: bool, tmp_path: Path) -> None:
    """The gradient of a weight: long windows [C, 3, 3, B, H', W'], whose tiles are copied for several panels, and the
    cotangent [B, H', W', O]."""
    b, h, w, c, o = sizes
    arrays = [values(b, h, w, c), values(b, h - 2, w - 2, o)]
    x, g = inputs(*arrays)
    turned = apply("permute_dims", x, axes=(3, 1, 2, 0))
    y = apply("dot", windows(turned, (h - 2, w - 2)), g, batch=((), ()), contract=((3, 4, 5), (0, 1, 2)))
    left = (y.node.inputs[0].shape, (1, w * c, c, h * w * c, w * c, c))
    p = problem(left, (g.shape, contiguous_strides(g.shape)), y.node.attrs, [contiguous_strides(y.shape)])
    direct = as_direct(p, float32, host())
    assert direct is not None
    assert (direct.parts, direct.slabs > 0, direct.copied) == (parts, slabs, copied)
    body = Graph.build("contract", [x, g], [("y0", y)])
    outs = [
        run_lowered(lower_contract, body, arrays, [blank(y.shape, "float32")], compiled=tmp_path, nthreads=n)[0]
        for n in (1, 2, 7)
    ]
    seen = np.lib.stride_tricks.sliding_window_view(arrays[0], (h - 2, w - 2), (1, 2))  # [B, 3, 3, C, H', W']
    want = np.tensordot(seen, arrays[1], axes=((0, 4, 5), (0, 1, 2))).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(outs[0], want, atol=1e-6 * prod(arrays[1].shape[:3]))
    for other in outs[1:]:
        np.testing.assert_array_equal(other, outs[0])


# The layout ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: gc.Tensor) -> gc.Tensor:
        y = gc.relu(self.bn1(self.conv1(x)))
        return gc.relu(self.bn2(self.conv2(y)) + gc.pad(y[:, :4, ::2, ::2], [(0, 0), (2, 2), (0, 0), (0, 0)]))


def test_nothing_turns_between_convolutions() -> None:
    block = Block()

    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        loss = gc.mean(block(x).mean((2, 3)) ** 2)
        for p in block.parameters():
            p.assign(p - 0.1 * gc.grad(loss, p))
        return {"loss": loss}

    graph = pipeline.run(trace(step, x=gc.spec((2, 8, 12, 12))).graph, stop_after="dce")
    computed = [n for n in graph if isinstance(get_op(n.op).lower, Map) and len(n.types[0].shape) == 4]
    images = [n.types[0].shape for n in computed if n.types[0].shape[0] == 2]
    assert images
    assert {shape[-1] for shape in images} == {8}  # nothing is computed channels first


# Batch statistics ----------------------------------------------------------------------------------------------------


def test_batch_statistics_far_from_zero() -> None:
    """One pass over the batch keeps the variance of values that differ in their last digits only."""
    x = (1000 + values(16, 4, 5, 5)).astype(np.float32)
    norm = nn.BatchNorm2d(4)

    @gc.entry(x=gc.spec(x.shape))
    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": norm(x)}

    wide = x.astype(np.float64)
    centred = wide - wide.mean((0, 2, 3), keepdims=True)
    want = centred / np.sqrt(centred.var((0, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(gc.compile(step).step(x=x)["y"], want, atol=1e-3)


def test_second_derivative_through_batch_statistics() -> None:
    """The gradient of |d sum(sin(norm(x))) / dx|² against a finite difference."""

    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        (g,) = gc.grad(gc.sum(gc.sin(gc.batch_norm(x, None, None, training=True))), [x])
        total = gc.sum(g * g)
        return {"total": total, "slope": gc.grad(total, x)}

    x = np.random.default_rng(3).standard_normal((3, 2, 2, 3))
    graph = pipeline.run(trace(step, x=gc.spec(x.shape, "float64")).graph)

    def run(a: np.ndarray) -> dict[str, np.ndarray]:
        return interpret(graph, {"x": a})[0]

    along = np.random.default_rng(4).standard_normal(x.shape)
    want = (run(x + 1e-6 * along)["total"] - run(x - 1e-6 * along)["total"]) / 2e-6
    np.testing.assert_allclose((run(x)["slope"] * along).sum(), want, rtol=1e-6)
