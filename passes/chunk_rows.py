"""What it means for a node that its operands are cut into chunks of rows.

The rows of a value are its first dimensions, as many as hold ``n`` elements together; the value of a chunk has one
dimension in their place. Most ops do the same for each row: maps, reductions along the rest, the product of rows with a
matrix, movement that leaves the rows where they are. A sum over all rows is the sum of those of the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphc.dtype import Shape
from graphc.ir import Node, Value
from graphc.ops.base import Contract, Map, Move, Reduce, apply_node, at_loc, get_op
from graphc.ops.build import reshape

__all__ = ["Cut", "cut_of", "cut_shape", "in_chunk", "operands_of"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How many leading dimensions of the result and of each operand are rows; 0: the operand is the same for all rows,
    the result is a sum over them."""

    result: int
    operands: tuple[int, ...]


def cut_of(node: Node, operand: int, rows: int, n: int) -> Cut | None:
    """The cut of ``node`` where the first ``rows`` dimensions of ``operand`` are the ``n`` rows, or None where it does
    not compute row by row."""
    if len(node.types) != 1:
        return None
    for result in range(1, node.types[0].ndim + 1):
        operands = operands_of(node, result, n)
        if operands is not None and operands[operand] == rows:
            return Cut(result, operands)
    operands = _summed(node, rows)
    return None if operands is None or operands[operand] != rows else Cut(0, operands)


def operands_of(node: Node, rows: int, n: int) -> tuple[int, ...] | None:
    """The rows of each operand where the first ``rows`` dimensions of the result are the ``n`` rows."""
    shape, at = node.types[0].shape, node.attrs
    if prod(shape[:rows]) != n:
        return None
    match get_op(node.op).lower:
        case Map(coords=False):
            return (rows,) * len(node.inputs)
        case Map() if node.op == "iota":
            return () if at["axis"] >= rows else None
        case Reduce():
            return (rows,) if min(at["axes"], default=rows) >= rows else None
        case Contract():
            (batch, _), (contracted, _) = at["batch"], at["contract"]
            left = len(node.inputs[0].shape) - len(contracted)
            return (rows, 0) if not batch and rows <= left and min(contracted, default=rows) >= rows else None
        case Move():
            return _moved(node, rows, n)
    return None


def _moved(node: Node, rows: int, n: int) -> tuple[int] | None:
    old, new = node.inputs[0].shape, node.types[0].shape
    if node.op == "reshape":
        return next(((r,) for r in range(1, len(old) + 1) if prod(old[:r]) == n), None)
    if node.op == "permute_dims":
        return (rows,) if node.attrs["axes"][:rows] == tuple(range(rows)) else None
    if node.op == "broadcast_to":
        lead = len(new) - len(old)
        if prod(old[: max(0, rows - lead)]) == 1:
            return (0,)
        return (rows,) if not lead and old[:rows] == new[:rows] else None
    return None


def _summed(node: Node, rows: int) -> tuple[int, ...] | None:
    """The rows of each operand where the result is a sum over all rows."""
    lowering, every = get_op(node.op).lower, range(rows)
    if isinstance(lowering, Reduce):
        return (rows,) if lowering.combine == "sum" and set(every) <= set(node.attrs["axes"]) else None
    if isinstance(lowering, Contract) and node.attrs["batch"] == ((), ()):
        partner = dict(zip(*node.attrs["contract"], strict=True))
        return (rows, rows) if all(partner.get(i) == i for i in every) else None
    return None


# The same for one chunk ----------------------------------------------------------------------------------------------


def cut_shape(shape: Shape, rows: int, chunk: int) -> Shape:
    return (chunk, *shape[rows:]) if rows else shape


def in_chunk(node: Node, cut: Cut, inputs: Sequence[Value], chunk: int) -> Value:
    """The result of ``node`` for ``chunk`` rows, whose operands for these are ``inputs``."""
    shape, at = cut_shape(node.types[0].shape, cut.result, chunk), dict(node.attrs)
    rows = max(cut.result, *cut.operands, 1)

    def axes(of: Sequence[int], cut_here: int = rows) -> tuple[int, ...]:
        """Dimensions ``of`` a value whose first ``cut_here`` have become one."""
        return tuple(dict.fromkeys(max(0, i + 1 - cut_here) for i in of)) if cut_here else tuple(of)

    match get_op(node.op).lower:
        case Map() if node.op == "iota":
            at |= {"shape": shape, "axis": axes([at["axis"]])[0]}
        case Reduce():
            at["axes"] = axes(at["axes"])
        case Contract():
            at["contract"] = tuple(axes(of, r) for of, r in zip(at["contract"], cut.operands, strict=True))
        case Move() if node.op == "permute_dims":
            at["axes"] = axes(at["axes"])
        case Move():
            at["shape"] = shape
            if cut.operands == (0,):  # dimensions of one, where the result has its rows
                (x,) = inputs
                inputs = [reshape(x, x.shape[max(0, len(x.shape) - len(shape)) :])]
    with at_loc(node.loc):
        return apply_node(node.op, *inputs, **at).out()
