"""Block products and attention by tiles: every layout, type and edge, run on the CPU against the interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from shim import BACKWARD, COMPILER, FORWARD, MISSING
from steps import Compiled

import graphc as gc
from graphc.dtype import DType, bfloat16, float16, float32, int32
from graphc.interp import interpret
from graphc.ir import Graph
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.lower import lower
from graphc.nn.attention import scaled_dot_product_attention
from graphc.ops.base import apply
from graphc.passes import pipeline
from graphc.tracing import trace_entry

pytestmark = pytest.mark.skipif(COMPILER is None, reason=MISSING)
Arrays = dict[str, np.ndarray]


def compare(graph: Graph, inputs: Arrays, state: Arrays, tolerance: float) -> None:
    """The CUDA target's results against the interpreter's, as a share of the largest, in any order of threads."""
    plan = lower(graph, CudaTarget())
    compiled = Compiled([plan])
    found, again = (compiled.run(plan, inputs, dict(state), schedule) for schedule in (FORWARD, BACKWARD))
    for name, want in interpret(graph, inputs, state)[0].items():
        assert found[name].tobytes() == again[name].tobytes()
        error = np.abs(found[name].astype(np.float64) - want.astype(np.float64)).max()
        assert error <= tolerance * np.abs(want.astype(np.float64)).max(), name


# Products ------------------------------------------------------------------------------------------------------------

SIZES = [(70, 50, 40), (64, 64, 32), (130, 72, 104), (20, 30, 1024), (1, 3, 5)]  # m, n, k


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("factors", [float32, int32, bfloat16, float16], ids=str)
def test_products_of_every_layout(factors: DType, turned: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(0)
    values, outputs, inputs = [], [], {}
    for number, (m, n, k) in enumerate(SIZES):
        pair = []
        for side, (size, turn) in enumerate(zip((m, n), turned, strict=True)):
            along = int(turn) if side == 0 else 1 - int(turn)  # where k is not
            shape = (size, k) if along == 0 else (k, size)
            array = rng.integers(-4, 5, shape) if factors == int32 else rng.standard_normal(shape)
            inputs[f"{'ab'[side]}{number}"] = array.astype(factors.numpy)
            pair.append(apply("input", name=f"{'ab'[side]}{number}", dtype=factors, shape=shape))
        sums = float32 if factors.is_half else factors
        contract = ((0 if turned[0] else 1,), (1 if turned[1] else 0,))
        values += pair
        outputs.append((f"y{number}", apply("dot", *pair, batch=((), ()), contract=contract, dtype=sums)))
    compare(pipeline.run(Graph.build("products", values, outputs)), inputs, {}, 0 if factors == int32 else 1e-5)


# Attention -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    queries: int
    keys: int
    depth: int = 16
    causal: bool = False
    dropout: float = 0.0
    factors: str = "float32"
    mask: tuple[int, ...] = ()  # its shape

    def graph(self) -> tuple[Graph, Arrays]:
        """o and the gradients of a sum of its squares, and the state of the random numbers."""
        q, k = (gc.spec((1, 2, size, self.depth), "float32") for size in (self.queries, self.keys))
        masks = {"mask": gc.spec(self.mask, "bool")} if self.mask else {}

        @gc.entry(q=q, k=k, v=k, **masks)
        def attention(q: gc.Tensor, k: gc.Tensor, v: gc.Tensor, mask: gc.Tensor | None = None) -> dict[str, gc.Tensor]:
            given = [gc.astype(x, self.factors) for x in (q, k, v)]
            made = scaled_dot_product_attention(*given, mask, is_causal=self.causal, dropout_p=self.dropout)
            o = gc.astype(made, "float32")
            gradients = gc.grad(gc.sum(o * o), given)
            return {"o": o} | {n: gc.astype(g, "float32") for n, g in zip(("dq", "dk", "dv"), gradients, strict=True)}

        traced = trace_entry(attention)
        return pipeline.run(traced.graph), {name: np.array(array) for name, array in traced.initial.items()}


@pytest.mark.parametrize(
    "case",
    [
        Case(70, 70, causal=True),
        Case(64, 130),
        Case(130, 64, causal=True),
        Case(3, 5, depth=72),
        Case(70, 70, dropout=0.3),
        Case(70, 40, factors="bfloat16"),
        Case(70, 70, causal=True, factors="float16"),
        Case(70, 130, mask=(1, 2, 1, 130)),
        Case(70, 70, causal=True, dropout=0.3, mask=(1, 2, 70, 70)),
    ],
    ids=str,
)
def test_attention(case: Case) -> None:
    rng = np.random.default_rng(0)
    graph, state = case.graph()
    inputs = {v.node.attrs["name"]: rng.standard_normal(v.shape).astype(v.dtype.numpy) for v in graph.inputs}
    if "mask" in inputs:
        inputs["mask"] = rng.random(case.mask) > 0.6
        inputs["mask"][0, 0, :, 50:] = inputs["mask"][0, 1] = False  # one head is padded, the other sees nothing
    # Probabilities are rounded to the type of the operands, and so is what is made of them.
    compare(graph, inputs, state, {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}[case.factors])
