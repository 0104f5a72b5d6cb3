"""From entry plans to an artifact: offsets, barriers, and the manifest that names every byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphc.artifact import sha256
from graphc.artifact_records import (
    ARENA,
    CONST,
    FLAGS,
    STATE,
    VALUE,
    Check,
    ConstRecord,
    EntryRecord,
    LaunchRecord,
    PortRecord,
    StateRecord,
    TensorRecord,
)
from graphc.dtype import DType, Shape, dtype
from graphc.errors import Loc
from graphc.ir import StateSpec
from graphc.kernels.plan import Arg, Buffer, EntryPlan, View
from graphc.kernels.sync import Touch, barriers
from graphc.loop import Kernel
from graphc.passes.memory import ALIGN, Lifetime, MemoryPlan, plan_memory
from graphc.passes.memory_check import Access, check_memory

__all__ = ["KernelTable", "Layout", "entry_record", "lay_out_consts", "lay_out_state", "plan_arena"]

_SPACE = {"arena": ARENA, "state": STATE, "const": CONST, "flags": FLAGS}


class KernelTable:
    """The kernels of a program, numbered in order of first launch; structurally equal ones are one."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self._number: dict[str, int] = {}

    def number(self, kernel: Kernel) -> int:
        key = kernel.key()
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


def lay_out_state(specs: Sequence[StateSpec]) -> tuple[Layout, tuple[StateRecord, ...]]:
    """The state block in the order of ``specs``."""
    layout = Layout()
    records = [
        StateRecord(s.name, s.type.dtype.name, s.type.shape, layout.add(s.name, s.type.nbytes), s.trainable)
        for s in specs
    ]
    return layout, tuple(records)


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
    """Lifetimes of the entry's arena buffers from what its launches touch, and their offsets; proved by the
    independent checker (GC0008)."""
    memory = plan_memory(_lifetimes(plan))
    places = {p.life.name: (p.offset, p.life.nbytes) for p in memory.placed}
    inputs = [view.buffer.name for _, view in plan.inputs]
    outputs = [view.buffer.name for _, view in plan.outputs]
    check_memory(places, memory.arena_bytes, inputs, _accesses(plan), outputs)
    return memory


def _lifetimes(plan: EntryPlan) -> list[Lifetime]:
    end = len(plan.launches)
    buffers: dict[str, Buffer] = {}
    span: dict[str, tuple[int, int]] = {}

    def touch(buffer: Buffer, when: int) -> None:
        buffers.setdefault(buffer.name, buffer)
        first, last = span.get(buffer.name, (when, when))
        span[buffer.name] = (min(first, when), max(last, when))

    for _, view in plan.inputs:
        touch(view.buffer, -1)
    for when, launch in enumerate(plan.launches):
        for arg in launch.args:
            if arg.buffer is not None and arg.buffer.space == "arena":
                touch(arg.buffer, when)
    for _, view in plan.outputs:
        touch(view.buffer, end)
    return [Lifetime(name, b.nbytes, *span[name], b.loc) for name, b in buffers.items()]


def _accesses(plan: EntryPlan) -> list[Access]:
    def names(args: Sequence[Arg], reads: bool) -> tuple[str, ...]:
        used = [a for a in args if a.buffer is not None and a.buffer.space == "arena"]
        return tuple(dict.fromkeys(a.buffer.name for a in used if a.buffer and (a.reads if reads else a.writes)))

    return [Access(e.label, names(e.args, True), names(e.args, False)) for e in plan.launches]


# The record ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """Where each buffer of an entry begins in its space."""

    arena: Mapping[str, int]
    state: Layout
    consts: Layout
    const_names: Mapping[str, str]

    def start(self, buffer: Buffer) -> int:
        match buffer.space:
            case "arena":
                return self.arena[buffer.name]
            case "state":
                return self.state.offset[buffer.name]
            case "const":
                return self.consts.offset[self.const_names[buffer.name]]
        return 0  # flags

    def argument(self, arg: Arg) -> tuple[int, int, int]:
        if arg.buffer is None:
            return (VALUE, arg.value, 0)
        return (_SPACE[arg.buffer.space], self.start(arg.buffer) + arg.offset, max(arg.buffer.nbytes - arg.offset, 0))

    def touch(self, arg: Arg) -> Touch | None:
        """The whole buffer: how far a kernel reaches from its address is not recorded. Flag words are only ever set,
        by any thread, so they need no order."""
        if arg.buffer is None or arg.buffer.space == "flags" or not (arg.reads or arg.writes):
            return None
        start = self.start(arg.buffer)
        return Touch(arg.buffer.space, start, start + arg.buffer.nbytes, arg.writes)

    def port(self, name: str, view: View) -> PortRecord:
        return _port(name, view.dtype, view.shape, self.start(view.buffer) + view.offset * view.dtype.itemsize)


def _port(name: str, dtype: DType, shape: Shape, offset: int) -> PortRecord:
    return PortRecord(name, dtype.name, shape, offset)


def entry_record(
    plan: EntryPlan,
    memory: MemoryPlan,
    state: Layout,
    consts: Layout,
    kernels: KernelTable,
    *,
    loc: Loc | None,
    graph: str,
    fused: str,
) -> EntryRecord:
    """The entry as data. ``graph`` and ``fused`` name the members that hold its graphs."""
    places = _Places(memory.offsets, state, consts, {name: const_name(array) for name, array in plan.consts})
    meet = barriers([[t for a in e.args if (t := places.touch(a)) is not None] for e in plan.launches])
    launches = tuple(
        LaunchRecord(
            kernels.number(e.kernel),
            tuple(places.argument(a) for a in e.args),
            barrier,
            e.label,
            e.lines,
            e.flops,
            e.bytes,
        )
        for e, barrier in zip(plan.launches, meet, strict=True)
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
        checks=tuple(Check(f.code, f.message, f.loc) for f in plan.flags),
        tensors=tuple(
            TensorRecord(p.life.name, p.life.nbytes, p.offset, p.life.start, p.life.end, p.life.loc)
            for p in memory.placed
        ),
    )
