"""The compiler from end to end: entries in, a running program out.

``trace → passes → lower → kernels → memory → artifact → runtime``. Each step is a function of another module; here is
their order, what is shared between entries, and what a compile tells about itself (`CompileReport`).
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import llvmlite.binding as llvm

from graphc import artifact_tensors, modelfile
from graphc.artifact import CONSTS, STATE_FILE, Artifact, sha256
from graphc.artifact_records import FORMAT, Build, EntryRecord, Manifest, Provenance
from graphc.config import settings
from graphc.driver_budget import Planned, Recomputed, fit, peak_beside_state, plan
from graphc.driver_libraries import MODES, with_libraries
from graphc.driver_link import KernelTable, Layout, StateLayout, entry_record, lay_out_consts, lay_out_state
from graphc.driver_native import begin
from graphc.driver_tune import tune
from graphc.dtype import DType, bfloat16, float16, float32
from graphc.errors import GraphcError, Loc, error
from graphc.ir import Graph, StateSpec
from graphc.kernels.contract_factors import narrow_factors
from graphc.kernels.cpu.target import NATIVE, CpuTarget, runs_here, targets
from graphc.kernels.cuda.target import ARCHITECTURES, CudaTarget
from graphc.passes import pipeline
from graphc.passes.precision import round_factors
from graphc.passes.state_order import state_orders
from graphc.runtime import Program
from graphc.runtime_load import program_of
from graphc.runtime_memory import MemoryReport, format_bytes
from graphc.text import parse, print_graph
from graphc.tracing import Entry, trace_entries
from graphc.verify import verify

__all__ = ["CompileReport", "PassRecord", "Program", "build", "compile", "compile_file", "rebuild"]

Members = dict[str, bytes | memoryview]


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one entry."""

    entry: str
    name: str
    before: Graph
    after: Graph
    seconds: float


@dataclass
class CompileReport:
    """Filled by a compile that is given one: seconds of each phase, each pass with its graphs, what a budget costs."""

    seconds: dict[str, float] = field(default_factory=dict)
    passes: list[PassRecord] = field(default_factory=list)
    recomputed: dict[str, Recomputed] = field(default_factory=dict)  # by entry: what a memory budget costs

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


TARGETS = ("cpu", "cuda")

# What ``precision`` may be: the type to which the factors of products are rounded.
PRECISIONS = {"float32": float32, "bfloat16": bfloat16, "bf16": bfloat16, "float16": float16, "f16": float16}


