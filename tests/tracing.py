"""Helpers of the front end's tests: functions traced and run by the interpreter, without any code generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import graphc as gc
from graphc.interp import interpret
from graphc.ir import Graph, Node
from graphc.passes.differentiate import differentiate
from graphc.tracing import Traced, trace_entry
from graphc.verify import verify

Arrays = dict[str, np.ndarray]


def trace(fn: Callable[..., Any], **specs: Any) -> Traced:
    """``fn`` traced for arguments like ``specs`` (specs or arrays); the graph obeys the verifier."""
    traced = trace_entry(gc.entry(**specs)(fn))
    verify(traced.graph)
    return traced


def run(fn: Callable[..., Any], **arrays: np.ndarray) -> np.ndarray:
    """The single result of ``fn`` (a tensor) on ``arrays``."""
    return step(lambda **tensors: {"result": fn(**tensors)}, **arrays)[0]["result"]


def step(fn: Callable[..., Any], **arrays: np.ndarray) -> tuple[Arrays, Arrays]:
    """(outputs, state after) of one run of ``fn`` from its initial state."""
    return next(Steps(trace(fn, **arrays), arrays))


class Steps:
    """Runs a traced entry again and again on the same inputs: (outputs, state after) of each run."""

    def __init__(self, traced: Traced, arrays: Mapping[str, np.ndarray]):
        self.graph, self.state, self.arrays = differentiate(traced.graph), dict(traced.initial), arrays
        verify(self.graph)

    def __iter__(self) -> Steps:
        return self

    def __next__(self) -> tuple[Arrays, Arrays]:
        outputs, self.state = interpret(self.graph, self.arrays, self.state)
        return outputs, self.state


def nodes(graph: Graph, op: str) -> list[Node]:
    return [n for n in graph.nodes if n.op == op]
