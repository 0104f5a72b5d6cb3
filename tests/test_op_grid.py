"""Every op with every dtype that it takes, over more than twenty shapes and several views of memory: ``eval`` against
NumPy and SciPy, compiled code against ``eval``, gradients against finite differences.

All cases of an op are compiled as one entry of one program. `make test` compiles some of them, ``--thorough`` all.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import pytest
from op_cases import CASES, SHAPES, OpCase, cases_of
from op_gradients import check_gradient, inputs_for, weighted
from op_reference import REFERENCE, reference

from graphc.driver import CompileReport, Options, Source, build
from graphc.dtype import TensorType, dtype, finfo, holds_floats
from graphc.interp import interpret
from graphc.ir import Graph, Value
from graphc.ops import OPS, get_op
from graphc.ops.base import Sample, apply, apply_node
from graphc.runtime_load import program_of

OUTSIDE = {"input", "state", "grad"}  # they compute nothing
FEW = 12  # without --thorough, one case of so many is compiled
ULPS = 16  # how far compiled functions may be from eval's, in float rounding steps of the largest operand
Array = np.ndarray


def test_every_op_has_cases_and_a_reference():
    alone = {op.name for op in OPS if not any(has_body(sample) for sample in op.samples())}
    assert alone - OUTSIDE <= set(CASES)
    assert set(CASES) == set(REFERENCE)


def has_body(sample: Sample) -> bool:
    """Whether it is of an op that runs a graph, which has its own tests."""
    return any(isinstance(v, Graph) for v in sample.attrs.values())


@pytest.mark.parametrize("name", CASES)
def test_every_dtype_meets_twenty_shapes(name: str):
    met: dict[str, set[object]] = {}
    for case in cases_of(name):
        shapes = tuple(x.array.shape for x in case.operands)
        met.setdefault(case.dtype, set()).add(shapes or tuple(map(str, case.attrs.values())))
    assert all(len(shapes) >= 20 for shapes in met.values()), {k: len(v) for k, v in met.items()}


# eval against NumPy and SciPy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_eval_agrees_with_numpy(name: str):
    op = get_op(name)
    for case in cases_of(name):
        got = op.evaluate(case.arrays, case.attrs)
        want = reference(name, case.arrays, case.attrs)
        types = [TensorType(dtype(a.dtype), a.shape) for a in case.arrays]
        assert op.infer(types, case.attrs) == tuple(TensorType(dtype(g.dtype), g.shape) for g in got), case
        for g, w in zip(got, want, strict=True):
            assert close(g, w, case, 16), str(case)


def close(got: Array, want: Array, case: OpCase, ulps: float) -> bool:
    """Within ``ulps`` rounding steps of the result, or of what was added up to it; a step or two, where a result of 16
    bits is rounded once from float32."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if not holds_floats(got):
        return np.array_equal(got, want)
    kind = dtype(got.dtype)
    relative = (2 if kind.is_half else ulps) * finfo(kind).eps
    absolute = ulps * finfo(kind.computed).eps * terms(case)
    return np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=relative, atol=absolute, equal_nan=True)


def terms(case: OpCase) -> float:
    """The size of what a result is the sum of."""
    floats = [np.abs(x.astype(np.float64)) for x in case.arrays if holds_floats(x)]
    largest = max((float(np.max(x, initial=0, where=np.isfinite(x))) for x in floats), default=1)
    longest = max((x.size / max(1, x.shape[0] if x.ndim > 1 else 1) for x in case.arrays), default=1)
    match case.op:
        case "sum" | "scatter_add" | "scatter_along" | "recurrence":
            return largest * longest**0.5
        case "dot" | "conv":
            return largest**2 * longest**0.5
        case "mod" | "sin" | "cos":
            return largest
    return 0.0


# Compiled code against eval ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_compiled_agrees_with_eval(name: str, thorough: bool, target: str):
    cases = one_per_shape(cases_of(name)) if thorough else cases_of(name, FEW * attributes(name))
    graph, inputs = graph_of(cases)
    options = Options(target=target, threads=2, cache=not thorough)
    program = program_of(build([Source("ops", None, graph)], [], options, CompileReport()), threads=2, state={})
    got = program.ops(**inputs)
    want, _ = interpret(graph, inputs)
    for output in want:
        case = cases[int(output.split("_")[0][1:])]
        assert close(got[output], want[output], case, ULPS), f"{case}: {got[output]}, not {want[output]}"


def attributes(name: str) -> int:
    """How many cases there are for one shape and dtype, roughly."""
    found = cases_of(name)
    return -(-len(found) // (len(SHAPES) * len({c.dtype for c in found})))


def one_per_shape(cases: Sequence[OpCase]) -> list[OpCase]:
    """For each dtype and shape of the largest operand one of the cases, taking turns."""
    groups: dict[object, list[OpCase]] = {}
    for c in cases:
        shapes = sorted((x.array.shape for x in c.operands), key=prod)
        groups.setdefault((c.dtype, shapes[-1] if shapes else c.attrs.get("shape")), []).append(c)
    return [group[i % len(group)] for i, group in enumerate(groups.values())]


def graph_of(cases: Sequence[OpCase]) -> tuple[Graph, dict[str, Array]]:
    """All cases side by side, and their inputs. Results that are views are copied when they leave the graph."""
    inputs: dict[str, Array] = {}
    sources: list[Value] = []
    outputs: list[tuple[str, Value]] = []
    for n, case in enumerate(cases):
        operands = []
        for k, x in enumerate(case.operands):
            inputs[f"x{n}_{k}"] = x.base
            sources.append(apply("input", name=f"x{n}_{k}", dtype=dtype(x.base.dtype), shape=x.base.shape))
            operands.append(x.value(sources[-1]))
        outputs += [(f"y{n}_{i}", v) for i, v in enumerate(apply_node(case.op, *operands, **case.attrs).outs)]
    return Graph.build("ops", sources, outputs), inputs


# Gradients -----------------------------------------------------------------------------------------------------------

DIFFERENTIABLE = [op.name for op in OPS if callable(op.vjp)]
LARGEST = 300  # elements: of more, one lies at a kink sooner or later
POSITIVE = {"log", "sqrt", "rsqrt", "pow", "div", "mod"}  # far from the poles


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_slopes(name: str):
    seen, rng = 0, np.random.default_rng(4)
    for case in one_per_shape([c for c in cases_of(name) if c.dtype == "float64"]):
        arrays = [distinct(x, case, rng) for x in case.arrays]
        if max((x.size for x in arrays), default=0) > LARGEST or (name == "astype" and not smooth(case)):
            continue
        seen += 1
        ins = inputs_for(arrays)
        first = check_gradient(weighted(apply_node(name, *ins, **case.attrs).outs), ins, arrays)
        if first and any(v.type.size for v in first):
            check_gradient(weighted(first), ins, arrays)
    assert seen >= (2 if name == "astype" else 12)


def distinct(x: Array, case: OpCase, rng: np.random.Generator) -> Array:
    """An operand like ``x`` without ties, away from poles."""
    if x.dtype.kind != "f":
        return x
    fresh = rng.standard_normal(x.shape)
    return 0.3 + np.abs(fresh) if case.op in POSITIVE else fresh


def smooth(case: OpCase) -> bool:
    """A conversion that no rounding hides."""
    return case.attrs["dtype"].name == "float64"
