"""Contractions against NumPy: orientations, batches, layouts, odd sizes, epilogues; interpreted and compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lowered import blank, like, run_lowered

import graphc.ops  # noqa: F401
from graphc.dtype import bfloat16, contiguous_strides, dtype, float32
from graphc.ir import Graph, Literal, Value, attrs
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_problem import problem
from graphc.kernels.cpu.target import BASELINES, MATRIX, PAIRS, host, with_words
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Buffer, View
from graphc.loop import Contract, Loop, Role, walk
from graphc.ops.base import apply, get_op
from graphc.ops.region import walk_graph

Order = tuple[int, ...]


def array_input(name: str, shape: tuple[int, ...], kind: str = "float32") -> Value:
    return apply("input", name=name, dtype=dtype(kind), shape=shape)


def numbers(shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    values = rng.integers(-9, 9, shape) if dtype(kind).is_integer else rng.standard_normal(shape)
    return values.astype(dtype(kind).numpy)


def check_dot(
    left: tuple[int, ...],
    right: tuple[int, ...],
    contract: tuple[Order, Order],
    batch: tuple[Order, Order] = ((), ()),
    kind: str = "float32",
    orders: tuple[Order | None, Order | None, Order | None] = (None, None, None),
    pad: int = 0,
    **run: Any,
) -> None:
    a, b = array_input("a", left, kind), array_input("b", right, kind)
    sums = dtype(kind).computed
    dot = apply("dot", a, b, batch=batch, contract=contract, dtype=sums)
    arrays = [like(numbers(left, kind, 1), orders[0], pad), like(numbers(right, kind, 2), orders[1], pad)]
    out = blank(dot.shape, sums.name, orders[2], pad)
    run_lowered(lower_contract, Graph.build("contract", [a, b], [("y0", dot)]), arrays, [out], **run)
    wide = [x.astype("float64" if sums.is_float else kind) for x in arrays]
    (want,) = get_op("dot").eval(wide, dot.node.attrs)
    depth = max(1, np.prod([left[d] for d in contract[0]], dtype=int))
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6 * depth if sums.is_float else 0)


SIZES = [(13, 33, 7), (5, 1, 9), (1, 5, 9), (1, 1, 3), (64, 65, 20), (30, 70, 600), (12, 32, 4), (3, 40, 0), (0, 4, 2)]


@pytest.mark.parametrize("layout", ["mk,kn", "km,kn", "mk,nk", "km,nk"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matrices(size: tuple[int, int, int], layout: str) -> None:
    m, n, k = size
    left, right = layout.split(",")
    dims = {"m": m, "n": n, "k": k}
    shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
    contract = (left.index("k"),), (right.index("k"),)
    for out in (None, (1, 0)):
        check_dot(*shapes, contract, orders=(None, None, out), pad=3 if out else 0)


@pytest.mark.parametrize("kind", ["float64", "int32", "int64"])
def test_other_dtypes(kind: str) -> None:
    check_dot((13, 21), (21, 35), ((1,), (0,)), kind=kind)
    check_dot((2, 13, 5), (2, 9, 5), ((2,), (2,)), ((0,), (0,)), kind=kind)


@pytest.mark.skipif(
    not with_words(host(), [bfloat16]).block(bfloat16), reason="this machine has no AMX, or does not let us use it"
)
@pytest.mark.parametrize("layout", ["mk,kn", "km,kn", "mk,nk", "km,nk"])
def test_products_on_amx(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowered.host", lambda: with_words(host(), [bfloat16]))
    left, right = layout.split(",")
    for size, pad in (((64, 96, 128), 0), ((70, 130, 100), 2), ((40, 33, 2050), 0)):
        dims = dict(zip("mnk", size, strict=True))
        shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
        check_dot(*shapes, ((left.index("k"),), (right.index("k"),)), kind="bfloat16", pad=pad, compiled=tmp_path)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["mk,kn", "km,kn", "mk,nk", "km,nk"])
def test_factors_of_16_bits_have_sums_of_32(layout: str, kind: str) -> None:
    left, right = layout.split(",")
    for size in ((13, 33, 7), (1, 5, 9), (30, 70, 600), (3, 40, 0), (10, 20, 2048)):
        dims = dict(zip("mnk", size, strict=True))
        shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
        check_dot(*shapes, ((left.index("k"),), (right.index("k"),)), kind=kind, pad=3)
    check_dot((2, 5, 6, 40), (5, 3, 17, 6, 40), ((2, 3), (3, 4)), ((1,), (0,)), kind=kind)
    turned = ((1, 0, 2, 3), None, None)
    check_dot((4, 9, 40, 6), (17, 6, 40), ((3, 2), (1, 2)), kind=kind, orders=turned)


V4 = BASELINES["x86-64-v4"]


@pytest.mark.parametrize("features", [(PAIRS,), MATRIX], ids=["vectors", "matrix"])
@pytest.mark.parametrize("layout", ["mk,kn", "km,kn", "mk,nk", "km,nk"])
def test_pairs_of_bfloat16(layout: str, features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As words where rows run along k and are of even length; else interleaved; widened where k is odd."""
    monkeypatch.setitem(BASELINES, "pairs", replace(V4, features=(*V4.features, *features)))
    left, right = layout.split(",")
    run: dict[str, Any] = {"kind": "bfloat16", "target": "pairs"}
    for size, pad in (
        ((13, 33, 8), 2),
        ((30, 70, 600), 3),
        ((12, 32, 7), 0),
        ((10, 20, 4096), 0),
        ((1, 70, 64), 1),
        ((3, 1, 64), 0),
    ):
        dims = dict(zip("mnk", size, strict=True))
        shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
        for out in (None, (1, 0)):
            check_dot(*shapes, ((left.index("k"),), (right.index("k"),)), pad=pad, orders=(None, None, out), **run)
    check_dot((2, 5, 6, 40), (5, 3, 17, 6, 40), ((2, 3), (3, 4)), ((1,), (0,)), **run)
    turned = ((1, 0, 2, 3), None, None)
    check_dot((4, 9, 40, 6), (17, 6, 40), ((3, 2), (1, 2)), orders=turned, **run)


