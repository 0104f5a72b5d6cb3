"""Functions of the Array API on every dtype and pair of dtypes, over shapes that broadcast: values and dtypes are those
of NumPy under our rules of promotion (`graphc.dtype.promote`); what is refused is refused with GC0103."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from tracing import run

import graphc as gc
from graphc.dtype import dtype, promote
from graphc.errors import GraphcError

Array = np.ndarray[Any, np.dtype[Any]]

FLOATS, SIGNED, UNSIGNED = ("float32", "float64"), ("int8", "int16", "int32", "int64"), ("uint8", "uint32")
INTEGERS = SIGNED + UNSIGNED
ALL = (*FLOATS, *INTEGERS, "bool")

SAME = ["abs", "negative", "sign", "square", "floor", "ceil", "round", "trunc"]  # the dtype of the operand, no bools
TO_FLOAT = [
    "exp",
    "log",
    "sqrt",
    "tanh",
    "sin",
    "cos",
    "exp2",
    "expm1",
    "log1p",
    "log2",
    "log10",
    "reciprocal",
    "sinh",
    "cosh",
    "tan",
]
TESTS = ["isnan", "isinf", "isfinite", "logical_not"]
ARITHMETIC = ["add", "subtract", "multiply", "floor_divide", "remainder", "maximum", "minimum"]
FLOATING = ["divide", "hypot", "logaddexp"]
COMPARISONS = ["less", "less_equal", "greater", "greater_equal"]
EQUALITY = ["equal", "not_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor"]
SHIFTS = ["bitwise_left_shift", "bitwise_right_shift"]

PAIRS = (
    ((), ()), ((3,), ()), ((1,), (4,)), ((3, 1), (4,)), ((3, 4), (4,)), ((2, 1, 4), (3, 1)), ((0,), (1,)),
    ((2, 0), (1,)), ((5, 1, 1), (1, 2, 3)), ((1, 1), (1,)),
)  # fmt: skip


def array(dt: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng([seed, *dt.encode(), *shape])
    kind = np.dtype(dt).kind
    if kind == "f":
        return np.asarray(rng.standard_normal(shape) * 2, dt)
    low = -5 if kind == "i" else 0
    return np.asarray(rng.random(shape) < 0.5 if kind == "b" else rng.integers(low, 6, shape), dt)


def agree(got: Array, want: Array, what: str) -> None:
    want = np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape), what
    if want.dtype.kind == "f":
        tolerance = 30 * np.finfo(want.dtype).eps
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=what)
    else:
        np.testing.assert_array_equal(got, want, err_msg=what)


def refused(fn: Callable[..., Any], **arrays: Array) -> None:
    with pytest.raises(GraphcError) as caught:
        run(fn, **arrays)
    assert caught.value.code == "GC0103"


# One operand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAME + TO_FLOAT + TESTS)
def test_of_one(name: str) -> None:
    ours, theirs = getattr(gc, name), getattr(np, name)
    for dt in ALL:
        x = array(dt, (3, 5))
        if name in ("floor", "ceil", "round") and dt not in FLOATS:
            continue  # a whole number of another type: see the functions
        if name in SAME and dt == "bool":
            if name != "trunc":
                refused(ours, x=x)
            continue
        given = x.astype("float32") if name in TO_FLOAT + TESTS[:3] and dt not in FLOATS else x
        with np.errstate(all="ignore"):
            agree(run(ours, x=x), theirs(given), f"{name} of {dt}")


@pytest.mark.parametrize("dt", INTEGERS)
def test_invert(dt: str) -> None:
    x = array(dt, (9,))
    agree(run(lambda x: ~x, x=x), ~x, dt)


def test_rounding_of_whole_numbers() -> None:
    """Whole numbers are as they are, in float32 where the function makes floats."""
    for name, dt in product(("floor", "ceil", "round"), INTEGERS):
        x = array(dt, (4,))
        np.testing.assert_array_equal(run(getattr(gc, name), x=x), x, err_msg=f"{name} of {dt}")


# Two operands --------------------------------------------------------------------------------------------------------


def expected(name: str, x: Array, y: Array) -> Array:
    """NumPy's result in the dtype where the operands meet."""
    meet = promote(dtype(x.dtype), dtype(y.dtype))
    if name in FLOATING and not meet.is_float:
        meet = dtype("float32")
    if name in LOGICAL:
        meet = dtype("bool")
    with np.errstate(all="ignore"):
        found = getattr(np, name)(x.astype(meet.numpy), y.astype(meet.numpy))
    return np.asarray(found)


def accepted(name: str, a: str, b: str) -> bool:
    kinds = {np.dtype(a).kind, np.dtype(b).kind}
    if name in ARITHMETIC + COMPARISONS:
        return kinds != {"b"}
    if name in SHIFTS:
        return kinds != {"b"} and "f" not in kinds
    return name not in BITS or "f" not in kinds


