"""Lowering of a fused graph to an `EntryPlan`: a table from the hint of a call to the function that makes launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.dtype import TensorType
from graphc.ir import Attrs, Graph, Node, Value, attrs
from graphc.kernels.assign import Step, assign
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower_col import lower_col
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.lower_index import lower_gather, lower_scatter, scatter_in_place
from graphc.kernels.lower_map import lower_map
from graphc.kernels.lower_row import lower_row, row_in_place
from graphc.kernels.lower_rowwise import lower_rowwise
from graphc.kernels.plan import EntryPlan, Launch, View
from graphc.ops.base import apply
from graphc.passes.views import elementwise

__all__ = ["LOWERINGS", "lower"]

Lower = Callable[[Graph, Attrs, Sequence[View], Sequence[View], LowerContext], list[Launch]]

LOWERINGS: dict[str, Lower] = {
    "map": lower_map,
    "row": lower_row,
    "col": lower_col,
    "contract": lower_contract,
    "gather": lower_gather,
    "scatter": lower_scatter,
    "rowwise": lower_rowwise,
    "attention": lower_attention,
    "attention.vjp": lower_attention_vjp,
}


def lower(graph: Graph, target: Target) -> EntryPlan:
    """The launches of ``graph`` and the buffers that they use.

    Before: the graph is fused (`graphc.passes.fuse`) and its nodes are in their final order. After: each call is one
    kernel or a few; no buffer has an address yet.
    """
    assigned = assign(graph, in_place)
    ctx = LowerContext(target)
    launches = [launch for step in assigned.steps for launch in lower_step(step, ctx)]
    return EntryPlan(graph.name, tuple(launches), assigned.inputs, assigned.outputs, assigned.consts, tuple(ctx.flags))


def lower_step(step: Step, ctx: LowerContext) -> list[Launch]:
    ctx.loc = step.loc
    if step.node is None:
        (view,) = step.results
        return lower_map(identity(TensorType(view.dtype, view.shape)), attrs(), step.operands, step.results, ctx)
    at = step.node.attrs
    return LOWERINGS[at["hint"]](at["body"], at, step.operands, step.results, ctx)


def identity(t: TensorType) -> Graph:
    """The body of a copy."""
    x: Value = apply("input", name="x0", dtype=t.dtype, shape=t.shape)
    return Graph.build("copy", [x], [("y0", x)])


def in_place(node: Node, operand: int, result: int) -> bool:
    """Whether the kernel of a call may write ``result`` over ``operand``."""
    hint, body = node.attrs["hint"], node.attrs["body"]
    if hint == "row":
        return row_in_place(body, operand, result)
    if hint == "scatter":
        return scatter_in_place(body, operand)
    return hint in ("map", "contract", "gather") and elementwise(body, body.inputs[operand])
