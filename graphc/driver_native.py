"""The native code of a program for one target: objects and a thread team for a CPU, cubins and grids for a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from graphc.artifact_records import EntryRecord, GridRecord, KernelRecord, TargetRecord
from graphc.convolution import Convolution
from graphc.kernels.cpu import build as cpu
from graphc.kernels.cpu.target import CpuTarget, needed
from graphc.kernels.cuda import build as cuda
from graphc.kernels.cuda.grid import Grid
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.plan import EntryPlan, Launch
from graphc.loop import Kernel

__all__ = ["Compilation", "Native", "begin", "blocks_of", "grid_record"]

WORKSPACE = 256 << 20  # bytes of global memory that the blocks of one launch may use together


@dataclass(frozen=True)
class Native:
    """Compiled kernels: ``members`` are their files, ``team`` the object with a CPU's threads (empty for a GPU), and
    ``entries`` the entries as this target launches them."""

    target: TargetRecord
    kernels: tuple[KernelRecord, ...]
    entries: tuple[EntryRecord, ...]
    sources: tuple[str, ...]
    members: dict[str, bytes] = field(default_factory=dict)
    team: bytes = b""


class Compilation(Protocol):
    """Kernels on their way to native code; this process may do something else meanwhile."""

    def finish(self, entries: tuple[EntryRecord, ...]) -> Native:
        """What was compiled, and ``entries``, whose launches number the kernels, for it."""
        ...

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        ...


def begin(
    target: CpuTarget | CudaTarget, kernels: Sequence[Kernel], plans: Sequence[EntryPlan], folder: Path
) -> Compilation:
    """Begin to compile ``kernels``, those of ``plans``, into the cache in ``folder``."""
    if isinstance(target, CpuTarget):
        return ForCpu(needed(target, kernels), kernels, folder)
    return ForCuda(target, kernels, plans, folder)


class ForCpu:
    """Objects, and the thread team."""

    def __init__(self, target: CpuTarget, kernels: Sequence[Kernel], folder: Path):
        self.target, self.folder = target, folder
        self.compilation = cpu.Compilation(kernels, target, folder)

    def finish(self, entries: tuple[EntryRecord, ...]) -> Native:
        team = cpu.team_object(self.target, self.folder)
        members: dict[str, bytes] = {}
        records, sources = [], []
        for k in self.compilation.finish():
            kernel, file, source = k.kernel, f"native/{k.symbol}.o", f"source/{k.symbol}.py"
            members |= {file: k.object, source: k.source.encode()}
            records.append(KernelRecord(kernel.name, k.symbol, file, source, kernel.doc, kernel.lines))
            sources.append(k.source)
        t = self.target
        machine = TargetRecord(t.name, t.triple, t.features, t.vector_bytes)
        return Native(machine, tuple(records), entries, tuple(sources), members, team)

    def close(self) -> None:
        self.compilation.close()


class ForCuda:
    """Cubins for each architecture, and how kernels are launched; calls of libraries as they are."""

    def __init__(self, target: CudaTarget, kernels: Sequence[Kernel], plans: Sequence[EntryPlan], folder: Path):
        self.target, self.plans, self.kernels = target, plans, kernels
        aligned = cuda.aligned_params(plans)
        own = [k for k in kernels if k.library_call is None]
        self.compilation = cuda.Compilation(own, [aligned[k.key] for k in own], target, folder)

    def finish(self, entries: tuple[EntryRecord, ...]) -> Native:
        compiled = {c.kernel.key: c for c in self.compilation.finish()}
        members = {f"source/{name}": text.encode() for name, text in cuda.headers().items()}
        records, sources = [], []
        for kernel in self.kernels:
            found = compiled.get(kernel.key)
            record, text = called(kernel, members) if found is None else with_cubins(found, members)
            members[record.source] = text.encode()
            records.append(record)
            sources.append(text)
        t = self.target
        machine = TargetRecord(t.name, t.triple, t.architectures, t.vector_bytes)
        launched = tuple(in_blocks(e, p, compiled) for e, p in zip(entries, self.plans, strict=True))
        return Native(machine, tuple(records), launched, tuple(sources), members)

    def close(self) -> None:
        self.compilation.close()


def with_cubins(made: cuda.Compiled, members: dict[str, bytes]) -> tuple[KernelRecord, str]:
    """A kernel of our own, whose code goes to ``members``, and its source."""
    kernel, cubins = made.kernel, {arch: f"native/{arch}/{made.symbol}.cubin" for arch in made.cubins}
    members |= {cubins[arch]: code for arch, code in made.cubins.items()}
    source, grid = f"source/{made.symbol}.cu", grid_record(made.grid)
    record = KernelRecord(kernel.name, made.symbol, "", source, kernel.doc, kernel.lines, grid, cubins)
    return record, made.source


def grid_record(grid: Grid) -> GridRecord:
    return GridRecord(grid.threads, grid.shared_bytes, grid.workspace_bytes)


def called(kernel: Kernel, members: dict[str, bytes]) -> tuple[KernelRecord, str]:
    """A kernel that is a call of a library, whose plan goes to ``members``, and what it does."""
    call, digest = kernel.library_call, hashlib.sha256(kernel.key.encode()).hexdigest()[:32]
    symbol = f"call_{digest}"
    record = KernelRecord(kernel.name, symbol, "", f"source/{symbol}.txt", kernel.doc, kernel.lines)
    if not isinstance(call, Convolution):
        return replace(record, gemm=call), str(call)
    plan = f"native/{symbol}.plan" if call.plan else ""
    members |= {plan: call.plan.encode()} if plan else {}
    return replace(record, object=plan, convolution=replace(call, plan="")), str(call)


def blocks_of(grid: Grid, launch: Launch) -> int:
    """So many that their workspaces are not too large together."""
    return grid.blocks(launch, max(1, WORKSPACE // grid.workspace_bytes) if grid.workspace_bytes else 0)


def in_blocks(entry: EntryRecord, plan: EntryPlan, compiled: Mapping[str, cuda.Compiled]) -> EntryRecord:
    """The entry with the blocks of each launch, none of calls, and the largest workspace."""
    launches, workspace = [], 0
    for record, launch in zip(entry.launches, plan.launches, strict=True):
        if (call := launch.kernel.library_call) is not None:
            launches.append(record)
            workspace = max(workspace, call.workspace_bytes)
        else:
            grid = compiled[launch.kernel.key].grid
            launches.append(replace(record, blocks=blocks_of(grid, launch)))
            workspace = max(workspace, launches[-1].blocks * grid.workspace_bytes)
    return replace(entry, launches=tuple(launches), scratch_bytes=workspace)
