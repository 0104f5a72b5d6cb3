"""Contractions over windows by a library of convolutions: the launches of the ways in which it can make them.

Libraries have code for tensors whose channels lie together, so filters are copied before the call, and the gradient of
filters is brought to its place after it, by the kernel that does what follows per element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graphc.convolution import Convolution, Tensor
from graphc.dtype import DType
from graphc.errors import Loc
from graphc.gemm import SUMS
from graphc.kernels.contract_activation import followed
from graphc.kernels.contract_epilogue import Epilogue
from graphc.kernels.contract_library import WORKSPACE, Call, added, alignment
from graphc.kernels.contract_problem import Problem
from graphc.kernels.contract_windows import Filters, Rest, Windows, as_windows, overlaps, tensor
from graphc.kernels.lower_context import LowerContext, Operand, launch
from graphc.kernels.plan import Launch, View

__all__ = ["Convolved"]

C = 2  # position of the main result in `Axis.strides`
WIDE = 8  # channels of 16 bits, without which cuDNN has no gradient of filters, or takes minutes to compile one


@dataclass
class Convolved:
    """One contraction over windows: ``factors`` a and b, sums of type ``dtype``, what follows, over ``tiles``, what
    that reads and then its result. ``title`` begins the names of launches, ``doc`` what is said of them."""

    p: Problem
    dtype: DType
    epilogue: Epilogue
    factors: Sequence[Operand]
    tiles: Sequence[Operand]
    ctx: LowerContext
    title: str
    doc: str
    lines: tuple[Loc, ...]
    flops: int

    def ways(self) -> Iterator[list[Launch]]:
        """With what follows in the call, and with a kernel for that; nothing where a library has no call."""
        w = as_windows(self.p)
        if w is None or self.dtype.itemsize > 4:
            return
        x, other = (self.factors[i] for i in (w.x, w.other))
        if x.view.dtype != other.view.dtype or (x.view.dtype.name, self.dtype.name) not in SUMS:
            return
        if w.kind == "filter" and x.view.dtype.is_half and (w.channels.size % WIDE or w.outputs.size % WIDE):
            return
        before: list[Launch] = []
        seen = w.seen(x.view.dtype, alignment(x))
        if w.kind == "forward":
            before, other = self.packed(w, other)
            second = w.packed_filters(other.view.dtype)
        else:
            second = w.moved(w.other, other.view.dtype, alignment(other))
            if overlaps(second):
                return
        call = Convolution(
            w.kind, seen, second, second, w.steps, w.dilations, self.dtype.name, workspace_bytes=WORKSPACE
        )
        for way in (self.whole(w, call, x, other), self.apart(w, call, x, other)):
            if way:
                yield before + way

    def packed(self, w: Windows, other: Operand) -> tuple[list[Launch], Operand]:
        """The filters with their channels together."""
        dtype, wanted = other.view.dtype, w.packed_filters(other.view.dtype)
        if tensor(dtype, w.filters, w.other, wanted.align) == wanted and alignment(other) == wanted.align:
            return [], other
        copy = View.whole(self.ctx.temp("filters", wanted.nbytes), dtype, (wanted.nbytes // dtype.itemsize,))
        made = launch(
            f"{self.title}_filters", [replace(other, name="w"), Operand("y0", copy, writes=True)],
            Filters(w, dtype).body(), doc="The filters with their channels together.", lines=self.lines,
        )  # fmt: skip
        return [made], replace(other, view=copy, offset=None)

    def whole(self, w: Windows, call: Convolution, x: Operand, other: Operand) -> list[Launch]:
        """One call for everything; nothing where there is none."""
        *reads, result = self.tiles
        follow, dtype = followed(self.epilogue, self.dtype), result.view.dtype
        axes = w.filters if w.kind == "filter" else (w.images, w.outputs, *(p for p, _ in w.spatial))
        into = tensor(dtype, axes, C, alignment(result))
        if follow is None or follow.alpha != 1 or follow.activation not in ("", "relu") or overlaps(into):
            return []
        if dtype not in (x.view.dtype, self.dtype) or any(axis.strides[C] < 1 for axis in axes if axis.size > 1):
            return []
        more = added(w.outputs, [axis for axis in axes if axis != w.outputs], self.epilogue, reads, result)
        if more is None or sorted(follow.added) != sorted(o.name for o in more if o is not None):
            return []
        addend, bias = more
        if w.kind == "filter" and (addend or bias or follow.activation):
            return []
        if addend is not None:
            into = replace(into, align=min(into.align, alignment(addend)))
        call = replace(
            with_result(call, into), adds=addend is not None, bias=bias is not None, activation=follow.activation
        )
        made = Call(call, [o for o in (x, other, addend, bias, result) if o is not None])
        then = "" if self.epilogue.identity else ", then what follows per element"
        return [
            launch(
                self.title, made.operands, made.body, doc=f"{self.doc}{then}, by a library.", lines=self.lines,
                flops=self.flops + self.size * self.epilogue.cost, scratch=made.scratch,
            )
        ]  # fmt: skip

    def apart(self, w: Windows, call: Convolution, x: Operand, other: Operand) -> list[Launch]:
        """A call, and a kernel that takes its result to where it belongs, through what follows."""
        made = w.packed_result(self.dtype)
        axes = (*self.p.outer, self.p.m, self.p.n)
        strides = [stride for axis in axes if (stride := w.place_in(made, axis)) is not None]
        if len(strides) < len(axes):
            return []
        view = View.whole(self.ctx.temp("product", made.nbytes), self.dtype, (self.size,))
        bare = Call(with_result(call, made), [x, other, Operand("y0", view, writes=True)])
        rest = Rest(self.p, self.dtype, self.epilogue, strides)
        return [
            launch(
                f"{self.title}_product", bare.operands, bare.body, doc=f"{self.doc}, by a library.", lines=self.lines,
                flops=self.flops, scratch=bare.scratch,
            ),
            launch(
                f"{self.title}_rest", [Operand("a", view, reads=True), *self.tiles], rest.body(),
                doc="What follows a product per element.", lines=self.lines, flops=self.size * self.epilogue.cost,
            ),
        ]  # fmt: skip

    @property
    def size(self) -> int:
        """Elements of the result."""
        return self.p.outer_size * self.p.m.size * self.p.n.size


def with_result(call: Convolution, result: Tensor) -> Convolution:
    return replace(call, y=result) if call.kind == "forward" else replace(call, w=result)
