"""The order of computation, where data alone does not give it."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.dtype import Shape, TensorType, contiguous_strides
from graphc.errors import error
from graphc.ir import Attrs, Node, Value
from graphc.ops.base import Move, Op, Sample
from graphc.ops.build import floats, integers

__all__ = ["ORDER"]


def infer_after(types: Sequence[TensorType], at: Attrs) -> tuple[TensorType, ...]:
    if not types:
        raise error("GC0111", "after takes at least one operand")
    if not types[0].ndim:
        raise error("GC0104", f"after needs a tensor with a dimension to wait, and got {types[0]}")
    return (types[0],)


def vjp_after(n: Node, cotangents: Sequence[Value | None]) -> list[Value | None]:
    return [cotangents[0] if n.inputs[0].dtype.is_float else None, *(None for _ in n.inputs[1:])]


def view_after(shape: Shape, strides: Shape, at: Attrs, out_shape: Shape) -> tuple[Shape, int] | None:
    """The operand itself. Only row-major memory has this view, so that it is never folded into a kernel, where the
    order would be lost."""
    return (strides, 0) if strides == contiguous_strides(shape) else None


after = Op(
    "after",  # (x, *others): x, for use once the others are computed and stored
    infer=infer_after,
    eval=lambda arrays, at: (arrays[0],),
    vjp=vjp_after,
    lower=Move(view_after),
    samples=lambda: [
        Sample((floats(3, 4), floats(2))),
        Sample((floats(4),)),
        Sample((integers(2, 3), floats(5, dt="float32"))),
    ],
)

ORDER = (after,)
