"""Lowering: every plan, run by the interpreter of the loop IR, agrees with the graph's own interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from loop_interp import run_plan

import graphc.ops
from graphc.dtype import DType, dtype
from graphc.interp import interpret
from graphc.ir import Graph, Literal, Value
from graphc.kernels.lower import lower
from graphc.kernels.plan import EntryPlan
from graphc.ops.base import Meta, Op, Region, Sample, Source, apply, apply_node
from graphc.passes.fuse import fuse
from graphc.passes.schedule import schedule


@dataclass(frozen=True)
class Machine:
    """A target with vectors of 64 bytes."""

    def tile(self, dtype: DType) -> tuple[int, int]:
        return 12, 128 // dtype.itemsize


def given(name: str, array: np.ndarray) -> Value:
    return apply("input", name=name, dtype=dtype(array.dtype), shape=array.shape)


def stored(name: str, array: np.ndarray) -> Value:
    return apply("state", name=name, dtype=dtype(array.dtype), shape=array.shape, trainable=True)


def number(value: float, like: Value) -> Value:
    scalar = apply("const", value=Literal.of(np.asarray(value, like.dtype.numpy)))
    return apply("broadcast_to", scalar, shape=like.shape) if like.shape else scalar


def plan_of(graph: Graph) -> EntryPlan:
    return lower(schedule(fuse(graph)), Machine())


def check(
    graph: Graph,
    inputs: dict[str, np.ndarray],
    state: dict[str, np.ndarray] | None = None,
    tolerance: float = 1e-5,
    threads: int = 1,
) -> EntryPlan:
    """Lower and run ``graph``; outputs and new state must be those of the interpreter."""
    plan = plan_of(graph)
    new_state = {k: v.copy() for k, v in (state or {}).items()}
    got = run_plan(plan, inputs, new_state, threads)
    want, want_state = interpret(graph, inputs, state)
    assert not got.pop("flags").any()
    for name in want:
        assert got[name].shape == want[name].shape
        np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)
    for name in want_state:
        np.testing.assert_allclose(new_state[name], want_state[name], rtol=tolerance, atol=tolerance, err_msg=name)
    return plan


SKIPPED = (Source, Region, Meta)
SAMPLES = [
    pytest.param(op, sample, id=f"{op.name}-{i}")
    for op in graphc.ops.OPS
    if not isinstance(op.lower, SKIPPED)
    for i, sample in enumerate(op.samples())
]


@pytest.mark.parametrize(("op", "sample"), SAMPLES)
def test_every_op(op: Op, sample: Sample) -> None:
    values = [given(f"x{i}", a) for i, a in enumerate(sample.arrays)]
    node = apply_node(op.name, *values, **sample.attrs)
    graph = Graph.build("g", values, [(f"y{i}", v) for i, v in enumerate(node.outs)])
    check(graph, {f"x{i}": np.asarray(a) for i, a in enumerate(sample.arrays)})
