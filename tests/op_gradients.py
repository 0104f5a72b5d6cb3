"""Gradients from the ops' own rules, against finite differences: what the tests of ops share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphc.dtype import dtype
from graphc.interp import interpret
from graphc.ir import Graph, Value, toposort
from graphc.ops import apply, get_op
from graphc.ops.build import const, full, mul

__all__ = ["check_gradient", "gradient", "inputs_for", "run", "weighted"]


def inputs_for(arrays: Sequence[np.ndarray]) -> list[Value]:
    return [apply("input", name=f"x{i}", dtype=dtype(a.dtype), shape=a.shape) for i, a in enumerate(arrays)]


def gradient(result: Value, by: Sequence[Value]) -> list[Value | None]:
    """Plain reverse mode over the ops' vjp rules: d result / d by, for a scalar result."""
    cotangents: dict[Value, Value] = {result: full(1, result.dtype, ())}
    for node in reversed(toposort([result])):
        given = [cotangents.get(v) for v in node.outs]
        rule = get_op(node.op).vjp
        if not callable(rule) or all(g is None for g in given):
            continue
        for operand, g in zip(node.inputs, rule(node, given), strict=True):
            if g is not None:
                assert g.type == operand.type, f"the cotangent of {node.op} has another type than its operand"
                cotangents[operand] = apply("add", cotangents[operand], g) if operand in cotangents else g
    return [cotangents.get(v) for v in by]


def weighted(values: Sequence[Value]) -> Value:
    """A scalar that depends on every element of ``values`` in its own way."""
    total = full(0, values[0].dtype, ())
    for i, v in enumerate(values):
        weights = const(np.cos(np.arange(v.type.size) + i).reshape(v.shape), v.dtype)
        total = apply("add", total, apply("sum", mul(v, weights), axes=tuple(range(len(v.shape)))))
    return total


def run(results: Sequence[Value], arrays: Sequence[np.ndarray], ins: Sequence[Value]) -> list[np.ndarray]:
    graph = Graph.build("g", ins, [(f"y{i}", v) for i, v in enumerate(results)])
    return list(interpret(graph, {f"x{i}": a for i, a in enumerate(arrays)})[0].values())


def check_gradient(scalar: Value, ins: Sequence[Value], arrays: Sequence[np.ndarray]) -> list[Value]:
    """Compare the gradient along a random direction with a central difference; the gradients that exist."""
    by = [i for i, a in enumerate(arrays) if a.dtype == np.float64]
    grads = gradient(scalar, [ins[i] for i in by])
    rng = np.random.default_rng(3)
    direction = {i: rng.standard_normal(arrays[i].shape) for i in by}

    def moved(step: float) -> float:
        at = [a + step * direction[i] if i in direction else a for i, a in enumerate(arrays)]
        return float(run([scalar], at, ins)[0])

    step = 1e-5
    found = [g for g in grads if g is not None]
    values = iter(run(found, arrays, ins))
    slope = sum(float(np.sum(next(values) * direction[i])) for i, g in zip(by, grads, strict=True) if g is not None)
    np.testing.assert_allclose(slope, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6, atol=1e-8)
    return found