BATCHES = [
    pytest.param((2, 3, 17, 5), (2, 3, 5, 40), ((3,), (2,)), ((0, 1), (0, 1)), (None, None, None), id="plain"),
    pytest.param(
        (2, 3, 17, 5), (2, 3, 5, 40), ((3,), (2,)), ((0, 1), (0, 1)), ((0, 2, 1, 3), None, (0, 2, 1, 3)), id="heads"
    ),
    pytest.param((6, 4, 20), (20, 7, 5), ((2,), (0,)), ((), ()), (None, None, (1, 0, 2, 3)), id="outer-dims"),
    pytest.param((6, 4, 20), (6, 4, 9), ((0, 1), (0, 1)), ((), ()), (None, None, None), id="two-contracted"),
    pytest.param((6, 4, 20), (6, 4, 9), ((0, 1), (0, 1)), ((), ()), ((1, 0, 2), None, None), id="two-kept-apart"),
    pytest.param((6, 4), (6, 4), ((), ()), ((0, 1), (0, 1)), (None, None, None), id="elementwise"),
    pytest.param((6,), (4,), ((), ()), ((), ()), (None, None, None), id="outer-product"),
    pytest.param((6,), (6,), ((0,), (0,)), ((), ()), (None, None, None), id="inner-product"),
    pytest.param((1, 300), (70, 300), ((1,), (1,)), ((), ()), (None, None, None), id="vector-by-rows"),
    pytest.param((300, 70), (300,), ((0,), (0,)), ((), ()), (None, None, None), id="columns-by-vector"),
]


@pytest.mark.parametrize(("left", "right", "contract", "batch", "orders"), BATCHES)
def test_general_products(left: Any, right: Any, contract: Any, batch: Any, orders: Any) -> None:
    check_dot(left, right, contract, batch, orders=orders)


@pytest.mark.parametrize("n", [1, 3, 10, 100])
@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_few_rows(m: int, n: int, tmp_path: Path) -> None:
    """Without panels where both factors lie along k: tiles with and without a rest, one task and several."""
    for k in (48, 200):
        check_dot((m, k), (n, k), ((1,), (1,)), pad=2)
        check_dot((2, m, k), (2, n, k), ((2,), (2,)), ((0,), (0,)), kind="bfloat16", orders=(None, None, (1, 0, 2)))
    check_dot((m, 3, 129), (n, 3, 129), ((1, 2), (1, 2)), pad=1, compiled=tmp_path)


