"""``graphc inspect``, ``doctor`` and ``explain``: what there is to know without running anything."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from graphc.artifact import Artifact
from graphc.artifact_records import EntryRecord
from graphc.cli_output import Output
from graphc.cli_plan import entry_summary, print_kernels, print_plan, print_targets, shown, write_report
from graphc.config import DEBUG_LADDER, VARIABLES, settings
from graphc.errors import CODES, error
from graphc.kernels.cuda import nvrtc
from graphc.modelfile import close_matches, load_model_file, make_config
from graphc.runtime import KernelInfo, kernel_infos
from graphc.runtime_cuda_device import found
from graphc.runtime_memory import MemoryReport

__all__ = ["chosen_entries", "doctor", "explain", "inspect"]


def inspect(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Show an artifact. The result's key ``entries`` → name → ``kernels``, ``peak_bytes``, ``state_bytes``,
    ``lower_bound_bytes``, ``flops``, ``bytes``; also ``provenance``, ``targets``, and ``target``, the one of them that
    would run here."""
    if args.artifact.endswith(".py"):
        return _inspect_file(args.artifact, out)
    whole = Artifact.read(args.artifact)
    artifact = shown(whole)
    manifest, threads = artifact.manifest, settings().threads
    entries = chosen_entries(artifact, args.artifact, args.entry)
    if args.kernel:
        return _print_kernel(args.kernel, [k for e in entries for k in kernel_infos(artifact, e)], out)
    origin = manifest.provenance
    out.line(f"{args.artifact}: graphc {origin.graphc}, numba {origin.numba}, LLVM {origin.llvm}")
    out.line(f"source {origin.source[:16]}")
    out.line()
    targets = print_targets(whole, out)
    out.line()
    print_plan(artifact, threads, out)
    for entry in entries:
        out.line()
        print_kernels(artifact, entry, out)
        if args.memory:
            memory = MemoryReport.of(entry, manifest, threads)
            out.line("\n".join([str(memory).splitlines()[0], *memory.table(len(memory.tensors))]))
        if args.graph:
            out.line(artifact.text(entry.fused))
    write_report(args.report, artifact, out)
    return {
        "entries": {e.name: entry_summary(artifact, e, threads) for e in entries},
        "provenance": dataclasses.asdict(origin),
        "target": dataclasses.asdict(manifest.target),
        "targets": targets,
        "options": dict(manifest.options),
        "state": {s.name: [s.dtype, list(s.shape)] for s in manifest.state},
    }


def chosen_entries(artifact: Artifact, path: str, names: list[str] | None) -> list[EntryRecord]:
    """The entries called ``names``, or all. Raises GC0607 for a name that does not occur."""
    known = {e.name: e for e in artifact.manifest.entries}
    for name in names or ():
        if name not in known:
            raise error("GC0607", f"{path} has no entry {name!r}", hint=close_matches(name, list(known)))
    return [known[name] for name in names or known]


def _inspect_file(path: str, out: Output) -> dict[str, Any]:
    """The configuration of a model file: what ``--set`` takes."""
    config = make_config(load_model_file(path))
    fields = dataclasses.fields(config) if config is not None else ()
    values = {f.name: getattr(config, f.name) for f in fields}
    out.table(["key", "type", "default"], [(f.name, f.type, repr(values[f.name])) for f in fields])
    return {"config": values}


def _print_kernel(name: str, kernels: list[KernelInfo], out: Output) -> dict[str, Any]:
    found = {k.symbol: k for k in kernels} | {k.name: k for k in kernels}
    if name not in found:
        raise error("GC0607", f"there is no kernel {name!r}", hint=close_matches(name, sorted(found)))
    kernel = found[name]
    out.line(kernel.source)
    return {"kernel": kernel.name, "source": kernel.source, "lines": [str(loc) for loc in kernel.lines]}


def doctor(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Show what this machine can do and what graphc sees of it."""
    import llvmlite.binding as llvm

    from graphc.system import LEVELS, features

    has = features()
    baselines = [level for level, needed in LEVELS.items() if has.issuperset(needed)]
    vectors = next((n for n in ("avx512f", "avx2", "neon", "sse2") if n in has), "none")
    now = settings()
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": llvm.get_host_cpu_name(),
        "vectors": vectors,
        "baselines": ", ".join(baselines),
        "threads": now.threads,
        "cache": str(now.cache),
        **{name: _version(name) for name in ("graphc", "numpy", "numba", "llvmlite", "safetensors")},
        **found(),
        "nvrtc": _nvrtc(),
        "metal": "not on this system" if sys.platform != "darwin" else _version("pyobjc-framework-Metal"),
    }
    out.table(["", ""], facts.items())
    out.line()
    out.table(["environment", ""], VARIABLES.items())
    out.line()
    out.table([">GRAPHC_DEBUG", "", ""], DEBUG_LADDER)
    return {**facts, "features": sorted(has)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _nvrtc() -> str:
    """The compiler of target cuda."""
    if not nvrtc.available():
        return "not installed; pip install nvidia-cuda-nvrtc compiles for GPUs, also without one"
    return ".".join(map(str, nvrtc.version()))


def explain(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Say what an error code means. Raises GC0609 for one that does not exist."""
    titles = {name: code.title for name, code in CODES.items()}
    if args.code is None:
        out.table(["code", ""], list(titles.items()))
        return {"codes": titles}
    name = args.code.upper()
    if name not in CODES:
        raise error("GC0609", f"there is no error code {args.code}", hint=close_matches(name, sorted(CODES)))
    code = CODES[name]
    out.line(f"{name}: {code.title}", style="bold")
    for part in code.explain.split("\n\n"):
        out.line("\n" + textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False))
    return {"code": name, **dataclasses.asdict(code), "explain": code.explain}
