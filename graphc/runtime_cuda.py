"""Programs on a GPU: the same as on a processor, but for where the state lies and who runs the launches.

What comes back is where the arguments were. If one of them is on the device (an array of CuPy, or of another library
by ``__dlpack__`` or ``__cuda_array_interface__``), the results are CuPy arrays, and a call returns before they are
made: the stream that is CuPy's current one waits for them. Else they are NumPy arrays, as on a processor. In the first
case nothing goes by way of the host but the words of the checks, where an entry has some.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from graphc.artifact import CONSTS, STATE_FILE, Artifact
from graphc.artifact_records import ARENA, CONST, STATE, WEIGHTS, EntryRecord, StateRecord
from graphc.convolution import Convolution, LibraryCall
from graphc.runtime import Entry, Program
from graphc.runtime_cuda_calls import CalledKernel, Libraries
from graphc.runtime_cuda_device import Device, DeviceBlock, Kernel, architecture_of
from graphc.runtime_cuda_step import Batch, Feed, Step
from graphc.runtime_cuda_walk import Launched
from graphc.runtime_state import StateView

__all__ = ["CudaEntry", "CudaProgram", "DeviceState"]

_GUARD = 4096  # bytes behind the arena in which a measured run shows that a kernel left it


class CudaProgram(Program):
    """A program whose entries run on the GPU that is CuPy's current one at the first call.

    It can be looked at and saved where there is none; a call then is GC0508.
    """

    def __init__(self, artifact: Artifact, number: int = 0, *, state: Mapping[str, np.ndarray] | None = None):
        """The program of build ``number`` of ``artifact``, with its state or with the values ``state``."""
        whole, artifact = artifact, artifact.only(number)
        self.threads = 1
        self._lock = threading.RLock()
        self.state = DeviceState(artifact.manifest.state, artifact.tensors(STATE_FILE) if state is None else state)
        self._keep(whole, artifact)
        self.entries = {e.name: CudaEntry(self, e) for e in artifact.manifest.entries}
        for entry in self.entries.values():
            entry.connect(self.entries.values())

    def __repr__(self) -> str:
        return f"<graphc.Program {', '.join(self.entries)}: {len(self.state)} state tensors, on a GPU>"

    def close(self) -> None:
        """Nothing to stop: the device's memory is free when the program is gone."""

    @cached_property
    def on_device(self) -> Memory:
        """The program on the device, to which its state moves now. Raises GC0505, GC0508, GC0509 and GC0702."""
        return Memory(self.code, self.state)


class Memory:
    """What the entries of a program share on a device: kernels, state, constants, one arena and one workspace."""

    def __init__(self, artifact: Artifact, state: StateView):
        manifest = artifact.manifest
        self.device = device = Device()
        with device.gpu:
            self.kernels = launched(device, artifact)
        arena = max((e.arena_bytes - e.prepared_bytes for e in manifest.entries), default=0)
        sizes = {
            STATE: manifest.state_bytes,
            WEIGHTS: manifest.weights_bytes,
            CONST: manifest.const_bytes,
            ARENA: arena + _GUARD,
        }
        self.blocks = {space: device.alloc(nbytes, "the program") for space, nbytes in sizes.items()}
        self.workspace = device.alloc(max((e.scratch_bytes for e in manifest.entries), default=0), "the program")
        constants = artifact.tensors(CONSTS)
        for port in manifest.consts:
            self.blocks[CONST].write(constants[port.name], port.offset)
        assert isinstance(state, DeviceState)
        state.move(self.blocks)


def launched(device: Device, artifact: Artifact) -> list[Launched]:
    """What the launches of an artifact run, in the order of its kernels. Raises GC0505 where it has no code for this
    device, GC0509 where a library is missing."""
    architecture, libraries = architecture_of(device, artifact), Libraries()
    made: list[Launched] = []
    for record in artifact.manifest.kernels:
        call = record.library_call
        if call is not None:
            plan = bytes(artifact.members[record.object]) if record.object else b""
            made.append(CalledKernel(device, libraries, with_plan(call, plan)))
        else:
            assert record.grid is not None
            cubin = bytes(artifact.members[record.cubins[architecture]])
            made.append(Kernel(device, cubin, record.symbol, record.grid))
    return made


def with_plan(call: LibraryCall, plan: bytes) -> LibraryCall:
    """A call as it was measured: plans of convolutions are members of the artifact."""
    return replace(call, plan=plan.decode()) if isinstance(call, Convolution) else call