@pytest.mark.parametrize("m", [1, 4, 5])
def test_few_rows_of_wide_panels(m: int, tmp_path: Path) -> None:
    """Where b lies along n: whole panels and a rest, with and without an epilogue's layout."""
    check_dot((m, 70), (70, 800), ((1,), (0,)), pad=1, compiled=tmp_path)
    check_dot((m, 70), (70, 800), ((1,), (0,)), orders=(None, None, (1, 0)), compiled=tmp_path)
    check_dot((m, 70), (70, 800), ((1,), (0,)), target="x86-64-v3")


@pytest.mark.parametrize("m", [17, 30])
def test_few_rows_of_a_large_factor(m: int, tmp_path: Path) -> None:
    """In slabs, whichever way it lies: panels and slabs with and without a rest."""
    for n, k in ((1024, 512), (1000, 600)):
        check_dot((m, k), (k, n), ((1,), (0,)), pad=1, compiled=tmp_path)
        check_dot((m, k), (n, k), ((1,), (1,)), pad=1, compiled=tmp_path)
    check_dot((2, m, 512), (2, 512, 1100), ((2,), (1,)), ((0,), (0,)), compiled=tmp_path)


def test_few_rows_bits_do_not_depend_on_threads() -> None:
    a, b = (numbers(shape, "float32", 1) for shape in ((3, 150), (100, 150)))
    x, w = array_input("a", a.shape), array_input("b", b.shape)
    graph = Graph.build("c", [x, w], [("y0", apply("dot", x, w, batch=((), ()), contract=((1,), (1,))))])
    outs = [run_lowered(lower_contract, graph, [a, b], [blank((3, 100), "float32")], nthreads=n)[0] for n in (1, 2, 5)]
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


def test_long_sums_run_in_slabs() -> None:
    check_dot((50, 9000), (9000, 40), ((1,), (0,)))
    check_dot((3, 9000), (9000, 40), ((1,), (0,)), orders=(None, None, (1, 0)))
    check_dot((3, 5, 9000), (9000, 3, 40), ((0, 2), (1, 0)), orders=(None, (1, 0, 2), None))


