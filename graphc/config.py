"""Settings from the environment: the only module that reads it.

`settings()` reads on every call (it is cheap), so a test or a notebook may change a variable between two compiles.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from graphc.errors import error

__all__ = ["DEBUG_LADDER", "VARIABLES", "Settings", "cpus", "settings"]

# What each variable does; `graphc doctor` prints this table.
VARIABLES = {
    "GRAPHC_CACHE": "folder of compiled kernels and of trusted digests (default: the user's cache folder)",
    "GRAPHC_THREADS": "threads of a program that does not say (default: the CPUs of this process, at most 64)",
    "GRAPHC_MAX_ISA": "x86-64-v3: treat this machine as one that has AVX2 and no more; or another level",
    "GRAPHC_DEBUG": "0 to 5, the ladder below",
}

# GRAPHC_DEBUG=n switches on every row up to n.
DEBUG_LADDER = (
    (1, "times", "print the seconds of each phase of a compile to stderr; tracebacks of exceptions in model files"),
    (2, "verify", "verify the graph between passes"),
    (3, "summary", "print what each pass did: nodes before and after"),
    (4, "graphs", "print the graph after each pass"),
    (5, "kernels", "print the source of each kernel"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment, read once. ``cache`` need not exist yet; ``max_isa`` is one of `graphc.system.LEVELS`, or ""."""

    cache: Path
    threads: int
    max_isa: str
    debug: int

    @property
    def verify(self) -> bool:
        """Whether the graph is verified between passes."""
        return self.debug >= 2


def settings() -> Settings:
    """Read the environment. Raises GC0602 for a value that is not a number in its range."""
    folder = os.environ.get("GRAPHC_CACHE")
    return Settings(
        cache=Path(folder).expanduser() if folder else _user_cache() / "graphc",
        threads=_integer("GRAPHC_THREADS", min(cpus(), 64), 1, 1024),
        max_isa=os.environ.get("GRAPHC_MAX_ISA", "").strip(),
        debug=_integer("GRAPHC_DEBUG", 0, 0, DEBUG_LADDER[-1][0]),
    )


def cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _integer(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise error(
            "GC0602", f"{name}={text!r} is not a number from {low} to {high}", hint=f"{name}: {VARIABLES[name]}"
        )
    return int(text)
