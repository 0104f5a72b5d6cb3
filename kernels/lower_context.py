"""What the lowerings of single groups share: temporaries, run-time checks, and the assembly of launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from graphc.dtype import DType, int32
from graphc.errors import Loc
from graphc.ir import Graph
from graphc.kernels.contract_schedule import Target
from graphc.kernels.plan import Arg, Buffer, Flag, Launch, Span, View
from graphc.loop import Kernel, Param, Scratch, Stmt
from graphc.ops.base import Map, Reduce, get_op
from graphc.passes.fuse_cost import node_cost

__all__ = ["LowerContext", "Operand", "launch", "lines", "span_bytes", "title"]

REDUCES = 1000  # of a reduction in a kernel's name: what it reduces by comes before all elementwise work


@dataclass
class LowerContext:
    """The state of lowering one entry. ``target`` holds the facts of the machine that loops are shaped by; the rest is
    what the entry has so far. ``others``: launches have other kernels to choose from. ``written`` is the state that the
    entry writes; None: nothing is prepared."""

    target: Target
    others: bool = False
    written: frozenset[str] | None = None
    loc: Loc | None = None
    flags: list[Flag] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    consts: list[tuple[str, np.ndarray]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)  # of buffers that hold values
    _temps: int = 0

    def temp(self, name: str, nbytes: int, space: str = "arena") -> Buffer:
        """Memory for the launches of the group that is being lowered."""
        self._temps += 1
        return Buffer(f"{name}.{self._temps}", space, nbytes, self.loc)

    def is_prepared(self, buffer: Buffer) -> bool:
        """Whether what is in ``buffer`` will have been prepared, as far as can be seen from the launches so far."""
        if self.written is None:
            return False
        if buffer.space == "arena":
            makers = [e for e in self.launches if any(a.writes and a.buffer == buffer for a in e.args)]
            read = [a.buffer for e in makers for a in e.args if a.reads and a.buffer]
            return len(makers) == 1 and buffer not in read and all(map(self.is_prepared, read))
        return buffer.space == "const" or (buffer.space == "state" and buffer.name not in self.written)

    def flag(self, code: str, message: str, loc: Loc | None) -> Arg:
        """The word of a new run-time check, as an argument that the kernel may write."""
        self.flags.append(Flag(code, message, loc))
        words = len(self.flags)  # so far: the kernel uses the last
        return Arg(Buffer("flags", "flags", 4 * words), 4 * (words - 1), writes=True)

    def index_check(self, size: int, loc: Loc | None) -> tuple[Param, Arg]:
        """The flag of a kernel that holds indices against ``size``, as its last parameter and argument."""
        message = f"an index (of a row, a token, a label) is out of range: it must be from 0 to {size - 1}"
        flag = Param("flag", int32, written=True, comment="set where an index is out of range")
        return flag, self.flag("GC0420", message, loc)


@dataclass(frozen=True, slots=True)
class Operand:
    """One buffer parameter of a launch: its name in the kernel and what it is bound to."""

    name: str
    view: View
    reads: bool = False
    writes: bool = False
    offset: int | None = None  # elements; None: the view's own

    @property
    def param(self) -> Param:
        layout = "" if self.view.contiguous else f", strides {list(self.view.strides)}"
        comment = f"{self.view.dtype}{list(self.view.shape)}{layout}"
        return Param(self.name, self.view.dtype, written=self.writes, comment=comment)

    @property
    def arg(self) -> Arg:
        start = self.view.offset if self.offset is None else self.offset
        return Arg(self.view.buffer, start * self.view.dtype.itemsize, reads=self.reads, writes=self.writes)


def launch(
    name: str,
    operands: Sequence[Operand],
    body: Sequence[Stmt],
    *,
    doc: str,
    lines: tuple[Loc, ...] = (),
    flops: int = 0,
    scratch: Sequence[Scratch] = (),
    scalars: Sequence[tuple[str, int]] = (),
    extra: Sequence[tuple[Param, Arg]] = (),
) -> Launch:
    """A kernel and one launch of it over ``operands``; ``scalars`` are passed by value, ``extra`` comes last."""
    from_dtype: DType = operands[0].view.dtype
    params = [o.param for o in operands]
    params += [Param(n, from_dtype, scalar=True) for n, _ in scalars] + [p for p, _ in extra]
    args = [o.arg for o in operands] + [Arg(value=v) for _, v in scalars] + [a for _, a in extra]
    kernel = Kernel(name, tuple(params), tuple(body), tuple(scratch), lines, doc)
    traffic = sum({(o.view.buffer.name, o.view.offset, o.writes): span_bytes(o.view) for o in operands}.values())
    return Launch(kernel, tuple(args), name, lines, flops, traffic)


def span_bytes(view: View) -> int:
    """Bytes of the distinct elements that a view touches (a repeated dimension counts once)."""
    return prod(d for d, s in zip(view.shape, view.strides, strict=True) if s) * view.dtype.itemsize


def lines(body: Graph, ctx: LowerContext) -> tuple[Loc, ...]:
    """The user's lines that a body came from; for a body of our own (a region, a copy) the line that asked for it."""
    return tuple(dict.fromkeys(n.loc for n in body if n.loc)) or ((ctx.loc,) if ctx.loc else ())


def title(kind: str, body: Graph, shape: Sequence[int]) -> str:
    """A readable name: the kind, the body's heaviest ops (three at most, in their order), the shape.

    What the kind says already (the product of a "contract") is not said again."""
    weight: dict[str, int] = {}
    for node in body:
        lowering = get_op(node.op).lower
        if isinstance(lowering, Reduce | Map) and node.op != "stop_gradient":
            weight.setdefault(node.op, REDUCES if isinstance(lowering, Reduce) else node_cost(node))
    heaviest = sorted(weight, key=lambda op: -weight[op])[:3]
    return "_".join([kind, *(op for op in weight if op in heaviest), "x".join(map(str, shape)) or "scalar"])
