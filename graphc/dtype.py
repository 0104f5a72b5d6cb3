"""Element types, tensor types and promotion: the vocabulary that every other module shares.

Nothing here imports the rest of graphc, so that an artifact runs where the compiler is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

__all__ = [
    "DTYPES",
    "DType",
    "FloatInfo",
    "IntegerInfo",
    "Shape",
    "TensorType",
    "array_of",
    "bfloat16",
    "bool_",
    "broadcast_shapes",
    "contiguous_strides",
    "dtype",
    "finfo",
    "float16",
    "float32",
    "float64",
    "holds",
    "holds_floats",
    "iinfo",
    "int8",
    "int16",
    "int32",
    "int64",
    "ordered_strides",
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
        """NumPy's dtype; that of bfloat16 comes from the package ml_dtypes."""
        return _bfloat16() if self.name == "bfloat16" else np.dtype(self.name)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_half(self) -> bool:
        """Whether it is a float of 16 bits: one that is stored so, and computed with in float32."""
        return self.is_float and self.itemsize == 2

    @property
    def computed(self) -> DType:
        """The type in which arithmetic on this type is done: float32 for 16-bit floats, else itself."""
        return float32 if self.is_half else self

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name


@cache
def _bfloat16() -> np.dtype:
    from ml_dtypes import bfloat16  # here, so that what has no bfloat16 runs without the package

    found: np.dtype = np.dtype(bfloat16)
    return found


float64 = DType("float64", "f", 8)
float32 = DType("float32", "f", 4)
float16 = DType("float16", "f", 2)
bfloat16 = DType("bfloat16", "f", 2)
int64 = DType("int64", "i", 8)
int32 = DType("int32", "i", 4)
int16 = DType("int16", "i", 2)
int8 = DType("int8", "i", 1)
uint32 = DType("uint32", "u", 4)
uint8 = DType("uint8", "u", 1)
bool_ = DType("bool", "b", 1)

DTYPES = {
    d.name: d
    for d in (float64, float32, float16, bfloat16, int64, int32, int16, int8, uint32, uint8, bool_)
}  # fmt: skip


def dtype(like: object) -> DType:
    """The DType for a DType, a name ("float32"), a NumPy dtype or a Python scalar type.

    Raises KeyError with the name when graphc has no such element type.
    """
    if isinstance(like, DType):
        return like
    return DTYPES[str(like) if isinstance(like, str) else np.dtype(like).name]  # type: ignore[call-overload]


def holds_floats(array: np.ndarray) -> bool:
    """Whether the elements are floats; bfloat16 is none in NumPy's eyes (its ``kind`` is V)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def array_of(value: Any) -> np.ndarray:
    """``value`` as an array. A tensor of PyTorch's bfloat16, which NumPy does not take, comes by way of float32."""
    foreign = not isinstance(value, np.ndarray | np.generic) and hasattr(value, "float")
    if foreign and "bfloat16" in str(getattr(value, "dtype", "")):
        return np.asarray(value.float()).astype(bfloat16.numpy)
    return np.asarray(value)


# Promotion: what each type becomes at its next step up. Two types meet in the first that both reach. Among integers and
# among floats that is NumPy's promotion. An integer that meets a float takes the float's type whatever its width (int64
# and float32 give float32, as in PyTorch and JAX, where NumPy says float64), so that no wider float appears unasked.
WIDER: dict[DType, tuple[DType, ...]] = {
    bool_: (uint8, int8),
    uint8: (int16, uint32),
    int8: (int16,),
    int16: (int32,),
    int32: (int64,),
    uint32: (int64,),
    int64: (float16, bfloat16),
    float16: (float32,),  # neither of the two holds the other
    bfloat16: (float32,),
    float32: (float64,),
    float64: (),
}


@cache
def promote(a: DType, b: DType) -> DType:
    """The type of ``a + b``: the lowest that both reach by `WIDER`."""
    common = _reach(a) & _reach(b)
    return next(d for d in common if common <= _reach(d))


def _reach(d: DType) -> frozenset[DType]:
    """``d`` and all above it."""
    return frozenset({d}).union(*map(_reach, WIDER[d]))


# Bits of the exponent and of the fraction of each float type (IEEE 754; bfloat16 is the upper half of a float32).
FORMATS = {float64: (11, 52), float32: (8, 23), float16: (5, 10), bfloat16: (8, 7)}


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``, where both are of one kind."""
    if wide.kind != narrow.kind:
        return False
    if wide.is_float:
        return all(w >= n for w, n in zip(FORMATS[wide], FORMATS[narrow], strict=True))
    return wide.itemsize >= narrow.itemsize


@dataclass(frozen=True, slots=True)
class FloatInfo:
    """The limits of a float type, as the Array API's ``finfo`` gives them."""

    dtype: DType
    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float


@dataclass(frozen=True, slots=True)
class IntegerInfo:
    """The limits of an integer type, as the Array API's ``iinfo`` gives them."""

    dtype: DType
    bits: int
    max: int
    min: int


def finfo(like: object) -> FloatInfo:
    """The limits of a float type. Raises KeyError for any other."""
    d = dtype(like)
    exponent, fraction = FORMATS[d]
    top = (1 << (exponent - 1)) - 1
    eps = 2.0**-fraction
    largest = (2 - eps) * 2.0**top
    return FloatInfo(d, 8 * d.itemsize, eps, largest, -largest, 2.0 ** (1 - top))


def iinfo(like: object) -> IntegerInfo:
    """The limits of an integer type. Raises KeyError for any other."""
    d = dtype(like)
    if not d.is_integer:
        raise KeyError(d.name)
    bits = 8 * d.itemsize
    low, high = (0, 2**bits - 1) if d.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return IntegerInfo(d, bits, high, low)


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


def ordered_strides(shape: Shape, order: Shape) -> Shape:
    """Strides in elements of a dense tensor whose dimensions lie in memory in ``order``, outermost first."""
    dense = contiguous_strides(tuple(shape[d] for d in order))
    return tuple(dense[order.index(d)] for d in range(len(shape)))


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
