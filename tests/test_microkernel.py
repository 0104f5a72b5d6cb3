"""The block product and the objects around it: every remainder at every width, self-contained and reproducible code."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from backends import in_c, runnable
from native import aligned, elf_symbols, load_objects

import graphc.kernels.cpu.build as build
from graphc.dtype import DTYPES, DType, bfloat16, bool_, float32, float64, int32
from graphc.kernels.cpu.build import Compiled, compile_kernels, machine, optimise, team_object
from graphc.kernels.cpu.frontend import lower
from graphc.kernels.cpu.target import BASELINES, PAIRS, CpuTarget, host, with_words
from graphc.loop import Acc, Affine, Call, Contract, Kernel, Load, Loop, Operand, Param, Role, Store, Update, Var, call

RUNNABLE = [level for level, target in BASELINES.items() if runnable(target)]


def product(m: int, n: int, k: int, dtype: DType = float32, accumulate: bool = False, packed: bool = False) -> Kernel:
    """C[m,n] (+)= A[m,k] B[k,n], row-major and dense, or A packed as [k][m]."""
    a = Operand("a", Affine(), 1, m) if packed else Operand("a", Affine(), k, 1)
    stmt = Contract(Operand("c", Affine(), n), a, Operand("b", Affine(), n), m, n, k, dtype, accumulate)
    return Kernel(
        f"product_{m}_{n}_{k}", (Param("a", dtype), Param("b", dtype), Param("c", dtype, written=True)), (stmt,)
    )


def shapes(target: CpuTarget, dtype: DType) -> list[tuple[int, int, int]]:
    """Below, at and past the tile in every direction."""
    rows, columns = target.tile(dtype)
    ms, ns = (1, 2, rows - 1, rows, 2 * rows + 1), (1, columns - 1, columns, 2 * columns + 3)
    return [(m, n, 1 + (m * n) % 19) for m in ms for n in ns]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("level", RUNNABLE)
def test_every_remainder(level: str, dtype: DType, tmp_path: Path) -> None:
    target = BASELINES[level]
    cases = [(*s, bool(q % 2)) for q, s in enumerate(shapes(target, dtype))]
    kernels = [product(m, n, k, dtype, accumulate) for m, n, k, accumulate in cases]
    built = compile_kernels(kernels, target, tmp_path)
    native = load_objects([b.object for b in built])
    rng = np.random.default_rng(0)
    for (m, n, k, accumulate), b in zip(cases, built, strict=True):
        a, x = rng.normal(size=(m, k)).astype(dtype.numpy), rng.normal(size=(k, n)).astype(dtype.numpy)
        guarded = aligned(m * n + 32, dtype.numpy)  # what lies behind C must survive
        guarded[:] = 7
        c = guarded[: m * n].reshape(m, n)
        native.run(b.symbol, [a, x, c])
        want = a.astype(np.float64) @ x + 7 * accumulate
        np.testing.assert_allclose(c, want, rtol=1e-5 if dtype is float32 else 1e-13, atol=1e-5)
        assert (guarded[m * n :] == 7).all()


@pytest.mark.parametrize("level", RUNNABLE)
def test_sums_over_repeats(level: str, tmp_path: Path) -> None:
    """Further loops of the sum; in the second of each pair A advances by a row in the last one, which reads it once."""
    target = BASELINES[level]
    m, n, k = 4, target.lanes(float32) + 3, 3
    cases = [((2, 40, 60),), ((3, k, 60),), ((2, 50, 200), (4, 7, 60)), ((2, 50, 200), (3, k, 60))]
    kernels = []
    for repeats in cases:
        a, b, c = Operand("a", Affine(), k, 1), Operand("b", Affine(), n), Operand("c", Affine(), n)
        stmt = Contract(c, a, b, m, n, k, float32, repeats=repeats)
        params = (Param("a", float32), Param("b", float32), Param("c", float32, written=True))
        kernels.append(Kernel("repeats", params, (stmt,)))
    built = compile_kernels(kernels, target, tmp_path)
    native = load_objects([b.object for b in built])
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=200).astype(np.float32), rng.normal(size=600).astype(np.float32)
    for repeats, made in zip(cases, built, strict=True):
        assert ("shared=True" in made.source) == (repeats[-1][1] == k)
        want = np.zeros((m, n))
        for at in np.ndindex(*(count for count, _, _ in repeats)):
            in_a, in_b = (sum(i * r[side] for i, r in zip(at, repeats, strict=True)) for side in (1, 2))
            want += a[in_a : in_a + m * k].reshape(m, k).astype(float) @ b[in_b : in_b + k * n].reshape(k, n)
        c = aligned(m * n, np.float32)
        native.run(made.symbol, [a, b, c])
        np.testing.assert_allclose(c.reshape(m, n), want, rtol=1e-5, atol=1e-5)


def test_memory_past_the_columns_is_not_read(tmp_path: Path) -> None:
    """The last row of B and C ends where its page ends: reading a whole vector there would fault."""
    level = RUNNABLE[0]
    built = compile_kernels([product(3, 5, 4, accumulate=True)], BASELINES[level], tmp_path)[0]
    native = load_objects([built.object])
    a, b, c = (at_page_end(size) for size in (12, 20, 15))
    for x in (a, b, c):
        x[:] = np.arange(len(x))
    want = c.reshape(3, 5) + a.reshape(3, 4) @ b.reshape(4, 5)
    native.run(built.symbol, [a, b, c])
    np.testing.assert_array_equal(c.reshape(3, 5), want)


def at_page_end(size: int) -> np.ndarray:
    """float32 elements directly before an unreadable page."""
    page = mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, 2 * page), np.uint8)
    mprotect = ctypes.CDLL(None).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(memory.ctypes.data + page, page, 0) == 0
    return memory[page - 4 * size : page].view(np.float32)


# Objects -------------------------------------------------------------------------------------------------------------


def row_sums(n: int = 100) -> Kernel:
    """y[i] = sum exp(x[i, :]): the smallest kernel with a prologue, a vector loop, a tail and a function."""
    i, j, total = Var("i"), Var("j"), Var("total", float32)
    term = call("exp", Load("x", Affine.of(i, n) + Affine.of(j), float32))
    row = (Acc(total, "sum"), Loop(j, n, (Update(total, term),), Role.VECTOR), Store("y", Affine.of(i), total))
    params = (Param("x", float32), Param("y", float32, written=True))
    return Kernel(f"row_sums_{n}", params, (Loop(i, 8, row, Role.PARALLEL),))


@pytest.mark.parametrize("backend", ["native", "c"])
def test_pairs_of_bfloat16(backend: str, tmp_path: Path) -> None:
    """A and B hold words of two bfloat16 each, side by side along k; the sums are float32."""
    rng = np.random.default_rng(5)
    m, n, k = 13, 37, 18  # words along k
    a, b = (rng.standard_normal(shape).astype(bfloat16.numpy) for shape in ((m, k, 2), (k, n, 2)))
    want = np.einsum("mkp,knp->mn", *(x.astype(np.float64) for x in (a, b)))
    stmt = Contract(Operand("c", Affine(), n), Operand("a", Affine(), k), Operand("b", Affine(), n), m, n, k, float32,
                    words=bfloat16)  # fmt: skip
    kernel = Kernel("pairs", (Param("a", int32), Param("b", int32), Param("c", float32, written=True)), (stmt,))
    c = aligned(m * n, np.float32).reshape(m, n)
    words = [x.view(np.int32)[..., 0] for x in (a, b)]
    if backend == "c":
        in_c(shutil.which("cc") or pytest.skip("no C compiler (cc) on this machine"), tmp_path)(kernel, [*words, c], 1)
    else:
        target = replace(BASELINES["x86-64-v4"], features=(*BASELINES["x86-64-v4"].features, PAIRS))
        if not runnable(target):
            pytest.skip("this machine has no AVX512-BF16")
        (built,) = compile_kernels([kernel], target, tmp_path)
        load_objects([built.object]).run(built.symbol, [*words, c])
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    not with_words(host(), [bfloat16]).block(bfloat16), reason="this machine has no AMX, or does not let us use it"
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_blocks_on_amx(accumulate: bool, tmp_path: Path) -> None:
    """One block and several; steps along k with and without a rest, and none; what lies around C survives."""
    target, rng = with_words(host(), [bfloat16]), np.random.default_rng(7)
    for m, n, k in ((32, 32, 16), (64, 32, 40), (32, 64, 7), (32, 32, 0), (31, 32, 16)):
        a, b = (rng.standard_normal(shape).astype(bfloat16.numpy) for shape in ((m, k + 3, 2), (k, n + 5, 2)))
        stmt = Contract(Operand("c", Affine(), n + 2), Operand("a", Affine(), k + 3), Operand("b", Affine(), n + 5),
                        m, n, k, float32, accumulate, words=bfloat16)  # fmt: skip
        params = (Param("a", int32), Param("b", int32), Param("c", float32, written=True))
        (built,) = compile_kernels([Kernel("blocks", params, (stmt,))], target, tmp_path)
        assert elf_symbols(built.object) == (62, {built.symbol: True})
        c = aligned(m * (n + 2), np.float32).reshape(m, n + 2)
        c[:] = 7
        load_objects([built.object]).run(built.symbol, [*(x.view(np.int32)[..., 0] for x in (a, b)), c])
        want = np.einsum("mkp,knp->mn", a[:, :k].astype(np.float64), b[:, :n].astype(np.float64)) + 7 * accumulate
        np.testing.assert_allclose(c[:, :n], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(c[:, n:], 7)


def halves() -> Kernel:
    """Each type to 16-bit floats and back, in vectors with a rest and one by one."""
    i, types = Var("i"), list(DTYPES.values())
    loads = {d: Load(f"x_{d}", Affine.of(i), d) for d in types}
    pairs = [(a, b) for a in types for b in types if a.is_half or b.is_half]
    stores = tuple(Store(f"y_{a}_{b}", Affine.of(i), Call("cast", (loads[a],), b)) for a, b in pairs if b != bool_)
    params = [Param(f"x_{d}", d) for d in types] + [Param(f"y_{a}_{b}", b, written=True) for a, b in pairs]
    loops = tuple(Loop(i, 37, stores, role) for role in (Role.VECTOR, Role.SERIAL))
    return Kernel("halves", tuple(params), loops)


@pytest.mark.parametrize("level", BASELINES)
def test_objects_need_nothing_from_outside(level: str, tmp_path: Path) -> None:
    number = 183 if level == "neon" else 62  # EM_AARCH64, EM_X86_64
    for built in compile_kernels([row_sums(), product(13, 40, 9), halves()], BASELINES[level], tmp_path):
        assert elf_symbols(built.object) == (number, {built.symbol: True})
    kind, symbols = elf_symbols(team_object(BASELINES[level]))
    assert kind == number
    assert {s for s, defined in symbols.items() if not defined} == {
        "sched_yield", "sched_getcpu", "syscall", "clock_gettime",
    }  # fmt: skip
    assert {s for s, defined in symbols.items() if defined} == {"gc_run", "gc_worker", "gc_stop"}


def test_tiles_live_in_registers() -> None:
    """On every target the k loop is multiply-adds on vectors, with nothing spilled to the stack."""
    want = {
        "x86-64-v4": ("vfmadd231ps", "%zmm", 24),
        "x86-64-v3": ("vfmadd231ps", "%ymm", 12),
        "neon": ("fmla", ".4s", 24),
    }
    for level, (instruction, register, count) in want.items():
        target = BASELINES[level]
        rows, columns = target.tile(float32)
        text = assembly(product(rows, columns, 256, packed=True), target)
        loop = text[text.index("tile_float32_set") :]
        lines = [line for line in loop.splitlines() if instruction in line and register in line]
        assert len(lines) == count, level
        body = loop[loop.rindex("LBB", 0, loop.index(instruction)) : loop.rindex(instruction)]
        assert not re.search(r"\br?sp\b", body), level


def assembly(kernel: Kernel, target: CpuTarget) -> str:
    text = lower(build.source_of(kernel, target), "gc_" + build.digest_of(kernel, target))
    return str(machine(target).emit_assembly(optimise(text, target)))


def test_bytes_are_equal_in_every_process(tmp_path: Path) -> None:
    here = compile_kernels([row_sums(), product(13, 40, 9)], BASELINES["x86-64-v3"], tmp_path / "here")
    script = (
        "import sys; from pathlib import Path; from test_microkernel import *\n"
        "folder, kernels = Path(sys.argv[1]), [row_sums(7), product(13, 40, 9), row_sums()]\n"
        "for b in compile_kernels(kernels, BASELINES['x86-64-v3'], folder):\n"
        "    (folder / b.symbol).write_bytes(b.object)\n"
    )
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=env)
    for built in here:
        assert (tmp_path / built.symbol).read_bytes() == built.object


# Cache ---------------------------------------------------------------------------------------------------------------


def compile_here(kernels: Sequence[Kernel], folder: Path) -> list[Compiled]:
    return compile_kernels(kernels, BASELINES["x86-64-v3"], folder)


def test_equal_kernels_are_compiled_once(tmp_path: Path) -> None:
    twin = Kernel("another_name", row_sums().params, row_sums().body, doc="same structure")
    steps: list[tuple[int, int]] = []
    built = compile_kernels(
        [row_sums(), twin, row_sums(9)], BASELINES["x86-64-v3"], tmp_path, lambda *s: steps.append(s)
    )
    assert built[0].object == built[1].object
    assert built[0].symbol == built[1].symbol != built[2].symbol
    assert "same structure" in built[1].source
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".o", ".o", ".py", ".py"]


def test_cache_survives_and_repairs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_here([row_sums()], tmp_path)[0]
    with monkeypatch.context() as patch:
        patch.setattr(build, "compile_source", None)
        assert compile_here([row_sums()], tmp_path)[0].object == first.object
    path = tmp_path / f"{first.symbol}.o"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole[:50] + b"\0" + whole[51:]):
        path.write_bytes(damaged)
        assert compile_here([row_sums()], tmp_path)[0].object == first.object
        assert path.read_bytes() == whole


def test_many_kernels_compile_in_parallel_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [row_sums(n) for n in range(20, 33)]
    monkeypatch.setattr(build, "_processors", lambda: 2)
    parallel = compile_here(kernels, tmp_path / "parallel")
    monkeypatch.setattr(build, "_processors", lambda: 1)
    serial = compile_here(kernels, tmp_path / "serial")
    assert [p.object for p in parallel] == [s.object for s in serial]
