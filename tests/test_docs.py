"""The worked examples of the documentation run, and what it points to exists."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from graphc.cli import parser
from graphc.ops import base

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", ["add-an-op", "add-a-pass", "language-models", "loops"])
def test_worked_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a page, in one file, as a reader would type them."""
    monkeypatch.setattr(base, "_TABLE", dict(base._TABLE))  # an op of a page stays on the page
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / f"{name}.md").read_text(), re.M | re.S)
    assert len(blocks) >= 3
    file = tmp_path / "example.py"
    file.write_text("\n".join(blocks))
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not t.startswith("http")]
    missing = [t for t in links if not (page.parent / t).exists()]
    paths = re.findall(r"`((?:graphc|passes|kernels|models|tests|docs|bench|examples)/[\w./-]*)`", text)
    missing += [p for p in paths if not (ROOT / p).exists()]
    assert not missing


def test_every_decision_has_its_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [p.name[:4] for p in pages] == [f"{i:04}" for i in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        for part in ("**Context.**", "**Decision.**", "**Consequences.**"):
            assert part in text, f"{page.name} lacks {part}"


def test_readme_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of the README, with two batches for its loop."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((128, 784), np.float32), rng.integers(0, 10, 128, np.int32)) for _ in range(2)]
    file = tmp_path / "net.py"
    file.write_text("\n".join(blocks))
    names = {"__name__": "net", "batches": batches}
    exec(compile(file.read_text(), str(file), "exec"), names)
    assert (tmp_path / "net.gcx").exists()
    assert (tmp_path / "step1000.safetensors").exists()


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    assert "loss" in capsys.readouterr().out


def test_readme_commands_exist() -> None:
    """Every `graphc` and `make` command that the README shows is one."""
    text = (ROOT / "README.md").read_text()
    helped = parser().format_help()
    for command in re.findall(r"^graphc (\w+)", text, re.M):
        assert re.search(rf"^ +{command} ", helped, re.M), command
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
