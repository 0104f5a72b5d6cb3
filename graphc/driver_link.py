"""From entry plans to an artifact: offsets, barriers, and the manifest that names every byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphc.artifact import sha256
from graphc.artifact_records import (
    ARENA,
    CONST,
    FLAGS,
    SPACES,
    STATE,
    VALUE,
    WEIGHTS,
    Check,
    ConstRecord,
    EntryRecord,
    LaunchRecord,
    PortRecord,
    SpanRecord,
    StateRecord,
    TensorRecord,
)
from graphc.dtype import DType, Shape, dtype
from graphc.errors import Loc
from graphc.ir import StateSpec
from graphc.kernels.plan import Arg, Buffer, EntryPlan, Launch, Span, View
from graphc.kernels.spans import Nest, Tree, nested
from graphc.kernels.sync import Touch, barriers
from graphc.loop import Kernel
from graphc.passes.memory import ALIGN, Lifetime, MemoryPlan, plan_memory, with_prepared
from graphc.passes.memory_check import Access, Branch, Loop, Walk, check_memory

__all__ = ["KernelTable", "Layout", "StateLayout", "entry_record", "lay_out_consts", "lay_out_state", "plan_arena"]


class KernelTable:
    """The kernels of a program, numbered in order of first launch; structurally equal ones are one."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self._number: dict[str, int] = {}

    def number(self, kernel: Kernel) -> int:
        key = kernel.key
        if key not in self._number:
            self._number[key] = len(self.kernels)
            self.kernels.append(kernel)
        return self._number[key]


