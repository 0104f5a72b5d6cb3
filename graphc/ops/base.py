"""What an op is: one frozen object that holds all that is peculiar to it.

An op states ``infer`` (the rule that builds the type is the rule that verifies it), ``eval`` (NumPy: the oracle),
``vjp`` (returns graph nodes, so that gradients are optimised like everything else), ``lower`` (one of the `Lowering`
classes: how the op becomes loop IR) and ``samples`` (inputs that the tests iterate). All are required.

Passes and code generators look at the class of ``op.lower``, never at its name: a new op that lowers as a `Map` fuses,
schedules and emits with no change elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.dtype import TensorType, dtype
from graphc.errors import GraphcError, Loc
from graphc.ir import Attrs, Node, Value, attrs
from graphc.loop import Expr, converted

if TYPE_CHECKING:
    from graphc.loop import Scratch, Stmt
    from graphc.ops.row import Row

__all__ = [
    "Contract", "Control", "Gather", "Join", "Lowering", "Map", "MapContext", "Meta", "Move", "NotDifferentiable", "Op",
    "Reduce", "Region", "RowWise", "Sample", "Scatter", "Source", "Split", "apply", "apply_node", "at_loc", "bodies",
    "get_op", "install", "known_op",
]  # fmt: skip


# How an op becomes loops ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """Elementwise: result[i...] depends on operand[i...] at the same index, and on the index itself.

    ``fn(args, ctx)`` returns the scalar expression of one element. ``args`` are the operands' scalar expressions;
    ``ctx.attrs``, ``ctx.type`` (of the result), ``ctx.coords`` (one int64 expression per dimension) and
    ``ctx.linear`` (row-major position, int64) describe the element. ``coords=True`` says that ``fn`` uses the index,
    which the lowering then carries along as one more array, whose elements are their own positions.

    No rule sees a 16-bit float: `element` widens the operands to float32 and rounds the result.
    """

    fn: Callable[[Sequence[Expr], MapContext], Expr]
    coords: bool = False

    def element(self, args: Sequence[Expr], ctx: MapContext) -> Expr:
        """The expression of one element over operands and a result of any type."""
        t = ctx.type
        if not t.dtype.is_half and not any(a.dtype.is_half for a in args):
            return self.fn(args, ctx)
        wide = replace(ctx, type=TensorType(t.dtype.computed, t.shape))
        return converted(self.fn([converted(a, a.dtype.computed) for a in args], wide), t.dtype)


@dataclass(frozen=True)
class MapContext:
    """What a `Map` rule may know of the element that it computes."""

    attrs: Attrs
    type: TensorType
    coords: tuple[Expr, ...] = ()
    linear: Expr | None = None


@dataclass(frozen=True)
class Reduce:
    """Reduction over attribute ``axes`` (sorted tuple; the reduced dimensions are dropped).

    ``combine`` is "sum", "max", "min" or "prod".
    """

    combine: str


@dataclass(frozen=True)
class Contract:
    """Tensor contraction (dot_general): attributes ``batch`` and ``contract``, each a pair of tuples of axes
    (left, right). The result's dimensions are batch, left free, right free."""


@dataclass(frozen=True)
class Move:
    """Movement of elements without arithmetic, as an index map where strides can express it.

    ``view(shape, strides, attrs, out_shape)`` gets the operand's shape and strides (in elements) and returns
    ``(strides, offset)`` of the result over the same memory, or None when no strided view exists (the lowering then
    copies).
    """

    view: Callable[[tuple[int, ...], tuple[int, ...], Attrs, tuple[int, ...]], tuple[tuple[int, ...], int] | None]


@dataclass(frozen=True)
class Join:
    """Concatenation of the operands along attribute ``axis``: each operand is written to its own part of the result."""


@dataclass(frozen=True)
class Split:
    """The opposite of `Join`: one result per entry of attribute ``sizes`` along attribute ``axis``, each a view."""


@dataclass(frozen=True)
class Gather:
    """Rows by index: operands (table, indices), attribute ``axis``; result = table with ``axis`` replaced by the
    indices' dimensions. Indices out of range are an error at run time."""


@dataclass(frozen=True)
class Scatter:
    """Sum of rows by index, in a fixed order (deterministic): operands (indices, rows), attribute ``size``; result has
    shape (size, *row shape) and holds, for each index, the sum of the rows that name it."""


@dataclass(frozen=True)
class RowWise:
    """Rows along the last dimension: a row of the results depends on the same row of the operands alone.

    All operands and results have the same dimensions but the last. ``fn(row)`` returns the statements of one row, which
    may use the memory that ``scratch(row)`` asks for. ``check(types, attrs)``: the statements hold the indices of
    elements against this size (`graphc.ops.row.bounded`); one out of range is an error at run time.
    """

    fn: Callable[[Row], Sequence[Stmt]]
    scratch: Callable[[Row], tuple[Scratch, ...]] = lambda row: ()
    check: Callable[[Sequence[TensorType], Attrs], int] | None = None


@dataclass(frozen=True)
class Source:
    """No computation: a graph input, a state read or a constant."""


