"""Lowering of ops along the last dimension: the op's own statements for one row, inside a PARALLEL loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphc.ir import Attrs, Graph
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines
from graphc.kernels.lower_space import merge, unravel
from graphc.kernels.plan import Arg, Launch, View
from graphc.loop import Loop, Param, Role, Var
from graphc.ops.base import RowWise, get_op
from graphc.ops.row import Line, Row

__all__ = ["lower_rowwise"]


def lower_rowwise(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """One launch: PARALLEL over all dimensions but the last."""
    if all(0 in v.shape for v in results):
        return []
    (node,) = (n for n in body if isinstance(get_op(n.op).lower, RowWise))
    rule = get_op(node.op).lower
    assert isinstance(rule, RowWise)
    reads = dict(zip(body.inputs, operands, strict=True))
    reading = [(f"x{k}", reads[v]) for k, v in enumerate(node.inputs)]
    writing = [(f"y{k}", v) for k, v in enumerate(results)]
    views = [v for _, v in (*reading, *writing)]
    outer = views[0].shape[:-1]
    space = merge(outer, [v.strides[:-1] for v in views])
    variables = [Var(f"r{d}") for d in range(len(space.sizes))]
    all_lines = [
        Line(name, v.dtype, v.shape[-1], space.index(k, variables), v.strides[-1])
        for k, (name, v) in enumerate((*reading, *writing))
    ]
    row = Row(node.attrs, tuple(all_lines[: len(reading)]), tuple(all_lines[len(reading) :]))
    unit = Var("unit")
    statements = (*unravel(unit, space.sizes, variables), *rule.fn(row))
    extra: list[tuple[Param, Arg]] = []
    if rule.check is not None:
        extra.append(ctx.index_check(rule.check([v.type for v in node.inputs], node.attrs), node.loc))
    shape = "x".join(map(str, views[0].shape))
    return [
        launch(
            f"{node.op}_{shape}",
            [
                *(Operand(name, v, reads=True) for name, v in reading),
                *(Operand(name, v, writes=True) for name, v in writing),
            ],
            [Loop(unit, prod(outer), statements, Role.PARALLEL)],
            doc=f"{node.op} along rows of {views[0].shape[-1]}.",
            lines=lines(body, ctx),
            flops=max(prod(v.shape) for v in views),
            scratch=rule.scratch(row),
            extra=extra,
        )
    ]
