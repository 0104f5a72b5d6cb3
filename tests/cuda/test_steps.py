"""What the CUDA target makes of graphs, run on the CPU: ops, random programs and the models' training steps.

All runs are checked (races, bounds, reads of what nothing has written), and have the same bits in any order of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from fuzzing import difference, expected
from op_cases import CASES, OpCase, cases_of
from planned import compare, fused
from random_graphs import Case, random_case
from shim import BACKWARD, COMPILER, FORWARD, MISSING, SCHEDULES, Schedule
from small_models import SMALL
from steps import Compiled
from test_op_grid import ULPS, attributes, close, graph_of

from graphc.dtype import dtype
from graphc.interp import interpret
from graphc.ir import Graph
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.lower import lower
from graphc.kernels.plan import EntryPlan
from graphc.models import resnet
from graphc.ops import OPS
from graphc.ops.base import Meta, Region, Source, apply, apply_node
from graphc.passes import pipeline
from graphc.passes.precision import round_factors
from graphc.tracing import trace_entry

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
Arrays = dict[str, np.ndarray]
GRAPHS = 40


@dataclass(frozen=True)
class Run:
    """A graph with what it runs on, and its plan."""

    graph: Graph
    inputs: Arrays
    plan: EntryPlan
    cases: tuple[OpCase, ...] = ()

    def once(self, compiled: Compiled, state: Arrays, schedule: Schedule) -> tuple[Arrays, Arrays]:
        """Outputs and new state."""
        after = dict(state)
        outputs = compiled.run(self.plan, self.inputs, after, schedule)
        assert not outputs.pop("flags").any()
        return outputs, after


def bits(results: tuple[Arrays, Arrays]) -> dict[str, bytes]:
    return {name: a.tobytes() for part in results for name, a in part.items()}


# Ops -----------------------------------------------------------------------------------------------------------------

SAMPLES = {
    f"{op.name}-{i}": (op.name, sample)
    for op in OPS
    if not isinstance(op.lower, Source | Region | Meta)
    for i, sample in enumerate(op.samples())
}


@pytest.fixture(scope="module")
def samples() -> tuple[dict[str, Run], Compiled]:
    runs = {}
    for name, (op, sample) in SAMPLES.items():
        inputs = {f"x{i}": np.asarray(a) for i, a in enumerate(sample.arrays)}
        values = [apply("input", name=n, dtype=dtype(a.dtype), shape=a.shape) for n, a in inputs.items()]
        node = apply_node(op, *values, **sample.attrs)
        graph = Graph.build("g", values, [(f"y{i}", v) for i, v in enumerate(node.outs)])
        runs[name] = Run(graph, inputs, lower(fused(graph), CudaTarget()))
    return runs, Compiled([r.plan for r in runs.values()])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_op(samples: tuple[dict[str, Run], Compiled], name: str) -> None:
    runs, compiled = samples
    run = runs[name]
    found = [run.once(compiled, {}, schedule) for schedule in SCHEDULES]
    compare(found[0][0], interpret(run.graph, run.inputs)[0], 1e-5)
    assert all(bits(f) == bits(found[0]) for f in found)


@pytest.fixture(scope="module")
def grid(request: pytest.FixtureRequest) -> tuple[dict[str, Run], Compiled]:
    """Cases of every op and dtype over shapes and views, those of an op side by side."""
    few = 6 if request.config.getoption("--thorough") else 60
    runs = {}
    for name in CASES:
        graph, inputs = graph_of(cases := cases_of(name, few * attributes(name)))
        runs[name] = Run(graph, inputs, lower(pipeline.run(graph), CudaTarget()), tuple(cases))
    return runs, Compiled([r.plan for r in runs.values()])


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_dtypes_of_every_op(grid: tuple[dict[str, Run], Compiled], name: str) -> None:
    runs, compiled = grid
    run = runs[name]
    found, _ = run.once(compiled, {}, SCHEDULES[-1])
    for output, want in interpret(run.graph, run.inputs)[0].items():
        case = run.cases[int(output.split("_")[0][1:])]
        right = close(found[output], want, case, ULPS)
        assert right, f"{case}: {found[output]}, not {want}"


# Random programs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def programs() -> tuple[dict[int, tuple[Case, Run]], Compiled]:
    cases = {seed: random_case(seed) for seed in range(GRAPHS)}
    made = {s: (c, Run(c.graph, c.inputs, lower(pipeline.run(c.graph), CudaTarget()))) for s, c in cases.items()}
    return made, Compiled([run.plan for _, run in made.values()])


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_programs(programs: tuple[dict[int, tuple[Case, Run]], Compiled], seed: int) -> None:
    made, compiled = programs
    case, run = made[seed]
    found = run.once(compiled, case.state, FORWARD)
    with np.errstate(all="ignore"):
        wrong = difference(case, expected(case), found)
    assert wrong is None
    assert bits(run.once(compiled, case.state, SCHEDULES[-1])) == bits(found)


# Models --------------------------------------------------------------------------------------------------------------


# A ResNet with a block in each stage: the others repeat its kernels.
FEW_BLOCKS = resnet.PRESETS["resnet20"] | {"layers": (1, 1, 1)}


@dataclass(frozen=True)
class Steps:
    """A model's training step by precision, compiled together, and the state that it begins with."""

    runs: dict[str, Run]
    compiled: Compiled
    initial: Arrays


@pytest.fixture(scope="module", params=SMALL)
def steps(request: pytest.FixtureRequest) -> Steps:
    module, sizes = SMALL[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.PRESETS, "resnet20", FEW_BLOCKS)
        entry = trace_entry(next(e for e in module.entries(module.Config(**sizes)) if e.name == "train"))
    runs = {}
    for precision in ("float32", "bfloat16"):
        graph = entry.graph if precision == "float32" else round_factors(entry.graph, dtype(precision))
        plan = lower(pipeline.run(graph), CudaTarget())
        runs[precision] = Run(pipeline.run(graph, stop_after="precision"), examples(plan), plan)
    return Steps(runs, Compiled([r.plan for r in runs.values()]), {n: np.array(a) for n, a in entry.initial.items()})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_steps(steps: Steps, precision: str) -> None:
    """Two steps; the second one starts from what the first one made of parameters and optimizer."""
    run, compiled, state = steps.runs[precision], steps.compiled, steps.initial
    for schedule in (FORWARD, SCHEDULES[-1]):
        want = interpret(run.graph, run.inputs, state)
        assert np.isfinite(want[0]["loss"])
        found = run.once(compiled, state, schedule)
        if precision == "float32":
            for part, exact in zip(found, want, strict=True):
                compare(part, exact, 1e-4)
        wrong = difference(Case(run.graph, run.inputs, state, run.graph), want, found)
        assert wrong is None
        before, state = state, found[1]
    assert bits(run.once(compiled, before, BACKWARD)) == bits(found)


def examples(plan: EntryPlan) -> Arrays:
    """A batch: pictures of noise, labels and tokens of small numbers, nothing masked: a row that sees nothing has no
    softmax."""
    rng = np.random.default_rng(0)
    out = {}
    for name, view in plan.inputs:
        values = rng.standard_normal(view.shape) if view.dtype.is_float else rng.integers(0, 2, view.shape)
        out[name] = (np.ones(view.shape) if "mask" in name else values).astype(view.dtype.numpy)
        if name == "input_ids":
            out[name][:, -1] = 1  # where the texts of CLIP end
    return out
