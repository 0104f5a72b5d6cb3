"""Inverses of trigonometric and hyperbolic functions against NumPy: quadrants, signs of zero, infinities, NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tracing import run

import graphc as gc

EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, -1e-30, 1e-5, 3.0, -1e5, 1e30, np.inf, -np.inf, np.nan])
WIDE = np.concatenate([EDGES, np.linspace(-4, 4, 97), np.geomspace(1e-8, 1e8, 33)])
INSIDE = np.concatenate([np.linspace(-1, 1, 101), [0.99999999, -0.99999999, 1e-9, -0.0, 1.5, -1.5, np.nan]])
CASES = {
    "atan": WIDE, "asinh": WIDE, "asin": INSIDE, "acos": INSIDE, "atanh": INSIDE, "acosh": np.abs(WIDE) + 0.9,
    "signbit": WIDE[~np.isnan(WIDE)],
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, dtype: str) -> None:
    x = CASES[name].astype(dtype)
    with np.errstate(all="ignore"):
        want = getattr(np, name if hasattr(np, name) else f"arc{name[1:]}")(x)
        wide = want if want.dtype == bool else getattr(np, name)(x.astype(np.float64))
    got = run(getattr(gc, name), x=x)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, wide, rtol=8 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_angle_of_a_point(dtype: str) -> None:
    y, x = (a.ravel().astype(dtype) for a in np.meshgrid(EDGES, EDGES))
    with np.errstate(all="ignore"):
        want = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    got = run(gc.atan2, y=y, x=x)
    np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)
    certain = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[certain]), np.signbit(want[certain]))


def test_copysign() -> None:
    x, y = np.array([2.0, -2.0, 2.0, -0.0]), np.array([-1.0, 1.0, -0.0, 3.0])
    np.testing.assert_array_equal(run(gc.copysign, x=x, y=y), np.copysign(x, y))


DERIVATIVES = {
    "atan": lambda x: 1 / (1 + x**2),
    "asin": lambda x: 1 / np.sqrt(1 - x**2),
    "acos": lambda x: -1 / np.sqrt(1 - x**2),
    "asinh": lambda x: 1 / np.sqrt(1 + x**2),
    "atanh": lambda x: 1 / (1 - x**2),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name: str) -> None:
    x = np.array([-0.9, -0.3, 0.0, 1e-9, 0.4, 0.8])

    def slope(x: Any) -> Any:
        return gc.grad(gc.sum(getattr(gc, name)(x)), x)

    np.testing.assert_allclose(run(slope, x=x), DERIVATIVES[name](x), rtol=1e-13)


def test_derivatives_of_an_angle_on_the_axes() -> None:
    y, x = np.array([0.0, 2.0, -3.0, 1.0]), np.array([2.0, 0.0, 0.0, -1.0])

    def slopes(y: Any, x: Any) -> Any:
        return gc.stack(gc.grad(gc.sum(gc.atan2(y, x)), [y, x]))

    square = x**2 + y**2
    np.testing.assert_allclose(run(slopes, y=y, x=x), np.stack([x, -y]) / square, rtol=1e-13)
