"""How the factors of a product lie in memory, and what they become in registers and panels.

Factors of 16 bits are widened to float32 as they are read. Where the machine multiplies pairs of bfloat16 (the target
says so), they become words instead: two neighbours along k in one int32. A matrix whose rows run along k is words
already, seen as int32 with half the strides; of any other, two rows are interleaved while they are packed. From there
on a product of words is cut, packed and turned as one of 4-byte elements with half as many steps along k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphc.dtype import DType, bfloat16, int16, int32
from graphc.ir import Graph
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.lower_context import span_bytes
from graphc.kernels.plan import View
from graphc.loop import Affine, Call, Const, Expr, Load, call, converted
from graphc.ops.base import Contract, bodies, get_op

__all__ = ["Stored", "has_pairs", "multiplies_pairs", "words"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Elements of ``memory`` in a buffer, read as ``value``. With ``step`` each value is a word of two: the element and
    the one ``step`` after it."""

    memory: DType
    value: DType
    step: int = 0

    def load(self, buffer: str, index: Affine) -> Expr:
        first = Load(buffer, index, self.memory)
        if not self.step:
            return converted(first, self.value)
        low, high = (Call("cast", (x,), int32) for x in (first, Load(buffer, index + self.step, self.memory)))
        return call("or", call("and", low, Const(0xFFFF, int32)), call("shl", high, Const(16, int32)))

    @property
    def in_place(self) -> bool:
        """Whether the microkernel can read it where it lies."""
        return self.memory == self.value and not self.step


def has_pairs(p: Problem, views: Sequence[View], block: int) -> bool:
    """Whether both factors can be seen as words along k, and fill a ``block`` of the target."""
    fills = min(p.m.size, p.n.size) >= block
    return all(v.dtype == bfloat16 for v in views) and p.k.size > 0 and p.k.size % 2 == 0 and fills


def multiplies_pairs(graph: Graph) -> bool:
    """Whether ``graph``, or a body in it, has a product of bfloat16."""
    for node in graph:
        if any(multiplies_pairs(node.attrs[name]) for name in bodies(node)):
            return True
        if isinstance(get_op(node.op).lower, Contract) and node.inputs[0].dtype == bfloat16:
            return True
    return False


def words(p: Problem, views: Mapping[str, View]) -> tuple[Problem, dict[str, View], dict[str, Stored]]:
    """The problem over words, and how each factor (a, b) lies in memory then."""
    seen, stored = dict(views), {}
    for position, (name, view) in enumerate(sorted(views.items())):
        step = p.k.strides[position]
        others = [axis.strides[position] for axis in (*p.outer, p.m, p.n, *p.k_outer) if axis.size > 1]
        if step == 1 and not any(n % 2 for n in (view.offset, *others)):
            seen[name], stored[name] = of_type(view, int32, 2), Stored(int32, int32)
            p = restrided(p, position, 1, 2)
        else:
            seen[name], stored[name] = of_type(view, int16, 1), Stored(int16, int32, step)
            p = restrided(p, position, 2 * step, 1)
    return replace(p, k=replace(p.k, size=p.k.size // 2)), seen, stored


def of_type(view: View, dtype: DType, size: int) -> View:
    """The elements that ``view`` reaches as one run of ``dtype``, ``size`` of the old in each: the problem has the
    strides."""
    return View(view.buffer, dtype, (span_bytes(view) // dtype.itemsize,), (1,), view.offset // size)


def restrided(p: Problem, position: int, along_k: int, size: int) -> Problem:
    """``p`` with the strides of one factor in elements that hold ``size`` of the old."""

    def new(axis: Axis, stride: int) -> Axis:
        return Axis(axis.size, (*axis.strides[:position], stride, *axis.strides[position + 1 :]))

    def each(axis: Axis) -> Axis:
        return new(axis, axis.strides[position] // size) if axis.size > 1 else axis  # no step is taken

    outer, k_outer = tuple(map(each, p.outer)), tuple(map(each, p.k_outer))
    return replace(p, outer=outer, m=each(p.m), n=each(p.n), k_outer=k_outer, k=new(p.k, along_k))
