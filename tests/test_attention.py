"""Attention kernels against the region's own body and gradient, evaluated by NumPy; interpreted and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowered import blank, like, run_lowered

import graphc.ops  # noqa: F401
from graphc.dtype import TensorType, bool_, dtype, finfo, uint32
from graphc.ir import Graph, attrs
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.cpu.target import BASELINES
from graphc.ops.attention import attention
from graphc.ops.region import walk_graph

PLAIN, BY_TOKEN, BY_DEPTH = None, (0, 2, 1, 3), (0, 1, 3, 2)  # memory orders of [B, H, T, D]


def evaluate(graph: Graph, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs in float64: what both kernels and float32 arithmetic should be near to."""
    values = walk_graph(graph, arrays, {})
    return [values[v] for _, v in graph.outputs]


def check(
    b: int, h: int, queries: int, keys: int, depth: int, width: int, causal: bool, dropout: float,
    *, mask: np.ndarray | None = None, order: Any = BY_TOKEN, grads: Any = BY_TOKEN, kind: str = "float32", **run: Any,
) -> list[np.ndarray]:  # fmt: skip
    """The results o, lse, dq, dk, dv, which are compared with what the region's graphs say."""
    float_ = dtype(kind)
    row = float_.computed.name
    near = finfo(kind).eps if float_.is_half else 0  # of what is stored in 16 bits
    types = [TensorType(float_, s) for s in ((b, h, queries, depth), (b, h, keys, depth), (b, h, keys, width))]
    masks = [] if mask is None else [mask]
    types += [TensorType(bool_, m.shape) for m in masks] + [TensorType(uint32, ())] * (2 if dropout else 0)
    at = attrs(**attention(types, is_causal=causal, scale=depth**-0.5, dropout_p=dropout))
    rng = np.random.default_rng(queries)
    arrays = [like(rng.standard_normal(t.shape).astype(float_.numpy), order) for t in types[:3]]
    arrays += masks + [np.array(x, np.uint32) for x in (123, 456789)] * bool(dropout)
    want = evaluate(at["body"], arrays)
    outs = [blank(want[0].shape, float_.numpy, order), blank(want[1].shape, row)]
    run_lowered(lower_attention, at["body"], arrays, outs, at, **run)
    for name, got, expected in zip(["o", "lse"], outs, want, strict=True):
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(got, expected, rtol=max(1e-4, near), atol=1e-5, err_msg=name)

    cotangents = [rng.standard_normal(x.shape).astype(x.dtype) for x in want]
    arrays = [*arrays, *want, like(cotangents[0], order), cotangents[1]]
    want = evaluate(at["vjp"], arrays)
    slopes = [blank(x.shape, x.dtype, grads) for x in want]
    run_lowered(lower_attention_vjp, at["vjp"], arrays, slopes, at, **run)
    for name, got, expected in zip(["dq", "dk", "dv"], slopes, want, strict=True):
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_allclose(got, expected, rtol=max(1e-3, near), atol=3e-5, err_msg=name)
    return [*outs, *slopes]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("sizes", "dropout"),
    [
        ((2, 2, 64, 64, 32, 32), 0.0),
        ((1, 3, 37, 37, 20, 20), 0.25),
        ((2, 1, 25, 70, 16, 40), 0.0),
        ((1, 1, 70, 25, 16, 40), 0.1),
        ((1, 1, 1, 1, 16, 16), 0.0),
        ((1, 2, 130, 130, 33, 33), 0.0),
    ],
    ids=str,
)
def test_one_block_of_keys(sizes: tuple[int, ...], dropout: float, causal: bool) -> None:
    check(*sizes, causal, dropout)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("sizes", "dropout"),
    [((1, 1, 700, 700, 16, 16), 0.1), ((1, 1, 40, 1100, 16, 16), 0.0), ((1, 1, 1100, 520, 16, 16), 0.0)],
    ids=str,
)
def test_several_blocks_of_keys(sizes: tuple[int, ...], dropout: float, causal: bool) -> None:
    check(*sizes, causal, dropout)


@pytest.mark.parametrize("order", [PLAIN, BY_TOKEN, BY_DEPTH])
@pytest.mark.parametrize("grads", [BY_TOKEN, BY_DEPTH])
def test_layouts(order: Any, grads: Any) -> None:
    check(1, 2, 30, 30, 20, 20, True, 0.0, order=order, grads=grads)


