"""``graphc export``: an artifact as a header and a static library for C."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from graphc.artifact import Artifact, is_trusted
from graphc.cli_inspect import chosen_entries
from graphc.cli_output import Output
from graphc.cli_plan import shown
from graphc.driver import rebuild
from graphc.export import export_c, write
from graphc.runtime_memory import format_bytes

__all__ = ["export"]


def export(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Write ``NAME.h`` and ``libNAME.a``. The result's keys: ``header``, ``library``, ``bytes``, ``state_bytes``, and
    ``arena_bytes`` by entry."""
    artifact = Artifact.read(args.artifact)
    if not args.trust and not is_trusted(artifact):
        out.line(f"{args.artifact} was not built by this user on this machine: it is rebuilt from its graph")
        artifact = rebuild(artifact).artifact
    artifact = shown(artifact)
    name = args.name or re.sub(r"\W", "_", Path(args.artifact).stem, flags=re.ASCII)
    exported = export_c(artifact, name, chosen_entries(artifact, args.artifact, args.entry))
    header, library = write(exported, Path(args.output), name)
    out.table([">entry", ">arena"], [(entry, format_bytes(n)) for entry, n in exported.arena_bytes.items()])
    state = f", state {format_bytes(exported.state_bytes)}" if exported.state_bytes else ""
    out.line(f"{header} and {library}: {format_bytes(len(exported.library))}{state}")
    return {
        "header": str(header),
        "library": str(library),
        "bytes": len(exported.library),
        "state_bytes": exported.state_bytes,
        "arena_bytes": dict(exported.arena_bytes),
    }
