"""What `bench/learning.py` reports: the tables say what the files say, and the baselines are what they are called."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from graphc.data import TextCorpus

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import learning_recipes as recipes
import learning_report as report
from report import replaced

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_those_of_the_files() -> None:
    found = report.results()
    assert found
    readme = (ROOT / "README.md").read_text()
    assert replaced(readme, report.table(found)) == readme
    assert report.table(found) in readme
    assert (report.RESULTS / "learning.md").read_text() == report.page(found)
    for r in found:
        assert (report.RESULTS / f"learning_{r['model']}.svg").read_text() == report.picture(r)


@pytest.mark.parametrize("r", report.results(), ids=lambda r: r["model"])
def test_both_systems_saw_the_same(r: dict) -> None:
    """The first losses are of the same weights and batches, so that they differ by rounding alone."""
    recipe = recipes.RECIPES[r["model"]]
    first = [{s: r[s]["first_losses"] for s in ("graphc", "pytorch")}]
    for losses in first + [seed["first_losses"] for seed in r.get("seeds", [])]:
        gaps = np.abs(np.subtract(losses["graphc"], losses["pytorch"]))
        assert gaps[:2].max() < 1e-5
        assert gaps[: recipe.steady].max() < 1e-2
    assert [seed["seed"] for seed in r.get("seeds", [])] == list(recipe.seeds)
    assert r["graphc"]["heldout"][-1]["step"] == r["pytorch"]["heldout"][-1]["step"] == r["config"]["max_iters"]
    assert r["data"] == r["config"]["data"] == recipes.RECIPES[r["model"]].data


def test_a_table_is_replaced_in_its_place() -> None:
    head = "| a | b |"
    text = f"before\n\n{head}\n|---|---|\n| 1 | 2 |\n\nafter\n"
    assert replaced(text, f"{head}\n|---|---|\n| 3 | 4 |") == text.replace("| 1 | 2 |", "| 3 | 4 |")
    assert replaced("no table\n", head) == "no table\n"


def test_ngrams_by_their_definition() -> None:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(500) < 0.7, np.arange(500) % 4, rng.integers(0, 5, 500))
    corpus = TextCorpus("", "abcde", tokens[:400], tokens[400:])
    after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for n in (1, 2, 3):
        for i in range(len(corpus.train) - n + 1):
            *context, last = corpus.train[i : i + n].tolist()
            after[tuple(context)][last] += 1

    def p(context: tuple[int, ...], b: int) -> float:
        shorter = p(context[1:], b) if context else 1 / 5
        known = after.get(context)
        return (known[b] + len(known) * shorter) / (known.total() + len(known)) if known else shorter

    held = corpus.heldout.tolist()
    want = -np.mean([np.log(p((held[i], held[i + 1]), held[i + 2])) for i in range(len(held) - 2)])
    assert recipes.ngram_loss(corpus, 3) == pytest.approx(want)


def test_nearest_neighbour() -> None:
    train = np.array([[0, 0], [200, 200], [0, 250]], np.uint8), np.array([0, 1, 2])
    heldout = np.array([[10, 10], [190, 220], [20, 200], [240, 10]], np.uint8), np.array([0, 1, 1, 1])
    assert recipes.nearest_neighbour_accuracy(train, heldout, rows=3) == 0.75


def test_scores_of_several_seeds() -> None:
    finals = [(0.80, 0.82), (0.84, 0.83), (0.85, 0.87)]
    r = {"score": "accuracy", "seeds": [{"seed": i, **_finals(*pair)} for i, pair in enumerate(finals)]}
    assert report.scored(r, "graphc") == "83.0 ± 1.5 %"
    assert report.scored(r, "pytorch") == "84.0 ± 1.5 %"
    text = report.seeds(r)
    assert "| 1 | 84.00 % | 83.00 % | +1.00 |" in text
    assert "Mean difference -1.00 ± 1.00 points" in text
    assert report.seeds({"score": "loss"}) == ""


def _finals(ours: float, theirs: float) -> dict:
    return {"graphc": {"accuracy": ours}, "pytorch": {"accuracy": theirs}}
