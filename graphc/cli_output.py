"""What commands print, and where: for people to standard output, or to standard error when that is kept for JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from graphc.errors import GraphcError

__all__ = ["Output", "count"]


MIN_WIDTH = 130  # a table that is cut off says nothing; a terminal that is narrower wraps it


class Output:
    """The printer of one command. ``console`` is where people look."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.console.width = max(self.console.width, MIN_WIDTH)

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line of plain text: nothing in it is markup."""
        self.console.print(text, style=style, markup=False)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
        """A table; columns whose name starts with ">" are set flush right."""
        made = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for name in columns:
            right = name.startswith(">")
            made.add_column(name.lstrip(">"), justify="right" if right else "left", no_wrap=right, header_style="dim")
        for row in rows:
            made.add_row(*[_escape(str(cell)) for cell in row])
        self.console.print(made)

    def error(self, problem: GraphcError) -> None:
        """The error for people on standard error, and for programs as the JSON object."""
        print(problem, file=sys.stderr)
        if self.as_json:
            loc = str(problem.loc) if problem.loc else None
            self.result({"error": {"code": problem.code, "message": problem.message, "loc": loc, "hint": problem.hint}})

    def result(self, values: dict[str, Any]) -> None:
        """The JSON object, if one is wanted."""
        if self.as_json:
            sys.stderr.flush()
            print(json.dumps(values), flush=True)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def count(number: float) -> str:
    """A count that a unit follows, for people: ``3.7 G``, ``12 ``."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit else f"{number:.0f} "
        number /= 1000
    return f"{number:.1f} T"
