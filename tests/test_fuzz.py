"""Random graphs, forward and backward, through the whole compiler: ``pytest tests/test_fuzz.py --graphs 2000``.

Each is lowered and run in the loop IR's interpreter, every twentieth also as native code. What fails is made smaller
before it is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loop_interp import run_plan
from random_graphs import RandomGraph

from graphc.driver import CompileReport, Options, Source, build
from graphc.errors import GraphcError
from graphc.interp import interpret
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.passes import pipeline
from graphc.passes.differentiate import differentiate
from graphc.runtime import Program
from graphc.text import print_graph
from graphc.trace import StateSpec

Arrays = dict[str, np.ndarray]
NATIVE = 20  # every so many graphs


def lowered(made: RandomGraph, seed: int) -> Arrays:
    """What the kernels compute, in the loop IR's interpreter."""
    plan = lower(pipeline.run(made.graph, check=True), BASELINES["x86-64-v4"])
    state = dict(made.state)
    got = run_plan(plan, made.inputs, state, 1 + seed % 3)
    assert not got.pop("flags").any()
    return {**got, **state}


def native(made: RandomGraph, seed: int) -> Arrays:
    """What compiled code computes."""
    ((name, new),) = made.graph.updates
    source = Source("random", None, made.graph)
    specs = [StateSpec(name, new.type, False)]
    program = Program(build([source], specs, made.state, Options(threads=2), CompileReport()), threads=2)
    got = program.random(**made.inputs)
    return {**got, "s": program.state["s"].copy()}


def problem(made: RandomGraph, seed: int, run: Callable[[RandomGraph, int], Arrays]) -> str | None:
    """How ``run`` differs from the interpreter on the graph as it was traced; None if it does not."""
    with np.errstate(all="ignore"):
        try:
            outputs, state = interpret(differentiate(made.graph), made.inputs, made.state)
            got = run(made, seed)
        except (AssertionError, GraphcError) as e:
            return f"{type(e).__name__}: {e}"
    for name, want in {**outputs, **state}.items():
        scale = max(1.0, float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)))
        if not np.allclose(got[name], want, rtol=1e-7, atol=1e-7 * scale, equal_nan=True):
            return f"{name} differs by {np.max(np.abs(got[name] - want))}"
    return None


def shrunk(seed: int, run: Callable[[RandomGraph, int], Arrays]) -> tuple[RandomGraph, str]:
    """The smallest graph of ``seed`` that still fails, and how."""
    options: dict[str, Any] = {"gradients": True}
    full = RandomGraph(seed, **options)
    names = [name for name, _ in full.graph.outputs]
    candidates = [{**options, "limit": n} for n in range(full.steps + 1)] + [options]
    for found in candidates:
        made = RandomGraph(seed, **found)
        if problem(made, seed, run):
            options, names = found, [name for name, _ in made.graph.outputs]
            break
    for name in names:
        made = RandomGraph(seed, **options, keep=[name])
        why = problem(made, seed, run)
        if why:
            return made, why
    made = RandomGraph(seed, **options)
    return made, str(problem(made, seed, run))


def test_random_graphs_compute_what_they_say(graph_seed: int) -> None:
    runs = [lowered, native] if graph_seed % NATIVE == 0 else [lowered]
    for run in runs:
        if problem(RandomGraph(graph_seed, gradients=True), graph_seed, run):
            made, why = shrunk(graph_seed, run)
            pytest.fail(f"{run.__name__}, seed {graph_seed}: {why}\n{print_graph(made.graph)}")
