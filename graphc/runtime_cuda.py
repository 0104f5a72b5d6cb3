"""A program for GPUs: everything but running it, which needs one.

What was compiled for NVIDIA GPUs can be looked at, given weights, saved and shipped on any machine.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from graphc.artifact import STATE_FILE, Artifact
from graphc.artifact_records import STATE, WEIGHTS, EntryRecord
from graphc.errors import error
from graphc.runtime import Entry, Program, state_view
from graphc.runtime_native import Block
from graphc.runtime_state import StateView

__all__ = ["CudaEntry", "CudaProgram"]


class CudaProgram(Program):
    """Entries over one state, as `Program`; the state is in this machine's memory."""

    def __init__(self, artifact: Artifact, *, state: Mapping[str, np.ndarray] | None = None):
        manifest = artifact.manifest
        self.threads = 1
        self._lock = threading.RLock()
        blocks = {STATE: Block(manifest.state_bytes), WEIGHTS: Block(manifest.weights_bytes)}
        self.state = StateView({p.name: state_view(blocks[p.space], p) for p in manifest.state})
        self.state.assign(artifact.tensors(STATE_FILE) if state is None else state, self.state)
        members = {name: bytes(data) for name, data in artifact.members.items() if name != STATE_FILE}
        self._whole = self._artifact = replace(artifact, members=members)
        self.entries = {e.name: CudaEntry(self, e) for e in manifest.entries}

    def close(self) -> None:
        """There are no threads to stop."""


class CudaEntry(Entry):
    """One entry of a program for GPUs."""

    def __init__(self, program: CudaProgram, record: EntryRecord):
        self.name = record.name
        self.specs = {p.name: p.type for p in record.inputs}
        self.outputs = {p.name: p.type for p in record.outputs}
        self._program, self._record = program, record

    def _step(self, arguments: dict[str, Any], times: np.ndarray | None) -> NoReturn:
        have = ", ".join(self._program.code.manifest.target.features)
        hint = 'Save it and run it there, or compile with target=["cuda", "cpu"] for a file that runs on both.'
        raise error(
            "GC0505", f"{self.name} was compiled for NVIDIA GPUs ({have}), and this machine has none", hint=hint
        )

    def measured_peak_bytes(self, /, **arguments: Any) -> int:
        """Raises GC0505: nothing runs here."""
        self._step(arguments, None)