@dataclass(frozen=True)
class Region:
    """A call of attribute ``body`` (a Graph whose inputs are the operands and whose outputs are the results), kept
    together under attribute ``hint`` (a str). An attribute ``vjp`` (a Graph or None) gives the gradient by hand:
    its inputs are the operands, the results and one cotangent per result; its outputs one cotangent per operand whose
    dtype is a float."""


@dataclass(frozen=True)
class Control:
    """Control flow: the graphs in the attributes ``blocks`` run once, many times or not at all. Their nodes become
    kernels of their own, between records of the launch table that repeat or skip them (`graphc.ops.control`)."""

    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Meta:
    """No code of its own: a pass named in ``by`` must have rewritten it away before lowering."""

    by: str


Lowering = Map | Reduce | Contract | Move | Join | Split | Gather | Scatter | RowWise | Source | Region | Control | Meta


# The op --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NotDifferentiable:
    """Said, not implied: gradients do not flow through this op, and why."""

    reason: str


@dataclass(frozen=True)
class Sample:
    """One input of an op for the tests: arrays and attributes. ``grad=False``: the vjp is not checked here (a kink)."""

    arrays: tuple[np.ndarray, ...]
    attrs: Attrs = field(default_factory=attrs)
    grad: bool = True


@dataclass(frozen=True)
class Op:
    """One op, in one place.

    ``infer(types, attrs)`` returns the result types or raises GraphcError (codes GC01xx) for operands that do not fit.
    ``eval(arrays, attrs)`` returns the result arrays. ``vjp(node, cotangents)`` returns one value or None per operand;
    a cotangent is None where no gradient arrives (never all of them).
    """

    name: str
    infer: Callable[[Sequence[TensorType], Attrs], tuple[TensorType, ...]]
    eval: Callable[[Sequence[np.ndarray], Attrs], tuple[np.ndarray, ...]]  # never on 16-bit floats: see `evaluate`
    vjp: Callable[[Node, Sequence[Value | None]], Sequence[Value | None]] | NotDifferentiable
    lower: Lowering
    samples: Callable[[], Iterable[Sample]]

    def __post_init__(self) -> None:
        for part in ("infer", "eval", "vjp", "lower", "samples"):
            if getattr(self, part) is None:
                raise TypeError(f"op {self.name} lacks {part}")

    def evaluate(self, arrays: Sequence[np.ndarray], at: Attrs) -> tuple[np.ndarray, ...]:
        """The results on arrays of any type: 16-bit floats are computed in float32, each result is rounded once."""
        dtypes = [dtype(a.dtype) for a in arrays]
        if isinstance(self.lower, Region | Control) or not any(d.is_half for d in dtypes):
            return self.eval(arrays, at)
        types = self.infer([TensorType(d, a.shape) for d, a in zip(dtypes, arrays, strict=True)], at)
        wide = [a.astype(d.computed.numpy, copy=False) for d, a in zip(dtypes, arrays, strict=True)]
        with np.errstate(all="ignore"):
            results = self.eval(wide, at)
            return tuple(r.astype(t.dtype.numpy, copy=False) for r, t in zip(results, types, strict=True))


# Building nodes ------------------------------------------------------------------------------------------------------

_TABLE: dict[str, Op] = {}
_LOC: ContextVar[Loc | None] = ContextVar("loc", default=None)


def install(ops: Iterable[Op]) -> None:
    """Make the tuple `OPS` known to `apply` (called once, by graphc.ops)."""
    _TABLE.update({op.name: op for op in ops})


def get_op(name: str) -> Op:
    return _TABLE[name]


def known_op(name: str) -> bool:
    return name in _TABLE


def bodies(node: Node) -> tuple[str, ...]:
    """The attributes of ``node`` that hold the graphs which it runs; none for most nodes."""
    match _TABLE[node.op].lower:
        case Region():
            return ("body",)
        case Control(blocks):
            return blocks
    return ()


class at_loc:
    """A context: nodes built inside carry ``loc``. (Passes enter it for each node that a rule looks at, and a generator
    would cost more than the rule.)"""

    def __init__(self, loc: Loc | None):
        self.loc = loc

    def __enter__(self) -> None:
        self.token = _LOC.set(self.loc)

    def __exit__(self, *failure: object) -> None:
        _LOC.reset(self.token)


def apply(op: str, *inputs: Value, **kwargs: Any) -> Value:
    """Build a node of ``op`` and return its first result. Raises GraphcError when the operands do not fit."""
    return apply_node(op, *inputs, **kwargs).out(0)


def apply_node(op: str, *inputs: Value, **kwargs: Any) -> Node:
    """Build a node of ``op``: its types come from the op's own ``infer``, whose errors get the current line."""
    at = attrs(**kwargs)
    try:
        types = _TABLE[op].infer([v.type for v in inputs], at)
    except GraphcError as e:
        raise GraphcError(e.code, e.message, e.loc or _LOC.get(), e.hint) from None
    return Node(op, inputs, at, types, _LOC.get())
