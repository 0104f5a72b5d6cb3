"""Products of int8 with sums of int32: exact, whatever the instructions and the layout, and to be had from a graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import in_c, runnable
from lowered import blank, like, run_lowered, view_of
from native import aligned, load_objects

import graphc as gc
from graphc.dtype import DType, int8, int16, int32, uint8
from graphc.ir import Graph, attrs
from graphc.kernels.contract import lower_contract
from graphc.kernels.cpu.build import compile_kernels, digest_of, machine, optimise, source_of
from graphc.kernels.cpu.frontend import lower as lower_source
from graphc.kernels.cpu.target import BASELINES, CpuTarget, host, with_words
from graphc.kernels.lower_context import LowerContext
from graphc.loop import Affine, Contract, Kernel, Operand, Param, walk
from graphc.ops.base import apply
from graphc.system import TILES, allow_tiles

V4, V3, NEON = (BASELINES[level] for level in ("x86-64-v4", "x86-64-v3", "neon"))


def with_features(target: CpuTarget, *names: str) -> CpuTarget:
    return replace(target, features=(*target.features, *names))


TARGETS = {
    "avx512": V4,
    "avx2": V3,
    "neon": NEON,
    "avx512-vnni": with_features(V4, "avx512vnni"),
    "avx2-vnni": with_features(V3, "avxvnni"),
    "neon-dot": with_features(NEON, "dotprod"),
    "amx": with_features(V4, "avx512vnni", "amx-int8", TILES),
}
LAYOUTS = ("mk,kn", "km,kn", "mk,nk", "km,nk")
SIZES = [(13, 33, 8), (30, 70, 600), (12, 32, 7), (10, 20, 4096), (1, 70, 64), (3, 1, 64), (2, 5, 0), (64, 96, 132)]


def can_run(target: CpuTarget) -> bool:
    return runnable(target) and (TILES not in target.features or allow_tiles())


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """All of int8's range, with its ends."""
    values = np.random.default_rng([7, *shape]).integers(-128, 128, shape).astype(np.int8)
    values.reshape(-1)[:2] = (-128, 127)[: values.size]
    return values


def check(left: tuple[int, ...], right: tuple[int, ...], layout: str, pad: int, **run: Any) -> None:
    a, b = (apply("input", name=n, dtype=int8, shape=s) for n, s in (("a", left), ("b", right)))
    contract = tuple((side.index("k"),) for side in layout.split(","))
    dot = apply("dot", a, b, batch=((), ()), contract=contract, dtype=int32)
    arrays = [like(numbers(shape), None, pad) for shape in (left, right)]
    out = blank(dot.shape, "int32")
    run_lowered(lower_contract, Graph.build("contract", [a, b], [("y0", dot)]), arrays, [out], **run)
    x, y = (v if side[0] == free else v.T for v, side, free in zip(arrays, layout.split(","), "mk", strict=True))
    np.testing.assert_array_equal(out, x.astype(np.int32) @ y.astype(np.int32))


def shapes(layout: str, sizes: tuple[int, int, int]) -> Iterator[tuple[int, ...]]:
    dims = dict(zip("mnk", sizes, strict=True))
    return (tuple(dims[d] for d in side) for side in layout.split(","))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products(layout: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, name, TARGETS[name])
    for pad, sizes in enumerate(SIZES):
        check(*shapes(layout, sizes), layout, 4 * (pad % 2), target=name)


