"""How the factors of a product lie in memory, and what they become in registers and panels.

Narrow factors are widened to the type of the sums as they are read. Where the machine multiplies several at once (the
target says so), they become words instead: two bfloat16, or four int8, that are neighbours along k in one int32. A
matrix whose rows run along k is words already, seen as int32 with a half or a quarter of the strides; of any other,
rows are interleaved while they are packed. From there on a product of words is cut, packed and turned as one of 4-byte
elements with fewer steps along k.

VNNI multiplies unsigned by signed bytes: words of uint8 have 128 added to each int8 of a, which the microkernel takes
off the sums again. Without VNNI, words of two int16 take int8 that are widened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from graphc.dtype import DType, bfloat16, float32, int16, int32, uint8
from graphc.ir import Graph, Node
from graphc.kernels.contract_problem import Axis, Problem
from graphc.kernels.contract_schedule import Target
from graphc.kernels.lower_context import span_bytes
from graphc.kernels.plan import View
from graphc.loop import TRIPLE_BLOCK, Affine, Call, Const, Expr, Load, call, converted
from graphc.ops.base import Contract, bodies, get_op

__all__ = ["Stored", "in_words", "narrow_factors", "word_type", "words_of"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Elements of ``memory`` in a buffer, read as ``value``: with ``words``, an int32 that holds several of that type,
    each ``step`` after the one before. ``flip`` turns bits of what is read over."""

    memory: DType
    value: DType
    words: DType | None = None
    step: int = 0
    flip: int = 0

    def load(self, buffer: str, index: Affine) -> Expr:
        word: Expr = Load(buffer, index, self.memory)
        if self.step:
            assert self.words is not None
            parts = [Load(buffer, index + i * self.step, self.memory) for i in range(per_word(self.words))]
            word = _joined([Call("cast", (part,), int32) for part in parts], 8 * self.words.itemsize)
        word = converted(word, self.value)
        return call("xor", word, Const(self.flip, int32)) if self.flip else word

    @property
    def in_place(self) -> bool:
        """Whether the microkernel can read it where it lies."""
        return self.memory == self.value and not self.step and not self.flip


def _joined(parts: Sequence[Expr], bits: int) -> Expr:
    """The lowest ``bits`` of each, the first one lowest."""
    *below, word = (call("shl", x, Const(i * bits, int32)) if i else x for i, x in enumerate(parts))
    for i, part in enumerate(below):
        word = call("or", word, call("and", part, Const(((1 << bits) - 1) << i * bits, int32)))
    return word


FLIP = 0x80808080 - (1 << 32)  # the bits, as int32, that add 128 to each of the four int8 of a word


def words_of(stored: Mapping[str, Stored]) -> DType | None:
    """What is in the words of factors that lie in memory so; None where they are single elements."""
    return next((lies.words for lies in stored.values()), None)


def per_word(words: DType) -> int:
    return int32.itemsize // words.itemsize


def word_type(p: Problem, factors: Sequence[DType], target: Target) -> DType | None:
    """What is in the words in which ``factors``, of one type, are multiplied; None where they are single elements."""
    words = target.words(factors[0], min(p.m.size, p.n.size))
    return words if words is not None and p.k.size > 0 and p.k.size % per_word(words) == 0 else None


def narrow_factors(graph: Graph) -> frozenset[DType]:
    """The types of 8 and 16 bits that ``graph``, or a body in it, multiplies with wider sums."""
    found: set[DType] = set()
    for node in graph:
        for name in bodies(node):
            found |= narrow_factors(node.attrs[name])
        if isinstance(get_op(node.op).lower, Contract):
            factors, sums = node.inputs[0].dtype, node.types[0].dtype
            if factors.itemsize < sums.itemsize or (factors == sums == float32 and is_large(node)):
                found.add(factors)
    return frozenset(found)


def is_large(dot: Node) -> bool:
    """Whether a product has blocks of tile registers along all of its dimensions."""
    (left, right), attrs = (v.shape for v in dot.inputs), dot.attrs
    sizes: list[int] = [
        prod(size for d, size in enumerate(shape) if d not in batch and d not in contract)
        for shape, batch, contract in zip((left, right), attrs["batch"], attrs["contract"], strict=True)
    ]
    depth: int = prod(left[d] for d in attrs["contract"][0])
    return min(*sizes, depth) >= TRIPLE_BLOCK


def in_words(p: Problem, views: Mapping[str, View], words: DType) -> tuple[Problem, dict[str, View], dict[str, Stored]]:
    """The problem over words, and how each factor (a, b) lies in memory then."""
    seen, stored, count = dict(views), {}, per_word(words)
    for position, (name, view) in enumerate(sorted(views.items())):
        step = p.k.strides[position]
        flip = FLIP if words == uint8 and name == "a" else 0
        others = [axis.strides[position] for axis in (*p.outer, p.m, p.n, *p.k_outer) if axis.size > 1]
        aligned = step == 1 and not any(n % count for n in (view.offset, *others))
        if aligned and view.dtype.itemsize == words.itemsize:
            seen[name], stored[name] = of_type(view, int32, count), Stored(int32, int32, words, flip=flip)
            p = restrided(p, position, 1, count)
        else:
            bits = int16 if view.dtype == bfloat16 else view.dtype
            seen[name], stored[name] = of_type(view, bits, 1), Stored(bits, int32, words, step, flip)
            p = restrided(p, position, count * step, 1)
    return replace(p, k=replace(p.k, size=p.k.size // count)), seen, stored


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
