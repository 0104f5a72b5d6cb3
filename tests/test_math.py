"""The polynomial intrinsics against exact values: error in ULP over all magnitudes, special values as in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from native import Loaded, load_objects

from graphc.dtype import DType, float32, float64, uint32
from graphc.kernels.cpu.build import compile_kernels
from graphc.kernels.cpu.target import host
from graphc.loop import Affine, Call, Kernel, Load, Loop, Param, Role, Store, Var

SAMPLES = 60_003  # not a multiple of any vector width
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-40,
    -1e-40,
    1e-310,
    3e38,
    -3e38,
    0.5,
    2.0,
    88.0,
    -104,
]

Array = np.ndarray
# name → exact value (extended precision where NumPy has it), the largest ULP error in float32 and float64
UNARY: dict[str, tuple[Callable[[Array], Array], float, float]] = {
    "exp": (np.exp, 0.9, 1.5),
    "log": (np.log, 1.0, 1.0),
    "tanh": (np.tanh, 2.0, 2.0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 2.5, 2.5),
    "erf": (lambda x: scipy.special.erf(x.astype(np.float64)), 1.5, 4.0),  # SciPy's own error included
    "sin": (np.sin, 1.0, 2.0),
    "cos": (np.cos, 1.0, 2.0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5, 1.5),
    "sqrt": (np.sqrt, 0.501, 0.501),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {"pow": np.power, "mod": np.mod}


def elementwise(name: str, dtype: DType, arity: int, n: int) -> Kernel:
    """out[i] = name(x0[i], …)."""
    i = Var("i")
    operands = tuple(Load(f"x{k}", Affine.of(i), dtype) for k in range(arity))
    store = Store("out", Affine.of(i), Call(name, operands, dtype))
    params = (*(Param(f"x{k}", dtype) for k in range(arity)), Param("out", dtype, written=True))
    return Kernel(f"{name}_{dtype}", params, (Loop(i, n, (store,), Role.VECTOR, unroll=2),))


class Library:
    """All functions under test, compiled for ``n`` elements."""

    def __init__(self, cache: Path, n: int):
        unary = [elementwise(name, d, 1, n) for name in UNARY for d in (float32, float64)]
        binary = [elementwise(name, d, 2, n) for name in BINARY for d in (float32, float64)]
        built = compile_kernels([*unary, *binary, elementwise("threefry", uint32, 4, n)], host(), cache)
        self.native: Loaded = load_objects([b.object for b in built])
        self.symbols = {b.kernel.name: b.symbol for b in built}

    def __call__(self, name: str, *args: Array) -> Array:
        out = np.zeros_like(args[0])
        self.native.run(self.symbols[f"{name}_{out.dtype.name}"], [*args, out])
        return out


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(tmp_path_factory.mktemp("dense")), SAMPLES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(tmp_path_factory.mktemp("few")), len(SPECIAL) ** 2)


def domain(name: str, dtype: DType) -> Array:
    """Operands over every magnitude that the function cares for."""
    rng = np.random.default_rng(7)
    n = SAMPLES // 3
    if name in ("sin", "cos"):
        x = rng.uniform(-1, 1, SAMPLES) * (1e6 if dtype is float32 else 1e5)
    elif name in ("log", "sqrt", "rsqrt"):
        low, high = (-100, 88) if dtype is float32 else (-700, 700)
        x = np.concatenate([np.exp(rng.uniform(low, high, n)), rng.uniform(0.5, 2.0, SAMPLES - n)])
    else:
        wide = 110 if dtype is float32 else 750
        tiny = np.exp(rng.uniform(-wide, 0, n)) * rng.choice([-1, 1], n)
        x = np.concatenate([rng.uniform(-wide, wide, n), rng.normal(0, 3, SAMPLES - 2 * n), tiny])
    return x.astype(dtype.numpy)


def ulps(got: Array, exact: Array) -> Array:
    """Distance in units in the last place of the exact value, rounded to got's type."""
    unit = np.spacing(np.abs(exact).astype(got.dtype)).astype(exact.dtype)
    return np.where(np.isfinite(unit), np.abs(got.astype(exact.dtype) - exact) / unit, 0)


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_error_in_ulps(dense: Library, name: str, dtype: DType) -> None:
    exact, *limits = UNARY[name]
    x = domain(name, dtype)
    with np.errstate(all="ignore"):
        error = ulps(dense(name, x), exact(x.astype(np.longdouble)))
    worst = int(np.argmax(error))
    assert error[worst] <= limits[dtype is float64], f"{error[worst]} ULP at {x[worst]!r}"


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(few: Library, name: str, dtype: DType) -> None:
    with np.errstate(all="ignore"):
        x = np.resize(np.array(SPECIAL, dtype.numpy), len(SPECIAL) ** 2)
        if name in ("sin", "cos"):  # reduced with two words of pi
            x[np.isfinite(x) & (np.abs(x) > 1e6)] = 0
        got, want = few(name, x), UNARY[name][0](x.astype(np.float64)).astype(dtype.numpy)
    np.testing.assert_allclose(got, want, rtol=1e-6 if dtype is float32 else 1e-14, atol=np.finfo(dtype.numpy).tiny)
    if name in ("sin", "tanh", "erf"):
        np.testing.assert_array_equal(np.signbit(got[:2]), [False, True])


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_special_pairs(few: Library, name: str, dtype: DType) -> None:
    values = np.array([*SPECIAL[:7], 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1e30, -1e30, 5.5], dtype.numpy)
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        far = np.abs(x / y) >= 2.0**24 if name == "mod" else np.zeros(len(x), bool)
        far &= np.isfinite(x)
        got, want = few(name, x, y), BINARY[name](x, y)
    np.testing.assert_allclose(got[~far], want[~far], rtol=1e-6 if dtype is float32 else 1e-13)


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
def test_pow_and_mod_densely(dense: Library, dtype: DType) -> None:
    rng = np.random.default_rng(3)
    x, y = np.exp(rng.normal(0, 1, SAMPLES)).astype(dtype.numpy), rng.normal(0, 5, SAMPLES).astype(dtype.numpy)
    np.testing.assert_allclose(dense("pow", x, y), np.power(x, y), rtol=1.2e-7 if dtype is float32 else 1e-13)
    np.testing.assert_allclose(dense("mod", x, y), np.mod(x, y), rtol=1e-6, atol=1e-6)


def test_threefry_known_answers(few: Library) -> None:
    """The Random123 distribution's known answers (kat_vectors), threefry 2x32 20 rounds, first word."""
    ones, cases = 0xFFFFFFFF, {}
    cases[0, 0, 0, 0] = 0x6B200159
    cases[ones, ones, ones, ones] = 0x1CB996FC
    cases[0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3] = 0xC4923A9C
    columns = np.array([(*k, v) for k, v in cases.items()], np.uint32).T
    operands = [np.resize(c, len(SPECIAL) ** 2) for c in columns]
    np.testing.assert_array_equal(few("threefry", *operands[:4]), operands[4])
