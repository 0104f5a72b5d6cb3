"""Tuning: other kernels for the same bits, and a choice among them that is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lowered import blank, garbage, like, view_of
from native import load_objects

import graphc as gc
from graphc import driver_tune
from graphc.dtype import DType, bfloat16, float32, int8, int32
from graphc.ir import Graph, attrs
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_problem import problem
from graphc.kernels.contract_schedule import ALTERNATIVES, alternatives, choose
from graphc.kernels.cpu.build import Compiled, compile_kernels
from graphc.kernels.cpu.target import BASELINES, host
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.plan import Launch
from graphc.ops.base import apply

CASES = [(70, 300, 90, "mk,kn"), (130, 64, 600, "km,nk"), (24, 200, 1300, "mk,nk")]


@pytest.mark.parametrize("kind", [float32, int8, bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_kernels_have_the_same_bits(case: tuple[int, int, int, str], kind: DType, tmp_path: Path) -> None:
    *sizes, layout = case
    dims = dict(zip("mnk", sizes, strict=True))
    rng = np.random.default_rng(0)
    a, b = (
        apply("input", name=n, dtype=kind, shape=tuple(dims[d] for d in t))
        for n, t in zip("ab", layout.split(","), strict=True)
    )
    sums = int32 if kind is int8 else float32
    contract = tuple((side.index("k"),) for side in layout.split(","))
    dot = apply("dot", a, b, batch=((), ()), contract=contract, dtype=sums)
    memory: dict[str, np.ndarray] = {}
    arrays = [like((30 * rng.standard_normal(v.shape)).astype(kind.numpy), None, 1) for v in (a, b)]
    out = blank(dot.shape, sums.name)
    views = [view_of(n, x, memory) for n, x in (("a", arrays[0]), ("b", arrays[1]), ("y", out))]
    body = Graph.build("contract", [a, b], [("y0", dot)])
    *before, launch = lower_contract(body, attrs(), views[:2], views[2:], LowerContext(host(), others=True))
    assert 1 <= len(launch.others) <= ALTERNATIVES
    packed = compile_kernels([x.kernel for x in before], host(), tmp_path)
    built = compile_kernels([launch.kernel, *launch.others], host(), tmp_path)
    assert len({x.symbol for x in built}) == len(built)
    loaded = load_objects([x.object for x in (*packed, *built)])

    def run(launch: Launch, made: Compiled) -> None:
        words = [memory.setdefault(a.buffer.name, garbage(a.buffer)).ctypes.data + a.offset for a in launch.args]
        loaded.run(made.symbol, words, 3, made.kernel.scratch_bytes)

    for first, made in zip(before, packed, strict=True):
        run(first, made)
    found = []
    for made in built:
        out[:] = 0
        run(launch, made)
        found.append(out.tobytes())
    assert len(set(found)) == 1
    assert np.any(out)


def test_alternatives_cut_the_sum_alike() -> None:
    left, right = ((512, 2000), (2000, 1)), ((2000, 300), (300, 1))
    p = problem(left, right, attrs(batch=((), ()), contract=((1,), (0,))), [(300, 1)])
    for level in ("x86-64-v4", "x86-64-v3"):
        best = choose(p, float32, BASELINES[level])
        others = alternatives(p, float32, BASELINES[level])
        assert best not in others
        assert {(s.k_slab, s.k_block, s.mr, s.nr) for s in others} == {(best.k_slab, best.k_block, best.mr, best.nr)}


def layer() -> gc.Entry:
    @gc.entry(x=gc.spec((96, 200)), w=gc.spec((150, 200)))
    def infer(x: gc.Tensor, w: gc.Tensor) -> dict[str, gc.Tensor]:
        return {"y": gc.relu(x @ w.T)}

    return infer


def test_a_tuned_program_has_the_same_results_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path))
    arrays = {"x": np.ones((96, 200), np.float32), "w": np.linspace(-1, 1, 30000, dtype=np.float32).reshape(150, 200)}
    plain = gc.compile(layer(), threads=2)
    measured = []

    def last(launch: driver_tune.Launch, *args: object) -> int:
        measured.append(launch)
        return len(launch.others)

    monkeypatch.setattr(driver_tune, "_fastest", last)
    tuned = gc.compile(layer(), threads=2, tune=10)
    assert len(measured) == 1
    assert tuned.code.manifest.kernels[0].symbol != plain.code.manifest.kernels[0].symbol
    assert tuned.code.manifest.options["tune"] == "10"
    assert tuned.infer.memory.peak_bytes <= plain.infer.memory.peak_bytes
    np.testing.assert_array_equal(tuned.infer(**arrays)["y"], plain.infer(**arrays)["y"])
    again = gc.compile(layer(), threads=2, tune=10)
    assert again.artifact.digest == tuned.artifact.digest
    assert len(measured) == 1  # the choice was in the cache
    gc.compile(layer(), threads=1, tune=10)
    assert len(measured) == 2  # another number of threads


def test_what_there_is_no_time_for_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path))
    tuned = gc.compile(layer(), threads=1, tune=0)
    assert tuned.code.manifest.kernels == gc.compile(layer(), threads=1).code.manifest.kernels


def test_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the clock as it is: whatever is chosen runs."""
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path))
    tuned = gc.compile(layer(), threads=2, tune=5, cache=False)
    x, w = np.ones((96, 200), np.float32), np.ones((150, 200), np.float32)
    np.testing.assert_array_equal(tuned.infer(x=x, w=w)["y"], np.full((96, 150), 200, np.float32))
