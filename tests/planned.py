"""Graphs through passes, fusion and lowering, run by the interpreter of the loop IR and compared with the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from loop_interp import run_plan

import graphc as gc
from graphc.interp import interpret
from graphc.ir import Graph
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.kernels.plan import EntryPlan
from graphc.passes import pipeline
from graphc.passes.fuse import fuse
from graphc.passes.schedule import schedule
from graphc.tracing import trace_entry
from graphc.verify import verify

Arrays = dict[str, np.ndarray]


def fused(graph: Graph) -> Graph:
    """``graph`` fused and in its final order."""
    done = schedule(fuse(graph))
    verify(done)
    return done


def hints(graph: Graph) -> Counter[str]:
    """How many kernels of each kind a fused graph has."""
    return Counter(node.attrs["hint"] for node in graph if node.op == "call")


def plan_of(graph: Graph) -> EntryPlan:
    return lower(fused(graph), BASELINES["x86-64-v4"])


def check(
    graph: Graph, inputs: Arrays, state: Arrays | None = None, tolerance: float = 1e-5, threads: int = 1
) -> EntryPlan:
    """Lower and run ``graph``; outputs and new state must be those of the interpreter. Returns the plan."""
    done = fused(graph)
    plan = lower(done, BASELINES["x86-64-v4"])
    want, want_state = interpret(graph, inputs, state)
    # Fusion regroups; it does not compute anything differently.
    same, same_state = interpret(done, inputs, state)
    compare(same, want, 1e-12)
    compare(same_state, want_state, 1e-12)
    new_state = {k: v.copy() for k, v in (state or {}).items()}
    got = run_plan(plan, inputs, new_state, threads)
    assert not got.pop("flags").any()
    compare(got, want, tolerance)
    compare(new_state, want_state, tolerance)
    return plan


def compare(got: Arrays, want: Arrays, tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def traced(fn: Callable[..., Any], **arrays: np.ndarray) -> tuple[Graph, Arrays]:
    """The graph of ``fn`` (which returns a tensor or a dict) for arguments like ``arrays``, after all passes before
    fusion, and its initial state."""

    def entry(**tensors: gc.Tensor) -> dict[str, gc.Tensor]:
        result = fn(**tensors)
        return result if isinstance(result, dict) else {"result": result}

    made = trace_entry(gc.entry(**arrays)(entry))
    graph = made.graph
    for p in pipeline.PIPELINE:
        if p.run not in (fuse, schedule):
            graph = p.run(graph)
    return graph, {name: np.array(a) for name, a in made.initial.items()}


def check_fn(fn: Callable[..., Any], *, tolerance: float = 1e-5, threads: int = 1, **arrays: np.ndarray) -> Graph:
    """Trace, fuse, lower, run, compare; returns the fused graph."""
    graph, state = traced(fn, **arrays)
    check(graph, arrays, state, tolerance, threads)
    return fused(graph)
