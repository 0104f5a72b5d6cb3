"""Ops along rows: what their lowering computes, in every layout, interpreted and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lowered import blank, like, run_lowered

from graphc.dtype import dtype
from graphc.ir import Graph, attrs
from graphc.kernels.lower_rowwise import lower_rowwise
from graphc.ops import OPS, apply, apply_node, get_op
from graphc.ops.base import Op, RowWise, Sample

CASES = [
    pytest.param(op, s, id=f"{op.name}-{i}")
    for op in OPS
    if isinstance(op.lower, RowWise)
    for i, s in enumerate(op.samples())
]


def body_of(op: str, arrays: list[np.ndarray], settings) -> Graph:
    inputs = [apply("input", name=f"x{i}", dtype=dtype(a.dtype), shape=a.shape) for i, a in enumerate(arrays)]
    outs = apply_node(op, *inputs, **settings).outs
    return Graph.build("row", inputs, [(f"y{i}", v) for i, v in enumerate(outs)])


def lowered(op: Op, sample: Sample, order=None, pad: int = 0, **how) -> tuple[np.ndarray, np.ndarray]:
    """What the lowering makes of a sample laid out in the order of dimensions ``order``, and what it should."""
    turned = order and (lambda a: list(range(a.ndim))[::-1])
    arrays = [like(a, turned(a) if turned else None, pad if a.ndim else 0) for a in sample.arrays]
    (want,) = op.eval(sample.arrays, sample.attrs)
    result = blank(want.shape, want.dtype, turned(want) if turned else None, pad)
    run_lowered(lower_rowwise, body_of(op.name, arrays, sample.attrs), arrays, [result], **how)
    return result, want


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("order", [None, "reversed"])
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_lowering_agrees_with_eval(op: Op, sample: Sample, order, pad: int):
    got, want = lowered(op, sample, order, pad)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_compiled_agrees_with_eval(op: Op, sample: Sample, tmp_path: Path):
    got, want = lowered(op, sample, "reversed", 1, compiled=tmp_path)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 31, 32, 33, 100])
@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_stable_for_every_length(size: int, descending: bool):
    x = np.random.default_rng(size).integers(0, 6, (3, size)).astype(np.float32)
    x[x == 5] = np.nan
    result = blank((3, size), np.int32)
    run_lowered(lower_rowwise, body_of("argsort", [x], attrs(descending=descending)), [x], [result])
    # NaN counts as the largest; equal elements stay in their order.
    key = np.where(np.isnan(x), np.inf, x)
    np.testing.assert_array_equal(result, np.argsort(-key if descending else key, axis=-1, kind="stable"))


def test_a_recurrence_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 2, 6))
    result = blank((2, 6), np.float64)
    run_lowered(lower_rowwise, body_of("recurrence", [a, b], attrs(reverse=False)), [a, b], [result])
    y = np.zeros(2)
    for i in range(6):
        y = a[:, i] * y + b[:, i]
        np.testing.assert_allclose(result[:, i], y, rtol=1e-12)


SHAPES = [
    (1,), (2,), (3,), (7,), (16,), (17,), (33,), (64,), (1, 1), (1, 9), (9, 1), (3, 5), (2, 3, 4), (2, 1, 7), (1, 2, 1),
    (5, 0), (0, 5), (2, 0, 3), (2, 70), (3, 2, 2, 5),
]  # fmt: skip


def operands_of(op: str, shape: tuple[int, ...], kind: str, rng: np.random.Generator):
    """Random operands of ``op`` with rows of ``shape``, and its attributes."""
    numbers = rng.integers(0, 9, (2, *shape)).astype(kind)
    positions = rng.integers(0, max(shape[-1], 1), shape).astype("int32")
    return {
        "recurrence": ([numbers[0], numbers[1]], attrs(reverse=bool(rng.integers(2)))),
        "argsort": ([numbers[0]], attrs(descending=bool(rng.integers(2)))),
        "take_along": ([numbers[0], positions], attrs()),
        "scatter_along": ([positions, numbers[0]], attrs(size=max(shape[-1], 1))),
    }[op]


@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "int32", "int16", "int8", "uint32", "uint8"])
@pytest.mark.parametrize("op", ["recurrence", "argsort", "take_along", "scatter_along"])
def test_every_shape_and_dtype(op: str, kind: str):
    rng = np.random.default_rng(8)
    for shape in SHAPES:
        arrays, settings = operands_of(op, shape, kind, rng)
        (want,) = get_op(op).eval(arrays, settings)
        result = blank(want.shape, want.dtype)
        if want.size:
            run_lowered(lower_rowwise, body_of(op, arrays, settings), arrays, [result])
        np.testing.assert_array_equal(result, want, err_msg=f"{shape}")


def test_the_oracle_is_numpy():
    """Where NumPy has the function, `eval` is compared with it; the lowering is compared with `eval`."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((3, 4, 6))
    at = rng.integers(0, 6, (3, 4, 5))
    ones = np.ones_like(x)
    (sums,) = get_op("recurrence").eval([ones, x], attrs(reverse=False))
    np.testing.assert_allclose(sums, np.cumsum(x, -1), rtol=1e-12)
    (back,) = get_op("recurrence").eval([ones, x], attrs(reverse=True))
    np.testing.assert_allclose(back, np.cumsum(x[..., ::-1], -1)[..., ::-1], rtol=1e-12)
    (taken,) = get_op("take_along").eval([x, at], attrs())
    np.testing.assert_array_equal(taken, np.take_along_axis(x, at, -1))
    (sums,) = get_op("scatter_along").eval([at, taken], attrs(size=6))
    want = np.stack([[np.bincount(i, v, 6) for i, v in zip(a, b, strict=True)] for a, b in zip(at, taken, strict=True)])
    np.testing.assert_allclose(sums, want, rtol=1e-12)