@pytest.mark.parametrize("name", ARITHMETIC + FLOATING + COMPARISONS + EQUALITY + LOGICAL + BITS + SHIFTS)
def test_of_two(name: str) -> None:
    def ours(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        return getattr(gc, name)(x, y)

    for number, (a, b) in enumerate(product(ALL, ALL)):
        shapes = PAIRS[number % len(PAIRS)]
        x, y = array(a, shapes[0]), array(b, shapes[1], 1)
        if name in SHIFTS:
            y = np.abs(y)
        if accepted(name, a, b):
            agree(run(ours, x=x, y=y), expected(name, x, y), f"{name} of {a}{shapes[0]} and {b}{shapes[1]}")
        else:
            refused(ours, x=x, y=y)


@pytest.mark.parametrize(("a", "b"), [(a, b) for a in FLOATS for b in ALL])
def test_pow(a: str, b: str) -> None:
    x, y = np.abs(array(a, (3, 4))), array(b, (4,), 1)
    want = np.power(x.astype(to := promote(dtype(a), dtype(b)).numpy), y.astype(to))
    agree(run(gc.pow, x=x, y=y), want, "pow")


# Along axes ----------------------------------------------------------------------------------------------------------

AXES = (None, 0, -1, 1, (0, 2), (0, 1, 2), (-1, 0), ())


def summed(dt: str) -> str:
    """The dtype of a sum: int32 where it is smaller."""
    return "int32" if np.dtype(dt).itemsize < 4 else dt


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean", "any", "all", "count_nonzero", "var", "std"])
@pytest.mark.parametrize("dt", ALL)
def test_along_axes(name: str, dt: str) -> None:
    x = array(dt, (2, 3, 4))
    if name in ("max", "min") and dt == "bool":
        return refused(getattr(gc, name), x=x)
    given = x.astype("float32") if name in ("mean", "var", "std") and dt not in FLOATS else x
    for axis, kept in product(AXES, (False, True)):
        got = run(lambda x, axis=axis, kept=kept: getattr(gc, name)(x, axis, keepdims=kept), x=x)
        want = np.asarray(getattr(np, name)(given, axis=axis, keepdims=kept))
        if name in ("sum", "prod", "count_nonzero"):
            want = want.astype("int32" if name == "count_nonzero" else summed(dt))
        agree(got, want, f"{name} of {dt} along {axis}")
    return None


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dt", ALL)
def test_positions(name: str, dt: str) -> None:
    x = array(dt, (2, 3, 4))
    for axis, kept in product((None, 0, 1, -1), (False, True)):
        got = run(lambda x, axis=axis, kept=kept: getattr(gc, name)(x, axis, keepdims=kept), x=x)
        want = np.asarray(getattr(np, name)(x, axis=axis, keepdims=kept), np.int32)
        agree(got, want, f"{name} of {dt} along {axis}")


# Shapes --------------------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "flatten": (gc.flatten, np.ravel), "turned": (lambda x: gc.permute_dims(x, range(x.ndim)[::-1]), np.transpose),
    "roll": (lambda x: gc.roll(x, 2, axis=-1), lambda x: np.roll(x, 2, -1)),
    "roll all": (lambda x: gc.roll(x, 3), lambda x: np.roll(x, 3)),
    "tile": (lambda x: gc.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3))),
    "repeat": (lambda x: gc.repeat(x, 3, axis=0), lambda x: np.repeat(x, 3, 0)),
    "flip": (gc.flip, np.flip), "stack": (lambda x: gc.stack([x, x], axis=1), lambda x: np.stack([x, x], 1)),
    "concat": (lambda x: gc.concat([x, x[:1]]), lambda x: np.concatenate([x, x[:1]])),
    "moveaxis": (lambda x: gc.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1)),
    "expand": (lambda x: gc.expand_dims(x, -1), lambda x: np.expand_dims(x, -1)),
    "every other": (lambda x: x[::2, None], lambda x: x[::2, None]), "last": (lambda x: x[-1:], lambda x: x[-1:]),
    "dots": (lambda x: x[..., 1:], lambda x: x[..., 1:]),
    "take": (lambda x: gc.take(x, np.array([1, 0, 1]), axis=-1), lambda x: np.take(x, [1, 0, 1], -1)),
    "by list": (lambda x: x[[1, 0]], lambda x: x[[1, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    ours, theirs = SHAPES[name]
    for dt, shape in product(ALL, ((2,), (3, 2), (2, 1, 5), (2, 0, 3), (1, 2, 2, 2))):
        x = array(dt, shape)
        indices = name in ("take", "by list")
        if (indices and (shape[-1] < 2 or shape[0] < 2)) or (name == "every other" and len(shape) > 4):
            continue
        agree(run(ours, x=x), theirs(x), f"{name} of {dt}{shape}")
