"""graphc diff: each kind of difference is found, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_artifacts import FOLDER

from graphc.artifact import STATE_FILE, Artifact
from graphc.artifact_diff import Difference, differences
from graphc.artifact_records import FORMAT
from graphc.cli import main
from graphc.system import level_of

PATH = FOLDER / FORMAT / "classifier.gcx"


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.read(PATH)


def found(a: Artifact, b: Artifact, part: str) -> list[Difference]:
    """All differences, which must be of this part."""
    every = differences(a, b)
    assert {d.part for d in every} == {part}
    return every


def with_text(artifact: Artifact, old: str, new: str) -> Artifact:
    text = artifact.text("graph/train.txt")
    assert old in text
    return Artifact.of(artifact.manifest, {**artifact.members, "graph/train.txt": text.replace(old, new, 1).encode()})


def test_equal(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert differences(artifact, artifact) == []
    assert main(["diff", str(PATH), str(PATH)]) == 0
    assert "no difference" in capsys.readouterr().out


def test_targets() -> None:
    """The same program for one more target: all that both have is equal."""
    both = Artifact.read(PATH.with_name("targets.gcx"))
    (one,) = found(both.only(0), both, "origin")
    assert (one.where, one.a, one.b) == ("alternative 1", "", "cpu on aarch64-unknown-linux-gnu: neon")
    assert [level_of(both.only(number).manifest.target.features) for number in (0, 1)] == ["x86-64-v3", "neon"]
    assert differences(both, both) == []


def test_weights(artifact: Artifact) -> None:
    state = dict(artifact.tensors(STATE_FILE))
    state["fc1.bias"] = state["fc1.bias"] + np.float32(0.5)
    (one,) = found(artifact, artifact.with_state(state), "weights")
    assert (one.where, one.a) == ("fc1.bias", "float32[8]")
    assert one.b.startswith("differs by up to 0.5")


def test_graph(artifact: Artifact) -> None:
    (one,) = found(artifact, with_text(artifact, 'name="x"', 'name="z"'), "graph")
    assert one.where.startswith("train: line ")
    assert ('name="x"' in one.a, 'name="z"' in one.b) == (True, True)


def test_lines_of_the_file_and_numbers_of_values_are_no_difference(artifact: Artifact) -> None:
    assert not differences(artifact, with_text(artifact, "golden_artifacts.py:4", "golden_artifacts.py:94"))
    text = artifact.text("graph/train.txt")
    line = text.splitlines()[1]
    more = line.replace("%0", "%9999")
    (one,) = found(artifact, with_text(artifact, line, f"{line}\n{more}"), "graph")
    assert (one.a, one.b.replace("%9999", "%0")) == ("", line.strip())  # which of the two is new, nobody can say


def test_plan_and_origin(artifact: Artifact) -> None:
    (entry,) = artifact.manifest.entries
    larger = replace(artifact.manifest, entries=(replace(entry, arena_bytes=entry.arena_bytes + 1000),))
    (one,) = found(artifact, Artifact.of(larger, artifact.members), "plan")
    assert one == Difference("plan", "train: arena, bytes", f"{entry.arena_bytes:,}", f"{entry.arena_bytes + 1000:,}")
    other = replace(artifact.manifest, options={**artifact.manifest.options, "precision": "bfloat16"})
    (one,) = found(artifact, Artifact.of(other, artifact.members), "origin")
    assert one == Difference("origin", "precision", "float32", "bfloat16")


def test_kernels(artifact: Artifact) -> None:
    kernels = artifact.manifest.kernels
    changed = replace(artifact.manifest, kernels=(replace(kernels[0], symbol="gc_0123456789"), *kernels[1:]))
    one, other = found(artifact, Artifact.of(changed, artifact.members), "kernels")
    assert (one.b, other.a, other.b[:13]) == ("", "", "gc_01234567 x")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = FOLDER / FORMAT / "weights.gcx"
    assert main(["diff", str(PATH), str(other), "--json", "--lines", "3"]) == 1
    captured = capsys.readouterr()
    assert {d["part"] for d in json.loads(captured.out)["differences"]} == {"graph", "weights"}
    assert "graph: 2 differences" in captured.err
    assert "- an entry" in captured.err
    assert "more: --lines shows them" in captured.err