@pytest.mark.parametrize("name", [n for n, target in TARGETS.items() if runnable(target)])
@pytest.mark.parametrize("layout", ["mk,kn", "km,nk"])
def test_compiled_products(layout: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_run(TARGETS[name]):
        pytest.skip("the system does not let us use AMX")
    monkeypatch.setattr("lowered.host", lambda: TARGETS[name])
    for pad, sizes in enumerate(SIZES[1:5] + SIZES[7:]):
        check(*shapes(layout, sizes), layout, pad, compiled=tmp_path)


# The block product ---------------------------------------------------------------------------------------------------


def block(m: int, n: int, k: int, words: DType, accumulate: bool = False) -> Kernel:
    """C[m,n] (+)= A[m,k] B[k,n] over words, dense."""
    a, b, c = Operand("a", Affine(), k), Operand("b", Affine(), n), Operand("c", Affine(), n)
    params = (Param("a", int32), Param("b", int32), Param("c", int32, written=True))
    return Kernel(f"block_{words}", params, (Contract(c, a, b, m, n, k, int32, accumulate, words),))


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("name", "words"),
    [("avx512", int16), ("avx2", int16), ("avx512-vnni", uint8), ("avx2-vnni", uint8), ("amx", int8),
     ("c", int16), ("c", uint8), ("c", int8)],
)  # fmt: skip
def test_blocks_of_words(name: str, words: DType, accumulate: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for m, n, k in ((13, 37, 18), (1, 1, 5), (32, 64, 20), (64, 32, 7), (12, 32, 0)):
        kind = np.int16 if words is int16 else np.int8
        a, b = (rng.integers(-128, 128, shape).astype(kind) for shape in ((m, k, 4), (k, n, 4)))
        a, b = (x[..., : 4 // x.itemsize].copy() for x in (a, b))
        want = np.einsum("mkp,knp->mn", *(x.astype(np.int32) for x in (a, b))) + 7 * accumulate
        raw = a ^ kind(-128) if words is uint8 else a
        c = aligned(m * n, np.int32).reshape(m, n)
        c[:] = 7
        arrays = [x.copy().view(np.int32)[..., 0] for x in (raw, b)]
        kernel = block(m, n, k, words, accumulate)
        if name == "c":
            compiler = shutil.which("cc") or pytest.skip("no C compiler (cc) on this machine")
            in_c(compiler, tmp_path)(kernel, [*arrays, c], 1)
        elif not can_run(TARGETS[name]):
            pytest.skip("this machine has no such instructions")
        else:
            (built,) = compile_kernels([kernel], TARGETS[name], tmp_path)
            load_objects([built.object]).run(built.symbol, [*arrays, c])
        np.testing.assert_array_equal(c, want)


@pytest.mark.parametrize(
    ("name", "words", "instruction", "count"),
    [("avx512-vnni", uint8, "vpdpbusd", 26), ("avx512", int16, "vpmaddwd", 24), ("neon-dot", int8, "sdot", 24)],
)
def test_instructions(name: str, words: DType, instruction: str, count: int) -> None:
    """One per vector of a tile and step; with an offset, one per vector of B more."""
    target = TARGETS[name]
    rows, columns = target.tile(int32)
    kernel = block(rows, columns, 64, words)
    text = lower_source(source_of(kernel, target), f"gc_{digest_of(kernel, target)}")
    text = str(machine(target).emit_assembly(optimise(text, target)))
    assert sum(line.strip().startswith(instruction) for line in text.splitlines()) == count


def words_in(name: str, m: int, k: int) -> DType | None:
    """What the words hold in which a product [m, k] [k, 64] is computed on a target."""
    a, b = (apply("input", name=n, dtype=int8, shape=shape) for n, shape in (("a", (m, k)), ("b", (k, 64))))
    dot = apply("dot", a, b, batch=((), ()), contract=((1,), (0,)), dtype=int32)
    views = [view_of(n, np.zeros(v.shape, v.dtype.numpy), {}) for n, v in (("a", a), ("b", b), ("y0", dot))]
    body = Graph.build("contract", [a, b], [("y0", dot)])
    (made,) = lower_contract(body, attrs(), views[:2], views[2:], LowerContext(TARGETS[name]))
    (words,) = {s.words for s in walk(made.kernel.body) if isinstance(s, Contract)}
    return words


def test_the_words_that_a_target_multiplies() -> None:
    assert words_in("amx", 64, 64) is int8
    assert words_in("amx", 16, 64) is uint8  # fewer rows than a block of AMX
    assert words_in("avx512-vnni", 64, 64) is uint8
    assert words_in("avx512", 64, 64) is int16
    assert words_in("avx512", 64, 63) is None  # no whole words
    assert words_in("neon", 64, 64) is None
    assert words_in("neon-dot", 64, 64) is int8


# Graphs --------------------------------------------------------------------------------------------------------------


def by_dtype(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    return gc.matmul(x, w, dtype="int32")


def by_casts(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    return gc.nn.functional.linear(gc.astype(x, gc.int32), gc.astype(w, gc.int32).T)


def by_letters(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
    return gc.einsum("mk,kn->mn", x, w, dtype=gc.int32)


@pytest.mark.parametrize("product", [by_dtype, by_casts, by_letters])
def test_a_quantised_layer(product: Callable[[gc.Tensor, gc.Tensor], gc.Tensor]) -> None:
    """The product reads int8, and scales to float32 in its epilogue."""

    @gc.entry(x=gc.spec((40, 96), "int8"), w=gc.spec((96, 70), "int8"), scale=gc.spec((70,)))
    def infer(x: gc.Tensor, w: gc.Tensor, scale: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": gc.relu(gc.astype(product(x, w), gc.float32) * scale)}

    program = gc.compile(infer, threads=2, check=True)
    x, w, scale = numbers((40, 96)), numbers((96, 70)), np.linspace(0.01, 0.1, 70, dtype=np.float32)
    want = np.maximum((x.astype(np.int32) @ w.astype(np.int32)).astype(np.float32) * scale, 0)
    np.testing.assert_array_equal(program.infer(x=x, w=w, scale=scale)["y"], want)
    (kernel,) = program.infer.kernels
    assert "int8[40,96]" in kernel.doc.replace(" ", "")


def test_products_of_int8_wrap_unless_they_are_widened() -> None:
    x = np.full((4, 8), 100, np.int8)

    @gc.entry(x=gc.spec((4, 8), "int8"))
    def both(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"narrow": x @ x.T, "wide": gc.matmul(x, x.T, dtype=gc.int32)}

    got = gc.compile(both, threads=1).both(x=x)
    assert (got["narrow"].dtype, got["narrow"][0, 0]) == (np.int8, np.int64(80000).astype(np.int8))
    assert (got["wide"].dtype, got["wide"][0, 0]) == (np.int32, 80000)


@pytest.mark.skipif(not runnable(V3), reason="this machine has no AVX2")
def test_programs_ask_for_the_instructions_that_they_multiply_with() -> None:
    @gc.entry(x=gc.spec((40, 96), "int8"))
    def wide(x: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": gc.matmul(x, x.T, dtype=gc.int32)}

    assert set(gc.compile(wide).code.manifest.target.features) >= set(with_words(host(), [int8]).features)
    assert gc.compile(wide, cpu_baseline="x86-64-v3").code.manifest.target.features == V3.features
    assert with_words(host(), []) == host()
