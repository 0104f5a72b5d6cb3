"""Random graphs through the pipeline: after every pass, the interpreter finds the results of the traced graph."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest

from graphc.dtype import bool_, broadcast_shapes, float64
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.ops.base import apply, apply_node
from graphc.ops.build import const, full
from graphc.ops.contract import free_axes
from graphc.passes import pipeline

NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 8.0)


class Maker:
    """Grows a graph one random node at a time. Sizes repeat, so that rules find partners, and ones are frequent."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        shapes = [(2, 3), (3,), (2, 1, 3), (1, 3), ()]
        self.inputs = [apply("input", name=f"x{i}", dtype=float64, shape=s) for i, s in enumerate(shapes)]
        self.values: list[Value] = list(self.inputs)

    def pick(self) -> Value:
        """A recent value, mostly."""
        n = len(self.values)
        return self.values[int(n * np.sqrt(self.rng.random()))]

    def subset(self, n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.flatnonzero(self.rng.random(n) < 0.5))

    def wide(self, *xs: Value) -> list[Value] | None:
        try:
            shape = broadcast_shapes(*(x.shape for x in xs))
        except ValueError:
            return None
        return [apply("broadcast_to", x, shape=shape) for x in xs] if prod(shape) < 500 else None

    def unary(self) -> list[Value]:
        return [apply(str(self.rng.choice(["neg", "abs", "sin", "tanh", "stop_gradient"])), self.pick())]

    def binary(self) -> list[Value]:
        operands = self.wide(self.pick(), self.pick())
        return [apply(str(self.rng.choice(["add", "sub", "mul", "maximum"])), *operands)] if operands else []

    def with_number(self) -> list[Value]:
        x, number = self.pick(), float(self.rng.choice(NUMBERS))
        operands = [x, full(number, float64, x.shape)]
        op = str(self.rng.choice(["add", "sub", "mul", "div" if number else "add", "pow" if number == 2 else "mul"]))
        return [apply(op, *(operands if op in ("div", "pow") or self.rng.random() < 0.5 else operands[::-1]))]

    def choose(self) -> list[Value]:
        operands = self.wide(self.pick(), self.pick(), self.pick())
        if operands is None:
            return []
        cond = apply("less", *operands[:2])
        cond = apply("logical_not", cond) if self.rng.random() < 0.3 else cond
        cond = full(1, bool_, cond.shape) if self.rng.random() < 0.1 else cond
        return [apply("where", cond, *operands[1:])]

    def move(self) -> list[Value]:
        x = self.pick()
        match int(self.rng.integers(4)):
            case 0:
                return [apply("permute_dims", x, axes=tuple(int(i) for i in self.rng.permutation(len(x.shape))))]
            case 1:
                units = [d for d in x.shape if d != 1]
                for _ in range(self.rng.integers(3)):
                    units.insert(int(self.rng.integers(len(units) + 1)), 1)
                return [apply("reshape", x, shape=tuple(units) if self.rng.random() < 0.7 else (x.type.size,))]
            case 2:
                start = [int(self.rng.integers(d + 1)) // 2 for d in x.shape]
                stop = [d - int(self.rng.random() < 0.3 and d > a + 1) for a, d in zip(start, x.shape, strict=True)]
                step = tuple(int(self.rng.integers(1, 3)) for _ in x.shape)
                return [apply("slice", x, start=tuple(start), stop=tuple(stop), step=step)]
        return [apply("broadcast_to", x, shape=(int(self.rng.integers(1, 3)), *x.shape))] if x.type.size < 99 else []

    def reduce(self) -> list[Value]:
        x = self.pick()
        if 0 in x.shape:
            return []
        return [apply(str(self.rng.choice(["sum", "max", "min"])), x, axes=self.subset(len(x.shape)))]

    def join(self) -> list[Value]:
        x = self.pick()
        if not x.shape or x.type.size > 99:
            return []
        axis = int(self.rng.integers(len(x.shape)))
        whole = apply("concat", x, apply("neg", x), axis=axis)
        sizes = (x.shape[axis],) * 2 if self.rng.random() < 0.5 else (2 * x.shape[axis],)
        return list(apply_node("split", whole, axis=axis, sizes=sizes).outs)

    def dot(self) -> list[Value]:
        x, y = self.pick(), self.pick()
        pairs = [(i, j) for i, a in enumerate(x.shape) for j, b in enumerate(y.shape) if a == b]
        self.rng.shuffle(pairs)
        used: list[tuple[int, int]] = []
        for i, j in pairs:
            if all(i != a and j != b for a, b in used):
                used.append((int(i), int(j)))
        cut = int(self.rng.integers(len(used) + 1))
        batch, contract = (tuple(zip(*p, strict=True)) or ((), ()) for p in (used[:cut], used[cut:]))
        free = [s.shape[i] for s, k in ((x, 0), (y, 1)) for i in free_axes(len(s.shape), batch[k], contract[k])]
        if prod(free) * prod(x.shape[i] for i in batch[0]) > 500:
            return []
        return [apply("dot", x, y, batch=batch, contract=contract)]

    def graph(self, nodes: int) -> Graph:
        steps: list[Callable[[], list[Value]]] = [
            self.unary, self.binary, self.with_number, self.choose, self.move, self.move, self.reduce, self.join,
            self.dot,
        ]  # fmt: skip
        for _ in range(nodes):
            made = steps[int(self.rng.integers(len(steps)))]()
            # Bounded, so that powers and products of powers stay finite.
            self.values += [apply("tanh", v) if self.rng.random() < 0.2 else v for v in made]
        self.values.append(const(1.5, float64))
        return Graph.build("random", self.inputs, [(f"r{i}", v) for i, v in enumerate(self.values[-8:])])


@pytest.mark.parametrize("seed", range(60))
def test_passes_keep_the_results(seed: int) -> None:
    graph = Maker(seed).graph(40)
    rng = np.random.default_rng(seed)
    inputs = {v.node.attrs["name"]: rng.normal(size=v.shape) for v in graph.inputs}
    want, _ = interpret(graph, inputs)

    def compare(name: str, before: Graph, after: Graph, seconds: float) -> None:
        got, _ = interpret(after, inputs)
        for key, array in want.items():
            scale = np.max(np.abs(array), initial=1.0)
            np.testing.assert_allclose(got[key] / scale, array / scale, atol=1e-9, err_msg=f"{key} after {name}")

    pipeline.run(graph, observe=compare, check=True)
