"""What the fuzzer does with a case: runs it through the compiler, stage by stage, and makes what fails smaller."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from loop_interp import run_plan
from random_graphs import Arrays, Case

from graphc.driver import CompileReport, Options, Source, build
from graphc.dtype import finfo, holds_floats
from graphc.interp import interpret
from graphc.ir import Graph, Node, Value, toposort
from graphc.kernels.cpu.target import BASELINES
from graphc.kernels.lower import lower
from graphc.ops.base import apply, apply_node
from graphc.ops.build import const, full, mul
from graphc.ops.region import walk_graph
from graphc.passes import pipeline
from graphc.passes.differentiate import differentiate
from graphc.runtime import Program
from graphc.text import print_graph
from graphc.tracing import StateSpec

__all__ = ["STAGES", "expected", "natively", "one_native", "problem", "report", "shrink", "slope_problem"]

Results = tuple[Arrays, Arrays]  # outputs, and the state after the step
Run = Callable[[Case], Results]
Check = Callable[[Case], str | None]  # what is wrong


# Ways to run a case --------------------------------------------------------------------------------------------------


def expected(case: Case) -> Results:
    return interpret(differentiate(case.graph), case.inputs, case.state)


def through_passes(case: Case) -> Results:
    return interpret(pipeline.run(case.graph, check=True), case.inputs, case.state)


def in_loops(case: Case, threads: int = 3, without: Collection[str] = ()) -> Results:
    """Lowered, in the loop IR's interpreter; ``without`` some of the passes."""
    graph = case.graph
    for p in pipeline.PIPELINE:
        graph = graph if p.name in without else p.run(graph)
    plan = lower(graph, BASELINES["x86-64-v4"])
    state = {name: a.copy() for name, a in case.state.items()}
    outputs = run_plan(plan, case.inputs, state, threads)
    assert not outputs.pop("flags").any()
    return outputs, state


def natively(cases: Sequence[Case], cache: bool = False) -> list[Results]:
    """Compiled: all cases as entries of one program."""
    sources = [Source(c.graph.name, None, c.graph) for c in cases]
    initial = {name: a for c in cases for name, a in c.state.items()}
    known = {s.name: s for c in cases for s in state_specs(c.graph)}
    specs = [known[name] for name in initial if name in known]
    used = {s.name: initial[s.name] for s in specs}
    artifact = build(sources, specs, Options(threads=2, cache=cache), CompileReport())
    program = Program(artifact, threads=2, state=used)
    found = []
    for c in cases:
        touched = {name: a for name, a in c.state.items() if name in known}
        for name, a in touched.items():
            program.state[name] = a
        outputs = program.entries[c.graph.name](**c.inputs)
        found.append((outputs, c.state | {name: program.state[name].copy() for name in touched}))
    program.close()
    return found


def state_specs(graph: Graph) -> Iterable[StateSpec]:
    for node in graph.nodes:
        if node.op == "state":
            yield StateSpec(node.attrs["name"], node.types[0], node.attrs["trainable"])
    yield from (StateSpec(name, v.type, False) for name, v in graph.updates)


def one_native(case: Case) -> Results:
    return natively([case])[0]


STAGES: dict[str, Run] = {"passes": through_passes, "lowering": in_loops, "code generation": one_native}


# Comparison ----------------------------------------------------------------------------------------------------------

# Of the largest element of a result, by the narrowest type on the way to it.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def problem(case: Case, run: Run) -> str | None:
    """How the results of ``run`` differ from the interpreter's on the graph as it was traced; None if they do not."""
    with np.errstate(all="ignore"):
        want = expected(case)
        try:
            got = run(case)
        except Exception as e:
            return f"{type(e).__name__}: {e}"
        return difference(case, want, got)