@pytest.mark.parametrize("orders", [(None, None, None), (None, None, (1, 0)), ((1, 0), (1, 0), None)])
def test_long_sums_of_small_results_run_in_parts(orders: Any) -> None:
    a, b = array_input("a", (10, 8192)), array_input("b", (8192, 20))
    dot = apply("dot", a, b, batch=((), ()), contract=((1,), (0,)))
    body = Graph.build("contract", [a, b], [("y0", apply("tanh", dot)), ("y1", dot)])
    arrays = [like(numbers(v.shape, "float32", i), o) for i, (v, o) in enumerate(zip((a, b), orders, strict=False))]
    outs = [blank((10, 20), "float32", orders[2]) for _ in body.outputs]
    run_lowered(lower_contract, body, arrays, outs)
    want = arrays[0].astype("float64") @ arrays[1]
    np.testing.assert_allclose(outs[1], want, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outs[0], np.tanh(want), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("target", sorted(BASELINES))
def test_every_tile_shape(target: str) -> None:
    check_dot((45, 70), (70, 50), ((1,), (0,)), target=target)


@pytest.mark.parametrize("nthreads", [1, 2, 7])
def test_bits_do_not_depend_on_threads(nthreads: int) -> None:
    a, b = array_input("a", (200, 300)), array_input("b", (300, 130))
    dot = apply("dot", a, b, batch=((), ()), contract=((1,), (0,)))
    arrays = [numbers(a.shape, "float32", 1), numbers(b.shape, "float32", 2)]
    graph = Graph.build("contract", [a, b], [("y0", dot)])
    outs = [
        run_lowered(lower_contract, graph, arrays, [blank(dot.shape, "float32")], nthreads=n)[0] for n in (1, nthreads)
    ]
    np.testing.assert_array_equal(*outs)


@pytest.mark.parametrize(("m", "n", "k"), [(200, 130, 300), (37, 1024, 513), (12, 32, 256), (40, 24, 400)])
@pytest.mark.parametrize("epilogue", [False, True])
def test_a_sum_across_the_rows_of_both_factors(m: int, n: int, k: int, epilogue: bool) -> None:
    """The gradient of a weight: slabs of k, the last one short, each fetched while the one before it is multiplied."""
    a, b = array_input("a", (k, m)), array_input("b", (k, n))
    dot = apply("dot", a, b, batch=((), ()), contract=((0,), (0,)))
    graph = Graph.build("contract", [a, b], [("y0", apply("tanh", dot) if epilogue else dot)])
    arrays = [numbers(a.shape, "float32", 1), numbers(b.shape, "float32", 2)]
    outs = [run_lowered(lower_contract, graph, arrays, [blank(dot.shape, "float32")], nthreads=t)[0] for t in (1, 2, 5)]
    want = arrays[0].astype("float64").T @ arrays[1]
    np.testing.assert_allclose(outs[0], np.tanh(want) if epilogue else want, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@pytest.mark.parametrize("right", [0, 1])
def test_slabs_of_rows_that_share_sets_of_the_cache(right: int) -> None:
    """A tile of the left factor is read in place, a slab at a time, and both fetched ahead."""
    a, b = array_input("a", (1030, 1024)), array_input("b", [(1024, 70), (70, 1024)][right])
    dot = apply("dot", a, b, batch=((), ()), contract=((1,), (right,)))
    graph = Graph.build("contract", [a, b], [("y0", apply("tanh", dot))])
    arrays = [numbers(a.shape, "float32", 1), numbers(b.shape, "float32", 2)]
    outs = [run_lowered(lower_contract, graph, arrays, [blank(dot.shape, "float32")], nthreads=t)[0] for t in (1, 2, 5)]
    want = np.tanh(arrays[0].astype("float64") @ (arrays[1].T if right else arrays[1]))
    np.testing.assert_allclose(outs[0], want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


# Epilogues


def wide(value: Value, shape: tuple[int, ...]) -> Value:
    return apply("broadcast_to", value, shape=shape)


def gelu_like(shape: tuple[int, int, int], k: int) -> Graph:
    """Two results of x·wᵀ + bias: a dropout of z sigmoid(z) plus a residual, and z itself plus its row number."""
    a, b, bias = array_input("a", (*shape[:2], k)), array_input("b", (shape[2], k)), array_input("bias", shape[2:])
    residual, scale = array_input("residual", shape), array_input("scale", ())
    keys = [array_input(f"k{i}", (), "uint32") for i in range(2)]
    dot = apply("dot", a, b, batch=((), ()), contract=((2,), (1,)))
    z = apply("add", dot, wide(bias, shape))
    half = apply("const", value=Literal.of(np.array(2**31, np.uint32)))
    keep = apply("greater_equal", apply("random_bits", *(wide(key, shape) for key in keys)), wide(half, shape))
    y = apply("add", apply("where", keep, apply("mul", z, apply("sigmoid", z)), wide(scale, shape)), residual)
    row = apply("iota", shape=shape, axis=1, dtype=float32)
    return Graph.build("contract", [a, b, bias, residual, scale, *keys], [("y0", y), ("y1", apply("add", z, row))])


def epilogue_case(k: int) -> tuple[Graph, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    body = gelu_like((5, 7, 45), k)
    arrays = [
        numbers(v.shape, v.dtype.name, i) if v.dtype.is_float else np.asarray(i * 1234567, np.uint32)
        for i, v in enumerate(body.inputs)
    ]
    values = walk_graph(body, arrays, {})
    outs = [blank((5, 7, 45), "float32", (1, 0, 2)), blank((5, 7, 45), "float32", (0, 2, 1))]
    return body, arrays, outs, [values[v] for _, v in body.outputs]


@pytest.mark.parametrize("k", [0, 30, 700, 9000])
def test_epilogue_with_bias_dropout_residual_and_two_results(k: int) -> None:
    body, arrays, outs, want = epilogue_case(k)
    run_lowered(lower_contract, body, arrays, outs)
    for got, expected in zip(outs, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(10, k**0.5))


def test_operands_moved_inside_the_body() -> None:
    a, b = array_input("a", (20, 30)), array_input("b", (2, 25, 20))
    moved = apply("permute_dims", apply("slice", b, start=(1, 0, 0), stop=(2, 25, 20), step=(1, 1, 1)), axes=(0, 2, 1))
    dot = apply("dot", apply("reshape", moved, shape=(20, 25)), a, batch=((), ()), contract=((0,), (0,)))
    arrays = [numbers(a.shape, "float32", 3), numbers(b.shape, "float32", 4)]
    out = blank((25, 30), "float32")
    run_lowered(lower_contract, Graph.build("contract", [a, b], [("y0", dot)]), arrays, [out])
    np.testing.assert_allclose(out, arrays[1][1] @ arrays[0], rtol=1e-5, atol=1e-5)


# Structure


def test_axes_merge_where_every_array_allows_it() -> None:
    left, right = ((4, 6, 10), contiguous_strides((4, 6, 10))), ((10, 7), contiguous_strides((10, 7)))
    at = attrs(batch=((), ()), contract=((2,), (0,)))
    merged = problem(left, right, at, [contiguous_strides((4, 6, 7))])
    assert (merged.outer, merged.m.size, merged.n.size, merged.k.size) == ((), 24, 7, 10)
    apart = problem(left, right, at, [contiguous_strides((4, 6, 7)), (1, 0, 0)])  # an array that only knows dim 0
    assert [axis.size for axis in apart.outer] == [4]
    assert apart.m.size == 6


@pytest.mark.parametrize(("left", "right", "along"), [((4096, 64), (64, 512), 1), ((2048, 512), (2048, 384), 0)])
def test_tasks_of_words_share_panels_that_are_packed_before(left: Any, right: Any, along: int) -> None:
    a, b = array_input("a", left, "bfloat16"), array_input("b", right, "bfloat16")
    dot = apply("dot", a, b, batch=((), ()), contract=((along,), (0,)), dtype=float32)
    views = [View.whole(Buffer(f"b{i}", "arena", v.type.nbytes), v.dtype, v.shape) for i, v in enumerate((a, b, dot))]
    ctx = LowerContext(replace(V4, features=(*V4.features, *MATRIX)))
    packed, product = lower_contract(Graph.build("c", [a, b], [("y0", dot)]), attrs(), views[:2], views[2:], ctx)
    assert packed.kernel.name == f"{product.kernel.name}_panels"
    assert "panels" not in {s.name for s in product.kernel.scratch}


def test_a_plain_product_has_no_epilogue_and_packs_its_panels_once() -> None:
    a, b = array_input("a", (768, 128)), array_input("b", (128, 512))
    dot = apply("dot", a, b, batch=((), ()), contract=((1,), (0,)))
    views = [
        View.whole(Buffer(v.node.op + str(v.shape), "arena", v.type.nbytes), float32, v.shape) for v in (a, b, dot)
    ]
    (made,) = lower_contract(
        Graph.build("c", [a, b], [("y0", dot)]), attrs(), views[:2], views[2:], LowerContext(BASELINES["x86-64-v4"])
    )
    (task,) = [s for s in made.kernel.body if isinstance(s, Loop)]
    assert task.role is Role.PARALLEL
    assert {s.c.buffer for s in walk(made.kernel.body) if isinstance(s, Contract)} == {"y0"}
    assert made.flops == 2 * 768 * 128 * 512
    assert made.bytes == 4 * (768 * 128 + 128 * 512 + 768 * 512)


# Compiled


@pytest.mark.parametrize("layout", ["mk,kn", "km,nk"])
def test_compiled_products(layout: str, tmp_path: Path) -> None:
    left, right = layout.split(",")
    dims = {"m": 40, "n": 70, "k": 600}
    shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
    check_dot(*shapes, ((left.index("k"),), (right.index("k"),)), compiled=tmp_path, pad=1)


@pytest.mark.parametrize("k", [30, 9000])
def test_compiled_epilogue(k: int, tmp_path: Path) -> None:
    body, arrays, outs, want = epilogue_case(k)
    run_lowered(lower_contract, body, arrays, outs, compiled=tmp_path)
    for got, expected in zip(outs, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * max(10, k**0.5))
