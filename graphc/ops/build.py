"""Building blocks for gradient rules: nodes by name, constants, and the sample arrays of the ops' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from graphc.dtype import DType, Shape, dtype
from graphc.ir import Literal, Node, Value
from graphc.ops.base import apply

__all__ = [
    "Array", "Vjp", "add", "broadcast_axes", "const", "convert", "div", "equal", "floats", "full", "integers",
    "inverse", "mul", "neg", "permute", "positive", "reshape", "single", "sub", "where", "zeros",
]  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]
Vjp = Callable[[Node, Sequence[Value | None]], Sequence[Value | None]]


def single(rule: Callable[[Node, Value], Sequence[Value | None]]) -> Vjp:
    """The vjp of an op with one result from ``rule(node, cotangent)``. Operands that are no floats get None."""

    def vjp(node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
        (g,) = cotangents
        assert g is not None
        grads = rule(node, g)
        return [d if v.dtype.is_float else None for d, v in zip(grads, node.inputs, strict=True)]

    return vjp


# Nodes ---------------------------------------------------------------------------------------------------------------


def const(value: Any, dt: DType) -> Value:
    """A constant of dtype ``dt``; a scalar where ``value`` is one."""
    return apply("const", value=Literal.of(np.asarray(value, dt.numpy)))


def full(value: float, dt: DType, shape: Shape) -> Value:
    scalar = const(value, dt)
    return apply("broadcast_to", scalar, shape=shape) if shape else scalar


def zeros(dt: DType, shape: Shape) -> Value:
    return full(0, dt, shape)


def operand(x: Value | float, like: Value) -> Value:
    return x if isinstance(x, Value) else full(x, like.dtype, like.shape)


def binary(op: str) -> Callable[[Value | float, Value | float], Value]:
    """``op`` on two values, one of which may be a Python number."""

    def build(a: Value | float, b: Value | float) -> Value:
        like = a if isinstance(a, Value) else b
        assert isinstance(like, Value)
        return apply(op, operand(a, like), operand(b, like))

    return build


add, sub, mul, div = binary("add"), binary("sub"), binary("mul"), binary("div")
equal = binary("equal")


def neg(x: Value) -> Value:
    return apply("neg", x)


def where(cond: Value, a: Value | float, b: Value | float) -> Value:
    like = a if isinstance(a, Value) else b
    assert isinstance(like, Value)
    return apply("where", cond, operand(a, like), operand(b, like))


def reshape(x: Value, shape: Shape) -> Value:
    return x if x.shape == shape else apply("reshape", x, shape=shape)


def convert(x: Value, to: DType) -> Value:
    return x if x.dtype == to else apply("astype", x, dtype=to)


def permute(x: Value, axes: Sequence[int]) -> Value:
    return x if tuple(axes) == tuple(range(len(axes))) else apply("permute_dims", x, axes=tuple(axes))


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``axes``."""
    return tuple(int(i) for i in np.argsort(axes))


def broadcast_axes(x: Value, axes: Sequence[int], shape: Shape) -> Value:
    """Undo a reduction: ``x`` lacks ``axes`` of ``shape``, and is repeated along them."""
    kept = tuple(1 if i in axes else d for i, d in enumerate(shape))
    x = reshape(x, kept)
    return x if kept == shape else apply("broadcast_to", x, shape=shape)


# Sample arrays: few, small, the same in every run --------------------------------------------------------------------


def floats(*shape: int, dt: str = "float64", scale: float = 1.0) -> Array:
    """Normally distributed values, distinct and not near zero, from the shape alone."""
    rng = np.random.default_rng([7, *shape])
    x = rng.standard_normal(shape)
    return np.asarray((x + 0.1 * np.sign(x)) * scale, dtype(dt).numpy)


def positive(*shape: int, dt: str = "float64") -> Array:
    return np.asarray(0.2 + np.abs(floats(*shape)), dtype(dt).numpy)


def integers(*shape: int, dt: str = "int32", low: int = -5, high: int = 6) -> Array:
    """Integers in [low, high), from the shape alone."""
    values = np.random.default_rng([11, *shape]).integers(low, high, shape)
    return np.asarray(values if prod(shape) else np.zeros(shape), dtype(dt).numpy)
