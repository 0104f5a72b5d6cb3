"""Random programs, forward and backward, compiled and compared with the interpreter: ``make fuzz`` runs 2,000.

Many graphs are entries of one program, so that linking and loading cost little beside their kernels. What fails is run
alone, stage by stage, and made smaller before it is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from fuzzing import (
    difference,
    expected,
    in_loops,
    natively,
    problem,
    report,
    shrink,
    slope_problem,
    through_passes,
)
from random_graphs import Case, random_case

from graphc.ir import Graph, Node, Value
from graphc.ops import get_op
from graphc.ops.base import Move, apply, bodies, install
from graphc.ops.build import mul, single
from graphc.passes import pipeline
from graphc.text import print_graph

LOOPS = 10  # every so many graphs also run in the loop IR's interpreter
ALGEBRA = ("simplify", "fold", "simplify_folded", "cse")  # passes that lowering must not depend on


def test_random_graphs_compute_what_they_say(graph_seeds: range, thorough: bool) -> None:
    cases = {seed: random_case(seed) for seed in graph_seeds}
    wrong = suspects(cases, cache=not thorough)
    for seed in wrong:
        why = report(cases[seed])
        assert why is None, f"seed {seed}: {why}"
    assert not wrong, f"seeds {wrong} go wrong together, and none alone"


def suspects(cases: dict[int, Case], cache: bool = False) -> list[int]:
    """The seeds whose compiled results differ; all, where they do not even compile. ``cache``: kernels are kept for the
    next run."""
    try:
        found = natively(list(cases.values()), cache)
    except Exception:
        return list(cases)
    with np.errstate(all="ignore"):
        return [
            seed
            for (seed, case), got in zip(cases.items(), found, strict=True)
            if difference(case, expected(case), got)
        ]


@pytest.mark.parametrize("without", [(), ALGEBRA], ids=["optimised", "as traced"])
def test_random_graphs_in_loops(graph_seeds: range, without: tuple[str, ...]) -> None:
    for seed in graph_seeds[::LOOPS]:

        def check(case: Case, seed: int = seed) -> str | None:
            return problem(case, lambda c: in_loops(c, 1 + seed % 3, without))

        if check(random_case(seed)):
            small = shrink(random_case(seed), check)
            pytest.fail(f"seed {seed}: {check(small)}\n{print_graph(small.graph, brief=True)}")


@pytest.mark.parametrize("order", [1, 2])
def test_random_gradients_are_slopes(graph_seeds: range, order: int) -> None:
    for seed in graph_seeds[:: 1 if order == 1 else 4]:
        case = random_case(seed, gradients=False, dt="float64", stops=False)
        if slope_problem(case, order):
            small = shrink(case, lambda c: slope_problem(c, order))
            pytest.fail(f"seed {seed}: {slope_problem(small, order)}\n{print_graph(small.graph, brief=True)}")


# The fuzzer finds what is planted ------------------------------------------------------------------------------------

SEEDS = 300  # at most so many graphs until a bug is found


def found(check: Callable[[Case], str | None], **options: object) -> Case:
    """The first random case that ``check`` finds fault with, made small."""
    for seed in range(SEEDS):
        case = random_case(seed, **options)  # type: ignore[arg-type]
        if check(case):
            return shrink(case, check)
    raise AssertionError(f"{SEEDS} graphs did not find it")


def ops(case: Case) -> list[str]:
    """The ops of a case, also of what its loops and branches run."""

    def inside(graph: Graph) -> list[str]:
        return [op for n in graph.nodes for op in (n.op, *(op for b in bodies(n) for op in inside(n.attrs[b])))]

    return [op for op in inside(case.graph) if op not in ("input", "state", "const")]


@contextmanager
def instead(op: str, **parts: object) -> Iterator[None]:
    """``op`` with other parts."""
    right = get_op(op)
    install([replace(right, **parts)])  # type: ignore[arg-type]
    try:
        yield
    finally:
        install([right])


def test_a_wrong_rewrite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def commuted(node: Node, inputs: tuple[Value, ...]) -> list[Value] | None:
        """a - b → b - a where b was broadcast."""
        wrong = node.op == "sub" and inputs[1].node.op == "broadcast_to"
        return [apply("sub", inputs[1], inputs[0])] if wrong else None

    planted = pipeline.Pass("planted", lambda g: g.rewrite(commuted), "Goes wrong.")
    at = [p.name for p in pipeline.PIPELINE].index("cse")
    passes = (*pipeline.PIPELINE[:at], planted, *pipeline.PIPELINE[at:])
    monkeypatch.setattr(pipeline, "PIPELINE", passes)
    small = found(lambda case: problem(case, through_passes))
    assert len(ops(small)) <= 3
    assert "sub" in ops(small)


def test_a_wrong_view_is_found() -> None:
    def from_the_start(shape: tuple[int, ...], strides: tuple[int, ...], at: dict, out: tuple[int, ...]) -> tuple:
        return tuple(s * k for s, k in zip(strides, at["step"], strict=True)), 0

    with instead("slice", lower=Move(from_the_start)):
        small = found(lambda case: problem(case, in_loops) if "slice" in ops(case) else None)
    assert len(ops(small)) <= 3
    assert "slice" in ops(small)


def test_a_wrong_lowering_is_found_in_compiled_code() -> None:
    cases = {seed: random_case(seed) for seed in range(4)}
    with instead("tanh", lower=get_op("sigmoid").lower):
        wrong = suspects(cases)
        why = report(cases[wrong[0]])
    assert wrong == [seed for seed, case in cases.items() if "tanh" in ops(case)]
    assert why is not None
    assert why.startswith("lowering: ")
    assert len(why.splitlines()) <= 8  # what is wrong, the input, three nodes, and the frame of the graph


def test_a_wrong_gradient_is_found() -> None:
    with instead("tanh", vjp=single(lambda n, g: [mul(g, n.out())])):
        small = found(lambda case: slope_problem(case), gradients=False, dt="float64", stops=False)
    assert len(ops(small)) <= 3
