"""Narrow factors of a convolution for which the machine has no unit: widened once, before.

Minimal filtering and products in place read their factors where they lie, many times each, as the type of the sums. A
copy in that type costs a pass over memory, and brings back what products of 16-bit factors that are packed would lose.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.dtype import DType
from graphc.kernels.contract_code import Code
from graphc.kernels.contract_direct import as_direct
from graphc.kernels.contract_factors import Stored
from graphc.kernels.contract_problem import Problem
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower_context import LowerContext, Operand, launch
from graphc.kernels.plan import Launch, View
from graphc.kernels.winograd import as_filter
from graphc.loop import Affine, Role, Stmt

__all__ = ["wants_wide", "widened"]


def wants_wide(p: Problem, dtype: DType, target: Target) -> bool:
    """Whether factors of ``dtype``, that of the sums, would be read in place by one thread at a time."""
    if target.processors or not dtype.is_float:
        return False
    return as_filter(p, dtype, target.lanes(dtype)) is not None or as_direct(p, dtype, target) is not None


def widened(factors: Mapping[str, View], dtype: DType, ctx: LowerContext) -> tuple[list[Launch], dict[str, View]]:
    """Launches that copy those of the ``factors`` that are narrower, as ``dtype``, and what the factors are then, with
    their elements at the same distances."""
    launches, wide = [], dict(factors)
    for name, view in factors.items():
        if view.dtype == dtype:
            continue
        steps = [(d - 1) * s for d, s in zip(view.shape, view.strides, strict=True)]
        size, back = 1 + sum(map(abs, steps)), -sum(s for s in steps if s < 0)
        source = View(view.buffer, view.dtype, (size,), (1,), view.offset - back)
        target = View.whole(ctx.temp("wide", size * dtype.itemsize), dtype, (size,))
        wide[name] = View(target.buffer, dtype, view.shape, view.strides, back)
        operands = [Operand("a", source, reads=True), Operand("y0", target, writes=True)]
        body = copy(size, Stored(view.dtype, dtype), ctx.target.chunk)
        launches.append(launch(f"widen_{size}", operands, body, doc=f"A factor as {dtype}."))
    return launches, wide


def copy(size: int, stored: Stored, chunk: int) -> list[Stmt]:
    """``y0`` = ``a``, of ``size`` elements that lie as ``stored``, a chunk at a time."""
    c = Code(stored.value, ("a", "y0"), {"a": stored})
    with c.loop("task", 0, -(-size // chunk), role=Role.PARALLEL) as task:
        part = c.part("element", task, chunk, size)
        with c.lanes(*part, unroll=2) as j:
            c.store("y0", Affine.of(j), c.load("a", Affine.of(j)))
    return c.out