@dataclass(frozen=True)
class Options:
    """What the caller of a compile asks for, beside the entries."""

    target: str | Sequence[str] = "cpu"
    cpu_baseline: str | Sequence[str] | None = None
    arch: str | Sequence[str] | None = None
    libraries: str = "auto"
    precision: str = "float32"
    threads: int | None = None
    memory_budget: int | None = None
    tune: float | None = None
    cache: bool = True
    check: bool | None = None  # None: as GRAPHC_DEBUG says
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _several(self.target):
            if name not in TARGETS:
                raise error("GC0607", f"there is no target {name!r}", hint=f"one of {', '.join(TARGETS)}")
        for arch in _several(self.arch or ()):
            if not re.fullmatch(r"sm_[0-9]{2,3}[af]?", arch):
                raise error("GC0607", f"there is no architecture {arch!r}", hint=f"such as {', '.join(ARCHITECTURES)}")
        if self.precision not in PRECISIONS:
            message = f"there is no precision {self.precision!r}"
            raise error("GC0607", message, hint=f"one of {', '.join(PRECISIONS)}")
        if self.libraries not in MODES:
            raise error("GC0607", f"libraries cannot be {self.libraries!r}", hint=f"one of {', '.join(MODES)}")

    def applied(self, graph: Graph) -> Graph:
        """A traced graph under the policy for products."""
        factors = PRECISIONS[self.precision]
        return graph if factors == float32 else round_factors(graph, factors)

    def processors(self, graphs: Sequence[Graph]) -> list[CpuTarget | CudaTarget]:
        """What the kernels of ``graphs``, after all passes, are compiled for, the best first."""
        found: list[CpuTarget | CudaTarget] = []
        if "cuda" in _several(self.target):
            gpu = CudaTarget(architectures=_several(self.arch or ARCHITECTURES))
            found.append(with_libraries(gpu, self.libraries, self.cache))
        if "cpu" in _several(self.target):
            factors = frozenset[DType]().union(*map(narrow_factors, graphs))
            found += targets(_several(self.cpu_baseline or NATIVE), factors)
        return found

    @property
    def recorded(self) -> dict[str, str]:
        """What the artifact says that was asked for, of all that has a part in what was made."""
        lists = {"target": self.target, "cpu_baseline": self.cpu_baseline or (), "arch": self.arch or ()}
        lists["libraries"] = self.libraries if self.libraries != "auto" else ()
        words = {name: " ".join(sorted(_several(value))) for name, value in lists.items() if value}
        names = ("precision", "memory_budget", "tune")
        return words | {name: str(value) for name in names if (value := getattr(self, name)) is not None}

    @property
    def checked(self) -> bool:
        return settings().verify if self.check is None else self.check

    @property
    def nthreads(self) -> int:
        return settings().threads if self.threads is None else self.threads

    def team(self, target: CpuTarget | CudaTarget) -> int:
        """How many have scratch memory of their own."""
        return self.nthreads if isinstance(target, CpuTarget) else 1


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    """An option that is a name or several."""
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Source:
    """A traced entry, from a function or from an artifact."""

    name: str
    loc: Loc | None
    graph: Graph


def compile(*entries: Entry, report: CompileReport | None = None, **options: Any) -> Program:
    """Compile entries over one state into a program.

    Options: ``target`` ("cpu", "cuda" for NVIDIA GPUs, or both; ``arch``: their architectures, by default "sm_80",
    "sm_90" and "sm_100", each for its minor versions, too; ``libraries``: which products and convolutions are calls of
    cuBLASLt and cuDNN: "auto", those that are faster so on the GPU of this machine, "on", all that these have, or
    "off"), ``cpu_baseline`` (the instructions that the program may use: "x86-64-v3", AVX2, or "x86-64-v4", AVX-512,
    makes an artifact that runs on every such machine; default: "native", what this one has; of several, such as
    ["native", "x86-64-v3", "neon"], the artifact has code for each, and the best that fits is run), ``precision``
    ("float32", or "bfloat16" or "float16": the factors of every product are rounded to it, all else stays float32),
    ``threads`` (default: GRAPHC_THREADS, or the CPUs of this process), ``memory_budget`` (bytes that no entry's peak
    may exceed: values are computed again where they cannot all be kept, and GC0701 says so if that is not enough),
    ``tune`` (seconds that may be spent on measuring which of several kernels with the same results is the fastest here;
    what was found is kept in the cache), ``cache`` (reuse kernels compiled before), ``check`` (verify the graph after
    each pass; default: as GRAPHC_DEBUG says), ``metadata`` (text by name that the artifact carries for those who use
    it). Raises GraphcError.
    """
    report = CompileReport() if report is None else report
    opts = Options(**options)
    with report.phase("trace"):
        traced = trace_entries(*entries)
        sources = [Source(t.graph.name, t.entry.loc, opts.applied(t.graph)) for t in traced]
    specs = list(dict.fromkeys(s for t in traced for s in t.states))
    initial = {name: array for t in traced for name, array in t.initial.items()}
    artifact = build(sources, specs, opts, report)
    with report.phase("load"):
        program = program_of(artifact, threads=opts.nthreads, state=initial)
    _say(report)
    return program


