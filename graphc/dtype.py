"""Element types, tensor types and promotion: the vocabulary that every other module shares.

Nothing here imports the rest of graphc, so that an artifact runs where the compiler is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

__all__ = [
    "DTYPES",
    "DType",
    "Shape",
    "TensorType",
    "bool_",
    "broadcast_shapes",
    "contiguous_strides",
    "dtype",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "promote",
    "same_layout",
    "uint8",
    "uint32",
]

# Dimensions are integers today. Everything takes shapes through this name and the functions below, so that symbolic
# dimensions are a change in one place.
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. ``kind`` is ``f`` (float), ``i`` (signed), ``u`` (unsigned) or ``b`` (bool)."""

    name: str
    kind: str
    itemsize: int

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.name)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name


float64 = DType("float64", "f", 8)
float32 = DType("float32", "f", 4)
int64 = DType("int64", "i", 8)
int32 = DType("int32", "i", 4)
int16 = DType("int16", "i", 2)
int8 = DType("int8", "i", 1)
uint32 = DType("uint32", "u", 4)
uint8 = DType("uint8", "u", 1)
bool_ = DType("bool", "b", 1)

DTYPES = {d.name: d for d in (float64, float32, int64, int32, int16, int8, uint32, uint8, bool_)}


def dtype(like: object) -> DType:
    """The DType for a DType, a name ("float32"), a NumPy dtype or a Python scalar type.

    Raises KeyError with the name when graphc has no such element type.
    """
    if isinstance(like, DType):
        return like
    return DTYPES[str(like) if isinstance(like, str) else np.dtype(like).name]  # type: ignore[call-overload]


def promote(a: DType, b: DType) -> DType:
    """The type of ``a + b``: NumPy's promotion, except that an integer tensor meeting a float keeps the float's width
    (int64 + float32 is float32, as in PyTorch and JAX), so that no float64 appears unasked."""
    if a.is_float != b.is_float:
        return a if a.is_float else b
    return dtype(np.promote_types(a.numpy, b.numpy))


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a value: all that the compiler knows of a tensor before it runs."""

    dtype: DType
    shape: Shape

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides in elements."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def same_layout(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether strides ``a`` and ``b`` reach the same elements: those of a dimension of one element are never used."""
    return all(d == 1 or x == y for d, x, y in zip(shape, a, b, strict=True))


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy's broadcast of several shapes. Raises ValueError when they do not fit."""
    ndim = max(map(len, shapes), default=0)
    padded = [(1,) * (ndim - len(s)) + tuple(s) for s in shapes]
    out = []
    for dims in zip(*padded, strict=True):
        wide = {d for d in dims if d != 1}
        if len(wide) > 1:
            raise ValueError("shapes " + " and ".join(map(str, shapes)) + " do not broadcast")
        out.append(wide.pop() if wide else 1)
    return tuple(out)
