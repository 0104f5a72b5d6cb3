"""Errors as values, and the table of codes against the source that raises them."""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest

from graphc.cli import main
from graphc.codes import CODES
from graphc.errors import GraphcError, Loc, error

ROOT = Path(__file__).parent.parent
SOURCES = [f for folder in ("graphc", "passes", "kernels", "models") for f in (ROOT / folder).rglob("*.py")]


def test_text() -> None:
    problem = error("GC0101", "shapes differ", loc=Loc("no_such_file.py", 3), hint="look here;\nand there")
    assert str(problem) == (
        "GC0101: shapes differ\n"
        "  at no_such_file.py:3\n"
        "  hint: look here;\n"
        "        and there"
    )  # fmt: skip


def test_the_line_is_shown_where_it_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("one\n    two\n")
    assert str(error("GC0101", "no", loc=Loc(str(tmp_path / "net.py"), 2))).splitlines()[2] == "    two"


@pytest.mark.parametrize("name", ["pipe.py", "notes.txt"])
def test_only_python_files_are_shown(name: str, tmp_path: Path) -> None:
    """A location may come from a file from elsewhere; a pipe would be read for ever."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "notes.txt").write_text("secret\n")
    assert str(error("GC0101", "no", loc=Loc(str(tmp_path / name), 1), hint="yes")).splitlines()[2:] == ["  hint: yes"]


def test_a_long_hint_is_cut() -> None:
    assert len(str(error("GC0701", "too much", hint="line\n" * 40)).splitlines()) == 15


def test_pickle_keeps_the_text(tmp_path: Path) -> None:
    """The process that reads it may not have the user's file."""
    file = tmp_path / "net.py"
    file.write_text("x = y\n")
    problem = error("GC0101", "no", loc=Loc(str(file), 1), hint="yes")
    problem.add_note("in the worker")
    data = pickle.dumps(problem)
    file.unlink()
    again = pickle.loads(data)
    assert type(again) is GraphcError
    assert (again.code, again.message, again.loc, again.hint) == ("GC0101", "no", Loc(str(file), 1), "yes")
    assert str(again) == str(problem)
    assert "x = y" in str(again)
    assert again.__notes__ == ["in the worker"]


# The table -----------------------------------------------------------------------------------------------------------


def test_codes_are_in_order_and_listed_once() -> None:
    text = "".join((ROOT / "graphc" / file).read_text() for file in ("codes_model.py", "codes_use.py"))
    listed = re.findall(r'^ {4}"(GC\d{4})": Code\($', text, re.M)
    assert listed == sorted(set(listed))
    assert listed == list(CODES)


@pytest.mark.parametrize("name", CODES)
def test_code_is_explained(name: str) -> None:
    code = CODES[name]
    assert re.fullmatch(r"GC0[0-8]\d{2}", name)
    assert 5 <= len(code.title) <= 70
    assert not code.title.endswith(".")
    assert len(code.means) >= 40
    assert code.means.endswith(".")
    assert len(code.example) >= 8
    assert len(code.remedy) >= 30
    assert code.remedy.endswith((".", ")"))
    assert len(code.explain) <= 500


@pytest.mark.parametrize("code", CODES)
def test_explain_prints_it(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code.lower()]) == 0
    title, rest = capsys.readouterr().out.split("\n", 1)
    assert title == f"{code}: {CODES[code].title}"
    assert " ".join(rest.split()) == " ".join(CODES[code].explain.split())
    assert max(map(len, rest.splitlines())) <= 100


def test_codes_are_raised_and_raised_codes_are_listed() -> None:
    used: Counter[str] = Counter()
    for file in SOURCES:
        if not file.name.startswith("codes_"):
            used.update(re.findall(r'"(GC\d{4})"', file.read_text()))
    assert used.keys() == CODES.keys()
