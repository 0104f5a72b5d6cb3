"""Random valid graphs: every kind of op over values of few shapes, so that they meet often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from graphc.dtype import dtype
from graphc.ir import Graph, Literal, Value
from graphc.ops.base import apply, apply_node

__all__ = ["RandomGraph"]

DIMS = (1, 2, 3, 5, 7, 16)
LARGEST = 20_000  # elements of a value


class RandomGraph:
    """A graph of up to ``steps`` random ops from ``seed``, with ``inputs`` and ``state`` to run it on.

    With ``gradients`` the graph also returns those of a bounded loss by the inputs. A graph of fewer steps begins like
    one of more, so that what fails can be made smaller: ``limit`` steps, and only the outputs named in ``keep``.
    """

    def __init__(
        self,
        seed: int,
        steps: int = 40,
        dt: str = "float64",
        *,
        gradients: bool = False,
        limit: int | None = None,
        keep: Sequence[str] | None = None,
    ):
        self.rng, self.dtype = np.random.default_rng(seed), dtype(dt)
        self.inputs: dict[str, np.ndarray] = {}
        self.state: dict[str, np.ndarray] = {}
        shape = tuple(int(d) for d in self.rng.choice(DIMS, self.rng.integers(1, 4)))
        arguments = [self.source("input", f"x{i}", shape, self.inputs) for i in range(2)]
        kept = self.source("state", "s", shape, self.state, trainable=False)
        self.values = [*arguments, kept]
        makers = (self.map, self.map, self.map, self.reduce, self.permute, self.reshape, self.cut, self.concat,
                  self.split, self.dot, self.widen, self.position, self.scale, self.recurrence, self.sort,
                  self.pick_along, self.pick_rows, self.wait, self.flip)  # fmt: skip
        self.steps = int(self.rng.integers(4, steps))
        for _ in range(self.steps if limit is None else limit):
            maker: Callable[[Value], list[Value]] = makers[self.rng.integers(len(makers))]
            self.values += [v for v in maker(self.pick()) if v.type.size <= LARGEST]
        self.rng = np.random.default_rng(seed + 1)  # what follows draws the same numbers whatever the steps drew
        numbers = sorted({int(i) for i in self.rng.integers(0, len(self.values), 3)})
        outputs = [(f"y{i}", self.values[i]) for i in numbers]
        if gradients:
            found = apply_node("grad", self.loss(), *arguments, allow_unused=True).outs
            outputs += [(f"g{i}", g) for i, g in enumerate(found)]
        outputs = [(name, v) for name, v in outputs if keep is None or name in keep]
        self.graph = Graph.build("random", arguments, outputs, [("s", self.pick(kept.shape))])

    def loss(self) -> Value:
        """A bounded scalar of the latest values."""
        total = None
        for v in self.values[-3:]:
            one = apply("sum", apply("tanh", v), axes=tuple(range(v.type.ndim)))
            total = one if total is None else apply("add", total, one)
        assert total is not None
        return total

    def source(self, op: str, name: str, shape: tuple[int, ...], into: dict[str, np.ndarray], **at: bool) -> Value:
        into[name] = self.rng.standard_normal(shape).astype(self.dtype.numpy)
        return apply(op, name=name, dtype=self.dtype, shape=shape, **at)

    def pick(self, shape: tuple[int, ...] | None = None) -> Value:
        """A value, of ``shape`` if given: mostly a recent one."""
        fitting = [v for v in self.values if shape is None or v.shape == shape][-12:]
        return fitting[self.rng.integers(len(fitting))]

    def choose(self, n: int) -> int:
        return int(self.rng.integers(n))

    def map(self, x: Value) -> list[Value]:
        if self.choose(2):
            return [apply(("tanh", "neg", "abs", "sigmoid")[self.choose(4)], x)]
        return [apply(("add", "sub", "mul", "maximum")[self.choose(4)], x, self.pick(x.shape))]

    def reduce(self, x: Value) -> list[Value]:
        """A reduction, and what it reduced less it."""
        if not x.shape:
            return []
        axes = tuple(sorted({self.choose(x.type.ndim) for _ in range(2)}))
        small = apply(("sum", "max")[self.choose(2)], x, axes=axes)
        kept = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
        wide = apply("broadcast_to", apply("reshape", small, shape=kept), shape=x.shape)
        return [small, apply("sub", x, wide)]

    def permute(self, x: Value) -> list[Value]:
        return [apply("permute_dims", x, axes=tuple(int(a) for a in self.rng.permutation(x.type.ndim)))]

    def reshape(self, x: Value) -> list[Value]:
        factors = [d for d in range(1, x.type.size + 1) if x.type.size % d == 0]
        d = factors[self.choose(len(factors))]
        return [apply("reshape", x, shape=(d, x.type.size // d))]

    def cut(self, x: Value) -> list[Value]:
        start = tuple(self.choose(n) for n in x.shape)
        stop = tuple(a + 1 + self.choose(n - a) for a, n in zip(start, x.shape, strict=True))
        return [apply("slice", x, start=start, stop=stop, step=tuple(1 + self.choose(2) for _ in x.shape))]

    def concat(self, x: Value) -> list[Value]:
        return [apply("concat", x, self.pick(x.shape), axis=self.choose(x.type.ndim))] if x.shape else []

    def split(self, x: Value) -> list[Value]:
        if not x.shape or max(x.shape) < 2:
            return []
        axis = int(np.argmax(x.shape))
        first = 1 + self.choose(x.shape[axis] - 1)
        return list(apply_node("split", x, axis=axis, sizes=(first, x.shape[axis] - first)).outs)

    def dot(self, x: Value) -> list[Value]:
        if not x.shape or prod(x.shape) ** 2 > LARGEST * x.shape[-1]:
            return []
        last = (x.type.ndim - 1,)
        return [apply("dot", x, self.pick(x.shape), batch=((), ()), contract=(last, last))]

    def widen(self, x: Value) -> list[Value]:
        return [apply("broadcast_to", x, shape=(1 + self.choose(3), *x.shape))]

    def position(self, x: Value) -> list[Value]:
        if not x.shape:
            return []
        at = apply("iota", shape=x.shape, axis=self.choose(x.type.ndim), dtype=self.dtype)
        return [apply("where", apply("less", x, at), x, at)]

    def recurrence(self, x: Value) -> list[Value]:
        """Decaying sums, so that long ones stay bounded."""
        if not x.shape:
            return []
        return [apply("recurrence", apply("tanh", self.pick(x.shape)), x, reverse=bool(self.choose(2)))]

    def sort(self, x: Value) -> list[Value]:
        if not x.shape:
            return []
        order = apply("argsort", x, descending=bool(self.choose(2)))
        return [apply("take_along", x, order)]

    def indices(self, shape: tuple[int, ...], size: int) -> Value:
        return apply("const", value=Literal.of(self.rng.integers(0, size, shape).astype(np.int32)))

    def pick_along(self, x: Value) -> list[Value]:
        """Elements by index along the last dimension, and the sums of elements by index."""
        if not x.shape or 0 in x.shape:
            return []
        at = self.indices(x.shape, x.shape[-1])
        return [apply("take_along", x, at), apply("scatter_along", at, x, size=x.shape[-1] + self.choose(3))]

    def pick_rows(self, x: Value) -> list[Value]:
        """Rows by index, and the sums of rows by index."""
        if not x.shape or 0 in x.shape:
            return []
        axis, count = self.choose(x.type.ndim), 1 + self.choose(6)
        rows = apply("take", x, self.indices((count,), x.shape[axis]), axis=axis)
        return [rows, apply("scatter_add", self.indices(x.shape[:1], 4), x, size=4)]

    def flip(self, x: Value) -> list[Value]:
        return [apply("flip", x, axes=(self.choose(x.type.ndim),))] if x.shape else []

    def wait(self, x: Value) -> list[Value]:
        return [apply("after", x, self.pick(), self.pick())] if x.shape else []

    def scale(self, x: Value) -> list[Value]:
        number = apply("const", value=Literal.of(np.asarray(self.choose(5) - 2, self.dtype.numpy)))
        return [apply("mul", x, apply("broadcast_to", number, shape=x.shape) if x.shape else number)]
