"""Running an artifact: arguments in, one native call, results out. Needs numpy and llvmlite, no compiler.

`gc.compile` makes an artifact in memory and runs it through this module too, so a program behaves the same whether it
was compiled or loaded. All addresses are fixed when a program is made; a step copies its inputs into the arena, calls
`gc_run` once, reads the flag words and copies the outputs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphc import artifact_tensors
from graphc.artifact import CONSTS, STATE_FILE, Artifact, trust
from graphc.artifact_records import (
    ARENA,
    CONST,
    FLAGS,
    STATE,
    VALUE,
    WEIGHTS,
    EntryRecord,
    LaunchRecord,
    PortRecord,
    StateRecord,
)
from graphc.config import settings
from graphc.dtype import TensorType, array_of
from graphc.errors import Loc, error
from graphc.runtime_arguments import bind, failed_check
from graphc.runtime_memory import MemoryReport
from graphc.runtime_native import Block, Code, Job, Team, best_build
from graphc.runtime_state import StateView, Watch
from graphc.runtime_table import PREPARED, LaunchTable

__all__ = ["Entry", "KernelInfo", "Program", "StateView", "kernel_infos", "state_view"]

_FLOPS, _BYTES = 32, 32  # of one thread in a nanosecond, about
ALONE = 10_000  # nanoseconds that one thread does by itself: to wake another one takes longer
_GUARD = 4096  # bytes behind the arena in which a measured run shows that a kernel left it


@dataclass(frozen=True)
class KernelInfo:
    """A kernel of an entry: ``count`` launches in each step that together do ``flops`` and move ``bytes`` at least, and
    ``prepared`` others that run only when the state that they read has changed."""

    name: str
    symbol: str
    source: str
    doc: str
    lines: tuple[Loc, ...]
    flops: int
    bytes: int
    count: int
    prepared: int


def kernel_infos(artifact: Artifact, entry: EntryRecord) -> list[KernelInfo]:
    """The kernels of an entry in order of first launch. Loads no code, so that any artifact can be looked at."""
    infos: dict[int, KernelInfo] = {}
    for number, launch in enumerate(entry.launches):
        k = artifact.manifest.kernels[launch.kernel]
        was = infos.get(launch.kernel)
        if was is None:
            was = KernelInfo(k.name, k.symbol, artifact.text(k.source), k.doc, k.lines, 0, 0, 0, 0)
        if number < entry.prepared:
            infos[launch.kernel] = replace(was, prepared=was.prepared + 1)
        else:
            infos[launch.kernel] = replace(
                was, flops=was.flops + launch.flops, bytes=was.bytes + launch.bytes, count=was.count + 1
            )
    return list(infos.values())


class Program:
    """Entries over one state. ``program.train(x=..., y=...)`` runs the entry ``train``; `entries` has them by name.

    Calls from several threads run one after the other.
    """

    def __init__(
        self, artifact: Artifact, *, threads: int | None = None, state: Mapping[str, np.ndarray] | None = None
    ):
        """The program of ``artifact``, with its state or with the values ``state``."""
        whole, artifact = artifact, artifact.only(best_build(artifact.manifest))
        self.threads = settings().threads if threads is None else threads
        if self.threads < 1:
            raise error("GC0602", f"a program runs on 1 thread or more, not on {threads}")
        manifest = artifact.manifest
        code = Code.of(artifact)
        self._lock = threading.RLock()
        self._team = Team(code, self.threads)
        self._state = Block(manifest.state_bytes)
        self._consts = _filled(Block(manifest.const_bytes), manifest.consts, artifact.tensors(CONSTS))
        self._arena = Block(max((e.arena_bytes - e.prepared_bytes for e in manifest.entries), default=0), _GUARD)
        self._stride = max((e.scratch_bytes for e in manifest.entries), default=0)
        self._scratch = Block(self._stride * self.threads)
        # The weights of a file are used where it is mapped; values that are given are copied.
        self._weights = Block.of(artifact.weights()) if state is None else Block(manifest.weights_bytes)
        blocks = {STATE: self._state, WEIGHTS: self._weights}
        self.state = StateView({p.name: state_view(blocks[p.space], p) for p in manifest.state})
        if state is None:
            values = artifact.tensors(STATE_FILE)
            self.state.assign({p.name: values[p.name] for p in manifest.state if not p.mapped})
        else:
            self.state.assign(state, self.state)
        self._keep(whole, artifact)
        addresses = [code.address(k.symbol) for k in manifest.kernels]
        self.entries = {e.name: Entry(self, e, addresses) for e in manifest.entries}
        for entry in self.entries.values():
            entry.connect(self.entries.values())

    def _keep(self, whole: Artifact, artifact: Artifact) -> None:
        """The artifact, for all its targets and for this one, without the state: that has its own place by now."""
        members = {name: bytes(data) for name, data in whole.members.items() if name != STATE_FILE}
        self._whole = replace(whole, members=members)
        self._artifact = replace(artifact, members={n: members[n] for n in artifact.members if n in members})

    @property
    def artifact(self) -> Artifact:
        """The program as data, for all its targets, with the values that the state has now."""
        with self._lock:
            return self._whole.with_state(self.state)

    @property
    def code(self) -> Artifact:
        """The program as data without its state, for the target that it runs on: cheap, whatever the size of the
        model."""
        return self._artifact

    def __getattr__(self, name: str) -> Entry:
        entries: dict[str, Entry] = self.__dict__.get("entries", {})
        if name not in entries:
            raise AttributeError(f"the program has no entry {name!r}; it has {', '.join(entries) or 'none'}")
        return entries[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.entries]

    def __repr__(self) -> str:
        return f"<graphc.Program {', '.join(self.entries)}: {len(self.state)} state tensors, {self.threads} threads>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the program with its present state as a ``.gcx`` file, trusted on this machine. Raises GC0507."""
        artifact = self.artifact
        artifact.write(path)
        trust(artifact)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write all state (parameters, optimizer slots, counters, RNG) as safetensors. Raises GC0805."""
        with self._lock:
            artifact_tensors.write_file(path, self.state)

    def load_state(self, path: str | os.PathLike[str], strict: bool = True) -> None:
        """Read what `save_state` wrote: the next step is bit-identical to the one that would have followed.

        ``strict=False`` skips names that the file lacks or that the program does not know. Raises GC0801, GC0802,
        GC0804, GC0805; then nothing was overwritten.
        """
        tensors = artifact_tensors.read_file(path)
        with self._lock:
            self.state.assign(tensors, self.state if strict else (), strict)

    def load_state_dict(self, tensors: Mapping[str, Any], strict: bool = True) -> None:
        """Take weights by name: arrays of exactly the shapes and dtypes of the state.

        All trainable parameters must be given; what else is given is taken, too, and all other state (optimizer slots,
        counters, statistics, RNG) stays as it is. ``strict=False`` skips missing and unknown names. Raises GC0801
        (names) and GC0802 (shapes, dtypes); then nothing was overwritten.
        """
        with self._lock:
            trainable = {p.name for p in self._artifact.manifest.state if p.trainable}
            self.state.assign({n: array_of(t) for n, t in tensors.items()}, trainable if strict else (), strict)

    def close(self) -> None:
        """Stop the worker threads (a later call starts them again)."""
        with self._lock:
            self._team.close()


class Entry:
    """One entry of a program: call it with its arguments by name."""

    def __init__(self, program: Program, record: EntryRecord, kernels: list[int]):
        self._describe(program, record)
        arena, start = program._arena, record.prepared_bytes
        self._kept = Block(start)
        self._slots = {p.name: _view(arena, p, start) for p in record.inputs}
        self._results = {p.name: _view(arena, p, start) for p in record.outputs}
        self._flags = np.zeros(max(len(record.checks), 1), np.int32)
        base = {
            VALUE: 0,
            ARENA: arena.address - start,
            PREPARED: self._kept.address,
            STATE: program._state.address,
            WEIGHTS: program._weights.address,
            CONST: program._consts.address,
            FLAGS: self._flags.ctypes.data,
        }
        self._table = table = LaunchTable(record, kernels, base, program.threads)
        self._watch = program.state.watch(record.prepared_from)
        self._spoiled: list[Watch] = []

        def job(part: slice, worth: bool) -> Job:
            threads = program.threads if worth else 1
            return Job(table.records[part], threads, program._scratch, program._stride, table.stride)

        self._preparation = job(table.prepared, _worth_a_team(record.launches[: record.prepared]))
        worth = _worth_a_team(record.steps) or bool(record.spans)  # of a loop only one iteration is known
        self._jobs = [job(part, worth) for part in table.parts]

    def connect(self, entries: Iterable[Entry]) -> None:
        """Find out whose preparations the state is for that this entry writes."""
        writes = self._record.writes
        self._spoiled = [e._watch for e in entries if not e._watch.names.isdisjoint(writes)]

    def _describe(self, program: Program, record: EntryRecord) -> None:
        self.name = record.name
        self.specs: dict[str, TensorType] = {p.name: p.type for p in record.inputs}
        self.outputs: dict[str, TensorType] = {p.name: p.type for p in record.outputs}
        self._program, self._record = program, record

    def __call__(self, /, *unnamed: Any, **arguments: Any) -> dict[str, np.ndarray]:
        """Run one step and return its outputs as fresh arrays.

        Arrays must have exactly the dtype and shape of `specs`; Python numbers and lists of them are converted where
        they fit. Raises GC0401 to GC0403 for arguments, and the code of a check that failed inside the step; the
        state then is as it was, or, where the check needs new state, what the step made of it (the hint says which).
        """
        if unnamed:
            hint = f"{self.name}({', '.join(f'{name}=...' for name in self.specs)})"
            raise error("GC0401", f"{self.name}: arguments are given by name", loc=self._record.loc, hint=hint)
        return self._step(arguments, None)

    def each(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        """The outputs of a step on each of ``batches``, which are arguments by name. On a GPU the next batch is sent
        while a step runs."""
        for batch in batches:
            yield self(**batch)

    def timed(self, /, **arguments: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """As a call, and the nanoseconds of each launch ([launches] int64), of all its runs if a loop repeats it; 0 for
        what was prepared before and did not run."""
        times = np.zeros(len(self._table.records), np.int64)
        return self._step(arguments, times), times[self._table.positions]

    @property
    def memory(self) -> MemoryReport:
        return MemoryReport.of(self._record, self._program._artifact.manifest, self._program.threads)

    @property
    def graph(self) -> str:
        """The graph as traced, as text."""
        return self._program._artifact.text(self._record.graph)

    @property
    def fused_graph(self) -> str:
        """The graph after all passes, as text: one call per kernel."""
        return self._program._artifact.text(self._record.fused)

    @property
    def kernels(self) -> list[KernelInfo]:
        """The kernels of the entry in order of first launch."""
        return kernel_infos(self._program._artifact, self._record)

    def launches(self) -> dict[KernelInfo, tuple[int, ...]]:
        """Which launches, by number, run each kernel."""
        by_kernel: dict[int, list[int]] = {}
        for number, launch in enumerate(self._record.launches):
            by_kernel.setdefault(launch.kernel, []).append(number)
        return {info: tuple(numbers) for info, numbers in zip(self.kernels, by_kernel.values(), strict=True)}

    @property
    def flops(self) -> int:
        """Work of a step, without what is prepared."""
        return sum(launch.flops for launch in self._record.steps)

    @property
    def bytes(self) -> int:
        """Compulsory memory traffic of a step, without what is prepared."""
        return sum(launch.bytes for launch in self._record.steps)

    def measured_peak_bytes(self, /, **arguments: Any) -> int:
        """Run a step on a patterned arena and see which bytes changed: what `memory.peak_bytes` predicts, measured.

        The state is put back afterwards. Missing arguments are zeros.
        """
        program, memory = self._program, self.memory
        arguments = {n: np.zeros(t.shape, t.dtype.numpy) for n, t in self.specs.items()} | arguments
        touched = np.zeros(memory.arena_bytes + _GUARD, bool)
        with program._lock:
            before = program._state.bytes.copy()
            for pattern in (0x5A, 0xA5):  # a byte that happens to hold one pattern does not hold the other
                program._arena.bytes[: len(touched)] = pattern
                self._step(arguments, None)
                program._state.bytes[:] = before
                touched |= program._arena.bytes[: len(touched)] != pattern
        changed = np.flatnonzero(touched)
        arena = int(changed[-1]) + 1 if len(changed) else 0
        return memory.peak_bytes - memory.arena_bytes + arena

    def _step(self, arguments: dict[str, Any], times: np.ndarray | None) -> dict[str, np.ndarray]:
        program = self._program
        arrays = bind(self._record, self.specs, arguments)
        with program._lock:
            for watch in self._spoiled:
                watch.fresh = False
            if self._record.prepared:
                self._prepare(times)
            for name, slot in self._slots.items():
                slot[...] = arrays[name]
            self._flags.fill(0)
            # Checks are read before state is written, so that a step which fails there has changed nothing.
            for part, job in zip(self._table.parts, self._jobs, strict=True):
                program._team.start(job, None if times is None else times[part])
                if np.count_nonzero(self._flags):
                    raise failed_check(self._record, self._flags, changed=part.stop > self._table.cut)
            return {name: slot.copy() for name, slot in self._results.items()}

    def _prepare(self, times: np.ndarray | None) -> None:
        """Run the launches that depend on state alone, if that may have changed since they ran."""
        lent = self._program.state.is_lent(self._watch.names)
        if lent or not self._watch.fresh:
            part = self._table.prepared
            self._program._team.start(self._preparation, None if times is None else times[part])
            self._watch.fresh = not lent


def _worth_a_team(launches: Sequence[LaunchRecord]) -> bool:
    """Whether launches take long enough on one thread for a second one to be called for them."""
    return sum(max(launch.flops / _FLOPS, launch.bytes / _BYTES) for launch in launches) > ALONE


def _view(block: Block, port: PortRecord, start: int = 0) -> np.ndarray:
    return block.view(port.type.dtype.numpy, port.shape, port.offset - start)


def state_view(block: Block, port: StateRecord) -> np.ndarray:
    """The tensor as its users see it, whatever the order in which its dimensions lie in memory."""
    if not port.order:
        return _view(block, port)
    dense = block.view(port.type.dtype.numpy, tuple(port.shape[d] for d in port.order), port.offset)
    return dense.transpose(np.argsort(port.order))


def _filled(block: Block, ports: tuple[Any, ...], tensors: Mapping[str, np.ndarray]) -> Block:
    for port in ports:
        np.copyto(_view(block, port), tensors[port.name])
    return block
