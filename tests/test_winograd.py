"""Convolutions by minimal filtering: the matrices, the loops for every target, bits, errors, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lowered import blank, run_lowered

from graphc.dtype import DType, contiguous_strides, float32, float64
from graphc.ir import Graph, Value
from graphc.kernels import winograd
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_problem import problem
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.winograd import Filter, Matrix, as_filter, inputs, outputs, weights
from graphc.ops.base import apply

Sizes = tuple[int, int, int, int, int]  # images, rows and columns of positions, channels, outputs


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def input_of(name: str, *shape: int) -> Value:
    return apply("input", name=name, dtype=float32, shape=shape)


def forward(sizes: Sizes, epilogue: str = "") -> tuple[Graph, list[np.ndarray], np.ndarray]:
    """The body over x [B, H + 2, W + 2, C] and w [O, C, 3, 3], what it reads, and the result in float64."""
    b, h, w, c, o = sizes
    x, k = input_of("x", b, h + 2, w + 2, c), input_of("k", o, c, 3, 3)
    seen = apply("windows", x, axes=(1, 2), sizes=(3, 3), strides=(1, 1), dilations=(1, 1))
    y = apply("dot", seen, k, batch=((), ()), contract=((3, 4, 5), (1, 2, 3)))
    arrays = [values(*x.shape), values(*k.shape)]
    windows = np.lib.stride_tricks.sliding_window_view(arrays[0].astype(np.float64), (3, 3), (1, 2))
    want = np.einsum("bhwckl,ockl->bhwo", windows, arrays[1], optimize=True)
    if epilogue:
        y, want = apply(epilogue, y), getattr(np, epilogue)(want)
    return Graph.build("contract", [x, k], [("y0", y)]), arrays, want


def gradient(sizes: Sizes) -> tuple[Graph, list[np.ndarray], np.ndarray]:
    """The same of the weight's gradient [3, 3, C, O], from x and the cotangent [B, H, W, O]."""
    b, h, w, c, o = sizes
    x, g = input_of("x", b, h + 2, w + 2, c), input_of("g", b, h, w, o)
    turned = apply("permute_dims", x, axes=(3, 1, 2, 0))
    seen = apply("windows", turned, axes=(1, 2), sizes=(h, w), strides=(1, 1), dilations=(1, 1))
    seen = apply("permute_dims", seen, axes=(1, 2, 0, 3, 4, 5))
    y = apply("dot", seen, g, batch=((), ()), contract=((3, 4, 5), (0, 1, 2)))
    arrays = [values(*x.shape), values(*g.shape)]
    wide = arrays[0].astype(np.float64)
    places = [[wide[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]
    want = np.array([[np.tensordot(p, arrays[1], axes=((0, 1, 2), (0, 1, 2))) for p in row] for row in places])
    return Graph.build("contract", [x, g], [("y0", y)]), arrays, want


# The matrices --------------------------------------------------------------------------------------------------------


def dense(matrix: Matrix) -> np.ndarray:
    plain = np.array(matrix.plain)
    butterflies = np.eye(len(plain) if matrix.after else plain.shape[1])
    for p in matrix.pairs:
        butterflies[p : p + 2, p : p + 2] = [[1, 1], [1, -1]]
    return butterflies @ plain if matrix.after else plain @ butterflies


@pytest.mark.parametrize("m", [2, 4])
def test_the_matrices_filter(m: int) -> None:
    """Both algorithms of m + 2 products: m results of a window of 3, and 3 results of a window of m."""
    d = np.random.default_rng(m).standard_normal(m + 2)
    for window, count in ((3, m), (m, 3)):
        g = np.random.default_rng(window).standard_normal(window)
        found = dense(outputs(m, count)) @ ((dense(weights(m, window)) @ g) * (dense(inputs(m)) @ d))
        np.testing.assert_allclose(found, np.correlate(d, g, "valid"), rtol=1e-12)


# The loops -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that can be is computed so, whatever it costs."""
    monkeypatch.setattr(winograd, "WORTH", float("inf"))


@pytest.mark.parametrize("target", sorted(BASELINES))
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("sizes", [(1, 4, 8, 3, 17), (2, 5, 4, 2, 3)], ids=str)
@pytest.mark.usefixtures("always")
def test_loops_for_every_target(sizes: Sizes, m: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "POINTS", {m: winograd.POINTS[m]})
    for body, arrays, want in (forward(sizes), forward(sizes, "sin"), gradient(sizes)):
        out = blank(want.shape, "float32")
        run_lowered(lower_contract, body, arrays, [out], target=target)
        np.testing.assert_allclose(out, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [(4, 16, 16, 32, 32), (4, 14, 14, 64, 96), (2, 30, 18, 48, 32)], ids=str)
def test_bits_do_not_depend_on_threads(sizes: Sizes, tmp_path: Path) -> None:
    for body, arrays, want in (forward(sizes), gradient(sizes)):
        outs = [
            run_lowered(lower_contract, body, arrays, [blank(want.shape, "float32")], compiled=tmp_path, nthreads=n)[0]
            for n in (1, 2, 5)
        ]
        np.testing.assert_allclose(outs[0], want, atol=4e-6 * np.abs(want).max(), rtol=0)
        for other in outs[1:]:
            np.testing.assert_array_equal(other, outs[0])


@pytest.mark.parametrize(("m", "bound"), [(2, 1e-6), (4, 4e-6)])
@pytest.mark.usefixtures("always")
def test_errors_stay_within_their_bound(m: int, bound: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative to the largest result, for the sums of 2,304 products of a layer of ResNet-18."""
    monkeypatch.setattr(winograd, "POINTS", {m: winograd.POINTS[m]})
    for body, arrays, want in (forward((1, 8, 8, 256, 64)), gradient((4, 16, 16, 16, 32))):
        (out,) = run_lowered(lower_contract, body, arrays, [blank(want.shape, "float32")], compiled=tmp_path)
        assert np.abs(out - want).max() <= bound * np.abs(want).max()


# The choice ----------------------------------------------------------------------------------------------------------


def found(sizes: Sizes, window: int = 3, stride: int = 1, dtype: DType = float32) -> Filter | None:
    """The filter that the forward pass of a convolution is."""
    b, h, w, c, o = sizes
    high, wide = (stride * (n - 1) + window for n in (h, w))
    left = (b, h, w, c, window, window), (high * wide * c, stride * wide * c, stride * c, 1, wide * c, c)
    right = (o, c, window, window), contiguous_strides((o, c, window, window))
    attrs = {"batch": ((), ()), "contract": ((3, 4, 5), (1, 2, 3))}
    return as_filter(problem(left, right, attrs, [contiguous_strides((b, h, w, o))]), dtype, 16)


def test_which_convolutions_are_filtered() -> None:
    chosen = {sizes: found(sizes) for sizes in ((64, 32, 32, 16, 16), (4, 56, 56, 64, 64), (4, 14, 14, 256, 256))}
    assert [f and f.m for f in chosen.values()] == [4, 4, 2]
    assert found((1, 7, 7, 512, 512)) is None  # more weights than results
    assert found((64, 32, 32, 3, 16)) is None  # few channels
    assert found((4, 56, 56, 64, 64), stride=2) is None
    assert found((4, 56, 56, 64, 64), window=1) is None
    assert found((4, 56, 56, 64, 64), window=5) is None
    assert found((4, 56, 56, 64, 64), dtype=float64) is None