@pytest.mark.parametrize("target", sorted(BASELINES))
def test_every_tile_shape(target: str) -> None:
    check(1, 1, 50, 50, 24, 24, True, 0.0, target=target)


def test_float64() -> None:
    check(1, 1, 19, 19, 3, 5, True, 0.5, kind="float64")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_16_bits(kind: str, tmp_path: Path) -> None:
    check(1, 2, 37, 50, 20, 24, True, 0.25, kind=kind, grads=BY_DEPTH)
    check(1, 1, 40, 1100, 16, 16, False, 0.0, kind=kind)
    check(2, 2, 64, 64, 32, 32, True, 0.0, kind=kind, compiled=tmp_path)


def test_bits_do_not_depend_on_threads() -> None:
    types = [TensorType(dtype("float32"), (2, 2, 40, 16))] * 3
    at = attrs(**attention(types, is_causal=True, scale=0.25))
    arrays = [np.random.default_rng(i).standard_normal((2, 2, 40, 16)).astype("float32") for i in range(3)]
    runs = []
    for nthreads in (1, 5):
        outs = [blank((2, 2, 40, 16), "float32"), blank((2, 2, 40), "float32")]
        runs.append(run_lowered(lower_attention, at["body"], arrays, outs, at, nthreads=nthreads))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("sizes", "dropout"), [((2, 2, 64, 64, 32, 32), 0.0), ((1, 1, 650, 650, 20, 20), 0.1)], ids=str
)
def test_compiled(sizes: tuple[int, ...], dropout: float, tmp_path: Path) -> None:
    check(*sizes, True, dropout, compiled=tmp_path)


# Masks ---------------------------------------------------------------------------------------------------------------


def padding(keys: int, *shown: int) -> np.ndarray:
    """A mask [B, 1, 1, keys] of the first keys of each row."""
    return np.arange(keys) < np.reshape(shown, (-1, 1, 1, 1))


def random_mask(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape) > 0.4


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("sizes", "mask", "dropout"),
    [
        ((2, 2, 64, 64, 32, 32), padding(64, 40, 64), 0.0),
        ((3, 1, 37, 37, 20, 20), padding(37, 0, 1, 36), 0.25),
        ((2, 2, 25, 70, 16, 40), random_mask(2, 1, 1, 70), 0.0),
        ((2, 2, 70, 25, 16, 40), random_mask(1, 2, 1, 25), 0.1),
        ((2, 2, 45, 50, 16, 16), random_mask(2, 2, 45, 50), 0.0),
        ((2, 2, 45, 50, 16, 16), random_mask(1, 1, 45, 50), 0.1),
        ((2, 1, 40, 1100, 16, 16), padding(1100, 300, 0), 0.0),
        ((1, 1, 520, 520, 16, 16), random_mask(1, 1, 520, 520), 0.0),
    ],
    ids=lambda x: "x".join(map(str, x.shape)) if isinstance(x, np.ndarray) else str(x),
)
def test_masks(sizes: tuple[int, ...], mask: np.ndarray, dropout: float, causal: bool) -> None:
    check(*sizes, causal, dropout, mask=mask)


@pytest.mark.parametrize("target", sorted(BASELINES))
def test_masks_on_every_tile_shape(target: str) -> None:
    check(2, 1, 50, 50, 24, 24, True, 0.0, mask=padding(50, 20, 0), target=target)


@pytest.mark.parametrize("kind", ["float64", "bfloat16"])
def test_masks_of_other_types(kind: str) -> None:
    check(2, 2, 30, 30, 20, 20, False, 0.5, mask=padding(30, 0, 17), kind=kind)


def test_masks_compiled(tmp_path: Path) -> None:
    check(3, 2, 70, 70, 32, 32, False, 0.0, mask=padding(70, 0, 33, 70), compiled=tmp_path)
    check(2, 2, 45, 50, 16, 24, True, 0.25, mask=random_mask(2, 1, 45, 50), compiled=tmp_path)
    check(2, 1, 40, 1100, 16, 16, False, 0.0, mask=padding(1100, 0, 600), compiled=tmp_path)


def test_a_query_without_keys_gives_0() -> None:
    """Its lse is the lowest number, and it moves no gradient."""
    o, lse, dq, dk, dv = check(2, 1, 40, 40, 16, 16, False, 0.0, mask=padding(40, 0, 25))
    assert all(not x[0].any() for x in (o, dq, dk, dv))
    assert (lse[0] == np.finfo(np.float32).min).all()
    assert not dk[1, :, 25:].any()
    assert dk[1, :, :25].all()
