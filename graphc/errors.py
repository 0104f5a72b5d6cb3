"""Every error that graphc raises on purpose: a stable code, one sentence, the user's line, a way out.

An error is an instance of `GraphcError` built by `error(code, ...)`. `graphc.codes` lists the codes.
"""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass
from typing import Any

from graphc.codes import CODES, Code

__all__ = ["CODES", "Code", "GraphcError", "Loc", "error"]


@dataclass(frozen=True, slots=True)
class Loc:
    """A line of the user's source. ``file`` is the path that Python reported; printing shortens it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def source(self) -> str:
        """The text of the line, or an empty string where the file is not at hand. An artifact from elsewhere may name
        any path: only Python files are opened, never a device or a pipe."""
        known = self.file in linecache.cache or (self.file.endswith(".py") and os.path.isfile(self.file))
        return linecache.getline(self.file, self.line).strip() if known else ""


class GraphcError(Exception):
    """An error with a stable code.

    Attributes: ``code`` ("GC0101"), ``message`` (one sentence), ``loc`` (the user's line or None), ``hint`` (a way
    out, or None where the explanation of the code is all there is to say). ``str(e)`` is at most 15 lines.
    """

    def __init__(self, code: str, message: str, loc: Loc | None = None, hint: str | None = None):
        self.code, self.message, self.loc, self.hint = code, message, loc, hint
        super().__init__(self.render())

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process pools. The text goes along: the other side may not have the user's file at hand."""
        return type(self), (self.code, self.message, self.loc, self.hint), {**self.__dict__, "args": self.args}

    def render(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        if self.loc is not None:
            lines.append(f"  at {self.loc}")
            text = self.loc.source()
            if text:
                lines.append(f"    {text}")
        hint = self.hint or f"`graphc explain {self.code}` says more"
        lines.extend(f"  {'hint: ' if i == 0 else '      '}{part}" for i, part in enumerate(hint.splitlines()))
        return "\n".join(lines[:15])


def error(code: str, message: str, *, loc: Loc | None = None, hint: str | None = None) -> GraphcError:
    """Build the error for ``raise``. The code must be in `CODES`."""
    assert code in CODES, f"unlisted error code {code}"
    return GraphcError(code, message, loc, hint)
