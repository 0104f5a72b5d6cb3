"""Emitters against the loop-IR interpreter: every intrinsic and statement, vector and scalar, on every target that this
machine can run (AVX-512, AVX2, C); objects for the others are checked without running."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from backends import Args, Runner, in_c, interpret, on_cpu, runnable

from graphc.dtype import (
    DTYPES,
    DType,
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint32,
)
from graphc.errors import GraphcError, Loc
from graphc.kernels.c import CDialect
from graphc.kernels.cpu.dialect import NumbaDialect
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.emit import emit
from graphc.loop import (
    COMPARISONS,
    Acc,
    Affine,
    Ahead,
    Call,
    Const,
    Contract,
    Expr,
    If,
    Kernel,
    Let,
    Load,
    Loop,
    Operand,
    Param,
    Prefetch,
    Role,
    Scratch,
    Stmt,
    Store,
    Transpose,
    Update,
    Var,
    call,
)

i, j, n = Var("i"), Var("j"), Var("n")
N = 37  # two full vectors of 16 lanes and a rest


@pytest.fixture(scope="module", params=[*(level for level, t in BASELINES.items() if runnable(t)), "c"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = Path(tmp_path_factory.mktemp("kernels"))
    if request.param == "c":
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc) on this machine")
        return in_c(compiler, folder)
    return on_cpu(request.param, folder)


def check(run: Runner, kernel: Kernel, args: Args, nthreads: int = 1, rtol: float = 2e-6) -> list[np.ndarray]:
    """Run on copies of ``args`` both ways and compare every array."""
    ours, oracle = ([a.copy() if isinstance(a, np.ndarray) else a for a in args] for _ in range(2))
    run(kernel, ours, nthreads)
    interpret(kernel, oracle, nthreads)
    got = [a for a in ours if isinstance(a, np.ndarray)]
    for param, a, b in zip(kernel.params, ours, oracle, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6, err_msg=f"{kernel.name}: {param.name}")
    return got


def values(dtype: DType, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        return rng.normal(0, 3, count).astype(dtype.numpy)
    if dtype is bool_:
        return rng.integers(0, 2, count).astype(bool)
    info = np.iinfo(dtype.numpy)
    edge = np.array([0, 1, info.max, info.min, 2, 5], dtype.numpy)
    return np.concatenate([edge, rng.integers(info.min, info.max, count - 6, dtype.numpy, endpoint=True)])


# Intrinsics ----------------------------------------------------------------------------------------------------------

ARITHMETIC = {"add": 2, "sub": 2, "mul": 2, "div": 2, "neg": 1, "abs": 1, "minimum": 2, "maximum": 2, "sign": 1}
FLOAT = {"exp": 1, "log": 1, "sqrt": 1, "rsqrt": 1, "tanh": 1, "erf": 1, "sin": 1, "cos": 1, "sigmoid": 1, "pow": 2}
ROUND = {"floor": 1, "ceil": 1, "round": 1}
LOGIC = {"and": 2, "or": 2, "xor": 2, "not": 1}


def intrinsics(dtype: DType) -> dict[str, int]:
    """The intrinsics of the IR that take operands of ``dtype``, with their number of operands."""
    compare = dict.fromkeys(sorted(COMPARISONS), 2)
    if dtype is bool_:
        return LOGIC | compare
    integer = LOGIC | {"shl": 2, "shr": 2}
    return ARITHMETIC | {"mod": 2} | compare | (FLOAT | ROUND | {"fma": 3} if dtype.is_float else integer)


def every_intrinsic(dtype: DType, role: Role) -> Kernel:
    """out_<name>[i] = name(x[i], y[i], z[i]) for each intrinsic, and select."""
    operands = tuple(Load(b, Affine.of(i), dtype) for b in "xyz")
    table = {name: call(name, *operands[:arity]) for name, arity in intrinsics(dtype).items()}
    table["select"] = call("select", call("lt", *operands[:2]), operands[1], operands[2])
    stores = tuple(Store(f"out_{name}", Affine.of(i), e) for name, e in table.items())
    params = (
        *(Param(b, dtype) for b in "xyz"),
        *(Param(f"out_{name}", e.dtype, written=True) for name, e in table.items()),
    )
    return Kernel(f"every_{dtype}", params, (Loop(i, N, stores, role),))


@pytest.mark.parametrize("role", [Role.VECTOR, Role.SERIAL], ids=["vector", "scalar"])
@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if not d.is_half], ids=str)
def test_every_intrinsic(run: Runner, dtype: DType, role: Role) -> None:
    kernel = every_intrinsic(dtype, role)
    inputs = [values(dtype, N, seed) for seed in range(3)]
    if not dtype.is_float and dtype is not bool_:
        shift = np.arange(N) % (8 * dtype.itemsize)
        inputs[1] = np.where(np.arange(N) % 2, inputs[1], shift).astype(dtype.numpy)
    outputs = [np.zeros(N, p.dtype.numpy) for p in kernel.params[3:]]
    ours, oracle = ([a.copy() for a in (*inputs, *outputs)] for _ in range(2))
    run(kernel, ours, 1)
    interpret(kernel, oracle, 1)
    for param, a, b in zip(kernel.params, ours, oracle, strict=True):
        checked = np.ones(N, bool)
        if param.name in ("out_shl", "out_shr"):
            checked = (inputs[1] >= 0) & (inputs[1] < 8 * dtype.itemsize)
        if param.name == "out_fma":
            b = (inputs[0].astype(np.longdouble) * inputs[1] + inputs[2]).astype(b.dtype)
        rtol = 3e-7 if dtype is float32 else 3e-14
        np.testing.assert_allclose(a[checked], b[checked], rtol=rtol, err_msg=f"{kernel.name}: {param.name}")


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
def test_casts(run: Runner, source: DType) -> None:
    x = Load("x", Affine.of(i), source)
    params = [Param("x", source)] + [Param(f"y_{d}", d, written=True) for d in DTYPES.values()]
    stores = tuple(Store(f"y_{d}", Affine.of(i), Call("cast", (x,), d)) for d in DTYPES.values())
    kernel = Kernel(f"casts_{source}", tuple(params), (Loop(i, N, stores, Role.VECTOR),))
    data = values(source, N)
    data = np.abs(data) if source.is_float else data  # float to unsigned is only defined in range
    check(run, kernel, [data, *(np.zeros(N, d.numpy) for d in DTYPES.values())])


@pytest.mark.parametrize("narrow", [float16, bfloat16], ids=str)
def test_16_bit_floats_round_to_nearest_even(run: Runner, narrow: DType) -> None:
    """All values are exact in float32; what is half way between two of them, or beside that, rounds as it should."""
    every = np.arange(1 << 16, dtype=np.uint16).view(narrow.numpy)
    wide = every.astype(np.float32)
    bits = wide.view(np.uint32)
    step = np.uint32(1 << (13 if narrow == float16 else 16))
    near = [bits + step // 2 + np.uint32(d) for d in (0, 1)] + [bits + step // 2 - np.uint32(1)]
    inputs = np.concatenate([wide, *(b.view(np.float32) for b in near), np.float32([65519.9, 65520, 1e38, 2.9e-8])])
    count = len(inputs)
    params = (
        Param("x", float32),
        Param("h", narrow),
        Param("y", narrow, written=True),
        Param("w", float32, written=True),
    )
    body = (Store("y", Affine.of(i), Call("cast", (Load("x", Affine.of(i), float32),), narrow)),)
    widen = (Store("w", Affine.of(j), Call("cast", (Load("h", Affine.of(j), narrow),), float32)),)
    for role in (Role.VECTOR, Role.SERIAL):
        rounded, widened = np.zeros(count, narrow.numpy), np.zeros(1 << 16, np.float32)
        kernel = Kernel(f"halves_{role.value}", params, (Loop(i, count, body, role), Loop(j, 1 << 16, widen, role)))
        run(kernel, [inputs, every, rounded, widened], 1)
        with np.errstate(all="ignore"):
            want = inputs.astype(narrow.numpy)
        nan = np.isnan(inputs)
        np.testing.assert_array_equal(rounded.view(np.uint16)[~nan], want.view(np.uint16)[~nan])
        assert np.isnan(rounded[nan].astype(np.float32)).all()
        np.testing.assert_array_equal(widened, wide)


def test_float_to_integer_saturates(run: Runner) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e20, -1e20, -1.9, 2.9, 0.0], np.float32)
    targets = (int8, int16, int32, int64, uint8, uint32)
    params = [Param("x", float32)] + [Param(f"y_{d}", d, written=True) for d in targets]
    cast = {d: Call("cast", (Load("x", Affine.of(i), float32),), d) for d in targets}
    stores = tuple(Store(f"y_{d}", Affine.of(i), e) for d, e in cast.items())
    out = [np.zeros(8, d.numpy) for d in targets]
    run(Kernel("saturate", tuple(params), (Loop(i, 8, stores, Role.VECTOR),)), [x, *out], 1)
    for d, y in zip(targets, out, strict=True):
        info = np.iinfo(d.numpy)
        negative = [info.min, -1] if info.min < 0 else [0, 0]
        want = [0, info.max, negative[0], info.max, negative[0], negative[1], 2, 0]
        np.testing.assert_array_equal(y, np.array(want, d.numpy))


def test_threefry_vectors(run: Runner) -> None:
    words = tuple(Load(b, Affine.of(i), uint32) for b in "abc")
    store = Store("y", Affine.of(i), call("threefry", Const(7, uint32), *words))
    params = (*(Param(b, uint32) for b in "abc"), Param("y", uint32, written=True))
    kernel = Kernel("threefry", params, (Loop(i, N, (store,), Role.VECTOR),))
    check(run, kernel, [*(values(uint32, N, s) for s in range(3)), np.zeros(N, np.uint32)])


# Loops and memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "offset"), [(1, 3), (3, 0), (-1, N), (-2, 3 * N), (0, 5)])
@pytest.mark.parametrize("dtype", [float32, float16, bfloat16, int64, bool_, int8], ids=str)
def test_strided_access(run: Runner, dtype: DType, stride: int, offset: int) -> None:
    x = Load("x", Affine.of(i, stride, offset), dtype)
    body: tuple[Stmt, ...] = (Store("y", Affine.of(i), x), Store("z", Affine.of(i, -2, 2 * N), x))
    params = (Param("x", dtype), Param("y", dtype, written=True), Param("z", dtype, written=True))
    kernel = Kernel("strided", params, (Loop(i, N, body, Role.VECTOR),))
    check(run, kernel, [values(dtype, 4 * N), *(np.zeros(4 * N, dtype.numpy) for _ in range(2))])


@pytest.mark.parametrize("combine", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [float32, float64, int32, int64, uint8], ids=str)
def test_row_reductions(run: Runner, dtype: DType, combine: str) -> None:
    """Lengths around the vector width, known and unknown to the compiler."""
    acc = Var("acc", dtype)
    rows = []
    for row, (stop, unroll) in enumerate([(1, 1), (16, 1), (37, 4), (64, 4), (100, 2), (n, 4)]):
        update = Update(Var(f"acc{row}", dtype), Load("x", Affine.of(Var(f"i{row}"), 1, row), dtype))
        loop = Loop(Var(f"i{row}"), stop, (update,), Role.VECTOR, unroll=unroll)
        rows += [Acc(update.var, combine), loop, Store("y", Affine(row), update.var)]
    params = (Param("x", dtype), Param("n", int64, scalar=True), Param("y", dtype, written=True))
    x = (1 + values(dtype, 128) / 16 if dtype.is_float else values(dtype, 128)).astype(dtype.numpy)
    assert acc.dtype is dtype
    for length in (0, 5, 90):
        check(run, Kernel(f"{combine}_{dtype}", params, tuple(rows)), [x, length, np.zeros(6, dtype.numpy)], rtol=1e-5)


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_sums_of_products(run: Runner, dtype: DType) -> None:
    """In lanes with and without a rest, and one by one."""
    rows = []
    for row, (stop, role) in enumerate([(64, Role.VECTOR), (37, Role.VECTOR), (n, Role.VECTOR), (5, Role.SERIAL)]):
        at, acc = Var(f"i{row}"), Var(f"acc{row}", dtype)
        update = Update(acc, Load("x", Affine.of(at, 1, row), dtype), Load("x", Affine.of(at), dtype))
        rows += [Acc(acc, "sum"), Loop(at, stop, (update,), role, unroll=2), Store("y", Affine(row), acc)]
    params = (Param("x", dtype), Param("n", int64, scalar=True), Param("y", dtype, written=True))
    check(run, Kernel(f"dots_{dtype}", params, tuple(rows)), [values(dtype, 128), 23, np.zeros(4, dtype.numpy)])


def test_nan_reaches_the_maximum(run: Runner) -> None:
    acc = Var("acc", float32)
    body = (Acc(acc, "max"), Loop(i, N, (Update(acc, Load("x", Affine.of(i), float32)),), Role.VECTOR))
    x = values(float32, N)
    x[11] = np.nan
    params = (Param("x", float32), Param("y", float32, written=True))
    out = check(run, Kernel("nan", params, (*body, Store("y", Affine(), acc))), [x, np.zeros(1, np.float32)])
    assert np.isnan(out[1][0])


def test_mixed_element_sizes(run: Runner) -> None:
    """float64, int64, bool and int8 lanes beside float32 ones, and the loop variable as a value."""
    wide = Var("wide", float64)
    flag = Var("flag", bool_)
    body = (
        Let(wide, Call("cast", (Load("x", Affine.of(i), float32),), float64)),
        Let(flag, call("gt", i, Load("k", Affine.of(i), int64))),
        Store("y", Affine.of(i), call("select", flag, wide, Const(0.5, float64))),
        Store("z", Affine.of(i), call("add", Load("b", Affine.of(i), int8), Call("cast", (flag,), int8))),
        Store("f", Affine.of(i), call("not", flag)),
    )
    params = (
        Param("x", float32), Param("k", int64), Param("b", int8), Param("y", float64, written=True),
        Param("z", int8, written=True), Param("f", bool_, written=True),
    )  # fmt: skip
    args = [values(float32, N), np.arange(N)[::-1].copy(), values(int8, N)]
    args += [np.zeros(N, t) for t in (np.float64, np.int8, bool)]
    check(run, Kernel("mixed", params, (Loop(i, N, body, Role.VECTOR),)), args)


def softmax_rows(rows: int, columns: int) -> Kernel:
    """y = softmax(x) by rows through scratch memory, and the count of positive entries above ``limit`` rows."""
    top, total, e = Var("top", float32), Var("total", float32), Var("e", float32)
    x = Load("x", Affine.of(i, columns) + Affine.of(j), float32)
    shifted = call("exp", call("sub", x, top))
    work: tuple[Stmt, ...] = (
        Acc(top, "max"),
        Loop(j, columns, (Update(top, x),), Role.VECTOR, unroll=2),
        Acc(total, "sum"),
        Loop(
            Var("j2"),
            columns,
            (
                Let(e, _rename(shifted, j, Var("j2"))),
                Store("row", Affine.of(Var("j2")), e),
                Update(total, e),
            ),
            Role.VECTOR,
        ),
        Let(Var("scale", float32), call("div", Const(1.0, float32), total)),
        Loop(
            Var("j3"),
            columns,
            (
                Store(
                    "y",
                    Affine.of(i, columns) + Affine.of(Var("j3")),
                    call("mul", Load("row", Affine.of(Var("j3")), float32), Var("scale", float32)),
                ),
            ),
            Role.VECTOR,
        ),
        If(call("lt", i, n), (Store("seen", Affine.of(i), Const(True, bool_)),)),
    )
    params = (
        Param("x", float32, comment=f"float32[{rows},{columns}]"), Param("y", float32, written=True),
        Param("seen", bool_, written=True), Param("n", int64, scalar=True),
    )  # fmt: skip
    scratch = (Scratch("pad", int8, 3), Scratch("row", float32, columns))
    lines = (Loc("/home/user/net.py", 12),)
    return Kernel("softmax", params, (Loop(i, rows, work, Role.PARALLEL),), scratch, lines, "rows of softmax")


def _rename(expr: Expr, old: Var, new: Var) -> Expr:
    if isinstance(expr, Load):
        terms = tuple((new if v == old else v, c) for v, c in expr.index.terms)
        return Load(expr.buffer, Affine(expr.index.offset, terms), expr.dtype)
    if isinstance(expr, Call):
        return Call(expr.name, tuple(_rename(a, old, new) for a in expr.args), expr.dtype)
    return expr


def test_threads_share_rows_and_agree_to_the_bit(run: Runner) -> None:
    kernel = softmax_rows(10, 45)
    x = values(float32, 450)
    args = [x, np.zeros(450, np.float32), np.zeros(10, bool), 4]
    results = [check(run, kernel, args, nthreads) for nthreads in (1, 2, 3, 12)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_steps_and_negative_coefficients(run: Runner) -> None:
    inner = Loop(j, Var("stop"), (Store("y", Affine.of(j, -1, 99), Call("cast", (i,), int32)),), start=i, step=3)
    body = (Let(Var("stop"), call("minimum", call("add", i, Const(7, int64)), Const(100, int64))), inner)
    kernel = Kernel("steps", (Param("y", int32, written=True),), (Loop(i, 95, body, Role.PARALLEL),))
    check(run, kernel, [np.zeros(100, np.int32)])


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("m", "columns", "k"), [(1, 1, 1), (5, 33, 9), (26, 70, 31), (12, 32, 0)])
def test_contract(run: Runner, m: int, columns: int, k: int, accumulate: bool) -> None:
    """A is stored transposed, all matrices sit inside wider ones, k is known only at run time."""
    for dtype in (float32, float64):
        stmt = Contract(
            Operand("c", Affine(2), columns + 5), Operand("a", Affine(1), 1, m + 2),
            Operand("b", Affine(3), columns + 4), m, columns, n, dtype, accumulate,
        )  # fmt: skip
        params = (Param("a", dtype), Param("b", dtype), Param("c", dtype, written=True), Param("n", int64, scalar=True))
        sizes = [(k + 1) * (m + 2) + 6, (k + 1) * (columns + 4) + 6, m * (columns + 5) + 6]
        arrays = [values(dtype, size, s) for s, size in enumerate(sizes)]
        kernel = Kernel(f"contract_{dtype}_{m}_{columns}_{accumulate}", params, (stmt,))
        check(run, kernel, [*arrays, k], rtol=1e-4 if dtype is float32 else 1e-11)


@pytest.mark.parametrize(("m", "columns"), [(1, 1), (32, 48), (16, 5), (19, 37), (40, 0)])
def test_transpose(run: Runner, m: int, columns: int) -> None:
    """Both matrices sit inside wider ones; the number of columns is known only at run time."""
    for source, dtype in ((float32, float32), (float64, float64), (bfloat16, float32)):
        stmt = Transpose(Operand("c", Affine(2), m + 5), Operand("a", Affine(1), columns + 3), m, n, dtype, source)
        params = (Param("a", source), Param("c", dtype, written=True), Param("n", int64, scalar=True))
        arrays = [values(source, m * (columns + 3) + 6, 1), values(dtype, (columns + 1) * (m + 5) + 6, 2)]
        check(run, Kernel(f"transpose_{source}_{m}_{columns}", params, (stmt,)), [*arrays, columns])


def test_prefetch_changes_nothing(run: Runner) -> None:
    """Lines that are there and lines that are not, for each level of cache."""
    body = (
        *(Prefetch("x", Affine.of(i, 16, offset), level) for level in (1, 2) for offset in (0, 1 << 40)),
        Store("y", Affine.of(i), Load("x", Affine.of(i), float32)),
    )
    params = (Param("x", float32), Param("y", float32, written=True))
    check(run, Kernel("prefetch", params, (Loop(i, 7, body),)), [values(float32, 7, 1), values(float32, 7, 2)])


@pytest.mark.parametrize("rows", [3, 12])
@pytest.mark.parametrize("depth", [1, 7, 200])
def test_memory_ahead_of_a_product_changes_nothing(run: Runner, rows: int, depth: int) -> None:
    """Blocks that are there and one that is not, more lines than the product has steps, and fewer."""
    ahead = tuple(Ahead("b", Affine(offset), 40, 5, 40, float32) for offset in (0, 8, 1 << 40))
    a, b, c = Operand("a", Affine(), 1, rows), Operand("b", Affine(), 40), Operand("c", Affine(), 32)
    stmt = Contract(c, a, b, rows, 32, depth, float32, ahead=ahead)
    params = (Param("a", float32), Param("b", float32), Param("c", float32, written=True))
    arrays = [values(float32, size, seed) for seed, size in enumerate((depth * rows, depth * 40, rows * 32))]
    check(run, Kernel(f"ahead_{rows}_{depth}", params, (stmt,)), arrays, rtol=1e-4)


@pytest.mark.parametrize("fetched", [0, 5, 18, 1000])
def test_memory_ahead_of_repeats_changes_nothing(run: Runner, fetched: int) -> None:
    """Each of 2 × 3 repeats fetches as many rows, or none; they are more than there are steps, or leave a rest."""
    repeats, depth, rows = ((2, 3 * 28 * 5, 3 * 28 * 32), (3, 28 * 5, 28 * 32)), 28, 5
    a, b, c = Operand("a", Affine(), 1, rows), Operand("b", Affine(), 32), Operand("c", Affine(), 32)
    ahead = tuple(Ahead("b", Affine(offset), 16, fetched, 16, float32) for offset in (8, 1 << 40))
    stmt = Contract(c, a, b, rows, 32, depth, float32, repeats=repeats, ahead=ahead)
    params = (Param("a", float32), Param("b", float32), Param("c", float32, written=True))
    arrays = [values(float32, size, seed) for seed, size in enumerate((6 * depth * rows, 6 * depth * 32, rows * 32))]
    check(run, Kernel(f"ahead_repeats_{fetched}", params, (stmt,)), arrays, rtol=1e-4)


# Text ----------------------------------------------------------------------------------------------------------------


def test_names_that_mean_something_to_the_target(run: Runner) -> None:
    names = ("exp", "for", "int", "x.y", "x_y", "lambda", "vload", "2nd")
    stores = tuple(Store(name, Affine.of(i), Const(k, int32)) for k, name in enumerate(names))
    kernel = Kernel("names", tuple(Param(name, int32, written=True) for name in names), (Loop(i, 3, stores),))
    check(run, kernel, [np.zeros(3, np.int32) for _ in names])


def test_names_that_the_walk_derives_are_free(run: Runner) -> None:
    acc = Var("i_mask", float32)
    update = Update(acc, Load("i_full", Affine.of(i), float32))
    body = (Acc(acc, "sum"), Loop(i, n, (update,), Role.VECTOR), Store("i_mask_lanes", Affine(), acc))
    params = (Param("i_full", float32), Param("n", int64, scalar=True), Param("i_mask_lanes", float32, written=True))
    check(run, Kernel("derived", params, body), [values(float32, N), N, np.zeros(1, np.float32)])


def test_blocks_with_nothing_in_them(run: Runner) -> None:
    body = (
        Loop(i, 3, ()),
        Loop(j, n, (), Role.VECTOR),
        If(call("lt", n, Const(0, int64)), (Loop(Var("inner"), 2, ()),)),
        Store("y", Affine(), n),
    )
    params = (Param("n", int64, scalar=True), Param("y", int64, written=True))
    check(run, Kernel("nothing", params, body), [N, np.zeros(1, np.int64)])


def test_names_of_block_products_are_free(run: Runner) -> None:
    """Variables may have the names that the target gives to its microkernels."""
    a, b, c = (Operand(name, Affine(), 16) for name in ("product1", "j_", "transpose_block"))
    product = Var("product", float32)
    body = (
        Let(product, Const(2, float32)),
        Contract(c, a, b, 4, 16, 16, float32),
        Contract(c, a, b, 4, 16, 16, float32, accumulate=True),
        Transpose(Operand("t", Affine(), 4), Operand("transpose_block", Affine(), 16), 4, 16, float32, float32),
        Store("transpose_block", Affine(), product),
    )
    names = ("product1", "j_", "transpose_block", "t")
    written = ("transpose_block", "t")
    params = tuple(Param(name, float32, written=name in written) for name in names)
    args: Args = [values(float32, count, seed) for seed, count in enumerate((64, 256, 64, 64))]
    check(run, Kernel("products", params, body), args, rtol=1e-4)


def test_text_is_for_readers() -> None:
    for text in (
        emit(softmax_rows(4, 20), NumbaDialect(BASELINES["x86-64-v4"]), "gc_0"),
        emit(softmax_rows(4, 20), CDialect(), "gc_0"),
    ):
        assert "softmax: rows of softmax" in text
        assert "from net.py:12" in text
        assert "/home" not in text
        assert "float32[4,20]" in text
        assert max(map(len, text.splitlines())) <= 120


def test_storing_lanes_to_one_element_is_refused() -> None:
    body = (Store("y", Affine(), Load("x", Affine.of(i), float32)),)
    kernel = Kernel("race", (Param("x", float32), Param("y", float32, written=True)), (Loop(i, 9, body, Role.VECTOR),))
    with pytest.raises(GraphcError, match="GC0001"):
        emit(kernel, NumbaDialect(BASELINES["x86-64-v4"]), "gc_0")


@pytest.mark.parametrize("to", [int8, int16, uint8, float16, bfloat16, bool_], ids=str)
def test_a_narrow_rest_leaves_its_neighbours(run: Runner, to: DType) -> None:
    """The last vector of a loop may have one element: then no more than its bytes are written."""
    source = int32 if to.is_integer else float32
    stop, x = Var("stop"), Load("x", Affine.of(j), source)
    narrowed = call("gt", x, Const(0.0, source)) if to == bool_ else Call("cast", (x,), to)
    body: list[Stmt] = [Let(stop, Const(33, int64))]
    for at, size in enumerate((1, 9, 17, stop)):
        body.append(Loop(j, size, (Store("y", Affine.of(j, offset=40 * at), narrowed),), Role.VECTOR))
    kernel = Kernel("narrow", (Param("x", source), Param("y", to, written=True)), tuple(body))
    check(run, kernel, [np.arange(1, 41).astype(source.numpy), np.ones(160, to.numpy)])
