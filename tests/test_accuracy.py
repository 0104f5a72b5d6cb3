"""The error bounds that docs/accuracy.md states: functions and products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_math import UNARY

import graphc as gc

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
UNIT = 2.0**-24  # roundoff of float32
BFLOAT16 = 2.0**-8
SHAPES = [(1, 7, 5), (5, 300, 9), (64, 64, 64), (33, 1000, 70), (200, 129, 257), (130, 2304, 48)]  # m, k, n


def test_the_page_has_the_bounds_of_the_functions() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    stated = {name.strip(): tuple(map(float, found)) for name, *found in rows if name.strip() in UNARY}
    assert stated == {name: tuple(limits) for name, (_, *limits) in UNARY.items()}


@pytest.mark.parametrize(("precision", "unit"), [("float32", 0.0), ("bfloat16", BFLOAT16)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, int, int], precision: str, unit: float) -> None:
    """|C - AB| <= (2v + v² + k u) |A||B|, where v is the rounding of the factors: also of signs that cancel, and of
    magnitudes far apart."""
    m, k, n = shape
    rng = np.random.default_rng([m, k, n])

    @gc.entry(a=gc.spec((m, k)), b=gc.spec((k, n)))
    def product(a, b):
        return {"c": a @ b}

    program = gc.compile(product, precision=precision)
    for spread in (0.0, 4.0):
        a, b = (
            (rng.standard_normal(s) * np.exp(spread * rng.standard_normal(s))).astype(np.float32)
            for s in ((m, k), (k, n))
        )
        wide, wide_b = a.astype(np.float64), b.astype(np.float64)
        bound = (2 * unit + unit**2 + k * UNIT) * (np.abs(wide) @ np.abs(wide_b))
        error = np.abs(program.product(a=a, b=b)["c"] - wide @ wide_b)
        assert (error <= bound).all(), float((error / bound).max())
