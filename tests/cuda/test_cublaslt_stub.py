"""Descriptions of products, and the stand-in for cuBLASLt: what makes no sense, and mistakes that it has to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import fake_cublaslt
import fake_cupy
import numpy as np
import pytest
from fake_cublaslt import Blas
from shim import COMPILER, MISSING

from graphc import runtime_cublaslt
from graphc.errors import GraphcError
from graphc.gemm import Gemm, Matrix, is_sound
from graphc.runtime_cublaslt import Library, Product
from graphc.runtime_cuda_device import Device

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)

A, B, D = (Matrix("float32", rows, columns, rows, 0, 16) for rows, columns in ((9, 20), (20, 6), (9, 6)))
GEMM = Gemm(A, B, D, False, False, 1, "float32", 1.0, False, True, "", workspace_bytes=1 << 20)


@pytest.fixture(autouse=True)
def blas() -> Iterator[Blas]:
    with fake_cupy.installed(), fake_cublaslt.installed() as stub:
        yield stub


def test_descriptions_from_elsewhere() -> None:
    good = GEMM
    assert is_sound(good, 1 << 46)
    bad = [
        replace(good, a=replace(good.a, ld=good.a.rows - 1)),
        replace(good, a=replace(good.a, rows=0)),
        replace(good, b=replace(good.b, dtype="float16")),
        replace(good, d=replace(good.d, columns=good.d.columns + 1)),
        replace(good, d=replace(good.d, ld=1 << 50)),
        replace(good, turn_a=not good.turn_a),
        replace(good, batch=0),
        replace(good, sums="float64"),
        replace(good, alpha=float("nan")),
        replace(good, activation="swish"),
        replace(good, algorithm="00"),
        replace(good, workspace_bytes=-1),
    ]
    assert not any(is_sound(gemm, 1 << 46) for gemm in bad)


# The stand-in itself: mistakes that it has to find -------------------------------------------------------------------


class Planted:
    """A product of the library, called as `Product` does it, but for one mistake."""

    def __init__(self, gemm: Gemm):
        self.gemm = gemm
        self.product = Product(Library(), gemm)
        self.device = Device()
        sizes = {name: gemm.nbytes(name) for name in gemm.operands}
        self.blocks = {name: self.device.alloc(size, "a test") for name, size in sizes.items()}
        for block in self.blocks.values():
            block.write(np.zeros(block.nbytes, np.uint8))
        self.addresses = {name: block.address for name, block in self.blocks.items()}
        self.workspace = self.device.alloc(1 << 20, "a test")

    def run(self) -> None:
        algorithm = self.product.algorithms(1, 1 << 20)[0]
        self.product(algorithm, self.addresses, self.workspace.address, self.device.stream.ptr)
        self.device.stream.synchronize()


def described(**matrices: dict[str, Any]) -> Gemm:
    gemm = GEMM
    return replace(gemm, **{name: replace(getattr(gemm, name), **change) for name, change in matrices.items()})


WRONG: dict[str, tuple[Callable[[], Gemm], str]] = {
    "a leading dimension": (lambda: described(a={"ld": 3}), "a leading dimension is less than the rows"),
    "a transposition": (lambda: replace(GEMM, turn_a=True), "shapes that do not fit"),
    "a shape": (lambda: described(d={"columns": 5}), "shapes that do not fit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_descriptions_are_found(name: str, blas: Blas) -> None:
    make, fault = WRONG[name]
    planted = Planted(make())
    with pytest.raises(GraphcError, match="GC0509"):
        planted.run()
    assert blas.faults == [fault]


def test_wrong_types_are_not_supported(blas: Blas) -> None:
    assert Product(Library(), described(a={"dtype": "float16"})).algorithms(1, 0) == []


def mistakes() -> dict[str, tuple[Callable[[Planted, pytest.MonkeyPatch], None], str]]:
    def no_bias(p: Planted, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(p.addresses, "bias", 0)

    def unaligned(p: Planted, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(p.addresses, "a", p.addresses["a"] + 4)

    def no_workspace(p: Planted, patch: pytest.MonkeyPatch) -> None:
        p.workspace = p.workspace.__class__(p.device, p.workspace.pointer + 8, 8)

    def attribute(p: Planted, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(runtime_cublaslt, "BIAS_POINTER", (9, runtime_cublaslt.c_void_p))

    def size(p: Planted, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(runtime_cublaslt, "BIAS_POINTER", (8, runtime_cublaslt.c_int32))

    def gone(p: Planted, patch: pytest.MonkeyPatch) -> None:
        p.product.library.call("cublasLtMatrixLayoutDestroy", p.product._a)

    def other(p: Planted, patch: pytest.MonkeyPatch) -> None:
        found = Product(Library(), described(d={"ld": 16})).algorithms(1, 0)
        patch.setattr(Product, "algorithms", lambda *args: found)

    return {
        "no bias": (no_bias, "a bias that is not in memory"),
        "an address": (unaligned, "address of a is not aligned as promised"),
        "a workspace": (no_workspace, "a workspace that is not aligned"),
        "an attribute": (attribute, "attribute 9 is not known"),
        "a size": (size, "BIAS_POINTER has another size"),
        "a descriptor that is gone": (gone, "no layout, or none any more"),
        "the algorithm of another product": (other, "the algorithm of another product"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_wrong_calls_are_found(name: str, blas: Blas, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, fault = mistakes()[name]
    planted = Planted(GEMM)
    plant(planted, monkeypatch)
    with pytest.raises(GraphcError, match="GC0509"):
        planted.run()
    assert blas.faults == [fault]


def test_memory_that_nothing_has_written_is_found() -> None:
    planted = Planted(GEMM)
    planted.blocks["b"] = planted.device.alloc(planted.gemm.nbytes("b"), "a test")
    planted.addresses["b"] = planted.blocks["b"].address
    with pytest.raises(fake_cupy.Misuse, match="bytes of b that nothing has written"):
        planted.run()


def test_memory_that_is_not_there_is_found() -> None:
    planted = Planted(GEMM)
    planted.addresses["d"] += 64
    with pytest.raises(fake_cupy.Misuse, match="where nothing is allocated"):
        planted.run()
