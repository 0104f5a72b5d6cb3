"""The worked examples of the documentation run, and what it points to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphc.ops import base

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", ["add-an-op", "add-a-pass"])
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
