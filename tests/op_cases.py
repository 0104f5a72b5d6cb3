"""Cases of every op: each dtype that it takes, over shapes and views of memory that meet every path of a lowering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle, product
from math import prod
from typing import Any

import numpy as np

from graphc.dtype import Shape, TensorType, dtype, float64
from graphc.errors import GraphcError
from graphc.ir import Attrs, Graph, Literal, Value, attrs
from graphc.ops import get_op
from graphc.ops.base import apply
from graphc.ops.binary import BINARY
from graphc.ops.build import add, mul
from graphc.ops.conv import Geometry
from graphc.ops.reduce import REDUCE
from graphc.ops.unary import UNARY
from graphc.ops.windows import windows_of

__all__ = ["CASES", "SHAPES", "VIEWS", "OpCase", "Operand", "cases_of"]

Array = np.ndarray[Any, np.dtype[Any]]

# Empty, of one element, odd, a whole number of vectors, one more, and large enough to be split between threads.
SHAPES: tuple[Shape, ...] = (
    (), (0,), (1,), (2,), (7,), (16,), (17,), (33,), (120,), (1031,), (40_003,),
    (1, 1), (3, 0), (0, 5), (1, 7), (7, 1), (8, 15), (17, 33), (129, 67),
    (2, 0, 4), (1, 1, 1), (2, 3, 5), (5, 1, 24), (16, 3, 1),
    (2, 3, 4, 5), (1, 4, 1, 9),
)  # fmt: skip


# Operands: arrays that are views -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """``base`` as it lies in memory, and the moves (op, attributes) that make the operand of it."""

    base: Array
    moves: tuple[tuple[str, Attrs], ...] = ()

    @property
    def array(self) -> Array:
        x = self.base
        for op, at in self.moves:
            (x,) = get_op(op).evaluate([x], at)
        return x

    def value(self, source: Value) -> Value:
        for op, at in self.moves:
            source = apply(op, source, **at)
        return source


Make = Callable[[Shape], Array]


def plain(shape: Shape, make: Make) -> Operand:
    return Operand(make(shape))


def turned(shape: Shape, make: Make) -> Operand:
    """Dimensions in the opposite order."""
    axes = tuple(reversed(range(len(shape))))
    return Operand(make(shape[::-1]), (("permute_dims", attrs(axes=axes)),))


def sparse(shape: Shape, make: Make) -> Operand:
    """Every second element of a larger tensor, from the second on."""
    start, stop = (1,) * len(shape), tuple(2 * n + 1 if n else 1 for n in shape)
    return Operand(
        make(tuple(2 * n + 2 for n in shape)), (("slice", attrs(start=start, stop=stop, step=(2,) * len(shape))),)
    )


def backwards(shape: Shape, make: Make) -> Operand:
    return Operand(make(shape), (("flip", attrs(axes=tuple(range(len(shape))))),))


def repeated(shape: Shape, make: Make) -> Operand:
    """The same row, column or element again and again."""
    base = tuple(1 if i == len(shape) // 2 else n for i, n in enumerate(shape))
    return Operand(make(base), (("broadcast_to", attrs(shape=shape)),))


VIEWS = (plain, turned, sparse, backwards, repeated)


class Source:
    """Operands from a fixed stream of numbers; their views take turns."""

    def __init__(self, name: str):
        self.rng = np.random.default_rng(list(name.encode()))
        self.views = cycle(VIEWS)

    def __call__(self, shape: Shape, dt: str, low: float = -9, high: float = 10, *, view: Any = None) -> Operand:
        """Normal numbers, or whole ones in [low, high)."""

        def make(shape: Shape) -> Array:
            kind = dtype(dt).kind
            if kind == "f":
                return np.asarray(self.rng.standard_normal(shape) * 2, dtype(dt).numpy)
            if kind == "b":
                return np.asarray(self.rng.random(shape) < 0.5)
            return np.asarray(self.rng.integers(max(low, 0) if kind == "u" else low, high, shape), dt)

        return (view or next(self.views))(shape, make)


# Cases ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpCase:
    """One application of an op. ``dtype`` is that of the operand which counts."""

    op: str
    operands: tuple[Operand, ...]
    attrs: Attrs
    dtype: str

    @property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(x.array for x in self.operands)

    def __str__(self) -> str:
        given = ", ".join(f"{x.array.dtype}{list(x.array.shape)}" for x in self.operands)
        moves = sorted({op for x in self.operands for op, _ in x.moves})
        return f"{self.op}({given}) {dict(self.attrs)} {' '.join(moves)}"


Cases = Callable[[str], Iterator[OpCase]]
FLOATS = ("float32", "float64", "float16", "bfloat16")
SIGNED, UNSIGNED = ("int8", "int16", "int32", "int64"), ("uint8", "uint32")
NUMBERS = FLOATS + SIGNED + UNSIGNED
ALL = (*NUMBERS, "bool")


def maps(arity: int) -> Cases:
    """Elementwise: operands of one shape and dtype, in different views."""

    def cases(op: str) -> Iterator[OpCase]:
        source = Source(op)
        low, high = (0, 40) if op.startswith("shift") else (-9, 10)
        for dt in ALL:
            if accepts(op, [TensorType(dtype(dt), (2,))] * arity):
                for shape in SHAPES:
                    yield OpCase(op, tuple(source(shape, dt, low, high) for _ in range(arity)), attrs(), dt)

    return cases


def accepts(op: str, types: Sequence[TensorType], **at: Any) -> bool:
    try:
        get_op(op).infer(types, attrs(**at))
    except GraphcError:
        return False
    return True


def where(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt, shape in product(ALL, SHAPES):
        yield OpCase(op, (source(shape, "bool"), source(shape, dt), source(shape, dt)), attrs(), dt)


def astype(op: str) -> Iterator[OpCase]:
    source, targets = Source(op), cycle(ALL)
    for dt, shape in product(ALL, SHAPES):
        for _ in range(2):
            to = next(targets)
            low = 0 if to.startswith("uint") and dt in FLOATS + SIGNED else -9
            operand = source(shape, dt, low)
            if low == 0 and dt in FLOATS:  # what does not fit has no defined value
                operand = Operand(np.abs(operand.base), operand.moves)
            yield OpCase(op, (operand,), attrs(dtype=dtype(to)), dt)


def random_bits(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for shape in SHAPES:
        yield OpCase(op, tuple(source(shape, "uint32", 0, 2**32 - 1, view=repeated) for _ in "ab"), attrs(), "uint32")


LARGEST_POSITION = {"int8": 127, "uint8": 255, "int16": 2**15 - 1, "float16": 2**15}


def iota(op: str) -> Iterator[OpCase]:
    for dt, shape in product(NUMBERS, SHAPES):
        for axis in range(len(shape)):
            if shape[axis] <= LARGEST_POSITION.get(dt, shape[axis]):
                yield OpCase(op, (), attrs(shape=shape, axis=axis, dtype=dtype(dt)), dt)


def const(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt, shape in product(ALL, SHAPES):
        if prod(shape) <= 1031:
            yield OpCase(op, (), attrs(value=Literal.of(source(shape, dt).array)), dt)


def reductions(op: str) -> Iterator[OpCase]:
    """Over the last dimensions, the first ones, those between, all and none."""
    source = Source(op)
    for dt, shape in product(NUMBERS, SHAPES):
        n = len(shape)
        kinds = {tuple(range(n)), tuple(range(n))[1:], tuple(range(n))[:-1], tuple(range(n))[-1:], (), (0, 2)[: n - 1]}
        for axes in sorted(kinds):
            if accepts(op, [TensorType(dtype(dt), shape)], axes=axes):
                operand = source(shape, dt)
                if op == "prod" and dt in FLOATS:
                    operand = Operand(0.8 + 0.4 * np.abs(np.sin(operand.base)), operand.moves)
                    operand = Operand(operand.base.astype(dtype(dt).numpy), operand.moves)
                yield OpCase(op, (operand,), attrs(axes=axes), dt)


# (left, right, batch, contract): vectors, matrices in all orders, batches, odd and empty sizes, several axes at once
PRODUCTS: tuple[tuple[Shape, Shape, Any, Any], ...] = (
    ((), (), ((), ()), ((), ())),
    ((3,), (4,), ((), ()), ((), ())),
    ((5,), (5,), ((), ()), ((0,), (0,))),
    ((5,), (5,), ((0,), (0,)), ((), ())),
    ((3, 4), (4,), ((), ()), ((1,), (0,))),
    ((4,), (4, 3), ((), ()), ((0,), (0,))),
    ((3, 4), (4, 5), ((), ()), ((1,), (0,))),
    ((3, 4), (5, 4), ((), ()), ((1,), (1,))),
    ((4, 3), (4, 5), ((), ()), ((0,), (0,))),
    ((1, 4), (4, 1), ((), ()), ((1,), (0,))),
    ((7, 1), (1, 9), ((), ()), ((1,), (0,))),
    ((0, 4), (4, 5), ((), ()), ((1,), (0,))),
    ((3, 0), (0, 5), ((), ()), ((1,), (0,))),
    ((17, 33), (33, 19), ((), ()), ((1,), (0,))),
    ((16, 16), (16, 16), ((), ()), ((1,), (0,))),
    ((130, 70), (70, 129), ((), ()), ((1,), (0,))),
    ((2, 3, 4), (4, 5), ((), ()), ((2,), (0,))),
    ((2, 3, 4), (2, 4, 5), ((0,), (0,)), ((2,), (1,))),
    ((3, 2, 4), (5, 2, 4), ((1,), (1,)), ((2,), (2,))),
    ((2, 0, 4), (2, 4, 5), ((0,), (0,)), ((2,), (1,))),
    ((0, 3, 4), (0, 4, 5), ((0,), (0,)), ((2,), (1,))),
    ((4, 2, 3, 5), (5, 3, 4, 2), ((2, 0), (1, 2)), ((1, 3), (3, 0))),
    ((2, 3, 17, 9), (2, 3, 9, 18), ((0, 1), (0, 1)), ((3,), (2,))),
    ((2, 3, 5), (3, 5, 4), ((), ()), ((1, 2), (0, 1))),
    ((2, 3, 5), (5, 3, 4), ((), ()), ((1, 2), (1, 0))),
    ((1, 300), (300, 40), ((), ()), ((1,), (0,))),
    ((300, 3), (300, 2), ((), ()), ((0,), (0,))),
)


def products(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt in NUMBERS:
        for left, right, batch, contract in PRODUCTS:
            yield OpCase(op, (source(left, dt), source(right, dt)), attrs(batch=batch, contract=contract), dt)


# Movement


def moves(attributes: Callable[[Shape], Iterator[dict[str, Any]]], dtypes: Sequence[str] = ALL) -> Cases:
    def cases(op: str) -> Iterator[OpCase]:
        source = Source(op)
        for dt, shape in product(dtypes, SHAPES):
            for at in attributes(shape):
                yield OpCase(op, (source(shape, dt),), attrs(**at), dt)

    return cases


def reshapes(shape: Shape) -> Iterator[dict[str, Any]]:
    size = prod(shape)
    factor = next((d for d in (4, 3, 5, 2, 7) if size and size % d == 0), 1)
    yield {"shape": (size,)}
    yield {"shape": (factor, 1, size // factor)}


def permutations(shape: Shape) -> Iterator[dict[str, Any]]:
    n = len(shape)
    yield {"axes": tuple(reversed(range(n)))}
    if n > 2:
        yield {"axes": (*range(1, n), 0)}


def broadcasts(shape: Shape) -> Iterator[dict[str, Any]]:
    yield {"shape": (2, *(3 if n == 1 else n for n in shape))}


def slices(shape: Shape) -> Iterator[dict[str, Any]]:
    start = tuple(min(1, n) for n in shape)
    yield {"start": start, "stop": shape, "step": (1,) * len(shape)}
    yield {"start": (0,) * len(shape), "stop": tuple(n - n // 3 for n in shape), "step": (3,) * len(shape)}


def splits(shape: Shape) -> Iterator[dict[str, Any]]:
    for axis in {0, len(shape) - 1} if shape else ():
        n = shape[axis]
        yield {"axis": axis, "sizes": (n // 3, 0, n - n // 3)}


def flips(shape: Shape) -> Iterator[dict[str, Any]]:
    yield {"axes": tuple(range(len(shape)))[-1:]}
    yield {"axes": tuple(range(len(shape)))[::2]}


def sights(shape: Shape) -> Iterator[dict[str, Any]]:
    """Windows of 2 and 3 elements along the last and the first dimension."""
    for axes, sizes, strides, dilations in (((-1,), (2,), (1,), (1,)), ((0, -1), (2, 3), (2, 1), (1, 2))):
        at = [a % len(shape) for a in axes] if shape else []
        fits = all((s - 1) * d < shape[a] for a, s, d in zip(at, sizes, dilations, strict=False))
        if at and len(set(at)) == len(at) and fits:
            yield dict(windows_of(at, sizes, strides, dilations))
    yield dict(windows_of([], [], [], []))


def concats(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt, shape in product(ALL, SHAPES):
        for axis in {0, len(shape) - 1} if shape else ():
            others = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (shape[axis], 3, 0)]
            yield OpCase(op, tuple(source(s, dt) for s in others), attrs(axis=axis), dt)


def after(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt, shape in product(ALL, SHAPES):
        if shape:
            yield OpCase(op, (source(shape, dt), source((3,), dt)), attrs(), dt)


# By index


def take(op: str) -> Iterator[OpCase]:
    source, kinds = Source(op), cycle(("int32", "int64", "uint8", "int16"))
    for dt, shape in product(ALL, SHAPES):
        for axis in {0, len(shape) - 1} if shape else ():
            for wanted in ((), (5,), (2, 3), (0,)) if prod(shape) < 200 else ((3,),):
                if shape[axis] or 0 in wanted:
                    indices = source(wanted, next(kinds), 0, max(1, min(shape[axis], 100)))
                    yield OpCase(op, (source(shape, dt), indices), attrs(axis=axis), dt)


def scatter_add(op: str) -> Iterator[OpCase]:
    source, kinds = Source(op), cycle(("int32", "int64", "uint8"))
    for dt, shape in product(NUMBERS, SHAPES):
        for rank in {min(1, len(shape)), min(2, len(shape))}:
            indices = source(shape[:rank], next(kinds), 0, 7)
            yield OpCase(op, (indices, source(shape, dt)), attrs(size=7), dt)


def recurrence(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt, shape in product(NUMBERS, SHAPES):
        if shape:
            a, b = source(shape, dt, -2, 3), source(shape, dt)
            a = Operand(np.tanh(a.base).astype(dtype(dt).numpy), a.moves) if dt in FLOATS else a
            yield OpCase(op, (a, b), attrs(reverse=len(shape) % 2 == 0), dt)


def argsort(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for (dt, shape), number in zip(product(NUMBERS, SHAPES), count(), strict=False):
        if shape:
            yield OpCase(op, (source(shape, dt),), attrs(descending=number % 2 == 1), dt)


def along(op: str) -> Iterator[OpCase]:
    source, kinds = Source(op), cycle(("int32", "int64", "uint8"))
    for dt, shape in product(ALL if op == "take_along" else NUMBERS, SHAPES):
        if not shape or (shape[-1] == 0 and op == "take_along"):
            continue
        size = shape[-1] if op == "take_along" else 6
        indices = source(shape, next(kinds), 0, max(1, min(size, 200)))
        x = source(shape, dt)
        yield OpCase(op, (x, indices) if op == "take_along" else (indices, x),
                     attrs() if op == "take_along" else attrs(size=size), dt)  # fmt: skip


# Windows

# x, w, and the geometry: strides, low, high, interior, dilations, groups
CONVOLUTIONS: tuple[tuple[Any, ...], ...] = (
    ((1, 1, 1), (1, 1, 1), (1,), (0,), (0,), (0,), (1,), 1),
    ((2, 3, 7), (4, 3, 3), (1,), (1,), (1,), (0,), (1,), 1),
    ((2, 3, 7), (4, 3, 3), (2,), (0,), (0,), (0,), (1,), 1),
    ((2, 4, 8), (6, 2, 3), (2,), (1,), (0,), (0,), (2,), 2),
    ((1, 2, 3), (2, 2, 2), (1,), (-1,), (2,), (1,), (1,), 1),
    ((3, 5, 17), (5, 1, 4), (1,), (2,), (1,), (0,), (1,), 5),
    ((2, 1, 33), (16, 1, 5), (3,), (0,), (0,), (0,), (2,), 1),
    ((0, 2, 5), (3, 2, 3), (1,), (1,), (1,), (0,), (1,), 1),
    ((1, 1, 130), (1, 1, 3), (1,), (1,), (1,), (0,), (1,), 1),
    ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (0, 0), (0, 0), (1, 1), 1),
    ((2, 3, 5, 6), (2, 3, 3, 2), (2, 1), (1, 0), (1, 1), (0, 0), (1, 2), 1),
    ((2, 2, 3, 3), (4, 1, 2, 2), (1, 1), (1, 1), (1, 0), (1, 0), (1, 1), 2),
    ((2, 3, 4, 4), (2, 3, 1, 1), (1, 1), (0, 0), (0, 0), (0, 0), (1, 1), 1),
    ((1, 8, 9, 9), (16, 8, 3, 3), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 8, 9, 9), (16, 8, 3, 3), (2, 2), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 16, 5, 5), (8, 16, 1, 1), (2, 2), (0, 0), (0, 0), (0, 0), (1, 1), 1),
    ((1, 6, 7, 5), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 6),
    ((1, 3, 12, 12), (4, 3, 5, 5), (4, 4), (2, 2), (2, 2), (0, 0), (1, 1), 1),
    ((1, 2, 6, 1), (3, 2, 1, 1), (1, 1), (0, 1), (0, 1), (0, 0), (1, 1), 1),
    ((1, 2, 5, 5), (3, 2, 2, 2), (1, 1), (1, 1), (1, 1), (1, 2), (1, 1), 1),
    ((1, 1, 3, 4, 4), (2, 1, 2, 2, 2), (1, 1, 2), (0, 0, 1), (0, 0, 1), (0, 0, 0), (1, 1, 1), 1),
    ((2, 2, 3, 3, 3), (2, 1, 3, 1, 2), (1, 1, 1), (1, 0, 0), (1, 0, 1), (0, 0, 0), (1, 1, 1), 2),
)  # fmt: skip


def convolutions(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for dt in NUMBERS:
        for x, w, *geometry in CONVOLUTIONS:
            yield OpCase(op, (source(x, dt), source(w, dt)), attrs(**asdict(Geometry(*geometry))), dt)


# Regions


def calls(op: str) -> Iterator[OpCase]:
    source = Source(op)
    for shape in SHAPES:
        x, y = (apply("input", name=n, dtype=float64, shape=shape) for n in "xy")
        body = Graph.build("body", [x, y], [("p", mul(x, y)), ("s", add(x, 1))])
        at = attrs(body=body, hint="checkpoint", vjp=None)
        yield OpCase(op, (source(shape, "float64"), source(shape, "float64")), at, "float64")


CASES: dict[str, Cases] = {
    **{op.name: maps(1) for op in UNARY}, **{op.name: maps(2) for op in BINARY},
    **{op.name: reductions for op in REDUCE},
    "where": where, "astype": astype, "random_bits": random_bits, "iota": iota, "const": const, "dot": products,
    "reshape": moves(reshapes), "permute_dims": moves(permutations), "broadcast_to": moves(broadcasts),
    "slice": moves(slices), "split": moves(splits), "flip": moves(flips), "windows": moves(sights),
    "window_max": moves(sights, NUMBERS), "concat": concats, "after": after, "take": take, "scatter_add": scatter_add,
    "recurrence": recurrence, "argsort": argsort, "take_along": along, "scatter_along": along, "conv": convolutions,
    "call": calls,
}  # fmt: skip


def cases_of(op: str, keep: int = 1) -> list[OpCase]:
    """All cases, or one of ``keep`` for each dtype: another one for each op, so that all ops together see all."""
    found = list(CASES[op](op))
    if keep == 1:
        return found
    by_dtype: dict[str, list[OpCase]] = {}
    for case in found:
        by_dtype.setdefault(case.dtype, []).append(case)
    return [c for n, group in enumerate(by_dtype.values()) for c in group[(len(op) + 3 * n) % keep :: keep]]
