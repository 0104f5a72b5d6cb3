"""Norms over batches and groups, resampling, and the layers of convolutional networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tracing import run, trace

import graphc as gc
from graphc import nn
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.passes import pipeline


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def normalised(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_in_training_and_evaluation(momentum: float | None) -> None:
    net = nn.BatchNorm2d(3, momentum=momentum)
    net.weight.initial[:] = [1, 2, 3]
    net.bias.initial[:] = [4, 5, 6]

    @gc.entry(x=gc.spec((4, 3, 5, 7)))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": net.train()(x)}

    @gc.entry(x=gc.spec((4, 3, 5, 7)))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": net.eval()(x)}

    program = gc.compile(train, infer)
    mean, var = np.zeros(3), np.ones(3)
    weight, bias = np.float32([[[1]], [[2]], [[3]]]), np.float32([[[4]], [[5]], [[6]]])
    for step in range(1, 4):
        x = values(4, 3, 5, 7) * step + step
        got = program.train(x=x)["y"]
        np.testing.assert_allclose(got, normalised(x, (0, 2, 3)) * weight + bias, atol=1e-5)
        share = 1 / step if momentum is None else momentum
        mean = (1 - share) * mean + share * x.mean((0, 2, 3))
        var = (1 - share) * var + share * x.var((0, 2, 3), ddof=1)
    state = program.state
    np.testing.assert_allclose(state["running_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["running_var"], var, rtol=1e-5)
    assert state["num_batches_tracked"] == 3
    x = values(4, 3, 5, 7)
    want = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5) * weight + bias
    np.testing.assert_allclose(program.infer(x=x)["y"], want, atol=1e-5)
    assert state["num_batches_tracked"] == 3


def test_state_dict_has_torchs_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert list(net.state_dict()) == names
    older = {n: a for n, a in net.state_dict().items() if "num_batches" not in n}
    assert net.load_state_dict(older) == ([], [])
    assert [n for n, _ in net.named_parameters()] == names[:4]


def test_a_norm_in_evaluation_joins_its_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    traced = trace(lambda x: {"y": net(x)}, x=gc.spec((2, 3, 9, 9)))
    calls = [n for n in pipeline.run(traced.graph) if n.op == "call"]
    assert sorted(n.types[0].shape for n in calls if n.types[0].size > 4) == [(2, 7, 7, 4)]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 7)])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(shape: tuple[int, ...], groups: int) -> None:
    x, w, b = values(*shape), values(6) + 1, values(6)
    if x.size == 4 * groups:
        return
    rows = normalised(x.reshape(4, groups, -1), (2,)).reshape(shape)
    wide = (6, *(1,) * (len(shape) - 2))
    got = run(lambda x, w, b: gc.group_norm(x, groups, w, b), x=x, w=w, b=b)
    np.testing.assert_allclose(got, rows * w.reshape(wide) + b.reshape(wide), atol=1e-5)


def test_instance_norm_with_running_statistics() -> None:
    net = nn.InstanceNorm2d(3, momentum=0.25, track_running_stats=True)
    x = values(2, 3, 5, 4) + 1

    @gc.entry(x=gc.spec(x.shape))
    def train(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": net.train()(x)}

    @gc.entry(x=gc.spec(x.shape))
    def infer(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": net.eval()(x)}

    program = gc.compile(train, infer)
    np.testing.assert_allclose(program.train(x=x)["y"], normalised(x, (2, 3)), atol=1e-5)
    mean, var = 0.25 * x.mean((0, 2, 3)), 0.75 + 0.25 * x.var((2, 3), ddof=1).mean(0)
    np.testing.assert_allclose(program.state["running_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(program.state["running_var"], var, rtol=1e-5)
    want = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    np.testing.assert_allclose(program.infer(x=x)["y"], want, atol=1e-5)


def test_instance_norm() -> None:
    x = values(2, 3, 4, 5)
    np.testing.assert_allclose(run(nn.InstanceNorm2d(3), x=x), normalised(x, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(("length", "size"), [(4, 8), (5, 8), (8, 5), (6, 3), (3, 1), (1, 4)])
def test_interpolate(length: int, size: int) -> None:
    x = values(2, 3, length)
    np.testing.assert_array_equal(
        run(lambda x: gc.interpolate(x, size), x=x), x[:, :, np.arange(size) * length // size]
    )
    at = (np.arange(size) + 0.5) * length / size - 0.5
    want = np.stack([[np.interp(at, np.arange(length), row) for row in image] for image in x])
    np.testing.assert_allclose(run(lambda x: gc.interpolate(x, size, mode="linear"), x=x), want, atol=1e-5)


def test_upsample_both_ways() -> None:
    x = values(1, 2, 3, 4)
    np.testing.assert_array_equal(run(nn.Upsample(scale_factor=2), x=x), x.repeat(2, 2).repeat(2, 3))
    wide = run(nn.Upsample(scale_factor=(1, 2), mode="bilinear"), x=x)
    at = (np.arange(8) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(wide[0, 0, 0], np.interp(at, np.arange(4), x[0, 0, 0]), atol=1e-6)


LAYERS: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
    (lambda: nn.Conv1d(3, 4, 3, padding="same"), (2, 3, 9), (2, 4, 9)),
    (lambda: nn.Conv2d(4, 6, (3, 1), 2, groups=2), (2, 4, 9, 9), (2, 6, 4, 5)),
    (lambda: nn.Conv2d(3, 6, 3), (3, 9, 9), (6, 7, 7)),
    (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), (1, 3, 3, 3, 3)),
    (lambda: nn.ConvTranspose1d(3, 4, 3, 2), (2, 3, 5), (2, 4, 11)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5, 5), (2, 6, 10, 10)),
    (lambda: nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 3, 3), (1, 3, 4, 4, 4)),
    (lambda: nn.MaxPool1d(2), (2, 3, 9), (2, 3, 4)),
    (lambda: nn.MaxPool2d(3, 2, 1), (2, 3, 9, 9), (2, 3, 5, 5)),
    (lambda: nn.MaxPool3d(2), (1, 2, 4, 4, 4), (1, 2, 2, 2, 2)),
    (lambda: nn.AvgPool1d(3, 1), (2, 3, 9), (2, 3, 7)),
    (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 9, 9), (2, 3, 5, 5)),
    (lambda: nn.AvgPool3d(2), (1, 2, 4, 4, 4), (1, 2, 2, 2, 2)),
    (lambda: nn.AvgPool2d(3, 2, 1, True), (2, 3, 10, 9), (2, 3, 6, 5)),
    (lambda: nn.AdaptiveMaxPool1d(2), (2, 3, 9), (2, 3, 2)),
    (lambda: nn.AdaptiveMaxPool2d((None, 1)), (2, 3, 9, 9), (2, 3, 9, 1)),
    (lambda: nn.AdaptiveMaxPool3d(1), (1, 2, 4, 4, 4), (1, 2, 1, 1, 1)),
    (lambda: nn.Upsample((3, 5), mode="bilinear", align_corners=True), (1, 2, 4, 4), (1, 2, 3, 5)),
    (lambda: nn.AdaptiveAvgPool1d(2), (2, 3, 9), (2, 3, 2)),
    (lambda: nn.AdaptiveAvgPool2d((None, 1)), (2, 3, 9, 9), (2, 3, 9, 1)),
    (lambda: nn.AdaptiveAvgPool3d(1), (1, 2, 4, 4, 4), (1, 2, 1, 1, 1)),
    (lambda: nn.BatchNorm1d(3), (8, 3), (8, 3)),
    (lambda: nn.BatchNorm3d(2), (1, 2, 4, 4, 4), (1, 2, 4, 4, 4)),
    (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 3), (2, 4, 3, 3)),
    (lambda: nn.InstanceNorm1d(3, affine=True), (2, 3, 9), (2, 3, 9)),
    (lambda: nn.InstanceNorm3d(2), (1, 2, 4, 4, 4), (1, 2, 4, 4, 4)),
    (lambda: nn.Flatten(), (2, 3, 4), (2, 12)),
    (lambda: nn.Flatten(0, 1), (2, 3, 4), (6, 4)),
]


@pytest.mark.parametrize(("make", "shape", "want"), LAYERS)
def test_layers_give_the_shapes_of_torchs_and_pass_gradients(make: Any, shape: Any, want: Any) -> None:
    net = make()

    def step(x: gc.Tensor) -> dict[str, gc.Tensor]:
        y = net(x)
        grads = gc.grad(gc.sum(gc.sin(y)), [x, *net.parameters()])
        return {"y": y, **{f"g{i}": g for i, g in enumerate(grads)}}

    traced = trace(step, x=gc.spec(shape))
    graph = pipeline.run(traced.graph, stop_after="differentiate")
    out, _ = interpret(graph, {"x": values(*shape)}, traced.initial)
    assert out["y"].shape == want
    assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in out.values())


def test_conv_weights_start_as_torchs() -> None:
    w = nn.Conv2d(8, 16, 3).weight.initial
    assert np.abs(w).max() <= 1 / np.sqrt(8 * 9)
    assert w.std() == pytest.approx(1 / np.sqrt(3 * 8 * 9), rel=0.05)


@pytest.mark.parametrize(
    ("fn", "code"),
    [
        (lambda x: nn.BatchNorm2d(4)(x), "GC0101"),
        (lambda x: nn.BatchNorm1d(3)(x), "GC0101"),
        (lambda x: nn.BatchNorm2d(3)(x[:1, :, :1, :1]), "GC0101"),
        (lambda x: gc.group_norm(x, 2), "GC0101"),
        (lambda x: gc.interpolate(x), "GC0217"),
        (lambda x: gc.interpolate(x, 4, mode="cubic"), "GC0217"),
        (lambda x: nn.Conv2d(3, 4, 3, groups=2)(x), "GC0113"),
    ],
)
def test_what_does_not_fit_is_refused(fn: Any, code: str) -> None:
    with pytest.raises(GraphcError) as caught:
        trace(lambda x: {"y": fn(x)}, x=gc.spec((2, 3, 8, 8)))
    assert caught.value.code == code
    assert caught.value.loc is not None
