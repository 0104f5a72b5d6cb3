"""Products on GPUs: which tiles they have, when sums are cut, and which building block is printed for them."""

from __future__ import annotations

import pytest

from graphc.dtype import DType, bfloat16, float32, float64, int32
from graphc.ir import Graph
from graphc.kernels.cuda.dialect import source_of
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.cuda.threads import shared_out
from graphc.kernels.lower import lower
from graphc.kernels.plan import Launch
from graphc.loop import BlockProduct, walk
from graphc.ops.base import apply
from graphc.passes import pipeline

TARGET = CudaTarget()


def launches(m: int, n: int, k: int, factors: DType = float32, *, turned: bool = False) -> tuple[Launch, ...]:
    """Of a [m, k] times [k, n], or [n, k] if ``turned``, with sums of float32 or int32."""
    a = apply("input", name="a", dtype=factors, shape=(m, k))
    b = apply("input", name="b", dtype=factors, shape=(n, k) if turned else (k, n))
    dtype = float32 if factors.is_half else factors
    at = {"batch": ((), ()), "contract": ((1,), (1 if turned else 0,)), "dtype": dtype}
    return lower(pipeline.run(Graph.build("g", [a, b], [("y", apply("dot", a, b, **at))])), TARGET).launches


def product(launch: Launch) -> BlockProduct:
    (found,) = (s for s in walk(launch.kernel.body) if isinstance(s, BlockProduct))
    return found


def text(launch: Launch) -> str:
    aligned = [p.name for p in launch.kernel.params]
    return source_of(shared_out(launch.kernel, aligned, TARGET.shared_bytes), "test")


def test_large_tiles_where_there_is_one_for_each_processor() -> None:
    assert product(launches(2048, 2048, 64)[0]).tile == (128, 128)
    assert product(launches(512, 512, 64)[0]).tile == (64, 64)
    assert product(launches(2048, 2048, 64, float64)[0]).tile == (64, 64)


def test_long_sums_of_few_tiles_are_cut() -> None:
    first, second = launches(64, 64, 8192)
    assert product(first).k == 256
    assert first.kernel.name.endswith("_parts")
    assert not any(isinstance(s, BlockProduct) for s in walk(second.kernel.body))
    assert len(launches(2048, 2048, 8192)) == 1


@pytest.mark.parametrize(("turned", "strides"), [(False, "96, 1, 64, 1"), (True, "96, 1, 1, 96")])
def test_16_bit_factors_go_to_tensor_cores(turned: bool, strides: str) -> None:
    printed = text(launches(64, 64, 96, bfloat16, turned=turned)[0])
    assert f"TensorProduct<Bf16, 256, 64, 64, {strides}, true, true> sums_;" in printed
    assert printed.startswith('#include "product.cuh"')


def test_what_is_not_aligned_is_read_element_by_element() -> None:
    assert ", 1, 60, 1, true, false> sums_;" in text(launches(64, 60, 96, bfloat16)[0])
    assert ", 1, 64, 1, false, true> sums_;" in text(launches(64, 64, 90, bfloat16)[0])


@pytest.mark.parametrize("factors", [float32, float64, int32])
def test_other_numbers_are_multiplied_one_by_one(factors: DType) -> None:
    name = {float32: "f32", float64: "f64", int32: "i32"}[factors]
    assert f"Product<{name}, {name}, 256, 64, 64, 96, 1, 64, 1> sums_;" in text(launches(64, 64, 96, factors)[0])


def test_factors_pass_through_the_result_where_they_fit() -> None:
    assert "sums_.add(a + 0, b + 0, 64, 64, 96, tile);" in text(launches(64, 64, 96)[0])
    assert "sums_.add(a + 0, b + 0, 64, 64, 96, shared + 128);" in text(launches(64, 64, 96, bfloat16)[0])
