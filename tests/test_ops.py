"""Every op, from its own samples: types against values, gradients against finite differences, lowering against eval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from loop_interp import Pointer, run_kernel
from op_gradients import check_gradient, gradient, inputs_for, run, weighted

from graphc.dtype import TensorType, contiguous_strides, dtype
from graphc.errors import CODES, GraphcError
from graphc.ir import Graph, attrs
from graphc.loop import Affine, Const, Kernel, Let, Load, Loop, Param, Store, Var, call
from graphc.ops import OPS, apply, apply_node, get_op
from graphc.ops.base import Map, MapContext, Move, Op, Sample
from graphc.ops.build import floats
from graphc.ops.movement import view_reshape
from graphc.ops.source import threefry2x32

CASES = [pytest.param(op, s, id=f"{op.name}-{i}") for op in OPS for i, s in enumerate(op.samples())]
GRAD_CASES = [
    case
    for case in CASES
    if callable(case.values[0].vjp)
    and case.values[1].grad
    and any(a.dtype == np.float64 for a in case.values[1].arrays)
]
STEPS = {"floor", "ceil", "round", "sign"}  # zero gradient, said by None
WITHOUT_SAMPLES = {"input", "state", "grad"}


def type_of(x: np.ndarray) -> TensorType:
    return TensorType(dtype(x.dtype), x.shape)


# Types ---------------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_sampled():
    names = [op.name for op in OPS]
    assert len(set(names)) == len(names)
    assert {op.name for op in OPS if not list(op.samples())} == WITHOUT_SAMPLES
    assert all(get_op(op.name) is op for op in OPS)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_infer_agrees_with_eval(op: Op, sample: Sample):
    before = [a.copy() for a in sample.arrays]
    results = op.eval(sample.arrays, sample.attrs)
    assert op.infer([type_of(a) for a in sample.arrays], sample.attrs) == tuple(map(type_of, results))
    for a, b in zip(sample.arrays, before, strict=True):
        np.testing.assert_array_equal(a, b, err_msg="eval changed an operand")


F34, F4, I34, B34 = (np.zeros((3, 4), np.float32), np.zeros(4, np.float32), np.zeros((3, 4), np.int32),
                     np.zeros((3, 4), bool))  # fmt: skip
REFUSED = [
    ("GC0101", "add", (F34, F4), {}, "float32[3,4] and float32[4]"),
    ("GC0101", "where", (B34, F4, F4), {}, "bool[3,4] and float32[4]"),
    ("GC0101", "concat", (F34, F4), {"axis": 0}, "float32[4]"),
    ("GC0101", "scatter_add", (np.zeros(3, np.int32), F4), {"size": 5}, "one index per row"),
    ("GC0102", "add", (F34, I34), {}, "float32[3,4] and int32[3,4]"),
    ("GC0102", "dot", (F34, I34), {"batch": ((), ()), "contract": ((0,), (0,))}, "one dtype"),
    ("GC0103", "exp", (I34,), {}, "int32[3,4]"),
    ("GC0103", "add", (B34, B34), {}, "bool[3,4]"),
    ("GC0103", "logical_and", (F34, F34), {}, "needs bool"),
    ("GC0103", "where", (F34, F34, F34), {}, "the condition of where"),
    ("GC0103", "take", (F34, F4), {"axis": 0}, "the indices of take"),
    ("GC0103", "random_bits", (I34, I34), {}, "uint32"),
    ("GC0104", "sum", (F34,), {"axes": (2,)}, "(2,)"),
    ("GC0104", "sum", (F34,), {"axes": (1, 0)}, "rising"),
    ("GC0104", "max", (np.zeros((3, 0)),), {"axes": (1,)}, "no elements"),
    ("GC0104", "permute_dims", (F34,), {"axes": (0, 0)}, "twice"),
    ("GC0104", "permute_dims", (F34,), {"axes": (1,)}, "2 dimensions"),
    ("GC0105", "reshape", (F34,), {"shape": (5, 2)}, "12 elements"),
    ("GC0106", "broadcast_to", (F34,), {"shape": (3, 5)}, "(3, 5)"),
    ("GC0106", "broadcast_to", (F34,), {"shape": (1, 4)}, "(1, 4)"),
    ("GC0107", "dot", (F34, F34), {"batch": ((), ()), "contract": ((1,), (0,))}, "float32[3,4] by float32[3,4]"),
    ("GC0108", "slice", (F4,), {"start": (0,), "stop": (5,), "step": (1,)}, "0:5:1"),
    ("GC0108", "split", (F4,), {"axis": 0, "sizes": (1, 2)}, "must be 4"),
    ("GC0109", "reshape", (F34,), {"shape": [12]}, "type tuple"),
    ("GC0109", "reshape", (F34,), {"shape": (-12,)}, "negative"),
    ("GC0109", "reshape", (F34,), {"shape": (True, 12)}, "tuple of ints"),
    ("GC0109", "dot", (F34, F34), {"batch": (1, 2), "contract": ((), ())}, "batch"),
    ("GC0109", "sum", (F34,), {}, "axes"),
    ("GC0110", "call", (F34,), {"body": Graph.build("b", [], []), "hint": "map"}, "float32[3,4]"),
    ("GC0111", "add", (F34,), {}, "2 operands"),
    ("GC0301", "grad", (F34, F34), {}, "float32[3,4]"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "op", "arrays", "settings", "says"), REFUSED)
def test_infer_refuses(code, op, arrays, settings, says):
    with pytest.raises(GraphcError) as caught:
        apply(op, *inputs_for(arrays), **settings)
    assert caught.value.code == code
    assert says in caught.value.message
    assert code in CODES


JUNK = (
    None,
    True,
    -1,
    7,
    2.5,
    "x",
    (),
    (0, 1, 2, 3),
    (-1,),
    ("x",),
    ((0,), (0,)),
    ((0,), 1, 2),
    dtype("int8"),
    Graph.build("g", [], []),
)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_odd_attributes_are_errors_of_graphc(op: Op, sample: Sample):
    """Graph text may come from anywhere: no attribute may cause anything but a clear refusal."""
    types = [type_of(a) for a in sample.arrays]
    for key in sample.attrs:
        for value in JUNK:
            try:
                op.infer(types, attrs(**{**sample.attrs, key: value}))
            except GraphcError as e:
                assert e.code.startswith("GC01")  # noqa: PT017


@pytest.mark.parametrize(("op", "bad"), [("take", 5), ("take", -1), ("scatter_add", 3), ("scatter_add", -1)])
def test_indices_out_of_range_are_refused(op: str, bad: int):
    indices, rows = np.array([0, bad], np.int32), floats(2, 3)
    arrays, at = ((rows, indices), attrs(axis=0)) if op == "take" else ((indices, rows), attrs(size=3))
    with pytest.raises(GraphcError, match=f"GC0420.* {bad} ") as caught:
        get_op(op).eval(arrays, at)
    assert caught.value.code == "GC0420"


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # the known-answer vectors of Random123 1.14, threefry2x32 with 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(key, counter, words):
    assert tuple(int(w) for w in threefry2x32(*key, *counter)) == words


def test_random_bits_counts_row_major():
    k0, k1 = (np.full((2, 3), k, np.uint32) for k in (5, 9))
    (bits,) = get_op("random_bits").eval((k0, k1), attrs())
    want = [threefry2x32(5, 9, i, 0)[0] for i in range(6)]
    np.testing.assert_array_equal(bits.ravel(), want)


def test_special_functions_against_scipy():
    special = pytest.importorskip("scipy.special")
    x = np.linspace(-40, 40, 997)
    for name, want in (("erf", special.erf(x)), ("sigmoid", special.expit(x))):
        np.testing.assert_allclose(get_op(name).eval((x,), attrs())[0], want, rtol=4e-16, atol=0)


def test_eval_is_ieee_and_silent(recwarn: pytest.WarningsRecorder):
    one, zero = np.float32([1, -1, 0]), np.float32([0, 0, 0])
    np.testing.assert_array_equal(get_op("div").eval((one, zero), attrs())[0], np.float32([np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(get_op("log").eval((one,), attrs())[0], np.float32([0, np.nan, -np.inf]))
    assert get_op("exp").eval((np.float32([100]),), attrs())[0] == np.inf
    i = np.int32([7, -(2**31)])
    np.testing.assert_array_equal(get_op("div").eval((i, np.int32([0, -1])), attrs())[0], [0, -(2**31)])
    assert not recwarn.list


def test_sums_stay_in_their_dtype():
    (total,) = get_op("sum").eval((np.full(3, 100, np.int8),), attrs(axes=(0,)))
    assert total.dtype == np.int8
    assert total == 300 - 256


def test_dot_against_einsum():
    a, b = floats(4, 2, 3, 5), floats(5, 3, 4, 2)
    (got,) = get_op("dot").eval((a, b), attrs(batch=((2, 0), (1, 2)), contract=((1, 3), (3, 0))))
    np.testing.assert_allclose(got, np.einsum("anbk,kban->ba", a, b))


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "sample"), GRAD_CASES)
def test_vjp_first_and_second_order(op: Op, sample: Sample):
    ins = inputs_for(sample.arrays)
    first = check_gradient(weighted(apply_node(op.name, *ins, **sample.attrs).outs), ins, sample.arrays)
    assert bool(first) == (op.name not in STEPS)
    if first:
        check_gradient(weighted(first), ins, sample.arrays)


def test_every_vjp_is_checked():
    checked = {case.values[0].name for case in GRAD_CASES}
    assert {op.name for op in OPS if callable(op.vjp)} == checked


@pytest.mark.parametrize("op", ["max", "min"])
def test_ties_share_the_gradient(op: str):
    x = np.array([[1.0, 2.0, 2.0], [1.0, 1.0, 2.0]])
    (v,) = inputs_for([x])
    (g,) = gradient(apply("sum", apply(op, v, axes=(1,)), axes=(0,)), [v])
    want = [[0, 0.5, 0.5], [0, 0, 1]] if op == "max" else [[1, 0, 0], [0.5, 0.5, 0]]
    np.testing.assert_array_equal(run([g], [x], [v])[0], want)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
def test_equal_operands_share_the_gradient(op: str):
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    ins = inputs_for([x, y])
    grads = run(gradient(apply("sum", apply(op, *ins), axes=(0,)), ins), [x, y], ins)
    want = [[0, 0.5, 1], [1, 0.5, 0]]
    np.testing.assert_array_equal(grads, want if op == "maximum" else want[::-1])


def test_pow_at_its_corners():
    x, y = np.array([-2.0, 0.0, 0.0]), np.array([3.0, 2.0, 0.0])
    ins = inputs_for([x, y])
    dx, dy = run(gradient(apply("sum", apply("pow", *ins), axes=(0,)), ins), [x, y], ins)
    np.testing.assert_array_equal(dx, [12, 0, 0])
    np.testing.assert_array_equal(dy[1:], [0, 0])


# Lowering ------------------------------------------------------------------------------------------------------------


def map_kernel(op: Op, types: Sequence[TensorType], out: TensorType, at) -> Kernel:
    """One loop over the elements of the result, in row-major order."""
    i = Var("i")
    lets, coords = [], []
    for axis, (d, s) in enumerate(zip(out.shape, contiguous_strides(out.shape), strict=True)):
        coord = call("mod", call("div", i, Const(s, i.dtype)), Const(max(d, 1), i.dtype))
        lets.append(Let(Var(f"c{axis}"), coord))
        coords.append(Var(f"c{axis}"))
    args = [Load(f"x{n}", Affine.of(i), t.dtype) for n, t in enumerate(types)]
    expr = op.lower.fn(args, MapContext(at, out, tuple(coords), i))
    assert expr.dtype == out.dtype
    params = [Param(f"x{n}", t.dtype) for n, t in enumerate(types)] + [Param("y", out.dtype, written=True)]
    return Kernel(op.name, tuple(params), (Loop(i, out.size, (*lets, Store("y", Affine.of(i), expr))),))


@pytest.mark.parametrize(("op", "sample"), [c for c in CASES if isinstance(c.values[0].lower, Map)])
def test_map_lowering_agrees_with_eval(op: Op, sample: Sample):
    types = [type_of(a) for a in sample.arrays]
    (out,) = op.infer(types, sample.attrs)
    memory = [np.frombuffer(bytearray(a.tobytes()), np.uint8) for a in sample.arrays]
    result = np.zeros(out.nbytes, np.uint8)
    run_kernel(map_kernel(op, types, out, sample.attrs), [Pointer(m) for m in (*memory, result)])
    (want,) = op.eval(sample.arrays, sample.attrs)
    rtol = {"float32": 1e-6, "float64": 1e-14}.get(out.dtype.name, 0)
    np.testing.assert_allclose(result.view(out.dtype.numpy).reshape(out.shape), want, rtol=rtol)


def as_view(x: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> np.ndarray:
    base = x.ravel() if x.flags.c_contiguous else x
    size = x.itemsize
    return np.lib.stride_tricks.as_strided(base.reshape(-1)[offset:], shape, [s * size for s in strides])


@pytest.mark.parametrize(("op", "sample"), [c for c in CASES if isinstance(c.values[0].lower, Move)])
def test_views_show_what_eval_computes(op: Op, sample: Sample):
    x = np.ascontiguousarray(sample.arrays[0]).reshape(sample.arrays[0].shape)
    (want,) = op.eval((x,), sample.attrs)
    placed = op.lower.view(x.shape, contiguous_strides(x.shape), sample.attrs, want.shape)
    assert placed is not None
    np.testing.assert_array_equal(as_view(x, want.shape, *placed), want)


def operands_with_strides() -> list[np.ndarray]:
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    one = np.arange(12).reshape(1, 12)
    return [
        x, x.T, x.transpose(1, 0, 2), x.transpose(0, 2, 1), x[:, :, ::2], x[:, ::2], x[::1, 1:, :], x[:1], x[:, :1],
        np.broadcast_to(x[:1], (4, 3, 4)), np.broadcast_to(one[:, :, None], (1, 12, 2)), one, one[:, 3:4],
        np.broadcast_to(np.int64(3), (2, 6)), np.int64(7).reshape(()), x[:, :0],
    ]  # fmt: skip


def factorings(size: int, length: int) -> list[tuple[int, ...]]:
    if length == 0:
        return [()] if size == 1 else []
    return [(d, *rest) for d in range(1, size + 1) if size % d == 0 for rest in factorings(size // d, length - 1)]


@pytest.mark.parametrize("x", operands_with_strides(), ids=lambda x: f"{x.shape}-{x.strides}")
def test_reshape_views_are_those_of_numpy(x: np.ndarray):
    """A view exists exactly where NumPy reshapes without a copy, and it shows the same elements."""
    shapes = [s for n in range(5) for s in factorings(x.size, n)] if x.size else [(0,), (3, 0), (2, 0, 5)]
    assert shapes
    for shape in shapes:
        placed = view_reshape(x.shape, tuple(s // x.itemsize for s in x.strides), attrs(shape=shape), shape)
        try:
            want = x.reshape(shape, copy=False)
        except ValueError:
            want = None
        assert (placed is None) == (want is None), shape
        if placed is not None:
            strides, offset = placed
            got = np.lib.stride_tricks.as_strided(x, shape, [s * x.itemsize for s in strides])
            assert offset == 0
            np.testing.assert_array_equal(got, want)
