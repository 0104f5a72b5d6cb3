"""Lowering of a contraction with its epilogue to one kernel: packed panels, register tiles, fused elementwise code.

The structure is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS 34(3),
2008), over one microkernel in the sense of Georganas et al., "High-Performance Deep Learning via a Single Building
Block" (arXiv 1906.06440): panels of b are packed and stay in the second level of cache, tiles of a are read in place,
and the tile of c gets its epilogue while it is still in the first level.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from graphc.ir import Attrs, Graph, Value
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_loops import Loops
from graphc.kernels.contract_problem import problem
from graphc.kernels.contract_schedule import choose
from graphc.kernels.contract_simple import SimpleLoops, is_simple
from graphc.kernels.lower_context import LowerContext, Operand, launch, title
from graphc.kernels.lower_element import moved
from graphc.kernels.plan import Launch, View

__all__ = ["lower_contract"]


def lower_contract(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """Launches for ``body``: one ``dot`` of two inputs (possibly moved), then elementwise nodes over its result.

    ``operands`` are the inputs of the body and ``results`` its outputs, as strided views of any layout. Sums run along
    k in blocks of a fixed size, so that the result does not depend on the number of threads.
    """
    if 0 in results[0].shape:
        return []
    (dot,) = (node for node in body if node.op == "dot")
    views = dict(zip(body.inputs, operands, strict=True))
    left, right = (moved_view(v, views) for v in dot.inputs)
    epilogue = Epilogue(body, dot, views)
    tiles = [*(r.strides for r in results), *(a.strides for a in epilogue.arrays)]
    p = problem((left.shape, left.strides), (right.shape, right.strides), dot.attrs, tiles)
    a, b = (right, left) if p.swapped else (left, right)
    dtype = a.dtype
    if is_simple(p, dtype):
        builder: Loops | SimpleLoops = SimpleLoops(p, dtype, epilogue)
    else:
        builder = Loops(p, choose(p, dtype, ctx.target), dtype, epilogue)
    read = [Operand("a", a, reads=True), Operand("b", b, reads=True)]
    read += [Operand(x.name, x.view, reads=True, offset=x.offset) for x in epilogue.arrays if x.view is not None]
    written = [Operand(f"y{i}", view, writes=True) for i, view in enumerate(results)]
    then = "" if epilogue.identity else ", then what follows per element"
    size = prod(dot.types[0].shape)
    made = launch(
        title("contract", body, (*dot.types[0].shape, p.k_size)),
        read + written,
        builder.body(),
        doc=f"The product of {left.dtype}{list(left.shape)} and {list(right.shape)}{then}.",
        lines=tuple(dict.fromkeys(node.loc for node in body if node.loc)),
        flops=size * (2 * p.k_size + epilogue.cost),
        scratch=builder.scratch(),
    )
    return [made]


def moved_view(value: Value, views: dict[Value, View]) -> View:
    """The operand that ``value`` is, through the movement between it and the inputs of the body."""
    if value in views:
        return views[value]
    source = moved_view(value.node.inputs[0], views)
    strides, offset = moved(source.shape, source.strides, source.offset, [value.node])
    return View(source.buffer, source.dtype, value.shape, strides, offset)