def difference(case: Case, want: Results, got: Results) -> str | None:
    """The first result that is off by more than rounding can explain: by more than a tolerance, and by more than what
    the interpreter's own result moves when the last digits of the inputs change."""
    rough: dict[str, np.ndarray] | None = None
    kinds = {t.dtype.name for node in case.graph.nodes for t in node.types}
    tolerance = max((TOLERANCE.get(name, 0.0) for name in kinds), default=0.0)
    for name, exact in {**want[0], **want[1]}.items():
        found = {**got[0], **got[1]}[name]
        if found.dtype != exact.dtype or found.shape != exact.shape:
            return f"{name} is {found.dtype}{found.shape}, not {exact.dtype}{exact.shape}"
        if not holds_floats(exact):
            if not np.array_equal(found, exact):
                return f"{name} differs in {np.count_nonzero(found != exact)} of {exact.size} elements"
            continue
        found, exact = found.astype(np.float64), exact.astype(np.float64)
        if within(found, exact, tolerance, 0.0):
            continue
        rough = {k: a for part in expected(nudged(case)) for k, a in part.items()} if rough is None else rough
        slack = 30 * np.nan_to_num(np.abs(rough[name].astype(np.float64) - exact))
        if not within(found, exact, tolerance, slack):
            return f"{name} differs by {np.nanmax(np.abs(found - exact))}"
    return None


def within(found: np.ndarray, exact: np.ndarray, tolerance: float, slack: Any) -> bool:
    finite = np.isfinite(exact)
    scale = max(1.0, float(np.max(np.abs(exact[finite]), initial=0.0)))
    close = np.abs(found - exact) <= tolerance * scale + slack
    return bool(np.all(np.where(finite, close, (found == exact) | (np.isnan(found) & np.isnan(exact)))))


def nudged(case: Case) -> Case:
    """The case with other last digits."""
    rng = np.random.default_rng(1)

    def moved(a: np.ndarray) -> np.ndarray:
        if not holds_floats(a):
            return a
        factors = 1 + 2 * finfo(a.dtype).eps * rng.choice([-1, 1], a.shape)
        return (a.astype(np.float64) * factors).astype(a.dtype)

    return replace(
        case,
        inputs={k: moved(a) for k, a in case.inputs.items()},
        state={k: moved(a) for k, a in case.state.items()},
    )


# Gradients against differences ---------------------------------------------------------------------------------------


def slope_problem(case: Case, order: int = 1) -> str | None:
    """How the gradient of the forward graph (float64) along a random direction differs from a central difference.

    Where two step sizes disagree there is a kink between them, and nothing can be said."""
    graph = case.forward
    outputs = [v for _, v in graph.outputs if v.dtype.is_float]
    by = [v for v in graph.inputs if v.dtype.is_float]
    by += [n.out() for n in graph.nodes if n.op == "state" and n.attrs["trainable"]]
    if not outputs or not by:
        return None
    loss = weighted(outputs)
    grads = apply_node("grad", loss, *by, allow_unused=True).outs
    for _ in range(order - 1):
        loss = weighted(grads)
        grads = apply_node("grad", loss, *by, allow_unused=True).outs
    names = [v.node.attrs["name"] for v in by]
    results = [("loss", loss), *((f"g.{n}", g) for n, g in zip(names, grads, strict=True))]
    whole = differentiate(Graph.build("slope", graph.inputs, results))
    alone = Graph.build("loss", whole.inputs, whole.outputs[:1])
    arrays = {**case.inputs, **case.state}
    rng = np.random.default_rng(5)
    along = {n: rng.standard_normal(arrays[n].shape) for n in names}

    def at(step: float) -> float:
        moved = {n: a + step * along[n] if n in along else a for n, a in arrays.items()}
        return float(interpret(alone, moved, moved)[0]["loss"])

    with np.errstate(all="ignore"):
        found = interpret(whole, case.inputs, case.state)[0]
        slope = sum(float(np.sum(found[f"g.{n}"] * d)) for n, d in along.items())
        coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (2e-5, 1e-5))
    scale = 1 + max(abs(slope), abs(fine)) + float(abs(found["loss"]))
    if not abs(coarse - fine) <= 1e-6 * scale or abs(slope - fine) <= 1e-5 * scale:
        return None
    return f"the slope is {fine}, and the gradient says {slope}"


def weighted(values: Sequence[Value]) -> Value:
    """A scalar that depends on every element of ``values`` in its own way."""
    total = full(0, values[0].dtype, ())
    for i, v in enumerate(values):
        part = mul(apply("tanh", v), const(np.cos(np.arange(v.type.size) + i).reshape(v.shape), v.dtype))
        part = apply("sum", part, axes=tuple(range(v.type.ndim))) if v.shape else part
        total = apply("add", total, part if part.dtype == total.dtype else apply("astype", part, dtype=total.dtype))
    return total