class DeviceState(StateView):
    """The state by name: ``state[name]`` is a copy in host memory, which cannot be written to, and ``state[name] =
    values`` writes. Values wait in host memory until the program first runs."""

    def __init__(self, records: Sequence[StateRecord], values: Mapping[str, np.ndarray]):
        super().__init__({r.name: np.empty(r.shape, r.type.dtype.numpy) for r in records})
        self._records = {r.name: r for r in records}
        self._blocks: Mapping[int, DeviceBlock] | None = None
        self.assign(values, self)

    def move(self, blocks: Mapping[int, DeviceBlock]) -> None:
        """To the device: the program runs from now on."""
        waiting, self._blocks = dict(self._views), blocks
        for name, values in waiting.items():
            self._write(name, values)
            # What `assign` compares with: shape and dtype, without the memory.
            self._views[name] = np.broadcast_to(np.empty((), values.dtype), values.shape)

    def __getitem__(self, name: str) -> np.ndarray:
        if self._blocks is None:
            array = self._views[name].copy()
        else:
            r = self._records[name]
            order = r.order or tuple(range(len(r.shape)))
            dense = self._blocks[r.space].read(tuple(r.shape[d] for d in order), r.type.dtype.numpy, r.offset)
            array = dense.transpose(np.argsort(order))
        array.flags.writeable = False
        return array

    def _write(self, name: str, values: np.ndarray) -> None:
        if self._blocks is None:
            np.copyto(self._views[name], values)
        else:
            r = self._records[name]
            self._blocks[r.space].write(values.transpose(r.order) if r.order else values, r.offset)


class CudaEntry(Entry):
    """One entry of a program on a GPU: call it with its arguments by name; see `graphc.runtime_cuda` for what comes
    back."""

    def __init__(self, program: CudaProgram, record: EntryRecord):
        self._describe(program, record)
        self._watch = program.state.watch(record.prepared_from)

    @property
    def _memory(self) -> Memory:
        assert isinstance(self._program, CudaProgram)
        return self._program.on_device

    @cached_property
    def _ready(self) -> Step:
        memory = self._memory
        return Step(memory.device, self._record, memory.kernels, memory.blocks, memory.workspace)

    def timed(self, /, **arguments: Any) -> tuple[dict[str, Any], np.ndarray]:
        """As a call, launch by launch, and the nanoseconds of each ([launches] int64), of all its runs if a loop
        repeats it."""
        with self._program._lock:
            step = self._ready
            with step.device.gpu:
                arrays = step.bind(arguments)
                return step.timed(arrays, self._prepare)

    def each(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The outputs of a step on each of ``batches``, which are arguments by name. Those of NumPy are sent to the
        device while the step before theirs runs, in memory of their own: twice that of the arguments. So ``batches`` is
        asked for one more than there are outputs."""
        feed: Feed | None = None
        sent: Batch | None = None
        outputs: dict[str, Any] | None
        for batch in _then_none(batches):
            with self._program._lock:
                step = self._ready
                with step.device.gpu:
                    arrays = None if batch is None else step.bind(batch)
                    feed = feed or Feed(step)
                    if sent is not None:
                        self._prepare()
                        feed.start(sent)
                    following = None if arrays is None else feed.send(arrays)
                    outputs = None if sent is None else step.finish()
            sent = following
            if outputs is not None:
                yield outputs

    def measured_peak_bytes(self, /, **arguments: Any) -> int:
        """Run a step on a patterned arena and see which bytes changed: what `memory.peak_bytes` predicts, measured.

        The state is put back afterwards. Missing arguments are zeros.
        """
        arguments = {n: np.zeros(t.shape, t.dtype.numpy) for n, t in self.specs.items()} | arguments
        with self._program._lock:
            step = self._ready
            arena, before = self._memory.blocks[ARENA], dict(self._program.state)
            touched = np.zeros(arena.nbytes, bool)
            for pattern in (0x5A, 0xA5):  # a byte that happens to hold one pattern does not hold the other
                arena.write(np.full(arena.nbytes, pattern, np.uint8))
                self._watch.fresh = False
                self._prepare()
                step.run(step.bind(arguments))
                self._program.state.assign(before)
                touched |= arena.read((arena.nbytes,), np.dtype(np.uint8)) != pattern
        changed = np.flatnonzero(touched)
        return self.memory.peak_bytes - self.memory.arena_bytes + (int(changed[-1]) + 1 if len(changed) else 0)

    def _step(self, arguments: dict[str, Any], times: np.ndarray | None) -> dict[str, Any]:
        with self._program._lock:
            step = self._ready
            with step.device.gpu:
                arrays = step.bind(arguments)
                self._prepare()
                return step.run(arrays)

    def _prepare(self, times: np.ndarray | None = None) -> None:
        """Run the launches that depend on state alone, if that may have changed since they ran."""
        for watch in self._spoiled:
            watch.fresh = False
        if self._record.prepared and not self._watch.fresh:
            self._ready.prepare()
            self._watch.fresh = True


def _then_none(batches: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any] | None]:
    yield from batches
    yield None
