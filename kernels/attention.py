"""Lowering of attention regions, forward and backward, without the matrix of scores in memory.

The operands and results are those of the region that `scaled_dot_product_attention` traces: (q, k, v[, mask][, k0, k1])
to (o, lse), and for the gradient (q, k, v[, mask][, k0, k1], o, lse, do, dlse) to (dq, dk, dv). Each is a strided view;
what the microkernel cannot read in place is packed. Of the body only the names of its inputs are consulted: it says the
same, and the tests compare them.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.ir import Attrs, Graph
from graphc.kernels.attention_backward import Backward
from graphc.kernels.attention_forward import Forward
from graphc.kernels.attention_shape import Shape
from graphc.kernels.attention_tiles import TileForward, TileKeys, TileQueries, in_tiles
from graphc.kernels.lower_context import LowerContext, Operand, launch, lines
from graphc.kernels.plan import Launch, View

__all__ = ["lower_attention", "lower_attention_vjp"]

EXP_COST = 10  # of one exponential, in units of an addition


def lower_attention(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """o [B, H, T, D] and lse [B, H, T] of q, k, v [B, H, T, D] under ``is_causal``, ``scale`` and ``dropout_p``."""
    kind = TileForward if ctx.target.processors and in_tiles(named(body, operands)) else Forward
    return lower(kind, 2, ["o", "lse"], body, attrs, operands, results, ctx)


def lower_attention_vjp(
    body: Graph, attrs: Attrs, operands: Sequence[View], results: Sequence[View], ctx: LowerContext
) -> list[Launch]:
    """dq, dk, dv from the cotangents ``do`` of o and ``dlse`` of lse; scores are computed again from lse."""
    if not (ctx.target.processors and in_tiles(named(body, operands))):
        return lower(Backward, 5, ["dq", "dk", "dv"], body, attrs, operands, results, ctx)
    of_keys = lower(TileKeys, 4, ["dk", "dv"], body, attrs, operands, results[1:], ctx)
    return [*of_keys, *lower(TileQueries, 3, ["dq"], body, attrs, operands, results[:1], ctx)]


def named(body: Graph, operands: Sequence[View]) -> dict[str, View]:
    """The operands by the names of the inputs."""
    return {v.node.attrs["name"]: view for v, view in zip(body.inputs, operands, strict=True)}


def lower(
    kind: type[Forward | Backward | TileForward | TileKeys | TileQueries],
    products: int,
    writes: Sequence[str],
    body: Graph,
    attrs: Attrs,
    operands: Sequence[View],
    results: Sequence[View],
    ctx: LowerContext,
) -> list[Launch]:
    reads = named(body, operands)
    views = reads | dict(zip(writes, results, strict=True))
    if all(0 in view.shape for view in results):
        return []
    shape = Shape.of(views["q"], views["k"], views["v"], ctx.target)
    code = kind(shape, views["q"].dtype.computed, attrs, views)
    scores = shape.batch * shape.heads * shape.queries * shape.keys // (2 if attrs["is_causal"] else 1)
    sizes = "x".join(map(str, views["q"].shape))
    return [
        launch(
            f"{kind.title}_{sizes}",
            [
                *(Operand(n, views[n], reads=True) for n in reads),
                *(Operand(n, views[n], writes=True) for n in writes),
            ],
            code.body(),
            doc=f"{kind.what}: q {list(views['q'].shape)}, k {list(views['k'].shape)}"
            + (", causal" if attrs["is_causal"] else "")
            + (f", mask {list(views['mask'].shape)}" if "mask" in views else "")
            + (f", dropout {attrs['dropout_p']}" if attrs["dropout_p"] else "")
            + ".",
            lines=lines(body, ctx),
            flops=scores * (products * (shape.depth + shape.width) + EXP_COST),
            scratch=code.scratch(),
        )
    ]