# Making it smaller ---------------------------------------------------------------------------------------------------


def shrink(case: Case, check: Check) -> Case:
    """A smaller case that ``check`` finds fault with."""
    plain = replace(case, graph=differentiate(case.graph))
    return shortened(narrowed(plain if check(plain) else case, check), check)


def narrowed(case: Case, check: Check) -> Case:
    """With as few results as can be: the earliest value that is wrong, by itself; else some of the outputs."""
    values = values_of(case)
    every = [v for node in case.graph.nodes for v in node.outs if node.op != "input" and v in values]

    def wrong(*results: Value) -> Case | None:
        made = rebuilt(case, [(f"y{i}", v) for i, v in enumerate(results)], (), values)
        return made if check(made) else None

    if wrong(*every):
        first = bisect_left(range(1, len(every)), True, key=lambda n: wrong(*every[:n]) is not None)
        every.insert(0, every[first])
    for v in every:
        if made := wrong(v):
            return made
    results = [*case.graph.outputs, *((f"new.{name}", v) for name, v in case.graph.updates)]
    for one in list(results):
        rest = [r for r in results if r is not one]
        if rest and check(made := rebuilt(case, rest, (), values)):
            results, case = rest, made
    return case


def shortened(case: Case, check: Check) -> Case:
    """Computed from as little as can be: inputs take the place of what is left out."""
    origin, smallest, cut = case, case, []
    values = values_of(case)
    for node in reversed(origin.graph.nodes):
        needed = node in cone([v for _, v in origin.graph.outputs], cut)
        if needed and node.op != "input" and all(v in values and v not in origin.graph.results for v in node.outs):
            made = rebuilt(origin, origin.graph.outputs, [*cut, *node.outs], values)
            if check(made):
                smallest, cut = made, [*cut, *node.outs]
    return smallest


def values_of(case: Case) -> dict[Value, np.ndarray]:
    """Everything that the graph computes but gradients and what depends on them."""
    known: dict[Node, None] = {}
    for node in case.graph.nodes:
        if node.op != "grad" and all(v.node in known for v in node.inputs):
            known[node] = None
    graph = Graph.build("values", case.graph.inputs, [("v", v) for node in known for v in node.outs])
    with np.errstate(all="ignore"):
        return walk_graph(graph, [case.inputs[v.node.attrs["name"]] for v in graph.inputs], case.state)


def cone(roots: Sequence[Value], cut: Sequence[Value]) -> list[Node]:
    """The nodes that ``roots`` need where the values ``cut`` are given, in order."""
    ends = {v.node for v in cut}
    needed: set[Node] = set()
    stack = [v.node for v in roots]
    while stack:
        node = stack.pop()
        if node not in needed and node not in ends:
            needed.add(node)
            stack += [v.node for v in node.inputs]
    return [node for node in toposort(roots) if node in needed]


def rebuilt(
    case: Case, outputs: Sequence[tuple[str, Value]], cut: Sequence[Value], values: dict[Value, np.ndarray]
) -> Case:
    """The graph of ``outputs`` with inputs in place of the values ``cut``."""
    new = {v: apply("input", name=f"c{i}", dtype=v.dtype, shape=v.shape) for i, v in enumerate(cut)}
    arrays = {new[v].node.attrs["name"]: np.array(values[v]) for v in cut} | case.inputs
    for node in cone([v for _, v in outputs], cut):
        inputs = tuple(new[v] for v in node.inputs)
        made = Node(node.op, inputs, node.attrs, node.types, node.loc) if inputs else node
        new.update(zip(node.outs, made.outs, strict=True))
    results = [(name, new[v]) for name, v in outputs]
    given = [n.out() for n in toposort([v for _, v in results]) if n.op == "input"]
    graph = Graph.build("small", given, results)
    return Case(graph, {v.node.attrs["name"]: arrays[v.node.attrs["name"]] for v in given}, case.state, graph)


def report(case: Case) -> str | None:
    """The first stage that goes wrong, how, and the smallest graph on which it does; None where none does."""
    for stage, run in STAGES.items():

        def check(c: Case, run: Run = run) -> str | None:
            return problem(c, run)

        if check(case):
            small = shrink(case, check)
            return f"{stage}: {check(small)}\n{print_graph(small.graph, brief=True)}"
    return None
