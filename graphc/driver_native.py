"""The native code of a program for one target: objects and a thread team for a CPU, cubins and grids for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from graphc.artifact_records import EntryRecord, GridRecord, KernelRecord, TargetRecord
from graphc.kernels.cpu import build as cpu
from graphc.kernels.cpu.target import CpuTarget
from graphc.kernels.cuda import build as cuda
from graphc.kernels.cuda.target import CudaTarget
from graphc.kernels.plan import EntryPlan
from graphc.loop import Kernel

__all__ = ["Compilation", "Native", "begin"]

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
        return ForCpu(target, kernels, folder)
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
    """Cubins for each architecture, and how kernels are launched."""

    def __init__(self, target: CudaTarget, kernels: Sequence[Kernel], plans: Sequence[EntryPlan], folder: Path):
        self.target, self.plans = target, plans
        aligned = cuda.aligned_params(plans)
        self.compilation = cuda.Compilation(kernels, [aligned[k.key] for k in kernels], target, folder)

    def finish(self, entries: tuple[EntryRecord, ...]) -> Native:
        compiled = self.compilation.finish()
        members = {f"source/{name}": text.encode() for name, text in cuda.headers().items()}
        records = []
        for k in compiled:
            kernel, source = k.kernel, f"source/{k.symbol}.cu"
            cubins = {arch: f"native/{arch}/{k.symbol}.cubin" for arch in k.cubins}
            members |= {cubins[arch]: code for arch, code in k.cubins.items()} | {source: k.source.encode()}
            grid = GridRecord(k.grid.threads, k.grid.shared_bytes, k.grid.workspace_bytes)
            records.append(KernelRecord(kernel.name, k.symbol, "", source, kernel.doc, kernel.lines, grid, cubins))
        t = self.target
        machine = TargetRecord(t.name, t.triple, t.architectures, t.vector_bytes)
        launched = tuple(in_blocks(e, p, compiled) for e, p in zip(entries, self.plans, strict=True))
        return Native(machine, tuple(records), launched, tuple(k.source for k in compiled), members)

    def close(self) -> None:
        self.compilation.close()


def in_blocks(entry: EntryRecord, plan: EntryPlan, compiled: Sequence[cuda.Compiled]) -> EntryRecord:
    """The entry with the blocks of each launch, and the workspace of the largest."""
    launches, workspace = [], 0
    for record, launch in zip(entry.launches, plan.launches, strict=True):
        grid = compiled[record.kernel].grid
        most = max(1, WORKSPACE // grid.workspace_bytes) if grid.workspace_bytes else 0
        launches.append(replace(record, blocks=grid.blocks(launch, most)))
        workspace = max(workspace, launches[-1].blocks * grid.workspace_bytes)
    return replace(entry, launches=tuple(launches), scratch_bytes=workspace)
