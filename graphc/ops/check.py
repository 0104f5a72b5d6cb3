"""What the `infer` rules share: one check, one error, in the words of the person who wrote the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.dtype import DType, Shape, TensorType
from graphc.errors import error
from graphc.ir import Attrs

__all__ = [
    "Infer", "attribute", "axes", "axis", "count", "elementwise", "ints", "is_any", "is_bool", "is_float",
    "is_integer", "is_logical", "is_number", "require_dtype", "same_dtype", "sizes",
]  # fmt: skip

Infer = Callable[[Sequence[TensorType], Attrs], tuple[TensorType, ...]]
Kind = tuple[str, str]  # accepted values of DType.kind, and their name in messages

is_any: Kind = ("fiub", "any type")
is_number: Kind = ("fiu", "a number type")
is_float: Kind = ("f", "a float type")
is_integer: Kind = ("iu", "an integer type")
is_logical: Kind = ("iub", "an integer type or bool")
is_bool: Kind = ("b", "bool")


def count(op: str, types: Sequence[TensorType], n: int) -> None:
    if len(types) != n:
        raise error("GC0111", f"{op} takes {n} operand{'s' * (n != 1)}, not {len(types)}")


def require_dtype(op: str, t: TensorType, kind: Kind) -> None:
    if t.dtype.kind not in kind[0]:
        raise error("GC0103", f"{op} needs {kind[1]}, and got {t}", hint="convert first: gc.astype(x, ...)")


def same_dtype(op: str, types: Sequence[TensorType]) -> None:
    if len({t.dtype for t in types}) > 1:
        raise error(
            "GC0102",
            f"{op} needs operands of one dtype, and got {listing(types)}",
            hint="convert one of them: gc.astype(x, ...)",
        )


def listing(types: Sequence[TensorType]) -> str:
    return " and ".join(map(str, types))


def elementwise(op: str, n: int, accepts: Kind, result: DType | None = None) -> Infer:
    """The rule of a map with ``n`` operands of one shape and one dtype; ``result`` is the result's dtype if fixed."""

    def infer(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
        count(op, types, n)
        for t in types:
            require_dtype(op, t, accepts)
        same_dtype(op, types)
        same_shape(op, types)
        return (TensorType(result or types[0].dtype, types[0].shape),)

    return infer


def same_shape(op: str, types: Sequence[TensorType]) -> None:
    if len({t.shape for t in types}) > 1:
        raise error("GC0101", f"{op} needs operands of one shape, and got {listing(types)}")


def where(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    """The rule of ``where(cond, a, b)``: one shape, a bool condition, two values of one dtype."""
    count("where", types, 3)
    require_dtype("the condition of where", types[0], is_bool)
    same_dtype("where", types[1:])
    same_shape("where", types)
    return (types[1],)


# Attributes: the text form may come from anywhere, so that each is checked where it is used ---------------------------


def attribute(op: str, at: Attrs, name: str, kind: type) -> Any:
    """Attribute ``name``, which must be a ``kind``. Raises GC0109."""
    value = at.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise error(
            "GC0109", f"{op} needs an attribute {name} of type {kind.__name__}, and has a {type(value).__name__}"
        )
    return value


def ints(op: str, at: Attrs, name: str) -> tuple[int, ...]:
    """Attribute ``name``, which must be a tuple of ints."""
    return int_tuple(op, name, attribute(op, at, name, tuple))


def int_tuple(op: str, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(v) is int for v in value):
        raise error("GC0109", f"attribute {name} of {op} must be a tuple of ints")
    return value


def sizes(op: str, at: Attrs, name: str) -> Shape:
    """Attribute ``name``, which must be a tuple of ints from zero on (a shape)."""
    value = ints(op, at, name)
    if any(v < 0 for v in value):
        raise error("GC0109", f"attribute {name} of {op} must not be negative, and is {value}")
    return value


def axis(op: str, at: Attrs, ndim: int) -> int:
    """Attribute ``axis``, in range of ``ndim`` dimensions."""
    value: int = attribute(op, at, "axis", int)
    if not 0 <= value < ndim:
        raise error("GC0104", f"axis {value} of {op} is out of range for {ndim} dimensions")
    return value


def axes(op: str, values: tuple[int, ...], t: TensorType) -> tuple[int, ...]:
    """``values`` as distinct axes of ``t``."""
    if any(not 0 <= v < t.ndim for v in values):
        raise error("GC0104", f"axes {values} of {op} are out of range for {t}")
    if len(set(values)) != len(values):
        raise error("GC0104", f"axes {values} of {op} name a dimension twice")
    return values