@dataclass
class Layout:
    """A block of tensors that are alive all the time, one after the other: ``offset`` by name and the size."""

    offset: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0

    def add(self, name: str, nbytes: int) -> int:
        at = -(-self.nbytes // ALIGN) * ALIGN
        self.offset[name] = at
        self.nbytes = at + nbytes
        return at


@dataclass(frozen=True)
class StateLayout:
    """``weights`` can be used where a file is mapped: no entry writes them, and they lie as in the file, without gaps.
    ``state`` is the rest."""

    state: Layout
    weights: Layout
    records: tuple[StateRecord, ...]

    @property
    def nbytes(self) -> int:
        return self.state.nbytes + self.weights.nbytes

    def place(self, name: str) -> tuple[int, int]:
        """The space that a piece of state lies in, and where."""
        mapped = name in self.weights.offset
        return (WEIGHTS, self.weights.offset[name]) if mapped else (STATE, self.state.offset[name])


def lay_out_state(specs: Sequence[StateSpec], orders: Mapping[str, Shape], plans: Sequence[EntryPlan]) -> StateLayout:
    """The state of ``plans`` in the order of ``specs``; ``orders`` are those of dimensions in memory that are not as
    usual."""
    written = {name for p in plans for name in _state_names(p.launches, lambda arg: arg.writes)}
    state, weights = Layout(), Layout()
    records = []
    for s in specs:
        order = orders.get(s.name, ())
        mapped = s.type.nbytes > 0 and not (s.name in written or order or s.type.nbytes % ALIGN)
        at = (weights if mapped else state).add(s.name, s.type.nbytes)
        records.append(StateRecord(s.name, s.type.dtype.name, s.type.shape, at, s.trainable, order, mapped))
    return StateLayout(state, weights, tuple(records))


def lay_out_consts(plans: Sequence[EntryPlan]) -> tuple[Layout, tuple[ConstRecord, ...], dict[str, np.ndarray]]:
    """The constants of all entries, equal ones once, called by their content."""
    layout = Layout()
    records: list[ConstRecord] = []
    arrays: dict[str, np.ndarray] = {}
    for plan in plans:
        for _, array in plan.consts:
            name = const_name(array)
            if name not in arrays:
                arrays[name] = array
                at = layout.add(name, array.nbytes)
                records.append(ConstRecord(name, dtype(array.dtype).name, array.shape, at))
    return layout, tuple(records), arrays


def const_name(array: np.ndarray) -> str:
    head = f"{array.dtype.name}{array.shape}".encode()
    return "const_" + sha256(head + np.ascontiguousarray(array).tobytes())[:16]


# The arena -----------------------------------------------------------------------------------------------------------


def plan_arena(plan: EntryPlan) -> MemoryPlan:
    """Lifetimes of the entry's arena buffers from what its launches touch, and their offsets, behind those of what it
    prepares; proved by the independent checker (GC0008)."""
    memory = with_prepared(plan_memory(_lifetimes(plan)), _kept(plan))
    places = {p.life.name: (p.offset, p.life.nbytes) for p in memory.placed}
    inputs = [view.buffer.name for _, view in plan.inputs]
    outputs = [view.buffer.name for _, view in plan.outputs]
    check_memory(places, memory.arena_bytes, inputs, _accesses(plan), outputs)
    return memory


def _kept(plan: EntryPlan) -> list[Lifetime]:
    """What is prepared, in order of its launches."""
    found: dict[str, Lifetime] = {}
    for number, launch in enumerate(plan.launches[: plan.prepared]):
        for arg in launch.args:
            if arg.buffer is not None and arg.buffer.space == "prepared" and arg.writes:
                b = arg.buffer
                found[b.name] = Lifetime(b.name, b.nbytes, number, len(plan.launches), b.loc)
    return list(found.values())


def _lifetimes(plan: EntryPlan) -> list[Lifetime]:
    """A tensor lives from the first launch that touches it to the last; what a loop shares with what is around it, and
    what it writes row by row, lives as long as the loop. Of a branch, only one way is taken: see `_away`."""
    buffers: dict[str, Buffer] = {}
    when: dict[str, list[int]] = {}

    def touch(buffer: Buffer | None, at: int) -> None:
        if buffer is not None and buffer.space == "arena":
            buffers.setdefault(buffer.name, buffer)
            when.setdefault(buffer.name, []).append(at)

    for _, view in plan.inputs:
        touch(view.buffer, -1)
    for number, launch in enumerate(plan.launches):
        for arg in launch.args:
            touch(arg.buffer, number)
    for span in plan.spans:
        if span.test is not None:
            touch(span.test.buffer, span.start if span.kind == "cond" else span.middle - 1)
    for _, view in plan.outputs:
        touch(view.buffer, len(plan.launches))

    held: dict[str, list[Span]] = {}  # by the loops that it lives as long as
    for span in plan.spans:
        if span.kind == "cond":
            continue
        rows = _stepped(plan, span, written=False)
        for name, at in when.items():
            inside = [span.start <= t < span.stop for t in at]
            if name in rows or (any(inside) and not all(inside)):
                at += [span.start, span.stop - 1]
                held.setdefault(name, []).append(span)
    return [
        Lifetime(name, b.nbytes, min(at), max(at), b.loc, _away(sorted(at), held.get(name, ()), plan.spans))
        for (name, b), at in zip(buffers.items(), when.values(), strict=True)
    ]


def _away(at: Sequence[int], held: Sequence[Span], spans: Sequence[Span]) -> tuple[tuple[int, int], ...]:
    """The launches at which a tensor that is touched at ``at`` (in order) waits for the other way of a branch: after
    the one way has read it for the last time, and before the other has written it. What the branch only reads is there
    when the other way begins, and what is read behind it, when the one way ends. ``held``: the loops that carry it on
    from one iteration to the next."""
    found = []
    for span in spans:
        if span.kind != "cond" or any(loop.start <= span.start and span.stop <= loop.stop for loop in held):
            continue
        before, after = at[0] < span.start, at[-1] >= span.stop
        inside = [t for t in at if span.start <= t < span.stop]
        one, other = [t for t in inside if t < span.middle], [t for t in inside if t >= span.middle]
        if (before and after) or not other or not (before or one):
            continue
        first = span.middle if after else max(one, default=span.start - 1) + 1
        last = span.middle - 1 if before else min(other) - 1
        if first <= last:
            found.append((first, last))
    return tuple(sorted(found))


def _stepped(plan: EntryPlan, span: Span, written: bool) -> frozenset[str]:
    """The arena tensors that a loop goes through row by row, or of these only those that it writes."""
    args = [plan.launches[launch].args[arg] for launch, arg, _ in span.steps]
    return frozenset(
        a.buffer.name for a in args if a.buffer and a.buffer.space == "arena" and (a.writes or not written)
    )


def _accesses(plan: EntryPlan) -> Walk:
    def names(args: Iterable[Arg | None], reads: bool) -> tuple[str, ...]:
        used = [a for a in args if a and a.buffer is not None and a.buffer.space in ("arena", "prepared")]
        return tuple(dict.fromkeys(a.buffer.name for a in used if a.buffer and (a.reads if reads else a.writes)))

    def step(part: int | Nest) -> Walk:
        if isinstance(part, int):
            launch = plan.launches[part]
            return [Access(launch.label, names(launch.args, True), names(launch.args, False))]
        span, before, after = part.span, walk(part.before), walk(part.after)
        decide = [Access(f"the test of a {span.kind}", names([span.test], True), ())]
        if span.kind == "cond":
            return [*decide, Branch(before, after)]
        return [Loop([*before, *decide], after, span.kind == "repeat", _stepped(plan, span, written=True))]

    def walk(tree: Tree) -> Walk:
        return [access for part in tree for access in step(part)]

    return walk(nested(len(plan.launches), plan.spans))


# The record ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where each buffer of an entry begins in its space."""

    arena: Mapping[str, int]
    state: StateLayout
    consts: Layout
    const_names: Mapping[str, str]

    def start(self, buffer: Buffer) -> tuple[int, int]:
        """The space of the artifact, and where in it."""
        match buffer.space:
            case "arena" | "prepared":
                return ARENA, self.arena[buffer.name]
            case "state":
                return self.state.place(buffer.name)
            case "const":
                return CONST, self.consts.offset[self.const_names[buffer.name]]
        return FLAGS, 0

    def argument(self, arg: Arg, moves: int = 0) -> tuple[int, int, int]:
        """The argument as recorded; loops move it on by up to ``moves`` bytes."""
        if arg.buffer is None:
            return (VALUE, arg.value, 0)
        space, start = self.start(arg.buffer)
        return (space, start + arg.offset, max(arg.buffer.nbytes - arg.offset - moves, 0))

    def touch(self, arg: Arg) -> Touch | None:
        """The whole buffer: how far a kernel reaches from its address is not recorded. Flag words are only ever set,
        by any thread, so they need no order."""
        if arg.buffer is None or arg.buffer.space == "flags" or not (arg.reads or arg.writes):
            return None
        space, start = self.start(arg.buffer)
        return Touch(SPACES[space], start, start + arg.buffer.nbytes, arg.writes)

    def port(self, name: str, view: View) -> PortRecord:
        return _port(name, view.dtype, view.shape, self.start(view.buffer)[1] + view.offset * view.dtype.itemsize)


def _port(name: str, dtype: DType, shape: Shape, offset: int) -> PortRecord:
    return PortRecord(name, dtype.name, shape, offset)


def entry_record(
    plan: EntryPlan,
    memory: MemoryPlan,
    state: StateLayout,
    consts: Layout,
    kernels: KernelTable,
    *,
    loc: Loc | None,
    graph: str,
    fused: str,
) -> EntryRecord:
    """The entry as data. ``graph`` and ``fused`` name the members that hold its graphs."""
    places = _Places(memory.offsets, state, consts, {name: const_name(array) for name, array in plan.consts})
    meet = barriers(
        [[t for a in e.args if (t := places.touch(a)) is not None] for e in plan.launches],
        plan.spans,
        [places.touch(span.test) if span.test else None for span in plan.spans],
    )
    moves = _moves(plan.spans)
    launches = tuple(
        LaunchRecord(
            kernels.number(e.kernel),
            tuple(places.argument(a, moves.get((number, i), 0)) for i, a in enumerate(e.args)),
            barrier,
            e.label,
            e.lines,
            e.flops,
            e.bytes,
        )
        for number, (e, barrier) in enumerate(zip(plan.launches, meet.launches, strict=True))
    )
    spans = tuple(
        SpanRecord(
            span.kind,
            span.start,
            span.middle,
            span.stop,
            span.count,
            span.steps,
            None if span.test is None else places.argument(span.test),
            barrier,
        )
        for span, barrier in zip(plan.spans, meet.tests, strict=True)
    )
    return EntryRecord(
        name=plan.name,
        loc=loc,
        graph=graph,
        fused=fused,
        inputs=tuple(places.port(n, v) for n, v in plan.inputs),
        outputs=tuple(places.port(n, v) for n, v in plan.outputs),
        arena_bytes=memory.arena_bytes,
        lower_bound_bytes=memory.lower_bound_bytes,
        scratch_bytes=plan.scratch_bytes,
        launches=launches,
        spans=spans,
        commit=_commit(plan),
        checks=tuple(Check(f.code, f.message, f.loc) for f in plan.flags),
        tensors=tuple(
            TensorRecord(p.life.name, p.life.nbytes, p.offset, p.life.start, p.life.end, p.life.loc)
            for p in memory.placed
        ),
        prepared=plan.prepared,
        prepared_bytes=memory.prepared_bytes,
        prepared_from=_state_names(plan.launches[: plan.prepared], lambda arg: arg.reads),
        writes=_state_names(plan.launches, lambda arg: arg.writes),
    )


def _moves(spans: Sequence[Span]) -> dict[tuple[int, int], int]:
    """How many bytes loops move each argument, (launch, number), forwards at most."""
    found: dict[tuple[int, int], int] = {}
    for span in spans:
        for launch, arg, stride in span.steps:
            found[launch, arg] = found.get((launch, arg), 0) + max(stride, 0) * (span.count - 1)
    return found


def _commit(plan: EntryPlan) -> int:
    """The number of launches before the first that writes state, or before the loops and branches that it is in."""
    first = next((i for i, e in enumerate(plan.launches) if any(map(_is_new_state, e.args))), len(plan.launches))
    return min([first, *(s.start for s in plan.spans if s.start <= first < s.stop)])


def _state_names(launches: Iterable[Launch], touched: Callable[[Arg], bool]) -> tuple[str, ...]:
    """The state that launches touch so, by name."""
    args = [a for e in launches for a in e.args if touched(a)]
    return tuple(sorted({a.buffer.name for a in args if a.buffer and a.buffer.space == "state"}))


def _is_new_state(arg: Arg) -> bool:
    return arg.writes and arg.buffer is not None and arg.buffer.space == "state"
