"""Lowering of a fused graph to an `EntryPlan`: a table from the hint of a call to the function that makes launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from graphc.dtype import Shape, TensorType
from graphc.ir import Attrs, Graph, Node, Value, attrs
from graphc.kernels.assign import Assignment, Frame, Step, assign
from graphc.kernels.attention import lower_attention, lower_attention_vjp
from graphc.kernels.contract import lower_contract
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower_col import lower_col
from graphc.kernels.lower_context import LowerContext
from graphc.kernels.lower_control import carried, lower_control
from graphc.kernels.lower_index import lower_gather, lower_scatter, scatter_in_place
from graphc.kernels.lower_map import lower_map
from graphc.kernels.lower_row import lower_row, row_in_place
from graphc.kernels.lower_rowwise import lower_rowwise
from graphc.kernels.plan import EntryPlan, Launch, View
from graphc.kernels.prepare import prepare
from graphc.ops.base import Control, apply, get_op
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


EMPTY: Mapping[str, Shape] = MappingProxyType({})


def lower(
    graph: Graph,
    target: Target,
    orders: Mapping[str, Shape] = EMPTY,
    others: bool = False,
    prepared: bool = False,
) -> EntryPlan:
    """The launches of ``graph`` and the buffers that they use. ``orders`` has the state by name whose dimensions lie in
    memory in another order, outermost first. ``others``: launches of products have other kernels to choose from.
    ``prepared``: what depends on state alone is kept between steps (`graphc.kernels.prepare`).

    Before: the graph is fused (`graphc.passes.fuse`) and its nodes are in their final order. After: each call is one
    kernel or a few; no buffer has an address yet.
    """
    ctx = LowerContext(target, others, frozenset(name for name, _ in graph.updates) if prepared else None)
    assigned = lower_graph(graph, Frame(ctx.names, ctx.consts, orders=orders), ctx)
    plan = EntryPlan(
        graph.name,
        tuple(ctx.launches),
        assigned.inputs,
        assigned.outputs,
        tuple(ctx.consts),
        tuple(ctx.flags),
        tuple(ctx.spans),
    )
    return prepare(plan) if prepared else plan


def lower_graph(graph: Graph, frame: Frame, ctx: LowerContext) -> Assignment:
    """The launches of ``graph`` within ``frame``, into ``ctx``."""
    assigned = assign(graph, in_place, frame)
    lower_steps(assigned.steps, ctx)
    return assigned


def lower_steps(steps: Sequence[Step], ctx: LowerContext) -> None:
    for step in steps:
        ctx.loc = step.loc
        if step.node is not None and isinstance(get_op(step.node.op).lower, Control):
            lower_control(step, ctx, lower_steps, lower_graph)
        else:
            ctx.launches += lower_step(step, ctx)


def lower_step(step: Step, ctx: LowerContext) -> list[Launch]:
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
    if isinstance(get_op(node.op).lower, Control):
        return carried(node, operand, result)
    hint, body = node.attrs["hint"], node.attrs["body"]
    if hint == "row":
        return row_in_place(body, operand, result)
    if hint == "scatter":
        return scatter_in_place(body, operand)
    return hint in ("map", "contract", "gather") and elementwise(body, body.inputs[operand])
