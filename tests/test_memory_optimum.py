"""The planner and rematerialisation beside optima by integer programming (SciPy's HiGHS), on graphs that are small."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from random import Random

import numpy as np
import pytest

from graphc.dtype import float32
from graphc.ir import Graph, Value
from graphc.ops.base import apply
from graphc.passes.memory import ALIGN, Lifetime, plan_memory
from graphc.passes.rematerialise import rematerialise
from graphc.passes.schedule import peak_bytes

optimize = pytest.importorskip("scipy.optimize")


class Program:
    """An integer program: minimise the sum of ``cost`` times variables, under rows of ``low`` ≤ Σ factor · variable."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.whole: list[int] = []
        self.rows: list[tuple[dict[int, float], float]] = []

    def variable(self, cost: float = 0.0, upper: float = 1.0, whole: bool = True) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def at_least(self, low: float, terms: Iterable[tuple[float, int]]) -> None:
        row: dict[int, float] = {}
        for factor, variable in terms:
            row[variable] = row.get(variable, 0.0) + factor
        self.rows.append((row, low))

    def solve(self) -> float:
        matrix = np.zeros((len(self.rows), len(self.cost)))
        for i, (row, _) in enumerate(self.rows):
            matrix[i, list(row)] = list(row.values())
        found = optimize.milp(
            self.cost,
            integrality=self.whole,
            bounds=optimize.Bounds(0, self.upper),
            constraints=optimize.LinearConstraint(matrix, [low for _, low in self.rows]),
        )
        assert found.status == 0, found.message
        return float(found.fun)


# Offsets -------------------------------------------------------------------------------------------------------------


def best_arena(lives: list[Lifetime]) -> int:
    """The smallest arena: of two tensors alive at once, one is above the other."""
    program, total = Program(), sum(life.nbytes for life in lives)
    top = program.variable(1.0, total, whole=False)
    offset = [program.variable(0.0, total, whole=False) for _ in lives]
    for at, life in zip(offset, lives, strict=True):
        program.at_least(life.nbytes, [(1, top), (-1, at)])
    for (a, one), (b, other) in combinations(zip(offset, lives, strict=True), 2):
        if one.start <= other.end and other.start <= one.end:
            above = program.variable()  # 1: ``one`` lies above ``other``
            program.at_least(other.nbytes - total, [(1, a), (-1, b), (-total, above)])
            program.at_least(one.nbytes, [(1, b), (-1, a), (total, above)])
    return round(program.solve())


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_within_five_percent_of_the_optimum(seed: int) -> None:
    random = Random(seed)
    lives = []
    for i in range(8):
        start = random.randrange(8)
        lives.append(Lifetime(f"t{i}", ALIGN * random.randint(1, 9), start, start + random.randint(0, 4)))
    plan, best = plan_memory(lives), best_arena(lives)
    assert plan.lower_bound_bytes <= best <= plan.arena_bytes <= 1.05 * best


# Launches ------------------------------------------------------------------------------------------------------------


def fewest_launches(operands: list[list[int]], budget: int) -> int:
    """The fewest runs of nodes, of which node 0 is an input and each other one a launch that makes one value, so that
    never more than ``budget`` values are in memory: Checkmate (Jain et al., arXiv 1910.02653), equations 1 to 9.

    In stage t node t is computed for the first time: run[t, i] says whether node i runs in it, kept[t, i] whether its
    value is in memory when it begins, free[t, i, k] whether it can go once node k has run."""
    program, n = Program(), len(operands)
    readers = [[j for j in range(n) if i in operands[j]] for i in range(n)]
    run = {(t, i): program.variable(float(i > 0)) for t in range(n) for i in range(t + 1)}
    kept = {(t, i): program.variable() for t in range(1, n) for i in range(t)}
    free = {(t, i, k): program.variable() for t in range(n) for k in range(t + 1) for i in {*operands[k], k}}
    for t in range(n):
        program.at_least(1, [(1, run[t, t])])
        if t:
            program.at_least(0, [(-1, run[t, 0])])  # an input cannot be computed again
        for k in range(t + 1):
            for i in operands[k]:
                program.at_least(0, [(1, run[t, i]), *([(1, kept[t, i])] if i < t else []), (-1, run[t, k])])
            for i in {*operands[k], k}:
                later = [run[t, j] for j in readers[i] if k < j <= t] + ([kept[t + 1, i]] if t + 1 < n else [])
                hazards = [(1.0, v) for v in later] + [(-1.0, run[t, k])]  # and 1
                program.at_least(0, [*hazards, (1, free[t, i, k])])
                most = len(later) + 1
                program.at_least(1 - most, [(-f, v) for f, v in hazards] + [(-most, free[t, i, k])])
        memory = [(-1.0, kept[t, i]) for i in range(t)]
        for k in range(t + 1):
            memory.append((-1.0, run[t, k]))
            program.at_least(-budget, memory)
            memory += [(1.0, free[t, i, k]) for i in {*operands[k], k}]
        if t:
            for i in range(t):
                before = [(1, run[t - 1, i]), *([(1, kept[t - 1, i])] if i < t - 1 else [])]
                program.at_least(0, [*before, (-1, kept[t, i])])
    return round(program.solve())


def launch(op: str, *operands: Value) -> Value:
    inputs = [apply("input", name=f"x{i}", dtype=v.dtype, shape=v.shape) for i, v in enumerate(operands)]
    body = Graph.build("map", inputs, [("y0", apply(op, *inputs))])
    made: Value = apply("call", *operands, body=body, hint="map", vjp=None)
    return made


def chain(depth: int) -> tuple[Graph, list[list[int]]]:
    """``depth`` functions and the products of a backward pass through them; and the operands of each node by number."""
    values = [apply("input", name="x", dtype=float32, shape=(64, 64))]
    operands: list[list[int]] = [[]]
    for i in range(depth):
        values.append(launch("sin", values[i]))
        operands.append([i])
    for i in reversed(range(depth)):
        operands.append([len(values) - 1, i])
        values.append(launch("mul", values[-1], values[i]))
    return Graph.build("chain", values[:1], [("y", values[-1])]), operands


@pytest.mark.parametrize(("depth", "budget"), [(4, 4), (5, 5), (5, 4)])
def test_launches_beside_the_optimum(depth: int, budget: int) -> None:
    graph, operands = chain(depth)
    one = 64 * 64 * 4
    assert peak_bytes(graph) > budget * one
    made = rematerialise(graph, budget * one)
    assert peak_bytes(made) <= budget * one
    assert sum(n.op == "call" for n in made) <= 1.2 * fewest_launches(operands, budget)
