"""Whole entries on the CUDA target, launch by launch on the CPU.

Each buffer of a plan has memory of its own, so that an access outside of what a launch names is found, and so is a read
of what no launch has written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from loop_interp import Launches, Pointer, strided
from shim import FORWARD, Argument, Buffer, Place, Schedule, compile_kernels

from graphc.kernels import plan as planned
from graphc.kernels.cuda.build import aligned_params
from graphc.kernels.cuda.dialect import source_of
from graphc.kernels.cuda.grid import Grid
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.cuda.threads import shared_out
from graphc.kernels.plan import EntryPlan, Launch

MOST_BLOCKS = 3  # where blocks need a workspace: so few that each has several units


@dataclass(frozen=True)
class Emitted:
    """A kernel in CUDA C++, and how it is launched."""

    symbol: str
    grid: Grid
    text: str


def emitted(plans: Sequence[EntryPlan]) -> dict[str, Emitted]:
    """The kernels of ``plans`` by their keys."""
    kernels = {launch.kernel.key: launch.kernel for plan in plans for launch in plan.launches}
    found = {}
    for number, (key, aligned) in enumerate(aligned_params(plans).items()):
        threads = shared_out(kernels[key], aligned, CudaTarget().shared_bytes)
        found[key] = Emitted(f"gc_{number}", threads.grid, source_of(threads, f"gc_{number}"))
    return found


class Compiled:
    """The kernels of some plans, ready to run those plans."""

    def __init__(self, plans: Sequence[EntryPlan], build: str = "checked"):
        self.emitted = emitted(plans)
        self.kernels = compile_kernels({f"{e.symbol}.cu": e.text for e in self.emitted.values()}, build)

    def run(
        self,
        plan: EntryPlan,
        inputs: Mapping[str, np.ndarray],
        state: dict[str, np.ndarray] | None = None,
        schedule: Schedule = FORWARD,
    ) -> dict[str, np.ndarray]:
        """One step. ``state`` is updated in place (new arrays). Returns the outputs; "flags" holds the flag words.

        Raises KernelFault."""
        state = {} if state is None else state
        memory = _Memory(plan, state)
        for name, view in plan.inputs:
            memory.array(view)[...] = inputs[name]
            memory.of(view.buffer).cells["wrote"] = 1
        Launches(plan, lambda launch: self.launch(launch, memory, schedule), memory.byte).all()
        for name, old in state.items():
            if name in memory.found:
                state[name] = memory.found[name].bytes.view(old.dtype).reshape(old.shape).copy()
        outputs = {name: memory.array(view).copy() for name, view in plan.outputs}
        flags = [b.bytes.view(np.int32).copy() for b in memory.found.values() if b.flags]
        return outputs | {"flags": flags[0] if flags else np.zeros(0, np.int32)}

    def launch(self, launch: Launch, memory: _Memory, schedule: Schedule) -> None:
        made = self.emitted[launch.kernel.key]
        blocks = made.grid.blocks(launch, MOST_BLOCKS)
        args = memory.arguments(launch)
        if made.grid.workspace_bytes:
            args.append(Buffer((blocks * made.grid.workspace_bytes, np.uint8), "the workspace"))
        shared = made.grid.shared_bytes
        self.kernels[made.symbol](blocks, made.grid.threads, *args, shared_bytes=shared, schedule=schedule)


class _Memory:
    """The buffers of a plan, made when they are first used."""

    def __init__(self, plan: EntryPlan, state: Mapping[str, np.ndarray]):
        self.flag_bytes = 4 * len(plan.flags)
        self.given = {"state": state, "const": dict(plan.consts)}
        self.found: dict[str, Buffer] = {}

    def of(self, buffer: planned.Buffer) -> Buffer:
        if buffer.name not in self.found:
            self.found[buffer.name] = self.made(buffer)
        return self.found[buffer.name]

    def made(self, buffer: planned.Buffer) -> Buffer:
        if buffer.space == "flags":
            return Buffer(np.zeros(self.flag_bytes, np.uint8), "flags", flags=True)
        if buffer.space in self.given:
            values = np.ascontiguousarray(self.given[buffer.space][buffer.name])
            return Buffer(np.frombuffer(values.tobytes(), np.uint8), buffer.name)
        return Buffer((buffer.nbytes, np.uint8), buffer.name)

    def array(self, view: planned.View) -> np.ndarray:
        return strided(Pointer(self.of(view.buffer).bytes), view)

    def byte(self, at: planned.Arg) -> int:
        assert at.buffer is not None
        return int(self.of(at.buffer).bytes[at.offset])

    def arguments(self, launch: Launch) -> list[Argument]:
        return [a.value if a.buffer is None else Place(self.of(a.buffer), a.offset, a.writes) for a in launch.args]
