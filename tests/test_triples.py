"""Products of float32 made of three bfloat16 a factor: the loops, the code, and what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_interp import thirds
from test_contract import check_dot

import graphc as gc
from graphc.dtype import float32
from graphc.kernels.cpu.target import BASELINES, host, with_words
from graphc.loop import TRIPLE_BLOCK

LAYOUTS = ["mk,kn", "km,kn", "mk,nk", "km,nk"]
SIZES = [((64, 96, 128), 0), ((70, 130, 100), 2), ((40, 33, 1100), 0), ((96, 33, 31), 1), ((33, 1030, 64), 0)]
amx = pytest.mark.skipif(
    not with_words(host(), [float32]).triples, reason="this machine has no AMX, or does not let us use it"
)


@pytest.fixture
def no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile registers are taken for all products that they can make, and machines have them."""
    monkeypatch.setattr("graphc.kernels.contract_triples.cost", lambda p, s: float("inf"))


def check(layout: str, size: tuple[int, ...], pad: int, out: tuple[int, ...] | None = None, **run: Any) -> None:
    left, right = layout.split(",")
    dims = dict(zip("mnk", size, strict=True))
    shapes = tuple(dims[d] for d in left), tuple(dims[d] for d in right)
    check_dot(*shapes, ((left.index("k"),), (right.index("k"),)), pad=pad, orders=(None, None, out), **run)


@pytest.mark.usefixtures("no_vectors")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loops(layout: str) -> None:
    for size, pad in SIZES:
        check(layout, size, pad, target="triples")
    check(layout, (40, 50, 40), 3, out=(1, 0), target="triples")


@pytest.mark.usefixtures("no_vectors")
def test_more_axes() -> None:
    check_dot((3, 40, 50), (3, 50, 34), ((2,), (1,)), ((0,), (0,)), target="triples")
    check_dot((40, 5, 40), (34, 5, 40), ((1, 2), (1, 2)), orders=((1, 0, 2), None, None), target="triples")


@amx
@pytest.mark.usefixtures("no_vectors")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_code(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowered.host", lambda: with_words(host(), [float32]))
    for size, pad in SIZES:
        check(layout, size, pad, compiled=tmp_path)


@given(st.lists(st.floats(width=32, min_value=2.0**-100, max_value=2.0**127), min_size=1), st.booleans())
def test_three_parts_are_the_number(values: list[float], negative: bool) -> None:
    x = np.array(values, np.float32) * (-1 if negative else 1)
    parts = thirds(x)
    assert (sum(p.astype(np.float64) for p in parts) == x).all()
    assert all((p.view(np.uint32) & 0xFFFF == 0).all() for p in parts)


def product(m: int, n: int, k: int, **options: Any) -> gc.Program:
    @gc.entry(a=gc.spec((m, k)), b=gc.spec((k, n)))
    def multiply(a: gc.Tensor, b: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"c": a @ b}

    return gc.compile(multiply, **options)


@amx
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("depth", [64, 1024])
def test_error_is_that_of_float32(depth: int, scale: float) -> None:
    """Relative to the sum of the magnitudes of what is added, an element is off by less than 2**-24 for each addition,
    the bound of sums of float32, and 2**-23 for what is left out of the products."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((96, depth), (depth, 128)))
    a *= scale * np.exp2(rng.integers(-8, 8, a.shape)).astype(np.float32)
    made, exact = product(96, 128, depth), a.astype(np.float64) @ b
    assert made.code.manifest.target.features != host().features
    size = np.abs(a).astype(np.float64) @ np.abs(b)
    got, plain = (np.abs(c - exact) / size for c in (made.multiply(a=a, b=b)["c"], a @ b))
    assert got.max() < 2**-23 + depth * 2**-24
    assert np.sqrt(np.mean(got**2)) < 1.5 * np.sqrt(np.mean(plain**2))


@amx
def test_numbers_that_are_none() -> None:
    """A NaN, an infinity and an overflow leave a row or an element that is not finite; the others are untouched."""
    a, b = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    a[3, 5], a[7, 0], a[9, 1] = np.nan, np.inf, np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    a[11], b[:, 2] = 3e38, 1.5
    c = product(64, 64, 64).multiply(a=a, b=b)["c"]
    assert not np.isfinite(c[[3, 7, 9, 11]]).any()
    assert (np.delete(c, [3, 7, 9, 11], axis=0)[:, [0, 2]] == [64, 96]).all()


def test_a_machine_without_them() -> None:
    assert not any(target.triples for target in BASELINES.values())
    features = product(64, 64, 64, cpu_baseline="x86-64-v3").code.manifest.target.features
    assert not any(feature.startswith("amx") for feature in features)
    small = product(TRIPLE_BLOCK - 1, 64, 64).code.manifest.target
    assert small.features == host().features