def compile_file(
    path: str | os.PathLike[str],
    entry: str | Sequence[str] | None = None,
    set: Mapping[str, Any] | None = None,
    **options: Any,
) -> Program:
    """Compile a model file (`graphc.modelfile`): its entries, or those named by ``entry``.

    ``set`` overrides keys of the file's ``Config``; strings are read by the field's type. Options are those of
    `compile`. Raises GraphcError: GC0605 for a file without such entries, GC0601 and GC0602 for keys and values.
    """
    module = modelfile.load_model_file(Path(path))
    config = modelfile.make_config(module, set)
    found = modelfile.file_entries(module, config)
    if entry is not None:
        names = [entry] if isinstance(entry, str) else list(entry)
        known = {e.name: e for e in found}
        for name in names:
            if name not in known:
                hint = modelfile.close_matches(name, list(known))
                raise error("GC0605", f"{os.fspath(path)} has no entry {name!r}", hint=hint)
        found = tuple(known[name] for name in names)
    return compile(*found, metadata=modelfile.file_metadata(module, config), **options)


def rebuild(artifact: Artifact, report: CompileReport | None = None, **options: Any) -> Program:
    """Compile the graphs of an artifact for this machine and keep its state: what loading does with a file whose
    native code is not trusted here or does not fit. Options are those of `compile`."""
    report = CompileReport() if report is None else report
    manifest = artifact.manifest
    opts = Options(metadata=manifest.metadata, **options)
    specs = {s.name: StateSpec(s.name, s.type, s.trainable) for s in manifest.state}
    sources = [Source(e.name, e.loc, _graph_of(artifact, e, specs)) for e in manifest.entries]
    made = build(sources, list(specs.values()), opts, report)
    return program_of(made, threads=opts.nthreads, state=artifact.tensors(STATE_FILE))


def _graph_of(artifact: Artifact, entry: EntryRecord, specs: Mapping[str, StateSpec]) -> Graph:
    """The traced graph of an entry, from text that may come from anywhere. Raises GC0550 and GC0502."""
    graph = parse(artifact.text(entry.graph))
    states = {str(n.attrs.get("name")): n.types[0] for n in graph if n.op == "state"} | {
        n: v.type for n, v in graph.updates
    }
    try:
        verify(graph)
        unknown = next((name for name, t in states.items() if name not in specs or specs[name].type != t), None)
        if unknown is not None:
            raise error("GC0502", f"entry {entry.name} has unknown state {unknown!r}")
    except GraphcError as problem:  # a rule that only a defect of ours breaks, or a file that was made by hand
        hint = "Get the file again from its source, or compile the model again."
        raise error("GC0502", f"the graph of entry {entry.name} is damaged: {problem.message}", hint=hint) from None
    return graph


