"""Lowering: every plan, run by the interpreter of the loop IR, agrees with the graph's own interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from loop_interp import run_plan
from planned import check, check_fn, plan_of, traced

import graphc as gc
from graphc.dtype import dtype
from graphc.ir import Graph, Literal, Value
from graphc.kernels.emit_text import folded
from graphc.loop import If, Let, Load, Loop, Role, Store, walk
from graphc.ops import OPS
from graphc.ops.base import Meta, Op, Region, Sample, Source, apply, apply_node


def floats(*shape: int, seed: int = 0, dt: str = "float32") -> np.ndarray:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), dt)


def integers(*shape: int, high: int, dt: str = "int32") -> np.ndarray:
    return np.asarray(np.random.default_rng([3, *shape]).integers(0, high, shape), dt)


def given(name: str, array: np.ndarray) -> Value:
    return apply("input", name=name, dtype=dtype(array.dtype), shape=array.shape)


def stored(name: str, array: np.ndarray) -> Value:
    return apply("state", name=name, dtype=dtype(array.dtype), shape=array.shape, trainable=False)


def check_ops(arrays: Sequence[np.ndarray], *outputs: Value, tolerance: float = 1e-5, threads: int = 1) -> Any:
    """Check the graph of ``outputs`` over inputs x0, x1 … (made by `given`)."""
    found: dict[str, Value] = {}
    stack = list(outputs)
    while stack:
        v = stack.pop()
        stack += v.node.inputs
        if v.node.op == "input":
            found[v.node.attrs["name"]] = v
    names = sorted(found)
    graph = Graph.build("g", [found[n] for n in names], [(f"y{i}", v) for i, v in enumerate(outputs)])
    return check(graph, {n: arrays[int(n[1:])] for n in names}, None, tolerance, threads)


SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{i}")
    for op in OPS
    if not isinstance(op.lower, Source | Region | Meta)
    for i, sample in enumerate(op.samples())
]


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_every_op(op: Op, sample: Sample) -> None:
    values = [given(f"x{i}", a) for i, a in enumerate(sample.arrays)]
    node = apply_node(op.name, *values, **sample.attrs)
    graph = Graph.build("g", values, [(f"y{i}", v) for i, v in enumerate(node.outs)])
    check(graph, {f"x{i}": np.asarray(a) for i, a in enumerate(sample.arrays)})


# Shapes --------------------------------------------------------------------------------------------------------------

SHAPES = [(), (1,), (5,), (4099,), (1, 1), (3, 1), (1, 7), (13, 17), (2, 3, 5), (70, 2, 3), (0,), (0, 3), (3, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_maps_of_any_shape(shape: tuple[int, ...], threads: int) -> None:
    x, y = floats(*shape), floats(*shape, seed=1)
    a, b = given("x0", x), given("x1", y)
    check_ops([x, y], apply("mul", apply("tanh", a), b), apply("add", a, b), threads=threads)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s], ids=str)
@pytest.mark.parametrize("op", ["sum", "max", "prod"])
@pytest.mark.parametrize("trailing", [True, False])
def test_reductions_of_any_shape(shape: tuple[int, ...], op: str, trailing: bool) -> None:
    axes = (len(shape) - 1,) if trailing else (0,)
    if op == "max" and 0 in [shape[a] for a in axes]:
        pytest.skip("the largest of nothing")
    x = floats(*shape) * np.float32(0.1) + 1
    check_ops([x], apply(op, given("x0", x), axes=axes), tolerance=1e-4)


@pytest.mark.parametrize("shape", [(20000,), (3, 9000), (700, 30), (700, 3), (600, 600)], ids=str)
@pytest.mark.parametrize("axes", [(0,), "all"])
def test_reductions_in_several_chunks(shape: tuple[int, ...], axes: Any) -> None:
    x = floats(*shape)
    v = given("x0", x)
    over = tuple(range(len(shape))) if axes == "all" else axes
    plan = check_ops([x], apply("sum", apply("mul", v, v), axes=over), apply("max", v, axes=over), tolerance=1e-4)
    assert len(plan.launches) <= 2


@pytest.mark.parametrize("dt", ["float64", "int32", "int64", "uint8"])
def test_reductions_of_any_dtype(dt: str) -> None:
    x = integers(11, 6, high=5, dt=dt)
    for axes in ((0,), (1,), (0, 1)):
        v = given("x0", x)
        check_ops([x], apply("sum", v, axes=axes), apply("max", v, axes=axes))


def test_what_is_one_number_per_row_is_computed_once_for_its_columns() -> None:
    def fn(x: gc.Tensor, scale: gc.Tensor) -> gc.Tensor:
        return gc.sum(x / gc.sqrt(scale)[:, None], axis=0)

    x = np.random.default_rng(0).random((70, 40), np.float32)
    plan = plan_of(traced(fn, x=x, scale=x[:, 0])[0])
    loops = [s for launch in plan.launches for s in walk(launch.kernel.body) if isinstance(s, Loop)]
    assert any("'sqrt'" in str(loop.body) for loop in loops)
    assert not any("'sqrt'" in str(loop.body) for loop in loops if loop.role is Role.VECTOR)
    check_fn(fn, x=x, scale=x[:, 0])


def test_middle_axes() -> None:
    x = floats(3, 40, 5)
    check_ops([x], apply("sum", given("x0", x), axes=(1,)))
    y = floats(2, 9, 3, 4)
    v = given("x0", y)
    check_ops([y], apply("sum", v, axes=(0, 2)), apply("max", v, axes=(1,)))


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (5, 1), (3, 4, 5)], ids=str)
def test_rows_of_transposed_operands(shape: tuple[int, ...]) -> None:
    axes = tuple(range(len(shape)))[::-1]
    check_fn(lambda x: gc.softmax(gc.permute_dims(x, axes)), x=floats(*shape))


def test_rows_over_two_axes() -> None:
    check_fn(lambda x: gc.layer_norm(x, (4, 5)), x=floats(3, 4, 5))
    check_fn(lambda x: gc.layer_norm(gc.permute_dims(x, (0, 2, 1)), (4, 5)), x=floats(3, 5, 4))


def test_long_rows_keep_nothing() -> None:
    """Rows that do not fit in scratch memory are computed again."""
    check_fn(lambda x: gc.softmax(x), x=floats(1, 140_000), tolerance=1e-4)


def test_broadcasting() -> None:
    check_fn(lambda a, b, c: (a + b) * c + 1.0, a=floats(5, 1, 7), b=floats(3, 1), c=floats(7))
    check_fn(lambda a, b: gc.maximum(a, b) + gc.permute_dims(b, (1, 0)), a=floats(5, 5), b=floats(5, 5, seed=1))
    check_fn(lambda a, s: a * s, a=floats(300, 40), s=np.float32(3).reshape(()))


def test_strided_operands() -> None:
    check_fn(lambda a: a[1::2, ::3] * 2.0 + 1.0, a=floats(9, 10))
    check_fn(lambda a: gc.exp(gc.permute_dims(a, (2, 0, 1))), a=floats(3, 4, 5))
    check_fn(lambda a: gc.permute_dims(gc.exp(a), (1, 0)).reshape((12,)), a=floats(3, 4))


def test_positions_survive_merging_and_transposing() -> None:
    def fn(x: gc.Tensor) -> dict[str, gc.Tensor]:
        rows, columns = gc.iota(x.shape, 0, dtype=gc.float32), gc.iota(x.shape, 1, dtype=gc.float32)
        return {"a": x * rows + columns, "b": gc.permute_dims(rows * columns, (1, 0))}

    check_fn(fn, x=floats(6, 5))


# Joins, splits, rows by index -----------------------------------------------------------------------------------------


def test_joins_are_written_in_place() -> None:
    graph, _ = traced(lambda a, b: gc.concat([gc.exp(a), gc.tanh(b)], axis=1) * 2.0, a=floats(3, 4), b=floats(3, 5))
    assert len(plan_of(graph).launches) == 3
    check(graph, {"a": floats(3, 4), "b": floats(3, 5)})


def test_joins_of_inputs_and_of_one_value_twice() -> None:
    check_fn(lambda a: gc.concat([a, a, gc.exp(a)], axis=0), a=floats(3, 4))
    check_fn(lambda a: {"j": gc.concat([gc.exp(a), gc.exp(a)], axis=0), "e": gc.exp(a)}, a=floats(3, 4))
    check_fn(lambda a: gc.concat([gc.permute_dims(gc.exp(a), (1, 0)), gc.ones((1, 3))], axis=0), a=floats(3, 4))


def test_heads_need_no_copy() -> None:
    """Attention writes its result in the layout that the next product reads as a matrix."""

    def fn(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        q = gc.permute_dims(x.reshape((2, 5, 2, 4)), (0, 2, 1, 3))
        y = gc.scaled_dot_product_attention(q, q, q)
        return gc.permute_dims(y, (0, 2, 1, 3)).reshape((2, 5, 8)) @ w

    graph, _ = traced(fn, x=floats(2, 5, 8), w=floats(8, 8))
    assert len(plan_of(graph).launches) == 2
    check_fn(fn, x=floats(2, 5, 8), w=floats(8, 8))


@pytest.mark.parametrize("columns", [1, 6, 130])
@pytest.mark.parametrize("threads", [1, 3])
def test_gather_and_scatter(columns: int, threads: int) -> None:
    def fn(i: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        rows = gc.take(w, i) * 2.0
        return {"rows": rows, "dw": gc.grad(gc.sum(rows * rows), w)}

    check_fn(fn, i=integers(4, 5, high=7), w=floats(7, columns), tolerance=1e-4, threads=threads)


def test_take_along_other_axes() -> None:
    check_fn(lambda i, w: gc.take(w, i, axis=1), i=integers(4, high=5), w=floats(3, 5, 2))
    check_fn(lambda i, w: gc.take(w, i, axis=0), i=integers(high=5, dt="int64"), w=floats(5, 2))


@pytest.mark.parametrize("bad", [-1, 7])
def test_an_index_out_of_range_sets_a_flag(bad: int) -> None:
    def fn(i: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        rows = gc.take(w, i)
        return {"rows": rows, "dw": gc.grad(gc.sum(rows * rows), w)}

    arrays = {"i": integers(5, high=7), "w": floats(7, 3)}
    graph, _ = traced(fn, **arrays)
    arrays["i"][2] = bad
    plan = plan_of(graph)
    got = run_plan(plan, arrays)
    assert got["flags"].any()
    assert [f.code for f in plan.flags] == ["GC0420", "GC0420"]
    assert all(f.loc is not None and f.loc.file.endswith("test_lower.py") for f in plan.flags)
    np.testing.assert_array_equal(got["rows"][2], 0)
    np.testing.assert_array_equal(got["rows"][1], arrays["w"][arrays["i"][1]])


# State ----------------------------------------------------------------------------------------------------------------


def test_state_is_updated_in_place() -> None:
    x, s = floats(4, 4), floats(4, 4, seed=1)
    vx, vs = given("x", x), stored("s", s)
    graph = Graph.build("g", [vx], [], [("s", apply("add", vs, vx))])
    plan = check(graph, {"x": x}, {"s": s})
    assert len(plan.launches) == 1
    assert [a.buffer.name for a in plan.launches[0].args if a.buffer and a.writes] == ["s"]


@pytest.mark.parametrize("threads", [1, 3])
def test_one_row_of_a_state_is_written(threads: int) -> None:
    """A row that is chosen by its number: nothing else of the state is read or written."""
    row, s, at = floats(2, 1, 5), floats(2, 7, 5, seed=1), np.int32(4)
    new, old, position = given("row", row), stored("s", s), given("at", np.asarray(at))
    wide = [apply("broadcast_to", v, shape=s.shape) for v in (new, position)]
    here = apply("equal", apply("iota", shape=s.shape, axis=1, dtype=dtype("int32")), wide[1])
    graph = Graph.build("g", [new, position], [], [("s", apply("where", here, wide[0], old))])
    plan = check(graph, {"row": row, "at": np.asarray(at)}, {"s": s}, threads=threads)
    (launch,) = plan.launches
    stmts = walk(launch.kernel.body)
    (guard,) = (stmt for stmt in stmts if isinstance(stmt, If))
    assert {type(stmt) for stmt in walk(guard.body)} == {Loop, Let, Store}
    loads = [stmt.expr for stmt in stmts if isinstance(stmt, Let) and isinstance(stmt.expr, Load)]
    assert len(loads) == 2  # the position, and the new row


def test_state_that_is_read_transposed_is_copied() -> None:
    x, s = floats(4, 4), floats(4, 4, seed=1)
    vx, vs = given("x", x), stored("s", s)
    turned = apply("permute_dims", vs, axes=(1, 0))
    check(Graph.build("g", [vx], [], [("s", apply("add", turned, vx))]), {"x": x}, {"s": s})
    later = apply("permute_dims", apply("add", vs, vx), axes=(1, 0))
    check(Graph.build("g", [vx], [], [("s", later)]), {"x": x}, {"s": s})


def test_state_read_by_a_product_that_makes_the_new_state() -> None:
    x, s = floats(4, 4), floats(4, 4, seed=1)
    vx, vs = given("x", x), stored("s", s)
    new = apply("dot", vx, vs, batch=((), ()), contract=((1,), (0,)))
    check(Graph.build("g", [vx], [], [("s", new)]), {"x": x}, {"s": s})


def test_old_and_new_state_as_outputs() -> None:
    x, s = floats(4, 4), floats(4, 4, seed=1)
    vx, vs = given("x", x), stored("s", s)
    new = apply("add", vs, vx)
    check(Graph.build("g", [vx], [("old", vs), ("new", new)], [("s", new)]), {"x": x}, {"s": s})


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), -0.0])
def test_constant_arrays_of_one_number(number: float) -> None:
    x = floats(4, 3)
    v, fill = given("x0", x), apply("const", value=Literal.of(np.full((4, 3), number, np.float32)))
    check_ops([x], apply("where", apply("greater", v, apply("abs", v)), v, fill))


def test_constant_arrays() -> None:
    table = apply("const", value=Literal.of(floats(3, 4)))
    x = floats(3, 4, seed=2)
    v = given("x0", x)
    check_ops([x], apply("add", v, table), table)


@pytest.mark.parametrize("op", ["sum", "prod"])
def test_reductions_of_nothing(op: str) -> None:
    x = floats(8, 6)
    empty = apply("slice", given("x0", x), start=(1, 1), stop=(7, 1), step=(2, 2))
    check_ops([x], apply(op, empty, axes=(0, 1)), apply(op, empty, axes=(0,)), apply(op, empty, axes=(1,)))


# Determinism ----------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    def fn(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        y = gc.softmax(gc.layer_norm(x, 30, w))
        return {"y": y, "s": gc.sum(y * x), "dw": gc.grad(gc.sum(y * y), w)}

    arrays = {"x": floats(700, 30), "w": floats(30)}
    graph, _ = traced(fn, **arrays)
    plan = plan_of(graph)
    first, *others = (run_plan(plan, arrays, nthreads=n) for n in (1, 2, 5))
    for other in others:
        for name in first:
            np.testing.assert_array_equal(first[name], other[name])


def test_folding_keeps_arguments_together() -> None:
    line = "    y = select(mask, maximum(first, load(x, 10 * i, 20)), other)"
    assert folded(line, 50) == [
        "    y = select(mask,",
        "            maximum(first, load(x, 10 * i, 20)),",
        "            other)",
    ]
