"""Programs of artifacts, on whatever they were compiled for: this machine's processor or its GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from graphc.artifact import Artifact, is_trusted
from graphc.errors import GraphcError, error
from graphc.runtime import Program
from graphc.runtime_native import best_build, unfit

__all__ = ["load", "program_of"]


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    trusted: bool = False,
    rebuild: Callable[[Artifact, int | None], Program] | None = None,
) -> Program:
    """The program in a ``.gcx`` file, with the state that it was saved with.

    Its native code runs if it fits this machine (else GC0505; of several targets, the first that fits is taken) and was
    built by this user on this machine or ``trusted`` vouches for it (else GC0506). Instead of these errors,
    ``rebuild(artifact, threads)`` makes the program again, with a warning that says why; an ImportError from it means
    that the compiler is not installed here. Raises also GC0501 to GC0504 and GC0507 (`Artifact.read`).

    State that no entry writes is used where the file is mapped: it is read when it is needed, and shared with other
    processes. So the digest of the state is compared only where all is read anyway, as in a rebuild and by ``graphc
    verify``. A file that is in use may be replaced (`Program.save` does that), but must not be cut short.
    """
    artifact = Artifact.read(path, mapped=True)
    try:
        best_build(artifact.manifest, os.fspath(path))
        if not trusted and not is_trusted(artifact):
            message = f"{os.fspath(path)} was not built by this user on this machine, so its native code is not run"
            hint = "graphc.load(path, trust=True) runs it; with the compiler installed it is rebuilt from its graph."
            raise error("GC0506", message, hint=hint)
    except GraphcError as refused:
        if rebuild is None:
            raise
        try:
            program = rebuild(Artifact.read(path), threads)
        except ImportError:
            raise refused from None
        warnings.warn(f"rebuilt from its graph: {refused.message}", stacklevel=3)
        return program
    return program_of(artifact, threads=threads)


def program_of(
    artifact: Artifact, *, threads: int | None = None, state: Mapping[str, np.ndarray] | None = None
) -> Program:
    """The program of an artifact, with its state or with the values ``state``, on the first of its targets that this
    machine can run. Where there is none, one that is for a GPU can be looked at and saved, and to run it is GC0508;
    any other is GC0505."""
    builds = artifact.manifest.builds
    runnable = (n for n, build in enumerate(builds) if not unfit(build))
    for_gpus = (n for n, build in enumerate(builds) if build.target.name == "cuda")
    number = next(runnable, next(for_gpus, None))
    if number is not None and builds[number].target.name == "cuda":
        from graphc.runtime_cuda import CudaProgram  # here, since it takes a tenth of what a load on a CPU does

        return CudaProgram(artifact, number, state=state)
    return Program(artifact, threads=threads, state=state)