@contextmanager
def _without_collections() -> Iterator[None]:
    """Python's collector of reference cycles pauses: a compile makes objects by the million and keeps nearly all of
    them to its end, so that looking through them again and again takes a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collections()
def build(
    sources: Sequence[Source],
    specs: Sequence[StateSpec],
    options: Options,
    report: CompileReport,
) -> Artifact:
    """The artifact of traced entries over the state ``specs``, without values of that state."""
    with report.phase("passes"):
        finals = [
            pipeline.run(source.graph, observe=_observer(source, report), check=options.checked) for source in sources
        ]
    orders = state_orders(specs, [source.graph for source in sources])

    def plans(target: CpuTarget | CudaTarget, prepared: bool = True) -> list[Planned]:
        return [plan(final, target, report.phase, orders, options.tune is not None, prepared) for final in finals]

    planned = {t: plans(t) for t in options.processors(finals)}
    state = lay_out_state(specs, orders, [p.plan for entries in planned.values() for p in entries])
    if options.memory_budget is not None:
        for target, whole in planned.items():
            if state.nbytes + peak_beside_state(whole, options.team(target)) > options.memory_budget:
                whole = plans(target, prepared=False)
            planned[target] = [
                _fitted(source, p, state.nbytes, whole, target, options, report)
                for source, p in zip(sources, whole, strict=True)
            ]
    if options.tune is not None:
        for target in planned:
            if isinstance(target, CpuTarget) and runs_here(target):
                planned[target] = _tuned(planned[target], target, options, report)
    consts, const_records, const_arrays = lay_out_consts([p.plan for entries in planned.values() for p in entries])
    members: Members = {CONSTS: artifact_tensors.dump(const_arrays)}
    builds = [
        _build(target, sources, entries, state, consts, members, options, report) for target, entries in planned.items()
    ]
    first, *others = builds
    manifest = Manifest(
        format=FORMAT,
        provenance=_provenance([members[e.graph] for e in first.entries]),
        target=first.target,
        options=options.recorded,
        metadata=dict(sorted(options.metadata.items())),
        team=first.team,
        state=state.records,
        state_bytes=state.state.nbytes,
        weights_bytes=state.weights.nbytes,
        consts=const_records,
        const_bytes=consts.nbytes,
        kernels=first.kernels,
        entries=first.entries,
        digests={},
        alternatives=tuple(others),
    )
    _check_budget(manifest, options)
    return Artifact.of(manifest, members)


def _build(
    target: CpuTarget | CudaTarget,
    sources: Sequence[Source],
    planned: Sequence[Planned],
    state: StateLayout,
    consts: Layout,
    members: Members,
    options: Options,
    report: CompileReport,
) -> Build:
    """The program for one target; what it consists of is added to ``members``."""
    table = KernelTable()
    for launch in (e for p in planned for e in p.plan.launches):
        table.number(launch.kernel)
    with _kernel_folder(options) as folder:
        with report.phase("kernels"), _explained():
            compilation = begin(target, table.kernels, [p.plan for p in planned], folder)
        with closing(compilation):
            with report.phase("memory"):
                entries = tuple(  # while kernels are compiled
                    entry_record(
                        p.plan,
                        p.memory,
                        state,
                        consts,
                        table,
                        loc=source.loc,
                        graph=_add(members, f"graph/{source.name}.txt", print_graph(source.graph).encode()),
                        fused=_add(members, f"graph/{source.name}.fused.txt", print_graph(p.graph).encode()),
                    )
                    for source, p in zip(sources, planned, strict=True)
                )
            with report.phase("kernels"), _explained():
                native = compilation.finish(entries)
    if settings().debug >= 5:
        print(*native.sources, sep="\n", file=sys.stderr)
    members |= native.members
    team = _add(members, "native/team.o", native.team) if native.team else ""
    return Build(native.target, team, native.kernels, native.entries)


def _add(members: Members, name: str, data: bytes) -> str:
    """The name under which ``data`` is now among the members: where another target has something else called ``name``,
    a number is put into it."""
    stem, _, ending = name.partition(".")
    names = (name if number == 1 else f"{stem}.{number}.{ending}" for number in itertools.count(1))
    return next(free for free in names if members.setdefault(free, data) == data)


def _fitted(
    source: Source,
    whole: Planned,
    state_bytes: int,
    entries: Sequence[Planned],
    target: CpuTarget | CudaTarget,
    options: Options,
    report: CompileReport,
) -> Planned:
    """``whole``, the plan of ``source``, with values computed again where the budget of ``options`` asks for it, or the
    same of the thrifty form of ``source``: what fits and has less work, else what is smaller. Where neither fits, more
    can be computed again if late kernels write nothing by the way. If nothing fits, it is the smallest plan that can be
    found, so that the error can name its size."""
    assert options.memory_budget is not None
    constants = lay_out_consts([p.plan for p in entries])[0].nbytes
    rest = options.memory_budget - state_bytes - constants

    def taken(p: Planned) -> int:
        return p.memory.arena_bytes + p.plan.scratch_bytes * options.team(target)

    if taken(whole) <= rest:
        return whole
    with report.phase("passes"):
        thrifty = pipeline.run(source.graph, check=options.checked, thrifty=True)
    forms = [whole]
    if thrifty != whole.graph:
        forms.append(plan(thrifty, target, report.phase, whole.orders, whole.others))

    def closest(room: int) -> Planned:
        def over(p: Planned) -> int:
            return max(0, taken(p) - room)

        fitted = [fit(p, p.memory.arena_bytes - over(p), target, report.phase) for p in forms]
        if all(map(over, fitted)):
            bare = pipeline.run(source.graph, stop_after="schedule", check=options.checked, thrifty=True)
            last = plan(bare, target, report.phase, whole.orders, whole.others)
            fitted.append(fit(last, last.memory.arena_bytes - over(last), target, report.phase))
        return min(fitted, key=lambda p: (over(p), p.flops))

    found = closest(rest)
    while taken(found) > rest and taken(closer := closest(taken(found) - 1)) < taken(found):
        found = closer
    report.recomputed.setdefault(whole.graph.name, Recomputed.between(whole, found))  # of the best target
    return found


def _tuned(entries: Sequence[Planned], target: CpuTarget, options: Options, report: CompileReport) -> list[Planned]:
    """``entries`` with the kernels that are the fastest here."""
    assert options.tune is not None
    with report.phase("tune"), _kernel_folder(options) as folder, _explained():
        plans = tune([p.plan for p in entries], target, options.tune, options.nthreads, folder)
    return [replace(p, plan=tuned) for p, tuned in zip(entries, plans, strict=True)]


@contextmanager
def _kernel_folder(options: Options) -> Iterator[Path]:
    """Where compiled kernels are: the cache, or without one a folder that is gone afterwards."""
    if options.cache:
        yield settings().cache / "kernels"
        return
    with _explained():
        folder = TemporaryDirectory(prefix="graphc-")
    with folder as temporary:
        yield Path(temporary)


@contextmanager
def _explained() -> Iterator[None]:
    """Raises GC0610 and GC0009 for what goes wrong while kernels are made."""
    try:
        yield
    except OSError as problem:
        where = problem.filename or settings().cache
        hint = "GRAPHC_CACHE names another folder; cache=False needs none."
        raise error("GC0610", f"cannot write compiled kernels to {where}: {problem.strerror}", hint=hint) from None
    except (RuntimeError, ValueError) as problem:  # from LLVM, from llvmlite
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise error("GC0009", f"a kernel did not compile: {reason}", hint=_DEFECT) from problem


_DEFECT = "This is a defect in graphc, not in your model. Please report it with the lines above."


def _observer(source: Source, report: CompileReport) -> Callable[[str, Graph, Graph, float], None]:
    def observe(name: str, before: Graph, after: Graph, seconds: float) -> None:
        report.passes.append(PassRecord(source.name, name, before, after, seconds))
        debug = settings().debug
        if debug >= 3:
            print(f"{source.name}: {name}: {len(before.nodes)} -> {len(after.nodes)} nodes", file=sys.stderr)
        if debug >= 4:
            print(print_graph(after, brief=True), file=sys.stderr)

    return observe


def _check_budget(manifest: Manifest, options: Options) -> None:
    if options.memory_budget is None:
        return
    every = [(e, options.nthreads if build.team else 1) for build in manifest.builds for e in build.entries]
    for entry, threads in every:
        memory = MemoryReport.of(entry, manifest, threads)
        if memory.peak_bytes > options.memory_budget:
            need, have = format_bytes(memory.peak_bytes), format_bytes(options.memory_budget)
            message = f"entry {entry.name!r} needs at least {need} of memory, and the budget is {have}"
            least = f"The smallest budget that fits is {memory.peak_bytes} bytes."
            table = [*str(memory).splitlines()[:2], *memory.table(6)]
            raise error("GC0701", message, loc=entry.loc, hint="\n".join([least, *table]))


def _provenance(graphs: Sequence[bytes | memoryview]) -> Provenance:
    return Provenance(
        graphc=importlib.metadata.version("graphc"),
        numba=importlib.metadata.version("numba"),
        llvm=".".join(map(str, llvm.llvm_version_info)),
        source=sha256(b"\n".join(bytes(g) for g in graphs)),
    )


def _say(report: CompileReport) -> None:
    if settings().debug >= 1:
        for name, seconds in report.seconds.items():
            print(f"graphc: {name} {seconds:.3f} s", file=sys.stderr)
